"""Drawing up a plan: from the units that stay to all that a plan says of the change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..coupling import couple
from ..edits import Copies, Selection, SetAttribute
from ..graph import Graph
from ..trace import Size, listing
from .copying import divided
from .file import runs
from .fill import alters, fills_of
from .record import as_lists
from .replay import Replayed, replayed


def redrawn(
    graph: Graph, times: np.ndarray, before: Collection[int] = (), sources: Mapping[int, Sequence[int]] | None = None
) -> tuple[Graph, dict[str, Any]]:
    """The graph of the changed model, and the parts of a plan that lead to it; arguments are those of `replayed`."""
    changed = replayed(graph.coupling, times, before, sources)
    trace = changed.trace
    after = Graph(trace, couple(trace), graph.example, graph.model, graph.examples, graph.seen, graph.observe)
    return after, _parts(graph, changed, times)


def _parts(graph: Graph, changed: Replayed, times: np.ndarray) -> dict[str, Any]:
    """The parts of a `PlanRecord` that follow from which units stay and come (`times`: see `shapes`)."""
    trace = graph.trace
    return {
        "sizes": {v.name: (v.nout, int(times[v.units].sum())) for v in graph.vertices if v.makes_units},
        "edits": tuple(_attribute(a, trace.attributes[a], v) for a, v in changed.attributes.items()),
        "selection": Selection(_indices(changed)),
        "shapes": _shapes(graph, changed),
        "root": trace.root,
        "example": graph.example,
        "outputs": tuple(changed.trace.shape(o) for o in trace.outputs),
        "program": listing(changed.trace),
        "units": _units(graph, changed),
        "fills": fills_of(graph.coupling, changed.index),
        "copies": _copies(graph, changed),
        "alters": alters(graph.coupling, times),
    }


def _attribute(size: Size, before: int, after: int) -> SetAttribute:
    module, name, index = size.args
    return SetAttribute(module, name, index, before, after)


def _indices(changed: Replayed) -> dict[str, dict[int, Any]]:
    out: dict[str, dict[int, Any]] = {}
    for (value, dim), index in changed.index.items():
        p = changed.trace.params[value]
        for name in (p.name, *p.aliases):
            out.setdefault(name, {})[dim] = as_lists(index)
    return out


def _copies(graph: Graph, changed: Replayed) -> dict[str, dict[int, Copies]]:
    """What the new slices that are copies are copies of."""
    out: dict[str, dict[int, Copies]] = {}
    found = {key: origins for key, origins in changed.origins.items() if (origins >= 0).any()}
    summed = divided(graph.coupling) if found else set()
    for (value, dim), origins in found.items():
        p = changed.trace.params[value]
        for name in (p.name, *p.aliases):
            out.setdefault(name, {})[dim] = Copies(as_lists(origins), (value, dim) in summed)
    return out


def _units(graph: Graph, changed: Replayed) -> dict[str, dict[int, Any]]:
    """For every index list the unit at each old position; at each new one, where units moved or came."""
    out: dict[str, dict[int, Any]] = {}
    for (value, dim), index in changed.index.items():
        found = [runs(graph.coupling.units(graph.coupling.sources[value, dim].labels))]
        if (np.diff(index, axis=-1) < 0).any() or (index < 0).any():
            found.append(runs(changed.units[value, dim]))
        p = changed.trace.params[value]
        for name in (p.name, *p.aliases):
            out.setdefault(name, {})[dim] = found
    return out


def _shapes(graph: Graph, changed: Replayed) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    out = {}
    for value, p in graph.trace.params.items():
        if p.kind != "constant":
            for name in (p.name, *p.aliases):
                out[name] = (p.shape, changed.trace.params[value].shape)
    out.update({p.name: (p.shape, p.shape) for p in graph.trace.unused})
    return out
