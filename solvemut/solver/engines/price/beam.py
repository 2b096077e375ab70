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

from ...engines.price.dominance import contexts, dominated, live_variables
from ...multipliers import Priced
from ...view import FORBIDDEN

CROWD = 20  # times the width: so many partial choices are compared with one another


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
    width: int,
    over: Callable[[], bool],
    compare: Compare | None = None,
    entries: int = 1_500_000,
) -> Found:
    """All choices whose bound is above ``threshold`` at every guide, at most ``width`` kept at a time.

    Guides without the objective (weight 0) demand a bound of at least 0: the limits can still be kept.
    """
    plan = guides[0].sweep.plan
    count = len(plan.view.sizes)
    choices = np.zeros((1, count), dtype=np.int32)
    bounds = np.array([[guide.bound + guide.margin for guide in guides]])
    threshold = max(threshold, FORBIDDEN / 1e6)
    needs = np.array([threshold if guide.objective else 0.0 for guide in guides])
    valued = np.array([guide.objective > 0 for guide in guides])
    dropped = -np.inf
    live = live_variables(plan) if compare is not None else []
    for step, (v, buckets) in enumerate(reversed(plan.steps)):
        if over():
            return Found(choices[:0], max(dropped, float(bounds[:, valued].min(axis=1).max(initial=-np.inf))))
        parts = []
        block = max(1, entries // (plan.view.sizes[v] * len(guides)))
        for start in range(0, len(choices), block):
            if start and over():
                return Found(choices[:0], max(dropped, float(bounds[:, valued].min(axis=1).max(initial=-np.inf))))
            found = _extend(guides, v, buckets, choices[start : start + block], bounds[start : start + block], needs)
            parts.append((found[0] + start, found[1], found[2]))
        parents, levels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        bounds = np.concatenate([part[2] for part in parts])
        room = max(CROWD * width, 50_000)
        if len(parents) > room:  # too many to compare: the best of them
            kept, lost = _best(bounds[:, valued].min(axis=1), room)
            dropped = max(dropped, lost)
            parents, levels, bounds = parents[kept], levels[kept], bounds[kept]
        if compare is not None and len(parents) > 1:
            moved = choices[parents]
            moved[:, v] = levels
            value, slacks = bounds[:, compare.value], np.hstack([bounds[:, compare.slacks], -bounds[:, compare.both]])
            good = ~dominated(contexts(moved, live[step]), value, slacks, compare.margins)
            parents, levels, bounds = parents[good], levels[good], bounds[good]
        if len(parents) > width:
            kept, lost = _best(bounds[:, valued].min(axis=1), width)
            dropped = max(dropped, lost)
            parents, levels, bounds = parents[kept], levels[kept], bounds[kept]
        choices = choices[parents]
        choices[:, v] = levels
        if not len(choices):
            break
    return Found(choices, dropped)


def _best(score: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Where the highest scores are, in order of place, and the highest of the others."""
    order = np.argpartition(-score, count)
    return np.sort(order[:count]), float(score[order[count:]].max())


def _extend(
    guides: Sequence[Priced], v: int, buckets: Sequence[int], choices: np.ndarray, bounds: np.ndarray,
    needs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
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
