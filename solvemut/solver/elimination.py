"""Exact maximisation of a sum of tables by eliminating one variable after the other.

The order and what meets in each bucket are planned once for a view; a *sweep* then runs the plan for given row weights
and yields the maximum, a maximiser, and for every level of every variable the best total with that level forced.

Two things keep wide networks cheap. A variable that meets its neighbours only through products with one common factor,
``f[k] * (g1[x1] + g2[x2] + ...)``, is eliminated along the upper envelope of the lines ``u[k] + f[k] * price``: cost
|neighbours' grid| instead of |grid| x |levels|. And where a bucket would grow beyond ``CELLS``, its tables are split
over copies of the variable (mini-buckets): the maximum becomes an upper bound, and stays valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from .view import FORBIDDEN, View

CELLS = 16_000_000  # the largest table of a bucket
STORED = 48_000_000  # all tables of a sweep together
ENVELOPE_FROM = 60_000  # cells from which an envelope beats a full table
ENVELOPE_COST = 12
HEAVY = 3_000_000  # cells of a sweep from which it is worth asking whether to go on


@dataclass(eq=False)
class Bucket:
    """Where one variable (or one copy of it) is eliminated. The variable is the last axis of its table."""

    index: int
    variable: int
    separator: tuple[int, ...]
    dense: list[int] = field(default_factory=list)
    hard: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    parent: int | None = None
    envelope: bool = False

    @property
    def scope(self) -> tuple[int, ...]:
        return (*self.separator, self.variable)


@dataclass(eq=False)
class Item:
    """A table waiting to be eliminated: its scope, and where it comes from."""

    kind: str  # "dense", "hard", "rank" or "message"
    index: int
    scope: frozenset[int]


@dataclass(eq=False)
class Plan:
    """An elimination order with its buckets; ``exact`` where no variable was split."""

    view: View
    buckets: list[Bucket]
    steps: list[tuple[int, list[int]]]  # variable, its buckets; in order of elimination
    exact: bool
    slopes: dict[int, np.ndarray]  # envelope buckets: the common factor f

    @cached_property
    def work(self) -> float:
        """How many cells a sweep looks at, about."""
        return sum(self.cells(bucket) for bucket in self.buckets)

    @cached_property
    def stored(self) -> float:
        """How many cells a sweep keeps."""
        return sum(self.cells(bucket) / (ENVELOPE_COST if bucket.envelope else 1) for bucket in self.buckets)

    def cells(self, bucket: Bucket) -> float:
        """How many cells a bucket costs."""
        separator = float(prod([self.view.sizes[u] for u in bucket.separator]))
        return separator * (ENVELOPE_COST if bucket.envelope else self.view.sizes[bucket.variable])


def plan(view: View) -> Plan:
    """Choose an order greedily by what each elimination costs; split buckets so that all of them fit in memory."""
    cells = CELLS
    while True:
        found = _Planner(view, cells).run()
        if found.stored <= STORED or cells < 1 << 14:
            return found
        cells //= 4


class _Planner:
    def __init__(self, view: View, limit: int) -> None:
        self.view, self.limit = view, limit
        self.items: list[Item] = []
        for i, dense in enumerate(view.dense):
            self.items.append(Item("dense", i, frozenset(dense.scope)))
        for i, (scope, _) in enumerate(view.hard):
            self.items.append(Item("hard", i, frozenset(scope)))
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
        self.exact = True

    def run(self) -> Plan:
        left = set(range(len(self.view.sizes)))
        costs = {v: self._cost(v) for v in left}
        while left:
            v = min(left, key=lambda u: (costs[u], u))
            touched = {u for key in self.touching[v] for u in self.alive[key].scope} - {v}
            self._eliminate(v)
            left.discard(v)
            for u in touched:
                costs[u] = self._cost(u)
        return Plan(self.view, self.buckets, self.steps, self.exact, self.slopes)

    def _cells(self, scope: Iterable[int]) -> float:
        return float(prod([self.view.sizes[u] for u in scope]))

    def _cost(self, v: int) -> float:
        scope = {u for key in self.touching[v] for u in self.alive[key].scope} | {v}
        cells = self._cells(scope)
        if cells >= ENVELOPE_FROM and self._common_factor(v) is not None:
            return min(cells, self._cells(scope - {v}) * ENVELOPE_COST)
        return cells

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
        cells = self._cells(scope)
        factor = self._common_factor(v) if cells >= ENVELOPE_FROM else None
        if (
            factor is not None
            and self._cells(scope - {v}) <= self.limit
            and (self._cells(scope - {v}) * ENVELOPE_COST < cells or cells > self.limit)
        ):
            groups, envelope = [keys], True
        elif cells <= self.limit:
            groups, envelope = [keys], False
        else:
            groups, envelope = self._split(v, keys), False
            self.exact = False
        made = [self._bucket(v, group, factor if envelope else None) for group in groups]
        self.steps.append((v, made))

    def _split(self, v: int, keys: Sequence[int]) -> list[list[int]]:
        """Mini-buckets: as few groups of tables as the limit allows, largest tables first."""
        groups: list[tuple[set[int], list[int]]] = []
        for key in sorted(keys, key=lambda k: (-self._cells(self.alive[k].scope), k)):
            for scope, group in groups:
                if self._cells(scope | self.alive[key].scope) <= self.limit:
                    scope |= self.alive[key].scope
                    group.append(key)
                    break
            else:
                groups.append((set(self.alive[key].scope) | {v}, [key]))
        return [group for _, group in groups]

    def _bucket(self, v: int, keys: Sequence[int], factor: np.ndarray | None) -> int:
        scope = {u for key in keys for u in self.alive[key].scope} - {v}
        bucket = Bucket(len(self.buckets), v, tuple(sorted(scope)), envelope=factor is not None)
        if factor is not None:
            self.slopes[bucket.index] = factor
        self.buckets.append(bucket)
        for key in keys:
            item = self.alive.pop(key)
            for u in item.scope:
                self.touching[u].discard(key)
            if item.kind == "message":
                bucket.children.append(item.index)
                self.buckets[item.index].parent = bucket.index
            else:
                {"dense": bucket.dense, "hard": bucket.hard, "rank": bucket.ranks}[item.kind].append(item.index)
        if scope:
            key, self.next_key = self.next_key, self.next_key + 1
            self.alive[key] = Item("message", bucket.index, frozenset(scope))
            for u in scope:
                self.touching[u].add(key)
        return bucket.index


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


# -- sweeps ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Sweep:
    """One run of a plan: every bucket's table and message, and the maximum."""

    plan: Plan
    weights: np.ndarray
    tables: list[np.ndarray | None]
    messages: list[np.ndarray]
    prices: dict[int, np.ndarray]
    unaries: dict[int, np.ndarray]
    maximum: float

    def rows(self, bucket: int, choices: np.ndarray) -> np.ndarray:
        """A bucket's table for many choices at once: [N, levels of its variable]; choices: [N, variables]."""
        found = self.plan.buckets[bucket]
        at = tuple(choices[:, u] for u in found.separator)
        table = self.tables[bucket]
        if table is None:
            price = self.prices[bucket][at]
            return self.unaries[bucket] + np.multiply.outer(price, self.plan.slopes[bucket])
        return table[at] if at else np.broadcast_to(table, (len(choices), len(table)))

    def message_at(self, bucket: int, choices: np.ndarray) -> np.ndarray:
        """A bucket's maximum for many choices at once: [N]."""
        at = tuple(choices[:, u] for u in self.plan.buckets[bucket].separator)
        return self.messages[bucket][at] if at else np.full(len(choices), float(self.messages[bucket]))

    def maximiser(self) -> np.ndarray:
        """The choice that attains the maximum (with mini-buckets: a good guess)."""
        choice = np.zeros((1, len(self.plan.view.sizes)), dtype=np.int64)
        for v, buckets in reversed(self.plan.steps):
            total = sum(self.rows(b, choice)[0] for b in buckets)
            choice[0, v] = int(np.argmax(total))
        return choice[0]

    def max_marginals(self, over: Callable[[], bool] = lambda: False) -> list[np.ndarray]:
        """For every variable, the largest total with each level forced (an upper bound with mini-buckets)."""
        return _Marginals(self).run(over)


class Interrupted(Exception):
    """A sweep was stopped before it came through."""


def sweep(plan: Plan, weights: np.ndarray, over: Callable[[], bool] = lambda: False) -> Sweep:
    """Run a plan for given row weights; raise Interrupted if ``over`` says so on the way."""
    view = plan.view
    found = Sweep(plan, weights, [], [], {}, {}, 0.0)
    for bucket in plan.buckets:
        if plan.work > HEAVY and over():
            raise Interrupted
        if bucket.envelope:
            _envelope_bucket(found, bucket)
        else:
            table = _full_table(found, bucket)
            found.tables.append(table)
            found.messages.append(table.max(axis=-1))
    roots = [float(found.messages[b.index]) for b in plan.buckets if b.parent is None]
    constants = [float(weights[d.rows] @ d.stack) for d in view.dense if not d.scope]
    found.maximum = float(sum(roots) + sum(constants))
    return found


def _full_table(found: Sweep, bucket: Bucket) -> np.ndarray:
    view, weights, scope = found.plan.view, found.weights, bucket.scope
    table = np.zeros([view.sizes[u] for u in scope])
    for i in bucket.dense:
        dense = view.dense[i]
        w = weights[dense.rows]
        if w.any():
            table += _spread(np.tensordot(w, dense.stack, axes=1), dense.scope, scope)
    for i in bucket.hard:
        table += _spread(view.hard[i][1], view.hard[i][0], scope)
    for i in bucket.ranks:
        rank = view.ranks[i]
        if weights[rank.row]:
            table += _spread(np.multiply.outer(weights[rank.row] * rank.first, rank.second), rank.scope, scope)
    for child in bucket.children:
        table += _spread(found.messages[child], found.plan.buckets[child].separator, scope)
    return table


def _spread(table: np.ndarray, scope: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """A table's axes moved to where the target scope has them, length 1 elsewhere."""
    order = sorted(range(len(scope)), key=lambda axis: target.index(scope[axis]))
    sizes = iter(np.array(table.shape)[order]) if table.ndim else iter(())
    shape = [int(next(sizes)) if u in scope else 1 for u in target]
    return table.transpose(order).reshape(shape)


def _envelope_bucket(found: Sweep, bucket: Bucket) -> None:
    """Eliminate along the upper envelope of lines, one line per level."""
    view, weights = found.plan.view, found.weights
    v, slopes = bucket.variable, found.plan.slopes[bucket.index]
    unary = np.zeros(view.sizes[v])
    for i in bucket.dense:
        unary += np.tensordot(weights[view.dense[i].rows], view.dense[i].stack, axes=1)
    for i in bucket.hard:
        unary += view.hard[i][1]
    for child in bucket.children:
        unary += found.messages[child]
    price = np.zeros([view.sizes[u] for u in bucket.separator])
    at = int(np.argmax(np.abs(slopes)))
    for i in bucket.ranks:
        other, factor = other_side(view, i, v)
        ratio = own_factor(view, i, v)[at] / slopes[at]
        price += _spread(weights[view.ranks[i].row] * ratio * factor, (other,), bucket.separator)
    found.tables.append(None)
    found.prices[bucket.index], found.unaries[bucket.index] = price, unary
    found.messages.append(upper_envelope(slopes, unary, price))


def upper_envelope(slopes: np.ndarray, heights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``max_k heights[k] + slopes[k] * at``, for every entry of ``at``.

    >>> upper_envelope(np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([0.0, 3.0]))
    array([1., 3.])
    """
    order = np.lexsort((heights, slopes))
    s, h = slopes[order], heights[order]
    last = np.append(s[1:] != s[:-1], True)  # of equal slopes the highest line
    s, h = s[last], h[last]
    keep = _hull(s, h)
    s, h = s[keep], h[keep]
    if len(s) == 1:
        return h[0] + s[0] * at
    breaks = (h[:-1] - h[1:]) / (s[1:] - s[:-1])  # line k+1 is above line k to the right of breaks[k]
    which = np.searchsorted(np.maximum.accumulate(breaks), at.reshape(-1)).reshape(at.shape)
    best = np.asarray(h[which] + s[which] * at)  # a single query comes back as a scalar, which "out" refuses
    # rounding may put a query on the wrong side of a break: its neighbours cost little and make the maximum sure
    for step in (-1, 1):
        near = np.clip(which + step, 0, len(s) - 1)
        np.maximum(best, h[near] + s[near] * at, out=best)
    return best


def _hull(s: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Indices of the lines that are highest somewhere; slopes strictly increasing."""
    if len(s) <= 2:
        return np.arange(len(s))
    cuts = (h[:-1] - h[1:]) / (s[1:] - s[:-1])
    if (np.diff(cuts) >= 0).all():
        return np.arange(len(s))
    kept: list[int] = []
    slopes, heights = s.tolist(), h.tolist()
    for k in range(len(slopes)):
        while len(kept) >= 2:
            i, j = kept[-2], kept[-1]
            left = (heights[i] - heights[j]) * (slopes[k] - slopes[j])
            right = (heights[j] - heights[k]) * (slopes[j] - slopes[i])
            if left < right:
                break
            kept.pop()
        kept.append(k)
    return np.array(kept)


class _Marginals:
    """The pass back down: what the rest of the problem adds to each bucket."""

    def __init__(self, found: Sweep) -> None:
        self.sweep, self.plan = found, found.plan
        self.outside: list[np.ndarray | None] = [None] * len(self.plan.buckets)
        roots = [float(found.messages[b.index]) for b in self.plan.buckets if b.parent is None]
        self.total, self.roots = found.maximum, roots
        self.marginal: list[np.ndarray] = [np.full(size, np.inf) for size in self.plan.view.sizes]

    def run(self, over: Callable[[], bool]) -> list[np.ndarray]:
        for bucket in reversed(self.plan.buckets):
            if self.plan.work > HEAVY and over():
                raise Interrupted
            outside = self.outside[bucket.index]
            if bucket.parent is None:
                outside = np.array(self.total - float(self.sweep.messages[bucket.index]))
            assert outside is not None
            if bucket.envelope:
                found = self._through_envelope(bucket, outside)
            else:
                belief = self.sweep.tables[bucket.index] + outside[..., None]  # type: ignore[operator]
                found = belief.reshape(-1, belief.shape[-1]).max(axis=0)
                for child in bucket.children:
                    self._to_child(bucket, child, belief)
            np.minimum(self.marginal[bucket.variable], found, out=self.marginal[bucket.variable])
            self.outside[bucket.index] = None
        return self.marginal

    def _through_envelope(self, bucket: Bucket, outside: np.ndarray) -> np.ndarray:
        price = self.sweep.prices[bucket.index].reshape(-1)
        lines = outside.reshape(-1)
        if len(price) > 4096:  # the lines that can be highest: the best of each of many bins of price
            price, lines = _thinned(price, lines)
        found = self.sweep.unaries[bucket.index] + upper_envelope(price, lines, self.plan.slopes[bucket.index])
        for child in bucket.children:
            self.outside[child] = found - self.sweep.messages[child]
        return found

    def _to_child(self, bucket: Bucket, child: int, belief: np.ndarray) -> None:
        separator = self.plan.buckets[child].separator
        axes = tuple(axis for axis, u in enumerate(bucket.scope) if u not in separator)
        best = belief.max(axis=axes)
        left = [u for u in bucket.scope if u in separator]
        self.outside[child] = _spread(best, left, separator) - self.sweep.messages[child]


def _thinned(slopes: np.ndarray, heights: np.ndarray, bins: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """Fewer lines that lie nowhere below the ones given: each bin's highest line at both ends of its slopes."""
    low, high = float(slopes.min()), float(slopes.max())
    if high <= low:
        return slopes[:1], heights.max(keepdims=True)
    which = np.minimum(((slopes - low) * (bins / (high - low))).astype(np.int64), bins - 1)
    best = np.full(bins, FORBIDDEN * 4)
    np.maximum.at(best, which, heights)
    least, most = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(least, which, slopes)
    np.maximum.at(most, which, slopes)
    used = best > FORBIDDEN * 4
    return np.concatenate([least[used], most[used]]), np.concatenate([best[used], best[used]])
