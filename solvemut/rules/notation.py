"""The registry of rules, and the notation in which most are written.

A name is one dim and the same units wherever it stands, `...` any leading dims, `*s` any trailing dims that must stay
whole, `_` a dim that must stay whole: linear is "... i, o i, o -> ... o".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..flow import Factor, Flow, Labels, Output, prod
from ..trace import Node, Ref

Rule = Callable[[Flow, Node], Output]
RULES: dict[str, Rule] = {}
# The int arguments that a rule heeds, or knows to leave sizes alone; "*": all. Those that name dims every rule heeds.
INTS: dict[str, frozenset[str]] = {}
DIMS = frozenset(("dim", "dims", "dim0", "dim1", "axis0", "axis1", "source", "destination", "start_dim", "end_dim"))


def row(ops: str, rule: Rule, ints: str = "") -> None:
    """Enter a rule for one or several operations; a second rule for the same operation is an error.

    `ints` names the int arguments, besides dims, that the rule has thought of. An int that is neither among them nor
    said to count labels freezes what the operation touches (`apply_rule`).
    """
    for op in ops.split():
        if op in RULES:
            raise ValueError(f"two rules for {op}")
        RULES[op], INTS[op] = rule, frozenset(ints.split())


def rule(ops: str, ints: str = "") -> Callable[[Rule], Rule]:
    """`row`, as a decorator."""

    def enter(f: Rule) -> Rule:
        row(ops, f, ints)
        return f

    return enter


def dims_of(node: Node, name: str, ndim: int) -> list[int]:
    """A dim argument as a list of non-negative ints; all dims if it is None or empty."""
    dim = node.args.get(name)
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])] if ndim else []


def pattern(args: str, text: str, work: str = "") -> Rule:
    """A rule from the notation: `args` names the node's arguments, one per input term of `text`.

    `work` lists the dims whose product is the number of multiply-accumulates (`...` and `*s` stand for all their dims).
    """
    left, right = text.split("->")
    terms = [t.split() for t in left.split(",")]
    out = right.split()
    names = args.split()
    assert len(terms) == len(names), text

    def apply(flow: Flow, node: Node) -> Labels:
        units: dict[str, np.ndarray | None] = {}
        sizes: dict[str, int] = {}
        lead = Labels(())
        for name, term in zip(names, terms, strict=True):
            arg = node.args.get(name)
            if not isinstance(arg, Ref):
                continue
            x = flow.labels(
                arg, only=[i for i, t in enumerate(term) if t.isidentifier()] if "..." not in term else None
            )
            head = x.ndim - (len(term) - 1) if term[0] == "..." else 0
            if head:
                lead = x
            for i, token in enumerate(t for t in term if t != "..."):
                if token.startswith("*"):
                    flow.freeze_dims(x, range(i, x.ndim), f"{node.op} works along it")
                    sizes[token] = prod(x.shape[i:])
                    break
                d = head + i
                sizes.setdefault(token, x.shape[d])
                if token == "_":
                    flow.freeze_dims(x, [d], f"{node.op} works along it")
                    continue
                x = flow.separate(x, d)
                if head:
                    lead = x
                if token in units:
                    flow.merge(units[token], x.dim(d), (x.shape[d],))
                    units[token] = x.dim(d) if units[token] is None else units[token]
                else:
                    units[token] = x.dim(d)
        if work:
            flow.work(_sizes(work, units, sizes, lead, node, out))
        return _place(out, units, lead, node.shape)

    return apply


def _sizes(
    work: str, units: dict[str, Any], sizes: dict[str, int], lead: Labels, node: Node, out: list[str]
) -> list[Any]:
    found: list[Any] = []
    for token in work.split():
        if token == "...":
            n = len(node.shape) - (len(out) - 1)
            fixed = [lead.shape[d] for d in range(n) if lead.factor(d) is None]
            found += [*fixed, *(f.labels for f in lead.factors if f.dims[0] < n)]
        elif token.startswith("*") and token in out:
            found.append(prod(node.shape[out.index(token) :]))
        else:
            found.append(sizes[token] if units.get(token) is None else units[token])
    return found


def _place(out: list[str], units: dict[str, np.ndarray | None], lead: Labels, shape: tuple[int, ...]) -> Labels:
    """The labels of an output term."""
    head = len(shape) - (len(out) - 1) if out[0] == "..." else 0
    new = [
        Factor((head + i,), a)
        for i, token in enumerate(t for t in out if t != "...")
        if (a := units.get(token)) is not None
    ]
    kept = [f for f in lead.factors if max(f.dims) < head] if head else []
    return Labels(shape, tuple(sorted((*kept, *new), key=lambda f: f.dims)))
