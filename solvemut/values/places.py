"""Places: where units are observed while a model is trained, and how what was seen of them follows a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..edits import rows_of
from ..errors import PlanMismatchError
from ..flow import FIXED
from ..graph import Graph
from ..plan import PlanRecord
from .data import makers, written_over

EPS = float(np.finfo(np.float32).eps)  # what a unit is worth that nothing was seen of


@dataclass(frozen=True)
class Place:
    """Units along one dim of a layer's output or of a parameter, with the average of what was seen of each.

    `tensor` is a parameter and a dim with the same units in the same order; where there is none, `stands` says for
    every unit at which position of which parameter dim it can be found.
    """

    average: torch.Tensor  # of shape [n], or [groups, n] for the inputs of a grouped convolution
    seen: torch.Tensor  # how many observations there were: on the device, so that no step waits for it
    dim: int  # of a layer's output it is counted from the end: an example may have fewer dims in front
    tensor: tuple[str, int] | None = None
    stands: tuple[tuple[str, int, int], ...] = ()
    overwritten: bool = False  # whether a later operation changes the layer's output in place

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.average.shape)

    def observed(self, found: torch.Tensor, decay: float) -> Place:
        """With one more observation; one that is not finite counts for nothing."""
        found = found.detach()
        old, seen = self.average.to(found.device), self.seen.to(found.device)
        fine = found.isfinite().all()
        new = torch.where(seen > 0, decay * old + (1 - decay) * found, found)
        return replace(self, average=torch.where(fine, new, old), seen=seen + fine)

    def copied(self) -> Place:
        """The same, with the knowledge that the output is written over."""
        return replace(self, overwritten=True)

    def loaded(self, average: torch.Tensor, seen: torch.Tensor) -> Place:
        """The same place with other numbers."""
        return replace(self, average=average.clone(), seen=seen.clone())


def unseen(shape: tuple[int, ...], dim: int, **about: Any) -> Place:
    """A place before any observation."""
    return Place(torch.full(shape, EPS, dtype=torch.float64), torch.zeros((), dtype=torch.long), dim, **about)


def units_at(model: nn.Module, graph: Graph, activation: bool) -> dict[str, np.ndarray]:
    """The unit classes of every place: of the layers that make units, or of the dims of parameters."""
    if activation:
        return {name: v.units for name, (v, _) in makers(model, graph).items()}
    return {key: units for key, (units, _, _) in _dims(graph).items()}


def places_of(model: nn.Module, graph: Graph, activation: bool) -> dict[str, Place]:
    """Every place, before any observation."""
    dims = _dims(graph)
    if not activation:
        return {key: unseen(units.shape, dim, tensor=(name, dim)) for key, (units, name, dim) in dims.items()}
    same = {units.tobytes(): (name, dim) for units, name, dim in reversed(dims.values()) if units.ndim == 1}
    stands = _positions(dims)
    changed = written_over(graph)
    found = {}
    for name, (v, axis) in makers(model, graph).items():
        where = same.get(v.units.astype(int).tobytes())
        at = () if where else tuple(stands.get(u, ("", 0, 0)) for u in v.units.tolist())
        found[name] = unseen(v.units.shape, axis, tensor=where, stands=at, overwritten=not changed.isdisjoint(v.nodes))
    return found


def _dims(graph: Graph) -> dict[str, tuple[np.ndarray, str, int]]:
    """By name of a parameter dim its units, of shape [groups, n] where every group has its own."""
    coupling = graph.coupling
    found = {}
    for (value, dim), extent in coupling.sources.items():
        p = coupling.trace.params.get(value)
        if p is not None and p.kind == "parameter":
            units = coupling.units(extent)
            found[f"{p.name}[dim {dim}]"] = (units if extent.per_row else units.reshape(-1), p.name, dim)
    return {key: (units.astype(int), name, dim) for key, (units, name, dim) in found.items()}


def _positions(dims: Mapping[str, tuple[np.ndarray, str, int]]) -> dict[int, tuple[str, int, int]]:
    found: dict[int, tuple[str, int, int]] = {}
    for units, name, dim in dims.values():
        if units.ndim == 1:
            for k, u in enumerate(units.tolist()):
                if u != FIXED:
                    found.setdefault(u, (name, dim, k))
    return found


# -- following a plan --------------------------------------------------------------------------------------------------


def check(key: str, place: Place, plan: PlanRecord) -> None:
    """Raises PlanMismatchError if a plan was made for other sizes than those of a place."""
    for name, dim, n in _needs(place):
        if name not in plan.shapes:
            continue
        before = plan.shapes[name][0]
        if dim >= len(before) or not (before[dim] == n if place.tensor else before[dim] >= n):
            raise PlanMismatchError(
                f"the tracker has {n} units of {key}, the plan expects {name} of shape {tuple(before)}: it follows "
                "every plan once, in the order in which they are applied; track the model anew"
            )
        index = plan.indices.get(name, {}).get(dim, [])
        if not place.tensor and any(i == -1 for row in rows_of(index) for i in row):
            raise PlanMismatchError(
                f"the plan adds units to {key}, and no parameter has the units of its output in their order, so the "
                "tracker cannot tell where they come in; call remove() first and track the model anew"
            )


def _needs(place: Place) -> list[tuple[str, int, int]]:
    """Parameter dims with the size that they have, or that they have at least."""
    if place.tensor:
        return [(*place.tensor, place.shape[-1])]
    return [(name, dim, k + 1) for name, dim, k in place.stands if name]


def followed(place: Place, plan: PlanRecord) -> Place:
    """What was seen goes with the units that stay; a new unit (-1) starts at a small positive number."""
    if place.tensor is None:
        return _standing(place, plan)
    name, dim = place.tensor
    dims = plan.indices.get(name, {})
    if len(place.shape) == 2:
        if not {0, dim} & set(dims):
            return place
        old, lists = place.average, _lists(place, plan, name)
        rows = [_picked(old[g] if g >= 0 else old[0], row if g >= 0 else [-1] * len(row)) for g, row in lists]
        return replace(place, average=torch.stack(rows) if rows else old[:0])
    if dim not in dims:
        return place
    return replace(place, average=_picked(place.average, rows_of(dims[dim])[0]))


def _picked(old: torch.Tensor, index: list[int]) -> torch.Tensor:
    """By an index list; a new unit gets no more than the least that an old one has, and more than nothing."""
    at = torch.tensor(index, device=old.device, dtype=torch.long)
    if old.numel() == 0:
        return old.new_full((len(index),), EPS)
    found = old.index_select(0, at.clamp(min=0))
    if all(k >= 0 for k in index):
        return found
    positive = old[old > 0]
    start = positive.min().clamp(max=EPS) if positive.numel() else old.new_tensor(EPS)
    return torch.where(at < 0, start, found)


def _lists(place: Place, plan: PlanRecord, name: str) -> list[tuple[int, list[int]]]:
    """For every group that stays of a grouped convolution its old number (-1: new), and the inputs that it keeps."""
    groups, n = place.shape
    dims = plan.indices[name]
    rows = rows_of(dims[1]) if 1 in dims else []
    before = plan.shapes[name][0][0]
    outputs = rows_of(dims[0])[0] if 0 in dims else list(range(before))
    old = [p * groups // before if p >= 0 else -1 for p in outputs]
    if not rows:
        return [(g, list(range(n))) for g in dict.fromkeys(old)]
    each = max(1, len(old) // len(rows))
    return [(max(old[k * each : (k + 1) * each], default=-1), row) for k, row in enumerate(rows)]


def _standing(place: Place, plan: PlanRecord) -> Place:
    """The units that stay, in the order that they have."""
    gone: dict[tuple[str, int], set[int]] = {}
    kept = []
    for k, (name, dim, position) in enumerate(place.stands):
        index = plan.indices.get(name, {}).get(dim)
        if index is not None and (name, dim) not in gone:
            gone[name, dim] = set(range(plan.shapes[name][0][dim])) - {i for row in rows_of(index) for i in row}
        if position not in gone.get((name, dim), ()):
            kept.append(k)
    new = {(name, dim): {old: at for at, old in enumerate(rows_of(plan.indices[name][dim])[0])} for name, dim in gone}
    stands = [place.stands[k] for k in kept]
    stands = [(n, d, new[n, d][p] if (n, d) in new else p) for n, d, p in stands]
    return replace(place, average=_picked(place.average, kept), stands=tuple(stands))
