"""Sites: which sizes of what is timed can change, and what it is called with at other sizes; no code per operation.

A site is a node, or several that run as one when they are compiled. Two sites that do the same at the same sizes have
one key: the text of their ops, arguments and shapes, in which what can change is a letter. A measured time is known by
that key, whatever model it was found in. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import SolvemutError
from ..flow import FIXED, Extent, Labels
from ..graph import Graph
from ..plan import node_after, param_shape, shape_after
from ..trace import Node, Ref

FREE = ("getitem",)  # takes an element of a list: nothing runs
Form = tuple[Fraction, ...]  # a constant, and a factor for each size
At = tuple[tuple[Node, ...], dict[str, tuple[int, ...]]]  # nodes at some sizes, and the shapes of what they read
SILENT = ("width", "in_width", "mask", "cudnn_enabled", "cudnn_enable", "momentum", "eps")  # no matter of time


@dataclass(frozen=True, eq=False)
class Axis:
    """Units of a node whose number is one size: unit classes in order, in rows that keep equally many."""

    units: np.ndarray  # [rows, units of a row]
    label_of: np.ndarray

    @property
    def now(self) -> int:
        return self.units.size

    @property
    def step(self) -> int:
        """The least by which the size changes."""
        return len(self.units)

    @cached_property
    def extent(self) -> Extent:
        """What counts it: one label of each unit."""
        return Extent(self.label_of[self.units.reshape(-1)])

    def drop(self, times: np.ndarray, size: int) -> None:
        """Leave that many units: the first of every row."""
        times[self.units[:, max(1, size // self.step) :]] = 0


@dataclass(frozen=True, eq=False)
class Together:
    """Several axes as one size, their sum: each of them shrinks by the same share."""

    axes: tuple[Axis, ...]

    @property
    def now(self) -> int:
        return sum(a.now for a in self.axes)

    @property
    def step(self) -> int:
        return max(a.step for a in self.axes)

    @cached_property
    def extent(self) -> Extent:
        return Extent(np.concatenate([a.extent.labels for a in self.axes]))

    def drop(self, times: np.ndarray, size: int) -> None:
        for a in self.axes:
            a.drop(times, round(Fraction(size * a.now, self.now)))


@dataclass(frozen=True, eq=False)
class Site:
    """Nodes that are timed as one, with the sizes that can change in them; `note` says what was simplified.

    `works` tells whether it multiplies and accumulates, rather than moves data. Of a compiled model, `made` are the
    values that others read of it, and `last` those values whose channels lie last in memory.
    """

    graph: Graph
    nodes: tuple[Node, ...]
    axes: tuple[Axis | Together, ...]
    key: str
    note: str = ""
    works: bool = False
    made: tuple[str, ...] = ()
    last: frozenset[str] = frozenset()

    @property
    def node(self) -> Node:
        """The first of its nodes, by which messages name it."""
        return self.nodes[0]

    def at(self, sizes: Sequence[int]) -> At:
        """The nodes, and the shapes of what they read, where each axis has that size, be it more than it has now."""
        if any(isinstance(a, Together) for a in self.axes):
            return _at(self.graph, self.nodes, times_at(self.graph, self.axes, sizes))
        ints = iter([int(c + sum(s * n for s, n in zip(f, sizes, strict=True))) for c, *f in self._ints])
        args = [{k: _rewritten(a, ints) for k, a in node.args.items()} for node in self.nodes]
        reads = {r: tuple(next(ints) for _ in _shape(self.graph, r)) for r in reads_of(self.nodes)}
        shapes = [tuple(tuple(next(ints) for _ in s) for s in node.shapes) for node in self.nodes]
        found = zip(self.nodes, args, shapes, strict=True)
        return tuple(replace(node, args=a, shapes=s) for node, a, s in found), reads

    @cached_property
    def _ints(self) -> list[Form]:
        """The ints of the arguments, then the shapes of what it reads and makes."""

        def ints(times: np.ndarray) -> list[int]:
            nodes, reads = _at(self.graph, self.nodes, times)
            shapes = [*reads.values(), *(s for node in nodes for s in node.shapes)]
            return [*(i for node in nodes for i in _walk(node.args, {})), *(n for s in shapes for n in s)]

        return self.forms(ints)

    def forms(self, of: Callable[[np.ndarray], Sequence[int]]) -> list[Form]:
        """Numbers that depend on the units that stay (`times`, by unit class), as linear forms of this site's sizes."""
        return _forms(self.graph, self.axes, of)

    def tensors(self) -> list[list[Form]]:
        """The dims of what it reads and makes."""

        shapes = [_shape(self.graph, r) for r in reads_of(self.nodes)]
        shapes += [s for node in self.nodes for s in node.shapes]
        flat = iter(self._ints[-sum(map(len, shapes)) :] if any(shapes) else [])
        return [[next(flat) for _ in s] for s in shapes]

    @property
    def now(self) -> tuple[int, ...]:
        return tuple(a.now for a in self.axes)


def sites(graph: Graph) -> list[Site]:
    """The nodes of the first call that run something, in order."""
    found: list[Site] | None = graph.__dict__.get("_latency_sites")
    if found is None:
        working = working_nodes(graph)
        nodes = [n for n in graph.trace.nodes if not n.tag and n.op not in FREE]
        found = [replace(site_of(graph, (n,)), works=n.name in working) for n in nodes]
        object.__setattr__(graph, "_latency_sites", found)
    return found


def working_nodes(graph: Graph) -> set[str]:
    """The nodes that multiply and accumulate."""
    return {w.node.name for w in graph.coupling.facts.works}


def reads_of(nodes: Sequence[Node]) -> list[str]:
    """The values that nodes read of others, in order, each once."""
    own = {n.name for n in nodes}
    return [r for r in dict.fromkeys(r for n in nodes for r in n.refs()) if r not in own]


def site_of(graph: Graph, nodes: tuple[Node, ...], names: Mapping[str, str] | None = None) -> Site:
    """The site of these nodes; `names` are those that values have in its key, none unless given."""
    axes = axes_of(graph, nodes)
    tries: list[tuple[tuple[Axis | Together, ...], str]] = [(tuple(axes), "")] if len(axes) <= 2 else []
    if len(axes) > 1:
        tries.append(((Together(tuple(axes)),), f"{len(axes)} sizes count as their sum"))
    tries.append(((), "its sizes count as they are now"))
    for found, note in tries:
        try:
            return Site(graph, nodes, found, _key(graph, nodes, found, names or {}), note)
        except SolvemutError:  # units that are left so make no rectangle
            continue
    raise AssertionError("a node has a key at its own sizes")


def axes_of(graph: Graph, nodes: Sequence[Node]) -> list[Axis]:
    """The independent sets of units among what nodes read and make."""
    coupling = graph.coupling
    sets = []
    for labels in _labels(graph, nodes):
        units = np.unique(coupling.unit_of[labels])
        units = units[(units != FIXED) & ~coupling.frozen[units]]
        if len(units):
            sets.append(units)
    if not sets:
        return []
    every = np.unique(np.concatenate(sets))
    member = np.stack([np.isin(every, s) for s in sets], axis=1)
    _, of = np.unique(member, axis=0, return_inverse=True)
    of = of.reshape(-1)
    first = [int(np.argmax(member[of == k][0])) for k in range(int(of.max()) + 1)]
    found = [(first[k], every[of == k]) for k in range(len(first))]
    found.sort(key=lambda f: (f[0], int(f[1][0])))
    return [Axis(_in_rows(graph, units), coupling.label_of) for _, units in found]


def _labels(graph: Graph, nodes: Sequence[Node]) -> Iterator[np.ndarray]:
    coupling = graph.coupling
    for ref in reads_of(nodes):
        if ref in coupling.trace.params:
            for d in range(len(coupling.trace.params[ref].shape)):
                if (e := coupling.sources.get((ref, d))) is not None:
                    yield e.labels.reshape(-1)
        yield from coupling.labels_in(ref)
    for node in nodes:
        yield from coupling.labels_in(node.name)


def _in_rows(graph: Graph, units: np.ndarray) -> np.ndarray:
    """Units in the finest rows that some node cuts them into, if they fill these; else in one row."""
    best = units[None]
    for row_of in graph.coupling.row_of:
        ids = row_of[units]
        if (ids < 0).any():
            continue
        order = np.argsort(ids, kind="stable")
        counts = np.bincount(ids)
        counts = counts[counts > 0]
        if (counts == counts[0]).all() and counts[0] > 1 and len(counts) > len(best):
            best = units[order].reshape(len(counts), -1)
    return best


def times_at(graph: Graph, axes: Sequence[Axis | Together], sizes: Sequence[int]) -> np.ndarray:
    """Which unit classes stay (1) where each axis has that size."""
    times = np.ones(graph.coupling.n_units, dtype=np.int64)
    for axis, size in zip(axes, sizes, strict=True):
        if size < axis.now:
            axis.drop(times, size)
    return times


def _at(graph: Graph, nodes: Sequence[Node], times: np.ndarray) -> At:
    coupling = graph.coupling
    shapes = {}
    for ref in reads_of(nodes):
        value = coupling.values.get(ref)
        if ref in coupling.trace.params:
            shapes[ref] = param_shape(coupling, ref, times)
        elif isinstance(value, Labels):
            shapes[ref] = shape_after(coupling, value, times, nodes[0].at())
    return tuple(node_after(coupling, n, times) for n in nodes), shapes


def _rewritten(a: Any, ints: Iterator[int]) -> Any:
    """Arguments with other ints, in the order of `_walk`."""
    if isinstance(a, (list, tuple)):
        return type(a)(_rewritten(x, ints) for x in a)
    return next(ints) if isinstance(a, int) and not isinstance(a, bool) else a


# -- keys --------------------------------------------------------------------------------------------------------------


def _key(graph: Graph, nodes: Sequence[Node], axes: Sequence[Axis | Together], names: Mapping[str, str]) -> str:
    """The ops, their arguments and shapes, each int as a linear form of the sizes that can change."""

    def ints(times: np.ndarray) -> list[int]:
        changed, reads = _at(graph, nodes, times)
        return [i for node in changed for i in _ints(node, reads)]

    forms = iter([_in_letters(f) for f in _forms(graph, axes, ints)])
    made = {n.name for n in nodes}
    return "; ".join(_text(graph, node, forms, names, made) for node in nodes)


def _forms(graph: Graph, axes: Sequence[Axis | Together], of: Callable[[np.ndarray], Sequence[int]]) -> list[Form]:
    """Linear forms found by differences: each axis is made as small as it can be, the others staying.

    An axis that is that small already is made twice as large.
    """
    now = [a.now for a in axes]
    whole = of(times_at(graph, axes, now))
    slopes = []
    for k, axis in enumerate(axes):
        change = axis.step - axis.now
        other = times_at(graph, axes, [axis.step if i == k else n for i, n in enumerate(now)])
        if not change:
            change = axis.now
            other[graph.coupling.unit_of[axis.extent.labels]] = 2
        slopes.append([Fraction(x - w, change) for w, x in zip(whole, of(other), strict=True)])
    found = []
    for i, w in enumerate(whole):
        own = [s[i] for s in slopes]
        found.append((w - sum((s * n for s, n in zip(own, now, strict=True)), Fraction(0)), *own))
    return found


def _ints(node: Node, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    return list(_walk(_told(node), shapes)) + [n for s in node.shapes for n in s]


def _told(node: Node) -> dict[str, Any]:
    return {k: a for k, a in node.args.items() if k not in SILENT}


def _walk(a: Any, shapes: dict[str, tuple[int, ...]]) -> Iterator[int]:
    if isinstance(a, Ref):
        yield from shapes.get(a.name, ())
    elif isinstance(a, dict):
        for x in a.values():
            yield from _walk(x, shapes)
    elif isinstance(a, (list, tuple)):
        for x in a:
            yield from _walk(x, shapes)
    elif isinstance(a, int) and not isinstance(a, bool):
        yield a


def _in_letters(form: Form) -> str:
    constant, *slopes = form
    text = [name if s == 1 else f"{s}{name}" for s, name in zip(slopes, "ab", strict=False) if s]
    return "+".join([*text, str(constant)] if constant or not text else text)


def _text(graph: Graph, node: Node, forms: Iterator[str], names: Mapping[str, str], made: Collection[str]) -> str:
    def text(a: Any) -> str:
        if isinstance(a, Ref):
            name = names.get(a.name, "")
            return name if a.name in made else f"{name}<{','.join(next(forms) for _ in _shape(graph, a.name))}>"
        if isinstance(a, (list, tuple)):
            return f"[{', '.join(text(x) for x in a)}]"
        if isinstance(a, int) and not isinstance(a, bool):
            return next(forms)
        return repr(a)

    args = ", ".join(f"{k}={text(a)}" for k, a in _told(node).items())
    outs = " ".join(f"<{','.join(next(forms) for _ in s)}>" for s in node.shapes)
    return f"{node.op}({args}) -> {outs}"


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    if name in graph.trace.params:
        return graph.trace.params[name].shape
    value = graph.coupling.values.get(name)
    return value.shape if isinstance(value, Labels) else ()


def by_key(found: Iterable[Site]) -> dict[str, list[Site]]:
    """Sites that do the same, in order of their first."""
    out: dict[str, list[Site]] = {}
    for s in found:
        out.setdefault(s.key, []).append(s)
    return out
