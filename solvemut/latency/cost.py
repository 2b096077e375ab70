"""The latency of a graph as a cost: one table for each size, or pair of sizes, that nodes take their time by."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from ..flow import Extent
from ..graph import Graph
from ..requests import Cost, Monomial, Table
from ..trace import layer_of
from .sites import Site, sites

NAME = "latency"


def cost_of(
    graph: Graph, ticks: Callable[[Site], np.ndarray], scale: int, apart: Sequence[Container[str]], again: Any
) -> Cost:
    """The sum over nodes; `ticks` gives whole numbers of at least 0 at all sizes of a node, `scale` of which make 1 ms.

    Nodes that go by the same sizes are one table, unless they are in different sets of `apart`; nodes of one kind share
    their numbers. `again` is how the same cost of another graph is found.
    """
    constants, shared = dict[int, tuple[int, str]](), dict[Any, np.ndarray]()
    sums: dict[Any, tuple[np.ndarray, tuple[Extent, ...], str, str]] = {}
    for site in sites(graph):
        kind = (site.key, site.now)
        if kind not in shared:
            shared[kind] = ticks(site)
        values, extents = shared[kind], tuple(a.extent for a in site.axes)
        part = next((k for k, nodes in enumerate(apart) if site.node.name in nodes), -1)
        if not extents:
            before = constants.get(part, (0, site.node.name))
            constants[part] = (before[0] + int(values), before[1])
            continue
        names = tuple(np.sort(graph.coupling.unit_of[e.labels]).tobytes() for e in extents)
        if (part, names[::-1]) in sums and (part, names) not in sums:
            names, values, extents = names[::-1], values.T, extents[::-1]
        vertex = layer_of(site.node.module) or site.node.name
        known = sums.get((part, names), (np.zeros_like(values), extents, vertex, site.node.name))
        sums[part, names] = (known[0] + values, *known[1:])
    terms = [Table(values, extents, vertex, of=of) for values, extents, vertex, of in sums.values()]
    fixed = [Monomial(n, (), of=of) for n, of in constants.values()]
    return Cost(NAME, (*fixed, *terms), graph.coupling, scale, "ms", again)
