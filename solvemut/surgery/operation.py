"""One operation from request to model: the change with ports, the program that aligns it, the ports out again.

All of it or nothing: whatever fails on the way, the model and its optimizers are as they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..apply import Plan, adopt_parameters, forget_parameters
from ..coupling import couple
from ..edits import Rewire, Selection
from ..errors import CaptureError, RequestError, SolvemutError
from ..graph import Graph
from ..requests import Budget, Request, asked
from ..resizing import Resizing
from ..trace import Trace
from ..tracing import seen, spliced, trace_examples
from . import ports as ports_of
from .ports import Port
from .restore import Snapshot


@dataclass(frozen=True)
class Changed:
    """The ports that stand in a changed model, and why its outputs may not be what they were."""

    ports: list[Port]
    alters: list[str]


@dataclass(frozen=True)
class Operation:
    """A change of structure: `change` makes it in a model, with the ports that it needs."""

    title: str
    change: Callable[[nn.Module, Graph], Changed]
    strip: Callable[[Any, Sequence[Port]], None]  # takes the ports out


@dataclass(frozen=True)
class Settling:
    """By what sizes are settled: what units are worth, limits on new ones, conditions on sizes, and how to solve."""

    values: Any = None
    grow: Any = None
    constraints: Callable[[Graph], Any] | None = None  # of the graph as it is after the change
    how: tuple[Any, ...] = (60.0, 0.0, 0, None)


def recaptured(model: nn.Module, graph: Graph, trace: Trace, nodes: torch.fx.Graph | None) -> tuple[Graph, bool]:
    """The graph that a changed model has now, and whether it was put together from parts.

    `trace` is what its graph did when it had those `nodes`. Where that does not help, the whole model is captured by
    the calls that `graph` was captured by.
    """
    examples = list(graph.examples)
    found = spliced(model, nodes, trace) if nodes is not None and len(examples) == 1 else None
    by_parts = found is not None
    if found is None:
        found, examples = trace_examples(model, examples, ("eval",))
    return Graph(
        found,
        couple(found),
        graph.example,
        model,
        tuple(examples),
        seen(model, found),
        graph.observe and graph.observe.again(),
    ), by_parts


def _nodes(model: nn.Module) -> torch.fx.Graph | None:
    return model.graph if isinstance(model, torch.fx.GraphModule) else None


def perform(
    operation: Operation,
    model: nn.Module,
    graph: Graph,
    optimizers: Sequence[torch.optim.Optimizer],
    dry_run: bool,
    settling: Settling,
) -> tuple[Plan, Graph]:
    """The plan of an operation, made in the model unless it is a dry run, and the graph of the model after it."""
    before = Snapshot(model, optimizers)
    done = False
    try:
        nodes = _nodes(model)
        changed = operation.change(model, graph)
        ports = changed.ports
        try:
            inside, by_parts = recaptured(model, graph, graph.trace, nodes)
        except CaptureError as e:
            raise RequestError(f"{operation.title}: the model does not run any more: {e.__cause__ or e}") from e
        plan = _aligned(inside, ports, settling)
        if not dry_run:
            after = inside  # where nothing stands between any more, this is it already
            if ports:
                plan.apply(model, list(optimizers), verify="program" if by_parts else None)
                nodes = _nodes(model)
                operation.strip(model, ports)
                after, _ = recaptured(model, graph, plan.graph.trace, nodes)  # type: ignore[union-attr]
            _check_sizes(plan, after, ports)
            _follow_parameters(model, before, optimizers)
        done = not dry_run
    finally:
        if not done:
            before.restore()
    own = {p.name for p in ports}
    told = replace(
        plan,
        sizes={k: v for k, v in plan.sizes.items() if k not in own},
        shapes=_without(plan.shapes, own),
        selection=Selection(_without(plan.indices, own)),
        units=_without(plan.units, own),
        fills=_without(plan.fills, own),
        alters=tuple(dict.fromkeys((*changed.alters, *plan.alters))),
        edits=(Rewire(operation.title), *plan.edits),
        graph=None,
    )
    return told, graph if dry_run else after


def _without(by_name: Mapping[str, Any], ports: set[str]) -> dict[str, Any]:
    """What is said of parameters, those of ports left out."""
    return {k: v for k, v in by_name.items() if k.rpartition(".")[0] not in ports}


def _aligned(graph: Graph, ports: Sequence[Port], settling: Settling) -> Plan:
    """The plan that brings the two sides of every port to one size."""
    problem, values = Resizing(graph), settling.values
    if isinstance(values, Mapping):  # a port is worth what stood in its place
        known = {k: v for k, v in values.items() if k in graph}
        values = {**known, **{p.name: values[p.vertex] for p in ports if p.vertex in values}}
    problem.maximize(values)
    problem.most = settling.grow
    problem.add(_conditions(settling.constraints, graph))
    problem.align(ports_of.requests(graph, ports))
    plan: Plan = problem.solve(*settling.how)
    return plan


def _conditions(constraints: Any, graph: Graph) -> list[Request]:
    """What the caller asks of sizes in the changed graph."""
    if constraints is not None and not callable(constraints):
        raise RequestError("constraints: the graph changes with its structure; give a function from the graph to them")
    found = asked(constraints, graph)
    if budgets := [str(r) for r in found if isinstance(r, Budget)]:
        raise RequestError(f"constraints: {budgets[0]} is on a cost; where layers or edges change give those on sizes")
    return found


def _check_sizes(plan: Plan, after: Graph, ports: Sequence[Port]) -> None:
    """Every layer has the size that the plan says, now that nothing stands between them."""
    own = {p.name for p in ports}
    for name, (_, size) in plan.sizes.items():
        if name not in own and name in after and after[name].nout != size:
            raise SolvemutError(f"{name} has size {after[name].nout}, the plan says {size}; please report this model")


def _follow_parameters(model: nn.Module, before: Snapshot, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Parameters of layers that came are trained like the others; those of layers that went are no longer."""
    old = {id(t) for t, _, _ in before.tensors}
    forget_parameters([model], old, optimizers, [])  # the snapshot undoes it
    for notice in adopt_parameters(model, old, optimizers, []):
        warnings.warn(notice, stacklevel=5)
