"""Spreads: how far sizes may lie from where they should, as a part of an objective.

The sum of all deviations keeps needless changes away, the largest one spreads what must change over several sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..coupling import Coupling
from ..flow import Extent

SUM, LARGEST = Fraction(1, 10), Fraction(4, 5)  # their weights


@dataclass(frozen=True, eq=False)
class Deviation:
    """weight * (distance of a size from low..high)."""

    extent: Extent
    low: int | None
    high: int | None
    weight: Fraction
    name: str

    def of(self, size: int | Fraction) -> Fraction:
        """The deviation of a size."""
        below = 0 if self.low is None else max(0, self.low - size)
        above = 0 if self.high is None else max(0, size - self.high)
        return self.weight * max(below, above)


@dataclass(frozen=True, eq=False)
class Unless:
    """1, unless a size is one of `sizes`."""

    extent: Extent
    sizes: frozenset[int]
    name: str

    def of(self, size: int | Fraction) -> Fraction:
        """Whether a size is another one."""
        return Fraction(size not in self.sizes)


@dataclass(frozen=True, eq=False)
class Spread:
    """What an objective loses by deviations: SUM times their sum, and LARGEST times the largest of them."""

    deviations: tuple[Deviation | Unless, ...]
    stage: int

    def of(self, coupling: Coupling, times: np.ndarray) -> float:
        """The loss after a change."""
        found = [d.of(coupling.count(d.extent, times)) for d in self.deviations]
        return float(SUM * sum(found) + LARGEST * max(found, default=Fraction(0)))


def state_spread(statement: Any, spread: Spread) -> None:
    """Write a spread into the program of a `Statement`."""
    program, stated = statement.program, []
    for d in spread.deviations:
        constant, vectors = statement.layout.linear([(d.extent, 1)])
        if not vectors:
            stated.append((d, None, [d.of(int(constant))]))
            program.value(_exact([-SUM * d.of(int(constant))])[0], stage=spread.stage)
            continue
        if len(vectors) == 1:
            ((k, v),) = vectors.items()
            width, sizes = statement.layout.choices[k].width, [x + constant for x in v.tolist()]
        else:
            width = statement.size_width(d.extent, d.name)
            sizes = list(width.levels)
        found = [d.of(size) for size in sizes]
        program.value(_exact([-SUM * x for x in found]), width, stage=spread.stage)
        stated.append((d, width, found))
    _largest(statement, spread, stated)


def _largest(statement: Any, spread: Spread, stated: Sequence[tuple[Any, Any, list[Fraction]]]) -> None:
    """A width of its own stands at or above every deviation, and costs by how far up it stands."""
    program = statement.program
    fixed = max((x[0] for _, width, x in stated if width is None), default=Fraction(0))
    free = [(d, width, x) for d, width, x in stated if width is not None]
    if len(free) == 1:  # no other deviation to be the largest
        ((_, width, found),) = free
        program.value(_exact([-LARGEST * max(x, fixed) for x in found]), width, stage=spread.stage)
        return
    least = max((min(x) for _, _, x in free), default=Fraction(0))
    steps = sorted({x for _, _, found in free for x in found if x >= max(fixed, least)} | {max(fixed, least)})
    if len(steps) == 1:
        program.value(_exact([-LARGEST * steps[0]])[0], stage=spread.stage)
        return
    top = program.width(f"largest deviation ({spread.stage})", range(len(steps)))
    program.value(_exact([-LARGEST * x for x in steps]), top, stage=spread.stage)
    for d, width, found in free:
        if max(found) <= steps[0]:
            continue
        resource = statement.free_name(f"{d.name} deviates no more than the largest ({spread.stage})")
        program.cost(resource, _exact(found), width)
        program.cost(resource, _exact([-x for x in steps]), top)
        program.budget(resource, 0)


def _exact(values: Sequence[Fraction]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = [int(x) if x.denominator == 1 else x for x in map(Fraction, values)]
    return out
