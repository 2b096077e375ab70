"""Several solves of one statement: the k best choices, and a frontier over one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from ..errors import TimeLimitError
from . import driver
from .clock import Clock
from .driver import Infeasible, Options
from .model import Choice, Row, Term
from .solution import Solution
from .statement import Budget, Statement, Sum


def k_best(statement: Statement, k: int, options: Options) -> list[Solution]:
    """Solve, exclude the choice found, solve again."""
    clock = Clock(options.time_limit)
    found: list[Solution] = []
    while len(found) < k and not (found and found[-1].interrupted):
        extra = tuple(exclude(statement, solution.choice) for solution in found)
        try:
            found.append(_next(statement, replace(options, extra=extra), clock))
        except (Infeasible, TimeLimitError):
            if not found:
                raise
            break
    return sorted(found, key=lambda s: _rank(s), reverse=True)


def _rank(solution: Solution) -> tuple[object, ...]:
    signs = [1 if sense == "max" else -1 for sense in solution.statement.senses]
    return tuple(sign * value for sign, value in zip(signs, solution.exact_objectives, strict=True))


def _next(statement: Statement, options: Options, clock: Clock) -> Solution:
    start = clock.seconds
    solution = driver.solve(statement, options, Clock(clock.left) if clock.left else Clock(0.01))
    return replace(solution, seconds=clock.seconds - start)


def exclude(statement: Statement, choice: Choice) -> Row:
    """A row that every other choice keeps, and this one does not."""
    terms = []
    for variable, k in enumerate(choice):
        same = np.zeros(len(statement.widths[variable].levels), dtype=np.int64)
        same[k] = 1
        terms.append(Term((variable,), same))
    return Row("excluded choice", tuple(terms), 0, None, len(choice) - 1)


def frontier(statement: Statement, resource: str, points: int, options: Options) -> list[Solution]:
    """From the loosest budget down, each point started from the ones before it."""
    clock = Clock(options.time_limit)
    budgets = {name: budget for name, budget in statement.budgets.items() if name != resource}
    asked = replace(statement.budgets.get(resource, Budget()), upper=None)
    if asked.lower is not None:
        budgets[resource] = asked
    free = replace(statement, budgets=budgets)
    loosest = driver.solve(free, options, clock.part(clock.left / (points + 1)))
    if loosest.interrupted:
        return [loosest]
    cheapest = _cheapest(free, resource, options, clock.part(clock.left / points))
    high, low = loosest.costs.get(resource, 0), cheapest.costs.get(resource, 0)
    found = [loosest]
    for step in range(1, points):
        limit = high - Fraction((high - low) * step, max(1, points - 1)) if step < points - 1 else low
        point = replace(free, budgets={**budgets, resource: replace(asked, upper=limit)})
        starts = [solution.choice for solution in [*found, cheapest]]
        part = clock.part(max(0.01, clock.left / (points - step)))
        if clock.interrupted:
            break
        found.append(driver.solve(point, replace(options, start=tuple(_affordable(point, starts))), part))
    return _distinct(list(reversed(found)))


def _cheapest(statement: Statement, resource: str, options: Options, clock: Clock) -> Solution:
    """The choice that costs least."""
    cost = statement.costs.get(resource, Sum())
    return driver.solve(replace(statement, values=(cost,), senses=("min",)), replace(options, callback=None), clock)


def _affordable(statement: Statement, choices: Sequence[Choice]) -> list[Choice]:
    return [choice for choice in choices if not statement.violated(choice)]


def _distinct(solutions: list[Solution]) -> list[Solution]:
    seen: set[Choice] = set()
    found = []
    for solution in solutions:
        if solution.choice not in seen:
            seen.add(solution.choice)
            found.append(solution)
    return found
