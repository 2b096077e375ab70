"""Rounds: every kind of node is timed at every point of its grid, in passes through the model as a forward makes them.

In a pass each node takes the next point of its kind's grid. So what lies in the caches is what lies there in a forward,
and whatever slows the machine down for a while hits all nodes of a pass: it is found as that pass's factor, and taken
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .clock import Clock
from .grid import array_of
from .samples import Call
from .sites import Site

Point = tuple[int, ...]


@dataclass(eq=False)
class Kind:
    """Nodes that do the same: their grid, and seconds by point, each with the number of its pass."""

    key: str
    sites: list[Site]
    grid: tuple[tuple[int, ...], ...]
    samples: dict[Point, list[tuple[int, float]]] = field(default_factory=dict)
    note: str = ""
    queue: list[Point] = field(default_factory=list)

    @property
    def points(self) -> list[Point]:
        return [tuple(a[i] for a, i in zip(self.grid, at, strict=True)) for at in np.ndindex(*map(len, self.grid))]

    def missing(self, rounds: int) -> int:
        """How many samples are missing until every point has that many."""
        return sum(max(0, rounds - len(self.samples.get(p, ()))) for p in self.points)

    def next(self, rng: np.random.Generator) -> Point:
        """The next point: all of them in turn, in another order each time, those with fewest samples first."""
        if not self.queue:
            found = self.points
            order = rng.permutation(len(found))
            self.queue = sorted((found[i] for i in order), key=lambda p: -len(self.samples.get(p, ())))
        return self.queue.pop()


def run_passes(
    kinds: Sequence[Kind],
    clock: Clock,
    call: Callable[[Site, Point], Call],
    rounds: int,
    rng: np.random.Generator,
    first: int,
    after: Callable[[int, int], Any],
) -> int:
    """Passes until every point has its samples; `after` hears the number of a pass and of those to come."""
    every = [(site, kind) for kind in kinds for site in kind.sites]
    place = {n.name: k for site, _ in every[:1] for k, n in enumerate(site.graph.trace.nodes)}
    every.sort(key=lambda x: place[x[0].node.name])
    number = first
    while left := max((-(-k.missing(rounds) // len(k.sites)) for k in kinds), default=0):
        chosen = [(kind, kind.next(rng)) for _, kind in every]
        calls = [call(site, point) for (site, _), (_, point) in zip(every, chosen, strict=True)]
        clock.laps(calls)  # the first touches what the others find in the caches
        laps = clock.laps(calls)
        for (kind, point), c, seconds in zip(chosen, calls, laps, strict=True):
            kind.samples.setdefault(point, []).append((number, max(0.0, seconds - c.idle)))
        number += 1
        after(number, left - 1)
    return number


def settled(kinds: Sequence[Kind]) -> dict[str, dict[Point, float]]:
    """Seconds by kind and point: medians over passes, each sample divided by the factor of its pass."""
    factors: dict[int, float] = {}
    for _ in range(3):
        found = {
            k.key: {p: float(np.median([s / factors.get(n, 1.0) for n, s in k.samples[p]])) for p in k.points}
            for k in kinds
            if all(p in k.samples for p in k.points)
        }
        factors = _factors(kinds, found)
    return found


def _factors(kinds: Sequence[Kind], found: Mapping[str, Mapping[Point, float]]) -> dict[int, float]:
    """By how much each pass was slower than usual: the median over nodes, weighted by their time."""
    by_pass: dict[int, list[tuple[float, float]]] = {}
    for k in kinds:
        for p, samples in k.samples.items():
            usual = found.get(k.key, {}).get(p, 0.0)
            for n, s in samples if usual > 0 else ():
                by_pass.setdefault(n, []).append((s / usual, usual))
    factors = {n: _weighted_median(pairs) for n, pairs in by_pass.items()}
    middle = float(np.median(list(factors.values()))) if factors else 1.0
    return {n: f / middle for n, f in factors.items()}


def _weighted_median(pairs: Sequence[tuple[float, float]]) -> float:
    values, weights = map(np.array, zip(*sorted(pairs), strict=True))
    reached = np.cumsum(weights)
    return float(values[np.searchsorted(reached, reached[-1] / 2)])


def surfaces(kinds: Sequence[Kind]) -> dict[str, np.ndarray]:
    """By kind the seconds over its grid."""
    found = settled(kinds)
    return {k.key: array_of(k.grid, found[k.key]) for k in kinds if k.key in found}
