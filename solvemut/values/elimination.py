"""Elimination: how well the layers that read a group can do without some of its units, if the others make up for them.

The worth of units is found by backward elimination on the second moments of what each consumer reads: the optimal brain
surgeon, by blocks of columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import nn

from .. import batches as runs
from ..arguments import real, shown, whole
from ..calls import MAPS, LayerCall, columns, matrix, outputs, positions, watched
from ..compile import Curve, Worth
from ..errors import ValuesError
from ..graph import Graph
from ..progress import counted
from .dims import unit_dims
from .gates import fisher
from .metric import Metric
from .shares import kinds

MOST_COLUMNS = 12288  # of one consumer: beyond, its second moments would take more than a gigabyte


@dataclass
class Moments:
    """What is known of one linear map after the runs: of each of its groups the second moments of what it reads."""

    inputs: np.ndarray  # [groups, channels]: unit classes
    taps: int
    bias: bool
    weight: torch.Tensor  # [groups, outputs, columns]
    gram: torch.Tensor | None = None  # [groups, columns, columns], summed over examples and positions
    energy: torch.Tensor | None = None  # [groups, outputs]: mean square of the output's gradient
    seen: int = 0  # gradients


Maps = dict[tuple[str, int], Moments]  # by name of a weight and its dim that reads


def reconstruction(
    batches: Iterable[Any],
    loss: runs.Loss | None = None,
    ridge: float = 1e-3,
    positions: int = 64,
    memory: int = 2**31,
    seed: int = 0,
    progress: bool | None = None,
) -> Metric:
    """What the layers that read a unit lose without it, after the best linear correction of all they read besides.

    Of every consumer the second moments H of its unfolded inputs, summed over positions and averaged over examples, and
    the mean square f of the gradient at each output are gathered. Removing the columns u costs
    sum_o f_o w_ou inv((inv H)_uu) w_ou / 2. The least unit of a group goes first; the weights and inv H are
    updated, and so on: LeCun et al. 1990; Frantar & Alistarh, arXiv 2208.11580; ZipLM, arXiv 2302.04089. The order and
    the sum of the costs are the curve of the group, on the scale of the loss. Without a loss it is half the squared
    distance of an example's outputs from what they were: no labels are needed, and no example counts for nothing just
    because the model is sure of it. `positions` of each example are looked at, drawn with `seed`; `ridge` is relative
    to the mean of H's diagonal; runs are repeated where second moments would take more than `memory` bytes at a time.

    >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    >>> reconstruction([(x, y)], nn.functional.cross_entropy).name
    'reconstruction(batches, loss)'
    """
    name = "reconstruction(batches, loss)" if loss is not None else "reconstruction(batches)"
    runs.check(name, batches, loss)
    damping = real(ridge, f"reconstruction(ridge={shown(ridge)})", "ridge is a number of at least 0", ValuesError)
    if damping < 0:
        raise ValuesError(f"reconstruction(ridge={ridge}): ridge is at least 0")
    most = whole(positions, f"reconstruction(positions={shown(positions)})", 1, ValuesError)
    batches = runs.again(batches)
    found = partial(
        _reconstruction,
        batches=batches,
        loss=loss,
        ridge=damping,
        look=_Look(most, whole(seed, f"seed={shown(seed)}", 0, ValuesError), progress),
        memory=whole(memory, f"memory={shown(memory)}", 1, ValuesError),
    )
    return Metric(name, found, keeps=True, data=(batches, loss))


@dataclass(frozen=True)
class _Look:
    """How much is looked at."""

    positions: int
    seed: int
    progress: bool | None


def _reconstruction(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    loss: runs.Loss | None,
    ridge: float,
    look: _Look,
    memory: int,
) -> Worth:
    cells, member = kinds(graph)
    moments = _consumers(model, graph, member)
    for part in _passes(moments, memory):
        _gather(model, part, batches, loss, look)
    for m in moments.values():
        if m.gram is not None:
            m.energy = torch.zeros(m.weight.shape[:2]) if m.energy is None else m.energy / m.seen  # no gradient: 0
    curves, alone = [], []
    for k in counted(range(len(cells)), "elimination", look.progress):
        readers = [r for m in moments.values() for r in _readers(m, cells[k], member == k, ridge)]
        if readers:
            curves.append(_curve(graph, cells[k], readers))
        else:
            alone.append(k)
    value = np.zeros(graph.coupling.n_units)
    if alone:
        _stand_in(model, graph, value, [cells[k] for k in alone], (batches, loss))
    return Worth(value, tuple(curves))


def _stand_in(model: nn.Module, graph: Graph, value: np.ndarray, cells: list[np.ndarray], data: Any) -> None:
    """Units that no linear map is seen to read: what `fisher` says of them."""
    batches, loss = data
    names = sorted({graph.name_of_unit(int(units[0])) for units in cells})
    warnings.warn(
        f"no linear map is seen to read the units of {', '.join(names[:3])}: closing their gates counts", stacklevel=2
    )
    units = np.concatenate(cells)
    value[units] = np.asarray(fisher(batches, loss or moved).score(model, graph))[units]


def moved(model: nn.Module, batch: Any, seed: Any = 0) -> torch.Tensor:
    """A loss whose gradient has, in the mean square, that of the squared distance of the outputs from what they are.

    The sum of all outputs with random signs, the mean over examples.
    """
    leaves = runs.floats(runs.forward(model, batch))
    if not leaves:
        raise ValuesError("reconstruction: the model puts out no tensor of floats; give a loss")
    draw = torch.Generator().manual_seed(crc32(repr(seed).encode()))
    signs = [torch.randint(2, t.shape, generator=draw).to(t) * 2 - 1 for t in leaves]
    return torch.stack([(t * s).sum().to(leaves[0].dtype) for t, s in zip(leaves, signs, strict=True)]).sum() / max(
        1, runs.examples_in(batch)
    )


# -- second moments ----------------------------------------------------------------------------------------------------


def _consumers(model: nn.Module, graph: Graph, member: np.ndarray) -> Maps:
    """By weight and dim the linear maps that may read units which may go; told by their first call."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    return {
        (d.name, d.dim): Moments(d.units.reshape(d.shape), 1, False, tensors[d.name].detach())
        for d in unit_dims(graph)
        if len(d.tensor) > 1 and (member[d.units] >= 0).any()
        if not d.makes or len(d.names) > 1  # a tied weight may make what it also reads
    }


def _passes(moments: Maps, memory: int) -> list[Maps]:
    """The maps in parts whose second moments fit into memory together."""
    parts: list[Maps] = [{}]
    left = memory
    for key, m in moments.items():
        columns = m.weight.numel() // max(1, m.weight.shape[1 - key[1] if key[1] < 2 else 0])
        size = 8 * max(columns, m.inputs.size) ** 2
        if size > left and parts[-1]:
            parts.append({})
            left = memory
        parts[-1][key] = m
        left -= size
    return parts


def _gather(model: nn.Module, moments: Maps, batches: Iterable[Any], loss: runs.Loss | None, look: _Look) -> None:
    """One run through the batches, with gradients: second moments of inputs, mean squares of gradients of outputs."""
    n = 0
    with runs.evaluated(model, gradients=True):
        for k, batch in enumerate(runs.some(counted(batches, "reconstruction", look.progress))):
            size, batch = runs.examples_in(batch), runs.plain(batch)
            after = partial(_observe, moments=moments, size=size, seed=(look.seed, k), most=look.positions)
            model.zero_grad(set_to_none=True)
            with watched(model, after=after):
                found = moved(model, batch, (look.seed, k)) if loss is None else runs.value_of(loss, model, batch)
            runs.backward(found, k + 1)
            n += size
    for m in moments.values():
        if m.gram is not None:
            m.gram /= n


@torch.no_grad()
def _observe(call: LayerCall, moments: Maps, size: int, seed: tuple[int, int], most: int) -> None:
    m = moments.get((call.weight, call.in_dim))
    if m is None or call.kind not in MAPS or call.y is None:
        return
    if m.inputs.size // m.inputs.shape[-1] != call.groups or m.inputs.ndim != 2:
        m.inputs = m.inputs.reshape(call.groups, -1)
    w = matrix(call, m.weight) if m.gram is None else None
    if w is not None:
        m.weight, m.bias, m.taps = w, bool(call.bias), w.shape[-1] // m.inputs.shape[-1]
        if w.shape[-1] + m.bias > MOST_COLUMNS:
            warnings.warn(f"{call.weight} reads {w.shape[-1]} columns: too many to see how they make up", stacklevel=2)
            del moments[call.weight, call.in_dim]
            return
    every = positions(call, call.y, size)
    at, share = _drawn(call, every, most, seed)
    x = columns(call, call.x.detach(), at).flatten(0, 1).transpose(0, 1)  # [groups, rows, columns]
    x = x.float() if x.dtype.itemsize < 4 else x
    if m.bias:
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
    found = (x.transpose(1, 2) @ x).double() * share
    m.gram = found if m.gram is None else m.gram + found
    if call.y.requires_grad:
        call.y.register_hook(partial(_note, m, replace(call, y=None), size))  # y in its own hook would keep the graph


def _drawn(call: LayerCall, every: int, most: int, seed: tuple[int, int]) -> tuple[torch.Tensor | None, float]:
    """Positions to look at, and how many each of them stands for; of a linear layer those behind its first dim."""
    spots = every if call.taps else call.x[0].numel() // call.x.shape[-1] if call.x.ndim > 1 else 1
    if spots <= most:
        return None, 1.0
    generator = torch.Generator().manual_seed(crc32(repr((seed, call.key)).encode()))
    return torch.randperm(spots, generator=generator)[:most].sort().values, spots / most


def _note(m: Moments, call: LayerCall, size: int, grad: torch.Tensor) -> None:
    """Mean squares of the gradient of an example's loss, for a loss that is a mean over examples."""
    g = (outputs(call, grad).flatten(0, 1).double() * size).square()
    found = g.sum(0).reshape(call.groups, -1)
    m.energy = found if m.energy is None else m.energy + found
    m.seen += g.shape[0]


# -- elimination -------------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """A consumer during the elimination: weights [outputs, columns], the inverse of H, the columns of each unit."""

    weight: torch.Tensor
    inverse: torch.Tensor
    columns: torch.Tensor  # [units that it reads, columns of each]
    units: torch.Tensor  # which of the group's units these are

    def costs(self, left: torch.Tensor) -> torch.Tensor:
        """By position in `units` that is left: what is lost without it."""
        cols = self.columns[left]
        blocks = self.inverse[cols[:, :, None], cols[:, None, :]]
        w = self.weight[:, cols].permute(1, 2, 0)  # [units, columns, outputs]
        return 0.5 * (w * torch.linalg.solve(blocks, w)).sum((1, 2))

    def packed(self, gone: torch.Tensor) -> Reader:
        """Without the columns of units that are gone."""
        left = torch.nonzero(~gone[self.units]).reshape(-1)
        dead = torch.zeros(self.weight.shape[1], dtype=torch.bool)
        dead[self.columns[gone[self.units]].reshape(-1)] = True
        number = torch.cumsum(~dead, 0) - 1
        return Reader(
            self.weight[:, ~dead], self.inverse[~dead][:, ~dead], number[self.columns[left]], self.units[left]
        )

    def without(self, k: int) -> None:
        """Take the columns of one unit out; the others make up for it."""
        cols = self.columns[k]
        rows = self.inverse[cols]
        step = torch.linalg.solve(rows[:, cols], rows)  # [columns of the unit, all]
        self.weight -= self.weight[:, cols] @ step
        self.inverse -= rows.t() @ step


def _readers(m: Moments, units: np.ndarray, inside: np.ndarray, ridge: float) -> list[Reader]:
    """The groups of a consumer that read some of these units."""
    if m.gram is None or m.energy is None:
        return []
    found = []
    for g, classes in enumerate(m.inputs):
        if not inside[classes].any():
            continue
        h = m.gram[g].cpu()
        mean = float(h.diagonal()[: h.shape[0] - m.bias].mean())
        damp = ridge * mean if mean > 0 else 1.0
        h = h + torch.diag(torch.cat([torch.full((h.shape[0] - m.bias,), damp), torch.zeros(int(m.bias))]).double())
        w = torch.zeros(m.weight.shape[1], h.shape[0], dtype=torch.float64)
        w[:, : m.weight.shape[2]] = m.weight[g].double().cpu()
        at = {int(u): k for k, u in enumerate(units)}
        cols: dict[int, list[int]] = {}
        for c, u in enumerate(classes.tolist()):
            if inside[u]:
                cols.setdefault(at[u], []).extend(range(c * m.taps, (c + 1) * m.taps))
        factor, failed = torch.linalg.cholesky_ex(h)
        least = h.shape[0] * torch.finfo(h.dtype).eps * h.diagonal()
        if int(failed) or bool((factor.diagonal().square() <= least).any()):
            raise ValuesError("reconstruction: the second moments are singular; give a larger ridge, or more batches")
        w *= m.energy[g].double().cpu().sqrt()[:, None]
        columns = torch.tensor(list(cols.values()))
        found.append(Reader(w, torch.cholesky_inverse(factor), columns, torch.tensor(list(cols))))
    return found


def _curve(graph: Graph, units: np.ndarray, readers: Sequence[Reader]) -> Curve:
    """Units in the order in which they stay, and minus what is lost when just the first n do."""
    order, lost = eliminate(readers, len(units), torch.as_tensor(graph.coupling.frozen[units]))
    return Curve(units[order[::-1]], -np.maximum.accumulate(lost)[::-1])


def eliminate(readers: Sequence[Reader], n: int, last: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The order in which n units go, and what is lost in all after 0, 1, ... of them; those in `last` go at the end.

    Greedy: the unit that costs least goes, the weights of all that stays are corrected, and so on.
    """
    gone = torch.zeros(n, dtype=torch.bool)
    late = torch.zeros(n, dtype=torch.bool) if last is None else last
    order: list[int] = []
    lost = [0.0]
    pack = n // 2
    while len(order) < n:
        if n - len(order) == pack > 8:  # half are gone: go on with smaller matrices
            readers = [r.packed(gone) for r in readers]
            pack //= 2
        costs = torch.zeros(n, dtype=torch.float64)
        for r in readers:
            left = torch.nonzero(~gone[r.units]).reshape(-1)
            if len(left):
                costs.index_add_(0, r.units[left], r.costs(left))
        free = ~gone & ~late if (~gone & ~late).any() else ~gone
        costs[~free] = torch.inf
        k = int(costs.argmin())
        for r in readers:
            for at in torch.nonzero(r.units == k).reshape(-1).tolist():
                r.without(at)
        gone[k] = True
        order.append(k)
        lost.append(lost[-1] + max(0.0, float(costs[k])))
    return np.array(order), np.array(lost)
