"""Which units can be copied: new ones that do as they do, while all that reads them shares its weights among them.

Every parameter that makes the unit repeats its slices for the copies; every weight that products are summed over
divides its slices among the unit and its copies. So no slice may have to do both, and what is divided must be a weight
as it stands, not what another is computed from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..coupling import Coupling
from ..flow import FIXED
from ..trace import Node

# Operations that only pass on the numbers of a weight
MOVES = frozenset(
    ("permute", "transpose", "t", "numpy_T", "swapaxes", "swapdims", "movedim", "mT", "T", "view", "reshape")
    + ("unsqueeze", "squeeze", "contiguous", "alias", "detach", "clone")
)
# Tensors that a forward creates with the same number everywhere
EVEN = frozenset(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"))

Sources = Mapping[int, Sequence[int]]


def divided(coupling: Coupling) -> set[tuple[str, int]]:
    """The parameter dims along which products are summed: what copies read is divided among them and their source."""
    summed = np.zeros(len(coupling.unit_of), dtype=bool)
    for fact in coupling.facts.summed:
        summed[fact.labels] = True
    summed[FIXED] = False
    return {key for key, e in coupling.sources.items() if key[0] in coupling.trace.params and summed[e.labels].any()}


def copyable(coupling: Coupling, sources: Sources) -> tuple[dict[int, Sequence[int]], tuple[str, ...]]:
    """Of the units to be copied those that can be, and notes on the others, which are drawn."""
    wanted = [unit for unit, copied in sources.items() if copied]
    why: dict[int, str] = {}
    for key, told in _hindered(coupling).items():
        for unit in np.unique(coupling.units(coupling.sources[key])).tolist():
            why.setdefault(unit, told)
    notes = dict.fromkeys(f"new units are drawn, not copied: {why[u]}" for u in wanted if u in why)
    return {u: sources[u] for u in wanted if u not in why}, tuple(notes)


def _hindered(coupling: Coupling) -> dict[tuple[str, Any], str]:
    """The sources of labels whose units cannot be copied, and why."""
    found: dict[tuple[str, Any], str] = {}
    nodes = {n.name: n for n in coupling.trace.nodes}
    for name, path in coupling.sources:
        if name in nodes and nodes[name].op not in EVEN:
            found[name, path] = f"{nodes[name].op} gives each of them numbers of its own: {nodes[name].at()}"
    readers: dict[str, list[Node]] = {}
    for node in coupling.trace.nodes:
        for ref in node.refs():
            readers.setdefault(ref, []).append(node)
    for value, dim in divided(coupling):
        if (other := _otherwise(coupling, readers, value, dim)) is not None:
            name = coupling.trace.params[value].name
            found[value, dim] = f"{name} is not only summed over along dim {dim}: {other.at()}"
    return found


def _otherwise(coupling: Coupling, readers: Mapping[str, Sequence[Node]], value: str, dim: int) -> Node | None:
    """A node that does something else with a weight than to sum products along this dim."""
    labels = coupling.sources[value, dim].labels
    moved = [value]
    for name in moved:
        moved += [n.name for n in readers.get(name, ()) if n.op in MOVES]
    sums = [f for f in coupling.facts.summed if f.value in moved and np.isin(f.labels, labels).any()]
    fine = {f.node.name for f in sums}
    rest = (n for name in moved for n in readers.get(name, ()) if n.op not in MOVES and n.name not in fine)
    return next(rest, None)
