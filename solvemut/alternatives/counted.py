"""Counted: costs where branches may go and layers have options: what counts when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..depth import Removable
from ..errors import RequestError
from ..graph import Graph
from ..requests import Budget, Cost, Monomial, Switch, Table
from .offered import Alternatives
from .options import COUNTED
from .variants import values_in


def switched(graph: Graph, cost: Cost, removable: Sequence[Removable], alternatives: Alternatives | None) -> Cost:
    """A cost whose terms in branches count only where these stay, and those in layers only where these are as they are.

    What stands in the place of a layer counts where it is chosen. RequestError for a cost that cannot be counted so.
    """
    choices = [] if alternatives is None else list(alternatives.choices.values())
    if cost.name not in COUNTED:
        what = "branches may go" if removable else "layers have alternatives"
        raise RequestError(f"a budget on {cost.name}: where {what}, budgets are on {', '.join(COUNTED)}")
    larger = sorted(removable, key=lambda r: -len(r.branch.nodes))  # what lies in another counts as its own
    within = {x: r.switch for r in larger for x in values_in(graph, r.branch.modules)}
    within |= {x: c.own for c in choices for x in c.values}
    regions = [c.values for c in choices] + [r.branch.nodes for r in reversed(larger)]
    own = graph.cost(cost.name) if cost.again is None else cost.again(graph, regions)
    terms: list[Any] = [(within.get(m.of), Fraction(1), m) for m in own.monomials]
    terms += [] if alternatives is None else alternatives.terms(own)
    unit = math.lcm(1, *(factor.denominator for _, factor, _ in terms))
    found = tuple(_scaled(m, int(factor * unit), when) for when, factor, m in terms)
    return replace(cost, monomials=found, scale=cost.scale * unit, again=None)


def _scaled(m: Monomial | Table, factor: int, when: Switch | None) -> Monomial | Table:
    if isinstance(m, Table):
        fits = m.values.dtype != object and int(np.abs(m.values).max(initial=0)) * factor < 2**62
        return replace(m, values=(m.values if fits else m.values.astype(object)) * factor, when=when)
    return replace(m, coefficient=m.coefficient * factor, when=when)


def budgets_of(requests: Sequence[Any], stated: Callable[[Cost], Cost]) -> list[Any]:
    """Requests, with budgets on costs as `stated` has them."""
    out = []
    for r in requests:
        if isinstance(r, Budget):
            cost = stated(r.cost)
            r = Budget(cost, r.limit * (cost.scale // r.cost.scale), r.sense, r)
        out.append(r)
    return out
