"""Coupling: from what the rules said to coupled units.

Unit classes are the connected components of all equalities: one class is one unit, kept or removed everywhere at once.
What is left to decide about classes are counts: `links` (linear equations between numbers of kept units) and `rows`
(groups of a grouped convolution, channels under a GroupNorm: every row that stays keeps equally many units).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..flow import FIXED, Extent, Facts, Flow, Labels
from ..rules import apply_rule
from ..trace import Trace
from .analysis import Analysis
from .links import AttributeUse, Divides, Link, Rows, components, row_of_units


@dataclass(frozen=True)
class Group:
    """A coupled group: units that the same layers make, with the parameter dims that change together, and why."""

    index: int
    units: int
    sources: tuple[tuple[str, Any], ...]  # (parameter, dim) that make these units
    dims: tuple[tuple[str, Any], ...]  # every (parameter, dim) with such units
    origins: tuple[str, ...]  # nodes that couple the sources with each other
    frozen: str = ""


@dataclass(frozen=True, eq=False)
class Coupling:
    """The coupled units of a trace.

    `unit_of` maps labels to classes; class 0 is all that is fixed. `frozen[c]` tells whether class c must stay, and
    `reasons[c]` why. `present[c]` tells whether it exists now (None: all do): slots that may come are labels like any
    other, of a trace whose sizes count them, and what they select comes out as -1 in index maps.
    """

    trace: Trace
    facts: Facts
    values: Mapping[str, Labels | list[Labels]]
    sources: Mapping[tuple[str, Any], Extent]
    produced: frozenset[tuple[str, Any]]
    unit_of: np.ndarray
    frozen: np.ndarray
    reasons: Mapping[int, str]
    links: tuple[Link, ...]
    rows: tuple[Rows, ...]
    uses: tuple[AttributeUse, ...]
    group_of: np.ndarray  # class -> index of its group, -1 for what is fixed
    groups: tuple[Group, ...] = field(default=())
    divides: tuple[Divides, ...] = ()
    present: np.ndarray | None = None

    @property
    def n_units(self) -> int:
        return len(self.frozen)

    def positions(self, key: tuple[str, Any]) -> np.ndarray:
        """Where each label of a source stands in the tensor that exists now, along its last axis; -1 for a slot."""
        labels = self.sources[key].labels
        if self.present is None:
            return np.broadcast_to(np.arange(labels.shape[-1]), labels.shape)
        here = self.present[self.unit_of[labels]]
        return np.where(here, np.cumsum(here, axis=-1) - 1, -1)

    def is_like(self, other: Any) -> bool:
        """Whether another coupling is of the same model at the same sizes, so that its labels mean the same units."""
        if other is self:
            return True
        return (
            isinstance(other, Coupling)
            and np.array_equal(self.unit_of, other.unit_of)
            and self.trace.params == other.trace.params
            and [(n.name, n.op, n.shapes) for n in self.trace.nodes]
            == [(n.name, n.op, n.shapes) for n in other.trace.nodes]
        )

    @cached_property
    def label_of(self) -> np.ndarray:
        """A label of each class, the first that it has."""
        return np.asarray(np.unique(self.unit_of, return_index=True)[1])

    @cached_property
    def row_of(self) -> tuple[np.ndarray, ...]:
        """For each of `rows` the row of every class, -1 outside."""
        return tuple(row_of_units(r, self.n_units) for r in self.rows)

    def labels_in(self, value: str) -> list[np.ndarray]:
        """The labels of a tensor that a node makes, or of several, flat, an array for each factor; no parameter's."""
        found = self.values.get(value)
        tensors = found if isinstance(found, list) else [] if found is None else [found]
        return [f.labels.reshape(-1) for labels in tensors for f in labels.factors]

    def units(self, extent: Extent | np.ndarray) -> np.ndarray:
        """The classes of labels, same shape."""
        return self.unit_of[extent.labels if isinstance(extent, Extent) else extent]

    def count(self, extent: Extent, kept: np.ndarray) -> int:
        """The size of an extent when `kept` (bool per class) stays."""
        mask = kept[self.units(extent)]
        if not extent.per_row:
            return int(mask.sum())
        counts = mask.reshape(-1, mask.shape[-1]).sum(axis=1)
        return int(counts.max(initial=0))

    def why_frozen(self, extent: Extent) -> str:
        """Why an extent cannot change; empty if some of it can."""
        units = np.unique(self.units(extent))
        units = units[units != FIXED]
        if not len(units) or not self.frozen[units].all():
            return ""
        return self.reasons[int(units[0])]


def couple(trace: Trace, keep: Mapping[tuple[str, Any], str] | None = None) -> Coupling:
    """Run the rules over a trace and draw the conclusions.

    `keep` freezes further parameter dims, with reasons (what the caller asked to leave alone).
    """
    flow = Flow(trace)
    flow.run(apply_rule)
    kept = [(flow.sources[k].labels.reshape(-1), why) for k, why in (keep or {}).items() if k in flow.sources]
    analysis = Analysis(flow, kept)
    unit_of, frozen, reasons, links, rows, uses = analysis.solve()
    group_of, groups = _groups(flow, unit_of, frozen, reasons)
    return Coupling(
        trace,
        flow.facts,
        flow.values,
        flow.sources,
        frozenset(flow.produced),
        unit_of,
        frozen,
        reasons,
        tuple(links),
        tuple(rows),
        tuple(uses),
        group_of,
        groups,
        tuple(analysis.divides),
    )


def _groups(
    flow: Flow, unit_of: np.ndarray, frozen: np.ndarray, reasons: Mapping[int, str]
) -> tuple[np.ndarray, tuple[Group, ...]]:
    """Coupled groups: units that some layer makes side by side belong together."""
    units = {k: np.unique(unit_of[e.labels]) for k, e in flow.sources.items()}
    chains = [(u[:-1], u[1:]) for k, u in units.items() if k in flow.produced and len(u) > 1]
    root = components(len(frozen), chains)
    root[FIXED] = -1
    made = [root[u] for k, u in units.items() if k in flow.produced]
    names = np.unique(np.concatenate([np.empty(0, dtype=int), *made]))
    names = names[names > FIXED]
    number = np.full(len(root) + 1, -1)
    number[names] = np.arange(len(names))
    group_of = number[root]
    sources: list[list[Any]] = [[] for _ in names]
    dims: list[list[Any]] = [[] for _ in names]
    for key, u in units.items():
        p = flow.trace.params.get(key[0])
        shown = key if p is None else (p.name, key[1])
        for g in np.unique(group_of[u]):
            if g >= 0:
                dims[g].append(shown)
                if key in flow.produced:
                    sources[g].append(shown)
    origins: list[dict[str, None]] = [{} for _ in names]
    for m in flow.facts.merges:
        inside = m.a.reshape(-1)[:1]
        g = int(group_of[unit_of[inside[0]]]) if len(inside) else -1
        if g >= 0 and len(sources[g]) > 1 and not m.takes_over:
            origins[g].setdefault(m.node.at())
    out = []
    ranked = np.argsort(group_of, kind="stable")
    ends = np.searchsorted(group_of[ranked], np.arange(len(names) + 1))
    for i, member in enumerate(np.split(ranked, ends)[1:-1]):
        why = reasons[int(member[0])] if frozen[member].all() else ""
        out.append(Group(i, len(member), tuple(sources[i]), tuple(dims[i]), tuple(origins[i]), why))
    return group_of, tuple(out)
