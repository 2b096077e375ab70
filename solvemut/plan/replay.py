"""Replay: what a trace becomes when some units go and others come, and which slice of each parameter goes where.

Once shapes are counted (`shapes`), the rules run once more, over the changed trace and the labels that are left, and
tell in which order each parameter meets them: index maps come out right by construction also where a split or shuffle
changes the order, and new units stand in the right columns of every concat. A map that would misalign two tensors
raises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..coupling import Coupling
from ..errors import SolvemutError
from ..flow import Flow, Labels, compressed
from ..rules import apply_rule
from ..trace import Node, Ref, Size, Trace
from .attributes import check_guards, solve_attributes
from .origins import origins_of
from .shapes import node_after, param_shape, times_of


@dataclass(frozen=True)
class Replayed:
    """The trace after a change and, per parameter value and dim, the old positions in their new order; -1: a new slice.

    The input dim of a grouped convolution has one list per group that stays. `units` has the classes that stand at
    those positions; new units have numbers from `coupling.n_units` on. `origins` says at each new slice that is a copy
    the old position that it copies, else -1.
    """

    trace: Trace
    index: Mapping[tuple[str, int], np.ndarray]
    units: Mapping[tuple[str, int], np.ndarray]
    origins: Mapping[tuple[str, int], np.ndarray]
    attributes: Mapping[Size, int]


def replayed(
    coupling: Coupling,
    times: np.ndarray,
    before: Collection[int] = (),
    sources: Mapping[int, Sequence[int]] | None = None,
) -> Replayed:
    """The change that leaves each unit class as often as `times` says (bools, or ints: see `shapes`).

    New units come after the class, or `before` it; those after a class in `sources` are copies of the classes there.
    """
    trace, times = coupling.trace, np.asarray(times).astype(np.int64)
    shapes = {v: param_shape(coupling, v, times) for v in trace.params}
    nodes = tuple(node_after(coupling, n, times) for n in trace.nodes)
    new = trace.with_shapes(shapes, nodes)
    again = _Replay(new, coupling, times, before)
    again.run(apply_rule)
    _check_shapes(new, again)
    origins = origins_of(again, sources or {})
    attributes = solve_attributes(new)
    new = replace(new, attributes={**new.attributes, **attributes})
    check_guards(new)
    changed = {a: v for a, v in attributes.items() if trace.attributes[a] != v}
    index, units = again.maps()
    return Replayed(new, index, units, {k: again.positions(k, origins[k]) for k in index}, changed)


class _Replay(Flow):
    """The flow of the labels that are left through the changed trace.

    The first node to read a parameter settles its order: a layer takes its input units in the order they come in.
    """

    def __init__(self, trace: Trace, coupling: Coupling, times: np.ndarray, before: Collection[int]) -> None:
        super().__init__(trace)
        self.coupling, self.times, self.before = coupling, times, before
        self.left: dict[tuple[str, Any], np.ndarray] = {}
        self.met: list[tuple[np.ndarray, np.ndarray, Node]] = []  # labels that stand for one thing, where some are new
        more = np.maximum(times - 1, 0)
        self.unit_of = coupling.unit_of  # and then those of the labels of new slices, as they come
        self.new_class = coupling.n_units + np.cumsum(more) - more  # the first new class after each class
        self.frozen = np.concatenate([coupling.frozen, np.zeros(int(more.sum()), dtype=bool)])

    def source(self, key: tuple[str, Any], shape: tuple[int, ...], per_row: bool = False) -> np.ndarray:
        if key not in self.left:
            old = self.coupling.sources[key].labels
            t = times_of(self.coupling, old, self.times)
            labels = np.array(compressed(old, t > 0)) if t.max(initial=0) <= 1 else self._grown(old)
            self.left[key] = labels
            self._asked[id(labels)] = key
        return self.left[key]

    def _grown(self, old: np.ndarray) -> np.ndarray:
        """The labels of a source with those of new slices."""
        if old.ndim == 1:
            return self._line(old)
        rows: list[np.ndarray] = []
        for row in old:
            units = self.coupling.unit_of[row]
            if (units == units[0]).all():  # a row that is one unit comes as a row
                rows += np.split(self._line(row), int(self.times[units[0]]))
            elif len(line := self._line(row)):
                rows.append(line)
        if len({len(r) for r in rows}) > 1:
            raise SolvemutError("the groups of a convolution would read unlike numbers of channels")
        return np.stack(rows)

    def _line(self, old: np.ndarray) -> np.ndarray:
        """Behind each run of positions of one unit come as long runs of the new units after it."""
        units = self.coupling.unit_of[old]
        starts = np.flatnonzero(np.diff(units, prepend=-1))
        found = []
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(units)], strict=True):
            unit = int(units[start])
            own = [old[start:stop]] * min(1, int(self.times[unit]))
            found += [] if unit in self.before else own
            for k in range(int(self.times[unit]) - 1):
                found.append(np.arange(len(self.unit_of), len(self.unit_of) + stop - start))
                self.unit_of = np.append(self.unit_of, np.full(stop - start, self.new_class[unit] + k))
            found += own if unit in self.before else []
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def labels(self, arg: Ref, only: Sequence[int] | None = None) -> Labels:
        param = self.trace.params.get(arg.name)
        if param is None or param.kind == "constant":
            return super().labels(arg, only)
        dims = range(len(param.shape)) if only is None else [d for d in only if d < len(param.shape)]
        known = [d for d in dims if (arg.name, d) in self.coupling.sources]
        return Labels.of(param.shape, {d: self.source((arg.name, d), ()) for d in known})

    def merge(self, a: np.ndarray | None, b: np.ndarray | None, shape: Sequence[int]) -> None:
        if a is None or b is None or a is b:
            return
        if a.shape != b.shape:
            raise SolvemutError(
                f"misaligned sizes {a.shape} and {b.shape} at {self.node.at()}; please report this model"
            )
        ua, ub = self.unit_of[a], self.unit_of[b]
        if ua.max(initial=0) >= self.coupling.n_units:
            self.met.append((a, b, self.node))
        if self._dealt_otherwise(ua, ub):
            raise SolvemutError(
                f"the units left fall to other groups at {self.node.at()}; keep one of the layers before it, or ask "
                "for sizes that its groups divide"
            )
        if a.size == 1:  # nothing to order: a single unit may meet what was broadcast to it before
            return
        # a frozen unit counts as itself wherever it stands at the same place of both
        if (ua == ub).all() or self._both_fixed(ua, ub) or self._last_of_its_kind(ua, ub):
            return
        if self.asked_here(b) is not None:
            b[...] = _in_order(a, b, self.unit_of)
        elif self.asked_here(a) is not None:
            a[...] = _in_order(b, a, self.unit_of)
        else:
            raise SolvemutError(
                f"the units left meet in different order at {self.node.at()}; keep one of the layers before it"
            )

    @staticmethod
    def _dealt_otherwise(ua: np.ndarray, ub: np.ndarray) -> bool:
        """Rows that hold the same units together, but not one by one: a shuffle deals what is left anew."""
        return (
            ua.ndim == 2
            and bool((np.sort(ua, axis=None) == np.sort(ub, axis=None)).all())
            and bool((np.sort(ua) != np.sort(ub)).any())
        )

    def _last_of_its_kind(self, ua: np.ndarray, ub: np.ndarray) -> bool:
        """The last head that is left looks like a dim of its own: one unit, repeated, that meets what stays anyway."""
        for one, other in ((ua, ub), (ub, ua)):
            if one.size > 1 and (one == one.reshape(-1)[0]).all() and self.frozen[other].all():
                return True
        return False

    def _both_fixed(self, ua: np.ndarray, ub: np.ndarray) -> bool:
        differ = ua != ub
        return bool((self.frozen[ua[differ]] & self.frozen[ub[differ]]).all())

    def created(self, path: Any, n: int) -> np.ndarray | None:
        key = (self.node.name, path)
        return self.source(key, (n,)) if key in self.coupling.sources else None

    def is_per_row(self, arg: Ref) -> bool:
        extent = self.coupling.sources.get((arg.name, 1))
        return extent is not None and extent.per_row

    def maps(self) -> tuple[dict[tuple[str, int], np.ndarray], dict[tuple[str, int], np.ndarray]]:
        """Of every tracked parameter dim the old positions and the units, in new order; [rows, n] for groups."""
        index, units = {}, {}
        for key in self.coupling.sources:
            if key[0] in self.trace.params:
                labels = self.source(key, ())
                units[key], index[key] = self.unit_of[labels], self.positions(key, labels)
        return index, units

    def positions(self, key: tuple[str, Any], labels: np.ndarray) -> np.ndarray:
        """Where labels of a source stood before; -1 for new ones."""
        old = (labels >= 0) & (labels < len(self.coupling.unit_of))
        places = self.coupling.positions(key).reshape(-1)
        first = int(self.coupling.sources[key].labels.reshape(-1)[0])
        return np.where(old, places[np.where(old, labels - first, 0)], -1)


def _in_order(wanted: np.ndarray, labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """`labels`, reordered so that their units follow those of `wanted`; within a unit the old order stays."""
    if labels.ndim == 2:
        return np.stack([_in_order(w, x, units) for w, x in zip(wanted, labels, strict=True)])
    a, b = units[wanted], units[labels]
    by_unit = np.lexsort((np.arange(len(b)), b))
    places = np.lexsort((np.arange(len(a)), a))
    if (a[places] != b[by_unit]).any():
        raise SolvemutError("two tensors that must align keep different units; please report this model")
    out = np.empty_like(labels)
    out[places] = labels[by_unit]
    return out


def _check_shapes(trace: Trace, replay: _Replay) -> None:
    for node in trace.nodes:
        out = replay.values[node.name]
        found = tuple(x.shape for x in out) if isinstance(out, list) else (out.shape,)
        if found != node.shapes:
            raise SolvemutError(f"{node.at()}: counted {node.shapes}, the rules give {found}; please report this model")
