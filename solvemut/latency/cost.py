"""The latency of a graph as a cost: one table for each size, or pair of sizes, that nodes take their time by."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from ..flow import Extent
from ..graph import Graph
from ..requests import Cost, Monomial, Table
from ..trace import layer_of
from .groups import timed_sites
from .sites import Site

NAME = "latency"


def cost_of(
    graph: Graph,
    ticks: Callable[[Site], np.ndarray],
    scale: int,
    apart: Sequence[Container[str]],
    again: Any,
    compiled: bool = False,
) -> Cost:
    """The sum over nodes; `ticks` gives whole numbers of at least 0 at all sizes of a node, `scale` of which make 1 ms.

    Nodes that go by the same sizes are one table, unless they are in different sets of `apart`; nodes of one kind share
    their numbers. With `compiled` it is the sum over the groups that a compiler makes of nodes; one that is partly in a
    set is in none. `again` is how the same cost of another graph is found.
    """
    constants, shared = dict[int, tuple[int, str]](), dict[Any, np.ndarray]()
    sums: dict[Any, tuple[np.ndarray, tuple[Extent, ...], str, str]] = {}
    for site in timed_sites(graph, compiled):
        kind = (site.key, site.now)
        if kind not in shared:
            shared[kind] = ticks(site)
        values, extents = shared[kind], tuple(a.extent for a in site.axes)
        part, of = _part(site, apart)
        if not extents:
            before = constants.get(part, (0, of))
            constants[part] = (before[0] + int(values), before[1])
            continue
        names = tuple(np.sort(graph.coupling.unit_of[e.labels]).tobytes() for e in extents)
        if (part, names[::-1]) in sums and (part, names) not in sums:
            names, values, extents = names[::-1], values.T, extents[::-1]
        vertex = layer_of(site.node.module) or site.node.name
        known = sums.get((part, names), (np.zeros_like(values), extents, vertex, of))
        sums[part, names] = (known[0] + values, *known[1:])
    terms = [Table(values, extents, vertex, of=of) for values, extents, vertex, of in sums.values()]
    fixed = [Monomial(n, (), of=of) for n, of in constants.values()]
    return Cost(NAME, (*fixed, *terms), graph.coupling, scale, "ms", again)


def _part(site: Site, apart: Sequence[Container[str]]) -> tuple[int, str]:
    """The set that a site lies in (-1: none), and a node that says so."""
    names = [n.name for n in site.nodes]
    part = next((k for k, nodes in enumerate(apart) if all(n in nodes for n in names)), -1)
    outside = (n for n in names if not any(n in nodes for nodes in apart))
    return part, names[0] if part >= 0 else next(outside, "")
