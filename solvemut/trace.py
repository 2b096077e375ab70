"""What one forward pass of a model did, as plain data: parameters, values and nodes in execution order.

No torch here: a trace can be written by hand in a test, changed (`Trace.with_shapes`) and compared. `capture` makes one
from a module; `coupling` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import CaptureError


@dataclass(frozen=True)
class Ref:
    """A reference to a value inside the arguments of a node."""

    name: str


@dataclass(frozen=True)
class Size:
    """Where an int in a forward came from: an attribute of a module, a dim of a value, or arithmetic on such.

    `op` is "attr" (args: module path, attribute, index or None), "size" (args: value name, dim), "const" (args: int),
    or one of + - * // % with two sizes.

    >>> heads = Size("attr", ("attn", "heads", None))
    >>> Size("*", (heads, Size("const", (64,)))).evaluate({heads: 3})
    192
    """

    op: str
    args: tuple[Any, ...]

    def evaluate(self, env: Mapping[Size, int]) -> int:
        """The value, given one for every attribute and dim in it."""
        if self.op == "const":
            return int(self.args[0])
        if self.op in ("attr", "size"):
            return env[self]
        a, b = (x.evaluate(env) for x in self.args)
        match self.op:
            case "+":
                return a + b
            case "-":
                return a - b
            case "*":
                return a * b
            case "//":
                return a // b
            case _:
                return a % b

    def leaves(self) -> Iterator[Size]:
        """The attributes and dims it is made of."""
        if self.op in ("attr", "size"):
            yield self
        elif self.op != "const":
            for x in self.args:
                yield from x.leaves()

    def __str__(self) -> str:
        match self.op:
            case "attr":
                module, name, index = self.args
                return ".".join(filter(None, ("self", module, name))) + ("" if index is None else f"[{index}]")
            case "size":
                return f"{self.args[0]}.shape[{self.args[1]}]"
            case "const":
                return str(self.args[0])
            case _:
                return f"({self.args[0]} {self.op} {self.args[1]})"


@dataclass(frozen=True)
class Guard:
    """A question that a forward asked of sizes, `left sense right`, with its answer: the forward may branch on it."""

    sense: str  # ==, !=, <, <=, > or >=
    left: Size
    right: Size
    holds: bool
    place: str

    def asks(self, env: Mapping[Size, int]) -> bool:
        """The answer under other sizes."""
        a, b = self.left.evaluate(env), self.right.evaluate(env)
        answers = {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}
        return answers[self.sense]

    def __str__(self) -> str:
        return f"{self.left} {self.sense} {self.right}"


@dataclass(frozen=True)
class Call:
    """One call of a torch function: its arguments (tensors as `Ref`, tracked ints as `Size`), and what it made.

    `outs` are names of values, or shapes.
    """

    func: str
    args: tuple[Any, ...]
    outs: tuple[Any, ...]

    def agrees(self, found: Call) -> bool:
        """Whether a call that was made is this one; a result whose shape is not known counts as any."""
        same = self.func == found.func and self.args == found.args and len(self.outs) == len(found.outs)
        return same and all(a is None or a == b for a, b in zip(self.outs, found.outs, strict=True))


@dataclass(frozen=True)
class Param:
    """A parameter, buffer or constant of the model; `aliases` are further names of the same tensor (tied weights)."""

    name: str
    shape: tuple[int, ...]
    kind: str = "parameter"  # or "buffer", "constant"
    aliases: tuple[str, ...] = ()
    digest: str = ""  # of the numbers of a constant: they are part of the program

    @property
    def numel(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclass(frozen=True)
class Node:
    """One operation: its arguments by schema name (values as `Ref`), the values it makes, and where it stands."""

    name: str
    op: str  # an ATen name without overload: "conv2d", "add"
    args: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]  # of its output, or of each element of a list output
    is_list: bool = False
    pointwise: bool = False
    module: str = ""  # path of the innermost module that ran it
    source: str = ""  # file:line and the code there
    sizes: Mapping[tuple[Any, ...], Size] = field(default_factory=dict)  # where the ints in `args` came from
    tag: str = ""  # of a further call: another mode, method or example; costs are those of the first call

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    def refs(self) -> Iterator[str]:
        """Names of the values it reads, in order."""
        yield from _refs(list(self.args.values()))

    def at(self) -> str:
        """Where it stands, for messages."""
        place = f" in {self.module}" if self.module else ""
        return f"{self.name} ({self.op}){place}" + (f" at {self.source}" if self.source else "")


def _refs(a: Any) -> Iterator[str]:
    if isinstance(a, Ref):
        yield a.name
    elif isinstance(a, (list, tuple)):
        for x in a:
            yield from _refs(x)


def sizes_in(a: Any) -> Iterator[Size]:
    """The sizes in nested arguments, or in calls."""
    if isinstance(a, Size):
        yield a
    elif isinstance(a, (tuple, Call)):
        for x in a.args if isinstance(a, Call) else a:
            yield from sizes_in(x)


def _numbers(a: Any, env: Mapping[Size, int]) -> Any:
    if isinstance(a, Size):
        return a.evaluate(env)
    return tuple(_numbers(x, env) for x in a) if isinstance(a, tuple) else a


@dataclass(frozen=True)
class Trace:
    """A whole forward pass. `inputs` maps input values to shapes, `outputs` names the values returned."""

    params: Mapping[str, Param]  # by value name, that is the name by which nodes refer to it
    inputs: Mapping[str, tuple[int, ...]]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    unused: tuple[Param, ...] = ()  # parameters that this forward did not read
    root: str = "model"  # class name of the module
    attributes: Mapping[Size, int] = field(default_factory=dict)  # values of the attributes that sizes come from
    numbers: tuple[tuple[Size, str], ...] = ()  # sizes that the forward computes with as numbers, and where
    guards: tuple[Guard, ...] = ()  # what the forward asked of sizes
    returned: tuple[tuple[Any, ...], ...] = ()  # by call: the form of what it returns, and its leaves
    calls: tuple[tuple[Call, ...], ...] = ()  # by example, what `verify` compares; none if some call has no text
    notes: tuple[str, ...] = ()  # what could not be looked at

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, an input or a node's (first) output."""
        if name in self.params:
            return self.params[name].shape
        if name in self.inputs:
            return self.inputs[name]
        return self._index[name].shape

    @property
    def _index(self) -> dict[str, Node]:
        cached = self.__dict__.get("_nodes_by_name")
        if cached is None:
            cached = {n.name: n for n in self.nodes}
            object.__setattr__(self, "_nodes_by_name", cached)
        return cached

    def node(self, name: str) -> Node:
        """The node of that name."""
        return self._index[name]

    def sizes(self, asked: Iterable[Size]) -> dict[Size, int]:
        """The values of the attributes and dims that some sizes are made of; those of unknown values are left out."""
        leaves = {leaf for s in asked for leaf in s.leaves() if leaf.op == "size"}
        known = {leaf for leaf in leaves if not str(leaf.args[0]).startswith("?")}
        return {**{leaf: self.shape(leaf.args[0])[leaf.args[1]] for leaf in known}, **self.attributes}

    def foretold(self) -> list[list[Call]] | None:
        """The calls of torch functions, with the sizes of this trace as numbers; None where one cannot be told."""
        asked = list(sizes_in(self.calls))
        env = self.sizes(asked)
        if not self.calls or any(leaf not in env for s in asked for leaf in s.leaves()):
            return None
        return [
            [Call(c.func, _numbers(c.args, env), tuple(self._made(o) for o in c.outs)) for c in calls]
            for calls in self.calls
        ]

    def _made(self, out: Any) -> Any:
        return out if out is None or isinstance(out, tuple) else self.shape(out)

    def validate(self) -> Trace:
        """Check that every reference points to something earlier; returns the trace."""
        known = {*self.params, *self.inputs}
        for node in self.nodes:
            for ref in node.refs():
                if ref not in known:
                    raise CaptureError(f"{node.at()} reads {ref!r}, which nothing before it makes")
            if node.name in known:
                raise CaptureError(f"two values are called {node.name!r}")
            known.add(node.name)
        for out in self.outputs:
            if out not in known:
                raise CaptureError(f"the output {out!r} is made by no node")
        return self

    def with_shapes(self, params: Mapping[str, tuple[int, ...]], nodes: tuple[Node, ...]) -> Trace:
        """The same pass with other parameter shapes and rewritten nodes."""
        new = {k: replace(p, shape=params.get(k, p.shape)) for k, p in self.params.items()}
        return replace(self, params=new, nodes=nodes).validate()


# -- several calls as one trace ----------------------------------------------------------------------------------------


def join(traces: Sequence[tuple[str, Trace]]) -> Trace:
    """One trace of several calls of one model: they share its parameters. Values of further calls carry their tag."""
    (_, first), *more = traces
    value_of = {name: value for value, p in first.params.items() for name in _names(p)}
    out = first
    for tag, trace in more:
        rename = {v: f"{tag}:{v}" for v in (*trace.inputs, *(n.name for n in trace.nodes))}
        for value, p in trace.params.items():
            shared = value_of.get(p.name) if p.kind != "constant" else None
            rename[value] = shared or f"{tag}:{value}"
            if shared is None:
                value_of.update((name, rename[value]) for name in _names(p))
        out = _extended(out, _renamed(trace, rename, tag))
    read = {name for p in out.params.values() for name in _names(p)}
    return replace(out, unused=tuple(p for p in first.unused if p.name not in read)).validate()


def _names(p: Param) -> tuple[str, ...]:
    return (p.name, *p.aliases) if p.kind != "constant" else ()


def _extended(a: Trace, b: Trace) -> Trace:
    return replace(
        a,
        params={**a.params, **{k: p for k, p in b.params.items() if k not in a.params}},
        inputs={**a.inputs, **b.inputs},
        nodes=(*a.nodes, *b.nodes),
        outputs=tuple(dict.fromkeys((*a.outputs, *b.outputs))),
        returned=(*a.returned, *b.returned),
        attributes={**a.attributes, **b.attributes},
        numbers=tuple(dict.fromkeys((*a.numbers, *b.numbers))),
        guards=tuple(dict.fromkeys((*a.guards, *b.guards))),
        calls=(*a.calls, *b.calls) if a.calls and b.calls else (),
    )


def _renamed(t: Trace, names: Mapping[str, str], tag: str) -> Trace:
    def size(s: Size) -> Size:
        if s.op == "size":
            return Size("size", (names.get(s.args[0], s.args[0]), s.args[1]))
        return s if s.op in ("attr", "const") else Size(s.op, tuple(size(a) for a in s.args))

    def value(a: Any) -> Any:
        if isinstance(a, Ref):
            return Ref(names[a.name])
        return [value(x) for x in a] if isinstance(a, list) else a

    def said(a: Any) -> Any:
        if isinstance(a, Size):
            return size(a)
        return tuple(said(x) for x in a) if isinstance(a, tuple) else a

    def node(n: Node) -> Node:
        args, sizes = {k: value(v) for k, v in n.args.items()}, {k: size(s) for k, s in n.sizes.items()}
        return replace(n, name=names[n.name], args=args, sizes=sizes, tag=tag)

    def call(c: Call) -> Call:
        outs = tuple(names.get(o, o) if isinstance(o, str) else o for o in c.outs)
        return Call(c.func, said(c.args), outs)

    return replace(
        t,
        params={names[k]: p for k, p in t.params.items()},
        inputs={names[k]: shape for k, shape in t.inputs.items()},
        nodes=tuple(node(n) for n in t.nodes),
        outputs=tuple(names[o] for o in t.outputs),
        returned=tuple(tuple(value(x) for x in leaves) for leaves in t.returned),
        numbers=tuple((size(s), place) for s, place in t.numbers),
        guards=tuple(replace(g, left=size(g.left), right=size(g.right)) for g in t.guards),
        calls=tuple(tuple(call(c) for c in calls) for calls in t.calls),
    )
