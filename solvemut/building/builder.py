"""Builder: a model written as a graph. What comes out is a torch.fx.GraphModule like any other."""

from __future__ import annotations

import inspect
import keyword
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from numbers import Real
from typing import Any

import torch
from torch import nn

from ..arguments import scalar, shown, whole
from ..errors import RequestError
from . import widths
from .modules import Apply, Concat, GraphModel, Slot
from .widths import Named, Width


@dataclass(frozen=True, eq=False)
class BuilderVertex:
    """What a vertex of a builder puts out; + - * / and unary - make further vertices.

    `size` is its number of channels or features and `dim` the dim they lie in, None where that is not known beforehand.
    """

    builder: Builder = field(repr=False)
    name: str
    width: Width = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)  # None: an input
    target: str = field(default="", repr=False)  # the path that its module is called by
    inputs: tuple[BuilderVertex, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int | None:
        return self.width.size

    @property
    def dim(self) -> int | None:
        return self.width.dim

    def __add__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.add, "add", self, other)

    def __radd__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.add, "add", other, self)

    def __sub__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.sub, "sub", self, other)

    def __rsub__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.sub, "sub", other, self)

    def __mul__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.mul, "mul", self, other)

    def __rmul__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.mul, "mul", other, self)

    def __truediv__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.truediv, "div", self, other)

    def __rtruediv__(self, other: Any) -> BuilderVertex:
        return self.builder._elementwise(operator.truediv, "div", other, self)

    def __neg__(self) -> BuilderVertex:
        return self.builder._elementwise(operator.neg, "neg", self)


class Builder:
    """Write a model as a graph: inputs, layers, operations, and at last the model itself.

    >>> net = Builder()
    >>> x = net.input("image", 3)
    >>> conv = net.layer(nn.Conv2d(3, 5, 3, padding=1), x, name="conv")
    >>> both = net.concat(conv, net.layer(nn.BatchNorm2d(5), conv), name="cat")
    >>> model = net.build(both * 0.5 + net.layer(nn.Conv2d(3, 10, 1), x, name="residual"))
    >>> model(torch.ones(2, 3, 8, 8)).shape, both.size
    (torch.Size([2, 10, 8, 8]), 10)
    >>> import solvemut as sm
    >>> [v.name for v in sm.capture(model, torch.ones(1, 3, 8, 8))]
    ['image', 'conv', 'batchnorm2d', 'cat', 'mul', 'residual', 'add']

    Layers are called by their names, which are their keys in `state_dict`; a name with dots makes nested modules. A
    layer that is added again, to run once more with the same weights, keeps its name.
    """

    def __init__(self, name: str = "GraphModel") -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise RequestError(f"Builder({shown(name)}): give the class name that the model shows, such as 'MyNet'")
        self.name = name
        self._vertices: dict[str, BuilderVertex] = {}
        self._targets: dict[int, str] = {}  # of the modules, by id: each has one

    def __repr__(self) -> str:
        return f"<Builder of {self.name}: {len(self._vertices)} vertices>"

    def __getitem__(self, name: str) -> BuilderVertex:
        if name not in self._vertices:
            raise RequestError(f"there is no vertex {shown(name)} in {self!r}")
        return self._vertices[name]

    # -- vertices --------------------------------------------------------------------------------------------------

    def input(self, name: str, size: int | None = None) -> BuilderVertex:
        """An input of the model. `size`, its channels or features, is held against the layers that read it.

        The forward takes it by this name; where Python has the name for itself, as `in`, an underscore follows.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise RequestError(f"input({shown(name)}): the forward takes it by name, so give a Python identifier")
        size = None if size is None else whole(size, f"the size of input {name!r}", least=1)
        own = name + "_" * (keyword.iskeyword(name) or name == "self")
        if own in self._vertices:
            raise RequestError(f"the name {own!r} is taken in this graph; names are unique, so choose another")
        return self._enter(BuilderVertex(self, own, Width(size)))

    def layer(self, module: nn.Module, *inputs: BuilderVertex, name: str | None = None) -> BuilderVertex:
        """A layer, or any module, run on the outputs of other vertices."""
        if not isinstance(module, nn.Module):
            raise RequestError(f"layer takes a torch.nn.Module, not {shown(module)}; net.apply takes functions")
        kind = type(module).__name__
        if (held := self._targets.get(id(module))) is not None and name not in (None, held):
            raise RequestError(
                f"layer {shown(name)}: this {kind} is in the graph as {held!r} already, and one module has one name; "
                "leave out name= to run it again, or give a copy of it"
            )
        own = self._unused(held or kind.lower(), "#" if held else "_") if name in (None, held) else self._free(name)
        given = [self._named(v, f"layer {own!r}") for v in inputs]
        try:
            inspect.signature(module.forward).bind(*inputs)
        except TypeError as e:
            raise RequestError(f"layer {own!r}: a {kind} does not take {len(inputs)} inputs: {e}") from None
        except ValueError:  # a forward without a signature
            pass
        width = widths.after(module, given, own)
        return self._enter(BuilderVertex(self, own, width, module, held or own, tuple(inputs)))

    def concat(self, *inputs: BuilderVertex, name: str | None = None, dim: int | None = None) -> BuilderVertex:
        """Outputs one after the other along a dim: that of the features, if it is not given."""
        if not inputs:
            raise RequestError("concat: give at least one vertex")
        own = self._own(name, "cat")
        given = [self._named(v, f"concat {own!r}") for v in inputs]
        dim = widths.feature_dim(own, given) if dim is None else whole(dim, f"concat {own!r}: dim")
        width = widths.joined(own, given, dim)
        return self._enter(BuilderVertex(self, own, width, Concat(dim), own, tuple(inputs)))

    def apply(self, function: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> BuilderVertex:
        """Any function of tensors; among its arguments vertices stand for their outputs.

        To be pickled with the model, the function must be importable: a lambda is not.

        >>> net = Builder()
        >>> x = net.input("x", 4)
        >>> net.build(net.apply(torch.clamp, x, min=0))(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
        """
        if not callable(function):
            raise RequestError(f"apply takes a function of tensors, not {shown(function)}")
        if isinstance(function, nn.Module):
            raise RequestError("apply takes a function, and this is a module: net.layer takes those")
        own = self._own(name, getattr(function, "__name__", ""))
        inputs: list[BuilderVertex] = []
        slotted = self._slotted(args, inputs, own), self._slotted(kwargs, inputs, own)
        given = [self._named(v, own) for v in inputs]
        same = widths.is_pointwise(function) and len(given) == 1
        width = given[0][1] if same else widths.UNKNOWN
        return self._enter(BuilderVertex(self, own, width, Apply(function, *slotted), own, tuple(inputs)))

    def _elementwise(self, function: Callable[..., Any], title: str, *operands: Any) -> BuilderVertex:
        own = self._unused(title)
        inputs = [x for x in operands if isinstance(x, BuilderVertex)]
        given = [self._named(v, own) for v in inputs]
        for x in operands:
            if not isinstance(x, BuilderVertex) and (isinstance(x, bool) or not isinstance(scalar(x), Real)):
                raise RequestError(f"{own}: {shown(x)} is neither a vertex of this builder nor a number")
        places = iter(range(len(inputs)))  # x + x reads x twice
        args = tuple(Slot(next(places)) if isinstance(x, BuilderVertex) else scalar(x) for x in operands)
        width = widths.elementwise(own, given)
        return self._enter(BuilderVertex(self, own, width, Apply(function, args), own, tuple(inputs)))

    def _slotted(self, x: Any, inputs: list[BuilderVertex], own: str) -> Any:
        """Arguments with a slot for every vertex among them; the vertices join `inputs`."""
        if isinstance(x, BuilderVertex):
            inputs.append(x)
            return Slot(len(inputs) - 1)
        if isinstance(x, torch.Tensor):
            raise RequestError(
                f"apply {own!r}: a tensor among the arguments would neither be trained nor move with the model; write "
                "a module that holds it as a parameter or a buffer, and add that as a layer"
            )
        if isinstance(x, dict):
            return {k: self._slotted(v, inputs, own) for k, v in x.items()}
        if type(x) in (tuple, list):
            return type(x)(self._slotted(v, inputs, own) for v in x)
        return x

    # -- the model -------------------------------------------------------------------------------------------------

    def build(self, *outputs: BuilderVertex) -> GraphModel:
        """The model: one output as it is, several as a tuple. It holds what they need, and every input.

        >>> net = Builder("TwoHeads")
        >>> x = net.layer(nn.Linear(3, 4), net.input("x", 3), name="stem.fc")
        >>> model = net.build(x, -x)
        >>> print(model.code.strip())
        def forward(self, x):
            stem_fc = self.stem.fc(x);  x = None
            neg = self.neg(stem_fc)
            return (stem_fc, neg)
        """
        if not outputs:
            raise RequestError("build: give the vertices that the model returns")
        for v in outputs:
            self._named(v, "build")
        needed, todo = set[str](), list(outputs)
        while todo:
            v = todo.pop()
            if v.name not in needed:
                needed.add(v.name)
                todo += v.inputs
        graph, nodes, root = torch.fx.Graph(), dict[str, torch.fx.Node](), nn.Module()
        inputs = [v for v in self._vertices.values() if v.module is None]
        for v in inputs:
            nodes[v.name] = graph.placeholder(v.name)
        for v in self._vertices.values():  # in the order in which they were written
            if v.module is not None and v.name in needed:
                _put(root, v.target, v.module)
                nodes[v.name] = graph.call_module(v.target, tuple(nodes[u.name] for u in v.inputs))
        found = tuple(nodes[v.name] for v in outputs)
        graph.output(found[0] if len(found) == 1 else found)
        return GraphModel(root, graph, self.name, vars(root))

    # -- names -----------------------------------------------------------------------------------------------------

    def _enter(self, v: BuilderVertex) -> BuilderVertex:
        self._vertices[v.name] = v
        if v.module is not None:
            self._targets[id(v.module)] = v.target
        return v

    def _named(self, v: Any, where: str) -> Named:
        """A vertex with its name and width, if it is one of this builder."""
        if not isinstance(v, BuilderVertex):
            raise RequestError(f"{where}: {shown(v)} is no vertex; give what input, layer, concat or apply returned")
        if v.builder is not self:
            raise RequestError(f"{where}: {v.name!r} is a vertex of another builder; one model is written with one")
        return v.name, v.width

    def _own(self, name: str | None, title: str) -> str:
        """The name that was given, or one after what the vertex does."""
        title = title.strip("_")
        return self._unused(title if title.isidentifier() else "function") if name is None else self._free(name)

    def _free(self, name: Any) -> str:
        """A name that can be given to a new vertex."""
        if not isinstance(name, str) or not all(re.fullmatch(r"\w+", part) for part in name.split(".")):
            raise RequestError(f"name={shown(name)}: give letters, digits and underscores, with dots between modules")
        if reason := self._clash(name):
            raise RequestError(f"the name {name!r} {reason}; names are unique, so choose another")
        return name

    def _clash(self, name: str) -> str:
        if name in self._vertices:
            return "is taken in this graph"
        for other, v in self._vertices.items():
            if v.module is not None and (other.startswith(name + ".") or name.startswith(other + ".")):
                return f"would be a module around or inside of {other!r}"
        taken = next((part for part in name.split(".") if hasattr(_EMPTY, part) or keyword.iskeyword(part)), None)
        return f"has {taken!r} in it, which Python or every module has for itself" if taken else ""

    def _unused(self, title: str, sep: str = "_") -> str:
        return next(n for n in _numbered(title, sep) if not self._clash(n))


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Enter a module under its path, in modules that hold nothing else."""
    *around, last = path.split(".")
    for name in around:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _numbered(title: str, sep: str) -> Iterator[str]:
    yield title
    yield from (f"{title}{sep}{k}" for k in count(1 if sep == "_" else 2))


_EMPTY = GraphModel({}, torch.fx.Graph())
