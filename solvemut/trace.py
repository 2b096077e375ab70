"""What one forward pass of a model did, as plain data: parameters, values and nodes in execution order.

No torch here: a trace can be written by hand in a test, changed (`Trace.with_shapes`) and compared. `capture` makes one
from a module; `coupling` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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


def _sizes_in(a: Any) -> Iterator[Size]:
    if isinstance(a, Size):
        yield a
    elif isinstance(a, tuple):
        for x in a:
            yield from _sizes_in(x)


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
    calls: tuple[Call, ...] = ()  # the calls of torch functions, as `verify` compares them; none if they have no text

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

    def foretold(self) -> list[Call] | None:
        """The calls of torch functions with the sizes of this trace as numbers; None where one cannot be told."""
        asked = [s for c in self.calls for s in _sizes_in(c.args)]
        env = self.sizes(asked)
        if not self.calls or any(leaf not in env for s in asked for leaf in s.leaves()):
            return None
        return [Call(c.func, _numbers(c.args, env), tuple(self._made(o) for o in c.outs)) for c in self.calls]

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
