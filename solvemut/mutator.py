"""The façade: the whole pipeline in few lines."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .apply import Optimizers, Plan
from .constraints import budget_of, flat
from .coupling import couple
from .errors import CaptureError, RequestError, UnsupportedOpError
from .graph import Graph
from .interrupts import deferred
from .problem import Problem
from .tracing import example_text, trace_module
from .values import Values


def capture(model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None, strict: bool = False) -> Graph:
    """The graph of a model: vertices, sizes, coupled groups, costs, and why something is frozen. Changes nothing.

    `args` is one input or a tuple of them. With strict=True an operation without a rule raises UnsupportedOpError; else
    what it touches is frozen, shown by print(graph), and warned about once.

    >>> import torch
    >>> graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.ones(1, 3, 6, 6))
    >>> graph["0"].nin, graph["0"].nout, graph.params.now
    ([3], 8, 240)
    """
    args = args if isinstance(args, tuple) else (args,)
    if not isinstance(model, nn.Module):
        raise RequestError(f"capture takes a torch.nn.Module, not {type(model).__name__}")
    if any(p.is_inference() for p in model.parameters()):
        raise CaptureError(
            f"{type(model).__name__} was built under torch.inference_mode: torch can neither export nor train its "
            "parameters; build the model outside of it"
        )
    with torch.inference_mode(False):
        trace = trace_module(model, args, kwargs)
    graph = Graph(trace, couple(trace), example_text(args, kwargs), model)
    missing = graph.coupling.facts.unsupported
    if missing:
        what = ", ".join(sorted({n.op for n in missing}))
        if strict:
            raise UnsupportedOpError(f"no rule for {what}: {'; '.join(n.at() for n in missing[:5])}")
        warnings.warn(f"no rule for {what}; what they touch is frozen, see print(graph)", stacklevel=2)
    return graph


class Mutator:
    """A model whose graph stays valid from one mutation to the next.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> mut = Mutator(model, torch.ones(1, 4))
    >>> plan = mut.prune(params=0.5)
    >>> plan.sizes["0"], model[0].weight.shape, mut.graph["0"].nout
    ((16, 7), torch.Size([7, 4]), 7)
    """

    def __init__(
        self, model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None,
        optimizer: Optimizers = None, strict: bool = False, followers: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        self.model = model
        self.optimizer = optimizer
        self.followers = followers
        self.graph = capture(model, args, kwargs, strict)

    def prune(
        self,
        *,
        flops: float | None = None,
        params: float | None = None,
        memory: float | None = None,
        latency: Any = None,
        values: Values = None,
        round_to: int | None = None,
        keep: str | Iterable[str] = (),
        constraints: Any = (),
        dry_run: bool = False,
        on_infeasible: str = "raise",
        time_limit: float = 60.0,
        gap: float = 1e-3,
        seed: int = 0,
        progress: bool | None = None,
        verify: str | None = "program",
        on_interrupt: str = "raise",
    ) -> Plan:
        """Keep what is worth most within budgets; the model and the optimizer's state are changed in place.

        Budgets: a number in (0, 1] is a fraction of the present, a larger one absolute. `constraints` may be a list of
        requests, or a function from the graph to such a list. Ctrl-C during the solve changes nothing: it raises
        KeyboardInterrupt, or with on_interrupt="return" hands back the best plan found by then, not applied, its status
        "interrupted".
        """
        if memory is not None or latency is not None:
            raise RequestError("budgets on memory and latency are not available in this version; give flops or params")
        if on_infeasible != "raise":
            raise RequestError(
                f"on_infeasible={on_infeasible!r} is not available for prune; it raises with the conflict"
            )
        problem = Problem(self.graph)
        problem.maximize(values)
        problem.round_to(round_to)
        problem.keep(*([keep] if isinstance(keep, str) else keep))
        problem.add(flat([constraints(self.graph)] if callable(constraints) else [list(constraints)]))
        for cost, limit in ((self.graph.flops, flops), (self.graph.params, params)):
            if limit is not None:
                problem.add(budget_of(cost, limit))
        plan = problem.solve(time_limit, gap, seed, progress, on_interrupt)
        return plan if dry_run or plan.status == "interrupted" else self.apply(plan, verify)

    def apply(self, plan: Plan, verify: str | None = "program") -> Plan:
        """Apply a plan that was made for the present graph."""
        with deferred():  # an interrupt finds the graph of the model as it is
            plan.apply(self.model, self.optimizer, self.followers, verify)
            if plan.graph is not None:
                self.graph = replace(plan.graph, model=self.model)
        return plan

    def copy(self) -> Mutator:
        """A mutator of a deep copy of the model, without an optimizer."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.optimizer, other.followers = None, ()
        other.graph = replace(self.graph, model=other.model)
        return other


def prune(
    model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None, *,
    optimizer: Optimizers = None, followers: Sequence[nn.Module] = (), **request: Any,
) -> Plan:  # fmt: skip
    """Prune a model in place: `Mutator(model, args, kwargs, optimizer).prune(**request)`."""
    return Mutator(model, args, kwargs, optimizer, followers=followers).prune(**request)
