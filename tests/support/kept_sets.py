"""Every set of units that a plan could keep, for networks small enough to try them all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np


def every_kept(graph: Any) -> Iterator[np.ndarray]:
    """All sets of units that leave no layer empty, and as many in every row that stays."""
    coupling = graph.coupling
    free = np.flatnonzero(~coupling.frozen)
    layers = [np.unique(coupling.units(e)) for e in coupling.sources.values()]
    for bits in itertools.product([False, True], repeat=len(free)):
        kept = coupling.frozen.copy()
        kept[free] = bits
        if all(kept[units].any() for units in layers) and rows_fit(coupling, kept):
            yield kept


def rows_fit(coupling: Any, kept: np.ndarray) -> bool:
    gone: dict[str, tuple[bool, ...]] = {}
    for rows in coupling.rows:
        n = kept[rows.units].sum(axis=1)
        empty = tuple((n == 0).tolist())
        if len(set(n[n > 0])) != 1 or (any(empty) and not rows.removable) or gone.setdefault(rows.key, empty) != empty:
            return False
    return True
