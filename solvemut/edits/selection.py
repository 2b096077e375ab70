"""Which slices of each parameter stay, as a value: selections compose, and turn round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import PlanMismatchError

Index = list[int] | list[list[int]]
Dims = Mapping[int, Index]


@dataclass(frozen=True)
class Selection:
    """For a parameter or buffer and one of its dims the old positions that stay, in their new order; -1: a new slice.

    The input dim (1) of a grouped convolution has such a list for every group that stays, and dim 0 holds the outputs
    of these groups one after another. What is not named stays as it is.

    >>> first, second = Selection({"a.bias": {0: [1, -1, 2, -1, 3]}}), Selection({"a.bias": {0: [0, 1, 4, -1]}})
    >>> first.then(second).indices["a.bias"]
    {0: [1, -1, 3, -1]}
    """

    indices: Mapping[str, Dims] = field(default_factory=dict)

    def then(self, other: Selection) -> Selection:
        """This selection, then another one of what it leaves, as one: a slice that is new in either is new."""
        names = dict.fromkeys((*self.indices, *other.indices))
        return Selection({n: _then(n, self.indices.get(n, {}), other.indices.get(n, {})) for n in names})

    def back(self, shapes: Mapping[str, Sequence[int]]) -> Selection:
        """The selection that leads back to the `shapes` of before, with -1 where something was dropped.

        How many groups there were a selection does not tell, so that every old output of a grouped convolution gets a
        list of its own.

        >>> selection = Selection({"a.bias": {0: [0, 3]}})
        >>> back = selection.back({"a.bias": (5,)})
        >>> back.indices["a.bias"], selection.then(back).indices["a.bias"]
        ({0: [0, -1, -1, 1, -1]}, {0: [0, -1, -1, 3, -1]})
        """
        return Selection({name: _back(dims, shapes[name]) for name, dims in self.indices.items()})

    def to_data(self) -> dict[str, Any]:
        """As a plan file has it."""
        return {"indices": {name: {str(d): i for d, i in dims.items()} for name, dims in self.indices.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Selection:
        """The selection that `to_data` wrote; a plan file was checked before."""
        return cls({name: {int(d): i for d, i in dims.items()} for name, dims in data["indices"].items()})


def rows_of(index: Index) -> list[list[int]]:
    """An index as one list per row; most have one."""
    return index if is_grouped(index) else [index]  # type: ignore[list-item, return-value]


def is_grouped(index: Index) -> bool:
    """Whether an index has a list for every group."""
    return bool(index) and isinstance(index[0], list)


# -- one after another -------------------------------------------------------------------------------------------------


def _then(name: str, first: Dims, second: Dims) -> dict[int, Index]:
    found: dict[int, Index] = {}
    for d in sorted({*first, *second}):
        if d not in first:
            found[d] = second[d]
        elif is_grouped(first[d]):
            found[d] = _regrouped(name, d, first, second)
        elif d not in second:
            found[d] = first[d]
        else:
            picked = [_picked(first[d], row) for row in rows_of(second[d])]
            found[d] = picked if is_grouped(second[d]) else picked[0]
    return found


def _picked(first: Sequence[Any], second: Sequence[int]) -> list[int]:
    return [first[i] if i >= 0 else -1 for i in second]


def _regrouped(name: str, d: int, first: Dims, second: Dims) -> Index:
    """Each group that is left takes from the list of the group that its outputs come from; a new one is all new."""
    lists = rows_of(first[d])
    taken = rows_of(second[d]) if d in second else [list(range(len(lists[0])))]
    if 0 not in second and (d not in second or len(taken) in (1, len(lists))):
        groups = list(range(len(lists)))
    elif 0 in first:
        outputs = rows_of(second.get(0, list(range(len(first[0])))))[0]
        groups = _groups(outputs, len(first[0]) // len(lists), len(taken) if is_grouped(second.get(d, [])) else 0)
    else:
        raise PlanMismatchError(f"{name}: groups are selected anew, and nothing says how many outputs each has")
    rows = [taken[k * len(taken) // len(groups)] for k in range(len(groups))]
    return [_picked(lists[g], row) if g >= 0 else [-1] * len(row) for g, row in zip(groups, rows, strict=True)]


def _groups(outputs: Sequence[int], each: int, asked: int) -> list[int]:
    """For `asked` equal parts of the outputs the old group that each comes from, -1 for a new one.

    With asked=0 there are as many parts as old groups stay. A part of several groups is no part: then every output is
    one.
    """
    old = [p // each if p >= 0 else -1 for p in outputs]
    count = asked or len({g for g in old if g >= 0})
    if count and len(old) % count == 0:
        size = len(old) // count
        parts = [set(old[k : k + size]) - {-1} for k in range(0, len(old), size)] if size else []
        if all(len(part) <= 1 for part in parts):
            return [max(part, default=-1) for part in parts]
    return old


# -- back --------------------------------------------------------------------------------------------------------------


def _back(dims: Dims, shape: Sequence[int]) -> dict[int, Index]:
    found: dict[int, Index] = {}
    for d, index in dims.items():
        turned = [_turned(row, shape[d]) for row in rows_of(index)]
        if not is_grouped(index):
            found[d] = turned[0]
        elif 0 not in dims:
            found[d] = turned
        else:
            outputs = rows_of(dims[0])[0]
            each = len(outputs) // len(turned)
            found[d] = [turned[k // each] if k >= 0 else [-1] * shape[d] for k in _turned(outputs, shape[0])]
    return found


def _turned(index: Sequence[int], n: int) -> list[int]:
    """Of the map from new to old positions the one from old to new."""
    found = [-1] * n
    for new, old in enumerate(index):
        if old >= 0:
            found[old] = new
    return found
