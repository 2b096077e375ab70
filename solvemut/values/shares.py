"""Retention: the share of each weight tensor that stays, in logarithms, so that no layer is starved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from ..arguments import one_of, real, shown
from ..compile import Curve, Worth
from ..errors import ValuesError
from ..graph import Graph
from ..precision import near_one, wide
from .dims import UnitDim, summed
from .metric import Metric

FLOOR = 1e-3  # of a tensor's energy is shared out evenly, so that units of weight zero count for something


def retention(p: float = 2, tensors: str = "readers") -> Metric:
    """The logarithm of the share of each weight tensor's energy that stays, summed over the tensors a unit stands in.

    The energy of a slice is the sum of |w|^p. Tensors of two or more dims count; of a dim that holds units of several
    kinds, such as a concat's, each kind counts its own share. What is worth most goes last, and as a layer empties its
    worth falls without bound: a product over layers of what passes, as in SynFlow (arXiv 2006.05467), made additive.
    Needs no data, and no weights: on the meta device, or where all weights are alike, shares are those of units.

    With tensors="readers" those count that read a unit, each slice times the mean square that norms give the unit
    (weight^2 + bias^2): the share of what the layer is given; a unit that none reads counts in those that make it. With
    "all" every tensor counts, as it is.

    >>> import torch, solvemut as sm
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> sm.prune(model, torch.ones(1, 4), params=0.3, values=retention()).sizes["0"][1] > 16
    True
    """
    power = real(p, f"retention(p={shown(p)})", "p is a number above 0", ValuesError)
    if not power > 0:
        raise ValuesError(f"retention(p={p}): p is above 0")
    one_of(tensors, "tensors", ("readers", "all"), ValuesError)
    name = f"retention(p={power:g}{'' if tensors == 'readers' else ', all'})"
    return Metric(name, partial(_retention, p=power, tensors=tensors))


def _retention(model: nn.Module, graph: Graph, p: float, tensors: str) -> Worth:
    read: dict[int, list[np.ndarray]] = {}
    made: dict[int, list[np.ndarray]] = {}
    cells, member = kinds(graph)
    moments = _norm_moments(model, graph) if tensors == "readers" else np.ones(graph.coupling.n_units)
    for d, energy in _energies(model, graph, p):
        for k in np.unique(member[d.units]).tolist():
            if k >= 0:
                found = energy[cells[k]] * (1 if d.makes else moments[cells[k]])
                (made if d.makes else read).setdefault(k, []).append(_evened(found))
    if tensors == "readers":
        made = {k: found for k, found in made.items() if k not in read}
    shares = {k: read.get(k, []) + made.get(k, []) for k in sorted(read.keys() | made.keys())}
    curves = [_curve(graph, cells[k], np.stack(found)) for k, found in shares.items()]
    return Worth(np.zeros(graph.coupling.n_units), tuple(curves))


def _energies(model: nn.Module, graph: Graph, p: float) -> Iterator[tuple[UnitDim, np.ndarray]]:
    """For each dim with units of a tensor of two or more dims the sum of |w|^p by unit class, up to a factor.

    Where there are no weights to see, on the meta device, every position counts 1.
    """
    tensors = {} if model is None else dict(model.named_parameters(remove_duplicate=False))

    def entries(name: str) -> torch.Tensor | None:
        if (w := tensors.get(name)) is None or w.is_meta:
            return None
        near, _ = near_one(w.detach())
        return near.abs() ** p if p != 2 or near.is_complex() else near.square()

    for d, sums in summed(graph, entries, least=2):
        if sums is not None and not np.isfinite(sums).all():
            raise ValuesError(f"the weights {d.name} are not all finite")
        flat = np.ones(d.units.size) if sums is None else sums.reshape(-1)
        yield d, np.bincount(d.units, weights=flat, minlength=graph.coupling.n_units)


def _norm_moments(model: nn.Module, graph: Graph) -> np.ndarray:
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
            square = wide(w.detach()).square().cpu().numpy().reshape(len(units), -1)  # of a norm over pixels, too
            np.add.at(found, units, square.mean(axis=1))
            normed[units] = True
    return np.where(normed, found, 1.0)


def kinds(graph: Graph) -> tuple[list[np.ndarray], np.ndarray]:
    """The units of each coupled group that stand in the same parameter dims, equally often: their classes; by class.

    Groups of which nothing may go are left out (-1).
    """
    coupling = graph.coupling
    seed = np.random.default_rng(0)
    mark = np.zeros(coupling.n_units, dtype=np.uint64)
    for extent in coupling.sources.values():
        with np.errstate(over="ignore"):
            np.add.at(mark, coupling.units(extent).reshape(-1), seed.integers(1, 2**63, dtype=np.uint64))
    member = np.full(coupling.n_units, -1)
    inside = np.flatnonzero(coupling.group_of >= 0)
    pairs = np.stack([coupling.group_of[inside].astype(np.uint64), mark[inside]], axis=1)
    _, number = np.unique(pairs, axis=0, return_inverse=True)
    member[inside] = number.reshape(-1)
    cells: list[np.ndarray] = []
    for k in range(int(member.max(initial=-1)) + 1):
        units = np.flatnonzero(member == k)
        if coupling.frozen[units].all():
            member[units] = -1
        else:
            member[units] = len(cells)
            cells.append(units)
    return cells, member


def _evened(energy: np.ndarray) -> np.ndarray:
    """Shares of a whole, with `FLOOR` of it shared out evenly."""
    n, total = len(energy), energy.sum()
    even = np.full(n, 1 / n)
    return even if not 0 < total < math.inf else (1 - FLOOR) * energy / total + FLOOR * even


def _curve(graph: Graph, units: np.ndarray, shares: np.ndarray) -> Curve:
    """The units by falling shares, and the sum of logarithms of what the first n of them have; shares [tensors, n]."""
    first = _ranks(graph, units, shares.sum(axis=0))
    passed = np.minimum(np.cumsum(shares[:, first], axis=1), 1.0)
    none = np.full((len(shares), 1), FLOOR / (2 * len(units)))  # of a kind that may go altogether
    worth = np.log(np.concatenate([none, passed], axis=1)).sum(axis=0)
    worth[-1] = 0.0
    return Curve(units[first], worth)


def ranked(graph: Graph, units: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Units in the order of a curve: those that must stay, then by falling value (by unit class)."""
    return units[_ranks(graph, units, value[units])]


def _ranks(graph: Graph, units: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The same as positions; `value` is by position."""
    return np.lexsort((units, -value, ~graph.coupling.frozen[units]))
