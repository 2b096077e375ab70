"""Groups: the nodes of a graph as a compiler runs them, read off the trace; no torch, no code per operation.

What multiplies is a call of a library, compiled or not: it stands alone, and is timed as it is without a compiler. All
other nodes are fused with their neighbours. Such a group lies behind the last multiplication that it depends on; what a
node makes for one reader alone is computed where that reader is. Views run nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..graph import Graph
from ..trace import Node
from .sites import Site, axes_of, reads_of, site_of, sites, working_nodes

MOST_AXES = 2
KEEP = frozenset(("getitem", "split", "chunk", "slice", "narrow", "detach", "alias", "identity", "dropout"))
VIEWS = KEEP | {
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "expand", "squeeze", "unsqueeze"),
    *("select", "unbind"),
}


def timed_sites(graph: Graph, compiled: bool) -> list[Site]:
    """What is timed of a graph: its nodes, or the groups that they are when it is compiled."""
    return groups(graph) if compiled else sites(graph)


def groups(graph: Graph) -> list[Site]:
    """The nodes of the first call that run something, in groups, by their first nodes in order."""
    found: list[Site] | None = graph.__dict__.get("_latency_groups")
    if found is None:
        nodes = [n for n in graph.trace.nodes if not n.tag]
        working = working_nodes(graph)
        last = channels_last(graph, nodes, working)
        readers = _readers(graph, nodes)
        found = [
            replace(_site(graph, group, last, readers), works=group[0].name in working)
            for group in _grouped(graph, nodes, working, readers)
            if any(n.op not in VIEWS for n in group)
        ]
        object.__setattr__(graph, "_latency_groups", found)
    return found


def _readers(graph: Graph, nodes: Sequence[Node]) -> dict[str, list[str]]:
    """By value the nodes that read it; what the model returns has a reader without a name."""
    found: dict[str, list[str]] = {n.name: [""] if n.name in graph.trace.outputs else [] for n in nodes}
    for n in nodes:
        for r in dict.fromkeys(n.refs()):
            found.setdefault(r, []).append(n.name)
    return found


def _grouped(
    graph: Graph, nodes: Sequence[Node], working: set[str], readers: dict[str, list[str]]
) -> list[tuple[Node, ...]]:
    """The groups: neighbours of one home, as long as their sizes are no more than two that change apart."""
    home = _homes(nodes, working, readers)
    place = {n.name: k for k, n in enumerate(nodes)}
    alone = {n.name for n in nodes if n.name in working or (n.op == "getitem" and not working.isdisjoint(n.refs()))}
    found: list[tuple[Node, ...]] = [(n,) for n in nodes if n.name in alone]
    fused: dict[int, list[tuple[Node, ...]]] = {}
    for n in (n for n in nodes if n.name not in alone):
        pieces = fused.setdefault(home[n.name], [])
        near = [g for g in pieces if _touch(g, n)]
        for some in [near, *([g] for g in reversed(near)), []]:
            joined = tuple(sorted((m for g in [*some, (n,)] for m in g), key=lambda m: place[m.name]))
            most = max((MOST_AXES, *(len(axes_of(graph, g)) for g in some)))
            if not some or len(axes_of(graph, joined)) <= most:
                pieces[:] = [*(g for g in pieces if g not in some), joined]
                break
    found += [g for pieces in fused.values() for g in pieces]
    return sorted(found, key=lambda g: place[g[0].name])


def _homes(nodes: Sequence[Node], working: set[str], readers: dict[str, list[str]]) -> dict[str, int]:
    """By node the number of the last multiplication that it depends on, or that its only reader does.

    An element of a list stays with the list.
    """
    home: dict[str, int] = {}
    for k, n in enumerate(nodes):
        home[n.name] = k if n.name in working else max((home.get(r, -1) for r in n.refs()), default=-1)
    for n in reversed(nodes):
        read = readers[n.name]
        moves = n.name not in working and n.op != "getitem"
        if moves and len(read) == 1 and read[0] and read[0] not in working:
            home[n.name] = home[read[0]]
    return home


def _touch(group: Sequence[Node], node: Node) -> bool:
    """Whether a node reads what is made in a group, or what is read there."""
    return not {*reads_of(group), *(m.name for m in group)}.isdisjoint(node.refs())


def channels_last(graph: Graph, nodes: Sequence[Node], working: set[str]) -> frozenset[str]:
    """Values whose channels lie last in memory: a compiler lays out convolutions so, and what goes on from them."""
    found: set[str] = set()
    for n in nodes:
        wide = not n.is_list and len(n.shape) in (4, 5)
        if n.name in working:
            laid = n.op.startswith("conv")
        else:
            laid = (n.op not in VIEWS or n.op in KEEP) and not found.isdisjoint(n.refs())
        if laid and (wide or n.is_list):
            found.add(n.name)
    return frozenset(found)


def _site(graph: Graph, group: tuple[Node, ...], last: frozenset[str], readers: dict[str, list[str]]) -> Site:
    """The site of a group: its key tells how values go through it, what is read of it, and how it lies in memory."""
    reads, own = reads_of(group), {n.name for n in group}
    moved = set(_moved(group))
    made = [n.name for n in group if n.name not in moved and not n.is_list and not own.issuperset(readers[n.name])]
    made = made or [group[-1].name]
    names = {r: f"${k}" for k, r in enumerate(reads)} | {n.name: f"%{k}" for k, n in enumerate(group)}
    site = site_of(graph, group, names if len(group) > 1 else None)
    key = site.key if len(group) == 1 else f"{site.key} => {' '.join(names[r] for r in made)}"
    laid = [names[r] for r in reads if r in last]
    key += f" | channels last: {' '.join(laid)}" if laid else ""
    return replace(site, key=key, made=tuple(made), last=last)


def _moved(group: Sequence[Node]) -> Iterator[str]:
    """Of a group the views of what it reads: nothing is written for them."""
    computed: set[str] = set()
    for n in group:
        if n.op in VIEWS and computed.isdisjoint(n.refs()):
            yield n.name
        else:
            computed.add(n.name)
