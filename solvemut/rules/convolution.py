"""Convolutions: plain, transposed, grouped and depthwise."""

from __future__ import annotations

import numpy as np

from ..flow import Extent, Flow, Labels, prod
from ..trace import Node, Ref
from . import follow
from .op import Repeat, op

_INTS = "stride padding dilation output_padding"
_REPEATS = (
    Repeat("modules.conv._ConvNd", "out_channels", "weight", 0, per_group=True, transposed_dim=1),
    Repeat("modules.conv._ConvNd", "in_channels", "weight", 1, per_group=True, transposed_dim=0),
)


def _conv(flow: Flow, node: Node) -> Labels:
    """b (g i) *s, (g o) i *k, (g o) -> b (g o) *t"""
    return _convolve(flow, node, transposed=False)


def _conv_transpose(flow: Flow, node: Node) -> Labels:
    """b (g i) *s, (g i) o *k, (g o) -> b (g o) *t"""
    return _convolve(flow, node, transposed=True)


for _n in (1, 2, 3):
    for _name, _rule in ((f"conv{_n}d", _conv), (f"conv_transpose{_n}d", _conv_transpose)):
        op(
            _name, sizes="groups", follow=follow.groups, ints=_INTS, feature=-1 - _n, fill={"bias": 0}, repeats=_REPEATS
        )(_rule)


@op("convolution", sizes="groups", follow=follow.groups, ints=_INTS, fill={"bias": 0}, repeats=_REPEATS)
def _convolution(flow: Flow, node: Node) -> Labels:
    return _convolve(flow, node, transposed=bool(node.args.get("transposed")))


def _convolve(flow: Flow, node: Node, transposed: bool) -> Labels:
    weight, groups = node.args["weight"], node.args.get("groups", 1)
    grouped = groups > 1 or flow.is_per_row(weight)  # one group may be left
    x, w = flow.labels(node.args["input"]), flow.labels(weight, only=[0] if grouped else [0, 1])
    space = w.ndim - 2
    c = x.ndim - space - 1  # an unbatched input has no batch dim
    x = flow.separate(flow.separate(x, c), 0)
    flow.freeze_dims(x, range(c + 1, x.ndim), "a convolution runs along it")
    flow.freeze_dims(w, range(2, w.ndim), "it is part of a convolution kernel")
    w = flow.separate(flow.separate(w, 0), 1)
    kernel, pixels = prod(w.shape[2:]), prod((x.shape if transposed else node.shape)[c + 1 :])
    work = (x.shape[0] if c else 1) * pixels * kernel
    inputs = x.dim(c)
    if not grouped:
        w_in, outputs = (w.dim(0), w.dim(1)) if transposed else (w.dim(1), w.dim(0))
        flow.merge(inputs, w_in, (x.shape[c],))
        flow.contracted([(node.args["input"], inputs), (weight, w_in)])
        flow.work([work, w.extent(0), w.extent(1)])
    else:
        outputs = _grouped(flow, node, inputs, w, groups, transposed, work)
    if isinstance(bias := node.args.get("bias"), Ref):
        flow.merge(outputs, flow.labels(bias, only=[0]).dim(0), (node.shape[c],))
    lead = {0: x.dim(0)} if c and x.factor(0) else {}
    return Labels.of(node.shape, {**lead, c: outputs})


def _grouped(
    flow: Flow, node: Node, inputs: np.ndarray | None, w: Labels, groups: int, transposed: bool, work: int
) -> np.ndarray | None:
    """Every group reads its own rows of the input channels; the channels of its outputs."""
    rows, inner = w.filled(0).reshape(groups, -1), _inner_units(flow, node.args["weight"], w, groups)
    if inner is None:
        return _depthwise(flow, inputs, rows, transposed, work)
    in_rows, out_rows = (rows, inner) if transposed else (inner, rows)
    flow.merge(None if inputs is None else inputs.reshape(in_rows.shape), in_rows, in_rows.shape)
    flow.contracted([(node.args["input"], inputs), (node.args["weight"], in_rows)])
    for part in (in_rows, out_rows):
        flow.group_rows(part)
    flow.work([work, Extent(rows.reshape(-1)), Extent(inner, per_row=True)])
    return out_rows.reshape(-1)


def _inner_units(flow: Flow, weight: Ref, w: Labels, groups: int) -> np.ndarray | None:
    """Labels of the inner dim of a grouped weight, [groups, channels]; None if it is a single slice."""
    if w.shape[1] == 1 and not flow.is_per_row(weight):  # several slices may have been there before
        return None
    if weight.name in flow.trace.params:
        return flow.source((weight.name, 1), (groups, w.shape[1]), per_row=True)
    return np.broadcast_to(w.filled(1), (groups, w.shape[1]))


def _depthwise(
    flow: Flow, inputs: np.ndarray | None, rows: np.ndarray, transposed: bool, work: int
) -> np.ndarray | None:
    """One weight slice per group: a group goes with its channels."""
    groups, n = rows.shape
    flow.work([work, Extent(rows.reshape(-1))])
    if transposed:  # rows are the inputs, one output per group
        flow.merge(None if inputs is None else inputs.reshape(rows.shape), rows, rows.shape)
        flow.merge(np.broadcast_to(rows[:, :1], rows.shape), rows, rows.shape)
        flow.literal(("groups",), rows[:, 0])
        return rows[:, 0]
    if inputs is None:  # the groups stay, with as many outputs each as there may be
        flow.group_rows(np.zeros((groups, 1), dtype=np.int64))
        flow.group_rows(rows, stays=n == 1)
    else:
        flow.merge(np.repeat(inputs, n), rows.reshape(-1), (groups * n,))
        flow.literal(("groups",), rows[:, 0])
    return rows.reshape(-1)
