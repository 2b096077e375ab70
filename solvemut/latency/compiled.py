"""Compiled samples: groups of nodes as torch's compiler makes them, run alone, without what Dynamo adds to a call."""

from __future__ import annotations

import contextlib
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..errors import RequestError
from ..graph import Graph
from ..trace import Node
from .samples import Call, Samples, arguments_of
from .sites import Site

Function = Callable[..., Any]
TIMES = 30  # that a graph of next to nothing is run


class CompiledSamples(Samples):
    """Makes the calls of a compiled graph's sites on one device.

    What multiplies is called as in eager mode, on tensors whose channels lie last where it is a convolution: what does
    not lie so yet is moved with every call, as compiled code does. All else is compiled for its sizes.
    """

    def __init__(self, graph: Graph, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__(graph, device, dtype)
        self.compiled: dict[tuple[str, tuple[int, ...]], tuple[Function, float]] = {}  # with what its call takes idle
        self.notes: dict[str, str] = {}  # by key why it runs as in eager mode
        self.idle = 0.0

    def begin(self, laps: Callable[[Sequence[Call]], list[float]]) -> None:
        """Find out what a compiled call takes that does next to nothing; RequestError where nothing can be compiled."""
        graph = fx.Graph()
        graph.output((graph.call_function(torch.ops.aten.neg, (graph.placeholder("x"),)),))
        x = torch.ones(1, device=self.device, dtype=self.dtype)
        try:
            function = _inductor(graph, [x], {"force_disable_caches": True})
            function(x)
        except Exception as e:  # whatever torch raises: no C++ compiler, no Triton
            raise RequestError(
                f"measure_latency(compile=True): nothing can be compiled here ({_told(e)}); on a processor torch needs "
                "a C++ compiler (g++, or the one that CXX names), on a GPU Triton; compile=False measures without"
            ) from e
        call = Call("", (), lambda: function(x))
        self.idle = float(np.median(laps([call] * TIMES)))

    def call(self, site: Site, sizes: tuple[int, ...]) -> Call:
        """The call of a site at sizes; raises whatever torch raises where it cannot be run alone."""
        nodes, tensors = self._read(site, sizes)
        touched = self._touched(tensors)
        if site.works:
            return Call(site.key, sizes, self._extern(site, nodes[0], tensors), touched)
        if (site.key, sizes) not in self.compiled:
            self.compiled[site.key, sizes] = self.fused(site, nodes, tensors)
        (function, idle), args = self.compiled[site.key, sizes], list(tensors.values())
        return Call(site.key, sizes, lambda: function(*args), touched, idle)

    def _extern(self, site: Site, node: Node, tensors: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
        """What multiplies, as in eager mode, on tensors that lie as compiled code lays them."""
        args, kwargs = arguments_of(node, tensors, self.device)
        function = self._function(site.key, node, args, kwargs)
        if node.name not in site.last:
            return lambda: function(*args, **kwargs)
        return lambda: function(*[_channels_last(a) if isinstance(a, torch.Tensor) else a for a in args], **kwargs)

    def fused(self, site: Site, nodes: Sequence[Node], tensors: Mapping[str, torch.Tensor]) -> tuple[Function, float]:
        """A group, compiled, with its seconds beside its work; what cannot be runs as in eager mode, and is noted."""
        graph, args = fx.Graph(), list(tensors.values())
        at: dict[str, fx.Node] = {name: graph.placeholder(f"x{k}") for k, name in enumerate(tensors)}
        for n in nodes:
            if n.op == "getitem":
                at[n.name] = graph.call_function(operator.getitem, (at[n.args["a"].name], n.args["b"]))
                continue
            ordered, named = arguments_of(n, at, self.device)
            at[n.name] = graph.call_function(getattr(torch.ops.aten, n.op), tuple(ordered), named)
        graph.output(tuple(at[name] for name in site.made))
        graph.eliminate_dead_code()
        plain = fx.GraphModule(nn.Module(), graph)
        wanted = [n.shape for n in nodes if n.name in site.made]
        if [tuple(x.shape) for x in plain(*args)] != wanted:
            raise ValueError(f"{site.key} alone makes other shapes")
        if site.key in self.notes:
            return plain, 0.0
        try:
            function = _inductor(graph, args)
            function(*args)
        except Exception as e:  # whatever a compiler raises
            self.notes[site.key] = f"cannot be compiled alone, so that it is timed as in eager mode: {_told(e)}"
            return plain, 0.0
        return function, self.idle


def compiled_forward(forward: Callable[[], Any]) -> Callable[[], Any]:
    """A forward under torch.compile, for just its sizes.

    It has a code object of its own, to which Dynamo ties what it compiles: no other forward's code is looked through
    for it, nor counted against a limit, and all of it goes when this forward does.
    """
    assert isinstance(forward, types.FunctionType)
    code = forward.__code__.replace()
    own = types.FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
    return torch.compile(own, dynamic=False)


def every_copy_compiled(n: int) -> contextlib.AbstractContextManager[None]:
    """Where a forward of a model falls into parts, so many copies of it are compiled: none runs as in eager mode."""
    import torch._dynamo

    config = torch._dynamo.config  # by names that torch 2.6 knows, too
    limit = config.cache_size_limit + n
    return config.patch(cache_size_limit=limit, fail_on_cache_limit_hit=True)  # type: ignore[no-any-return]


def _inductor(graph: fx.Graph, args: Sequence[torch.Tensor], options: dict[str, Any] | None = None) -> Function:
    """The graph as torch's compiler makes it for just these sizes."""
    import torch._inductor

    plain = fx.GraphModule(nn.Module(), graph)
    return torch._inductor.compile(plain, list(args), options)  # type: ignore[no-any-return]


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """The tensor with its channels last in memory: a copy, unless it lies so."""
    if x.ndim not in (4, 5):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
