"""Slices: what a plan leaves of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..edits import Copies, Index, rows_of
from ..errors import PlanMismatchError

Undo = list[Callable[[], None]]
Step = Callable[[Undo], None]


@dataclass(frozen=True)
class Change:
    """A tensor that a plan changes: which slices stay, what new ones hold and copy, and its shape before and after."""

    name: str
    tensor: torch.Tensor
    dims: Mapping[int, Index]
    before: tuple[int, ...]
    after: tuple[int, ...]
    fills: Mapping[int, Any] = field(default_factory=dict)
    copies: Mapping[int, Copies] = field(default_factory=dict)

    @cached_property
    def moving(self) -> dict[int, Index]:
        """The dims in which something goes or moves."""
        same = {d: list(range(self.before[d])) for d in self.dims}
        return {d: index for d, index in self.dims.items() if any(row != same[d] for row in rows_of(index))}


def select(tensor: torch.Tensor, dims: Mapping[int, Index], before: Sequence[int] = ()) -> torch.Tensor:
    """The slices of a tensor that stay, with zeros in new ones: of the same dtype, device and memory format.

    A dim of size 1 in a state tensor has nothing to select, unless `before` says that the parameter had 1 too. For the
    input dim of a grouped convolution `dims[1]` has a list for every group that stays, and `dims[0]` lists the output
    channels of these groups one after another.
    """
    if tensor.layout is torch.sparse_coo:
        return _select_sparse(tensor, dims)
    out = tensor.detach()
    if _is_float8(tensor):  # torch moves bytes where it has no kernel for these
        out = out.view(torch.uint8)
    for d in sorted(dims):
        index = dims[d]
        if index and isinstance(index[0], list):
            out = _select_rows(out, d, rows_of(index))
        elif out.shape[d] > 1 or (d < len(before) and before[d] == 1):
            out = _select_line(out, d, index)  # type: ignore[arg-type]
    out = _copied_in_order(out, tensor)
    return out.view(tensor.dtype) if _is_float8(tensor) else out


def new_slices(index: Index) -> list[int]:
    """Where an index has new slices."""
    return [k for k, i in enumerate(index) if i == -1]


def _select_line(x: torch.Tensor, d: int, index: list[int]) -> torch.Tensor:
    new = new_slices(index)
    out = x.index_select(d, _positions([max(i, 0) for i in index], x))
    return out.index_fill_(d, _positions(new, x), 0) if new else out


def follows(state: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has one entry, or a slice to go with every slice of a parameter of this shape."""
    return state.dim() == len(shape) and all(s in (1, n) for s, n in zip(state.shape, shape, strict=True))


def _positions(index: Index, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(index, device=like.device, dtype=torch.long)


def _is_float8(tensor: torch.Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1


def _select_sparse(tensor: torch.Tensor, dims: Mapping[int, Index]) -> torch.Tensor:
    """The gradient of a sparse embedding stays sparse."""
    out = tensor.detach()
    for d, index in dims.items():
        if index and isinstance(index[0], list):
            raise PlanMismatchError("a sparse gradient cannot follow groups of a convolution; set it to None first")
        out = out.index_select(d, _positions(index, out))
    return out.coalesce().clone() if tensor.is_coalesced() else out.clone()


def _select_rows(x: torch.Tensor, d: int, index: list[list[int]]) -> torch.Tensor:
    """Dim 0 holds the rows one after another; each takes its own positions of dim d."""
    if x.shape[d] == 1 and index != [[0]] * len(index):
        return x
    if x.shape[0] == 1:  # a factored state holds one row for all groups
        if any(row != index[0] for row in index):
            raise PlanMismatchError(
                "a factored optimizer state of a grouped convolution cannot follow groups that keep different inputs; "
                "remove that state first"
            )
        return x.index_select(d, _positions(index[0], x))
    per_row = x.shape[0] // len(index)
    taken = torch.tensor(index, device=x.device).repeat_interleave(per_row, dim=0)  # [dim 0, kept]
    taken = taken.reshape(taken.shape[0], *[1] * (d - 1), taken.shape[1], *[1] * (x.dim() - d - 1))
    taken = taken.expand(*[taken.shape[k] if k in (0, d) else x.shape[k] for k in range(x.dim())])
    return x.gather(d, taken.clamp(min=0)).masked_fill_(taken < 0, 0)


def _copied_in_order(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy whose dims lie in memory in the order of `like`: channels_last, channels_last_3d, transposed, ...

    Dims of size 1 come last among equal strides, so that a 1x1 kernel is told apart as torch does it.
    """
    strides = like.stride()
    order = sorted(range(x.dim()), key=lambda d: (-strides[d], like.shape[d] == 1))
    new = torch.empty_permuted(tuple(x.shape), order, dtype=x.dtype, device=x.device)  # type: ignore[call-overload]
    return new.copy_(x)
