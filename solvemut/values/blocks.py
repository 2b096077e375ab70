"""What whole modules are worth: what is lost when one gives zeros, or another stands in its place.

On the scale of the values of units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .. import batches as runs
from ..errors import RequestError
from ..graph import Graph
from .gates import StandIn, instead
from .metric import Metric

MEASURED = "measured"


def branch_worth(values: Any, graph: Graph, modules: Mapping[str, tuple[str, bool]]) -> dict[str, float]:
    """By name what the network loses when a module gives zeros, or else its input: `modules` has it, and which.

    With a loss the second-order estimate that `fisher` makes of units, for `measured` the rise of the loss itself;
    without a loss half the squared change of the outputs. Raises RequestError for values that see no data.
    """
    if not sees_data(values):
        raise RequestError(
            "depth: weights do not tell what a whole branch is worth; give values that see data, such as "
            "sm.values.fisher(batches, loss), or depth={name: what is lost with it}"
        )
    others = {f"{path} {zeros}": (path, _zeros if zeros else _input) for path, zeros in modules.values()}
    lost = _lost(values, graph, others)
    return {name: lost[f"{path} {zeros}"] for name, (path, zeros) in modules.items()}


def stand_in_worth(values: Metric, graph: Graph, others: Mapping[str, tuple[str, nn.Module]]) -> dict[str, float]:
    """By name what the network loses when a module stands in the place of another, as `branch_worth` has it.

    `others` has by name the path of a module and the one in its place. For values that see data.
    """
    modes = [(m, m.training) for _, m in others.values()]
    try:
        return _lost(values, graph, {name: (path, _by(m.eval())) for name, (path, m) in others.items()})
    finally:
        for m, training in modes:
            m.train(training)


def sees_data(values: Any) -> bool:
    """Whether values can tell what whole modules are worth."""
    return isinstance(values, Metric) and values.data is not None


def _zeros(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(out)


def _input(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> Any:
    return next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))


def _by(other: nn.Module) -> StandIn:
    def run(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> Any:
        found = other(*args, **kwargs)
        return found[0] if isinstance(found, tuple) else found

    return run


def _lost(values: Metric, graph: Graph, others: Mapping[str, tuple[str, StandIn]]) -> dict[str, float]:
    assert values.data is not None
    batches, loss = values.data
    if loss is not None and not values.name.startswith(MEASURED):
        return instead(graph, others, batches, loss)
    return _measured(graph.model, others, batches, loss)


def _measured(model: nn.Module, others: Mapping[str, tuple[str, StandIn]], batches: Any, loss: Any) -> dict[str, float]:
    """By name the rise of the loss, or without one half the squared change of the outputs, for an example."""
    total, n = dict.fromkeys(others, 0.0), 0
    with runs.evaluated(model):
        for batch in runs.some(batches):
            plain, size = runs.plain(batch), runs.examples_in(batch)
            before = _result(model, plain, loss)
            for name, (path, other) in others.items():
                handle = model.get_submodule(path).register_forward_hook(_in_place(other), with_kwargs=True)
                try:
                    after = _result(model, plain, loss)
                finally:
                    handle.remove()
                total[name] += _change(before, after, loss) * (size if loss is not None else 1)
            n += size
    return {name: t / n for name, t in total.items()}


def _in_place(other: StandIn) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (other(module, args, kwargs, out[0]), *out[1:])
        return other(module, args, kwargs, out)

    return hook


def _result(model: nn.Module, batch: Any, loss: Any) -> Any:
    if loss is not None:
        return float(runs.value_of(loss, model, batch))
    return runs.floats(runs.forward(model, batch))


def _change(before: Any, after: Any, loss: Any) -> float:
    if loss is not None:
        return float(after - before)
    return sum(float((a.double() - b.double()).square().sum()) for a, b in zip(before, after, strict=True)) / 2
