"""The parameter dims that have units, one after another, and scores that are added up over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..graph import Graph
from .weights import slice_sums


@dataclass(frozen=True, eq=False)
class UnitDim:
    """A dim of a parameter with the unit class of each of its slices; `shape` is that of `slice_sums`."""

    names: tuple[str, ...]  # the parameter's, first the one that the trace gives it
    tensor: tuple[int, ...]  # its shape
    dim: int
    units: np.ndarray  # flat
    shape: tuple[int, ...]
    makes: bool  # whether it makes these units, or reads them

    @property
    def name(self) -> str:
        return self.names[0]


def unit_dims(graph: Graph) -> Iterator[UnitDim]:
    """Every parameter dim with units, the dims of one parameter one after another."""
    coupling = graph.coupling
    for key, extent in coupling.sources.items():
        p = coupling.trace.params.get(key[0])
        if p is not None and p.kind == "parameter":
            units = coupling.units(extent)
            shape = units.shape if extent.per_row else (units.size,)
            yield UnitDim((p.name, *p.aliases), p.shape, key[1], units.reshape(-1), shape, key in coupling.produced)


def over_dims(
    graph: Graph,
    entries: Callable[[str], torch.Tensor | None],
    score: Callable[[np.ndarray], np.ndarray],
    least: int = 1,
) -> np.ndarray:
    """Sum over the dims of all parameters of at least so many dims: `score` of what `entries` sums to by slice.

    As `over_slices`, for scores that are not proportional to their parameter. `entries` gets the parameter's name, once
    for the dims that follow each other.
    """
    total = np.zeros(graph.coupling.n_units)
    name, found = "", None
    for d in unit_dims(graph):
        if len(d.tensor) < least:
            continue
        if d.name != name:
            name, found = d.name, entries(d.name)
        if found is not None:
            scores = score(slice_sums(found, d.dim, d.shape).cpu().numpy())
            np.add.at(total, d.units, scores.reshape(-1))
    return total
