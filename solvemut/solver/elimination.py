"""Exact maximisation of a sum of tables by eliminating one variable after the other.

The order and what meets in each bucket are planned once for a view; a *sweep* then runs the plan for given row weights
and yields the maximum, a maximiser, and for every level of every variable the best total with that level forced.

Two things keep wide networks cheap. A variable that meets its neighbours only through products with one common factor,
``f[k] * (g1[x1] + g2[x2] + ...)``, is eliminated along the upper envelope of the lines ``u[k] + f[k] * price``: cost
|neighbours' grid| instead of |grid| x |levels|. A variable whose level follows from others (a sum from its parts) costs
their grid alone. Where a bucket's table would grow beyond ``CELLS`` it is looked at slice after slice without being
kept, up to ``STREAMED``; beyond that, or where what it leaves behind is too large, its tables are split over copies of
the variable (mini-buckets): the maximum becomes an upper bound, and stays valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from .order import Bucket, Item, Plan, other_side, own_factor, proportional
from .tables import Interrupted, Part, Stream, spread
from .ties import back, tied_table
from .view import FORBIDDEN, View

__all__ = ["HEAVY", "Interrupted", "Plan", "Sweep", "plan", "sweep", "upper_envelope"]

CELLS = 16_000_000  # the largest table of a bucket
STORED = 48_000_000  # all tables of a sweep together
ENVELOPE_FROM = 60_000  # cells from which an envelope beats a full table
ENVELOPE_COST = 12
TIED_COST = 4
STREAMED = 600_000_000  # cells of a bucket that are looked at without being kept
HEAVY = 3_000_000  # cells of a sweep from which it is worth asking whether to go on


def plan(view: View) -> Plan:
    """Choose an order greedily by what each elimination costs; split buckets so that all of them fit in memory."""
    cells, streamed = CELLS, STREAMED
    while True:
        found = _Planner(view, cells, streamed).run()
        if found.work > 2 * STREAMED and streamed:
            streamed = 0
        elif found.stored <= STORED or cells < 1 << 14:
            return found
        else:
            cells //= 4


class _Planner:
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
        return Plan(self.view, self.buckets, self.steps, self.exact, self.slopes, self.levels)

    def _cells(self, scope: Iterable[int]) -> float:
        return float(prod([self.view.sizes[u] for u in scope]))

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
    streams: dict[int, Stream]
    maximum: float

    def rows(self, bucket: int, choices: np.ndarray) -> np.ndarray:
        """A bucket's table for many choices at once: [N, levels of its variable]; choices: [N, variables]."""
        found = self.plan.buckets[bucket]
        at = tuple(choices[:, u] for u in found.separator)
        table = self.tables[bucket]
        if found.ties:
            return self._tied_rows(bucket, at, len(choices))
        if found.streamed:
            return self.streams[bucket].rows(choices)
        if table is None:
            price = self.prices[bucket][at]
            return self.unaries[bucket] + np.multiply.outer(price, self.plan.slopes[bucket])
        return table[at] if at else np.broadcast_to(table, (len(choices), len(table)))

    def _tied_rows(self, bucket: int, at: tuple[np.ndarray, ...], count: int) -> np.ndarray:
        levels, sizes = self.plan.levels[bucket], self.plan.view.sizes
        rows = np.full((count, sizes[self.plan.buckets[bucket].variable]), 2 * FORBIDDEN)
        level = levels[tuple(index if size > 1 else 0 for index, size in zip(at, levels.shape, strict=True))]
        held = np.flatnonzero(level >= 0)
        rows[held, level[held]] = self.messages[bucket][at][held]
        return rows

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


def sweep(plan: Plan, weights: np.ndarray, over: Callable[[], bool] = lambda: False) -> Sweep:
    """Run a plan for given row weights; raise Interrupted if ``over`` says so on the way."""
    view = plan.view
    found = Sweep(plan, weights, [], [], {}, {}, {}, 0.0)
    for bucket in plan.buckets:
        if plan.work > HEAVY and over():
            raise Interrupted
        if bucket.envelope:
            _envelope_bucket(found, bucket)
        else:
            _table_bucket(found, bucket, over)
    roots = [float(found.messages[b.index]) for b in plan.buckets if b.parent is None]
    constants = [float(weights[d.rows] @ d.stack) for d in view.dense if not d.scope]
    found.maximum = float(sum(roots) + sum(constants))
    return found


def _table_bucket(found: Sweep, bucket: Bucket, over: Callable[[], bool]) -> None:
    """Eliminate by looking at every cell."""
    parts, sizes, view = _parts(found, bucket), found.plan.view.sizes, found.plan.view
    if bucket.ties:
        levels, checks = found.plan.levels[bucket.index], [view.ties[i] for i in bucket.ties[1:]]
        found.tables.append(None)
        found.messages.append(tied_table(bucket.variable, bucket.separator, levels, parts, checks, sizes))
    elif bucket.streamed:
        found.streams[bucket.index] = stream = Stream(parts, bucket.scope, sizes, over)
        found.tables.append(None)
        found.messages.append(stream.maximum())
    else:
        table = np.zeros([sizes[u] for u in bucket.scope])
        for scope, part in parts:
            table += spread(part, scope, bucket.scope)
        found.tables.append(table)
        found.messages.append(table.max(axis=-1))


def _parts(found: Sweep, bucket: Bucket) -> list[Part]:
    """All tables that meet in a bucket; every one speaks of its variable."""
    view, weights = found.plan.view, found.weights
    parts: list[Part] = []
    for i in bucket.dense:
        dense = view.dense[i]
        w = weights[dense.rows]
        if w.any():
            parts.append((dense.scope, np.tensordot(w, dense.stack, axes=1)))
    parts += [view.hard[i] for i in bucket.hard]
    for i in bucket.ranks:
        rank = view.ranks[i]
        if weights[rank.row]:
            parts.append((rank.scope, np.multiply.outer(weights[rank.row] * rank.first, rank.second)))
    return parts + [(found.plan.buckets[child].separator, found.messages[child]) for child in bucket.children]


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
        price += spread(weights[view.ranks[i].row] * ratio * factor, (other,), bucket.separator)
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
            elif bucket.ties or bucket.streamed:
                found = self._unkept(bucket, outside)
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

    def _unkept(self, bucket: Bucket, outside: np.ndarray) -> np.ndarray:
        """Through a bucket that has no table of its own."""
        v, sizes = bucket.variable, self.plan.view.sizes
        scopes = [(v,), *(self.plan.buckets[child].separator for child in bucket.children)]
        if bucket.ties:
            levels, belief = self.plan.levels[bucket.index], self.sweep.messages[bucket.index] + outside
            found = [back(belief, v, bucket.separator, levels, scope, sizes) for scope in scopes]
        else:
            found = self.sweep.streams[bucket.index].beliefs(outside, scopes)
        for child, best in zip(bucket.children, found[1:], strict=True):
            self.outside[child] = best - self.sweep.messages[child]
        return found[0]

    def _to_child(self, bucket: Bucket, child: int, belief: np.ndarray) -> None:
        separator = self.plan.buckets[child].separator
        axes = tuple(axis for axis, u in enumerate(bucket.scope) if u not in separator)
        best = belief.max(axis=axes)
        left = [u for u in bucket.scope if u in separator]
        self.outside[child] = spread(best, left, separator) - self.sweep.messages[child]


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
