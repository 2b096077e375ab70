"""Composition: one plan that does what two do one after the other.

Selections compose, edits of one thing become one, and what is new in either is new. A unit of the composed plan is a
pair, of a unit of the first plan and what the second plan sees in its place: so a unit stays wherever it stands, or
nowhere, also where the second plan tells units apart that are one to the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..edits import Edit, Index, is_grouped, rows_of
from ..errors import PlanMismatchError
from .copies import copies_then
from .file import expanded, runs
from .record import PlanCost, PlanRecord

P = TypeVar("P", bound=PlanRecord)
_PAIR = 2**31
_STAYS = _PAIR - 1  # what the second plan sees of a slice that it does not speak of
_FRESH = 2**62  # from here on, new units that nothing else tells apart
_Key = tuple[str, int]


def then(first: P, second: P) -> P:
    """Both plans as one; `second` was made for what `first` leaves. Raises PlanMismatchError if it was not.

    Value, bound and gap are those of the second plan, or of the first where the second was not solved for.

    >>> import torch, solvemut as sm
    >>> from torch import nn
    >>> mut = sm.Mutator(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.ones(1, 4))
    >>> plan = then(mut.resize({"0": -3}), mut.resize({"0": +1}))
    >>> plan.sizes["0"], plan.indices["0.bias"][0].count(-1), plan.costs["params"]
    ((8, 6), 1, PlanCost(before=58, after=44, budget=None))
    """
    _check_follows(first, second)
    selection = first.selection.then(second.selection)
    found = replace(
        second,
        solved=None,
        edits=_edits(first.edits, second.edits),
        selection=selection,
        shapes={**first.shapes, **{k: (first.shapes.get(k, s)[0], s[1]) for k, s in second.shapes.items()}},
        sizes={**first.sizes, **{k: (first.sizes.get(k, s)[0], s[1]) for k, s in second.sizes.items()}},
        costs=_costs(first.costs, second.costs),
        fills=_fills(first, second, selection.indices),
        copies=copies_then(first, second),
        notes=tuple(dict.fromkeys((*first.notes, *second.notes))),
        **_certificate(first, second),
    )
    if changes_nothing(found):
        found = replace(found, alters=())
    else:
        found = replace(found, alters=tuple(dict.fromkeys((*first.alters, *second.alters))))
    return replace(found, units=_units(first, second, found))


def changes_nothing(plan: PlanRecord) -> bool:
    """Whether every slice stays where it is, and nothing is edited."""
    same = {name: [list(range(n)) for n in before] for name, (before, _) in plan.shapes.items()}
    maps = ((same[name][d], row) for name, dims in plan.indices.items() for d, i in dims.items() for row in rows_of(i))
    return not plan.edits and all(a == b for a, b in plan.shapes.values()) and all(a == b for a, b in maps)


def _check_follows(first: PlanRecord, second: PlanRecord) -> None:
    if first.root != second.root:
        raise PlanMismatchError(f"a plan of {second.root} cannot follow one of {first.root}")
    for edit in (*first.edits, *second.edits):
        if edit.sets is None:
            raise PlanMismatchError(
                f"plans with edits of kind {edit.kind!r} ({edit.describe()}) cannot be composed yet; apply it by itself"
            )
    for name, (before, _) in second.shapes.items():
        left = first.shapes.get(name, (before, before))[1]
        if tuple(left) != tuple(before):
            raise PlanMismatchError(
                f"the second plan expects {name} to have shape {tuple(before)}, the first leaves {tuple(left)}; "
                "compose plans in the order in which they were made"
            )


def _edits(first: Sequence[Edit], second: Sequence[Edit]) -> tuple[Edit, ...]:
    """Those of both; what is set twice is one edit, and none where it comes back to what it was."""
    found = list(first)
    for edit in second:
        for k, earlier in enumerate(found):
            if (joined := earlier.then(edit)) is not None:
                found[k] = joined
                break
        else:
            found.append(edit)
    return tuple(e for e in found if e != e.back())


def _costs(first: Mapping[str, PlanCost], second: Mapping[str, PlanCost]) -> dict[str, PlanCost]:
    """Those that both tell, with the tightest budget that still holds."""
    found = {}
    for name, after in second.items():
        if (before := first.get(name)) is not None:
            limits = [c.budget for c in (before, after) if c.budget is not None and after.after <= c.budget]
            found[name] = PlanCost(before.before, after.after, min(limits, default=None))
    return found


def _certificate(first: PlanRecord, second: PlanRecord) -> dict[str, Any]:
    last = second if second.values or not first.values else first
    worst = max((first.status, second.status), key=("optimal", "feasible", "interrupted").index)
    return {
        "status": worst,
        "objective": last.objective,
        "bound": last.bound,
        "gap": max(first.gap, second.gap),
        "seconds": first.seconds + second.seconds,
        "solver": ", ".join(dict.fromkeys((first.solver, second.solver))),
        "values": last.values,
    }


# -- what new slices hold ----------------------------------------------------------------------------------------------


def _fills(first: PlanRecord, second: PlanRecord, indices: Mapping[str, Mapping[int, Index]]) -> dict[str, Any]:
    found: dict[str, dict[int, Any]] = {}
    for name, dims in indices.items():
        for d, index in dims.items():
            if not any(-1 in row for row in rows_of(index)):
                continue
            held = [plan.fills.get(name, {}).get(d) for plan in _new_in(first, second, name, d)]
            kinds = [fill for fill in held if fill is not None]
            if any(fill != kinds[0] for fill in kinds):
                raise PlanMismatchError(
                    f"new slices of {name} in dim {d} hold {kinds[0]} by the first plan and {kinds[1]} by the second, "
                    "which one plan cannot say; apply them one after the other"
                )
            found.setdefault(name, {})[d] = kinds[0]
    return found


def _new_in(first: PlanRecord, second: PlanRecord, name: str, d: int) -> list[PlanRecord]:
    """The plans by which a dim has slices in the end that are new; of groups it may be either."""
    a, b = (plan.indices.get(name, {}).get(d) for plan in (first, second))
    if a is None or b is None:
        return [second if a is None else first]
    if is_grouped(a) or is_grouped(b):
        return [first, second]
    taken = [a[i] for i in rows_of(b)[0] if i >= 0]
    return [first] * (-1 in taken) + [second] * (-1 in rows_of(b)[0])


# -- units -------------------------------------------------------------------------------------------------------------


def _units(first: PlanRecord, second: PlanRecord, found: PlanRecord) -> dict[str, Any]:
    """Runs of units for every index list of the composed plan `found`."""
    keys = [(name, d) for name, dims in found.indices.items() for d in dims]
    coded = {key: _codes(first, second, found, key) for key in keys}
    arrays = [x.reshape(-1) for pair in coded.values() for x in pair]
    known = np.unique(np.concatenate(arrays)) if arrays else np.empty(0, dtype=np.int64)
    out: dict[str, dict[int, Any]] = {}
    for (name, d), (old, new) in coded.items():
        out.setdefault(name, {})[d] = [runs(np.searchsorted(known, old))]
        if any(np.any(np.diff(row) < 0) or -1 in row for row in rows_of(found.indices[name][d])):
            out[name][d].append(runs(np.searchsorted(known, new)))
    return out


def _codes(first: PlanRecord, second: PlanRecord, found: PlanRecord, key: _Key) -> tuple[np.ndarray, np.ndarray]:
    """A number per unit at the old positions, by row, and at the new ones."""
    a, b = (_Rows.of(plan, key) for plan in (first, second))
    old = _old_codes(a, b)
    rows = rows_of(found.indices[key[0]][key[1]])
    sources = _sources(found, key, len(old), len(rows))
    new = np.full((len(rows), len(rows[0]) if rows else 0), -1, dtype=np.int64)
    for h, (row, g) in enumerate(zip(rows, sources, strict=True)):
        at = np.asarray(row, dtype=np.int64)
        new[h] = np.where(at >= 0, old[g][np.maximum(at, 0)], -1)
    if len(old) == len(rows) == 1:
        new[0] = np.where(new[0] < 0, _new_codes(a, b), new[0])
    fresh = new < 0
    new[fresh] = _FRESH + np.arange(int(fresh.sum()))
    return old, new


@dataclass(frozen=True)
class _Rows:
    """One index list of a plan, with its units, by row: [rows before, positions], and [rows after, positions]."""

    index: list[list[int]]
    units: np.ndarray
    order: np.ndarray
    sources: list[int]  # of each row after the row before that it comes from; -1: it is new

    @classmethod
    def of(cls, plan: PlanRecord, key: _Key) -> _Rows | None:
        name, d = key
        if d not in plan.indices.get(name, {}):
            return None
        index, coded = rows_of(plan.indices[name][d]), plan.units[name][d]
        units = expanded(coded[0]).reshape(-1, plan.shapes[name][0][d])
        sources = _sources(plan, key, len(units), len(index))
        if len(coded) == 2:
            order = expanded(coded[1]).reshape(len(index), -1)
        else:
            order = np.stack([units[g][np.asarray(row, dtype=int)] for g, row in zip(sources, index, strict=True)])
        return cls(index, units, order, sources)


def _sources(plan: PlanRecord, key: _Key, before: int, after: int) -> list[int]:
    """Which row each row comes from; dim 0 of a grouped weight holds the outputs of the groups one after another."""
    name, _ = key
    outputs: Any = plan.indices[name].get(0)
    if before == 1:
        return [0] * after
    if outputs is None:
        return list(range(after))
    each, per = plan.shapes[name][0][0] // before, len(outputs) // after
    return [max(p // each for p in outputs[h * per : (h + 1) * per]) for h in range(after)]


def _old_codes(a: _Rows | None, b: _Rows | None) -> np.ndarray:
    """At the old positions: what the first plan has there, and what the second has in its place, 0 if it went."""
    if a is None:
        assert b is not None
        return b.units + 1
    found = (a.units + 1) * _PAIR
    for h, (g, row) in enumerate(zip(a.sources, a.index, strict=True)):
        at = np.asarray(row, dtype=np.int64)
        if g >= 0:
            seen = np.full(len(at), _STAYS) if b is None else b.units[h if len(b.units) > 1 else 0] + 1
            found[g, at[at >= 0]] += seen[at >= 0]
    return found


def _new_codes(a: _Rows | None, b: _Rows | None) -> np.ndarray:
    """At the new positions of a dim that has no rows, as far as they are new."""
    if b is None:
        assert a is not None
        return (a.order[0] + 1) * _PAIR + _STAYS
    if a is None:
        return b.order[0] + 1
    at = np.asarray(b.index[0], dtype=np.int64)
    from_first = (a.order[0][np.maximum(at, 0)] + 1) * _PAIR + b.order[0] + 1
    return np.where(at < 0, b.order[0] + 1, from_first)
