"""What a caller asked for, as a flat list of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..arguments import items, shown, takes_one
from ..errors import RequestError
from .budgets import Budget
from .sizes import Multiple, Relation

Request = Relation | Multiple | Budget


def owners(request: Request) -> list[Any]:
    """The couplings that a request speaks of."""
    if isinstance(request, Budget):
        return [request.cost.owner]
    sides = [request.left, request.right] if isinstance(request, Relation) else [request.size]
    return [e.owner for side in sides for e, _, _ in side.terms]


def flat(requests: Iterable[Any]) -> list[Request]:
    """Requests from nested lists, with anything else refused."""
    out: list[Request] = []
    for r in requests:
        if isinstance(r, (list, tuple)):
            out += flat(r)
        elif isinstance(r, (Relation, Multiple, Budget)):
            out.append(r)
        else:
            raise RequestError(f"{shown(r)} is no request; compare sizes or costs, as in graph['conv1'].out <= 32")
    return out


def asked(constraints: Any, graph: Any) -> list[Request]:
    """Requests as `prune` takes them: none, one, several, or a function from the graph to such."""
    if callable(constraints) and (why := takes_one(constraints)) is not None:
        raise RequestError(f"constraints={shown(constraints)}: a function is called with the graph; {why}")
    found = constraints(graph) if callable(constraints) else constraints
    if found is None or isinstance(found, (Relation, Multiple, Budget)):
        return flat([] if found is None else [found])
    several = None if isinstance(found, (str, bytes, Mapping)) else items(found)
    if several is None:
        raise RequestError(
            f"constraints={shown(found)}: give a list of requests, such as graph['conv1'].out <= 32, or a function "
            "from the graph to one"
        )
    return flat(several)
