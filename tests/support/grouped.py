"""A grouped matrix product as mixtures of experts call it: rows in runs, each with the matrix of its expert."""

from __future__ import annotations

import torch


@torch.library.custom_op("solvemut_tests::grouped_mm_fallback", mutates_args=())
def grouped_mm(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """[s, i], [e, i, o], [e] -> [s, o]; `offs` says where the run of each expert ends."""
    ends = offs.tolist()
    runs = zip([0, *ends[:-1]], ends, weight, strict=True)
    return torch.cat([input[start:end] @ w for start, end, w in runs])


@grouped_mm.register_fake
def _(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    assert input.shape[1] == weight.shape[1]
    return input.new_empty(input.shape[0], weight.shape[2])
