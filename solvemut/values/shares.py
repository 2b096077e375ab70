"""Retention: the share of each weight tensor that stays, in logarithms, so that no layer is starved."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from torch import nn

from ..arguments import one_of, real, shown
from ..compile import Curve, Worth
from ..errors import ValuesError
from ..graph import Graph
from .metric import Metric
from .weights import norm_moments, slice_energies

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
    moments = norm_moments(model, graph) if tensors == "readers" else np.ones(graph.coupling.n_units)
    for key, energy in slice_energies(model, graph, p):
        makes = key in graph.coupling.produced
        units = np.unique(graph.coupling.units(graph.coupling.sources[key]))
        for k in np.unique(member[units]).tolist():
            if k >= 0:
                found = energy[cells[k]] * (1 if makes else moments[cells[k]])
                (made if makes else read).setdefault(k, []).append(_evened(found))
    if tensors == "readers":
        made = {k: found for k, found in made.items() if k not in read}
    shares = {k: read.get(k, []) + made.get(k, []) for k in sorted(read.keys() | made.keys())}
    curves = [_curve(graph, cells[k], np.stack(found)) for k, found in shares.items()]
    return Worth(np.zeros(graph.coupling.n_units), tuple(curves))


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
    frozen = graph.coupling.frozen[units]
    ranked = np.lexsort((units, -shares.sum(axis=0), ~frozen))
    passed = np.minimum(np.cumsum(shares[:, ranked], axis=1), 1.0)
    none = np.full((len(shares), 1), FLOOR / (2 * len(units)))  # of a kind that may go altogether
    worth = np.log(np.concatenate([none, passed], axis=1)).sum(axis=0)
    worth[-1] = 0.0
    return Curve(units[ranked], worth)
