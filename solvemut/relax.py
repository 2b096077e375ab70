"""Relax: budgets that nothing can meet, moved to the nearest that can be met, the first of them as little as can be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from time import perf_counter

from .arguments import search_limits
from .errors import InfeasibleError
from .frontier import measured
from .problem import Problem
from .requests import Budget

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
        part = max(0.05, limit - (perf_counter() - start)) / (len(budgets) - k)
        try:
            least = m.compiled.program.least(m.resources, part, b.limit, seed)
        except InfeasibleError as e:
            raise state._explained(e, worth, limit) from None
        if least.interrupted:
            raise KeyboardInterrupt("the solve was interrupted; nothing was changed")
        spent = m.spent(least)
        given = b if spent <= b.limit else Budget(b.cost, Fraction(spent))
        if given is not b:
            proven = "" if least.status == "optimal" else ", the nearest that was found in time"
            lines.append(f"{b.cost.name}: asked for at most {b.told}, given {spent}{proven}")
        found.append(given)
        state.requests.append(given)
    told = f"no plan meets these budgets; the nearest that can be are taken: {'; '.join(lines)}" if lines else ""
    return Relaxed(tuple(found), told, perf_counter() - start)
