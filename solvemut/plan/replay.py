"""Replay: what a trace becomes when only some units stay, and which slice of each parameter goes where.

Shapes and the sizes in arguments follow from counting kept labels. Then the rules run once more, over the changed trace
and the labels that are left, and tell in which order each parameter meets them: index maps come out right by
construction also where a split or shuffle changes the order. A map that would misalign two tensors raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..coupling import Coupling
from ..errors import SolvemutError
from ..flow import Flow, Labels, compressed, rectangle
from ..rules import OPS, apply_rule
from ..trace import Node, Ref, Size, Trace
from .attributes import check_guards, solve_attributes


@dataclass(frozen=True)
class Replayed:
    """The trace after a change and, per parameter value and dim, the old positions that stay, in their new order.

    The input dim of a grouped convolution has one list per group that stays: `rows` tells which groups those are.
    """

    trace: Trace
    index: Mapping[tuple[str, int], np.ndarray]
    attributes: Mapping[Size, int]


def replayed(coupling: Coupling, kept: np.ndarray) -> Replayed:
    """Keep the units in `kept` (bool per class)."""
    trace = coupling.trace
    shapes = {v: _param_shape(coupling, v, kept) for v in trace.params}
    nodes = tuple(_node_after(coupling, n, kept) for n in trace.nodes)
    new = trace.with_shapes(shapes, nodes)
    again = _Replay(new, coupling, kept)
    again.run(apply_rule)
    _check_shapes(new, again)
    attributes = solve_attributes(new)
    new = replace(new, attributes={**new.attributes, **attributes})
    check_guards(new)
    changed = {a: v for a, v in attributes.items() if trace.attributes[a] != v}
    return Replayed(new, again.index(), changed)


def _mask(coupling: Coupling, labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return kept[coupling.unit_of[labels]]


def _param_shape(coupling: Coupling, value: str, kept: np.ndarray) -> tuple[int, ...]:
    shape = list(coupling.trace.params[value].shape)
    for d in range(len(shape)):
        if (e := coupling.sources.get((value, d))) is not None:
            shape[d] = coupling.count(e, kept)
    return tuple(shape)


def new_shape(coupling: Coupling, x: Labels, kept: np.ndarray, where: str) -> tuple[int, ...]:
    """The shape of a value when only `kept` stays."""
    shape = list(x.shape)
    for f in x.factors:
        found = rectangle(_mask(coupling, f.labels, kept), _ragged(coupling, f.labels))
        if found is None:
            raise SolvemutError(f"the units kept leave no rectangle at {where}; keep one of the layers before it")
        for d, n in zip(f.dims, found[0], strict=True):
            shape[d] = n
    return tuple(shape)


def _ragged(coupling: Coupling, labels: np.ndarray) -> int | None:
    """The axis along which the positions of one row run, where the array is made of rows of equal size."""
    if labels.ndim == 1:
        return None
    units = coupling.units(labels)
    for row_of in coupling.row_of:
        ids = row_of[units]
        if (ids >= 0).all():
            for axis in reversed(range(ids.ndim)):
                if (ids == ids.take([0], axis=axis)).all() and not (units == units.take([0], axis=axis)).all():
                    return axis
    return None


@dataclass(frozen=True)
class _After:
    """See `rules.After`."""

    coupling: Coupling
    kept: np.ndarray
    node: Node
    shapes: tuple[tuple[int, ...], ...]

    def labels(self, arg: Ref) -> Labels:
        found = self.coupling.values.get(arg.name)
        if isinstance(found, Labels):
            return found
        p = self.coupling.trace.params[arg.name]
        dims = {d: e.labels for d in range(len(p.shape)) if (e := self.coupling.sources.get((arg.name, d))) is not None}
        return Labels.of(p.shape, {d: a for d, a in dims.items() if a.ndim == 1})

    def count(self, labels: np.ndarray) -> int:
        return int(_mask(self.coupling, labels, self.kept).sum())

    def rows(self, labels: np.ndarray | None, rows: int) -> int:
        if labels is None:
            return rows
        return int(_mask(self.coupling, labels.reshape(rows, -1), self.kept).any(axis=1).sum())

    def shape(self, x: Labels) -> tuple[int, ...]:
        return new_shape(self.coupling, x, self.kept, self.node.at())


def _node_after(coupling: Coupling, node: Node, kept: np.ndarray) -> Node:
    out = coupling.values[node.name]
    labels: Sequence[Labels] = out if isinstance(out, list) else [out]
    shapes = tuple(new_shape(coupling, x, kept, node.at()) for x in labels)
    record = OPS.get(node.op)
    if record is None or record.follow is None:
        return replace(node, shapes=shapes)
    args = dict(node.args)
    record.follow(_After(coupling, kept, node, shapes), node, args)
    return replace(node, shapes=shapes, args=args)


# -- the order of what is left -----------------------------------------------------------------------------------------


class _Replay(Flow):
    """The flow of the old labels that are left through the changed trace.

    The first node to read a parameter settles its order: a layer takes its input units in the order they come in.
    """

    def __init__(self, trace: Trace, coupling: Coupling, kept: np.ndarray) -> None:
        super().__init__(trace)
        self.coupling, self.kept = coupling, kept
        self.left: dict[tuple[str, Any], np.ndarray] = {}

    def source(self, key: tuple[str, Any], shape: tuple[int, ...], per_row: bool = False) -> np.ndarray:
        if key not in self.left:
            old = self.coupling.sources[key].labels
            labels = np.array(compressed(old, _mask(self.coupling, old, self.kept)))
            self.left[key] = labels
            self._asked[id(labels)] = key
        return self.left[key]

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
        units = self.coupling.unit_of
        if a.shape != b.shape:
            raise SolvemutError(
                f"misaligned sizes {a.shape} and {b.shape} at {self.node.at()}; please report this model"
            )
        ua, ub = units[a], units[b]
        if self._dealt_otherwise(ua, ub):
            raise SolvemutError(
                f"the units kept fall to other groups at {self.node.at()}; keep one of the layers before it, or ask "
                "for sizes that its groups divide"
            )
        # a frozen unit counts as itself wherever it stands at the same place of both
        if (ua == ub).all() or self._both_fixed(ua, ub) or self._last_of_its_kind(ua, ub):
            return
        if self.asked_here(b) is not None:
            b[...] = _in_order(a, b, units)
        elif self.asked_here(a) is not None:
            a[...] = _in_order(b, a, units)
        else:
            raise SolvemutError(
                f"the units kept meet in different order at {self.node.at()}; keep one of the layers before it"
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
        frozen = self.coupling.frozen
        for one, other in ((ua, ub), (ub, ua)):
            if one.size > 1 and (one == one.reshape(-1)[0]).all() and frozen[other].all():
                return True
        return False

    def _both_fixed(self, ua: np.ndarray, ub: np.ndarray) -> bool:
        differ = ua != ub
        frozen = self.coupling.frozen
        return bool((frozen[ua[differ]] & frozen[ub[differ]]).all())

    def created(self, path: Any, n: int) -> np.ndarray | None:
        key = (self.node.name, path)
        return self.source(key, (n,)) if key in self.coupling.sources else None

    def is_per_row(self, arg: Ref) -> bool:
        extent = self.coupling.sources.get((arg.name, 1))
        return extent is not None and extent.per_row

    def index(self) -> dict[tuple[str, int], np.ndarray]:
        """Old positions of every tracked parameter dim, in new order; [rows, n] for the inner dim of groups.

        -1 stands for a slot that did not exist.
        """
        out = {}
        for key, old in self.coupling.sources.items():
            if key[0] not in self.trace.params:
                continue
            index = self.source(key, ()) - int(old.labels.reshape(-1)[0])
            out[key] = self.coupling.positions(key).reshape(-1)[index]
        return out


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
