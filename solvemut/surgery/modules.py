"""Layers that come and go in a model whose forward is code: beside a module that it calls, or in its place.

What comes after a module is run by a hook on it, so that every name in `state_dict` stays. What goes leaves an
nn.Identity behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..arguments import shown
from ..building import Width, after, expected
from ..errors import RequestError
from ..graph import Graph, Vertex
from ..tracing import like
from .operation import Changed
from .ports import Port, layer, shape_of, with_size

ADVICE = "make a graph of it with sm.editable(model, args), or write it with sm.Builder; there every edge can change"


class Behind:
    """A forward hook: what a module puts out goes through others."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, module: nn.Module, args: Any, out: Any) -> Any:
        for m in self.modules:
            out = m(out)
        return out


class InFront:
    """A hook before the forward: what a module is given goes through others first."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *rest = args
        for m in self.modules:
            first = m(first)
        return (first, *rest)


def insert(
    model: nn.Module,
    graph: Graph,
    target: Any,
    modules: Sequence[tuple[str, nn.Module]],
    consumers: Any,
    before: bool,
) -> Changed:
    """Modules behind or before a module that the forward calls, for all that read it."""
    vertex, host = _called(model, graph, target)
    if consumers is not None:
        raise RequestError(
            f"the forward of this {type(model).__name__} is code, so what comes after {vertex.name} comes for all that "
            f"read it; {ADVICE}"
        )
    source = vertex if not before else graph.inputs(vertex)[0] if len(graph.inputs(vertex)) == 1 else None
    if source is None:
        raise RequestError(f"{vertex.name} has {len(graph.inputs(vertex))} inputs; insert after the one that is meant")
    shape, dim = shape_of(graph, source), source.dim
    ports: list[Port] = []
    width, chain = Width(source.nout, dim), list[nn.Module]()
    for name, module in modules:
        wanted = expected(module)
        if len(wanted) == 1 and wanted[0][1].size not in (None, width.size):
            chain.append(_port(model, ports, with_size(shape, dim, width.size), dim, wanted[0][1].size, vertex.name))
            width = Width(wanted[0][1].size, dim)
        _register(model, name, module)
        chain.append(module)
        width = after(module, [(name, width)], name)
    if width.size not in (None, source.nout):
        chain.append(_port(model, ports, with_size(shape, dim, width.size), dim, source.nout, vertex.name))
    _hang(host, chain, before)
    return Changed(ports, [f"a layer came: {name}" for name, _ in modules])


def remove(model: nn.Module, graph: Graph, target: Any, reconnect: Any) -> Changed:
    """A module that the forward calls does nothing any more; one that was hung on another goes."""
    vertex, gone = _called(model, graph, target)
    if reconnect != "all":
        raise RequestError(f"the forward of this {type(model).__name__} is code, so its edges stay; {ADVICE}")
    sources = graph.inputs(vertex)
    if len(sources) != 1:
        raise RequestError(f"{vertex.name} has {len(sources)} inputs; {ADVICE}")
    ports: list[Port] = []
    name = vertex.name.partition("#")[0]
    place: nn.Module = nn.Identity()
    if sources[0].nout != vertex.nout:
        place = layer(shape_of(graph, sources[0]), int(sources[0].dim or 0), vertex.nout, like(model), vertex.name)
        ports.append(Port(name, vertex.name))
    hung = [hook for hook in _hooks(model) if any(m is gone for m in hook.modules)]
    for hook in hung:
        hook.modules = [place if m is gone else m for m in hook.modules]
    model.set_submodule(name, place)
    if hung and not ports:
        strip(model, [Port(name)])
    return Changed(ports, [f"a layer went: {vertex.name}"])


def strip(model: nn.Module, ports: Sequence[Port]) -> None:
    """Take the ports out; where the forward calls one by name, an nn.Identity takes its place."""
    for port in ports:
        gone = model.get_submodule(port.name)
        hung = [hook for hook in _hooks(model) if any(m is gone for m in hook.modules)]
        for hook in hung:
            hook.modules = [m for m in hook.modules if m is not gone]
        if hung:
            parent, _, leaf = port.name.rpartition(".")
            delattr(model.get_submodule(parent), leaf)
        else:
            model.set_submodule(port.name, nn.Identity())
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, h in hooks.items() if isinstance(h, (Behind, InFront)) and not h.modules]:
                del hooks[key]


def _called(model: nn.Module, graph: Graph, target: Any) -> tuple[Vertex, nn.Module]:
    """The vertex of a module that the forward calls, and the module."""
    if not isinstance(target, (str, Vertex)):
        raise RequestError(f"give a vertex or its name, not {shown(target)}")
    vertex = graph[target.name if isinstance(target, Vertex) else target]
    if vertex.layer is None:
        raise RequestError(
            f"{vertex.name} is no module that the forward of this {type(model).__name__} calls but code; {ADVICE}"
        )
    return vertex, model.get_submodule(vertex.name.partition("#")[0])


def _port(
    model: nn.Module, ports: list[Port], shape: Sequence[int], dim: int | None, size: int | None, where: str
) -> nn.Module:
    made = layer(shape, int(dim or 0), int(size or 0), like(model), where)
    name = next(n for k in range(len(ports) + 1000) if not hasattr(model, n := f"port_{k}"))
    model.add_module(name, made)
    ports.append(Port(name, where))
    return made


def _register(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    try:
        home = model.get_submodule(parent)
    except AttributeError as e:
        raise RequestError(f"{name!r} would lie in {parent!r}, and this model has no such module") from e
    if not leaf.isidentifier() or hasattr(home, leaf):
        raise RequestError(f"the name {name!r} is taken in this model, or no name; choose another")
    home.add_module(leaf, module)


def _hang(host: nn.Module, chain: list[nn.Module], before: bool) -> None:
    """What comes later stands nearer to the module that it was inserted beside."""
    kind: Any = InFront if before else Behind
    hooks = host._forward_pre_hooks if before else host._forward_hooks
    found = next((h for h in hooks.values() if isinstance(h, kind)), None)
    if found is not None:
        found.modules = [*found.modules, *chain] if before else [*chain, *found.modules]
    elif before:
        host.register_forward_pre_hook(InFront(chain))
    else:
        host.register_forward_hook(Behind(chain))


def _hooks(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for module in model.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        found += [h for h in hooks if isinstance(h, (Behind, InFront))]
    return found
