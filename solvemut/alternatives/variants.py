"""Variants: the network with modules in the place of layers, captured, and how its units are those of before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..costs import monomial
from ..flow import FIXED, Extent
from ..graph import Graph, inside
from ..remodel import Pairs, matched
from ..requests import Cost, Monomial, Table


def values_in(graph: Graph, paths: Sequence[str]) -> frozenset[str]:
    """What counts for modules: the nodes that they run, their own parameters, their tensors that no forward reads."""
    nodes, params = inside(graph.trace, paths)
    names = [k for p in paths for k in graph.model.get_submodule(p).state_dict(prefix=f"{p}.")]
    return nodes | params | frozenset(names)


@dataclass(frozen=True, eq=False)
class Variant:
    """The graph with modules in the place of layers, by path, and how its units are those of the graph as it is."""

    graph: Graph
    after: Graph
    paths: Mapping[str, str]  # with the option that each has

    @cached_property
    def values(self) -> dict[str, frozenset[str]]:
        """By path what counts for the module that stands there."""
        return {path: values_in(self.after, [path]) for path in self.paths}

    @cached_property
    def _pairs(self) -> list[tuple[str, Pairs]]:
        return list(matched(self.graph, self.after, list(self.paths)))

    @cached_property
    def _old(self) -> np.ndarray:
        """By class the class before; FIXED for what only the modules have, whose number stays."""
        found = np.full(self.after.coupling.n_units, FIXED)
        for _, (old, new) in self._pairs:
            found[new] = old
        return found

    @cached_property
    def stays(self) -> np.ndarray:
        """Bool per class before: whether it is coupled, or bound, as it was not."""
        before, after = self.graph.coupling, self.after.coupling
        found = np.zeros(before.n_units, dtype=bool)
        for _, (old, new) in self._pairs:
            apart = (self._old[new] != old) & (new != FIXED)
            found[old[apart]] = found[self._old[new[apart]]] = True  # several become one
            found[old[after.frozen[new]]] = True
        known = {_content(before, x, None) for x in _bonds(before)}
        for x in _bonds(after):
            if _content(after, x, self._old) not in known:
                for units in _units(after, x):
                    found[self._old[units]] = True
        found[FIXED] = False
        return found & ~before.frozen

    def terms(self, cost: Cost, path: str) -> Iterator[Monomial | Table]:
        """What the module at a path costs, over the sizes of the graph as it is; `cost` is of the graph after."""
        for m in (m for m in cost.monomials if m.of in self.values[path]):
            extents = tuple(self._translated(e) for e in m.extents)
            if isinstance(m, Table):
                yield Table(m.values, extents, m.vertex, of=m.of)
            else:
                yield monomial(self.graph.coupling, m.coefficient, extents, m.vertex, m.of)

    def _translated(self, e: Extent) -> Extent:
        label_of = self.graph.coupling.label_of
        return replace(e, labels=label_of[self._old[self.after.coupling.units(e)]], owner=self.graph.coupling)


def _bonds(coupling: Any) -> list[Any]:
    """All that binds sizes to each other."""
    return [*coupling.rows, *coupling.links, *coupling.divides, *coupling.facts.nonempty]


def _units(coupling: Any, bond: Any) -> list[np.ndarray]:
    if isinstance(bond, np.ndarray):
        return [coupling.units(bond)]
    return [bond.units] if hasattr(bond, "units") else [coupling.units(labels) for labels, _ in bond.parts]


def _content(coupling: Any, bond: Any, into: np.ndarray | None) -> tuple[Any, ...]:
    """What tells two bonds apart, by the classes that `into` has for those of its coupling."""
    units = [u if into is None else into[u] for u in _units(coupling, bond)]
    if isinstance(bond, np.ndarray):
        return ("nonempty", np.sort(units[0], axis=None).tobytes())
    if hasattr(bond, "units"):
        rows = sorted(np.sort(row).tobytes() for row in units[0])
        return ("rows", *rows, bond.removable, bond.grouped, bond.stays)
    parts = sorted((np.sort(u, axis=None).tobytes(), c) for u, (_, c) in zip(units, bond.parts, strict=True))
    numbers = [getattr(bond, k) for k in ("constant", "slack", "divisor", "remainder") if hasattr(bond, k)]
    return (type(bond).__name__, *parts, *numbers)
