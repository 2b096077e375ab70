"""Several calls of one model as one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .data import Call, Guard, Node, Param, Ref, Trace
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


def renamed_size(s: Size, names: Mapping[str, str]) -> Size:
    """A size read off values that go by other names."""
    if s.op == "size":
        return Size("size", (names.get(s.args[0], s.args[0]), s.args[1]))
    return s if s.op in ("attr", "const") else Size(s.op, tuple(renamed_size(a, names) for a in s.args))


def renamed_guard(g: Guard, names: Mapping[str, str]) -> Guard:
    """A guard over values that go by other names."""
    return replace(g, left=renamed_size(g.left, names), right=renamed_size(g.right, names))


def renamed_node(n: Node, names: Mapping[str, str]) -> Node:
    """An operation that makes and reads values of other names."""
    args = {k: _value(v, names) for k, v in n.args.items()}
    return replace(n, name=names[n.name], args=args, sizes={k: renamed_size(s, names) for k, s in n.sizes.items()})


def _value(a: Any, names: Mapping[str, str]) -> Any:
    if isinstance(a, Ref):
        return Ref(names.get(a.name, a.name))
    return [_value(x, names) for x in a] if isinstance(a, list) else a


def _renamed(t: Trace, names: Mapping[str, str], tag: str) -> Trace:
    def said(a: Any) -> Any:
        if isinstance(a, Size):
            return renamed_size(a, names)
        return tuple(said(x) for x in a) if isinstance(a, tuple) else a

    def call(c: Call) -> Call:
        outs = tuple(names.get(o, o) if isinstance(o, str) else o for o in c.outs)
        return Call(c.func, said(c.args), outs)

    return replace(
        t,
        params={names[k]: p for k, p in t.params.items()},
        inputs={names[k]: shape for k, shape in t.inputs.items()},
        nodes=tuple(replace(renamed_node(n, names), tag=tag) for n in t.nodes),
        outputs=tuple(names[o] for o in t.outputs),
        returned=tuple(tuple(_value(x, names) for x in leaves) for leaves in t.returned),
        numbers=tuple((renamed_size(s, names), place) for s, place in t.numbers),
        guards=tuple(renamed_guard(g, names) for g in t.guards),
        calls=tuple(tuple(call(c) for c in calls) for calls in t.calls),
    )
