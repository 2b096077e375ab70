"""Stage after stage: from a statement to a solution with its certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import TimeLimitError
from . import engines
from .certificate import Answer, Certificate, Request, relative_gap
from .clock import Clock
from .engines import enumeration
from .exact import Number, RankOne, entry, nearest
from .model import Choice, Model, Row, Term
from .solution import Progress, Solution
from .statement import Statement, total
from .walk import walk

TICK_SECONDS = 0.1
SHARE = 0.96  # of the time limit; the rest is for the step under way, and for the certificate
BISECTIONS = 6


class Infeasible(Exception):
    """Raised inside: no choice satisfies the statement."""


@dataclass(frozen=True)
class Options:
    """How to search."""

    time_limit: float = 60.0
    gap: Number = 0
    seed: int = 0
    callback: Callable[[Progress], Any] | None = None
    engine: str = "auto"
    extra: tuple[Row, ...] = ()  # rows beside the statement's own: choices excluded, say
    start: tuple[Choice, ...] = ()  # choices to try first


@dataclass
class Search:
    """A search over all stages with one clock."""

    statement: Statement
    options: Options
    clock: Clock
    stage: int = 0
    phase: str = "start"
    known: Answer = field(default_factory=Answer)
    ran: list[str] = field(default_factory=list)  # the engines that set to work, in turn
    notes: list[str] = field(default_factory=list)  # what they left undone, and why
    told: float = 0.0

    def tick(self) -> None:
        """Report now and then."""
        if self.clock.seconds - self.told >= TICK_SECONDS:
            self.report()

    def report(self) -> None:
        """Tell the callback where the search stands; stop if it asks to."""
        self.told = self.clock.seconds
        if self.options.callback is None or self.clock.stopped:
            return
        sign = 1 if self.statement.senses[self.stage] == "max" else -1
        value, bound = self.known.value, self.known.bound
        gap = None if value is None or bound is None else nearest(relative_gap(value, bound))
        progress = Progress(
            None if value is None else total(sign * value),
            None if bound is None else total(sign * bound),
            gap,
            self.clock.seconds,
            self.phase,
        )
        try:
            if self.options.callback(progress) is True:
                self.clock.stop()
        except KeyboardInterrupt:
            self.clock.interrupt()


def solve(statement: Statement, options: Options, clock: Clock | None = None) -> Solution:
    """Solve every stage in turn, each under what the ones before it reached."""
    clock = Clock(SHARE * options.time_limit) if clock is None else clock
    search = Search(statement, options, clock)
    rows: list[Row] = list(options.extra)
    answers: list[Answer] = []
    start = _starts(statement, options)
    engine = engines.named(options.engine)
    for stage in range(len(statement.values)):
        search.stage = stage
        search.known = Answer()
        model = statement.model(stage, rows=rows)
        if answers:
            start = [choice for choice in [answers[-1].choice] if choice is not None]
        answer = _stopped_or_solved(search, model, engine, start)
        if clock.interrupted and answer.choice is None:
            raise KeyboardInterrupt
        if answer.infeasible and not answers:
            raise Infeasible
        if answer.choice is None:
            raise TimeLimitError(
                f"no feasible choice was found in {clock.seconds:.2f} s, time_limit {options.time_limit:g} s; "
                "a longer time limit or a hint may help"
            )
        answers.append(answer)
        rows.append(replace(statement.objective(stage), lower=answer.value))
    return _solution(search, answers)


def _starts(statement: Statement, options: Options) -> list[Choice]:
    """Choices to try first: the ones given, the hint, and every width at the same fraction of its levels."""
    found = list(options.start)
    if statement.hint:
        found.append(tuple(statement.hint.get(v, 0) for v in range(len(statement.widths))))
    return found


def _uniform(statement: Statement, fraction: float) -> Choice:
    """Every width at a fraction of its levels in order of size; fixed ones as fixed; switches on."""
    found = []
    for width in statement.widths:
        at = 1.0 if width.is_switch else fraction
        found.append(statement.fixed.get(width.index, width.by_size[round(at * (len(width.levels) - 1))]))
    return tuple(found)


def _first(search: Search, model: Model, request: Request, start: Sequence[Choice]) -> Answer:
    """An incumbent at once, where one is easy: what is given, the largest uniform choice that is feasible, a walk."""
    statement, first = search.statement, Certificate(request)
    for choice in start:
        first.offer(choice)
        request.hint = first.answer.choice if first.answer.choice is not None else choice
    low, high = 0.0, 1.0
    if enumeration.fits(model.combinations) or first.offer(_uniform(statement, 1.0)):
        return first.answer
    if first.offer(_uniform(statement, 0.0)):
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if first.offer(_uniform(statement, middle)) else (low, middle)
    if search.stage == 0:  # a later stage starts at a choice that is best for those before it
        top = dict(enumerate(_uniform(statement, 1.0)))
        any(walk(model, begin, first.offer, first.over) for begin in (statement.hint, top) if begin)
    return first.answer


def _stopped_or_solved(
    search: Search, model: Model, engine: Callable[[Request], Answer], start: Sequence[Choice]
) -> Answer:
    """A stage's answer; where Ctrl-C or a lack of memory ended it, what was known, or what the stage began with."""
    try:
        return _solve_stage(search, model, engine, start)
    except KeyboardInterrupt:
        search.clock.interrupt()
    except MemoryError as error:
        search.notes.append(f"{search.ran[-1] if search.ran else 'the search'} ran out of memory ({error})")
    known = replace(search.known)
    if known.choice is None and search.stage > 0:
        known.choice, known.value = start[0], model.objective.at(start[0])
    return known


def _solve_stage(search: Search, model: Model, engine: Callable[[Request], Answer], start: Sequence[Choice]) -> Answer:
    options, most = search.options, _trivial_bound(search.statement, search.stage)
    request = Request(
        model,
        search.clock,
        options.gap,
        options.seed,
        most=most,
        on_engine=search.ran.append,
        on_note=search.notes.append,
        tick=search.tick,
    )

    def improved(choice: Choice, value: Number) -> None:
        if search.known.value is None or value > search.known.value:
            search.known.choice, search.known.value = choice, value
            search.report()

    def bounded(bound: Number) -> None:
        search.known.limit(bound)
        search.report()

    request.on_choice, request.on_bound = improved, bounded
    first = _first(search, model, request, start)
    request.hint = first.choice or request.hint
    answer = first if first.value is not None and first.value >= most else engine(request)
    if answer.value is not None and answer.value >= most:
        answer.limit(answer.value)
    if first.value is not None and (answer.value is None or first.value > answer.value):
        answer.choice, answer.value, answer.infeasible = first.choice, first.value, False
    search.known, search.phase = answer, "done"
    search.report()
    return answer


def _solution(search: Search, answers: list[Answer]) -> Solution:
    statement, options, clock = search.statement, search.options, search.clock
    choice = answers[-1].choice
    assert choice is not None
    signs = [1 if sense == "max" else -1 for sense in statement.senses]
    objectives = tuple(values.row("").at(choice) for values in statement.values)
    bounds: list[Number] = []
    for sign, answer, objective in zip(signs, answers, objectives, strict=True):
        bound = answer.bound if answer.bound is not None else _trivial_bound(statement, len(bounds))
        bounds.append(sign * max(bound, sign * objective))
    gaps = [
        relative_gap(sign * objective, sign * bound)
        for sign, objective, bound in zip(signs, objectives, bounds, strict=True)
    ]
    proven = all(gap <= options.gap for gap in gaps)
    return Solution(
        choices={width.name: width.levels[k] for width, k in zip(statement.widths, choice, strict=True)},
        status="optimal" if proven else "feasible",
        interrupted=clock.interrupted,
        objectives=tuple(map(total, objectives)),
        bounds=tuple(map(total, bounds)),
        gaps=tuple(map(nearest, gaps)),
        costs={name: statement.cost_row(name).at(choice) for name in {**statement.costs, **statement.budgets}},
        seconds=clock.seconds,
        solver=" + ".join(dict.fromkeys(search.ran)) or options.engine,
        notes=() if proven else tuple(dict.fromkeys(_notes(search))),
        statement=statement,
        choice=choice,
        exact_objectives=objectives,
        exact_bounds=tuple(bounds),
    )


def _notes(search: Search) -> list[str]:
    """Why the gap asked for is not proven."""
    clock = search.clock
    if clock.stopped:
        return [*search.notes, "the search was " + ("interrupted" if clock.interrupted else "stopped by the callback")]
    return (
        [*search.notes, f"the time limit of {search.options.time_limit:g} s was reached"]
        if clock.over
        else search.notes
    )


def _trivial_bound(statement: Statement, stage: int) -> Number:
    """The sum of each term's best entry: a bound where no engine has given one."""
    row = statement.objective(stage)
    bound: Number = row.constant
    for term in row.terms:
        bound = bound + _best(term)
    return bound


def _best(term: Term) -> Number:
    """A bound on what one term can come to."""
    if isinstance(term.table, RankOne):
        ends = [[entry(f, int(f.argmin())), entry(f, int(f.argmax()))] for f in (term.table.first, term.table.second)]
        best = max(x * y for x in ends[0] for y in ends[1])
    else:
        best = entry(term.table, *(int(i) for i in np.unravel_index(int(term.table.argmax()), term.table.shape)))
    return max(0, best) if term.when is not None else best
