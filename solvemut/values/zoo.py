"""The usual importances of the pruning literature, lifted to coupled units, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import batches as runs
from ..calls import LINEAR, MAPS, LayerCall, columns, matrix, positions, watched
from ..graph import Graph
from ..precision import near_one, wide
from .data import of_data
from .dims import over_dims, unit_dims
from .metric import Metric

# -- of weights --------------------------------------------------------------------------------------------------------


def lamp(normalize: str | None = None) -> Metric:
    """The energy of a slice over that of all slices of its layer that are no smaller, summed over the slices.

    The best slice of every layer counts 1, so that layers compare. Lee et al., Layer-adaptive sparsity for the
    Magnitude-based Pruning, arXiv 2010.07611. Tensors of two or more dims; a group of a convolution is a layer.

    >>> lamp().name, _lamp(np.array([3.0, 1.0, 4.0])).round(3).tolist()
    ('lamp()', [0.429, 0.125, 1.0])
    """
    return Metric("lamp()", _lamp_scores, normalize)


def _lamp_scores(model: nn.Module, graph: Graph) -> np.ndarray:
    tensors = dict(model.named_parameters(remove_duplicate=False))

    def energy(name: str) -> torch.Tensor:
        near, _ = near_one(tensors[name].detach())  # the score knows no scale, the range of squares does
        return wide(near).abs().square()

    return over_dims(graph, energy, _lamp, least=2)


def _lamp(energy: np.ndarray) -> np.ndarray:
    """Each energy over the sum of those no smaller, along the last axis; equal ones count alike."""
    rows = energy.reshape(-1, energy.shape[-1])
    out = np.zeros_like(rows)
    for found, row in zip(out, rows, strict=True):
        order = np.sort(row)
        rest = np.cumsum(order[::-1])[::-1]  # of one energy and all behind it
        above = rest[np.searchsorted(order, row, side="left")]
        np.divide(row, above, out=found, where=above > 0)
    return out.reshape(energy.shape)


def fpgm(normalize: str | None = "mean") -> Metric:
    """The sum of distances of a filter to all others of its layer, summed over the layers that make the unit.

    A filter near the geometric median of its layer is told by the others. He et al., Filter Pruning via Geometric
    Median, arXiv 1811.00250. Tensors of two or more dims.

    >>> fpgm().name, _distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])).tolist()
    ('fpgm()', [10.0, 5.0, 5.0])
    """
    return Metric("fpgm()", _fpgm_scores, normalize)


def _fpgm_scores(model: nn.Module, graph: Graph) -> np.ndarray:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    total = np.zeros(graph.coupling.n_units)
    for d in unit_dims(graph):
        if len(d.tensor) < 2 or not d.makes or graph.coupling.frozen[d.units].all():
            continue  # of what stays there may be as many slices as a language has words
        near, scale = near_one(tensors[d.name].detach())
        w = wide(near)
        if len(d.shape) > 1:  # every group of a transposed convolution has filters of its own
            groups = w.reshape(d.shape[0], -1, *w.shape[1:])
            slices = groups.movedim(2, 1).flatten(0, 1).flatten(1)
        else:
            slices = w.movedim(d.dim, 0).flatten(1)
        np.add.at(total, d.units, scale * _distances(slices).cpu().numpy())
    return total


def _distances(rows: torch.Tensor) -> torch.Tensor:
    """The sum of distances of each row to all others, some rows at a time."""
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    exact = len(rows) ** 2 * rows.shape[1] <= 2**31  # a product of matrices is faster, and near 0 less exact
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    parts = rows.split(max(1, 2**24 // max(1, len(rows))))
    return torch.cat([torch.cdist(part, rows, compute_mode=mode).sum(1) for part in parts])


# -- of data -----------------------------------------------------------------------------------------------------------


def wanda(batches: Iterable[Any], normalize: str | None = None) -> Metric:
    """|weight| times the norm of what it reads, summed over all weights that read the unit.

    The norm of an input of a linear map, or of one tap of a convolution, is over all examples and positions. Sun et
    al., A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695. A unit that is read by
    nothing but norms, depthwise filters and weights that are computed first is worth 0.

    >>> wanda([torch.ones(1, 4)]).name
    'wanda(batches)'
    """
    runs.check("wanda(batches)", batches, None)
    return Metric("wanda(batches)", partial(_wanda_scores, batches=batches), normalize)


def _wanda_scores(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> np.ndarray:
    reads = {(name, d.dim): d.units for d in unit_dims(graph) for name in d.names}
    tensors = dict(model.named_parameters())
    energy: dict[tuple[Any, ...], Any] = {}  # by map: of every column over all batches
    sizes: dict[tuple[Any, ...], torch.Tensor] = {}  # |weight| by column, summed over outputs

    def look(call: LayerCall) -> None:
        if call.kind not in MAPS or (call.weight, call.in_dim) not in reads:
            return
        key = (call.weight, call.in_dim, call.groups, prod(call.taps))
        if key not in sizes:
            sizes[key] = matrix(call, wide(tensors[call.weight].detach()).abs()).sum(1)
        energy[key] = energy.get(key, 0) + _column_energy(call)

    with runs.evaluated(model):
        for batch in runs.some(batches):
            with watched(model, after=look):
                runs.run(model, batch, None)
    total = np.zeros(graph.coupling.n_units)
    for (name, in_dim, groups, taps), found in energy.items():
        by_column = sizes[name, in_dim, groups, taps] * found.sqrt()
        scores = by_column.reshape(-1, taps).sum(1)  # the inputs of one group after another
        np.add.at(total, reads[name, in_dim], scores.cpu().numpy())
    return total


def _column_energy(call: LayerCall) -> torch.Tensor:
    """The squares of the unfolded input summed over examples and positions, [groups, inputs of a group times taps].

    Examples are summed first, so that no more is unfolded at once than the input itself holds.
    """
    assert call.y is not None
    energy = wide(call.x.detach()).square()
    if call.kind == LINEAR:
        return energy.reshape(-1, energy.shape[-1]).sum(0, keepdim=True)
    examples = 1
    if energy.ndim == len(call.taps) + 2:
        examples, energy = energy.shape[0], energy.sum(0, keepdim=True)
    channels = energy.shape[-len(call.taps) - 1]
    step = max(1, call.x.numel() // (channels * prod(call.taps)))
    every = torch.arange(positions(call, call.y, examples), device=energy.device)
    parts = [columns(call, energy, at).sum((0, 1)) for at in every.split(step)]
    return torch.stack(parts).sum(0)


def hessian(batches: Iterable[Any], loss: Callable[..., torch.Tensor], normalize: str | None = None) -> Metric:
    """Half of squared weight times curvature, summed over each slice: the second-order change of the loss.

    LeCun et al., Optimal Brain Damage, 1990. The curvature of a weight is the mean over examples of its squared
    gradient, the diagonal of the empirical Fisher; every example takes a backward pass of its own.

    >>> hessian([(torch.ones(1, 4), torch.tensor([0]))], nn.functional.cross_entropy).name
    'hessian(batches, loss)'
    """
    return of_data("hessian(batches, loss)", _hessian_scores, batches, loss, normalize)


def _hessian_scores(
    model: nn.Module, graph: Graph, batches: Iterable[Any], loss: Callable[..., torch.Tensor]
) -> np.ndarray:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    total: dict[nn.Parameter, Any] = {}

    def add() -> None:
        for p in model.parameters():
            if p.grad is not None:
                total[p] = total.get(p, 0) + wide(p.grad).abs().square()

    n = runs.each(model, runs.singles(batches), loss, add)

    def change(name: str) -> torch.Tensor | None:
        p = tensors[name]
        return wide(p.detach()).abs().square() * total[p] / (2 * n) if p in total else None

    return over_dims(graph, change, lambda s: s)
