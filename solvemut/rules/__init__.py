"""One row per ATen operation, saying how unit labels pass through it and which must be equal.

A row is a function `(flow, node) -> Labels` (a list of them for an operation with a list of outputs). Most rows come
from a small notation that reads like einops: a name is one dim and the same units wherever it stands, `...` any leading
dims, `*s` any trailing dims that must stay whole, `_` a dim that must stay whole. What a rule does with labels it says
through a `Flow` (see `coupling`): `merge`, `freeze`, `rows`, `view`, `literal`, `work`.

A new operation costs one row here and one row in the tests. Nothing is guessed: an operation without a row, that does
not carry torch's `pointwise` tag, freezes all it touches and says so.
"""

from __future__ import annotations

from ..flow import Flow, Output
from ..trace import Node
from . import layers, products, shapes
from .elementwise import elementwise, unknown
from .notation import RULES, Rule, row, rule
from .shapes import slice_bounds

__all__ = ["RULES", "Rule", "apply_rule", "layers", "products", "row", "rule", "shapes", "slice_bounds"]


def apply_rule(flow: Flow, node: Node) -> Output:
    """The labels of a node's output, by its row, torch's pointwise tag, or `unknown`."""
    found = RULES.get(node.op)
    if found is not None:
        return found(flow, node)
    if node.pointwise:
        return elementwise(flow, node)
    flow.unsupported(node)
    return unknown(flow, node)
