"""Values from weights alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from ..arguments import real, shown, whole
from ..errors import ValuesError
from ..graph import Graph
from ..precision import wide
from .dims import over_slices
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
