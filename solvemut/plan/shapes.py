"""Shapes and sizes in arguments after a change: they follow from counting the labels that are left.

What a change selects is `times`, an int per unit class: 0, it goes; 1, it stays; more, it stays and new units come
after it, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..coupling import Coupling
from ..errors import SolvemutError
from ..flow import Labels, rectangle, stretched
from ..rules import OPS
from ..trace import Node, Ref


def times_of(coupling: Coupling, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """How often each of these labels is there afterwards."""
    return np.asarray(times[coupling.unit_of[labels]])


def param_shape(coupling: Coupling, value: str, times: np.ndarray) -> tuple[int, ...]:
    """The shape of a parameter after a change."""
    shape = list(coupling.trace.params[value].shape)
    for d in range(len(shape)):
        if (e := coupling.sources.get((value, d))) is not None:
            shape[d] = coupling.count(e, times)
    return tuple(shape)


def shape_after(coupling: Coupling, x: Labels, times: np.ndarray, where: str) -> tuple[int, ...]:
    """The shape of a value after a change."""
    shape = list(x.shape)
    for f in x.factors:
        t = times_of(coupling, f.labels, times)
        if t.max(initial=0) > 1:
            found = stretched(t)
        else:
            kept = rectangle(t > 0, _ragged(coupling, f.labels))
            found = None if kept is None else kept[0]
        if found is None:
            raise SolvemutError(f"the units left make no rectangle at {where}; keep one of the layers before it")
        for d, n in zip(f.dims, found, strict=True):
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
    times: np.ndarray
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
        return int(times_of(self.coupling, labels, self.times).sum())

    def rows(self, labels: np.ndarray | None, rows: int) -> int:
        own = [r.removable for r in self.coupling.rows if r.node.name == self.node.name]
        if labels is None or not all(own):
            return rows
        t = times_of(self.coupling, labels, self.times).reshape(rows, -1)
        alike = (t == t[:, :1]).all(axis=1)  # such a row goes, stays and comes as one
        return int(np.where(alike, t[:, 0], t.any(axis=1)).sum())

    def shape(self, x: Labels) -> tuple[int, ...]:
        return shape_after(self.coupling, x, self.times, self.node.at())


def node_after(coupling: Coupling, node: Node, times: np.ndarray) -> Node:
    """A node with the shapes and the int arguments that it has after a change."""
    out = coupling.values[node.name]
    labels: Sequence[Labels] = out if isinstance(out, list) else [out]
    shapes = tuple(shape_after(coupling, x, times, node.at()) for x in labels)
    record = OPS.get(node.op)
    if record is None or record.follow is None:
        return replace(node, shapes=shapes)
    args = dict(node.args)
    record.follow(_After(coupling, times, node, shapes), node, args)
    return replace(node, shapes=shapes, args=args)
