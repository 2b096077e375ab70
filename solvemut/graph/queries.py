"""Queries: who feeds whom, which vertices have a name, and the graph as a drawing. `graph` is a Graph throughout."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..arguments import shown
from ..errors import RequestError
from ..rules import OPS
from ..trace import Node


def is_shown(node: Node) -> bool:
    """Whether users wrote this operation, or see it as one."""
    return node.op not in OPS or OPS[node.op].shown


def read(graph: Any, nodes: Iterable[str]) -> Iterator[str]:
    """The values that a vertex of these nodes reads from others, one per input slot, in order."""
    made = set(nodes)
    for name in nodes:
        for ref in graph._nodes[name].refs():
            if ref not in graph.trace.params and ref not in made:
                yield ref


def makers(graph: Any, value: str) -> Iterator[Any]:
    """The vertices that a value comes from: one, unless bookkeeping without a vertex brings several together."""
    todo, seen = [value], set[str]()
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if (vertex := graph._made_by.get(name)) is not None:
            yield vertex
        elif (node := graph._nodes.get(name)) is not None:
            todo += [r for r in node.refs() if r not in graph.trace.params]


def made_by(graph: Any) -> dict[str, Any]:
    """The vertex of every value that belongs to one."""
    found = {name: v for v in graph.vertices for name in v.nodes}
    return {**{v.name: v for v in graph.vertices if v.op == "input"}, **found}


def vertex_of(graph: Any, v: Any) -> Any:
    """The vertex that a caller gives, itself or by its name; one of a copy, or from before a change, counts by name."""
    if isinstance(v, str):
        return graph[v]
    name, nodes = getattr(v, "name", None), getattr(v, "nodes", None)
    if not isinstance(name, str) or nodes is None:
        raise RequestError(f"{shown(v)} is no vertex; give one of this graph, or its name such as 'layer1.0.conv1'")
    if v in graph:
        return v
    if name not in graph or graph[name].nodes != nodes:
        raise RequestError(f"{v!r} is a vertex of another graph; give its name, or one of this graph's vertices")
    return graph[name]


def edges(graph: Any) -> list[tuple[Any, Any]]:
    """Who feeds whom, one pair per input slot."""
    slots = [(v, value) for v in graph.vertices for value in read(graph, v.nodes)]
    return [(m, v) for v, value in slots for m in makers(graph, value)]


def inputs(graph: Any, v: Any) -> list[Any]:
    """What feeds a vertex, one entry per input slot."""
    return [m for value in read(graph, vertex_of(graph, v).nodes) for m in makers(graph, value)]


def outputs(graph: Any, v: Any) -> list[Any]:
    """What reads a vertex; a vertex that reads it twice is there twice."""
    own = _inside(graph, v)
    return [b for a, b in graph._edges if id(a) in own and id(b) not in own]


def reached(graph: Any, v: Any, forwards: bool) -> list[Any]:
    """The vertices that edges lead to, one way or the other, in the order of the graph."""
    own = _inside(graph, v)
    steps: dict[int, list[int]] = {}
    for a, b in graph._edges:
        x, y = (a, b) if forwards else (b, a)
        steps.setdefault(id(x), []).append(id(y))
    todo, found = list(own), set[int]()
    while todo:
        new = set(steps.get(todo.pop(), ())) - found
        found |= new
        todo += new
    return [u for u in graph.vertices if id(u) in found - own]


def _inside(graph: Any, v: Any) -> set[int]:
    """The ids of the vertices that one stands for: itself, or those in it. An input may share its name with a layer."""
    vertex = vertex_of(graph, v)
    parts = {id(u) for u in graph.vertices if u.nodes and set(vertex.nodes).issuperset(u.nodes)}
    return parts or {id(vertex)}


def find(graph: Any, wanted: Any) -> list[Any]:
    """Vertices by exact name, glob, regular expression or predicate."""
    if isinstance(wanted, str):
        exact = [v for v in graph.vertices if v.name == wanted]
        return exact or [v for v in graph.vertices if fnmatch.fnmatchcase(v.name, wanted)]
    if isinstance(wanted, re.Pattern) and isinstance(wanted.pattern, str):
        return [v for v in graph.vertices if wanted.search(v.name)]
    if callable(wanted):
        return [v for v in graph.vertices if wanted(v)]
    raise RequestError(
        f"find({shown(wanted)}): give a name, a glob such as 'layer1.*', a compiled regular expression of text, or a "
        "function from a vertex to True or False"
    )


def draw(graph: Any) -> str:
    """The graph in Graphviz's language."""
    lines = [f"digraph {_quoted(graph.trace.root)} {{", "  node [shape=box];"]
    for v in graph.vertices:
        size = "×".join(map(str, v.nin)) + " → " if v.nin else ""
        label = "\\n".join(_escaped(part) for part in (v.name, v.op, f"{size}{v.nout}"))
        form = ", shape=ellipse" if v.op == "input" else ", style=dashed" if graph.frozen_because(v) else ""
        lines.append(f'  {_quoted(v.name)} [label="{label}"{form}];')
    lines += [f"  {_quoted(a.name)} -> {_quoted(b.name)};" for a, b in graph._edges]
    return "\n".join([*lines, "}", ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'
