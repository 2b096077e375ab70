"""COSTS: what a model uses, as sums of products of sizes. A cost is a function from a coupling to a `Cost`.

Each is exact for every plan: what it predicts is what a recount on the changed model gives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..coupling import Coupling
from ..flow import FIXED, Extent, prod
from ..requests import Cost, Monomial
from ..trace import Param, layer_of

COSTS: dict[str, Callable[[Coupling], Cost]] = {}


def cost(f: Callable[[Coupling], Cost]) -> Callable[[Coupling], Cost]:
    """Enter a cost under its function's name."""
    if f.__name__ in COSTS:
        raise ValueError(f"two costs called {f.__name__}")
    COSTS[f.__name__] = f
    return f


def elements(coupling: Coupling, value: str, dims: int | None = None) -> tuple[int, list[Extent]]:
    """How many elements a parameter has, or its leading dims: what is fixed of that, and the sizes that are not."""
    shape = coupling.trace.params[value].shape[:dims]
    found = [coupling.sources.get((value, d)) for d in range(len(shape))]
    return prod([n for n, e in zip(shape, found, strict=True) if e is None]), [e for e in found if e is not None]


def home(p: Param) -> str:
    """The layer whose parameter it is, or its own name."""
    return layer_of(p.name.rpartition(".")[0]) or p.name


def monomial(
    coupling: Coupling, coefficient: int, extents: list[Extent] | tuple[Extent, ...], vertex: str, of: str = ""
) -> Monomial:
    """A product with the extents that cannot change multiplied out."""
    kept = []
    for e in extents:
        units = coupling.units(e)
        if (units == FIXED).all() or coupling.frozen[units].all() or _whole_per_row(e, units):
            coefficient *= e.now
        else:
            kept.append(e)
    return Monomial(coefficient, tuple(kept), vertex, of=of)


def _whole_per_row(e: Extent, units: np.ndarray) -> bool:
    """Rows of which each is one unit keep their length."""
    return e.per_row and bool((units == units[..., :1]).all())
