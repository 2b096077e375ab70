"""Floating-point operations, as torch.utils.flop_counter counts them."""

from __future__ import annotations

from ..coupling import Coupling
from ..requests import Cost
from ..trace import layer_of
from .base import cost, monomial


@cost
def flops(coupling: Coupling) -> Cost:
    """Floating-point operations of one forward on the captured inputs."""
    works = (w for w in coupling.facts.works if not w.node.tag)  # of further calls only the couplings count
    monomials = (
        monomial(coupling, 2 * w.coefficient, w.extents, layer_of(w.node.module) or w.node.name, w.node.name)
        for w in works
    )
    return Cost("flops", tuple(monomials), coupling)
