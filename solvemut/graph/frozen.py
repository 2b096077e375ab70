"""Frozen: what no plan can make smaller, why, found where, and what share of the model it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from ..costs import elements
from ..coupling import Coupling
from ..flow import FIXED, Extent, prod
from ..report import Part, Table, clipped, one_line, text

_PLACE = re.compile(r"[^\s:]+:\d+")


@dataclass(frozen=True)
class FrozenRow:
    """One reason for which units stay, found at one line, and all that it holds.

    `flops` and `params` are shares of the whole model: of operations, or of parameters, what is left when all goes
    that may go, if this reason holds a size of theirs. Where two reasons do, both rows count it.
    """

    reason: str
    op: str  # the operation that told, "" where none did
    where: str  # file:line of the forward, "" where there is none
    vertices: tuple[str, ...]  # the layers whose size it holds
    flops: float
    params: float

    def __str__(self) -> str:
        place = ", ".join(x for x in (self.op, self.where) if x)
        held = ", ".join(self.vertices[:3]) + (f" and {len(self.vertices) - 3} more" if len(self.vertices) > 3 else "")
        shares = f"{_percent(self.flops)} of FLOPs, {_percent(self.params)} of params"
        return f"{self.reason}{place and f' ({place})'}: {held or 'no layer of its own'}; {shares}"


@dataclass(frozen=True)
class Frozen(Sequence[FrozenRow]):
    """The rows, those that hold most FLOPs first; `flops` and `params` are what no plan can remove, as shares."""

    rows: tuple[FrozenRow, ...]
    flops: float
    params: float

    @overload
    def __getitem__(self, k: int) -> FrozenRow: ...

    @overload
    def __getitem__(self, k: slice) -> tuple[FrozenRow, ...]: ...

    def __getitem__(self, k: Any) -> Any:
        return self.rows[k]

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, most: int | None = None) -> list[Part]:
        """The shares, then a row per reason, at most so many."""
        shown = self.rows[:most]
        cells = [
            [_percent(r.flops), _percent(r.params), r.op, r.where, len(r.vertices), ", ".join(r.vertices), r.reason]
            for r in shown
        ]
        cells = [[clipped(str(c), 48 if k == 5 else 70) for k, c in enumerate(row)] for row in cells]
        header = ["FLOPs", "params", "op", "where", "layers", "which", "reason"]
        return [self._head(), Table(header, cells, right=[0, 1, 4])] if shown else [self._head()]

    def more(self, most: int) -> list[str]:
        """What a table of so many rows leaves out, as a line; nothing where it has all."""
        return [f"and {len(self) - most} more in graph.frozen"] if len(self) > most else []

    def table(self, most: int | None = None) -> str:
        """A row per reason, at most so many."""
        found = text(self.parts(most))
        return "\n".join([found, *(self.more(most) if most else [])])

    def _head(self) -> str:
        return f"frozen: {_percent(self.flops)} of FLOPs, {_percent(self.params)} of params"

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return one_line(f"<Frozen: {len(self)} reasons, {self._head()[8:]}>")


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads a graph; a row is known by what its units' reasons say, where they say it."""

    graph: Any

    @property
    def coupling(self) -> Coupling:
        found: Coupling = self.graph.coupling
        return found

    @cached_property
    def _ops(self) -> dict[str, tuple[str, str]]:
        """By what a node calls its place: its operation, and the line."""
        nodes = self.coupling.trace.nodes
        lines = {n.name: _PLACE.match(n.source) for n in nodes}
        return {n.at(): (n.op, m[0] if (m := lines[n.name]) else "") for n in nodes}

    @cached_property
    def _keys(self) -> dict[int, tuple[str, str, str]]:
        """Reason, operation and line by unit class, of those that are frozen."""
        known: dict[str, tuple[str, str, str]] = {}
        for why in self.coupling.reasons.values():
            if why not in known:
                known[why] = self._key(why)
        return {c: known[why] for c, why in self.coupling.reasons.items()}

    def _key(self, why: str) -> tuple[str, str, str]:
        """A reason ends with the place that it was found at."""
        for at in (m.end() for m in re.finditer(": ", why)):
            if (found := self._ops.get(why[at:])) is not None:
                return (why[: at - 2], *found)
            if _PLACE.fullmatch(why[at:]):
                return why[: at - 2], "", why[at:]
        return why, "", ""

    def read(self) -> Frozen:
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}

        def row(key: tuple[str, str, str]) -> dict[str, Any]:
            return rows.setdefault(key, {"vertices": [], "flops": 0.0, "params": 0.0})

        for v in self.graph.vertices:
            if v.makes_units and self.coupling.frozen[v.units].all():
                for key in self._held(v.units):
                    row(key)["vertices"].append(v.name)
        total = {"flops": 0.0, "params": 0.0}
        for cost, terms in (("flops", self._works()), ("params", self._tensors())):
            now = max(1, self.graph.costs[cost].now)
            for factor, extents, other in terms:
                share = factor * prod([self.coupling.count(e, self.coupling.frozen) for e in extents]) / now
                total[cost] += share
                units = np.concatenate([np.empty(0, int), *(self.coupling.units(e).reshape(-1) for e in extents)])
                for key in (self._held(units) or [(other, "", "")]) if share else ():
                    row(key)[cost] += share
        found = [FrozenRow(*key, **{**r, "vertices": tuple(r["vertices"])}) for key, r in rows.items()]
        return Frozen(tuple(sorted(found, key=lambda r: (-r.flops, -r.params))), **total)

    @cached_property
    def _made(self) -> np.ndarray:
        """Whether something makes a unit. The others only take in what is fixed elsewhere: that tells of no cause."""
        made = np.zeros(self.coupling.n_units, dtype=bool)
        for key in self.coupling.produced:
            made[self.coupling.units(self.coupling.sources[key])] = True
        return made

    def _held(self, units: np.ndarray) -> list[tuple[str, str, str]]:
        """The reasons that hold some of these units, each once."""
        units = np.unique(units[self.coupling.frozen[units]])
        units = units[units != FIXED]
        made = units[self._made[units]]
        return list(dict.fromkeys(self._keys[c] for c in (made if len(made) else units).tolist()))

    def _works(self) -> Iterator[tuple[int, Sequence[Extent], str]]:
        for w in self.coupling.facts.works:
            if not w.node.tag:
                yield 2 * w.coefficient, w.extents, "fixed sizes"

    def _tensors(self) -> Iterator[tuple[int, Sequence[Extent], str]]:
        trace = self.coupling.trace
        for value, p in trace.params.items():
            if p.kind == "parameter":
                yield *elements(self.coupling, value), "fixed sizes"
        for p in trace.unused:
            yield p.numel, (), "not read by any captured call"


def frozen(graph: Any) -> Frozen:
    """What is frozen in a graph."""
    return _Reader(graph).read()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
