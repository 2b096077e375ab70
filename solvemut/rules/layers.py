"""Layers with parameters."""

from __future__ import annotations

import numpy as np

from ..flow import Flow, Labels, Output, prod
from ..trace import Node, Ref
from .notation import pattern, row, rule

_matrix = pattern("input weight bias", "... i, o i, o -> ... o", work="... i o")


@rule("linear", ints="width in_width")
def _linear(flow: Flow, node: Node) -> Output:
    """... i, o i, o -> ... o"""
    y = _matrix(flow, node)
    assert isinstance(y, Labels)
    if "in_width" in node.args:  # a module that holds an attribute against its input or output width
        flow.literal(("in_width",), flow.labels(node.args["input"]).dim(-1))
    if "width" in node.args:
        flow.literal(("width",), y.dim(-1))
    return y


row("embedding", pattern("weight indices", "_ o, ... -> ... o"), ints="padding_idx")
_channel_norm = pattern("input weight bias running_mean running_var", "b c *s, c, c, c, c -> b c *s")


@rule("batch_norm _native_batch_norm_legit_no_training native_batch_norm instance_norm", ints="width")
def _batch_norm(flow: Flow, node: Node) -> Output:
    """b c *s, c, c, c, c -> b c *s"""
    y = _channel_norm(flow, node)
    assert isinstance(y, Labels)
    if "width" in node.args:
        flow.literal(("width",), y.dim(1))
    return y


_KERNEL = "stride padding dilation groups output_padding"


@rule("conv1d conv2d conv3d", ints=_KERNEL)
def _conv(flow: Flow, node: Node) -> Labels:
    """b (g i) *s, (g o) i *k, (g o) -> b (g o) *t"""
    return _convolve(flow, node, transposed=False)


@rule("conv_transpose1d conv_transpose2d conv_transpose3d", ints=_KERNEL)
def _conv_transpose(flow: Flow, node: Node) -> Labels:
    """b (g i) *s, (g i) o *k, (g o) -> b (g o) *t"""
    return _convolve(flow, node, transposed=True)


@rule("convolution", ints=_KERNEL)
def _convolution(flow: Flow, node: Node) -> Labels:
    return _convolve(flow, node, transposed=bool(node.args.get("transposed")))


def _convolve(flow: Flow, node: Node, transposed: bool) -> Labels:
    weight, groups = node.args["weight"], node.args.get("groups", 1)
    grouped = flow.is_grouped(weight, groups)
    x, w = flow.labels(node.args["input"]), flow.labels(weight, only=[0] if grouped else [0, 1])
    space = w.ndim - 2
    c = x.ndim - space - 1  # an unbatched input has no batch dim
    x = flow.separate(flow.separate(x, c), 0)
    flow.freeze_dims(x, range(c + 1, x.ndim), "a convolution runs along it")
    flow.freeze_dims(w, range(2, w.ndim), "it is part of a convolution kernel")
    w = flow.separate(flow.separate(w, 0), 1)
    kernel, pixels = prod(w.shape[2:]), prod((x.shape if transposed else node.shape)[c + 1 :])
    batch = x.shape[0] if c else 1
    inputs = x.dim(c)
    if not grouped:
        w_in, w_out = (w.dim(0), w.dim(1)) if transposed else (w.dim(1), w.dim(0))
        flow.merge(inputs, w_in, (x.shape[c],))
        outputs = w_out
        flow.work([batch * pixels * kernel, w.extent(0), w.extent(1)])
    else:
        outputs = flow.grouped(node, inputs, w, groups, transposed, work=batch * pixels * kernel)
    if isinstance(bias := node.args.get("bias"), Ref):
        n = node.shape[c]
        flow.merge(outputs, flow.labels(bias).dim(0), (n,))
    lead = {0: x.dim(0)} if c and x.factor(0) else {}
    return Labels.of(node.shape, {**lead, c: outputs})


@rule("layer_norm rms_norm native_layer_norm", ints="normalized_shape eps")
def _layer_norm(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["input"])
    k = len(node.args["normalized_shape"])
    for i, d in enumerate(range(x.ndim - k, x.ndim)):
        f = x.factor(d)
        if f is not None and len(f.dims) > 1 and min(f.dims) < x.ndim - k:
            x = flow.collapse(x, d)  # the statistics of a head need all of it
        else:
            x = flow.separate(x, d)
        flow.literal(("normalized_shape", i), x.dim(d))
        if x.dim(d) is not None:
            flow.note(x.dim(d), "its statistics are those of the units that stay")
        for name in ("weight", "bias"):
            if isinstance(arg := node.args.get(name), Ref):
                flow.merge(x.dim(d), flow.labels(arg).dim(i), (x.shape[d],))
    return x


@rule("group_norm", ints="num_groups width")
def _group_norm(flow: Flow, node: Node) -> Labels:
    x = flow.separate(flow.labels(node.args["input"]), 1)
    groups, n = node.args["num_groups"], x.shape[1]
    flow.freeze_dims(x, range(2, x.ndim), "group_norm takes statistics along it")
    units = x.dim(1)
    for name in ("weight", "bias"):
        if isinstance(arg := node.args.get(name), Ref):
            flow.merge(units, flow.labels(arg).dim(0), (n,))
    if units is not None:
        if "width" in node.args:
            flow.literal(("width",), units)
        flow.rectangle(units.reshape(groups, n // groups), [("num_groups",), None])
        if n // groups > 1:
            flow.note(units, "its statistics are those of the units that stay in the group")
    return x


@rule("prelu _prelu_kernel")
def _prelu(flow: Flow, node: Node) -> Labels:
    x, w = flow.labels(node.args.get("self", node.args.get("input"))), flow.labels(node.args["weight"])
    if prod(w.shape) > 1:
        d = min(1, x.ndim - 1)
        x = flow.separate(x, d)
        flow.merge(x.dim(d), w.simplified().dim(int(np.argmax(w.shape))), (x.shape[d],))
    return x
