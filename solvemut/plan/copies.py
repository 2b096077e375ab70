"""Copies of units in a plan: as text, one plan after another, and what a file may say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..edits import Copies, Index, is_grouped, rows_of
from ..edits.forms import fail
from ..errors import PlanMismatchError

ByDim = Mapping[str, Mapping[int, Any]]


def told(copies: ByDim, indices: ByDim) -> list[str]:
    """One line for all parameters in which the same new slices copy the same old ones, in old and new positions."""
    found: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name, dims in copies.items():
        for d, c in dims.items():
            if not c.divided and not is_grouped(c.of):
                pairs = tuple((k, i) for k, i in enumerate(c.of) if i >= 0)
                found.setdefault(pairs, []).append(name if d == 0 else f"{name} (dim {d})")
    return [f"- {_few(names, 3)}: {_few([f'{k} of {i}' for k, i in pairs], 12)}" for pairs, names in found.items()]


def _few(items: Sequence[str], n: int) -> str:
    return ", ".join(items[:n]) + (f" and {len(items) - n} more" if len(items) > n else "")


# -- one plan after another --------------------------------------------------------------------------------------------


def copies_then(first: Any, second: Any) -> dict[str, dict[int, Copies]]:
    """The copies of two plans as those of one. Raises PlanMismatchError where one plan cannot say them."""
    found: dict[str, dict[int, Copies]] = {}
    for name in dict.fromkeys((*first.copies, *second.copies)):
        for d in dict.fromkeys((*first.copies.get(name, {}), *second.copies.get(name, {}))):
            if any(is_grouped(plan.indices.get(name, {}).get(d, [])) for plan in (first, second)):
                c = _of_groups(first, second, name, d)
            else:
                c = _of_line(first, second, name, d)
            if any(i >= 0 for row in rows_of(c.of) for i in row):
                found.setdefault(name, {})[d] = c
    return found


def _of_line(first: Any, second: Any, name: str, d: int) -> Copies:
    size = (first if name in first.shapes else second).shapes[name][0][d]
    a: list[int] = first.indices.get(name, {}).get(d, list(range(size)))
    b: list[int] = second.indices.get(name, {}).get(d, list(range(len(a))))
    made, more = (plan.copies.get(name, {}).get(d) for plan in (first, second))
    known = [-1] * len(a) if made is None else made.of
    asked = [-1] * len(b) if more is None else more.of
    divided = [c.divided for c in (made, more) if c is not None]
    origins = [i if i >= 0 else p for i, p in zip(a, known, strict=True)]  # of what the first plan leaves
    if any(i >= 0 and origins[i] < 0 for i in asked) or len(set(divided)) > 1:
        raise _refused(name, d, "copies units that are new by the first")
    if divided[0] and not _together(origins, {p for p in known if p >= 0}, {i for i in b if i >= 0}):
        raise _refused(name, d, "removes some of the units that share weights by the first")
    of = [known[i] if i >= 0 else origins[j] if j >= 0 else -1 for i, j in zip(b, asked, strict=True)]
    return Copies(of, divided[0])


def _together(origins: Sequence[int], copied: set[int], left: set[int]) -> bool:
    """Whether a unit and all its copies stay, or none of them."""
    families: dict[int, list[bool]] = {}
    for i, p in enumerate(origins):
        if p in copied:
            families.setdefault(p, []).append(i in left)
    return all(all(stay) or not any(stay) for stay in families.values())


def _of_groups(first: Any, second: Any, name: str, d: int) -> Copies:
    """Groups are dealt anew by a plan, so that copies in them stand only beside a plan that leaves them alone."""
    owner, other = (first, second) if name in first.copies and d in first.copies[name] else (second, first)
    dims = other.indices.get(name, {})
    for k in (0, d):
        if k in dims and any(row != list(range(owner.shapes[name][owner is first][k])) for row in rows_of(dims[k])):
            raise _refused(name, d, "changes its groups, too")
    found: Copies = owner.copies[name][d]
    return found


def _refused(name: str, d: int, what: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"new slices of {name} in dim {d} are copies by one plan, and the second {what}, which one plan cannot say; "
        "apply them one after the other"
    )


# -- what a file may say -----------------------------------------------------------------------------------------------


def check_origins(where: str, copies: Mapping[str, Any], index: Index, fill: Any) -> None:
    """The copies in one index list are new slices, and copy old ones that stay; what is summed over is divided."""
    of: Index = copies["of"]
    rows, origins = rows_of(index), rows_of(of)
    if copies["divided"] and fill != 0:
        fail(f"{where}.divided", f"false, as other new slices there hold {fill}", True)
    if is_grouped(index) != is_grouped(of) or [len(r) for r in rows] != [len(r) for r in origins]:
        fail(f"{where}.of", "an entry for each slice of its index", of)
    stay = {i for row in rows for i in row if i >= 0}
    for row, copied in zip(rows, origins, strict=True):
        for i, p in zip(row, copied, strict=True):
            if p >= 0 and (i >= 0 or p not in stay):
                fail(f"{where}.of", "copies at new slices, of old ones that stay", p)


def sources_in(of: Index, index: Index, units: np.ndarray, order: Sequence[int]) -> Iterator[tuple[int, set[int]]]:
    """By new unit what it may be a copy of, as far as one list tells; nothing if it is none."""
    k = 0
    for row, origins in zip(rows_of(index), rows_of(of), strict=True):
        for i, p in zip(row, origins, strict=True):
            if i < 0:
                yield order[k], set(units[:, p].tolist()) if p >= 0 else set()
            k += 1
