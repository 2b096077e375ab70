"""What an engine is asked, what it answers, and the certificate that it builds up meanwhile: one for all engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor
from typing import Any

from .clock import Clock
from .compact import Compact
from .exact import Number, RankOne, simplify
from .integral import integral
from .model import Choice, Model, Row


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
    most: Number | None = None  # no choice is worth more, as every term at its best comes to this
    on_engine: Callable[[str], None] = lambda name: None  # told the name of each engine that sets to work
    on_note: Callable[[str], None] = lambda note: None  # told what an engine left undone, and why
    on_choice: Callable[[Choice, Number], None] = lambda choice, value: None
    on_bound: Callable[[Number], None] = lambda bound: None
    tick: Callable[[], None] = lambda: None


@dataclass
class Answer:
    """The best choice found (exactly feasible), an upper bound, and whether the engine finished what was asked."""

    choice: Choice | None = None
    value: Number | None = None
    bound: Number | None = None
    infeasible: bool = False
    finished: bool = False

    def limit(self, bound: Number) -> None:
        """Take an upper bound if it is tighter."""
        if self.bound is None or bound < self.bound:
            self.bound = simplify(bound)


@dataclass(eq=False)
class Certificate:
    """The answer to a request in the making: every offer is checked, every bound covers what was dropped, too."""

    request: Request
    objective: Row | None = None  # if given, bounds are rounded down to a value that it can have
    answer: Answer = field(default_factory=Answer)
    decode: Callable[[Choice], Choice] = lambda choice: choice  # from the model worked on to the one asked about
    dropped: Number | None = None  # no choice dropped so far is worth more
    unit: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.unit = Fraction(0) if self.objective is None else unit_of(self.objective)

    # -- offer -------------------------------------------------------------------------------------------------------

    def offer(self, choice: Sequence[int]) -> bool:
        """Take a choice if exact arithmetic finds it feasible and better; whether it is feasible and was not known."""
        candidate, answer, model = tuple(int(k) for k in choice), self.answer, self.request.model
        if candidate == answer.choice or not model.feasible(candidate):
            return False
        value = model.objective.at(candidate)
        if answer.value is None or value > answer.value:
            answer.choice, answer.value = candidate, value
            self.request.on_choice(candidate, value)
        return True

    def take(self, choice: Sequence[int]) -> bool:
        """Offer a choice of the model worked on."""
        return self.offer(self.decode(tuple(choice)))

    def offer_hint(self) -> None:
        """Begin with the choice that the request brings, if any."""
        if self.request.hint is not None:
            self.offer(self.request.hint)

    # -- bound -------------------------------------------------------------------------------------------------------

    def bound(self, bound: Number) -> None:
        """A bound on what is left bounds everything, together with the incumbent and what was dropped."""
        if self.objective is not None and self.unit:
            constant = self.objective.constant
            bound = constant + self.unit * floor((bound - constant) / self.unit)
        self.answer.limit(max(b for b in (bound, self.dropped, self.answer.value) if b is not None))
        assert self.answer.bound is not None
        self.request.on_bound(self.answer.bound)

    def incumbent(self) -> Number | None:
        """The value of the best choice so far."""
        return self.answer.value

    def cutoff(self) -> Number | None:
        """What a choice must exceed to be of interest; what is worth no more counts as dropped from here on.

        An objective in whole units cannot lie within a unit above the incumbent. None: there is no incumbent.
        """
        value = self.answer.value
        if value is None:
            return None
        enough = value
        if self.request.gap:
            enough = simplify(value + Fraction(self.request.gap) * abs(Fraction(value)))
        if self.dropped is None or enough > self.dropped:
            self.dropped = enough
        return max(enough, value + self.unit * Fraction(999, 1000))

    # -- close -------------------------------------------------------------------------------------------------------

    @property
    def proven(self) -> bool:
        """Whether the gap asked for is proven."""
        value, bound = self.answer.value, self.answer.bound
        return value is not None and bound is not None and relative_gap(value, bound) <= self.request.gap

    @property
    def best(self) -> bool:
        """Whether the incumbent is worth as much as every term at its best comes to."""
        most, value = self.request.most, self.answer.value
        return most is not None and value is not None and value >= most

    @property
    def enough(self) -> bool:
        """Whether any feasible choice was asked for, and there is one."""
        return self.request.feasibility and self.answer.choice is not None

    def over(self) -> bool:
        """Whether to stop, for lack of time or of anything left to do; a good moment to report."""
        self.request.tick()
        return self.enough or self.best or self.request.clock.over

    def rest(self, model: Model, **changes: Any) -> Request:
        """What another engine is asked about what is left; what it finds and proves counts here at once."""

        def found(choice: Choice, value: Number) -> None:
            self.take(choice)

        return replace(self.request, **{"model": model, "on_choice": found, "on_bound": self.bound, **changes})

    def close(self, done: Answer) -> Answer:
        """Take over the answer on the rest."""
        if done.choice is not None:
            self.take(done.choice)
        if done.infeasible:
            return self.complete()
        if done.bound is not None:
            self.bound(done.bound)
        self.answer.finished = done.finished
        return self.answer

    def complete(self) -> Answer:
        """Nothing of interest is left beyond the incumbent."""
        self.answer.finished = True
        self.answer.infeasible = self.answer.value is None
        if self.answer.value is not None:
            self.bound(self.answer.value)
        return self.answer


def unit_of(objective: Row) -> Fraction:
    """All values of an objective differ by multiples of this; 0 where that would be too fine to be of use."""
    tables = [term.table for term in objective.terms]
    vectors = [v for t in tables for v in ((t.first, t.second) if isinstance(t, RankOne) else (t,))]
    if not vectors or any(vector.dtype.kind != "i" for vector in vectors):
        return Fraction(0)
    return integral(objective).scale


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
