"""Precision: the numbers of tensors where calculating with them is exact enough, and in range."""

from __future__ import annotations

import math

import torch


def wide(t: torch.Tensor) -> torch.Tensor:
    """In double precision, where squares of all that fits a narrower type are exact enough, none zero or infinite."""
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.device.type == "mps":  # has no doubles
        t = t.cpu()
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def near_one(t: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A tensor over a power of two no larger than its largest entry, and that power; at least in single precision."""
    single = t.layout is torch.strided and not t.is_complex() and t.dtype.itemsize <= 4
    w = t.float() if single else wide(t)
    low, high = (w.min(), w.max()) if w.numel() and not w.is_complex() else (-w.abs().max(), 0) if w.numel() else (0, 0)
    largest = max(-float(low), float(high))
    scale = 2.0 ** (math.frexp(largest)[1] - 1) if 0 < largest < math.inf else 1.0
    return (w, scale) if scale == 1 else (w / scale, scale)
