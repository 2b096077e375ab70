"""Graph: what a user sees of a captured model: vertices with sizes, coupled groups, costs, what is frozen, and why."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from keyword import iskeyword
from operator import index
from typing import Any, overload

import numpy as np

from .. import costs, report
from ..arguments import near, shown
from ..costs import COSTS
from ..coupling import Coupling, Group
from ..errors import PositionError, RequestError
from ..flow import FIXED, Extent, Labels
from ..report import one_line
from ..requests import Affine, Cost, Peak
from ..trace import Footprint, Node, Trace, layer_of
from . import queries, text
from .features import Features, Makers, feature_dim
from .frozen import Frozen, frozen
from .queries import is_shown

RESOURCES = ("flops", "params", "weight_bytes", "memory", "training_memory")


@dataclass(frozen=True, eq=False)
class Vertex:
    """A layer, an operation, or an input of the model.

    `nin` lists the size of each input slot, `nout` is the size of the output; `ins` and `out` are the same as size
    expressions to put requests on. `units` are the unit classes of the output along its `dim`. `layer` is the module
    that it is a call of, None for operations and inputs.
    """

    name: str
    op: str
    ins: tuple[Affine, ...]
    out: Affine
    units: np.ndarray
    dim: int | None
    makes_units: bool
    nodes: tuple[str, ...] = ()
    layer: Any = field(default=None, repr=False)

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
    """The captured model: `graph["layer1.0.conv1"]`, `graph.params`, `graph.flops`, `graph.groups`, `print(graph)`.

    It is a sequence of its vertices, too: `len(graph)`, `graph[0]`, `graph[-1]`, `graph[1:3]`, `for v in graph`. Who
    feeds whom is told by `inputs`, `outputs`, `ancestors` and `descendants`; `find` and `draw` are for looking around.
    """

    trace: Trace
    coupling: Coupling
    example: str = ""  # the example inputs as JSON: shapes, dtypes, structure
    model: Any = field(default=None, repr=False)  # the module that was captured; values are evaluated on it
    examples: tuple[Any, ...] = field(default=(), repr=False)  # the calls it was captured by, as `example` has them
    seen: Any = field(default=None, repr=False)  # the trace that the model was last held against, and its modules then
    observe: Any = field(default=None, repr=False)  # what a model holds in memory and when, which branches may go
    _cache: dict[str, Vertex] = field(default_factory=dict, init=False, repr=False)  # of one model: not for a copy

    @cached_property
    def _makers(self) -> Makers:
        return Makers(self.coupling)

    @cached_property
    def _features(self) -> Features:
        return Features(self.coupling, self._makers)

    # -- vertices --------------------------------------------------------------------------------------------------

    @cached_property
    def vertices(self) -> tuple[Vertex, ...]:
        """Inputs first, then layers and operations in execution order, then parameters that no layer shows."""
        inputs = [self._input(name) for name in self.trace.inputs if ":" not in name]  # those of the first call
        calls = [self._vertex(name, nodes) for name, nodes in self._calls().items()]
        return (*inputs, *calls, *self._inside(calls))

    def _inside(self, calls: list[Vertex]) -> list[Vertex]:
        """Parameters that make units which their module does not return: they have a size of their own."""
        shown = np.zeros(self.coupling.n_units, dtype=bool)
        shown[FIXED] = True
        for v in (v for v in calls if v.makes_units):
            shown[v.units] = True
        names = {v.name for v in calls}
        found = []
        for value, dim in [(v, d) for v, dims in self._makers.dims.items() for d in dims]:
            extent = Extent(self.coupling.sources[value, dim].labels.reshape(-1), owner=self.coupling)
            units = self.coupling.units(extent)
            if shown[units].all() or self.coupling.frozen[units].all():
                continue
            p = self.trace.params[value]
            name = p.name if p.name not in names else f"{p.name}[dim {dim}]"
            names.add(name)
            found.append(Vertex(name, "parameter", (), Affine.of(extent, f"{name}.out"), units, dim, True))
        return found

    def _calls(self) -> dict[str, list[Node]]:
        """Nodes by vertex: one call of a leaf module is one vertex, an operation in a container is another."""
        containers: set[str] = {""}
        for node in self.trace.nodes:
            parts = layer_of(node.module).split(".")
            containers.update(".".join(parts[:k]) for k in range(1, len(parts)))
        calls: dict[str, list[Node]] = {}
        last, name = None, ""
        shown = {*containers, *(layer_of(n.module) for n in self.trace.nodes if not n.tag)}
        for node, home in ((n, layer_of(n.module)) for n in self.trace.nodes):
            if node.tag and home in shown:
                continue  # another call shows only the layers that no earlier call runs
            if home in containers:
                calls[_unused(self._weight_of(node) or node.name, calls)] = [node]
                last = None
                continue
            if home != last:
                name = _unused(home, calls)
                last = home
            calls.setdefault(name, []).append(node)
        return {k: nodes for k, nodes in calls.items() if any(is_shown(n) for n in nodes)}

    def _weight_of(self, node: Node) -> str | None:
        """The path of the one weight that an operation without a module makes its units of: users know it by that."""
        weights = [p for r in dict.fromkeys(node.refs()) if r in self._makers.dims and (p := self.trace.params[r])]
        weights = [p for p in weights if len(p.shape) > 1]
        return weights[0].name if len(weights) == 1 else None

    @overload
    def __getitem__(self, name: str | int) -> Vertex: ...

    @overload
    def __getitem__(self, name: slice) -> tuple[Vertex, ...]: ...

    def __getitem__(self, name: Any) -> Any:
        """A vertex by module path at any depth, operation name, input name or position; several by a slice.

        RequestError suggests near names.
        """
        return self._named(name) if isinstance(name, str) else self._at(name)

    def _at(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self.vertices[place]
        try:
            k = index(place)
        except TypeError:
            raise RequestError(
                f"graph[{shown(place)}]: give the name of a vertex, such as 'layer1.0.conv1', or its position"
            ) from None
        if not -len(self) <= k < len(self):
            raise PositionError(f"graph[{shown(place)}]: this graph has {len(self)} vertices")
        return self.vertices[k]

    def _named(self, name: str) -> Vertex:
        name = f"{name}_" if iskeyword(name) else name  # as torch.fx names the argument
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

    def __len__(self) -> int:
        return len(self.vertices)

    def __iter__(self) -> Iterator[Vertex]:
        return iter(self.vertices)

    def __contains__(self, name: Any) -> bool:
        """Whether there is a vertex of this name, or whether a vertex is one of this graph."""
        if not isinstance(name, str):
            return any(v is name for v in self.vertices)
        try:
            self._named(name)
        except RequestError:
            return False
        return True

    def match(self, pattern: str) -> list[Vertex]:
        """Vertices by name or glob (`layer1.*`); a container's name stands for all in it."""
        exact = [v for v in self.vertices if v.name == pattern or v.name.startswith(pattern + ".")]
        found = exact or [v for v in self.vertices if fnmatch.fnmatchcase(v.name, pattern)]
        return found or [self[pattern]]

    # -- who feeds whom ----------------------------------------------------------------------------------------------

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {n.name: n for n in self.trace.nodes}

    @cached_property
    def _edges(self) -> list[tuple[Vertex, Vertex]]:
        return queries.edges(self)

    @cached_property
    def _made_by(self) -> dict[str, Vertex]:
        return queries.made_by(self)

    def inputs(self, v: Vertex | str) -> list[Vertex]:
        """The vertices that feed one, one per input slot: what it reads twice is there twice.

        >>> import torch, solvemut as sm
        >>> from torch import nn
        >>> net = sm.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
        >>> net.inputs("1"), net.outputs("1"), [v.name for v in net.ancestors("2")]
        ([<Vertex 0 (linear): [3] -> 4>], [<Vertex 2 (linear): [4] -> 2>], ['input', '0', '1'])
        """
        return queries.inputs(self, v)

    def outputs(self, v: Vertex | str) -> list[Vertex]:
        """The vertices that read one, in the order of the graph; one that reads it twice is there twice."""
        return queries.outputs(self, v)

    def ancestors(self, v: Vertex | str) -> list[Vertex]:
        """All vertices whose output reaches one, in the order of the graph, without itself."""
        return queries.reached(self, v, forwards=False)

    def descendants(self, v: Vertex | str) -> list[Vertex]:
        """All vertices that the output of one reaches, in the order of the graph, without itself."""
        return queries.reached(self, v, forwards=True)

    def find(self, wanted: str | re.Pattern[str] | Callable[[Vertex], Any]) -> list[Vertex]:
        """Vertices by exact name, by glob, by a compiled regular expression (searched for) or by a predicate."""
        return queries.find(self, wanted)

    def draw(self) -> str:
        """The graph in the language of Graphviz: boxes are vertices, dashed where their size cannot change."""
        return queries.draw(self)

    def _input(self, name: str) -> Vertex:
        shape = self.trace.inputs[name]
        dims = self._features.dims.get(name, ())
        n = int(np.prod([shape[d] for d in dims])) if dims else 1
        return Vertex(name, "input", (), Affine((), n), np.zeros(n, dtype=int), dims[0] if dims else None, False)

    def _vertex(self, name: str, nodes: list[Node]) -> Vertex:
        made = {n.name for n in nodes}
        slots = [(r, feature_dim(n)) for n in nodes for r in n.refs() if r not in self.trace.params]
        outside = [(r, dim) for r, dim in slots if r not in made] or slots[:1]
        ins = tuple(self._affine(r, f"{name}.ins[{k}]", dim) for k, (r, dim) in enumerate(outside))
        last = _result(nodes)
        units, dim = self._features.units(last.name)
        labels = self._features.labels(last.name)
        out = (
            Affine((), len(units))
            if labels is None
            else Affine.of(Extent(labels.reshape(-1), owner=self.coupling), f"{name}.out")
        )
        produced = self._makers.units(r for n in nodes for r in n.refs())
        free = units[units != FIXED]
        makes = any(np.isin(free, u).any() for u in produced)
        op = last.op if len(nodes) == 1 else "+".join(dict.fromkeys(n.op for n in nodes if is_shown(n)))
        return Vertex(name, op, ins, out, units, dim, makes, tuple(n.name for n in nodes), self._layer(name, nodes))

    def _layer(self, name: str, nodes: list[Node]) -> Any:
        """The module that is called by the name of a vertex, or that holds all of its nodes; None if there is none."""
        path = name if name in self._modules else name.partition("#")[0]
        inside = all(n.module == path or n.module.startswith(path + ".") for n in nodes)
        return self._modules.get(path) if path and inside else None

    @cached_property
    def _modules(self) -> dict[str, Any]:
        return dict(self.model.named_modules(remove_duplicate=False)) if self.model is not None else {}

    def _affine(self, value: str, name: str, dim: int | None) -> Affine:
        """The size of an input slot, in the dim that its operation works on."""
        found = self.coupling.values.get(value)
        if dim is not None and isinstance(found, Labels):
            dim %= max(1, found.ndim)
            if (f := found.factor(dim)) is None:
                return Affine((), found.shape[dim])
            if len(f.dims) == 1:
                return Affine.of(Extent(f.labels, owner=self.coupling), name)
        labels = self._features.labels(value)
        if labels is None:
            return Affine((), len(self._features.units(value)[0]))
        return Affine.of(Extent(labels.reshape(-1), owner=self.coupling), name)

    # -- costs -------------------------------------------------------------------------------------------------------

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Every registered cost by name: those that need nothing but the coupling."""
        return {name: f(self.coupling) for name, f in COSTS.items()}

    def cost(self, name: str) -> Cost:
        """A cost by its name: flops, params, weight_bytes, memory or training_memory. RequestError for any other."""
        if not isinstance(name, str) or name not in RESOURCES:
            raise RequestError(f"there is no cost {shown(name)}; there are {', '.join(RESOURCES)}, or give a Cost")
        found: Cost = getattr(self, name)
        return found

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

    @cached_property
    def memory(self) -> Peak:
        """Peak bytes of a forward on the example inputs, without the weights, at their present dtypes.

        Inputs, outputs and all that Python holds between, at the worst moment between two operations; what a kernel
        needs for itself and how an allocator rounds is not in it. Raises RequestError where it cannot be observed.

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
        >>> graph = sm.capture(model, torch.ones(1, 10))
        >>> graph.memory.now, graph.weight_bytes.now  # 10 in, 50 and 50 between; 652 weights
        (440, 2608)
        >>> plan = sm.prune(model, torch.ones(1, 10), memory=0.5)
        >>> plan.sizes["0"], plan.costs["memory"].after
        ((50, 22), 216)
        """
        return costs.memory(self.coupling, self._footprint)

    @cached_property
    def weight_bytes(self) -> Cost:
        """Bytes of parameters and buffers, as a state dict has them: about the size of the file."""
        return costs.weight_bytes(
            self.coupling, self._itemsizes(self._model("weight_bytes").state_dict(keep_vars=True))
        )

    @cached_property
    def training_memory(self) -> Cost:
        """Bytes that a training step on the example inputs keeps until it is done, with Adam.

        What autograd keeps of the forward in train mode, the gradients, and two states for each parameter.
        """
        return self.training_memory_with(2)

    @cached_property
    def removable(self) -> tuple[Any, ...]:
        """The branches without which the network runs, in the order in which they run: one side of a sum each.

        Each has a name, the modules that go, and its share of FLOPs and parameters; each was tried on fake tensors.
        `prune(depth=...)` lets them go.

        >>> import torch, solvemut as sm
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> model = nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 2))
        >>> print(*sm.capture(model, torch.ones(1, 4)).removable, sep="\\n")
        1: 1.up, 1.down; 47.8 % of FLOPs, 47.5 % of params
        2: 2.up, 2.down; 47.8 % of FLOPs, 47.5 % of params
        """
        if self.observe is None or self.observe.removable is None:
            raise RequestError("removable: this graph has no example inputs to run the model on; capture it again")
        found: tuple[Any, ...] = self.observe.removable(self)
        return found

    def training_memory_with(self, states: int) -> Cost:
        """`training_memory`, with an optimizer that has so many states per parameter; 0 for plain SGD."""
        trained = {k: p for k, p in self._model("training_memory").named_parameters() if p.requires_grad}
        return costs.training_memory(self.coupling, self._footprint, self._itemsizes(trained), states)

    @cached_property
    def _footprint(self) -> Footprint:
        model = self._model("memory")
        if self.observe is None or not self.examples:
            raise RequestError("memory: this graph has no example inputs to run the model on; capture the model again")
        found: Footprint = self.observe(model, self.examples, self.trace)
        return found

    def _model(self, what: str) -> Any:
        if self.model is None:
            raise RequestError(f"{what}: this graph has no model whose tensors tell their dtypes; capture the model")
        return self.model

    @staticmethod
    def _itemsizes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """By name the bytes of an element, and how many elements."""
        found = {k: t for k, t in tensors.items() if hasattr(t, "element_size")}
        return {k: (int(t.element_size()), int(t.numel())) for k, t in found.items()}

    def latency(self, table: Any) -> Cost:
        """What a forward on the example inputs takes by a table of measured times, in milliseconds.

        A cost like any other: `graph.latency(table) <= 8.0`. `measure_latency` and `roofline` make tables. RequestError
        names a layer that the table does not know.
        """
        if not callable(getattr(table, "cost", None)):
            raise RequestError(f"latency({shown(table)}): give a table, as solvemut.measure_latency makes it")
        return table.cost(self)  # type: ignore[no-any-return]

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
        return text.notes(self)

    @cached_property
    def frozen(self) -> Frozen:
        """What no plan can make smaller: a row per reason and line, with its share of FLOPs and of params.

        >>> import torch, solvemut as sm
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = torch.nn.Linear(4, 16), torch.nn.Linear(16, 2)
        ...
        ...     def forward(self, x):
        ...         return self.b(self.a(x).view(-1, 4, 4).flatten(1))
        >>> graph = sm.capture(Net(), torch.ones(1, 4))
        >>> [(row.reason, row.op, row.vertices) for row in graph.frozen][0]
        ('its sizes are written as numbers', 'view', ('a',))
        >>> round(graph.frozen.flops, 2), any(row.op == "cumsum" for row in graph.frozen)
        (1.0, False)
        """
        return frozen(self)

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
        return one_line(f"<Graph of {text.head(self)}>")

    def __str__(self) -> str:
        return report.text(text.parts(self))

    def _repr_html_(self) -> str:
        """The tables of `print(graph)`, for notebooks."""
        return report.html(text.parts(self))


def _unused(name: str, taken: Container[str]) -> str:
    """The name, or the name with the number of its call."""
    return next(n for k in count(1) if (n := name if k == 1 else f"{name}#{k}") not in taken)


def _result(nodes: Sequence[Node]) -> Node:
    """The node whose value is what a vertex puts out: the last; of a layer that returns states too, its first."""
    several = next((n for n in reversed(nodes) if n.is_list and feature_dim(n) is not None), None)
    found = None if several is None else next((n for n in nodes if _is_first_of(n, several)), None)
    if found is None:
        return nodes[-1]
    return next((n for n in nodes if n.op == "squeeze" and found.name in n.refs()), found)  # it gave itself a batch


def _is_first_of(node: Node, several: Node) -> bool:
    return node.op == "getitem" and node.args["a"].name == several.name and node.args["b"] == 0
