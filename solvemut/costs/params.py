"""Elements of the parameters."""

from __future__ import annotations

from ..coupling import Coupling
from ..flow import prod
from ..requests import Cost, Monomial
from ..trace import layer_of
from .base import cost, monomial


@cost
def params(coupling: Coupling) -> Cost:
    """Elements of all parameters; tied ones once, those that the forward does not read too."""
    monomials = []
    for value, p in coupling.trace.params.items():
        if p.kind == "parameter":
            extents = {d: coupling.sources.get((value, d)) for d in range(len(p.shape))}
            fixed = prod([n for d, n in enumerate(p.shape) if extents[d] is None])
            vertex = layer_of(p.name.rpartition(".")[0]) or p.name
            monomials.append(monomial(coupling, fixed, [e for e in extents.values() if e is not None], vertex))
    monomials += [Monomial(p.numel, (), layer_of(p.name.rpartition(".")[0]) or p.name) for p in coupling.trace.unused]
    return Cost("params", tuple(monomials), coupling)
