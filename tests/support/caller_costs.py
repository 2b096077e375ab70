"""Costs that a caller builds over part of a layer."""

from __future__ import annotations

from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
from nets import NETS
from oracles import randomise

import solvemut as sm
from solvemut.flow import Extent
from solvemut.requests import Cost, Monomial


def graph_of(name: str) -> Any:
    n = NETS[name]
    return sm.capture(randomise(n.model()), n.args(), n.kw())


def part(graph: Any, vertex: str, positions: Any) -> Extent:
    """Some positions of a layer's output."""
    ((extent, _, _),) = graph[vertex].out.terms
    return Extent(extent.labels[positions], owner=graph.coupling)


def cost_of(graph: Any, *factors: Extent, name: str = "part") -> Cost:
    return Cost(name, (Monomial(1, factors, "mine"),), graph.coupling)
