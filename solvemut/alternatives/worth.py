"""Worth: what options gain or lose, on the scale of the values, and the edits that take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..building import factored, matrix_of
from ..edits import COSTS, GIVEN, LOW_RANK, Substitute, packed
from ..errors import RequestError
from ..graph import Graph
from ..values import Metric, Values, principal, sees_data, stand_in_worth
from .options import Alternative, Choice, Given, LowRank, module_of


@dataclass(frozen=True, eq=False)
class Offer:
    """An option with what it is worth, and the edit that takes it; None: the layer stays as it is."""

    name: str
    given: Given
    worth: float
    edit: Substitute | None

    @property
    def shares(self) -> Mapping[str, float]:
        """By resource, shares of what the layer costs."""
        return self.given.costs if isinstance(self.given, (Alternative, LowRank)) else {}

    @property
    def replaces(self) -> bool:
        return self.edit is not None and self.edit.replaces


def offers_of(graph: Graph, choices: Sequence[Choice], values: Values) -> dict[str, list[Offer]]:
    """By path the options of each layer, with what they are worth. RequestError where no values tell it."""
    directions = _directions(graph, choices, values)
    edits = _edits(graph, choices, directions)
    asked = {
        (c.path, k): e
        for c in choices
        for k, e in edits[c.path].items()
        if e is not None and getattr(c.options[k], "value", None) is None
    }
    worth = _measured(graph, asked, values, directions)
    return {
        c.path: [
            Offer(k, c.options[k], float(getattr(c.options[k], "value", None) or worth.get((c.path, k), 0.0)), e)
            for k, e in edits[c.path].items()
        ]
        for c in choices
    }


def _edits(
    graph: Graph, choices: Sequence[Choice], directions: Mapping[str, Directions]
) -> dict[str, dict[str, Substitute | None]]:
    return {c.path: {k: _edit(graph, c, k, directions.get(c.path)) for k in c.options} for c in choices}


@dataclass(frozen=True, eq=False)
class Directions:
    """The orthonormal directions [outputs, ranks] in which layers of low rank put out, the most important first.

    `kept` are by rank the shares of the weight's energy that stay; None: the directions are those of outputs on data.
    """

    basis: torch.Tensor
    kept: np.ndarray | None


def _directions(graph: Graph, choices: Sequence[Choice], values: Values) -> dict[str, Directions]:
    """By path those of the layers that have options of low rank, and weights."""
    low = [c.path for c in choices if any(isinstance(g, LowRank) for g in c.options.values())]
    if low and sees_data(values):
        found = principal(graph.model, low, _batches(values))
        return {path: Directions(basis, None) for path, basis in found.items()}
    by_weight = {}
    for path in low:
        if not (weight := matrix_of(graph.model.get_submodule(path))).is_meta:
            u, sizes, _ = torch.linalg.svd(weight, full_matrices=False)
            energy = sizes.square().cumsum(0).cpu().numpy()
            by_weight[path] = Directions(u, energy / energy[-1] if energy[-1] > 0 else np.ones(len(energy)))
    return by_weight


def _batches(values: Any) -> Any:
    return values.data[0]


def _edit(graph: Graph, choice: Choice, name: str, directions: Directions | None) -> Substitute | None:
    given = choice.options[name]
    if given is None:
        return None
    if isinstance(given, LowRank):
        basis = None if directions is None else directions.basis[:, : given.rank]
        by_data = basis is not None and directions is not None and directions.kept is None
        text = packed(basis.cpu().numpy()) if by_data and basis is not None else ""
        made = factored(graph.model.get_submodule(choice.path), given.rank, basis)
        return Substitute(choice.path, name, LOW_RANK, given.rank, text, made)
    module = module_of(given)
    return Substitute(choice.path, name, COSTS if module is None else GIVEN, given=module)


def _measured(
    graph: Graph,
    asked: Mapping[tuple[str, str], Substitute],
    values: Values,
    directions: Mapping[str, Directions],
) -> dict[tuple[str, str], float]:
    """What is gained with options whose worth nobody said."""
    if not asked:
        return {}
    if sees_data(values):
        others = {f"{path}: {name}": (path, e.given) for (path, name), e in asked.items()}
        lost = stand_in_worth(values, graph, others)  # type: ignore[arg-type]
        return {(path, name): -lost[f"{path}: {name}"] for path, name in asked}
    found = {}
    for (path, name), edit in asked.items():
        by_shares = values is None or (isinstance(values, Metric) and values.name.startswith("retention"))
        if edit.how != LOW_RANK or not by_shares or path not in directions:
            raise RequestError(
                f"choose({path!r}): what {name!r} is worth is not known: give Alternative(module, value=...), or "
                "values that see data, such as sm.values.fisher(batches, loss)"
            )
        kept = directions[path].kept
        assert kept is not None, "values that see no data have no data to find directions by"
        found[path, name] = math.log(kept[edit.rank - 1])
    return found
