"""What an elimination plan says: the order of the variables, and what meets in each bucket."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .view import View


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
        return (*self.separator, self.variable)


@dataclass(eq=False)
class Item:
    """A table waiting to be eliminated: its scope, and where it comes from."""

    kind: str  # "dense", "hard", "tie", "rank" or "message"
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
    levels: dict[int, np.ndarray]  # tied buckets: the variable's level on the separator's grid

    @cached_property
    def work(self) -> float:
        """How many cells a sweep looks at, about."""
        return sum(bucket.work for bucket in self.buckets)

    @cached_property
    def stored(self) -> float:
        """How many cells a sweep keeps."""
        return sum(bucket.stored for bucket in self.buckets)


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
