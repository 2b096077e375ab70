"""Values from weights alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import real, shown, whole
from ..errors import ValuesError
from ..graph import Graph
from .metric import Metric


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

    return over_slices(model, graph, power, lambda s: s ** (1 / p))


def bn_scale(normalize: str | None = None) -> Metric:
    """|weight| of the batch norms that a unit passes. Liu et al., Network Slimming, arXiv 1708.06519."""
    return Metric("bn_scale()", _bn_scale, normalize)


def _bn_scale(model: nn.Module, graph: Graph) -> np.ndarray:
    norms = {f"{k}.weight" for k, m in model.named_modules() if isinstance(m, _NORMS)}
    return over_slices(model, graph, lambda name, w: w.abs() if name in norms else None, lambda s: s)


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


def over_slices(
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
        c = slice_sums(c, dim, units.shape if extent.per_row else (units.size,))
        scores = scale * finish(c.double().cpu().numpy())
        np.add.at(total, units.reshape(-1), scores.reshape(-1))
    return total


def slice_energies(model: nn.Module, graph: Graph, p: float) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """For each parameter dim with units the sum of |w|^p by unit class, up to a factor; tensors of two or more dims.

    Where there are no weights to see, on the meta device, every position counts 1.
    """
    coupling = graph.coupling
    tensors = {} if model is None else dict(model.named_parameters(remove_duplicate=False))
    last: tuple[Any, ...] = ()
    for (value, dim), extent in coupling.sources.items():
        param = coupling.trace.params.get(value)
        if param is None or param.kind != "parameter" or len(param.shape) < 2:
            continue
        units, w = coupling.units(extent), tensors.get(param.name)
        shape = units.shape if extent.per_row else (units.size,)
        if w is None or w.is_meta:
            energies = np.ones(shape)
        else:
            if not last or last[0] != param.name:
                near, _ = _near_one(w.detach())
                last = (param.name, near.abs() ** p if p != 2 or near.is_complex() else near.square())
            energies = slice_sums(last[1], dim, shape).double().cpu().numpy()
        if not np.isfinite(energies).all():
            raise ValuesError(f"the weights {param.name} are not all finite")
        found = np.bincount(units.reshape(-1), weights=energies.reshape(-1), minlength=coupling.n_units)
        yield (value, dim), found


def norm_moments(model: nn.Module, graph: Graph) -> np.ndarray:
    """By unit class the mean square that its norms give it, weight^2 + bias^2, summed over them; 1 where none does."""
    coupling = graph.coupling
    tensors = {} if model is None else dict(model.named_parameters(remove_duplicate=False))
    found, normed = np.zeros(coupling.n_units), np.zeros(coupling.n_units, dtype=bool)
    for node in coupling.trace.nodes:
        if not node.op.endswith("_norm"):
            continue
        for key in ("weight", "bias"):
            value = getattr(node.args.get(key), "name", "")
            p = coupling.trace.params.get(value)
            w = None if p is None else tensors.get(p.name)
            if w is None or w.is_meta or (value, 0) not in coupling.sources:
                continue
            units = coupling.units(coupling.sources[value, 0]).reshape(-1)
            np.add.at(found, units, wide(w.detach()).square().cpu().numpy().reshape(-1))
            normed[units] = True
    return np.where(normed, found, 1.0)


def slice_sums(c: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The sum over each slice along a dim; of shape [groups, inputs] where group g has inputs and rows of its own."""
    if len(shape) == 1:
        return c.movedim(dim, 0).reshape(shape[0], -1).sum(1)
    groups = shape[0]  # group g owns rows g of dim 0
    return c.reshape(groups, c.shape[0] // groups, *c.shape[1:]).movedim(2, 1).flatten(2).sum(2)


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
