"""Stages: a request met in rounds, refined by measured losses, and repaired, on a copy that the model takes over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from . import batches as runs
from .apply import Init, Plan
from .arguments import shown, whole
from .errors import RequestError, ValuesError
from .graph import Graph
from .lazy import copy_of
from .plan import then
from .problem import Problem, check_fresh
from .refine import refined
from .repair import Chain, Report, name_of, repair_of
from .requests import Budget, Cost
from .tracing import seen, unwrapped
from .values import Metric, Values

Ask = Callable[[Graph, float], Problem]  # the problem of a graph, with its budgets that part of the way down


def step_of(budget: Budget, cost: Cost, part: float) -> Budget:
    """A budget that part of the way from what is to what is asked for, in a geometric series; `cost` is of a graph."""
    now = Fraction(budget.cost.counted)
    if part >= 1 or budget.limit >= now or budget.limit <= 0:
        return Budget(cost, budget.limit, budget.sense)
    return Budget(cost, Fraction(float(now) * float(budget.limit / now) ** part), budget.sense)


@dataclass(frozen=True)
class Stages:
    """What `prune` does besides solving once: `repair`, `refine` (how many plans are measured) and `rounds`."""

    repair: Any
    refine: int
    rounds: int
    verify: str | None = "program"

    def __post_init__(self) -> None:
        whole(self.refine, f"refine={shown(self.refine)}", least=0)
        whole(self.rounds, f"rounds={shown(self.rounds)}", least=1)

    @property
    def needed(self) -> bool:
        return self.repair is not None or self.refine > 0 or self.rounds > 1

    def check(self, values: Values, constraints: Any) -> None:
        """Raises RequestError for what speaks of the units of one graph, where there are several."""
        if self.rounds == 1:
            return
        if not (values is None or isinstance(values, Metric) or callable(values)):
            raise RequestError(f"rounds={self.rounds}: values are found anew in each; give a metric, or a function")
        if not (constraints is None or callable(constraints)):
            raise RequestError(f"rounds={self.rounds}: graphs differ; give constraints as a function of one")

    def run(self, graph: Graph, ask: Ask, values: Values, how: tuple[Any, ...], init: Init | None) -> Any:
        """The plan for the model as it is, and the pruned and repaired copy. Nothing else is changed."""
        with torch.inference_mode(False), torch.random.fork_rng():  # the copy is differentiated; repairs may draw
            run = _Run(self, graph, ask, init)
            for r in range(1, self.rounds + 1):
                plan = run.solved(r / self.rounds, values, how)
                if plan.status == "interrupted":
                    return run.composed(plan), None
                run.go_on(plan)
        assert run.plan is not None
        return replace(run.plan, graph=run.after, notes=(*run.plan.notes, *run.notes)), run.student

    def loss(self, values: Values) -> tuple[Any, runs.Loss]:
        """Batches and loss by which plans are measured."""
        given = values.data if isinstance(values, Metric) and values.data and values.data[1] is not None else None
        repair = repair_of(self.repair)
        for part in repair.parts if isinstance(repair, Chain) else [repair]:
            loss, data = getattr(part, "loss", None), getattr(part, "batches", None)
            if given is None and loss is not None and data is not None:
                given = (data, loss)
        if given is None:
            raise RequestError(
                f"refine={self.refine} measures plans by the loss, but neither the values nor the repair has one; give "
                "values=sm.values.reconstruction(batches, loss) or the like, or a repair with loss="
            )
        return runs.again(given[0]), given[1]


class _Run:
    """The copy on its way down, and the plan that leads to it."""

    def __init__(self, stages: Stages, graph: Graph, ask: Ask, init: Init | None) -> None:
        self.stages, self.teacher, self.ask, self.init = stages, graph.model, ask, init
        self.repair = None if stages.repair is None else repair_of(stages.repair)
        self.student = copy_of(graph.model)
        self.graph = replace(graph, model=self.student)
        self.after: Graph | None = None
        self.plan: Plan | None = None
        self.notes: list[str] = []

    def composed(self, plan: Plan) -> Plan:
        """A plan for the copy as it is now, as one for the model as it was."""
        return plan if self.plan is None else then(self.plan, plan)

    def made(self, plan: Plan, model: nn.Module) -> Report | None:
        """Change a copy and repair it."""
        plan.apply(model, verify=self.stages.verify, init=self.init)
        if self.repair is None:
            return None
        assert plan.graph is not None
        found = self.repair(model, self.teacher, self.composed(plan))
        try:
            check_fresh(replace(plan.graph, model=model))
        except RequestError as e:
            raise ValuesError(f"repair by {name_of(self.repair)}: sizes are the plan's to change: {e}") from None
        return found if isinstance(found, Report) else None

    def solved(self, part: float, values: Values, how: tuple[Any, ...]) -> Plan:
        """The plan of one round."""
        problem = self.ask(self.graph, part)
        if not self.stages.refine:
            return problem.solve(*how)
        batches, loss = self.stages.loss(values)

        def measure(plan: Plan) -> float:
            trial = copy.deepcopy(self.student)
            self.made(plan, trial)
            return runs.mean_loss(trial, batches, loss)

        return refined(problem, self.stages.refine, measure, how)

    def go_on(self, plan: Plan) -> None:
        """Take a round's plan."""
        report = self.made(plan, self.student)
        self.plan = self.composed(plan)
        assert plan.graph is not None
        self.after = plan.graph
        self.graph = replace(plan.graph, model=self.student, seen=seen(self.student, plan.graph.trace))
        if report is not None:
            left = f"; left as they were: {', '.join(report.left)}" if report.left else ""
            told = f"repair by {name_of(self.repair)}: calibration loss {report.before:.4g} -> {report.after:.4g}{left}"
            self.notes.append(told)


def take_over(model: nn.Module, student: nn.Module) -> None:
    """Give a model the numbers of a copy that has the same tensors by now."""
    model, student = unwrapped(model), unwrapped(student)
    theirs = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(theirs[name])
