"""Orders of elimination: which variable goes when, and which tables meet in the bucket where it goes.

Two things keep wide networks cheap. A variable that meets its neighbours only through products with one common factor,
``f[k] * (g1[x1] + g2[x2] + ...)``, is eliminated along the upper envelope of the lines ``u[k] + f[k] * price``: cost
|neighbours' grid| instead of |grid| x |levels|. A variable whose level follows from others (a sum from its parts) costs
their grid alone. Where a bucket's table would grow beyond ``CELLS`` it is looked at slice after slice without being
kept, up to ``STREAMED``; beyond that, or where what it leaves behind is too large, its tables are split over copies of
the variable (mini-buckets): the maximum becomes an upper bound, and stays valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from .tables import spread
from .view import View

CELLS = 16_000_000  # the largest table of a bucket
STORED = 48_000_000  # all tables of a sweep together
ENVELOPE_FROM = 60_000  # cells from which an envelope beats a full table
ENVELOPE_COST = 12
TIED_COST = 4
STREAMED = 600_000_000  # cells of a bucket that are looked at without being kept


@dataclass(eq=False)
class Bucket:
    """Where one variable (or one copy of it) is eliminated. The variable is the last axis of its table."""

    index: int
    variable: int
    separator: tuple[int, ...]
    dense: list[int] = field(default_factory=list)
    hard: list[int] = field(default_factory=list)
    ties: list[int] = field(default_factory=list)  # the first one gives the variable's level, the others must hold
    ranks: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    parent: int | None = None
    envelope: bool = False
    streamed: bool = False
    work: float = 0.0  # cells looked at
    stored: float = 0.0  # cells kept

    @property
    def scope(self) -> tuple[int, ...]:
        """The axes of the bucket's table."""
        return (*self.separator, self.variable)


@dataclass(eq=False)
class Item:
    """A table waiting to be eliminated: its scope, and where it comes from."""

    kind: str  # "dense", "hard", "tie", "rank" or "message"
    index: int
    scope: frozenset[int]


@dataclass(eq=False)
class Order:
    """An order of elimination with its buckets; ``exact`` where no variable was split."""

    view: View
    buckets: list[Bucket]
    steps: list[tuple[int, list[int]]]  # variable, its buckets; in order of elimination
    exact: bool
    slopes: dict[int, np.ndarray]  # envelope buckets: the common factor f
    levels: dict[int, np.ndarray]  # tied buckets: the variable's level on the separator's grid

    @cached_property
    def work(self) -> float:
        """How many cells a sweep looks at, about."""
        return sum(bucket.work for bucket in self.buckets)

    @property
    def splits(self) -> int:
        """How many copies of variables were made."""
        return sum(len(buckets) - 1 for _, buckets in self.steps)

    @cached_property
    def stored(self) -> float:
        """How many cells a sweep keeps."""
        return sum(bucket.stored for bucket in self.buckets)


def order_of(view: View) -> Order:
    """Choose an order greedily by what each elimination costs; split buckets so that all of them fit in memory."""
    cells, streamed = CELLS, STREAMED
    while True:
        found = _Builder(view, cells, streamed).run()
        if found.work > 2 * STREAMED and streamed:
            streamed = 0
        elif found.stored <= STORED or cells < 1 << 14:
            return found
        else:
            cells //= 4


class _Builder:
    """Builds an order step by step, and the buckets that it makes."""

    def __init__(self, view: View, limit: int, streamed: int) -> None:
        self.view, self.limit, self.streamed = view, limit, streamed
        self.items: list[Item] = []
        for i, dense in enumerate(view.dense):
            self.items.append(Item("dense", i, frozenset(dense.scope)))
        for i, (scope, _) in enumerate(view.hard):
            self.items.append(Item("hard", i, frozenset(scope)))
        for i, tie in enumerate(view.ties):
            self.items.append(Item("tie", i, frozenset(tie.scope)))
        for i, rank in enumerate(view.ranks):
            self.items.append(Item("rank", i, frozenset(rank.scope)))
        self.touching: dict[int, set[int]] = {v: set() for v in range(len(view.sizes))}
        self.alive: dict[int, Item] = dict(enumerate(self.items))
        for key, item in self.alive.items():
            for v in item.scope:
                self.touching[v].add(key)
        self.next_key = len(self.items)
        self.factors: dict[int, np.ndarray | None] = {}
        self.buckets: list[Bucket] = []
        self.steps: list[tuple[int, list[int]]] = []
        self.slopes: dict[int, np.ndarray] = {}
        self.levels: dict[int, np.ndarray] = {}
        self.exact = True

    def run(self) -> Order:
        """Eliminate the cheapest variable that is left, until none is."""
        left = set(range(len(self.view.sizes)))
        costs = {v: self._cost(v) for v in left}
        while left:
            v = min(left, key=lambda u: (costs[u], u))
            touched = {u for key in self.touching[v] for u in self.alive[key].scope} - {v}
            self._eliminate(v)
            left.discard(v)
            for u in touched:
                costs[u] = self._cost(u)
        return Order(self.view, self.buckets, self.steps, self.exact, self.slopes, self.levels)

    def _cells(self, scope: Iterable[int]) -> float:
        return prod(float(self.view.sizes[u]) for u in scope)  # inf where there are more than floats count

    def _cost(self, v: int) -> float:
        scope = {u for key in self.touching[v] for u in self.alive[key].scope} | {v}
        if self._tied(self.touching[v]):
            return self._cells(scope - {v}) * TIED_COST
        cells = self._cells(scope)
        if cells >= ENVELOPE_FROM and self._common_factor(v) is not None:
            return min(cells, self._cells(scope - {v}) * ENVELOPE_COST)
        return cells

    def _tied(self, keys: Iterable[int]) -> bool:
        return any(self.alive[key].kind == "tie" for key in keys)

    def _common_factor(self, v: int) -> np.ndarray | None:
        """The factor of ``v`` that all of its products share up to scale; None if anything else joins it to others."""
        if v not in self.factors:
            self.factors[v] = self._find_factor(v)
        if any(self.alive[key].kind != "rank" and len(self.alive[key].scope) > 1 for key in self.touching[v]):
            return None
        return self.factors[v]

    def _find_factor(self, v: int) -> np.ndarray | None:
        ranks = [self.alive[key].index for key in self.touching[v] if self.alive[key].kind == "rank"]
        if not ranks:
            return None
        vectors = np.stack([own_factor(self.view, rank, v) for rank in sorted(ranks)])
        return vectors[0] if proportional(vectors) else None

    def _eliminate(self, v: int) -> None:
        keys = sorted(self.touching[v])
        scope = {u for key in keys for u in self.alive[key].scope} | {v}
        cells = self._cells(scope - {v} if self._tied(keys) else scope)
        factor = self._common_factor(v) if cells >= ENVELOPE_FROM else None
        message, streamed = self._cells(scope - {v}), False
        if factor is not None and message <= self.limit and (message * ENVELOPE_COST < cells or cells > self.limit):
            groups = [keys]
        elif cells <= self.limit:
            groups, factor = [keys], None
        elif message <= self.limit and cells <= self.streamed:
            groups, factor, streamed = [keys], None, True
        else:
            groups, factor = self._split(v, keys), None
            self.exact = False
        made = [self._bucket(v, group, factor, streamed) for group in groups]
        self.steps.append((v, made))

    def _split(self, v: int, keys: Sequence[int]) -> list[list[int]]:
        """Mini-buckets: as few groups of tables as the limit allows, largest tables first."""
        groups: list[tuple[set[int], list[int]]] = []
        for key in sorted(keys, key=lambda k: (-self._cells(self.alive[k].scope), k)):
            for scope, group in groups:
                joined = scope | self.alive[key].scope
                if self._cells(joined - {v} if self._tied([*group, key]) else joined) <= self.limit:
                    scope |= self.alive[key].scope
                    group.append(key)
                    break
            else:
                groups.append((set(self.alive[key].scope) | {v}, [key]))
        return [group for _, group in groups]

    def _bucket(self, v: int, keys: Sequence[int], factor: np.ndarray | None, streamed: bool) -> int:
        scope = {u for key in keys for u in self.alive[key].scope} - {v}
        bucket = Bucket(len(self.buckets), v, tuple(sorted(scope)), envelope=factor is not None, streamed=streamed)
        if factor is not None:
            self.slopes[bucket.index] = factor
        self.buckets.append(bucket)
        bucket.work, bucket.stored = self._sizes(bucket, self._tied(keys))
        for key in keys:
            item = self.alive.pop(key)
            for u in item.scope:
                self.touching[u].discard(key)
            if item.kind == "message":
                bucket.children.append(item.index)
                self.buckets[item.index].parent = bucket.index
            else:
                kinds = {"dense": bucket.dense, "hard": bucket.hard, "rank": bucket.ranks, "tie": bucket.ties}
                kinds[item.kind].append(item.index)
        if bucket.ties:
            tie = self.view.ties[bucket.ties[0]]
            others = [u for u in tie.scope if u != v]
            self.levels[bucket.index] = spread(tie.levels(v), others, bucket.separator)
        if scope:
            key, self.next_key = self.next_key, self.next_key + 1
            self.alive[key] = Item("message", bucket.index, frozenset(scope))
            for u in scope:
                self.touching[u].add(key)
        return bucket.index

    def _sizes(self, bucket: Bucket, tied: bool) -> tuple[float, float]:
        """How many cells a bucket looks at and keeps."""
        separator, cells = self._cells(bucket.separator), self._cells(bucket.scope)
        if tied or bucket.envelope:
            return separator * (TIED_COST if tied else ENVELOPE_COST), separator
        return cells, separator if bucket.streamed else cells


def own_factor(view: View, rank: int, v: int) -> np.ndarray:
    """The factor of a product that belongs to ``v``."""
    found = view.ranks[rank]
    return found.first if found.scope[0] == v else found.second


def other_side(view: View, rank: int, v: int) -> tuple[int, np.ndarray]:
    """The other variable of a product, and its factor."""
    found = view.ranks[rank]
    return (found.scope[1], found.second) if found.scope[0] == v else (found.scope[0], found.first)


def proportional(vectors: np.ndarray) -> bool:
    """Whether the rows agree up to a factor each (to rounding)."""
    at = int(np.argmax(np.abs(vectors[0])))
    if (vectors[:, at] == 0).any():
        return False
    expected = np.multiply.outer(vectors[:, at] / vectors[0, at], vectors[0])
    return bool((np.abs(vectors - expected) <= 1e-15 * np.abs(expected)).all())
