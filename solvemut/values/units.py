"""What units are worth, from whatever the caller gave."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import shown, takes_one
from ..compile import Curve, Worth
from ..coupling import Coupling
from ..errors import ValuesError
from ..flow import FIXED
from ..graph import Graph, Vertex
from ..precision import wide
from .metric import Metric, Values, checksum
from .weights import magnitude


def unit_values(values: Values, model: nn.Module, graph: Graph) -> np.ndarray:
    """One finite number per unit class. Raises ValuesError, with the vertex, where there is none.

    Where the worth is a curve, a unit counts what it adds to those that stay before it.
    """
    worth = worth_of(values, model, graph)
    found = np.array(worth.value, dtype=float)
    for curve in worth.curves:
        found[curve.units] = curve.steps()
    return found


def worth_of(values: Values, model: nn.Module, graph: Graph) -> Worth:
    """What units are worth: numbers, and curves where a metric has such. Raises ValuesError as `unit_values` does."""
    if values is None:
        values = magnitude()
    if isinstance(values, Worth):
        return values
    if isinstance(values, Metric):
        return _of_metric(values, model, graph)
    if isinstance(values, Mapping):
        by_name = {_named(graph, k): v for k, v in values.items()}
        found = _from_vertices(graph, by_name, f"values of {len(values)} vertices")
    elif callable(values):
        _check_callable(values)
        found = _from_vertices(graph, {v.name: values(v) for v in graph.vertices if v.makes_units}, "values")
    else:
        raise ValuesError(f"values={shown(values)}: give a metric of solvemut.values, a dict by vertex, or a callable")
    _check_finite(graph, found)
    return Worth(found)


def _of_metric(metric: Metric, model: nn.Module, graph: Graph) -> Worth:
    key = checksum(model, graph) if metric.keeps else ""
    if key and (known := metric.memo.get(key)) is not None:
        return known
    with torch.inference_mode(False):  # gradients are needed, whatever the caller's mode
        found = metric.score(model, graph)
    curves = found.curves if isinstance(found, Worth) else ()
    numbers = _scores(metric, found.value if isinstance(found, Worth) else found, graph)
    numbers = normalised(numbers, graph.coupling, metric.normalize)
    _check_finite(graph, numbers)
    worth = replace(found, value=numbers) if isinstance(found, Worth) else Worth(numbers)
    for curve in curves:
        _check_curve(metric, curve, graph)
    if key:
        metric.memo[key] = worth
    return worth


def _check_curve(metric: Metric, curve: Curve, graph: Graph) -> None:
    units = np.asarray(curve.units)
    if len(units) and not (units.min() > FIXED and units.max() < graph.coupling.n_units):
        raise ValuesError(
            f"a curve of {metric.name} speaks of units that the graph has not: {units.min()}..{units.max()}"
        )


def _named(graph: Graph, key: Any) -> str:
    """The vertex that a key of a dict of values stands for; a position would be another one after a change."""
    if not isinstance(key, (str, Vertex)):
        raise ValuesError(f"values: graph[{shown(key)}]: give values by the name of a vertex")
    return graph[key.name if isinstance(key, Vertex) else key].name


def _scores(metric: Metric, raw: Any, graph: Graph) -> np.ndarray:
    found, n = _numbers(metric.name, raw), graph.coupling.n_units
    if found.shape != (n,):
        raise ValuesError(f"the values of {metric.name} have shape {found.shape}; give {n} numbers, one per unit class")
    return found


def _check_callable(values: Callable[..., Any]) -> None:
    """Raises ValuesError for what is not meant to be called with a vertex."""
    name = getattr(values, "__name__", "")
    if inspect.isfunction(values) and values.__module__.startswith(__package__):
        raise ValuesError(f"values=solvemut.values.{name}: this makes a metric and was not called; give {name}(...)")
    if (why := takes_one(values)) is not None:
        raise ValuesError(f"values={shown(values)}: it is called with one vertex; {why}")


def normalised(value: np.ndarray, coupling: Coupling, how: str | None) -> np.ndarray:
    """Divide by the mean (max, sum, l2 norm) over each coupled group; a group of zeros stays."""
    if how is None:
        return value
    out = value.astype(float).copy()
    scale_of = {"mean": np.mean, "max": np.max, "sum": np.sum, "l2": np.linalg.norm}[how]
    for g in range(len(coupling.groups)):
        member = coupling.group_of == g
        with np.errstate(over="ignore", invalid="ignore"):
            scale = float(scale_of(value[member]))  # type: ignore[operator]
            peak = float(np.abs(value[member]).max(initial=0.0))
            if not 0 < scale < np.inf and 0 < peak < np.inf:  # it overflowed, or underflowed, or is negative
                out[member] = value[member] / peak
                scale = float(scale_of(out[member]))  # type: ignore[operator]
            if 0 < scale < np.inf:
                out[member] = out[member] / scale
            else:
                out[member] = value[member]
    return out


def _check_finite(graph: Graph, value: np.ndarray) -> None:
    bad = ~np.isfinite(value)
    bad[FIXED] = False
    if bad.any():
        c = int(np.flatnonzero(bad)[0])
        raise ValuesError(
            f"the value of a unit of {graph.name_of_unit(c)} is {value[c]} ({int(bad.sum())} units are not finite); "
            "check the weights, or the loss and the batches"
        )
    size = np.abs(value)
    size[FIXED] = 0.0
    with np.errstate(over="ignore"):
        total = float(size.sum())
    if total == np.inf:
        c = int(size.argmax())
        raise ValuesError(
            f"the values add up beyond what floats hold: a unit of {graph.name_of_unit(c)} alone is worth {value[c]}; "
            "divide all of them by a common number"
        )


def _from_vertices(graph: Graph, given: Mapping[str, Any], what: str) -> np.ndarray:
    """Values by vertex, added up over what is coupled; vertices left out count 1 per unit if they make units."""
    total = np.zeros(graph.coupling.n_units)
    for v in graph.vertices:
        raw = given.get(v.name, 1.0 if v.makes_units else None)
        if raw is None:
            continue
        array = _numbers(v.name, raw)
        if array.ndim > 1 or (array.ndim == 1 and len(array) != v.nout):
            raise ValuesError(f"{v.name} has {v.nout} units, but its values have shape {array.shape}")
        if not np.isfinite(array).all():
            bad = array[~np.isfinite(array)][:3]
            raise ValuesError(f"the values of {v.name} are not all finite: {bad}")
        units = v.units
        with np.errstate(over="ignore"):  # told by its vertex in the end
            np.add.at(total, units, np.broadcast_to(array, units.shape))
    return total


def _numbers(of: str, raw: Any) -> np.ndarray:
    """What was given for a vertex or by a metric, as floats."""
    try:
        found = np.asarray(wide(raw.detach()).cpu() if isinstance(raw, torch.Tensor) else raw)
        if found.dtype.kind not in "biufO":
            raise TypeError(f"numbers of type {found.dtype} are not real")
        with np.errstate(over="ignore"):
            return found.astype(float)
    except Exception as e:  # whatever an object of the caller's raises when it is turned into numbers
        raise ValuesError(f"the values of {of} are no numbers: {shown(raw)}") from e
