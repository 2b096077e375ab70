"""What new slices hold, and whether the outputs stay as they were.

A new unit is made with small random values, and read with zeros: so nothing that reads it sees it, outputs stay, and
gradients reach it all the same. Or it is a copy of an old one (see `copying`), which what reads both sees as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..coupling import Coupling
from ..rules import OPS
from ..trace import Ref
from .copying import divided

DRAWN = "drawn"  # as the layer draws its values at first


def fills_of(coupling: Coupling, index: Mapping[tuple[str, int], np.ndarray]) -> dict[str, dict[int, Any]]:
    """By parameter name and dim what the new slices of a change hold: a number, or DRAWN."""
    grown = [key for key, i in index.items() if (i < 0).any()]
    summed = divided(coupling) if grown else set()
    kinds = _kinds(coupling) if grown else {}
    out: dict[str, dict[int, Any]] = {}
    for value, dim in grown:
        fill = 0.0 if (value, dim) in summed else kinds.get(value, DRAWN)
        p = coupling.trace.params[value]
        for name in (p.name, *p.aliases):
            out.setdefault(name, {})[dim] = fill
    return out


def _kinds(coupling: Coupling) -> dict[str, Any]:
    """By parameter what the first operation that reads it wants of new slices."""
    found: dict[str, Any] = {}
    for node in coupling.trace.nodes:
        for name, arg in node.args.items():
            if isinstance(arg, Ref) and arg.name in coupling.trace.params and node.op in OPS:
                found.setdefault(arg.name, OPS[node.op].fill.get(name, DRAWN))
    return found


def alters(coupling: Coupling, times: np.ndarray) -> tuple[str, ...]:
    """Why a change may alter the outputs, one line each; nothing if they stay as they were."""
    times = np.asarray(times).astype(np.int64)
    gone, grown = times == 0, times > 1
    gone[0] = grown[0] = False
    told = ["units go"] if gone.any() else []
    for fact in (*coupling.facts.notes, *coupling.facts.mixed):
        units = coupling.units(fact.labels)
        if grown[units].any() and fact.node is not None:
            told.append(f"{fact.node.op} sees the new units: {fact.node.module or fact.node.name}")
    return tuple(dict.fromkeys(told))
