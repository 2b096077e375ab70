"""Elements of the parameters."""

from __future__ import annotations

from ..coupling import Coupling
from ..requests import Cost, Monomial
from .base import cost, elements, home, monomial


@cost
def params(coupling: Coupling) -> Cost:
    """Elements of all parameters; tied ones once, those that the forward does not read too."""
    own = {value: p for value, p in coupling.trace.params.items() if p.kind == "parameter"}
    read = [monomial(coupling, *elements(coupling, value), home(p), value) for value, p in own.items()]
    unread = [Monomial(p.numel, (), home(p), of=p.name) for p in coupling.trace.unused]
    return Cost("params", (*read, *unread), coupling)
