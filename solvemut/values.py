"""Values: what keeping each unit is worth. A metric is a function that returns a `Metric`.

A metric gives a number to every position of every parameter dim; `unit_values` adds them up over all that makes a unit
(every coupled parameter slice) and normalises within coupled groups. Data-driven metrics run the model on batches.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from .arguments import one_of, real, shown, takes_one, whole
from .coupling import Coupling
from .errors import ValuesError
from .graph import Graph, Vertex
from .interrupts import deferred
from .labels import FIXED

NORMALISE = ("mean", "max", "sum", "l2", None)


@dataclass(frozen=True)
class Metric:
    """A named way to value units: `score(model, graph)` gives one number per unit class."""

    name: str
    score: Callable[[nn.Module, Graph], np.ndarray]
    normalize: str | None = None

    def __post_init__(self) -> None:
        one_of(self.normalize, "normalize", NORMALISE, ValuesError)
        if not callable(self.score):
            raise ValuesError(f"Metric({self.name!r}): score is a function of a model and a graph, not {self.score!r}")


Values = Metric | Mapping[str, Any] | Callable[[Vertex], Any] | None


def magnitude(p: float = 2, normalize: str | None = "mean") -> Metric:
    """The p-norm of every parameter slice that makes the unit, summed over the slices.

    With normalize="mean" the mean over each coupled group is 1, so that layers compare whatever their scale. Following
    Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710, extended to all coupled slices.
    """
    power = real(p, f"magnitude(p={shown(p)})", "p is a number above 0", ValuesError)
    if not power > 0:
        raise ValuesError(f"magnitude(p={p}): p is above 0")
    return Metric(f"magnitude(p={power:g})", partial(_magnitude, p=power), normalize)


def _magnitude(model: nn.Module, graph: Graph, p: float) -> np.ndarray:
    def power(name: str, w: torch.Tensor) -> torch.Tensor:
        if w.is_complex() or p > 2:  # higher powers of small numbers want the range of doubles
            return wide(w).abs() ** p
        return w.square() if p == 2 else w.abs() ** p

    return _over_slices(model, graph, power, lambda s: s ** (1 / p))


def bn_scale(normalize: str | None = None) -> Metric:
    """|weight| of the batch norms that a unit passes. Liu et al., Network Slimming, arXiv 1708.06519."""
    return Metric("bn_scale()", _bn_scale, normalize)


def _bn_scale(model: nn.Module, graph: Graph) -> np.ndarray:
    norms = {f"{k}.weight" for k, m in model.named_modules() if isinstance(m, _NORMS)}
    return _over_slices(model, graph, lambda name, w: w.abs() if name in norms else None, lambda s: s)


def taylor(batches: Iterable[Any], loss: Callable[..., torch.Tensor], normalize: str | None = None) -> Metric:
    """|sum of weight times gradient| over each slice, accumulated over batches: the first-order change of the loss.

    `loss(output, target)` returns a scalar for batches `(input, ..., target)`; a function whose first parameter is
    called model, net, module or m is given `loss(model, batch)`, whatever the batches are.

    >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    >>> taylor([(x, y)], nn.functional.cross_entropy).name
    'taylor(batches, loss)'

    Molchanov et al., Importance Estimation for Neural Network Pruning,
    arXiv 1906.10771.
    """
    return _of_data("taylor(batches, loss)", _taylor, batches, loss, normalize)


def _taylor(model: nn.Module, graph: Graph, batches: Iterable[Any], loss: Callable[..., torch.Tensor]) -> np.ndarray:
    total: Any = 0
    tensors = dict(model.named_parameters())

    def contribution(name: str, w: torch.Tensor) -> torch.Tensor | None:
        grad = tensors[name].grad
        return None if grad is None else wide(w) * wide(grad)

    def add() -> None:
        nonlocal total
        total = total + _over_slices(model, graph, contribution, np.abs)

    _each_batch(model, batches, loss, add)
    return np.asarray(total)


def _of_data(
    name: str, score: Callable[..., np.ndarray], batches: Iterable[Any], loss: Callable[..., torch.Tensor],
    normalize: str | None,
) -> Metric:  # fmt: skip
    """A metric that runs a loss over batches."""
    if not callable(loss):
        raise ValuesError(f"{name}: loss is a function of output and target, or of model and batch, not {shown(loss)}")
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ValuesError(f"{name}: batches are a list or a loader of batches, not {shown(batches)}")
    return Metric(name, partial(score, batches=batches, loss=loss), normalize)


def activation(batches: Iterable[Any], loss: Callable[..., torch.Tensor], normalize: str | None = None) -> Metric:
    """|mean of activation times gradient| of each unit at the layers that make it, averaged over examples and batches.

    Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, arXiv 1611.06440. The
    activation is the output of every module that makes the unit.
    """
    return _of_data("activation(batches, loss)", _activation_scores, batches, loss, normalize)


def random(seed: int = 0) -> Metric:
    """Independent uniform numbers in (0, 1)."""
    seed = whole(seed, f"random(seed={shown(seed)})", 0, ValuesError)
    return Metric(f"random(seed={seed})", partial(_random, seed=seed))


def _random(model: nn.Module, graph: Graph, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1e-6, 1.0, graph.coupling.n_units)


def constant(value: float = 1.0) -> Metric:
    """The same for every unit."""
    found = real(value, f"constant({shown(value)})", "give a finite number", ValuesError)
    return Metric(f"constant({found:g})", partial(_constant, value=found))


def _constant(model: nn.Module, graph: Graph, value: float) -> np.ndarray:
    return np.full(graph.coupling.n_units, value)


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


# -- one number per unit -----------------------------------------------------------------------------------------------


def unit_values(values: Values, model: nn.Module, graph: Graph) -> np.ndarray:
    """One finite number per unit class. Raises ValuesError, with the vertex, where there is none."""
    if values is None:
        values = magnitude()
    if isinstance(values, Metric):
        with torch.inference_mode(False):  # gradients are needed, whatever the caller's mode
            found = normalised(_scores(values, model, graph), graph.coupling, values.normalize)
    elif isinstance(values, Mapping):
        found = _from_vertices(
            graph, {graph[k].name: v for k, v in values.items()}, f"values of {len(values)} vertices"
        )
    elif callable(values):
        _check_callable(values)
        found = _from_vertices(graph, {v.name: values(v) for v in graph.vertices if v.makes_units}, "values")
    else:
        raise ValuesError(f"values={shown(values)}: give a metric of solvemut.values, a dict by vertex, or a callable")
    _check_finite(graph, found)
    return found


def _scores(metric: Metric, model: nn.Module, graph: Graph) -> np.ndarray:
    found, n = _numbers(metric.name, metric.score(model, graph)), graph.coupling.n_units
    if found.shape != (n,):
        raise ValuesError(f"the values of {metric.name} have shape {found.shape}; give {n} numbers, one per unit class")
    return found


def _check_callable(values: Callable[..., Any]) -> None:
    """Raises ValuesError for what is not meant to be called with a vertex."""
    if any(values is f for f in (magnitude, bn_scale, taylor, activation, random, constant)):
        name = values.__name__
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


def _over_slices(
    model: nn.Module,
    graph: Graph,
    contribution: Callable[[str, torch.Tensor], torch.Tensor | None],
    finish: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Sum over all parameter dims with units: `contribution` summed within a slice, then `finish`, per position.

    A score is proportional to its parameter, so it is computed of numbers near 1, in single precision at least, and
    scaled back exactly.
    """
    coupling = graph.coupling
    total = np.zeros(coupling.n_units)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    last: tuple[Any, ...] = ()  # the tensor at hand, for its other dims
    for (value, dim), extent in coupling.sources.items():
        p = coupling.trace.params.get(value)
        if p is None or p.kind != "parameter":
            continue
        if not last or last[0] != p.name:
            w, scale = _near_one(tensors[p.name].detach())
            last = (p.name, contribution(p.name, w), scale)
        _, c, scale = last
        if c is None:
            continue
        units = coupling.units(extent)
        if extent.per_row:  # [groups, inputs]: group g owns rows g of dim 0
            g = units.shape[0]
            c = c.reshape(g, c.shape[0] // g, *c.shape[1:]).movedim(2, 1).flatten(2).sum(2)
        else:
            c = c.movedim(dim, 0).reshape(units.size, -1).sum(1)
        scores = scale * finish(c.double().cpu().numpy())
        np.add.at(total, units.reshape(-1), scores.reshape(-1))
    return total


def wide(t: torch.Tensor) -> torch.Tensor:
    """In double precision, where squares of all that fits a narrower type are exact enough, none zero or infinite."""
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.device.type == "mps":  # has no doubles
        t = t.cpu()
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def _near_one(t: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A tensor over a power of two no larger than its largest entry, and that power; at least in single precision."""
    single = t.layout is torch.strided and not t.is_complex() and t.dtype.itemsize <= 4
    w = t.float() if single else wide(t)
    low, high = (w.min(), w.max()) if w.numel() and not w.is_complex() else (-w.abs().max(), 0) if w.numel() else (0, 0)
    largest = max(-float(low), float(high))
    scale = 2.0 ** (math.frexp(largest)[1] - 1) if 0 < largest < math.inf else 1.0
    return (w, scale) if scale == 1 else (w / scale, scale)


# -- running the model -------------------------------------------------------------------------------------------------


def _kept_state(model: nn.Module) -> Callable[[], None]:
    """A function that gives back .grad, requires_grad, buffers and modes as they are now."""
    grads = [(p, p.grad) for p in model.parameters()]
    needs = [(p, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    training = [(m, m.training) for m in model.modules()]

    def give_back() -> None:
        for p, g in grads:
            p.grad = g
        for p, need in needs:
            p.requires_grad_(need)
        with torch.no_grad():
            for b, saved in buffers:
                b.copy_(saved)
        for m, mode in training:
            m.training = mode

    return give_back


def _value_of(loss: Callable[..., torch.Tensor], model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss on a batch, in whichever of the two ways it wants to be called."""
    try:
        names = list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):
        names = []
    if names and names[0] in ("model", "net", "network", "module", "m"):
        return loss(model, batch)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return loss(model(*batch[:-1]), batch[-1])
    if len(names) == 1:
        return loss(model(batch))
    raise ValuesError(
        "the batches are no (input, target) pairs; give loss(model, batch), its first parameter called `model`"
    )


def _each_batch(
    model: nn.Module, batches: Iterable[Any], loss: Callable[..., torch.Tensor], use: Callable[[], None]
) -> int:
    """Run the loss and its gradients batch by batch, `use` after each, and leave the model as it was; how many."""
    n = 0
    grad = torch.is_grad_enabled()
    with deferred() as interrupts:
        give_back = _kept_state(model)
        try:
            model.eval()
            for p in model.parameters():
                p.requires_grad_(p.is_floating_point())
            with torch.random.fork_rng(), torch.enable_grad(), interrupts.allowed():
                for n, batch in enumerate(batches, 1):
                    _backward(model, _plain(batch), loss, n)
                    use()
        finally:
            give_back()
            torch.set_grad_enabled(grad)
    if n == 0:
        raise ValuesError("the data iterator gave no batch: an iterator that was used up, or an empty loader?")
    return n


def _plain(batch: Any) -> Any:
    """Tensors made in inference mode cannot be part of a backward pass; their copies can."""
    if not any(map(_is_inference, pytree.tree_leaves(batch))):
        return batch
    return pytree.tree_map(lambda x: x.clone() if _is_inference(x) else x, batch)


def _is_inference(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_inference()


def _backward(model: nn.Module, batch: Any, loss: Callable[..., torch.Tensor], n: int) -> None:
    for p in model.parameters():
        p.grad = None
    found = _value_of(loss, model, batch)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise ValuesError("the loss must return a scalar tensor")
    if not torch.isfinite(found):
        raise ValuesError(f"the loss on batch {n} is {float(found.detach())}")
    found.backward()


def _activation_scores(
    model: nn.Module, graph: Graph, batches: Iterable[Any], loss: Callable[..., torch.Tensor]
) -> np.ndarray:
    modules = dict(model.named_modules())
    places: dict[str, tuple[np.ndarray, int]] = {}
    for v in graph.vertices:
        if v.makes_units and v.name in modules and v.axis is not None:
            places[v.name] = (v.units, v.axis)
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor) and out.requires_grad:
                out.retain_grad()
                seen.setdefault(name, []).append(out)

        return hook

    total = np.zeros(graph.coupling.n_units)

    def add() -> None:
        for name, outs in seen.items():
            units, axis = places[name]
            for out in outs:
                if out.grad is not None:
                    np.add.at(total, units, _taylor_of(out, axis))
        seen.clear()

    with deferred():
        try:
            for name in places:
                handles.append(modules[name].register_forward_hook(record(name)))
            n = _each_batch(model, batches, loss, add)
        finally:
            for h in handles:
                h.remove()
    return total / n


def _taylor_of(out: torch.Tensor, axis: int) -> np.ndarray:
    """Per unit: |mean over positions of activation * gradient|, averaged over the batch (dim 0, unless it is units)."""
    assert out.grad is not None
    c = (wide(out.detach()) * wide(out.grad)).movedim(axis, -1)
    batch = c.shape[0] if c.ndim > 1 else 1
    return c.reshape(batch, -1, c.shape[-1]).mean(1).abs().mean(0).cpu().numpy()
