"""Samples: the call of a node at other sizes, on random numbers, without code per operation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..graph import Graph
from ..trace import Node, Ref
from .sites import At, Site

HOMES = (torch, torch._C._nn, torch.nn.functional)  # functions that a forward calls, quicker than those of torch.ops


@dataclass(eq=False)
class Call:
    """A call at some sizes; `touch` writes what it reads, as the node before it in a model does.

    `idle` are seconds that it takes beside its work, which it takes alone and not as a part of a model.
    """

    key: str
    sizes: tuple[int, ...]
    run: Callable[[], Any] = field(default=lambda: None)
    activations: tuple[torch.Tensor, ...] = ()
    idle: float = 0.0

    def __call__(self) -> Any:
        return self.run()

    def touch(self) -> None:
        for x in self.activations:
            x.mul_(1.0)


class Samples:
    """Makes the calls of a graph's sites on one device.

    Every site has weights of its own, as in the model, so that they lie in the caches as they do there. Activations of
    all sites share their memory.
    """

    def __init__(self, graph: Graph, device: torch.device, dtype: torch.dtype | None) -> None:
        self.graph, self.device = graph, device
        tensors = [] if graph.model is None else [*graph.model.parameters(), *graph.model.buffers()]
        floats = [t.dtype for t in tensors if t.is_floating_point()]
        self.dtype = dtype or (floats[0] if floats else torch.get_default_dtype())
        self.pool: dict[Any, torch.Tensor] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        self.shapes: dict[tuple[str, tuple[int, ...]], At] = {}
        self.whole = _values(graph, device, self.dtype)  # values that are no floats, as the model makes them
        self.generator = torch.Generator(device=device).manual_seed(0)

    def call(self, site: Site, sizes: tuple[int, ...]) -> Call:
        """The call of a site at sizes; raises whatever torch raises where it cannot be run alone."""
        (node,), tensors = self._read(site, sizes)
        args, kwargs = arguments_of(node, tensors, self.device)
        function = self._function(site.key, node, args, kwargs)
        return Call(site.key, sizes, lambda: function(*args, **kwargs), self._touched(tensors))

    def _read(self, site: Site, sizes: tuple[int, ...]) -> tuple[tuple[Node, ...], dict[str, torch.Tensor]]:
        """The nodes of a site at sizes, and what they read."""
        at = (site.node.name, sizes)
        if at not in self.shapes:
            self.shapes[at] = site.at(sizes)
        nodes, shapes = self.shapes[at]
        return nodes, {name: self._tensor(site, name, shape, k) for k, (name, shape) in enumerate(shapes.items())}

    def _touched(self, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the nodes before it write."""
        return tuple(x for k, x in tensors.items() if k not in self.graph.trace.params and x.is_floating_point())

    def _tensor(self, site: Site, name: str, shape: tuple[int, ...], slot: int) -> torch.Tensor:
        known = self.whole.get(name)
        if known is not None and not isinstance(known, torch.dtype):
            return known if tuple(known.shape) == shape else torch.zeros(shape, dtype=known.dtype, device=self.device)
        dtype = known or self.dtype
        n = 1
        for s in shape:
            n *= s
        at = (site.node.name, name) if name in self.graph.trace.params else (slot, dtype)
        flat = self.pool.get(at)
        if flat is None or flat.numel() < n:
            flat = self.pool[at] = torch.empty(n, dtype=dtype, device=self.device)
            flat.uniform_(0.01, 0.1, generator=self.generator)  # of one sign: it serves as a variance, too
        if name not in site.last:
            return flat[:n].view(shape)
        return flat[:n].view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)

    def _function(self, key: str, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """The quickest function that makes what the node made."""
        if key in self.functions:
            return self.functions[key]
        wanted = [tuple(s) for s in node.shapes]
        packet = getattr(torch.ops.aten, node.op)
        for home in HOMES:
            function = getattr(home, node.op, None)
            if function is None:
                continue
            with contextlib.suppress(Exception):  # its arguments come in another order: the next one may do
                if _shapes(function(*args, **kwargs)) == wanted:
                    self.functions[key] = function
                    return function  # type: ignore[no-any-return]
        if _shapes(packet(*args, **kwargs)) != wanted:
            raise ValueError(f"{node.op} alone makes other shapes")
        self.functions[key] = packet
        return packet  # type: ignore[no-any-return]


def _shapes(out: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in (out if isinstance(out, (list, tuple)) else [out])]


def arguments_of(node: Node, tensors: Mapping[str, Any], device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by place, those that go by name alone by name; what is no argument of the operation is left out.

    `tensors` are what stands for values: tensors, or the nodes of a graph.
    """
    schema = _schema(node)
    args, kwargs = [], {}
    for a in schema.arguments:
        value = _value(node.args.get(a.name, a.default_value), tensors, device)
        if a.kwarg_only:
            if a.name in node.args:
                kwargs[a.name] = value
        else:
            args.append(value)
    return args, kwargs


def _schema(node: Node) -> Any:
    """The overload with just these argument names; raises AttributeError where torch has no such operation."""
    packet = getattr(torch.ops.aten, node.op)
    found = [getattr(packet, name)._schema for name in packet.overloads()]
    named = [[a.name for a in s.arguments] for s in found]
    own = [k for k in node.args if k not in ("width", "in_width") and not (k == "mask" and node.op.startswith("index"))]
    fits = [s for s, names in zip(found, named, strict=True) if set(own) <= set(names)]
    fits = [s for s in fits if _agrees(s, node)] or fits
    if not fits:
        raise AttributeError(f"aten.{node.op} takes no such arguments")
    return min(fits, key=lambda s: len(s.arguments))


def _agrees(schema: Any, node: Node) -> bool:
    """Whether tensors stand where this overload wants them."""
    for a in schema.arguments:
        wants = "Tensor" in str(a.type)
        given = node.args.get(a.name)
        is_ref = isinstance(given, Ref) or (isinstance(given, (list, tuple)) and any(isinstance(x, Ref) for x in given))
        if given is not None and wants != is_ref and not (wants and given == []):
            return False
    return True


def _value(a: Any, tensors: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(a, Ref):
        return tensors[a.name]
    if isinstance(a, (list, tuple)):
        return [_value(x, tensors, device) for x in a]
    if isinstance(a, str) and a.startswith("torch."):
        return getattr(torch, a[6:])
    if isinstance(a, str) and a.split(":")[0] in ("cpu", "cuda", "mps", "xpu"):
        return device
    return a


def _values(graph: Graph, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the model's own run makes: of floats the dtype, anything else (indices, masks) as it is."""
    found: dict[str, Any] = {}
    live = _inputs(graph, device, dtype)
    if graph.model is not None:
        own: dict[str, torch.Tensor] = dict(graph.model.named_parameters(remove_duplicate=False))
        own.update(graph.model.named_buffers(remove_duplicate=False))
        live.update((v, _cast(own[p.name], device, dtype)) for v, p in graph.trace.params.items() if p.name in own)
    last = {r: n.name for n in graph.trace.nodes for r in n.refs()}
    with torch.no_grad():
        for node in (n for n in graph.trace.nodes if not n.tag):
            with contextlib.suppress(Exception):  # then what it makes counts as floats, of its shape
                live[node.name] = run_node(node, live, device)
            for r in node.refs():
                if last[r] == node.name:
                    found[r] = _kept(live.pop(r, None))
    found.update((k, _kept(x)) for k, x in live.items())
    return {k: x for k, x in found.items() if x is not None}


def _kept(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return None
    return x.dtype if x.is_floating_point() or x.is_complex() else x


def run_node(node: Node, live: Mapping[str, Any], device: torch.device) -> Any:
    """What a node makes of these values."""
    if node.op == "getitem":
        return live[node.args["a"].name][node.args["b"]]
    args, kwargs = arguments_of(node, live, device)
    return getattr(torch.ops.aten, node.op)(*args, **kwargs)


def _cast(x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return x.detach().to(device, dtype) if x.is_floating_point() else x.detach().to(device)


def _inputs(graph: Graph, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The example's tensors by the names that the trace gives them."""
    if not graph.examples:
        return {}
    leaves = pytree.tree_leaves(graph.examples[0].like(torch.empty(0, dtype=dtype, device=device)))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    names = [k for k in graph.trace.inputs if ":" not in k]
    if [tuple(x.shape) for x in tensors] != [graph.trace.inputs[k] for k in names]:
        return {}
    return dict(zip(names, tensors, strict=True))


def forward_of(model: nn.Module, graph: Graph, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """The first call of a graph, made on a model of the same inputs."""
    args, kwargs = graph.examples[0].like(torch.empty(0, dtype=dtype, device=device))
    method = getattr(model, graph.examples[0].method)
    return lambda: method(*args, **kwargs)
