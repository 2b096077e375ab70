"""Parts: which operations of a trace each node of a torch.fx graph made, so that a change costs what it touches.

A `Part` is what one node of the graph did: its operations, the values it read and the one it made. Where a graph falls
into such parts, the trace of a changed graph is put together from those that are still there and from short captures of
the new ones (`spliced`), and a plan is held against just the layers that it changes (`parts_agree`). Where it does not
(plain numbers between nodes, a layer called twice, several calls captured), both say so with None or False, and the
whole model is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..trace import Node, Trace
from .modules import zeros

_LINE = re.compile(r"<eval_with_key>[^:]*:\d+: (\w+) = ")  # of the code that torch.fx generates
_HOMES = ("_operator", "torch", "torch.nn.functional", "torch._C._nn")
CALLS = ("call_module", "call_function", "call_method")


@dataclass(frozen=True)
class Part:
    """What one node of a graph did: its operations, the values it read, argument by argument, and the one it made."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    value: str


def node_name(node: Node) -> str | None:
    """The name of the torch.fx node whose generated line made an operation outside of any module."""
    found = None if node.module else _LINE.match(node.source)
    return found[1] if found else None


def read_by(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes that a node of a graph reads, in order, each as often as it is read."""
    found: list[torch.fx.Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
    return found


def form(node: torch.fx.Node) -> tuple[Any, ...]:
    """The arguments of a node, its inputs by number: the first that is read, the second, ..."""
    read = list(dict.fromkeys(read_by(node)))
    return torch.fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{read.index(n)}")  # type: ignore[return-value]


def parts_of(graph: torch.fx.Graph, trace: Trace) -> dict[str, Part] | None:
    """By name of each node of a graph what it did in a trace; None where the trace does not fall into such parts."""
    made = _operations(graph, trace)
    if made is None or any(n.tag for n in trace.nodes):
        return None
    value_of_name = {a: value for value, p in trace.params.items() for a in (p.name, *p.aliases)}
    inputs, parts = iter(trace.inputs), dict[str, Part]()
    for node in graph.nodes:
        read = [parts[n.name].value for n in read_by(node) if n.name in parts]
        if len(read) != len(read_by(node)):
            return None
        if node.op in CALLS:
            part = _part(tuple(made.get(node.name, ())), read, trace)
        elif node.op == "output":
            continue
        else:
            value = next(inputs, None) if node.op == "placeholder" else value_of_name.get(str(node.target))
            part = None if value is None else Part((), (), value)
        if part is None:
            return None
        parts[node.name] = part
    return parts


def _operations(graph: torch.fx.Graph, trace: Trace) -> dict[str, list[Node]] | None:
    """The operations by the name of the node that made them: by its module, or by the line of the generated code."""
    calls: dict[str, list[str]] = {}
    for n in graph.nodes:
        if n.op == "call_module":
            calls.setdefault(str(n.target), []).append(n.name)
    if any(len(names) > 1 for names in calls.values()):
        return None
    found: dict[str, list[Node]] = {}
    for node in trace.nodes:
        name = node_name(node)
        path = node.module
        while path and path not in calls:
            path = path.rpartition(".")[0]
        if path:
            name = calls[path][0]
        if name is None:
            return None
        found.setdefault(name, []).append(node)
    return found


def _part(nodes: tuple[Node, ...], read: Sequence[str], trace: Trace) -> Part | None:
    own = {n.name for n in nodes}
    refs = {r for n in nodes for r in n.refs()}
    if not refs <= own | set(read) | set(trace.params):
        return None
    ends = [n.name for n in nodes if n.name not in refs]
    if not nodes and len(set(read)) == 1:
        return Part((), tuple(read), read[0])  # it passes its input on
    return Part(nodes, tuple(read), ends[0]) if len(ends) == 1 else None


# -- what a module is, sizes apart -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A trace that a graph was held against, and what it was then: its nodes, and what is plain of its modules."""

    trace: Trace
    nodes: tuple[Any, ...]
    modules: Mapping[str, tuple[Any, ...]]


def seen(model: nn.Module, trace: Trace) -> Seen | None:
    """What `parts_agree` compares; None for a model that is no graph."""
    return Seen(trace, _nodes(model.graph), _modules(model)) if isinstance(model, torch.fx.GraphModule) else None


def _nodes(graph: torch.fx.Graph) -> tuple[Any, ...]:
    return tuple((n.name, n.op, n.target, repr(form(n))) for n in graph.nodes)


def _modules(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {path: (_kind(m), *_plain(vars(m))) for path, m in model.named_modules()}


def _kind(module: nn.Module) -> type:
    """Its class; torch.fx makes one for every graph."""
    return torch.fx.GraphModule if isinstance(module, torch.fx.GraphModule) else type(module)


def _plain(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(attributes.items()):
        if name[:1] != "_" and name != "training" and isinstance(value, (int, float, str, tuple, torch.Size)):
            yield name, value
        elif callable(value) or name in ("arguments", "keywords"):
            yield name, id(value) if callable(value) else repr(value)
        elif name == "_parameters":
            yield name, tuple(k for k, p in value.items() if p is not None)


# -- a plan held against the layers that it changes --------------------------------------------------------------------


def parts_agree(model: nn.Module, before: Seen, after: Trace) -> bool:
    """Whether each layer that changes sizes is known to run at its new ones, and each other one to be as it was.

    Only torch's own layers and functions are known to do nothing with sizes that their operations do not show; with
    others changing, or where the graph does not fall into parts, the answer is False.
    """
    if not isinstance(model, torch.fx.GraphModule) or _nodes(model.graph) != before.nodes:
        return False
    parts = parts_of(model.graph, after)
    if parts is None:
        return False
    old = {n.name: n for n in before.trace.nodes}
    now, changed = _modules(model), set[str]()
    for node in model.graph.nodes:
        if node.op not in CALLS:
            continue
        part = parts[node.name]
        if all(_same(old.get(n.name), n, before.trace, after) for n in part.nodes):
            continue
        changed.add(str(node.target))
        if not _runs(model, node, part, after):
            return False
    kept = {k: v for k, v in before.modules.items() if k not in changed}
    return before.modules.keys() == now.keys() and all(now[k] == v for k, v in kept.items())


def _same(old: Node | None, new: Node, before: Trace, after: Trace) -> bool:
    """Whether an operation has the sizes it had."""
    if old is None or old.shapes != new.shapes or old.args != new.args:
        return False
    return all(before.shape(r) == after.shape(r) for r in new.refs())


def _runs(model: torch.fx.GraphModule, node: torch.fx.Node, part: Part, after: Trace) -> bool:
    """Whether a node makes a value of the foretold shape of inputs of the foretold shapes."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not _is_known(module if module is not None else node.target):
        return False
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = () if module is None else (*module.named_parameters(), *module.named_buffers())
    fake: dict[str, torch.Tensor] = {k: mode.from_tensor(t.detach()) for k, t in tensors}
    with mode, torch.no_grad():
        given = zeros(model, (after.shape(v) for v in part.inputs))
        run = None if module is None else partial(torch.func.functional_call, module, fake)
        try:
            out = called(node, given, run)
        except Exception:
            return False
    return isinstance(out, torch.Tensor) and tuple(out.shape) == after.shape(part.value)


def called(node: torch.fx.Node, inputs: Sequence[torch.Tensor], run: Callable[..., Any] | None) -> Any:
    """What a node makes of inputs; `run` stands for the module that it calls."""
    given = iter(inputs)
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: next(given))
    if node.op == "call_method":
        return getattr(torch.Tensor, str(node.target))(*args, **kwargs)
    function: Any = node.target
    return function(*args, **kwargs) if run is None else run(args, kwargs)


def _is_known(called: Any) -> bool:
    """Whether it is a layer, a function or a method of torch's, or such a function as a module; without hooks."""
    if isinstance(called, str):
        return hasattr(torch.Tensor, called)
    if not isinstance(called, nn.Module):
        return getattr(called, "__module__", None) in _HOMES
    function, home = getattr(called, "function", None), type(called).__module__
    own = home.startswith("solvemut.") and (function is None or _is_known(function))
    known = own or home.startswith("torch.nn.modules.")
    return known and not called._forward_hooks and not called._forward_pre_hooks and not list(called.children())
