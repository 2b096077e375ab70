"""Trials: the loss itself, of models that were really pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from .. import batches as runs
from ..apply import Plan
from ..arguments import shown, whole
from ..compile import Choice, Compiled, Curve, Worth, compile_program
from ..errors import InfeasibleError, ValuesError
from ..graph import Graph
from ..plan import redrawn
from ..progress import counted
from .gates import checked, fisher
from .metric import Metric, Values
from .units import unit_values

Repair = Callable[[nn.Module, nn.Module, Plan], Any]  # changes a pruned model, given the original and the plan


def measured(
    batches: Iterable[Any],
    loss: runs.Loss,
    order: Values = None,
    points: int = 8,
    repair: Repair | None = None,
    progress: bool | None = None,
) -> Metric:
    """The rise of the loss with the n least units of a group gone, measured at `points` sizes of each group.

    Units go in the order of `order`, by default that of `fisher(batches, loss)`. Each size is a copy of the model that
    is pruned for good, repaired by `repair`, if given, and evaluated; between the sizes the curve is linear. What was
    found is kept while the weights stay.

    >>> import torch
    >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    >>> measured([(x, y)], nn.functional.cross_entropy, points=4).name
    'measured(batches, loss, points=4)'
    """
    n = whole(points, f"measured(points={shown(points)})", 1, ValuesError)
    name = f"measured(batches, loss, points={n}{'' if repair is None else ', repair'})"
    checked(name, batches, loss)
    if repair is not None and not callable(repair):
        raise ValuesError(f"{name}: repair is one of solvemut.repair, not {shown(repair)}")
    batches = runs.again(batches)
    order = fisher(batches, loss, progress=progress) if order is None else order
    score = partial(_measured, batches=batches, loss=loss, order=order, points=n, repair=repair, progress=progress)
    return Metric(name, score, keeps=True, data=(batches, loss))


def _measured(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    loss: runs.Loss,
    order: Values,
    points: int,
    repair: Repair | None,
    progress: bool | None,
) -> Worth:
    ranks = unit_values(order, model, graph)
    compiled = compile_program(graph.coupling, Worth(np.ones(len(ranks)), second=ranks))
    whole_loss = runs.mean_loss(model, batches, loss)
    trials = [(k, level) for k, c in enumerate(compiled.choices.choices) for level in _levels(c, points)]
    rises: dict[int, dict[int, float]] = {}
    for k, level in counted(trials, "measured", progress):
        times = _with(compiled, k, level)
        if times is None:
            continue
        left = int((times[_units(compiled.choices.choices[k])] > 0).sum())
        rise = trial(model, graph, times, batches, loss, repair) - whole_loss
        rises.setdefault(k, {})[left] = min(rise, rises.get(k, {}).get(left, np.inf))
    curves = [_curve(_units(compiled.choices.choices[k]), ranks, found) for k, found in sorted(rises.items())]
    return Worth(np.zeros(len(ranks)), tuple(curves))


def trial(
    model: nn.Module,
    graph: Graph,
    times: np.ndarray,
    batches: Iterable[Any],
    loss: runs.Loss,
    repair: Repair | None = None,
) -> float:
    """The loss of a copy that keeps each unit as often as `times` says."""
    _, drawing = redrawn(graph, times)
    plan = Plan("feasible", 0.0, 0.0, 0.0, 0.0, "trial", costs={}, **drawing)
    pruned = copy.deepcopy(model)
    plan.apply(pruned, verify=None)
    if repair is not None:
        repair(pruned, model, plan)
    return runs.mean_loss(pruned, batches, loss)


def _units(choice: Choice) -> np.ndarray:
    return np.concatenate([f.reshape(-1) for b in choice.blocks for f in b.families])


def _levels(choice: Choice, points: int) -> list[int]:
    """Some of the sizes that a choice can have, evenly spread, without the one it has."""
    counts = choice.counts()
    smaller = np.unique(counts[counts < choice.now])
    if not len(smaller):
        return []
    wanted = np.unique(np.round(np.linspace(smaller[0], smaller[-1], min(points, len(smaller)))))
    nearest = {int(np.abs(counts - n).argmin()) for n in wanted}
    return sorted(nearest)


def _with(compiled: Compiled, k: int, level: int) -> np.ndarray | None:
    """How often each unit is there when one choice has a size, and as much as can be stays of the others."""
    choice = compiled.choices.choices[k]
    with compiled.program.fixed({choice.width: choice.width.levels[level]}):
        try:
            return compiled.decoder.times(compiled.program.solve(time_limit=20.0, gap=1e-3))
        except InfeasibleError:
            return None


def _curve(units: np.ndarray, ranks: np.ndarray, rises: dict[int, float]) -> Curve:
    """Linear between the sizes that were measured; none below them."""
    counts = np.array(sorted(rises))
    known = np.append(-np.array([rises[n] for n in counts]), 0.0)
    worth = np.interp(np.arange(len(units) + 1), np.append(counts, len(units)), known)
    worth[: counts[0]] = known[0] * (1 + (counts[0] - np.arange(counts[0])) / max(1, counts[0]))
    return Curve(units[np.argsort(-ranks[units], kind="stable")], worth)
