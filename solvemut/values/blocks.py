"""What whole branches are worth: what is lost when one gives zeros, on the scale of the values of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .. import batches as runs
from ..errors import RequestError
from ..graph import Graph
from .gates import bypass
from .metric import Metric

MEASURED = "measured"


def branch_worth(values: Any, graph: Graph, modules: Mapping[str, str]) -> dict[str, float]:
    """By name what the network loses when the module of a branch gives zeros; `modules` maps names to modules.

    With a loss the second-order estimate that `fisher` makes of units, for `measured` the rise of the loss itself;
    without a loss half the squared change of the outputs. Raises RequestError for values that see no data.
    """
    if not isinstance(values, Metric) or values.data is None:
        raise RequestError(
            "depth: weights do not tell what a whole branch is worth; give values that see data, such as "
            "sm.values.fisher(batches, loss), or depth={name: what is lost with it}"
        )
    batches, loss = values.data
    if loss is not None and not values.name.startswith(MEASURED):
        found = bypass(graph, list(dict.fromkeys(modules.values())), batches, loss, zeros=True)
        return {name: found[m] for name, m in modules.items()}
    paths = list(dict.fromkeys(modules.values()))
    lost = _measured(graph.model, paths, batches, loss)
    return {name: lost[m] for name, m in modules.items()}


def _measured(model: nn.Module, paths: Sequence[str], batches: Any, loss: Any) -> dict[str, float]:
    """By module the rise of the loss, or without one half the squared change of the outputs, for an example."""
    total, n = dict.fromkeys(paths, 0.0), 0
    with runs.evaluated(model):
        for batch in runs.some(batches):
            plain, size = runs.plain(batch), runs.examples_in(batch)
            before = _result(model, plain, loss)
            for path in paths:
                handle = model.get_submodule(path).register_forward_hook(_zeros)
                try:
                    after = _result(model, plain, loss)
                finally:
                    handle.remove()
                total[path] += _change(before, after, loss) * (size if loss is not None else 1)
            n += size
    return {path: t / n for path, t in total.items()}


def _zeros(module: nn.Module, args: Any, out: Any) -> Any:
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


def _result(model: nn.Module, batch: Any, loss: Any) -> Any:
    if loss is not None:
        return float(runs.value_of(loss, model, batch))
    return runs.floats(runs.forward(model, batch))


def _change(before: Any, after: Any, loss: Any) -> float:
    if loss is not None:
        return float(after - before)
    return sum(float((a.double() - b.double()).square().sum()) for a, b in zip(before, after, strict=True)) / 2
