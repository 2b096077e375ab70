"""Select: the rules by which units are chosen, under one set of budgets, so that rules and values can be told apart.

Each gives a plan that is not applied yet. Whatever the rule, `plan.objective` is the worth of what stays under the
values given, and `plan.bound` what no choice within the same budgets can exceed: the gap is what the rule gives away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .apply import Plan
from .arguments import names
from .compile import Curve, Worth
from .errors import InfeasibleError
from .graph import Graph
from .plan import PlanCost, kept_units
from .problem import Problem
from .requests import Budget, Cost, asked, budget_of, timed
from .values import Values, kinds, ranked

STEPS = 24  # of a bisection


@dataclass(frozen=True)
class Limits:
    """What a request of `prune` allows of each cost, by name, and the table that its latency goes by."""

    given: Mapping[str, float]
    table: Any = None

    @staticmethod
    def of(
        flops: float | None = None,
        params: float | None = None,
        memory: float | None = None,
        training_memory: float | None = None,
        weight_bytes: float | None = None,
        latency: Any = None,
        table: Any = None,
    ) -> Limits:
        """The limits that are not None."""
        times, ms = (None, None) if latency is None else timed(latency, table)
        every = {"flops": flops, "params": params, "memory": memory, "latency": ms}
        every |= {"training_memory": training_memory, "weight_bytes": weight_bytes}
        return Limits({name: limit for name, limit in every.items() if limit is not None}, times)

    def cost(self, graph: Graph, name: str) -> Cost:
        """A cost of a graph by its name."""
        return graph.latency(self.table) if name == "latency" else graph.cost(name)

    def budgets(self, graph: Graph) -> dict[str, Budget]:
        """The budgets on the costs of a graph."""
        return {name: budget_of(self.cost(graph, name), limit) for name, limit in self.given.items()}


def problem_of(
    graph: Graph,
    values: Values = None,
    round_to: int | None = None,
    keep: str | Iterable[str] | None = None,
    constraints: Any = None,
    **limits: Any,
) -> Problem:
    """The problem that a request of `prune` states."""
    problem = Problem(graph)
    problem.maximize(values)
    problem.round_to(round_to)
    problem.keep(*names(keep, "keep"))
    problem.add(asked(constraints, graph))
    problem.add(*Limits.of(**limits).budgets(graph).values())
    return problem


def optimal(
    graph: Graph, values: Values = None, *, time_limit: float = 60.0, gap: float = 1e-3, seed: int = 0, **request: Any
) -> Plan:
    """What is worth most within the budgets, proven to the gap asked for; arguments as `prune` takes them.

    >>> import torch, solvemut as sm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> graph = sm.capture(model, torch.ones(1, 4))
    >>> plans = [rule(graph, params=0.5) for rule in (optimal, uniform, global_threshold)]
    >>> [plan.costs["params"].after <= 0.5 * plan.costs["params"].before for plan in plans]
    [True, True, True]
    """
    return problem_of(graph, values, **request).solve(time_limit, gap, seed)


def uniform(graph: Graph, values: Values = None, *, time_limit: float = 60.0, seed: int = 0, **request: Any) -> Plan:
    """Every coupled group at one share of its units, as near as can be: the largest within the budgets.

    Which units of a group stay is decided by the values.
    """
    how = (time_limit, 1e-3, seed)
    return uniform_of(*_stated(graph, values, request, how), how)


def uniform_of(problem: Problem, best: Plan, how: tuple[Any, ...]) -> Plan:
    """The uniform plan of a problem that is stated already, beside its optimum; `how` is what `solve` takes."""
    order = problem.worth.order
    groups = [ranked(problem.graph, units, order) for units in kinds(problem.graph)[0]]

    def at(share: float) -> Worth:
        sizes = [(units, len(units)) for units in groups]
        curves = [Curve(units, -np.abs(np.arange(n + 1) - share * n) / n) for units, n in sizes]
        return Worth(np.zeros(len(order)), tuple(curves))

    return _largest(problem, at, 1.0, 0.0, best, how)


def global_threshold(
    graph: Graph, values: Values = None, *, time_limit: float = 60.0, seed: int = 0, **request: Any
) -> Plan:
    """Every unit that is worth more than a threshold, the same for all groups: the lowest one within the budgets.

    In a curve a unit is worth what it adds to those before it. No layer is emptied.
    """
    how = (time_limit, 1e-3, seed)
    problem, best = _stated(graph, values, request, how)
    worth = problem.worth

    def at(threshold: float) -> Worth:
        curves = [Curve(c.units, np.asarray(c.worth) - threshold * np.arange(len(c.worth))) for c in worth.curves]
        return Worth(worth.value - threshold, tuple(curves))

    steps = [worth.value, *(c.steps() for c in worth.curves)]
    most = max(float(np.abs(s).max(initial=0.0)) for s in steps)
    return _largest(problem, at, -most, 2 * most, best, how)


def _stated(graph: Graph, values: Values, request: dict[str, Any], how: tuple[Any, ...]) -> tuple[Problem, Plan]:
    """The problem, its values found once for all, and the optimum."""
    problem = problem_of(graph, values, **request)
    name = problem.values_name
    problem.maximize(problem.worth)
    return problem, replace(problem.solve(*how), values=name)


def _largest(
    problem: Problem, at: Callable[[float], Worth], loose: float, tight: float, best: Plan, how: tuple[Any, ...]
) -> Plan:
    """Bisection: of the plans that a rule makes, from loose to tight, the loosest within the budgets."""
    rule, graph = copy.copy(problem), problem.graph
    limits = [r for r in problem.requests if isinstance(r, Budget)]
    rule.requests = [r for r in problem.requests if not isinstance(r, Budget)]

    def left_at(x: float) -> np.ndarray:
        rule.maximize(at(x))
        return rule.times(*how[:3]) > 0

    def fits(kept: np.ndarray, sense: str) -> bool:
        counts = [(b.limit, b.cost.count(graph.coupling, kept)) for b in limits if b.sense == sense]
        return all(n <= limit if sense == "<=" else n >= limit for limit, n in counts)

    found, most = loose, left_at(loose)
    kept = most
    if not fits(most, "<="):
        found, kept = tight, left_at(tight)
        for _ in range(STEPS if fits(kept, "<=") else 0):
            if (most != kept).sum() <= 1:
                break
            middle = (loose + found) / 2
            left = left_at(middle)
            if fits(left, "<="):
                found, kept = middle, left
            else:
                loose, most = middle, left
    if not (fits(kept, "<=") and fits(kept, ">=")):  # what is tighter has less of everything
        raise InfeasibleError(
            f"no threshold of this rule meets the budgets {', '.join(map(str, limits))}; another rule can",
            [str(b) for b in limits],
        )
    rule.maximize(at(found))
    plan = rule.solve(*how)
    kept = kept_units(graph, plan)
    told = {c.name: PlanCost(c.now, c.count(graph.coupling, kept)) for c in (b.cost for b in limits)}
    return certified(replace(plan, costs={**told, **plan.costs}), problem.objective_of(kept), best)


def certified(plan: Plan, objective: float, best: Plan) -> Plan:
    """A plan with the certificate that its worth has beside the optimum within the same budgets."""
    bound = max(best.bound, objective)
    gap = 0.0 if bound == objective else (bound - objective) / max(abs(objective), 1e-300)
    costs = {k: replace(c, budget=best.costs[k].budget) if k in best.costs else c for k, c in plan.costs.items()}
    told = replace(plan, status="feasible", objective=objective, bound=bound, gap=gap, costs=costs, values=best.values)
    return replace(told, solved=None)  # the program of another worth explains nothing here
