"""Look for better choices along the bound: assign variables in the reverse of the elimination order.

After elimination each bucket knows how much of the bound a level gives away, given the variables assigned before it.
So a partial choice carries its exact priced bound at no cost, at several multipliers at once; with the objective's own
weight at 0 the same sum is the least a limited row can still come to. Whatever falls below the incumbent, or cannot
come back within a limit, is dropped. If nothing else had to be dropped the search has proven the optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...multipliers import Priced
from ...view import FORBIDDEN
from .dominance import contexts, dominated, live_variables

CROWD = 20  # times what is kept: so many partial choices are compared with one another

Extensions = tuple[np.ndarray, np.ndarray, np.ndarray]  # parent, level and bounds of each


@dataclass(eq=False)
class Found:
    """Complete choices, and the highest bound among partial ones dropped for lack of room (-inf: none)."""

    choices: np.ndarray
    dropped: float


@dataclass(frozen=True, eq=False)
class Compare:
    """Where dominance finds its numbers: the guide that is the bare objective, those that are the bare slacks."""

    value: int
    slacks: list[int]
    both: list[int]  # of those, the ones that must be equal: an equality's
    margins: np.ndarray  # rounding of the value and of each slack; 0 where sums are exact


def search(
    guides: Sequence[Priced],
    threshold: float,
    most: int,
    over: Callable[[], bool],
    compare: Compare | None = None,
    entries: int = 1_500_000,
) -> Found:
    """All choices whose bound is above ``threshold`` at every guide, at most so many kept at a time.

    Guides without the objective (weight 0) demand a bound of at least 0: the limits can still be kept.
    """
    return _Beam(guides, threshold, most, over, compare, entries).run()


class _Beam:
    """Partial choices with their bounds at every guide, extended variable by variable."""

    def __init__(
        self,
        guides: Sequence[Priced],
        threshold: float,
        most: int,
        over: Callable[[], bool],
        compare: Compare | None,
        entries: int,
    ) -> None:
        self.guides, self.most, self.over, self.compare = guides, most, over, compare
        self.order = guides[0].sweep.order
        self.sizes = self.order.view.sizes
        self.entries = entries  # cells looked at together
        threshold = max(threshold, FORBIDDEN / 1e6)
        self.needs = np.array([threshold if guide.objective else 0.0 for guide in guides])
        self.valued = np.array([guide.objective > 0 for guide in guides])
        self.choices = np.zeros((1, len(self.sizes)), dtype=np.int32)
        self.bounds = np.array([[guide.bound + guide.margin for guide in guides]])
        self.dropped = -np.inf

    def run(self) -> Found:
        """Variable after variable: extend, compare, keep the best."""
        live = live_variables(self.order) if self.compare is not None else []
        for step, (v, buckets) in enumerate(reversed(self.order.steps)):
            extended = self._extended(v, buckets)
            if extended is None:  # no time left: all partial choices are dropped
                highest = float(self._score(self.bounds).max(initial=-np.inf))
                return Found(self.choices[:0], max(self.dropped, highest))
            parents, levels, bounds = self._crowded_out(*extended, room=max(CROWD * self.most, 50_000))
            if self.compare is not None and len(parents) > 1:
                moved = self.choices[parents]
                moved[:, v] = levels
                good = ~self._dominated(self.compare, contexts(moved, live[step]), bounds)
                parents, levels, bounds = parents[good], levels[good], bounds[good]
            parents, levels, self.bounds = self._crowded_out(parents, levels, bounds, room=self.most)
            self.choices = self.choices[parents]
            self.choices[:, v] = levels
            if not len(self.choices):
                break
        return Found(self.choices, self.dropped)

    def _score(self, bounds: np.ndarray) -> np.ndarray:
        """The lowest bound on the objective of each partial choice."""
        return bounds[:, self.valued].min(axis=1)

    def _extended(self, v: int, buckets: Sequence[int]) -> Extensions | None:
        """Every partial choice with every level of ``v``, block by block; None where there is no time."""
        parts = []
        block = max(1, self.entries // (self.sizes[v] * len(self.guides)))
        for start in range(0, len(self.choices), block):
            if self.over():
                return None
            at = slice(start, start + block)
            parents, levels, bounds = _extend(self.guides, v, buckets, self.choices[at], self.bounds[at], self.needs)
            parts.append((parents + start, levels, bounds))
        parents, levels, bounds = (np.concatenate(column) for column in zip(*parts, strict=True))
        return parents, levels, bounds

    def _crowded_out(self, parents: np.ndarray, levels: np.ndarray, bounds: np.ndarray, room: int) -> Extensions:
        """The best where there are more than there is room for; the highest bound of the others is noted."""
        if len(parents) <= room:
            return parents, levels, bounds
        kept, lost = _best(self._score(bounds), room)
        self.dropped = max(self.dropped, lost)
        return parents[kept], levels[kept], bounds[kept]

    @staticmethod
    def _dominated(compare: Compare, group: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        slacks = np.hstack([bounds[:, compare.slacks], -bounds[:, compare.both]])
        return dominated(group, bounds[:, compare.value], slacks, compare.margins)


def _best(score: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Where the highest scores are, in order of place, and the highest of the others."""
    order = np.argpartition(-score, count)
    return np.sort(order[:count]), float(score[order[count:]].max())


def _extend(
    guides: Sequence[Priced],
    v: int,
    buckets: Sequence[int],
    choices: np.ndarray,
    bounds: np.ndarray,
    needs: np.ndarray,
) -> Extensions:
    """Every level of ``v`` for every partial choice that stays above what each guide needs."""
    alive, totals = np.True_ & np.ones(1, dtype=bool), []
    for g, guide in enumerate(guides):
        total = bounds[:, g : g + 1].copy()
        for bucket in buckets:
            total = total + guide.sweep.rows(bucket, choices)
            total -= guide.sweep.message_at(bucket, choices)[:, None]
        totals.append(total)
        good = total >= needs[g]
        alive = alive & good
    parents, levels = np.nonzero(alive)
    return parents, levels, np.stack([total[parents, levels] for total in totals], axis=1)
