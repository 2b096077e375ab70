"""Remodel: the graph of a model in which modules were replaced, and how its units are those of the model before.

A unit is the same in both where a parameter that is in both says so, or the output of a module that was replaced.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .apply import make_edit
from .coupling import couple
from .edits import Edit
from .errors import SolvemutError
from .flow import FIXED
from .graph import Graph
from .tracing import fake_run, seen, trace_examples

Pairs = tuple[np.ndarray, np.ndarray]  # unit classes of the graph before, and those of the graph after, one by one


def remodelled(graph: Graph, edits: Sequence[Edit]) -> Graph:
    """The graph of a copy of the model in which edits were made. Raises SolvemutError where that does not run."""
    model = copy.deepcopy(graph.model)
    for edit in edits:
        make_edit(model, edit, [])
    modes = ("eval", "train") if any(e.training for e in graph.examples) else ("eval",)
    trace, examples = trace_examples(model, [e for e in graph.examples if not e.training], modes)
    return Graph(trace, couple(trace), graph.example, model, tuple(examples), seen(model, trace), graph.observe.again())


def why_not(graph: Graph, edits: Sequence[Edit], shapes: list[tuple[int, ...]]) -> str:
    """Why the model does not give results of these shapes with some edits; empty if it does. After, it is as it was."""
    undo: list[Callable[[], None]] = []
    told = logging.getLogger("torch._subclasses.fake_tensor")  # says at length what is said in the answer
    level = told.level
    try:
        told.setLevel(logging.CRITICAL)
        for edit in edits:
            make_edit(graph.model, edit, undo)
        after = fake_run(graph.model, graph.examples[0])
    except SolvemutError as e:
        return f"{e.__cause__ or e}".splitlines()[0]
    finally:
        told.setLevel(level)
        for back in reversed(undo):
            back()
    return "" if after == shapes else f"the model gives shapes {after}, not {shapes}"


def matched(graph: Graph, after: Graph, replaced: Sequence[str]) -> Iterator[tuple[str, Pairs]]:
    """By name what is in both graphs, with its units in each; `replaced` are paths of modules whose output is."""
    value_of = {a: v for v, p in graph.trace.params.items() for a in (p.name, *p.aliases)}
    for (value, dim), extent in after.coupling.sources.items():
        p = after.trace.params.get(value)
        if p is None or p.name.startswith(tuple(f"{path}." for path in replaced)):
            continue
        if (old := graph.coupling.sources.get((value_of.get(p.name, ""), dim))) is None:
            continue
        pair = graph.coupling.units(old).reshape(-1), after.coupling.units(extent).reshape(-1)
        if len(pair[0]) == len(pair[1]):
            yield p.name, pair
    for path in replaced:
        if path in after and (units := graph[path].units).shape == after[path].units.shape:
            yield path, (units, after[path].units)


def carried(graph: Graph, after: Graph, times: np.ndarray, replaced: Sequence[str] = ()) -> np.ndarray:
    """How often each unit is there in the graph after, given how often those of the graph before are."""
    found = np.ones(after.coupling.n_units, dtype=np.int64)
    told = np.zeros(after.coupling.n_units, dtype=bool)
    for name, (old, new) in matched(graph, after, replaced):
        clash = told[new] & (found[new] != times[old]) & (new != FIXED)
        if clash.any():
            raise SolvemutError(f"units of {name} meet that differ once modules are replaced; please report this model")
        found[new], told[new] = times[old], True
    return np.where(after.coupling.frozen, 1, found)
