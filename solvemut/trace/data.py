"""What one forward pass of a model did, as plain data: parameters, values and nodes in execution order.

No torch here: a trace can be written by hand in a test, changed (`Trace.with_shapes`) and compared. `capture` makes one
from a module; `coupling` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import CaptureError
from .sizes import Size


@dataclass(frozen=True)
class Ref:
    """A reference to a value inside the arguments of a node."""

    name: str


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

    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads, in order."""
        return self._reads

    @cached_property
    def _reads(self) -> tuple[str, ...]:
        return tuple(_refs(list(self.args.values())))

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


def layer_of(path: str) -> str:
    """The layer that a module belongs to: itself, or the one whose weights it computes.

    >>> layer_of("body.0"), layer_of("body.0.parametrizations.weight.0")
    ('body.0', 'body.0')
    """
    return f".{path}".split(".parametrizations.")[0][1:]


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
