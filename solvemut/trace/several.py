"""Several calls of one model as one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .data import Call, Node, Param, Ref, Trace
from .sizes import Size


def join(traces: Sequence[tuple[str, Trace]]) -> Trace:
    """One trace of several calls of one model: they share its parameters. Values of further calls carry their tag."""
    (_, first), *more = traces
    value_of = {name: value for value, p in first.params.items() for name in _names(p)}
    out = first
    for tag, trace in more:
        rename = {v: f"{tag}:{v}" for v in (*trace.inputs, *(n.name for n in trace.nodes))}
        for value, p in trace.params.items():
            shared = value_of.get(p.name) if p.kind != "constant" else None
            rename[value] = shared or f"{tag}:{value}"
            if shared is None:
                value_of.update((name, rename[value]) for name in _names(p))
        out = _extended(out, _renamed(trace, rename, tag))
    read = {name for p in out.params.values() for name in _names(p)}
    return replace(out, unused=tuple(p for p in first.unused if p.name not in read)).validate()


def _names(p: Param) -> tuple[str, ...]:
    return (p.name, *p.aliases) if p.kind != "constant" else ()


def _extended(a: Trace, b: Trace) -> Trace:
    return replace(
        a,
        params={**a.params, **{k: p for k, p in b.params.items() if k not in a.params}},
        inputs={**a.inputs, **b.inputs},
        nodes=(*a.nodes, *b.nodes),
        outputs=tuple(dict.fromkeys((*a.outputs, *b.outputs))),
        returned=(*a.returned, *b.returned),
        attributes={**a.attributes, **b.attributes},
        numbers=tuple(dict.fromkeys((*a.numbers, *b.numbers))),
        guards=tuple(dict.fromkeys((*a.guards, *b.guards))),
        calls=(*a.calls, *b.calls) if a.calls and b.calls else (),
    )


def _renamed(t: Trace, names: Mapping[str, str], tag: str) -> Trace:
    def size(s: Size) -> Size:
        if s.op == "size":
            return Size("size", (names.get(s.args[0], s.args[0]), s.args[1]))
        return s if s.op in ("attr", "const") else Size(s.op, tuple(size(a) for a in s.args))

    def value(a: Any) -> Any:
        if isinstance(a, Ref):
            return Ref(names[a.name])
        return [value(x) for x in a] if isinstance(a, list) else a

    def said(a: Any) -> Any:
        if isinstance(a, Size):
            return size(a)
        return tuple(said(x) for x in a) if isinstance(a, tuple) else a

    def node(n: Node) -> Node:
        args, sizes = {k: value(v) for k, v in n.args.items()}, {k: size(s) for k, s in n.sizes.items()}
        return replace(n, name=names[n.name], args=args, sizes=sizes, tag=tag)

    def call(c: Call) -> Call:
        outs = tuple(names.get(o, o) if isinstance(o, str) else o for o in c.outs)
        return Call(c.func, said(c.args), outs)

    return replace(
        t,
        params={names[k]: p for k, p in t.params.items()},
        inputs={names[k]: shape for k, shape in t.inputs.items()},
        nodes=tuple(node(n) for n in t.nodes),
        outputs=tuple(names[o] for o in t.outputs),
        returned=tuple(tuple(value(x) for x in leaves) for leaves in t.returned),
        numbers=tuple((size(s), place) for s, place in t.numbers),
        guards=tuple(replace(g, left=size(g.left), right=size(g.right)) for g in t.guards),
        calls=tuple(tuple(call(c) for c in calls) for calls in t.calls),
    )
