"""Copies: new slices that hold what old ones do, alike or divided.

What is divided is shared out at random, by nearly equal shares that differ from entry to entry: the slices of a unit
and its copies add up to what there was, while their gradients differ, so that copies part in training. The shares
depend on the name of the parameter alone.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch

from ..edits import Copies, is_grouped, rows_of
from ..errors import PlanMismatchError, SolvemutError
from .tensors import Change

SPREAD = 0.2  # shares before they add up to one: from 1 - SPREAD to 1 + SPREAD


def copy_slices(out: torch.Tensor, change: Change) -> None:
    """Write copies into a tensor that holds what stays; whole slices first, so that each is divided by itself."""
    for d in sorted(change.copies, key=lambda d: (change.copies[d].divided, d)):
        index, copies = change.dims[d], change.copies[d]
        if copies.divided and not (out.is_floating_point() or out.is_complex()):
            raise PlanMismatchError(f"{change.name} holds {out.dtype}, which copies of a unit cannot divide")
        if is_grouped(index):
            _copy_rows(out, change, d)
        else:
            groups = len(change.dims[1]) if d == 0 and is_grouped(change.dims.get(1, [])) else 1
            _copy_line(out, d, index, copies, change.name, len(index) // groups)  # type: ignore[arg-type]


def _copy_rows(out: torch.Tensor, change: Change, d: int) -> None:
    """Dim 0 holds the rows one after another; a row that is new as a whole has been copied there."""
    rows, origins, divided = rows_of(change.dims[d]), rows_of(change.copies[d].of), change.copies[d].divided
    each = out.shape[0] // len(rows)
    for k, (row, of) in enumerate(zip(rows, origins, strict=True)):
        if any(i >= 0 for i in row):
            _copy_line(out[k * each : (k + 1) * each], d, row, Copies(of, divided), f"{change.name}[{k}]", len(row))
        elif any(p >= 0 for p in of) and of not in rows:
            raise SolvemutError(f"{change.name}: a new group would read its inputs in another order")


def _copy_line(out: torch.Tensor, d: int, index: list[int], copies: Copies, name: str, group: int) -> None:
    """One index list. What is divided is so among the members of a family in one group, of so many slices each."""
    place = {i: k for k, i in enumerate(index) if i >= 0}
    of: Any = copies.of
    new = [k for k, p in enumerate(of) if p >= 0]
    source = [place[of[k]] for k in new]
    _write(out, d, new, _read(out, d, source))
    if copies.divided:
        members = [*dict.fromkeys(source), *new]
        keys = [(s, k // group) for k, s in zip(members, [*dict.fromkeys(source), *source], strict=True)]
        number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        found = _read(out, d, members)
        _write(out, d, members, found * _shares(found, d, [number[key] for key in keys], f"{name} {d}"))


def _shares(like: torch.Tensor, d: int, families: list[int], name: str) -> torch.Tensor:
    """For each entry its share: those of one family add up to 1 along dim d."""
    dtype = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    found = torch.rand(like.shape, generator=generator, dtype=dtype) * (2 * SPREAD) + (1 - SPREAD)
    at = torch.tensor(families)
    shape = [max(families) + 1 if k == d else n for k, n in enumerate(like.shape)]
    total = torch.zeros(shape, dtype=dtype).index_add_(d, at, found)
    return (found / total.index_select(d, at)).to(like.device)


def _read(x: torch.Tensor, d: int, at: list[int]) -> torch.Tensor:
    """Slices of a tensor; of a dtype in which torch calculates."""
    if x.dtype.itemsize == 1 and x.is_floating_point():
        return x.float().index_select(d, torch.tensor(at, device=x.device))
    return x.index_select(d, torch.tensor(at, device=x.device))


def _write(x: torch.Tensor, d: int, at: list[int], new: torch.Tensor) -> None:
    if x.dtype.itemsize == 1 and x.is_floating_point():
        x.view(torch.uint8).index_copy_(d, torch.tensor(at, device=x.device), new.to(x.dtype).view(torch.uint8))
    else:
        x.index_copy_(d, torch.tensor(at, device=x.device), new.to(x.dtype))
