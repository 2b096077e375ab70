"""Roofline: an analytic table, for where there is no device at hand."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import real, shown, whole
from ..errors import RequestError
from ..graph import Graph
from ..requests import Cost
from .cost import cost_of
from .groups import VIEWS
from .sites import Form, Site
from .table import TICKS

FREE = VIEWS | {"contiguous"}


@dataclass(frozen=True)
class Roofline:
    """What a device needs at best, as `roofline` makes it; `graph.latency` takes it like a measured table."""

    flops_per_s: float
    bytes_per_s: float
    overhead_s: float = 0.0
    element: int = 4

    def cost(self, graph: Graph, apart: Sequence[Container[str]] = ()) -> Cost:
        """The latency of a graph as a cost, in ms; nodes in each set of `apart` are terms of their own."""
        works: dict[str, list[Any]] = {}
        for w in graph.coupling.facts.works:
            works.setdefault(w.node.name, []).append(w)
        return cost_of(graph, lambda site: self._ticks(site, works.get(site.node.name, [])), TICKS, apart, self.cost)

    def _ticks(self, site: Site, works: Sequence[Any]) -> np.ndarray:
        coupling = site.graph.coupling
        if site.node.op in FREE:
            return np.zeros([n + 1 for n in site.now], dtype=np.int64)
        computed = np.zeros([n + 1 for n in site.now])
        for w in works:
            extents = site.forms(lambda times, w=w: [coupling.count(e, times) for e in w.extents])  # type: ignore[misc]
            computed += 2 * w.coefficient * _product(extents, site.now)
        moved = sum((_product(dims, site.now) for dims in site.tensors()), np.zeros_like(computed)) * self.element
        seconds = np.maximum(computed / self.flops_per_s, moved / self.bytes_per_s) + self.overhead_s
        return np.rint(np.maximum(0.0, seconds) * TICKS * 1000).astype(np.int64)


def roofline(flops_per_s: float, bytes_per_s: float, overhead_s: float = 0.0, element: int = 4) -> Roofline:
    """A table by computation: each operation takes the longer of its FLOPs and its bytes, and `overhead_s` besides.

    `element` is the bytes of a number. Views take nothing. RequestError unless the rates are above 0.

    >>> import torch, solvemut as sm
    >>> graph = sm.capture(torch.nn.Linear(100, 50), torch.ones(1, 100))
    >>> graph.latency(sm.roofline(flops_per_s=1e9, bytes_per_s=1e9, overhead_s=1e-6)).now  # 20800 bytes in all, in ms
    0.0218
    """
    rates = {"flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s}
    found = {k: real(x, f"{k}={shown(x)}", "give a rate above 0") for k, x in rates.items()}
    if min(found.values()) <= 0:
        raise RequestError(f"roofline: rates are above 0, not {shown(rates)}")
    overhead = real(overhead_s, f"overhead_s={shown(overhead_s)}", "give seconds of at least 0")
    if overhead < 0:
        raise RequestError(f"overhead_s={shown(overhead_s)}: give seconds of at least 0")
    return Roofline(**found, overhead_s=overhead, element=whole(element, f"element={shown(element)}", least=1))


def _product(dims: Sequence[Form], now: Sequence[int]) -> np.ndarray:
    """A product of linear forms at all sizes from 0 on."""
    out: np.ndarray = np.ones([n + 1 for n in now])
    for constant, *slopes in dims:
        value: np.ndarray = np.full([1] * len(now), float(constant))
        for axis, (slope, n) in enumerate(zip(slopes, now, strict=True)):
            value = value + float(slope) * np.arange(n + 1).reshape([-1 if k == axis else 1 for k in range(len(now))])
        out = out * np.maximum(value, 0.0)
    return out
