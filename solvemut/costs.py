"""COSTS: what a model uses, as sums of products of sizes. A cost is a function from a coupling to a `Cost`.

FLOPs count as torch.utils.flop_counter does: 2 per multiply-accumulate of convolutions, linear layers, matrix products
and attention. Each is exact for every plan: what it predicts is what a recount on the changed model gives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .constraints import Cost, Monomial
from .coupling import Coupling
from .flow import Extent
from .labels import FIXED, prod

COSTS: dict[str, Callable[[Coupling], Cost]] = {}


def cost(f: Callable[[Coupling], Cost]) -> Callable[[Coupling], Cost]:
    """Enter a cost under its function's name."""
    if f.__name__ in COSTS:
        raise ValueError(f"two costs called {f.__name__}")
    COSTS[f.__name__] = f
    return f


@cost
def params(coupling: Coupling) -> Cost:
    """Elements of all parameters; tied ones once, those that the forward does not read too."""
    monomials = []
    for value, p in coupling.trace.params.items():
        if p.kind == "parameter":
            extents = {d: coupling.sources.get((value, d)) for d in range(len(p.shape))}
            fixed = prod([n for d, n in enumerate(p.shape) if extents[d] is None])
            vertex = p.name.rpartition(".")[0] or p.name
            monomials.append(monomial(coupling, fixed, [e for e in extents.values() if e is not None], vertex))
    monomials += [Monomial(p.numel, (), p.name.rpartition(".")[0] or p.name) for p in coupling.trace.unused]
    return Cost("params", tuple(monomials), coupling)


@cost
def flops(coupling: Coupling) -> Cost:
    """Floating-point operations of one forward on the captured inputs."""
    works = (w for w in coupling.facts.works if not w.node.tag)  # of further calls only the couplings count
    monomials = (monomial(coupling, 2 * w.coefficient, w.extents, w.node.module or w.node.name) for w in works)
    return Cost("flops", tuple(monomials), coupling)


def monomial(coupling: Coupling, coefficient: int, extents: list[Extent] | tuple[Extent, ...], vertex: str) -> Monomial:
    """A product with the extents that cannot change multiplied out."""
    kept = []
    for e in extents:
        units = coupling.units(e)
        if (units == FIXED).all() or coupling.frozen[units].all() or _whole_per_row(e, units):
            coefficient *= e.now
        else:
            kept.append(e)
    return Monomial(coefficient, tuple(kept), vertex)


def _whole_per_row(e: Extent, units: np.ndarray) -> bool:
    """Rows of which each is one unit keep their length."""
    return e.per_row and bool((units == units[..., :1]).all())
