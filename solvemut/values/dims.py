"""The parameter dims that have units, one after another, and scores that are added up over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..graph import Graph
from ..precision import near_one

Entries = Callable[[str], torch.Tensor | None]  # by name of a parameter numbers of its shape, None: it does not count


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


def summed(graph: Graph, entries: Entries, least: int = 1) -> Iterator[tuple[UnitDim, np.ndarray | None]]:
    """The dims of all parameters of at least so many dims, each with what `entries` sums to by slice, in doubles.

    `entries` gets the parameter's name, once for the dims that follow each other.
    """
    name, found = "", None
    for d in unit_dims(graph):
        if len(d.tensor) < least:
            continue
        if d.name != name:
            name, found = d.name, entries(d.name)
        yield d, None if found is None else slice_sums(found, d.dim, d.shape).double().cpu().numpy()


def over_dims(graph: Graph, entries: Entries, score: Callable[[np.ndarray], np.ndarray], least: int = 1) -> np.ndarray:
    """`score` of what `entries` sums to by slice, added up over the dims that have units: see `summed`."""
    total = np.zeros(graph.coupling.n_units)
    for d, sums in summed(graph, entries, least):
        if sums is not None:
            np.add.at(total, d.units, score(sums).reshape(-1))
    return total


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
    total = np.zeros(graph.coupling.n_units)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    scales: dict[str, float] = {}

    def entries(name: str) -> torch.Tensor | None:
        near, scales[name] = near_one(tensors[name].detach())
        return contribution(name, near)

    for d, sums in summed(graph, entries):
        if sums is not None:
            np.add.at(total, d.units, (scales[d.name] * finish(sums)).reshape(-1))
    return total


def slice_sums(c: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The sum over each slice along a dim; of shape [groups, inputs] where group g has inputs and rows of its own."""
    if len(shape) == 1:
        return c.movedim(dim, 0).reshape(shape[0], -1).sum(1)
    groups = shape[0]  # group g owns rows g of dim 0
    return c.reshape(groups, c.shape[0] // groups, *c.shape[1:]).movedim(2, 1).flatten(2).sum(2)
