"""Frontier: the best plans over a range of budgets on one resource, the band that is proven, and the k best plans.

`problem` is a Problem throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from math import floor, inf, isfinite
from pathlib import Path
from typing import Any, overload

import numpy as np

from .apply import Plan
from .compile import Compiled, Worth
from .errors import InfeasibleError
from .pictures import drawn_frontier
from .plan import PlanCost
from .program import Solution
from .report import Part, Table, html, one_line, share, short, text
from .requests import Budget, Cost

Line = tuple[float, float, float]  # a budget, the bound proven there, and its slope


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """The best plan found under one budget (`limit`; None: without one): what it costs, its value, what is proven.

    `bound` is what no plan within the limit can exceed.
    """

    cost: float  # an int where it is counted
    objective: float
    bound: float
    gap: float
    status: str
    limit: int | float | None
    _draw: Callable[[], Plan] = field(repr=False)

    @cached_property
    def plan(self) -> Plan:
        """The plan of this point, drawn up when it is first asked for."""
        return self._draw()


@dataclass(frozen=True, eq=False)
class Frontier(Sequence[FrontierPoint]):
    """The points, cheapest first: `frontier[0].plan`, `for point in frontier`; prints as a table.

    `now` is the cost and the value of the model as it is, which other requests may rule out. `limits` are all budgets
    that were tried, with the bound proven for each (the last is infinite): those whose plan came twice are no point.
    """

    title: str
    resource: str
    points: tuple[FrontierPoint, ...]
    limits: tuple[tuple[float, float], ...]
    now: tuple[float, float]
    values: str
    _priced: Callable[[], list[Line]] = field(repr=False)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Straight lines above all plans: one (budget, bound, slope) for each budget tried.

        Within a budget B nothing is worth more than bound + slope * (B - budget). Slopes are the shadow prices there;
        they are found when the lines are first asked for.
        """
        return tuple(self._priced())

    @overload
    def __getitem__(self, k: int) -> FrontierPoint: ...

    @overload
    def __getitem__(self, k: slice) -> tuple[FrontierPoint, ...]: ...

    def __getitem__(self, k: Any) -> Any:
        return self.points[k]

    def __len__(self) -> int:
        return len(self.points)

    def band(self, budget: float) -> tuple[float, float]:
        """The value that is reached within a budget, and the bound that is proven for it.

        The bound is that of the next budget tried which is not smaller, or that of the lowest of `lines`. Below the
        cheapest plan nothing is reached (-inf).

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> problem = sm.Problem(sm.capture(model, torch.ones(1, 4)))
        >>> problem.maximize({"0": 1.0})
        >>> frontier = problem.frontier("params", points=3)
        >>> [tuple(round(v, 2) for v in frontier.band(budget)) for budget in (30, 40)]
        [(4.0, 4.0), (4.0, 5.43)]
        """
        reached = max((p.objective for p in self.points if p.cost <= budget), default=-inf)
        proven = [bound for limit, bound in self.limits if limit >= budget]
        proven += [bound + slope * (budget - limit) for limit, bound, slope in self.lines]
        return reached, max(reached, min(proven, default=inf))

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the curve, the proven band and the model as it is; see `Plan.plot`.

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> figure = sm.Problem(sm.capture(model, torch.ones(1, 4))).frontier("flops", points=4).plot()
        >>> figure.axes[0].get_xlabel()
        'flops'
        """
        points = [(float(p.cost), p.objective) for p in self.points]
        now = (float(self.now[0]), self.now[1])
        title = self.title + (f"; values: {self.values}" if self.values else "")
        return drawn_frontier(title, self.resource, points, self.band, now, path)

    def _report(self) -> list[Part]:
        cost, worth = self.now
        rows = [
            [
                k,
                short(p.cost),
                share(p.cost, cost),
                "" if p.limit is None else short(p.limit),
                f"{p.objective:.6g}",
                f"{p.bound:.6g}",
                f"{p.gap:.2e}",
                p.status,
            ]
            for k, p in enumerate(self.points)
        ]
        head = f"{self.title}: {self.resource} {short(cost)}, value {worth:.6g} as it is"
        header = ["point", self.resource, "of now", "limit", "value", "bound", "gap", "status"]
        named = f"; values: {self.values}" if self.values else ""
        return [head + named, Table(header, rows, right=range(7))]

    def __str__(self) -> str:
        return text(self._report())

    def _repr_html_(self) -> str:
        """The table of `print(frontier)`, for notebooks."""
        return html(self._report())

    def __repr__(self) -> str:
        ends = f"{short(self[0].cost)} to {short(self[-1].cost)}"
        return one_line(f"<Frontier of {self.title}: {len(self)} plans, {self.resource} {ends}>")


@dataclass(frozen=True, eq=False)
class Measured:
    """A problem whose program counts a cost, in `resources`: it is the largest of them.

    `budget` stands for its limit in what was compiled; the program itself has none until one is given.
    """

    problem: Any
    compiled: Compiled
    budget: Budget
    resources: tuple[str, ...]

    @cached_property
    def counted(self) -> Cost:
        """The cost as the program counts it."""
        return next(b.cost for b, name in self.compiled.counted if name in self.resources)

    def limit(self, solution: Solution) -> int | None:
        """The budget that a solution was found under, rounded down as costs are whole; None: there was none."""
        budgets = solution.statement.budgets
        upper = next((budgets[n].upper for n in self.resources if n in budgets), None)
        return None if upper is None else floor(upper)

    def spent(self, solution: Solution) -> int:
        """What a solution costs."""
        return int(max(solution.costs[name] for name in self.resources))

    def line(self, solution: Solution) -> Line | None:
        """The bound over all budgets that the shadow prices of a solution's give; None where there was no budget."""
        limit = next((b.upper for n in self.resources if (b := solution.statement.budgets.get(n))), None)
        priced = solution.prices(self.compiled.choices.question.stage)
        if limit is None or not isfinite(priced.bound):
            return None
        price, scale = sum(priced.prices[n] for n in self.resources), self.counted.scale
        return float(limit) / scale, float(priced.bound), price * scale

    def lines(self, solutions: Sequence[Solution]) -> list[Line]:
        """See `Frontier.lines`."""
        return [line for s in solutions if (line := self.line(s)) is not None]

    def plan(self, solution: Solution, times: np.ndarray) -> Plan:
        """The plan of a solution, as of a problem that has its budget."""
        limit, choices, state = self.limit(solution), copy.copy(self.compiled.choices), copy.copy(self.problem)
        unit, own = self.counted.scale // self.budget.cost.scale, self.budget.cost
        given = [] if limit is None else [Budget(own, Fraction(limit, unit))]
        state.requests = [*state.requests, *given]
        switched = [r.cost for r in choices.question.requests if isinstance(r, Budget) and r.whole is self.budget]
        told = [Budget(cost, g.limit * unit, whole=g) for cost in switched for g in given] or given
        asked = [r for r in choices.question.requests if not (isinstance(r, Budget) and r.asked is self.budget)]
        choices.question = replace(choices.question, requests=[*asked, *told])
        counted = [(b, name) for b, name in self.compiled.counted if name not in self.resources]
        measured = [(b.cost, name) for b, name in self.compiled.counted if name in self.resources]
        counted += [(Budget(cost, g.limit * unit, whole=g), name) for cost, name in measured for g in given]
        compiled = replace(self.compiled, choices=choices, counted=tuple(counted))
        plan: Plan = state._plan(solution, times, compiled, solution.seconds)
        spent = PlanCost(own.now, self.counted.told(self.spent(solution)))
        return replace(plan, costs={own.name: spent, **plan.costs})


def measured(problem: Any, cost: Cost, worth: Worth) -> Measured:
    """State a problem with a cost that is counted, and not limited but by what the problem says of it."""
    state, budget = copy.copy(problem), Budget(cost, Fraction(max(1, cost.counted)))
    state.requests = list(problem.requests)
    state.add(budget)
    compiled = state._compiled(worth)
    resources = tuple(name for b, name in compiled.counted if b.asked is budget)
    for name in resources:
        compiled.program.free(name)
    return Measured(problem, compiled, budget, resources)


def without(problem: Any, cost: Cost) -> Any:
    """A problem without its upper limits on a cost."""
    free = copy.copy(problem)
    free.requests = [
        r for r in problem.requests if not (isinstance(r, Budget) and r.sense == "<=" and _alike(r.cost, cost))
    ]
    return free


def _alike(a: Cost, b: Cost) -> bool:
    """Whether two costs are one: a copy of a graph has its own."""
    return a is b or (a.name == b.name and a.now == b.now)


def frontier_of(problem: Any, resource: str | Cost, points: int, how: tuple[float, Any, int]) -> Frontier:
    """See `Problem.frontier`."""
    cost, worth, graph = _cost_of(problem, resource), problem.worth, problem.graph
    m = measured(without(problem, cost), cost, worth)
    try:
        found = m.compiled.program.frontier(m.resources, points, *how, repeats=True)
    except InfeasibleError as e:
        raise m.problem._explained(e, worth, how[0]) from None
    _uninterrupted(found)
    stage = m.compiled.choices.question.stage
    limits = [(inf if (n := m.limit(s)) is None else n / m.counted.scale, float(s.bounds[stage])) for s in found]
    made: dict[Any, FrontierPoint] = {}
    for s, (limit, bound) in zip(found, limits, strict=True):
        times = m.compiled.decoder.times(s)
        point = FrontierPoint(
            m.counted.told(m.spent(s)),
            float(s.objectives[stage]),
            bound,
            float(max(s.gaps[: stage + 1])),
            s.status,
            None if limit == inf else limit,
            partial(m.plan, s, times),
        )
        made.setdefault((times.tobytes(), *sorted(m.compiled.decoder.on(s).items())), point)
    now = cost.now, m.compiled.objective(np.ones(graph.coupling.n_units, dtype=bool))
    title, values = graph.trace.root, problem.values_name
    return Frontier(title, cost.name, tuple(made.values()), tuple(limits), now, values, partial(m.lines, found))


def best_of(problem: Any, k: int, how: tuple[float, Any, int]) -> list[Plan]:
    """See `Problem.best`."""
    worth = problem.worth
    compiled: Compiled = problem._compiled(worth)
    switches = [compiled.program[name] for name in compiled.decoder.switches]
    try:  # other widths, such as quotients, tell no plans apart
        found = compiled.program.k_best(k, *how, among=[*(c.width for c in compiled.decoder.choices), *switches])
    except InfeasibleError as e:
        raise problem._explained(e, worth, how[0]) from None
    _uninterrupted(found)
    return [problem._plan(s, compiled.decoder.times(s), compiled, s.seconds) for s in found]


def _uninterrupted(found: Sequence[Solution]) -> None:
    if any(s.interrupted for s in found):
        raise KeyboardInterrupt("the solve was interrupted; nothing was changed")


def _cost_of(problem: Any, resource: Any) -> Cost:
    """A cost by its name, or as it is."""
    if isinstance(resource, Cost):
        return resource
    found: Cost = problem.graph.cost(resource)
    return found
