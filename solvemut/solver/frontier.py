"""Several solves of one statement: the k best choices, the least of a resource, and a frontier over one budget."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from ..errors import TimeLimitError
from . import driver
from .clock import Clock
from .driver import Infeasible, Options
from .exact import Number
from .model import Choice, Row, Term
from .solution import Progress, Solution
from .statement import Budget, Statement, Sum


def k_best(statement: Statement, k: int, options: Options, among: Collection[int] | None = None) -> list[Solution]:
    """Solve, exclude the choice found, solve again; each with an equal part of the time that is left.

    Choices differ in the widths `among`, or in any.
    """
    clock = Clock(options.time_limit)
    found: list[Solution] = []
    while len(found) < k and not (found and found[-1].interrupted):
        extra = tuple(exclude(statement, solution.choice, among) for solution in found)
        try:
            part = clock.part(max(0.01, clock.left / (k - len(found))))
            found.append(driver.solve(statement, replace(options, extra=extra), part))
        except (Infeasible, TimeLimitError):
            if not found:
                raise
            break
    return sorted(found, key=lambda s: _rank(s), reverse=True)


def _rank(solution: Solution) -> tuple[object, ...]:
    signs = [1 if sense == "max" else -1 for sense in solution.statement.senses]
    return tuple(sign * value for sign, value in zip(signs, solution.exact_objectives, strict=True))


def exclude(statement: Statement, choice: Choice, among: Collection[int] | None = None) -> Row:
    """A row that this choice does not keep, and every other one does that differs in the widths `among`, or in any."""
    terms = []
    for variable in range(len(choice)) if among is None else sorted(among):
        same = np.zeros(len(statement.widths[variable].levels), dtype=np.int64)
        same[choice[variable]] = 1
        terms.append(Term((variable,), same))
    return Row("excluded choice", tuple(terms), 0, None, len(terms) - 1)


def frontier(statement: Statement, resources: Sequence[str], points: int, options: Options) -> list[Solution]:
    """From the loosest budget down, each point started from the ones before it; cheapest first.

    Of several resources the largest counts: each has the budget.
    """
    clock = Clock(options.time_limit)
    asked = {name: replace(statement.budgets.get(name, Budget()), upper=None) for name in resources}
    budgets = {name: budget for name, budget in statement.budgets.items() if name not in asked}
    budgets.update((name, budget) for name, budget in asked.items() if budget.lower is not None)
    free = replace(statement, budgets=budgets)
    loosest = driver.solve(free, options, clock.part(clock.left / (points + 1)))
    if loosest.interrupted:
        return [loosest]
    cheapest = least(free, resources, replace(options, callback=None), clock.part(clock.left / points))
    if cheapest.interrupted:
        return [replace(loosest, interrupted=True)]
    high, low = spent(loosest, resources), spent(cheapest, resources)
    found = [loosest]
    for step in range(1, points):
        limit = high - Fraction((high - low) * step, max(1, points - 1)) if step < points - 1 else low
        limits = {name: replace(budget, upper=limit) for name, budget in asked.items()}
        point = replace(free, budgets={**budgets, **limits})
        starts = [solution.choice for solution in [*found, cheapest]]
        part = clock.part(max(0.01, clock.left / (points - step)))
        if clock.interrupted:
            break
        found.append(driver.solve(point, replace(options, start=tuple(_affordable(point, starts))), part))
    return list(reversed(found))


def spent(solution: Solution, resources: Sequence[str]) -> Number:
    """The largest of some costs of a solution."""
    return max((solution.costs.get(name, 0) for name in resources), default=0)


def least(
    statement: Statement, resources: Sequence[str], options: Options, clock: Clock, enough: Number | None = None
) -> Solution:
    """The choice for which the largest of these costs is least, or at most `enough`; optimal where that is proven."""

    def minimised(resource: str, clock: Clock) -> Solution:
        def callback(progress: Progress) -> bool:
            stop = options.callback is not None and options.callback(progress) is True
            found = progress.incumbent
            return stop or (alone and enough is not None and found is not None and found <= enough)

        cost = statement.costs.get(resource, Sum())
        state = replace(statement, values=(cost,), senses=("min",))
        return driver.solve(state, replace(options, callback=callback), clock)

    alone = len(resources) == 1
    each = [minimised(name, clock.part(clock.left / (2 if not alone else 1))) for name in resources]
    best = min(each, key=lambda s: spent(s, resources))
    low = max(s.exact_bounds[0] for s in each)
    while not alone and not clock.over and _apart(low, high := spent(best, resources), enough):
        middle = (low + high) // 2 if isinstance(low, int) and isinstance(high, int) else Fraction(low + high) / 2
        limits = {n: replace(statement.budgets.get(n, Budget()), upper=middle) for n in resources}
        state = replace(statement, values=(Sum(),), senses=("max",), budgets={**statement.budgets, **limits})
        try:
            best = driver.solve(state, replace(options, callback=None), clock.part(max(0.01, clock.left / 2)))
        except Infeasible:
            low = middle + 1 if isinstance(middle, int) else middle
        except TimeLimitError:
            break
    proven = best.status == "optimal" if alone else low >= spent(best, resources)
    interrupted = any(s.interrupted for s in (*each, best))
    return replace(best, status="optimal" if proven else "feasible", interrupted=interrupted)


def _apart(low: Number, high: Number, enough: Number | None) -> bool:
    """Whether a bisection goes on; whole numbers are told apart exactly, others to a relative 1e-9."""
    near = 0 if isinstance(low, int) and isinstance(high, int) else abs(Fraction(high)) / 10**9
    return high - low > near and (enough is None or high > enough)


def _affordable(statement: Statement, choices: Sequence[Choice]) -> list[Choice]:
    return [choice for choice in choices if not statement.violated(choice)]


def distinct(solutions: list[Solution]) -> list[Solution]:
    """The first solution of each choice."""
    seen: set[Choice] = set()
    found = []
    for solution in solutions:
        if solution.choice not in seen:
            seen.add(solution.choice)
            found.append(solution)
    return found
