"""OPS: one record per ATen operation: how unit labels pass through it, and which of its ints follow them.

The rule of a record is a function `(flow, node) -> Labels` (a list of them for an operation with a list of outputs).
Many come from a notation that reads like einops (`notation`). What a rule does with labels it says through a `Flow`:
`merge`, `freeze`, `rectangle`, `view`, `literal`, `work`.

A new operation costs one record here and one row in the tests. Nothing is guessed: an operation without a record, that
does not carry torch's `pointwise` tag, freezes all it touches and says so.
"""

from __future__ import annotations

from typing import Any

from ..errors import SolvemutError
from ..flow import Flow, Labels, Output
from ..trace import Node, Ref
from . import convolution, indexing, layers, products, recurrent, shapes
from .elementwise import elementwise, unknown
from .notation import pattern
from .op import DIMS, OPS, After, Op, Repeat, op

__all__ = [
    "OPS",
    "After",
    "Op",
    "Repeat",
    "apply_rule",
    "convolution",
    "indexing",
    "layers",
    "op",
    "pattern",
    "products",
    "recurrent",
    "shapes",
]


def apply_rule(flow: Flow, node: Node) -> Output:
    """The labels of a node's output, by its record, torch's pointwise tag, or `unknown`."""
    found = OPS.get(node.op)
    if found is not None:
        flow.counted = set()
        out = found.labels(flow, node)
        if unsaid := flow.counted - found.sizes:
            raise SolvemutError(
                f"the rule of {node.op} counts units by {', '.join(map(str, unsaid))}, and its record does not say how "
                "that follows: name it in sizes="
            )
        if node.is_list and isinstance(out, Labels):
            out = _with_companions(flow, node, out)
        if unread := _unread(flow, node):
            _freeze_both(
                flow,
                node,
                out,
                f"{node.op} was given a number that no rule reads, {', '.join(unread)}",
            )
        return out
    if node.pointwise:
        return elementwise(flow, node)
    flow.unsupported(node)
    return unknown(flow, node)


def _with_companions(flow: Flow, node: Node, out: Labels) -> list[Labels]:
    """What an operation returns beside its result: a mask, or statistics of size 1 along the dims they are of."""
    outs = [out]
    for k, shape in enumerate(node.shapes[1:], 1):
        alike = len(shape) == out.ndim
        if not alike and flow.reads_element(node, k):
            flow.freeze_all(out, f"{node.op} returns more than its rule knows")
        same = [f for f in out.factors if alike and all(shape[d] == out.shape[d] for d in f.dims)]
        outs.append(Labels(shape, tuple(same)))
    return outs


def _unread(flow: Flow, node: Node) -> list[str]:
    """Int arguments that the rule of a node neither heeds, nor knows to be harmless, nor has said to count labels."""
    record = OPS[node.op]
    known = record.ints | record.sizes | DIMS
    return [] if "*" in known else [k for k, v in node.args.items() if k not in known and _holds_int(v)]


def _holds_int(x: Any) -> bool:
    if isinstance(x, list):
        return any(_holds_int(y) for y in x)
    return isinstance(x, int) and not isinstance(x, bool)


def _freeze_both(flow: Flow, node: Node, out: Output, why: str) -> None:
    for ref in node.refs():
        flow.freeze_all(flow.labels(Ref(ref)), why)
    flow.freeze_all(out, why)
