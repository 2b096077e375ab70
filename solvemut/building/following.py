"""Following a forward: as a graph whose nodes are torch's own layers and functions, by proxies or by a run.

Both follow a copy of the model, so that nothing of it changes, and name layers and tensors by their paths in it.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .calls import Argument, placed, placeholders
from .modules import Apply, ByMode, Concat

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# Functions whose answer depends on what is in a tensor: Python that goes on by it is not a graph.
_ASKS = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item", "tolist", "numpy"}
_ASKS |= {"__array__", "equal", "allclose", "is_nonzero"}
_IN_PLACE = {"setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"}
_IN_PLACE |= {"iand", "ior", "ixor", "ilshift", "irshift"}


class Unfollowed(Exception):
    """This way of following does not lead through the forward."""


@dataclass
class Followed:
    """A graph, the tensors that the forward wrote down as constants, and the values that go with the mode."""

    graph: torch.fx.Graph
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    modes: dict[str, ByMode] = field(default_factory=dict)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module stays one node: torch's own layers, and operations of a builder."""
    home = type(module).__module__
    return isinstance(module, (Apply, Concat, ByMode)) or (
        home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)
    )


@contextlib.contextmanager
def unchanged() -> Iterator[Callable[[], None]]:
    """Random numbers stay as they were; gives a check that no context, such as no_grad, is open inside a forward."""

    def context() -> tuple[bool, ...]:
        return torch.is_grad_enabled(), *(torch.is_autocast_enabled(d) for d in ("cpu", "cuda"))

    def check() -> None:
        if context() != outside:
            raise CaptureError(
                "the forward runs a part under torch.no_grad, enable_grad or autocast, which a graph does not hold; "
                "take that out of the forward, or use detach()"
            )

    outside = context()
    with torch.random.fork_rng(devices=[]):
        yield check


# -- by proxies --------------------------------------------------------------------------------------------------------


class LayerTracer(torch.fx.Tracer):
    """torch.fx's tracer of a model inside of a module, called as `arguments` say."""

    def __init__(self, arguments: list[Argument], check: Callable[[], None]) -> None:
        super().__init__()
        self.arguments, self.check = arguments, check

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return "." in module_qualified_name and is_leaf(m)  # the model itself has no dot

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        self.check()
        return super().create_proxy(*args, **kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        nodes = placeholders(self.graph, self.arguments)
        args, kwargs = placed(self.arguments, {k: self.proxy(n) for k, n in nodes.items()})
        return (lambda root: root.model(*args, **kwargs)), [self.root]


class Around(nn.Module):
    """The model one level down: so its hooks run, and a forward that was put on the object is the one that is seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> None:
        raise NotImplementedError


def by_proxies(model: nn.Module, arguments: list[Argument]) -> Followed:
    """The graph by torch.fx's symbolic tracing; sizes stay open. Raises Unfollowed where the forward asks for one."""
    around = Around(model)
    before = {id(t) for t in pytree.tree_leaves([list(vars(m).values()) for m in around.modules()])}
    with unchanged() as check:
        drawn = torch.get_rng_state()
        try:
            graph = LayerTracer(arguments, check).trace(around)
        except CaptureError:
            raise
        except Exception as e:
            raise Unfollowed(f"{type(e).__name__}: {first_line(e)}") from e
        if not torch.equal(drawn, torch.get_rng_state()):
            raise Unfollowed("it draws random numbers whose size does not come from its inputs")
    constants = {k: t for k, t in vars(around).items() if isinstance(t, torch.Tensor) and id(t) not in before}
    constants |= {k: t for k, t in around.named_buffers(recurse=False) if id(t) not in before}
    if constants and (writing := next(filter(_writes, graph.nodes), None)) is not None:
        raise Unfollowed(
            f"it creates tensors whose size does not come from its inputs, and writes into some ({writing})"
        )
    return Followed(_renamed(graph), constants)


def _writes(n: torch.fx.Node) -> bool:
    """Whether an operation works in place: on a tensor that the graph holds as a constant, it would be seen again."""
    if n.op not in ("call_function", "call_method"):
        return False
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    return name.strip("_") in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or "out" in n.kwargs


def _renamed(graph: torch.fx.Graph) -> torch.fx.Graph:
    """The graph with paths that begin in the model."""
    out = torch.fx.Graph()
    nodes: dict[torch.fx.Node, torch.fx.Node] = {}
    for n in graph.nodes:
        target: Any = n.target
        named = n.op in ("call_module", "get_attr")
        if named:
            target = str(target).removeprefix("model.")
        args, kwargs = (torch.fx.map_arg(a, lambda m: nodes[m]) for a in (n.args, n.kwargs))
        nodes[n] = out.create_node(n.op, target, args, kwargs, None if named else n.name)  # type: ignore[arg-type]
    return out


# -- by a run ----------------------------------------------------------------------------------------------------------


class Recording(TorchFunctionMode):
    """Writes down each call of a torch function and each call of a leaf module, as nodes of a graph."""

    def __init__(self, check: Callable[[], None], named: dict[int, str]) -> None:
        super().__init__()
        self.followed = Followed(torch.fx.Graph())
        self.graph = self.followed.graph
        self.check, self.named = check, named
        self.nodes: dict[int, torch.fx.Node] = {}
        self._alive: list[Any] = []  # an id counts only while its tensor lives
        self._depth = 0

    def watch(self, module: nn.Module, path: str) -> None:
        """A leaf module becomes one node, whatever runs in it."""

        def enter(_: Any, args: Any, kwargs: Any) -> None:
            self._depth += 1

        def leave(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            self._depth -= 1
            if not self._depth:
                self.bind(out, self.graph.call_module(path, *self.said((args, kwargs))))

        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self._depth:
            return func(*args, **kwargs)
        if name in _ASKS:
            raise CaptureError(f"the forward goes on by what is in a tensor ({name}); a graph cannot")
        said = self.said((args, kwargs))
        out = func(*args, **kwargs)
        if name == "__setitem__" or any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(out)):
            self.bind(out, self._node(func, name, *said))
        return out

    def _node(self, func: Any, name: str, args: Any, kwargs: Any) -> torch.fx.Node:
        self.check()
        if name == "__get__":
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        if name == "__set__":
            raise CaptureError(f"the forward sets .{func.__self__.__name__} of a tensor; a graph cannot")
        if name.startswith("__") and (same := getattr(operator, name, None)) is not None and not kwargs:
            return self.graph.call_function(same, args)
        if getattr(torch.Tensor, name, None) == func:
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    def said(self, given: Any) -> Any:
        """Arguments with nodes for tensors."""
        return map_aggregate(given, lambda x: self._of(x) if isinstance(x, torch.Tensor) else x)

    def _of(self, x: torch.Tensor) -> torch.fx.Node:
        if id(x) not in self.nodes:
            path = self.named.get(id(x))
            if path is None:
                if isinstance(x, FakeTensor):
                    raise Unfollowed("it makes a tensor by a way that is not seen")
                path = f"constant_{len(self.followed.constants)}"
                self.followed.constants[path] = x
            self._keep(x, self.graph.get_attr(path))
        return self.nodes[id(x)]

    def _keep(self, x: torch.Tensor, node: torch.fx.Node) -> None:
        self.nodes[id(x)] = node
        self._alive.append(x)

    def bind(self, out: Any, node: torch.fx.Node) -> None:
        """What a node made: a tensor, or several in a sequence or a dict."""
        if isinstance(out, torch.Tensor):
            self._keep(out, node)
        elif isinstance(out, (tuple, list, dict)):
            for k, x in out.items() if isinstance(out, dict) else enumerate(out):
                if any(isinstance(t, torch.Tensor) for t in pytree.tree_leaves(x)):
                    self.bind(x, self.graph.call_function(operator.getitem, (node, k)))


def by_a_run(model: nn.Module, arguments: list[Argument]) -> Followed:
    """The graph of one run on tensors without numbers. Sizes are those of the example."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    named = _made_fake(model, mode)
    buffers = dict(model.named_buffers())
    with unchanged() as check:
        recording = Recording(check, named)
        for path, module in model.named_modules():
            if path and is_leaf(module):
                module.training = False  # it follows the mode when the graph is run
                recording.watch(module, path)
        nodes = placeholders(recording.graph, arguments)
        values = {a.name: pytree.tree_map_only(torch.Tensor, _copied(mode), a.value) for a in arguments}
        for name, value in values.items():
            recording.bind(value, nodes[name])
        args, kwargs = placed(arguments, values)
        try:
            with mode, recording:
                out = model(*args, **kwargs)
            recording.graph.output(recording.said(out))
        except (CaptureError, Unfollowed):
            raise
        except Exception as e:
            raise Unfollowed(f"{type(e).__name__}: {first_line(e)}") from e
    if assigned := [k for k, b in model.named_buffers() if buffers.get(k) is not b]:
        raise CaptureError(f"the forward assigns to the buffer {assigned[0]}; write into it, as by copy_(), instead")
    return recording.followed


def _made_fake(model: nn.Module, mode: FakeTensorMode) -> dict[int, str]:
    """Put tensors without numbers into a copy of a model; the paths of all its tensors by their ids."""
    fake: dict[int, torch.Tensor] = {}
    named: dict[int, str] = {}
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, t in list(held.items()):
                if not isinstance(t, torch.Tensor):
                    continue
                if held is not vars(module):
                    t = held[name] = fake.setdefault(id(t), mode.from_tensor(t.detach()))  # a tied tensor once
                named.setdefault(id(t), f"{path}.{name}".lstrip("."))
    return named


def _copied(mode: FakeTensorMode) -> Callable[[torch.Tensor], torch.Tensor]:
    """Each input as a tensor of its own, also where two are the same."""
    return lambda t: mode.from_tensor(t.detach().clone())


def first_line(e: Exception) -> str:
    """What went wrong, short enough to be a part of another message."""
    return str(e).strip().split("\n")[0][:300]
