"""Open sizes: those that depend on data (the rows of `x[mask]`, of `nonzero`) count as the largest that they can be."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import CaptureError


def is_open(x: Any) -> bool:
    """Whether it is a number that only data tells: a size, or what is computed of one."""
    return isinstance(x, (torch.SymInt, torch.SymFloat, torch.SymBool))


def largest(size: int | torch.SymInt) -> int:
    """A size as a number. Raises CaptureError for one that depends on data and has no bound.

    >>> largest(3)
    3
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    node = size.node
    upper = node.shape_env.bound_sympy(node.expr).upper
    if not upper.is_Integer or int(upper) >= 1 << 48:  # torch bounds what it knows nothing of by the largest int
        raise CaptureError(f"a size depends on data, and nothing bounds it: {node.expr}; bound it with torch._check")
    return int(upper)


def shape_of(x: torch.Tensor) -> tuple[int, ...]:
    """The shape of a tensor, each size that depends on data as the largest that it can be."""
    return tuple(largest(n) for n in x.shape)
