"""Relax: budgets that nothing can meet, moved to the nearest that can be met, the first of them as little as can be."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

from .arguments import search_limits
from .errors import InfeasibleError
from .frontier import measured
from .problem import Problem
from .requests import Budget

P = ParamSpec("P")
R = TypeVar("R")
SHARE = 0.5  # of the time, at most, that the search for the nearest budgets may take


@dataclass(frozen=True)
class Relaxed:
    """The budgets that can be met, in the order asked, and a message where some were moved ("" where none was)."""

    budgets: tuple[Budget, ...]
    told: str
    seconds: float


def relaxed(problem: Problem, budgets: Sequence[Budget], time_limit: float | None = 60.0, seed: int = 0) -> Relaxed:
    """The nearest feasible upper limits, lexicographically: each is kept, or exceeded least, given those before it.

    The problem holds all else that is asked, which is not relaxed: if that alone cannot be met, InfeasibleError says
    so. An excess is least by proof, unless half of `time_limit` (seconds) is over: then the message says so.

    >>> import torch, solvemut as sm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> graph = sm.capture(model, torch.ones(1, 4))
    >>> relaxed(sm.Problem(graph), [graph.params <= 5, graph.flops <= 100]).budgets
    (params <= 9, flops <= 100)
    """
    start, limit = perf_counter(), SHARE * search_limits(time_limit, 0.0, seed)[0]
    state, worth = copy.copy(problem), problem.worth
    state.requests = list(problem.requests)
    found, lines = [], []
    for k, b in enumerate(budgets):
        m = measured(state, b.cost, worth)
        unit = m.counted.scale // b.cost.scale
        part = max(0.05, limit - (perf_counter() - start)) / (len(budgets) - k)
        try:
            least = m.compiled.program.least(m.resources, part, b.limit * unit, seed)
        except InfeasibleError as e:
            raise state._explained(e, worth, limit) from None
        if least.interrupted:
            raise KeyboardInterrupt("the solve was interrupted; nothing was changed")
        spent = Fraction(m.spent(least), unit)
        given = b if spent <= b.limit else Budget(b.cost, spent)
        if given is not b:
            proven = "" if least.status == "optimal" else ", the nearest that was found in time"
            lines.append(f"{b.cost.name}: asked for at most {b.told}, given {given.told}{proven}")
        found.append(given)
        state.requests.append(given)
    told = f"no plan meets these budgets; the nearest that can be are taken: {'; '.join(lines)}" if lines else ""
    return Relaxed(tuple(found), told, perf_counter() - start)


def relax_last(
    problem: Problem, given: Sequence[str], order: Sequence[str], how: tuple[Any, ...]
) -> tuple[dict[str, Budget], tuple[Any, ...]]:
    """Move the budgets that a problem ends with, which have the names `given`, to where a plan meets them; and warn.

    Those in `order` come first. `how` is what `solve` takes; what is left of the time comes back with the budgets.
    """
    others = len(problem.requests) - len(given)
    budgets = {n: b for n, b in zip(given, problem.requests[others:], strict=True) if isinstance(b, Budget)}
    problem.requests = problem.requests[:others]
    problem.settle()  # values are found once, though several programs are solved for them
    names = sorted(budgets, key=[*order, *given].index)
    found = relaxed(problem, [budgets[n] for n in names], how[0], how[2])
    problem.add(*found.budgets)
    if found.told:
        warnings.warn(found.told, stacklevel=4)
    left = how[0] if how[0] is None else max(0.05 * how[0], how[0] - found.seconds)
    return dict(zip(names, found.budgets, strict=True)), (left, *how[1:])


def in_order(function: Callable[P, R]) -> Callable[P, R]:
    """Tell a function in which order its keywords were given, as `order`, unless the caller does.

    >>> in_order(lambda **given: given["order"])(params=0.5, flops=0.3)
    ('params', 'flops')
    """

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.setdefault("order", tuple(kwargs))
        return function(*args, **kwargs)

    return told
