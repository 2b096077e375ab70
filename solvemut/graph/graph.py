"""Graph: what a user sees of a captured model: vertices with sizes, coupled groups, costs, what is frozen, and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from ..arguments import near, shown
from ..costs import COSTS
from ..coupling import Coupling, Group
from ..errors import RequestError
from ..flow import FIXED, Extent, Factor, Labels
from ..report import clipped, one_line, short, table
from ..requests import Affine, Cost
from ..trace import Node, Trace


@dataclass(frozen=True, eq=False)
class Vertex:
    """A layer, an operation, or an input of the model.

    `nin` lists the size of each input slot, `nout` is the size of the output; `ins` and `out` are the same as size
    expressions to put requests on. `units` are the unit classes of the output, `axis` is its dim.
    """

    name: str
    op: str
    ins: tuple[Affine, ...]
    out: Affine
    units: np.ndarray
    axis: int | None
    makes_units: bool
    nodes: tuple[str, ...] = ()

    @property
    def nin(self) -> list[int]:
        return [a.now for a in self.ins]

    @property
    def nout(self) -> int:
        return self.out.now

    def __str__(self) -> str:
        return f"{self.name} ({self.op}): {self.nin} -> {self.nout}"

    def __repr__(self) -> str:
        return one_line(f"<Vertex {self}>")


@dataclass(frozen=True, eq=False)
class Graph:
    """The captured model: `graph["layer1.0.conv1"]`, `graph.params`, `graph.flops`, `graph.groups`, `print(graph)`."""

    trace: Trace
    coupling: Coupling
    example: str = ""  # the example inputs as JSON: shapes, dtypes, structure
    model: Any = field(default=None, repr=False)  # the module that was captured; values are evaluated on it
    examples: tuple[Any, ...] = field(default=(), repr=False)  # the calls it was captured by, as `example` has them
    _cache: dict[str, Vertex] = field(default_factory=dict, repr=False)

    # -- vertices --------------------------------------------------------------------------------------------------

    @cached_property
    def vertices(self) -> tuple[Vertex, ...]:
        """Inputs first, then layers and operations in execution order, then parameters that no layer shows."""
        inputs = [self._input(name) for name in self.trace.inputs if ":" not in name]  # those of the first call
        calls = [self._vertex(name, nodes) for name, nodes in self._calls().items()]
        return (*inputs, *calls, *self._inside(calls))

    def _inside(self, calls: list[Vertex]) -> list[Vertex]:
        """Parameters that make units which their module does not return: they have a size of their own."""
        shown = np.unique(np.concatenate([np.empty(0, dtype=int), *(v.units for v in calls if v.makes_units)]))
        names = {v.name for v in calls}
        found = []
        for value, dim in [(v, d) for v, dims in self._makers.items() for d in dims]:
            extent = Extent(self.coupling.sources[value, dim].labels.reshape(-1), owner=self.coupling)
            units = self.coupling.units(extent)
            if np.isin(units, [FIXED, *shown]).all() or self.coupling.frozen[units].all():
                continue
            p = self.trace.params[value]
            name = p.name if p.name not in names else f"{p.name}[dim {dim}]"
            names.add(name)
            found.append(Vertex(name, "parameter", (), Affine.of(extent, f"{name}.out"), units, dim, True))
        return found

    @cached_property
    def _makers(self) -> dict[str, list[int]]:
        """The parameters that make units, in execution order, each with the dims that do."""
        found: dict[str, list[int]] = {}
        for value, dim in self.coupling.sources:
            p = self.trace.params.get(value)
            if p is not None and p.kind == "parameter" and (value, dim) in self.coupling.produced:
                found.setdefault(value, []).append(dim)
        return found

    def _made_by(self, values: Iterable[str]) -> list[np.ndarray]:
        """The units of each dim of these parameters that makes units."""
        sources = self.coupling.sources
        return [self.coupling.units(sources[v, d]) for v in dict.fromkeys(values) for d in self._makers.get(v, ())]

    @cached_property
    def _first_maker(self) -> dict[int, str]:
        """For every unit the parameter that makes it before any other does."""
        found: dict[int, str] = {}
        for value in self._makers:
            for units in self._made_by([value]):
                for u in units.reshape(-1).tolist():
                    found.setdefault(u, value)
        return found

    def _calls(self) -> dict[str, list[Node]]:
        """Nodes by vertex: one call of a leaf module is one vertex, an operation in a container is another."""
        containers: set[str] = {""}
        for node in self.trace.nodes:
            parts = node.module.split(".")
            containers.update(".".join(parts[:k]) for k in range(1, len(parts)))
        calls: dict[str, list[Node]] = {}
        last, name = None, ""
        shown = {*containers, *(n.module for n in self.trace.nodes if not n.tag)}
        for node in self.trace.nodes:
            if node.tag and node.module in shown:
                continue  # another call shows only the layers that no earlier call runs
            if node.module in containers:
                calls[_unused(self._weight_of(node) or node.name, calls)] = [node]
                last = None
                continue
            if node.module != last:
                name = _unused(node.module, calls)
                last = node.module
            calls.setdefault(name, []).append(node)
        return {k: nodes for k, nodes in calls.items() if any(n.op not in _SILENT for n in nodes)}

    def _weight_of(self, node: Node) -> str | None:
        """The path of the one weight that an operation without a module makes its units of: users know it by that."""
        weights = [p for r in dict.fromkeys(node.refs()) if r in self._makers and (p := self.trace.params[r])]
        weights = [p for p in weights if len(p.shape) > 1]
        return weights[0].name if len(weights) == 1 else None

    def __getitem__(self, name: str) -> Vertex:
        """A vertex by module path at any depth, operation name or input name; RequestError suggests near names."""
        if not isinstance(name, str):
            raise RequestError(f"graph[{shown(name)}]: give the name of a vertex, such as 'layer1.0.conv1'")
        found = {v.name: v for v in self.vertices}.get(name) or self._cache.get(name)
        if found is None:
            inside = [n for n in self.trace.nodes if n.module == name or n.module.startswith(name + ".")]
            inside = [n for n in inside if not n.tag] or inside
            inside = inside or [n for n in self.trace.nodes if n.name == name]
            if not inside:
                known = [v.name for v in self.vertices] + sorted({n.module for n in self.trace.nodes})
                meant = near(name, known)
                hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
                raise RequestError(f"there is no vertex {shown(name)} in this graph{hint}")
            found = self._cache[name] = self._vertex(name, inside)
        return found

    def __contains__(self, name: str) -> bool:
        try:
            self[name]
        except RequestError:
            return False
        return True

    def match(self, pattern: str) -> list[Vertex]:
        """Vertices by name or glob (`layer1.*`); a container's name stands for all in it."""
        exact = [v for v in self.vertices if v.name == pattern or v.name.startswith(pattern + ".")]
        found = exact or [v for v in self.vertices if fnmatch.fnmatchcase(v.name, pattern)]
        return found or [self[pattern]]

    def _input(self, name: str) -> Vertex:
        shape = self.trace.inputs[name]
        axis = self._features.get(name, ())
        n = int(np.prod([shape[d] for d in axis])) if axis else 1
        return Vertex(name, "input", (), Affine((), n), np.zeros(n, dtype=int), axis[0] if axis else None, False)

    def _vertex(self, name: str, nodes: list[Node]) -> Vertex:
        made = {n.name for n in nodes}
        slots = [(r, _BY_OP.get(n.op)) for n in nodes for r in n.refs() if r not in self.trace.params]
        outside = [(r, dim) for r, dim in slots if r not in made] or slots[:1]
        ins = tuple(self._affine(r, f"{name}.ins[{k}]", dim) for k, (r, dim) in enumerate(outside))
        last = nodes[-1]
        units, axis = self._units(last.name)
        labels = self._feature_labels(last.name)
        out = (
            Affine((), len(units))
            if labels is None
            else Affine.of(Extent(labels.reshape(-1), owner=self.coupling), f"{name}.out")
        )
        produced = self._made_by(r for n in nodes for r in n.refs())
        free = units[units != FIXED]
        makes = any(np.isin(free, u).any() for u in produced)
        op = last.op if len(nodes) == 1 else "+".join(dict.fromkeys(n.op for n in nodes if n.op not in _SILENT))
        return Vertex(name, op, ins, out, units, axis, makes, tuple(n.name for n in nodes))

    def _affine(self, value: str, name: str, dim: int | None) -> Affine:
        """The size of an input slot, in the dim that its operation works on."""
        found = self.coupling.values.get(value)
        if dim is not None and isinstance(found, Labels):
            dim %= max(1, found.ndim)
            if (f := found.factor(dim)) is None:
                return Affine((), found.shape[dim])
            if len(f.dims) == 1:
                return Affine.of(Extent(f.labels, owner=self.coupling), name)
        labels = self._feature_labels(value)
        if labels is None:
            return Affine((), len(self._units(value)[0]))
        return Affine.of(Extent(labels.reshape(-1), owner=self.coupling), name)

    # -- the feature axis of values ----------------------------------------------------------------------------------

    @cached_property
    def _features(self) -> dict[str, tuple[int, ...]]:
        """For every value the dims that users call its size: channels, features, heads x head size."""
        found: dict[str, tuple[int, ...]] = {}
        for node in self.trace.nodes:
            refs = [r for r in node.refs() if r not in self.trace.params]
            dims = _BY_OP.get(node.op)
            if dims is not None:
                for r in refs[:1]:
                    found.setdefault(r, (dims % max(1, len(self.trace.shape(r))),))
            found[node.name] = self._feature_of(node, refs, dims, found)
        for name, shape in self.trace.inputs.items():
            found.setdefault(name, (1,) if len(shape) > 3 else (len(shape) - 1,) if shape else ())
        return found

    def _feature_of(
        self, node: Node, refs: list[str], dim: int | None, found: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, ...]:
        n = len(node.shape)
        if not n:
            return ()
        if dim is not None:
            return (dim % n,)
        labels = self.coupling.values[node.name]
        factors = labels.factors if isinstance(labels, Labels) else ()
        before = [self._labels_at(r, found) for r in refs if r in found]
        if factors and not refs:
            return self._made_dims(node, factors)
        for f in factors:
            if any(b is not None and np.isin(f.labels, b).any() for b in before):
                return f.dims
        if factors:
            return factors[-1].dims
        same = [found[r] for r in refs if r in found and len(self.trace.shape(r)) == n]
        return same[0] if same else (1,) if n > 3 else (n - 1,)

    def _made_dims(self, node: Node, factors: Sequence[Factor]) -> tuple[int, ...]:
        """Of a value made of parameters alone: the dims of units that can go and that these make first, or the last."""
        own = set(node.refs())

        def is_made_here(f: Factor) -> bool:
            units = self.coupling.units(f.labels).reshape(-1)
            return any(self._first_maker.get(u) in own for u in units[~self.coupling.frozen[units]].tolist())

        return max(reversed(factors), key=is_made_here).dims

    def _labels_at(self, value: str, found: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
        labels = self.coupling.values.get(value)
        if not isinstance(labels, Labels):
            return None
        return next((f.labels for f in labels.factors if set(f.dims) & set(found[value])), None)

    def _feature_labels(self, value: str) -> np.ndarray | None:
        return self._labels_at(value, self._features) if value in self._features else None

    def _units(self, value: str) -> tuple[np.ndarray, int | None]:
        labels = self._feature_labels(value)
        dims = self._features.get(value, ())
        if labels is not None:
            return self.coupling.units(labels.reshape(-1)), dims[0]
        shape = self.trace.shape(value) if value not in self.trace.params else self.trace.params[value].shape
        n = int(np.prod([shape[d] for d in dims])) if dims else 1
        return np.zeros(n, dtype=int), dims[0] if dims else None

    # -- costs -------------------------------------------------------------------------------------------------------

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Every registered cost by name."""
        return {name: f(self.coupling) for name, f in COSTS.items()}

    @property
    def params(self) -> Cost:
        """Elements of all parameters."""
        return self.costs["params"]

    @property
    def flops(self) -> Cost:
        """Floating-point operations of a forward on the example inputs, 2 per multiply-accumulate.

        As torch.utils.flop_counter counts them. That counter does not see the fused attention kernel of the CPU; under
        torch.nn.attention.sdpa_kernel(SDPBackend.MATH) it does, and agrees.
        """
        return self.costs["flops"]

    # -- groups, frozen, printing --------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[Group, ...]:
        """Coupled groups: which dims of which parameters must change together, and why."""
        return self.coupling.groups

    def name_of_unit(self, unit: int) -> str:
        """A vertex that makes a unit, for messages."""
        for v in self.vertices:
            if v.makes_units and unit in v.units:
                return v.name
        return f"unit {unit}"

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the analysis froze, approximated or did not see, one line each."""
        lines = [
            f"no rule for {op}: what it touches is frozen ({places})" for op, places in self._unsupported().items()
        ]
        lines += [f"{p.name}: not read by any captured call, left as it is" for p in self.trace.unused]
        lines += list(self.trace.notes)
        if self.examples and not self.example:
            lines.append("the example inputs hold what JSON cannot: a plan read from a file cannot be verified")
        told: dict[str, list[str]] = {}
        for f in self.coupling.facts.notes:
            if f.node is not None and not self.coupling.frozen[self.coupling.units(f.labels)].all():
                told.setdefault(f"{f.node.op}: {f.why}", []).append(f.node.module or f.node.name)
        lines += [f"{what} ({_some(places)})" for what, places in told.items()]
        return tuple(lines)

    def _unsupported(self) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        for node in self.coupling.facts.unsupported:
            found.setdefault(node.op, []).append(node.module or node.name)
        return {op: _some(places) for op, places in found.items()}

    def frozen_because(self, vertex: Vertex) -> str:
        """Why the size of a vertex cannot change; empty if it can."""
        units = np.unique(vertex.units)
        if not self.coupling.frozen[units].all():
            return ""
        real = units[units != FIXED]
        if len(real):
            return self.coupling.reasons[int(real[0])]
        return "model input" if vertex.op == "input" else "fixed size"

    def __repr__(self) -> str:
        return one_line(f"<Graph of {self._head()}>")

    def _head(self) -> str:
        return (
            f"{self.trace.root}: {short(self.params.now)} params, {short(self.flops.now)} FLOPs, "
            f"{len(self.groups)} coupled groups, {sum(g.units for g in self.groups if not g.frozen)} units to decide"
        )

    def __str__(self) -> str:
        per = {name: _by_vertex(cost) for name, cost in self.costs.items()}
        rows = []
        for v in self.vertices:
            groups = np.unique(self.coupling.group_of[v.units])
            names = ",".join(str(g) for g in groups[groups >= 0][:4]) + (",…" if (groups >= 0).sum() > 4 else "")
            share = [
                short(self._share(per[name], v)) if self._share(per[name], v) else "" for name in ("params", "flops")
            ]
            rows.append([v.name, clipped(v.op, 28), ",".join(map(str, v.nin)), v.nout, names, *share,
                         clipped(self.frozen_because(v))])  # fmt: skip
        body = table(
            ["vertex", "op", "nin", "nout", "group", "params", "FLOPs", "frozen because"], rows, right=[2, 3, 5, 6]
        )
        notes = ["", "notes:", *(f"- {n}" for n in self.notes)] if self.notes else []
        return "\n".join([self._head(), "", body, *notes])

    @staticmethod
    def _share(per: Mapping[str, int], v: Vertex) -> int:
        return sum(per.get(k, 0) for k in {v.name, *v.nodes})


def _by_vertex(cost: Cost) -> dict[str, int]:
    out: dict[str, int] = {}
    for m in cost.monomials:
        out[m.vertex] = out.get(m.vertex, 0) + m.now
    return out


def _unused(name: str, taken: Container[str]) -> str:
    """The name, or the name with the number of its call."""
    return next(n for k in count(1) if (n := name if k == 1 else f"{name}#{k}") not in taken)


def _some(places: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(places[:3]))
    return shown + (f" and {len(places) - 3} more" if len(places) > 3 else "")


_SILENT = {"getitem", "_assert_tensor_metadata", "sym_size", "detach", "alias", "clone", "contiguous"}
# The dim that an operation calls its channels or features, from the end where it also works without a batch.
_BY_OP: dict[str, int] = {
    **dict.fromkeys(["linear", "layer_norm", "rms_norm", "embedding"], -1),
    **dict.fromkeys(["batch_norm", "group_norm", "instance_norm"], 1),
    "pixel_shuffle": -3,
    **{
        f"{op}{n}d": -1 - n
        for n in (1, 2, 3)
        for op in ("conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    },
}
