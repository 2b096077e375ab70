"""Lazy mutation: several mutations take place on a copy of the model, and then in the model at once, as one plan."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from .apply import Init, Plan
from .errors import RequestError
from .graph import Graph
from .plan import then
from .tracing import unwrapped


class Pending:
    """The mutations of a lazy block: `plans` as they come, `plan` what they are together; None: nothing was asked."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.plans: tuple[Plan, ...] = ()
        self.plan: Plan | None = None
        self._model = copy_of(unwrapped(model))
        self.graph = replace(graph, model=self._model)

    def __repr__(self) -> str:
        n = len(self.plans)
        return f"<Pending: {n} plan{'s' * (n != 1)}, {'none' if self.plan is None else repr(self.plan)}>"

    def take(self, plan: Plan, verify: str | None = "program", init: Init | None = None) -> Plan:
        """Apply a plan to the copy, and compose it with those before; both, or neither."""
        if init is not None:
            raise RequestError("init= cannot be given in a lazy block: what it draws would be drawn again at its end")
        together = plan if self.plan is None else then(self.plan, plan)
        together.check()
        plan.apply(self._model, verify=verify)
        if plan.graph is not None:
            self.graph = replace(plan.graph, model=self._model)
        self.plan = replace(together, graph=plan.graph)
        self.plans = (*self.plans, replace(plan, graph=None, solved=None))
        return plan


def copy_of(model: nn.Module) -> nn.Module:
    """With its gradients, which a metric may ask for."""
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    return other


@contextlib.contextmanager
def lazily(mutator: Any, verify: str | None) -> Iterator[Pending]:
    """See `Mutator.lazy`."""
    if mutator.pending is not None:
        raise RequestError("lazy blocks cannot be nested: this mutator is in one, which takes in what is asked here")
    before = mutator.graph
    mutator.pending = pending = Pending(mutator.model, before)
    mutator.graph = pending.graph
    try:
        yield pending
    finally:
        mutator.pending, mutator.graph = None, before
    if pending.plan is not None:
        mutator.apply(pending.plan, verify)
        pending.plan = replace(pending.plan, graph=None)
