"""A graph as text: its table, and its notes. `graph` is a Graph throughout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..report import Part, Table, clipped, short
from ..requests import Cost

MOST_FROZEN = 5  # rows of what is frozen


def head(graph: Any) -> str:
    """The graph in one line."""
    groups = graph.groups
    return (
        f"{graph.trace.root}: {short(graph.params.now)} params, {short(graph.flops.now)} FLOPs, "
        f"{len(groups)} coupled groups, {sum(g.units for g in groups if not g.frozen)} units to decide"
    )


def parts(graph: Any) -> list[Part]:
    """A row per vertex, then what is frozen and what to know besides."""
    per = {name: _by_vertex(cost) for name, cost in graph.costs.items()}
    rows = []
    for v in graph.vertices:
        groups = np.unique(graph.coupling.group_of[v.units])
        names = ",".join(str(g) for g in groups[groups >= 0][:4]) + (",…" if (groups >= 0).sum() > 4 else "")
        used = [sum(per[cost].get(k, 0) for k in {v.name, *v.nodes}) for cost in ("params", "flops")]
        sizes = [",".join(map(str, v.nin)), v.nout, names, *(short(n) if n else "" for n in used)]
        rows.append([v.name, clipped(v.op, 28), *sizes, clipped(graph.frozen_because(v))])
    header = ["vertex", "op", "nin", "nout", "group", "params", "FLOPs", "frozen because"]
    lines = ["\n".join(["notes:", *(f"- {n}" for n in graph.notes)])] if graph.notes else []
    left_out = graph.frozen.more(MOST_FROZEN)
    return [head(graph), Table(header, rows, right=[2, 3, 5, 6]), *graph.frozen.parts(MOST_FROZEN), *left_out, *lines]


def notes(graph: Any) -> tuple[str, ...]:
    """What the analysis froze, approximated or did not see, one line each."""
    coupling, missing, told = graph.coupling, dict[str, list[str]](), dict[str, list[str]]()
    for node in coupling.facts.unsupported:
        missing.setdefault(node.op, []).append(node.module or node.name)
    for f in coupling.facts.notes:
        if f.node is not None and not coupling.frozen[coupling.units(f.labels)].all():
            told.setdefault(f"{f.node.op}: {f.why}", []).append(f.node.module or f.node.name)
    lines = [f"no rule for {op}: what it touches is frozen ({_some(places)})" for op, places in missing.items()]
    lines += [f"{p.name}: not read by any captured call, left as it is" for p in graph.trace.unused]
    lines += list(graph.trace.notes)
    if graph.examples and not graph.example:
        lines.append("the example inputs hold what JSON cannot: a plan read from a file cannot be verified")
    lines += [f"{what} ({_some(places)})" for what, places in told.items()]
    return tuple(lines)


def _by_vertex(cost: Cost) -> dict[str, int]:
    out: dict[str, int] = {}
    for m in cost.monomials:
        out[m.vertex] = out.get(m.vertex, 0) + m.now
    return out


def _some(places: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(places[:3]))
    return shown + (f" and {len(places) - 3} more" if len(places) > 3 else "")
