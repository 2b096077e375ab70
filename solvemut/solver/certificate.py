"""What an engine is asked, and what it answers. One interface for all engines, and one conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from .compact import Compact
from .exact import Number, simplify
from .model import Choice, Clock, Model


def relative_gap(value: Number, bound: Number) -> Number:
    """How far a bound lies above a value, relative to the value, exact.

    >>> relative_gap(10, 11)
    Fraction(1, 10)
    """
    if bound <= value:
        return 0
    return Fraction(bound - value) / max(Fraction(1, 10**12), abs(Fraction(value)))


@dataclass
class Request:
    """Maximise a model's objective until the gap is proven or the clock runs out."""

    model: Model
    clock: Clock
    gap: Number = 0
    seed: int = 0
    workers: int = 1
    hint: Choice | None = None
    effort: float | None = None  # at most so much work, in the engine's own deterministic unit
    feasibility: bool = False  # any feasible choice will do
    on_choice: Callable[[Choice, Number], None] = lambda choice, value: None
    on_bound: Callable[[Number], None] = lambda bound: None
    tick: Callable[[], None] = lambda: None

    def close_enough(self, value: Number | None, bound: Number | None) -> bool:
        """Whether the gap asked for is proven."""
        return value is not None and bound is not None and relative_gap(value, bound) <= self.gap


@dataclass
class Answer:
    """The best choice found (exactly feasible), an upper bound, and whether the engine finished what was asked."""

    choice: Choice | None = None
    value: Number | None = None
    bound: Number | None = None
    infeasible: bool = False
    finished: bool = False
    engine: str = ""  # what brought the answer, where that is not the engine asked
    notes: list[str] = field(default_factory=list)

    def offer(self, request: Request, choice: Sequence[int]) -> bool:
        """Take a choice if exact arithmetic finds it feasible and better."""
        candidate = tuple(int(k) for k in choice)
        if candidate == self.choice or not request.model.feasible(candidate):
            return False
        value = request.model.objective.at(candidate)
        if self.value is None or value > self.value:
            self.choice, self.value = candidate, value
            request.on_choice(candidate, value)
        return True

    def limit(self, bound: Number) -> None:
        """Take an upper bound if it is tighter."""
        if self.bound is None or bound < self.bound:
            self.bound = simplify(bound)


def settled(reduced: Compact) -> Answer | None:
    """The answer where nothing is left to choose."""
    if any(len(domain) == 0 for domain in reduced.domains):
        return Answer(infeasible=True, finished=True)
    if reduced.model.domains:
        return None
    if not all(row.holds(()) for row in reduced.model.rows):
        return Answer(infeasible=True, finished=True)
    value = reduced.model.objective.at(())
    return Answer(reduced.decode(()), value, value, finished=True)
