"""Modules that stand where one was removed: they give their input, or zeros, at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Bypassed(nn.Module):
    """Gives the first tensor that it is given, or with `zeros` as many zeros; with `results` as the first of a tuple.

    >>> Bypassed(zeros=True, results=2)(torch.ones(2), mask=None)
    (tensor([0., 0.]), None)
    """

    def __init__(self, zeros: bool = False, results: int = 0) -> None:
        super().__init__()
        self.zeros, self.results = zeros, results

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
        out = torch.zeros_like(x) if self.zeros else x
        return (out, *([None] * (self.results - 1))) if self.results else out

    def extra_repr(self) -> str:
        return f"zeros={self.zeros}" + (f", results={self.results}" if self.results else "")
