"""Outputs: the directions in which what a linear layer puts out varies most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .. import batches as runs
from ..precision import wide


def principal(model: nn.Module, paths: Sequence[str], batches: Iterable[Any]) -> dict[str, torch.Tensor]:
    """By layer the eigenvectors of the mean of y y^T, [outputs, outputs], the largest first; y is its output, no bias.

    The first r of them span the outputs of the map of rank r that comes nearest to the layer on these inputs.
    """
    grams: dict[str, torch.Tensor] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, out: torch.Tensor) -> None:
            dim = -1 if isinstance(module, nn.Linear) else -module.weight.ndim + 1
            y = wide(out.detach().movedim(dim, -1))
            y = (y if module.bias is None else y - wide(module.bias.detach())).reshape(-1, y.shape[-1])
            grams[path] = grams.get(path, 0) + y.T @ y

        return hook

    handles = [model.get_submodule(p).register_forward_hook(look(p)) for p in paths]
    try:
        with runs.evaluated(model), torch.no_grad():
            for batch in runs.some(batches):
                runs.forward(model, runs.plain(batch))
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.linalg.eigh(g).eigenvectors.flip(1) for path, g in grams.items()}
