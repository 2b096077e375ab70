"""The latency of a graph as a cost: one table for each size, or pair of sizes, that nodes take their time by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..flow import Extent
from ..graph import Graph
from ..requests import Cost, Monomial, Table
from ..trace import layer_of
from .sites import Site, sites

NAME = "latency"


def cost_of(graph: Graph, ticks: Callable[[Site], np.ndarray], scale: int) -> Cost:
    """The sum over nodes; `ticks` gives whole numbers of at least 0 at all sizes of a node, `scale` of which make 1 ms.

    Nodes that go by the same sizes are one table; nodes of one kind share their numbers.
    """
    constant, shared = 0, dict[Any, np.ndarray]()
    sums: dict[tuple[bytes, ...], tuple[np.ndarray, tuple[Extent, ...], str]] = {}
    for site in sites(graph):
        known = (site.key, site.now)
        if known not in shared:
            shared[known] = ticks(site)
        values, extents = shared[known], tuple(a.extent for a in site.axes)
        if not extents:
            constant += int(values)
            continue
        names = tuple(np.sort(graph.coupling.unit_of[e.labels]).tobytes() for e in extents)
        if names[::-1] in sums and names not in sums:
            names, values, extents = names[::-1], values.T, extents[::-1]
        before = sums.get(names)
        vertex = layer_of(site.node.module) or site.node.name
        sums[names] = (values, extents, vertex) if before is None else (before[0] + values, *before[1:])
    terms = [Table(values, extents, vertex) for values, extents, vertex in sums.values()]
    return Cost(NAME, (Monomial(constant, ()), *terms), graph.coupling, scale, "ms")
