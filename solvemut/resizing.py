"""Resizing: sizes as wishes, met with few and even changes elsewhere, at the least loss of value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from .arguments import shown
from .compile import Deviation, Question, Spread, Unless, Worth
from .errors import InfeasibleError, RequestError
from .flow import FIXED
from .graph import Graph, Vertex
from .problem import Problem
from .requests import Affine, Relation, Wish, wish_of
from .values import Metric, Values, magnitude, unit_values

FEW = 8  # new units that a layer may get beyond what was asked for, before more are tried
MOST = (10, 200)  # and at most: so many times its size, or so many


@dataclass
class Alignment:
    """What a change of structure asks of sizes; see `surgery.ports`.

    Of two sides that must come to one size (`gaps`) one keeps what it has, if it can. `allowed` says by unit class how
    many new units must be allowed after it, or `before` it; the inputs of the vertices in `held` stay as they are.
    """

    conditions: list[Any] = field(default_factory=list)
    gaps: list[Unless] = field(default_factory=list)
    allowed: dict[int, int] = field(default_factory=dict)
    before: set[int] = field(default_factory=set)
    held: list[str] = field(default_factory=list)


class Resizing(Problem):
    """Sizes that are asked for, with what else must change.

    Hard wishes hold; relaxed ones come as near as they can, all of them before anything else counts. Where a change of
    structure brings two sides to one size, one of them keeps what it has, if that can be. Then the value of what stays
    is largest, less 0.1 times the sum and 0.8 times the largest of all relative changes of sizes: a request disturbs
    few layers and spreads what it must change. Among sizes of one worth the units of largest magnitude stay.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.wishes: list[tuple[Affine, Wish]] = []
        self.most: Any = None  # how many new units a layer may get, as `Problem.grow` takes it
        self.relax = False
        self.alignment = Alignment()

    def ask(self, changes: Mapping[Any, Any]) -> None:
        """Wishes by vertex name, vertex, or size expression (`graph["cat"].ins[0]`); None stands for any size."""
        if not isinstance(changes, Mapping):
            raise RequestError(f"resize takes a dict such as {{'conv1': -3}}, not {shown(changes)}")
        for target, wish in changes.items():
            if wish is not None:
                self.wishes += [(size, wish_of(wish, f"resize {size}")) for size in self._sizes(target)]

    def align(self, asked: Alignment) -> None:
        """Conditions between sizes that a change of structure asks for."""
        self.requests += asked.conditions
        self.alignment, self.before = asked, asked.before

    def _sizes(self, target: Any) -> list[Affine]:
        graph = self.graph
        if isinstance(target, Affine):
            if any(e.owner is not None and not graph.coupling.is_like(e.owner) for e, _, _ in target.terms):
                raise RequestError(f"'{target}' speaks of another graph; ask the mutator's present graph")
            return [target]
        if isinstance(target, Vertex):
            return [graph[target.name].out]
        if isinstance(target, str) and set(target) & set("*?[") and target not in graph:
            return [v.out for v in graph.match(target) if v.makes_units]
        if not isinstance(target, str):
            raise RequestError(
                f"resize graph[{shown(target)}]: give the name of a vertex, a vertex, or one of its sizes"
            )
        return [graph[target].out]

    # -- what is stated ------------------------------------------------------------------------------------------------

    def solve(self, *args: Any, **options: Any) -> Any:
        """See `Problem.solve`. Few new units are tried first, then as many as layers may get."""
        try:
            self._allow(FEW)
            return super().solve(*args, **options)
        except InfeasibleError:
            few = self.slots
            self._allow(None)
            if few is None or self.slots is None or np.array_equal(few, self.slots):
                raise
            return super().solve(*args, **options)

    def _allow(self, few: int | None) -> None:
        """How many new units may come: `few` beyond what was asked for, or as many as may be at all."""
        self.slots = None
        relations = [r for r in self.requests if isinstance(r, Relation)]
        if not self.wishes and not relations and not self.alignment.allowed:
            return
        times, least = MOST
        bounds = [(size.now, *wish.bounds(size.now)) for size, wish in self.wishes]
        asked = sum(max(0, (low or high or 0) - now) for now, low, high in bounds)
        asked += sum(abs(r.right.now - r.left.now) for r in relations)
        sizes = {v.name: max(times * v.nout, least) for v in self.graph.vertices if v.makes_units}
        self.grow(sizes if few is None else {name: min(n, few + 2 * asked) for name, n in sizes.items()})
        assert self.slots is not None
        if self.most is not None:
            self.slots = np.minimum(self.slots, self.most_new(self.most, np.iinfo(np.int64).max))
        for unit, n in self.alignment.allowed.items():
            self.slots[unit] = max(n, self.slots[unit])

    @property
    def worth(self) -> Worth:
        """What the caller says units are worth; 1 each otherwise, and those of largest magnitude stay."""
        graph = self.graph
        given: Values = {} if self.values is None else self.values
        value = unit_values(given, graph.model, graph)
        second = None if graph.model is None else unit_values(magnitude(), graph.model, graph)
        return Worth(value, new=np.zeros(len(value)), second=second)

    def _question(self, worth: Worth, join_requests: bool) -> Question:
        hard, soft = self._told()
        value, involved = worth.value, self._involved(worth.value)
        first = [x for x in (soft, self.alignment.gaps) if x]
        stage = len(first)
        spreads = [Spread(tuple(x), k) for k, x in enumerate(first)]
        loose = [d.extent.labels for d in soft]
        spreads.append(Spread(tuple(self._kept_sizes(value, involved, loose)), stage))
        moves = [(d.extent, f"a change was asked: {d.name}") for d in soft if d.of(d.extent.now)]
        question = super()._question(worth, join_requests)
        requests = [*question.requests, *hard]
        keep = self.frozen | ~involved
        for name in self.alignment.held:
            for e, _, _ in self.graph[name].ins[0].terms:
                keep[self.graph.coupling.units(e)] = True
        return replace(question, requests=requests, keep=keep, stage=stage, spreads=spreads, moves=moves)

    def _told(self) -> tuple[list[Relation], list[Deviation]]:
        """The wishes as conditions, and as deviations to keep small."""
        hard: list[Relation] = []
        soft: list[Deviation] = []
        for size, wish in self.wishes:
            low, high = wish.bounds(size.now)
            if not (wish.relaxed or self.relax):
                if low == high and low is not None:
                    hard.append(size == low)
                else:
                    hard += [size >= low] if low is not None else []
                    hard += [size <= high] if high is not None else []
            elif not size.terms:
                raise InfeasibleError(f"{size} is fixed, it cannot become {wish}", [f"{size}: {wish}"])
            elif len(size.terms) > 1 or size.terms[0][1] != 1 or size.constant:
                raise RequestError(f"'{size}' is no single size, so it cannot be relaxed; ask for its parts")
            else:
                soft.append(Deviation(size.terms[0][0], low, high, Fraction(1), f"{size} near {wish}"))
        return hard, soft

    def _involved(self, value: np.ndarray) -> np.ndarray:
        """Bool per class: what the wishes can reach by equations; without any, what is worth less than nothing."""
        coupling = self.graph.coupling
        of_link = [[coupling.unit_of[labels.reshape(-1)] for labels, _ in link.parts] for link in coupling.links]
        sets = [np.unique(np.concatenate(parts)) for parts in of_link]
        sets += [np.unique(rows.units) for rows in coupling.rows]
        sets += [np.unique(v.units) for v in self.graph.vertices if v.makes_units]
        found = value < 0 if not self.wishes and not self.requests else np.zeros(len(value), dtype=bool)
        asked = [size for size, _ in self.wishes]
        asked += [side for r in self.requests if isinstance(r, Relation) for side in (r.left, r.right)]
        for size in asked:
            for e, _, _ in size.terms:
                found[coupling.units(e)] = True
        found[FIXED] = False
        while True:
            before = found.sum()
            for units in sets:
                if found[units].any():
                    found[units] = True
            found[FIXED] = False
            if found.sum() == before:
                return found

    def _kept_sizes(self, value: np.ndarray, involved: np.ndarray, loose: list[np.ndarray]) -> Iterable[Deviation]:
        """The sizes that should stay, or lose just what is worth less than nothing: relative to what they are."""
        coupling = self.graph.coupling
        for v in self.graph.vertices:
            free = v.units[~coupling.frozen[v.units]]
            if not v.makes_units or not len(free) or not involved[free].any() or len(v.out.terms) != 1:
                continue
            ((extent, _, name),) = v.out.terms
            if any(np.array_equal(extent.labels, labels) for labels in loose):
                continue
            scale, target = self._scale(v, value)
            yield Deviation(extent, target, target, scale / target, name)

    def _scale(self, v: Vertex, value: np.ndarray) -> tuple[Fraction, int]:
        """How much a vertex's units are worth, and the size it would have if only its values decided."""
        given: Any = self.values
        if given is None:
            return Fraction(1), v.nout
        if isinstance(given, Metric):
            of_units = value[v.units]
        else:
            raw = given(v) if callable(given) else given.get(v.name, 1.0)
            of_units = np.broadcast_to(np.asarray(raw, dtype=float), (v.nout,))
        return Fraction(float(np.abs(of_units).max())), max(1, v.nout - int((of_units < 0).sum()))
