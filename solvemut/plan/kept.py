"""Kept: which units of a graph a plan leaves, read off its index maps."""

from __future__ import annotations

import numpy as np

from ..edits import rows_of
from ..graph import Graph
from .record import PlanRecord


def kept_units(graph: Graph, plan: PlanRecord) -> np.ndarray:
    """Bool per unit class of the graph that a plan was made for: whether it stays somewhere.

    >>> import torch, solvemut as sm
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))
    >>> graph = sm.capture(model, torch.ones(1, 2))
    >>> problem = sm.Problem(graph)
    >>> problem.add(graph["0"].out == 3)
    >>> kept_units(graph, problem.solve())[graph["0"].units].sum()
    np.int64(3)
    """
    coupling = graph.coupling
    kept = np.ones(coupling.n_units, dtype=bool)
    lists = []
    for (value, dim), extent in coupling.sources.items():
        p = coupling.trace.params.get(value)
        index = None if p is None else plan.indices.get(p.name, {}).get(dim)
        if index is not None:
            units = coupling.units(extent)
            lists.append((units if extent.per_row else units.reshape(1, -1), rows_of(index)))
            kept[units] = False
    for units, rows in lists:
        if len(rows) == len(units):
            for of, row in zip(units, rows, strict=True):
                kept[of[[i for i in row if i >= 0]]] = True
    return kept
