"""Exact maximisation of a sum of tables by eliminating one variable after the other.

The order and what meets in each bucket are found once for a view (``order.py``); a *sweep* then eliminates in that
order for given row weights and yields the maximum, a maximiser, and for every level of every variable the best total
with that level forced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .clock import CutShort
from .order import Bucket, Order, other_side, own_factor
from .tables import Part, Stream, spread
from .ties import back, tied_table
from .view import FORBIDDEN

HEAVY = 3_000_000  # cells of a sweep from which it is worth asking whether to go on


@dataclass(eq=False)
class Sweep:
    """One elimination in a given order: every bucket's table and message, and the maximum."""

    order: Order
    weights: np.ndarray
    tables: list[np.ndarray | None]
    messages: list[np.ndarray]
    prices: dict[int, np.ndarray]
    unaries: dict[int, np.ndarray]
    streams: dict[int, Stream]
    maximum: float

    def rows(self, bucket: int, choices: np.ndarray) -> np.ndarray:
        """A bucket's table for many choices at once: [N, levels of its variable]; choices: [N, variables]."""
        found = self.order.buckets[bucket]
        at = tuple(choices[:, u] for u in found.separator)
        table = self.tables[bucket]
        if found.ties:
            return self._tied_rows(bucket, at, len(choices))
        if found.streamed:
            return self.streams[bucket].rows(choices)
        if table is None:
            price = self.prices[bucket][at]
            return self.unaries[bucket] + np.multiply.outer(price, self.order.slopes[bucket])
        return table[at] if at else np.broadcast_to(table, (len(choices), len(table)))

    def _tied_rows(self, bucket: int, at: tuple[np.ndarray, ...], count: int) -> np.ndarray:
        levels, sizes = self.order.levels[bucket], self.order.view.sizes
        rows = np.full((count, sizes[self.order.buckets[bucket].variable]), 2 * FORBIDDEN)
        level = levels[tuple(index if size > 1 else 0 for index, size in zip(at, levels.shape, strict=True))]
        held = np.flatnonzero(level >= 0)
        rows[held, level[held]] = self.messages[bucket][at][held]
        return rows

    def message_at(self, bucket: int, choices: np.ndarray) -> np.ndarray:
        """A bucket's maximum for many choices at once: [N]."""
        at = tuple(choices[:, u] for u in self.order.buckets[bucket].separator)
        return self.messages[bucket][at] if at else np.full(len(choices), float(self.messages[bucket]))

    def maximiser(self) -> np.ndarray:
        """The choice that attains the maximum (with mini-buckets: a good guess)."""
        choice = np.zeros((1, len(self.order.view.sizes)), dtype=np.int64)
        for v, buckets in reversed(self.order.steps):
            total = sum(self.rows(b, choice)[0] for b in buckets)
            choice[0, v] = int(np.argmax(total))
        return choice[0]

    def max_marginals(self, over: Callable[[], bool] = lambda: False) -> list[np.ndarray]:
        """For every variable, the largest total with each level forced (an upper bound with mini-buckets)."""
        return _Marginals(self).run(over)


def sweep(order: Order, weights: np.ndarray, over: Callable[[], bool] = lambda: False) -> Sweep:
    """Eliminate for given row weights; raise CutShort if ``over`` says so on the way."""
    view = order.view
    found = Sweep(order, weights, [], [], {}, {}, {}, 0.0)
    for _, made in order.steps:
        for bucket in (order.buckets[b] for b in made):
            if order.work > HEAVY and over():
                raise CutShort
            if bucket.envelope:
                _envelope_bucket(found, bucket)
            else:
                _table_bucket(found, bucket, over)
        if len(made) > 1:
            _match(found, made)
    roots = [float(found.messages[b.index]) for b in order.buckets if b.parent is None]
    constants = [float(weights[d.rows] @ d.stack) for d in view.dense if not d.scope]
    found.maximum = float(sum(roots) + sum(constants))
    return found


def _table_bucket(found: Sweep, bucket: Bucket, over: Callable[[], bool]) -> None:
    """Eliminate by looking at every cell."""
    parts, sizes, view = _parts(found, bucket), found.order.view.sizes, found.order.view
    if bucket.ties:
        levels, checks = found.order.levels[bucket.index], [view.ties[i] for i in bucket.ties[1:]]
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
    view, weights = found.order.view, found.weights
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
    return parts + [(found.order.buckets[child].separator, found.messages[child]) for child in bucket.children]


def _envelope_bucket(found: Sweep, bucket: Bucket) -> None:
    """Eliminate along the upper envelope of lines, one line per level."""
    view, weights = found.order.view, found.weights
    v, slopes = bucket.variable, found.order.slopes[bucket.index]
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


def _match(found: Sweep, made: Sequence[int]) -> None:
    """Shift the levels of a variable in each of its copies, by nothing in sum, so that all copies like them alike.

    The bound stays one, and is far lower where copies would each take the level that is best for them alone
    (moment matching, Liu and Ihler, ICML 2011).
    """
    copies = [found.order.buckets[b] for b in made]
    best = np.stack([_best(found, bucket) for bucket in copies])
    allowed = (best > FORBIDDEN / 2).all(axis=0)
    for bucket, shift in zip(copies, np.where(allowed, best.mean(axis=0) - best, 0.0), strict=True):
        _shift(found, bucket, shift)


def _best(found: Sweep, bucket: Bucket) -> np.ndarray:
    """The most that a copy comes to at each level of its variable."""
    v, order, table = bucket.variable, found.order, found.tables[bucket.index]
    if table is None:  # its level follows from the others
        message, levels = found.messages[bucket.index], order.levels[bucket.index]
        return back(message, v, bucket.separator, levels, (v,), order.view.sizes)
    return np.asarray(table.reshape(-1, table.shape[-1]).max(axis=0))


def _shift(found: Sweep, bucket: Bucket, shift: np.ndarray) -> None:
    """Add something to each level of a copy's variable."""
    at, table = bucket.index, found.tables[bucket.index]
    if table is None:
        levels = found.order.levels[at]
        found.messages[at] = found.messages[at] + np.where(levels < 0, 0.0, shift[np.maximum(levels, 0)])
    else:
        table += shift
        found.messages[at] = table.max(axis=-1)


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
        self.sweep, self.order = found, found.order
        self.outside: list[np.ndarray | None] = [None] * len(self.order.buckets)
        roots = [float(found.messages[b.index]) for b in self.order.buckets if b.parent is None]
        self.total, self.roots = found.maximum, roots
        self.marginal: list[np.ndarray] = [np.full(size, np.inf) for size in self.order.view.sizes]

    def run(self, over: Callable[[], bool]) -> list[np.ndarray]:
        """From the last bucket to the first, what each variable's levels can still come to."""
        for bucket in reversed(self.order.buckets):
            if self.order.work > HEAVY and over():
                raise CutShort
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
        found = self.sweep.unaries[bucket.index] + upper_envelope(price, lines, self.order.slopes[bucket.index])
        for child in bucket.children:
            self.outside[child] = found - self.sweep.messages[child]
        return found

    def _unkept(self, bucket: Bucket, outside: np.ndarray) -> np.ndarray:
        """Through a bucket that has no table of its own."""
        v, sizes = bucket.variable, self.order.view.sizes
        scopes = [(v,), *(self.order.buckets[child].separator for child in bucket.children)]
        if bucket.ties:
            levels, belief = self.order.levels[bucket.index], self.sweep.messages[bucket.index] + outside
            found = [back(belief, v, bucket.separator, levels, scope, sizes) for scope in scopes]
        else:
            found = self.sweep.streams[bucket.index].beliefs(outside, scopes)
        for child, best in zip(bucket.children, found[1:], strict=True):
            self.outside[child] = best - self.sweep.messages[child]
        return found[0]

    def _to_child(self, bucket: Bucket, child: int, belief: np.ndarray) -> None:
        separator = self.order.buckets[child].separator
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
