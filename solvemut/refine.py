"""Refine: proposals of the program are measured by the real loss, the measurements correct the values, and again.

Values are added up over groups as if these did not interact. They do; so the plans that are proposed are made, repaired
and measured, and each group's curve gets a factor with which the sum comes as near as it can to what was measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .apply import Plan
from .compile import Curve, Worth
from .errors import InfeasibleError, RequestError, ValuesError
from .graph import Graph
from .plan import kept_units
from .problem import Problem
from .progress import counted
from .select import certified, uniform_of
from .values import kinds, ranked

STRAY = 0.5  # standard deviation of the logarithms by which factors are changed to look around
LIMIT = 8.0  # how far a group's factor may lie from that of all
Measure = Callable[[Plan], float]


@dataclass(frozen=True, eq=False)
class Trial:
    """A plan with its measured loss, and what it costs by the curve of each group."""

    title: str
    plan: Plan
    loss: float
    costs: np.ndarray
    factors: np.ndarray


def refined(problem: Problem, k: int, measure: Measure, how: tuple[Any, ...]) -> Plan:
    """Of k plans for one problem the one that measures best; `how` is what `solve` takes.

    The optimum under the values as they are comes first, then the uniform plan, if there is one within the budgets: the
    loss of the plan is above neither. Its certificate is that under the values given; `plan.trials` has all measured
    losses.
    """
    if problem.slots is not None:
        raise RequestError("refine: plans are told apart by the units that stay; leave grow= out")
    given = problem.worth
    state = copy.copy(problem)
    state.maximize(given)
    best = state.solve(*how)
    if best.status == "interrupted":
        return best
    worth = by_group(given, problem.graph)
    quiet, rng = (*how[:4], "raise"), np.random.default_rng(how[2])
    tried: list[Trial] = []

    def take(title: str, plan: Plan, factors: np.ndarray) -> None:
        costs = _costs(worth, kept_units(problem.graph, plan))
        tried.append(Trial(title, plan, measure(plan), costs, factors))

    even, interrupted = np.ones(len(worth.curves)), False
    try:
        for step in counted(range(k), "refine", how[3]):
            if step == 0:
                take("optimum", best, even)
            elif step == 1 and (uniform := _uniform(state, best, quiet)) is not None:
                take("uniform", uniform, even)
            else:
                title, plan, factors = _proposed(problem, worth, tried, step, rng, quiet)
                take(f"{title} {step}", plan, factors)
    except KeyboardInterrupt:
        if how[4] != "return":
            raise
        interrupted = True
    if not interrupted and not any(map(_finite, tried)):
        raise ValuesError(f"refine: the loss of each of {k} plans is {tried[0].loss}, or another that is not finite")
    ranked = sorted(tried, key=lambda t: t.loss if _finite(t) else np.inf)
    plan = ranked[0].plan if ranked else best
    if plan is not best:
        plan = certified(plan, state.objective_of(kept_units(problem.graph, plan)), best)
    if interrupted:
        note = f"interrupted after {len(tried)} of {k} plans were measured"
        plan = replace(plan, status="interrupted", notes=(note, *plan.notes))
    trials = tuple((t.title, t.loss) for t in ranked if _finite(t))
    if beyond := [t.title for t in ranked if not _finite(t)]:
        plan = replace(plan, notes=(*plan.notes, f"the loss of these plans is not finite: {', '.join(beyond)}"))
    return replace(plan, trials=trials, values=problem.values_name)


def _best(tried: list[Trial]) -> Trial:
    return min(tried, key=lambda t: t.loss if _finite(t) else np.inf)


def _finite(trial: Trial) -> bool:
    return bool(np.isfinite(trial.loss))


def _uniform(problem: Problem, best: Plan, how: tuple[Any, ...]) -> Plan | None:
    try:
        return uniform_of(problem, best, how)
    except InfeasibleError:
        return None


def by_group(worth: Worth, graph: Graph) -> Worth:
    """The same worth with a curve for every group: where units have numbers, the sum of the best."""
    curves = list(worth.curves)
    value = np.array(worth.value, dtype=float)
    taken = np.zeros(len(value), dtype=bool)
    for c in curves:
        taken[c.units] = True
    for units in kinds(graph)[0]:
        if taken[units].any():
            continue
        best = ranked(graph, units, value)
        curves.append(Curve(best, np.concatenate([[0.0], np.cumsum(value[best])])))
        taken[best] = True
    value[taken] = 0.0
    return replace(worth, value=value, curves=tuple(curves))


def _costs(worth: Worth, kept: np.ndarray) -> np.ndarray:
    """What each curve says is lost."""
    return np.array([float(c.worth[-1] - c.worth[int(kept[c.units].sum())]) for c in worth.curves])


def _proposed(
    problem: Problem, worth: Worth, tried: list[Trial], step: int, rng: np.random.Generator, how: tuple[Any, ...]
) -> tuple[str, Plan, np.ndarray]:
    """The optimum under corrected values; at every other step, or where that is known, under values near the best."""
    known = {_key(t.plan) for t in tried}
    title, factors = "corrected", corrected(tried)
    for attempt in range(4):
        if step % 2 or attempt:
            title, start = "near the best", _best(tried).factors if attempt % 2 else factors
            factors = start * np.exp(STRAY * rng.standard_normal(len(start)))
        state = copy.copy(problem)
        state.maximize(_scaled(worth, factors))
        plan = state.solve(*how)
        if _key(plan) not in known:
            break
    return title, plan, factors


def _scaled(worth: Worth, factors: np.ndarray) -> Worth:
    curves = [replace(c, worth=np.asarray(c.worth) * f) for c, f in zip(worth.curves, factors, strict=True)]
    return replace(worth, curves=tuple(curves))


def _key(plan: Plan) -> tuple[tuple[str, tuple[int, int]], ...]:
    return tuple(plan.sizes.items())


def corrected(tried: list[Trial], ridge: float = 1.0) -> np.ndarray:
    """A factor for each curve: the least squares fit of the measured losses, drawn towards one factor for all.

    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> trials = [Trial("", None, 5 + r @ [1.0, 3.0], r, np.ones(2)) for r in rows]
    >>> corrected(trials, ridge=1e-9).round(3).tolist()
    [0.5, 1.5]
    """
    known = [t for t in tried if _finite(t)]
    if not known:
        return np.ones_like(tried[0].factors)
    costs = np.stack([t.costs for t in known])
    losses = np.array([t.loss for t in known])
    x, y = costs - costs.mean(axis=0), losses - losses.mean()
    spread = np.square(x).sum() / max(1, x.shape[1])
    if not spread > 0:
        return np.ones(costs.shape[1])
    total = x.sum(axis=1)
    common = float(total @ y) / max(float(total @ total), 1e-30)
    common = common if common > 0 else float(np.abs(y).sum() / max(np.abs(x).sum(), 1e-30))
    if not common > 0:
        return np.ones(costs.shape[1])
    more = np.linalg.solve(x.T @ x + ridge * spread * np.eye(x.shape[1]), x.T @ (y - common * total))
    found = np.clip((common + more) / common, 1 / LIMIT, LIMIT)
    return found / found.mean()
