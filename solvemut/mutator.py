"""The façade: the whole pipeline in few lines."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .apply import Optimizers, Plan, check_how, optimizers_of
from .arguments import flag, names, shown
from .coupling import couple
from .errors import CaptureError, PlanMismatchError, RequestError, UnsupportedOpError
from .graph import Graph
from .interrupts import deferred
from .problem import Problem, check_fresh
from .report import one_line, short
from .requests import asked, budget_of
from .tracing import MODES, check_methods, check_modes, examples_of, to_text, trace_examples, unwrapped
from .values import Tracker, Values


def capture(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
    modes: str | Sequence[str] = MODES,
    methods: Mapping[str, Any] | None = None,
) -> Graph:
    """The graph of a model: vertices, sizes, coupled groups, costs, and why something is frozen. Changes nothing.

    `args` is one input or a tuple of them. With strict=True an operation without a rule raises UnsupportedOpError; else
    what it touches is frozen, shown by print(graph), and warned about once. The forward is read in eval mode, and in
    train mode too where that takes other branches, unless modes="eval". `methods` names further methods that must go on
    working, with example inputs: {"project": x}, or a list of such; {"forward": y} is a second example of the forward.
    Sizes and costs are those of the first call.

    >>> import torch
    >>> graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.ones(1, 3, 6, 6))
    >>> graph["0"].nin, graph["0"].nout, graph.params.now
    ([3], 8, 240)
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"capture takes a torch.nn.Module, not {shown(model)}")
    model = unwrapped(model)
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(k, str) for k in kwargs)):
        raise RequestError(f"kwargs={shown(kwargs)}: give a dict of the forward's keyword arguments by name")
    strict = flag(strict, "strict")
    if any(p.is_inference() for p in model.parameters()):
        raise CaptureError(
            f"{type(model).__name__} was built under torch.inference_mode: torch can neither export nor train its "
            "parameters; build the model outside of it"
        )
    examples = examples_of(args, kwargs, methods)
    check_methods(model, examples)
    trace, examples = trace_examples(model, examples, check_modes(modes))
    graph = Graph(trace, couple(trace), to_text(examples), model, tuple(examples))
    missing = graph.coupling.facts.unsupported
    if missing:
        what = ", ".join(sorted({n.op for n in missing}))
        if strict:
            raise UnsupportedOpError(f"no rule for {what}: {'; '.join(n.at() for n in missing[:5])}")
        warnings.warn(f"no rule for {what}; what they touch is frozen, see print(graph)", stacklevel=2)
    if trace.unused:
        names_of = [p.name for p in trace.unused]
        more = f" and {len(names_of) - 3} more" if len(names_of) > 3 else ""
        warnings.warn(
            f"no captured call reads {', '.join(names_of[:3])}{more}: left as they are, so whatever else reads them "
            "may not fit afterwards; name it in methods=, if it is another method",
            stacklevel=2,
        )
    return graph


class Mutator:
    """A model whose graph stays valid from one mutation to the next.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> mut = Mutator(model, torch.ones(1, 4))
    >>> plan = mut.prune(params=0.5)
    >>> plan.sizes["0"], model[0].weight.shape, mut.graph["0"].nout
    ((16, 7), torch.Size([7, 4]), 7)

    `history` holds the plans applied so far; `plan.back` of each says which positions had stayed, and what the
    attributes were.

    >>> mut, mut.history[0].back.selection.indices["0.bias"][0].count(-1)
    (<Mutator of Sequential: 51 params, 84 FLOPs, 1 plan applied>, 9)
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        optimizer: Optimizers = None,
        strict: bool = False,
        followers: Sequence[nn.Module] = (),
        modes: str | Sequence[str] = MODES,
        methods: Mapping[str, Any] | None = None,
    ) -> None:
        optimizers_of(optimizer)
        followers = () if followers is None else [followers] if isinstance(followers, nn.Module) else followers
        if not isinstance(followers, Sequence):
            raise RequestError(f"followers={shown(followers)}: give modules that follow the model, such as an EMA copy")
        self.model = model
        self.optimizer = optimizer
        self.followers = followers
        self.graph = capture(model, args, kwargs, strict, modes, methods)
        self.history: tuple[Plan, ...] = ()
        self.trackers: tuple[Tracker, ...] = ()  # values.track enters them here, so that they follow each plan

    def __repr__(self) -> str:
        graph, n = self.graph, len(self.history)
        told = f"{short(graph.params.now)} params, {short(graph.flops.now)} FLOPs"
        return one_line(f"<Mutator of {graph.trace.root}: {told}, {n} plan{'s' * (n != 1)} applied>")

    def prune(
        self,
        *,
        flops: float | None = None,
        params: float | None = None,
        memory: float | None = None,
        latency: Any = None,
        values: Values = None,
        round_to: int | None = None,
        keep: str | Iterable[str] | None = None,
        constraints: Any = None,
        dry_run: bool = False,
        on_infeasible: str = "raise",
        time_limit: float | None = 60.0,
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
                f"on_infeasible={shown(on_infeasible)} is not available for prune; it raises with the conflict"
            )
        check_how(verify)
        dry_run = flag(dry_run, "dry_run")
        check_fresh(self.graph)
        problem = Problem(self.graph)
        problem.maximize(values)
        problem.round_to(round_to)
        problem.keep(*names(keep, "keep"))
        problem.add(asked(constraints, self.graph))
        for cost, limit in ((self.graph.flops, flops), (self.graph.params, params)):
            if limit is not None:
                problem.add(budget_of(cost, limit))
        plan = problem.solve(time_limit, gap, seed, progress, on_interrupt)
        return plan if dry_run or plan.status == "interrupted" else self.apply(plan, verify)

    def apply(self, plan: Plan, verify: str | None = "program") -> Plan:
        """Apply a plan that was made for the present graph."""
        if not isinstance(plan, Plan):
            raise RequestError(f"apply takes a Plan, as prune and Plan.load give it, not {shown(plan)}")
        with deferred():  # an interrupt finds the graph of the model as it is
            try:
                for tracker in self.trackers:
                    tracker.check(plan)
                plan.apply(self.model, self.optimizer, self.followers, verify)
            except PlanMismatchError:
                check_fresh(self.graph)  # says so, where the model was changed by somebody else
                raise
            if plan.graph is not None:
                self.graph = replace(plan.graph, model=self.model)
            self.history = (*self.history, replace(plan, graph=None))  # without the graphs, which are large
            for tracker in self.trackers:
                tracker.follow(plan)
        return plan

    def copy(self) -> Mutator:
        """A mutator of a deep copy of the model, without an optimizer."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.optimizer, other.followers, other.trackers = None, (), ()
        other.graph = replace(self.graph, model=other.model)
        return other


def prune(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: Optimizers = None,
    followers: Sequence[nn.Module] = (),
    modes: str | Sequence[str] = MODES,
    methods: Mapping[str, Any] | None = None,
    **request: Any,
) -> Plan:
    """Prune a model in place: `Mutator(model, args, kwargs, optimizer, ...).prune(**request)`."""
    mutator = Mutator(model, args, kwargs, optimizer, followers=followers, modes=modes, methods=methods)
    return mutator.prune(**request)
