"""Layers with parameters."""

from __future__ import annotations

import numpy as np

from ..flow import Flow, Labels, Output, prod
from ..trace import Node, Ref
from . import follow
from .notation import pattern
from .op import Repeat, op

_matrix = pattern("input weight bias", "... i, o i, o -> ... o", work="... i o")


@op(
    "linear",
    ints="",
    sizes="width in_width",
    follow=follow.features,
    feature=-1,
    fill={"bias": 0},
    repeats=(Repeat("Linear", "out_features", "weight", 0), Repeat("Linear", "in_features", "weight", 1)),
)
def _linear(flow: Flow, node: Node) -> Output:
    """... i, o i, o -> ... o"""
    y = _matrix(flow, node)
    assert isinstance(y, Labels)
    if "in_width" in node.args:  # a module that holds an attribute against its input or output width
        flow.literal(("in_width",), flow.labels(node.args["input"]).dim(-1))
    if "width" in node.args:
        flow.literal(("width",), y.dim(-1))
    return y


op(
    "embedding",
    ints="padding_idx",
    feature=-1,
    repeats=(Repeat("Embedding", "embedding_dim", "weight", 1), Repeat("Embedding", "num_embeddings", "weight", 0)),
)(pattern("weight indices", "_ o, ... -> ... o"))


_NORM = "modules.batchnorm._NormBase"
_NORM_FILL = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
_NORM_REPEATS = (Repeat(_NORM, "num_features", "weight", 0), Repeat(_NORM, "num_features", "running_mean", 0))


@op(
    "batch_norm instance_norm",
    ints="",
    sizes="width",
    follow=follow.channels,
    feature=1,
    fill=_NORM_FILL,
    repeats=_NORM_REPEATS,
    width="num_features",
)
@op("_native_batch_norm_legit_no_training native_batch_norm", ints="", fill=_NORM_FILL, repeats=_NORM_REPEATS)
def _batch_norm(flow: Flow, node: Node) -> Labels:
    """b c *s, c, c, c, c -> b c *s; over a weight (weight standardisation) units may stand in *s, too."""
    x = flow.separate(flow.labels(node.args["input"]), 1)
    units = x.dim(1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(arg := node.args.get(name), Ref):
            flow.merge(units, flow.labels(arg, only=[0]).dim(0), (x.shape[1],))
    for f in x.factors:
        if max(f.dims) > 1 and flow.is_weight(node.args["input"]):
            flow.note(f.labels, "its statistics are those of the units that stay")
        elif max(f.dims) > 1:
            flow.freeze(f.labels, f"{node.op} works along it")
    if "width" in node.args:
        flow.literal(("width",), units)
    return x


_SCALE = {"weight": 1, "bias": 0}


@op(
    "layer_norm rms_norm", ints="eps", sizes="normalized_shape", follow=follow.normalized_shape, feature=-1, fill=_SCALE
)
@op("native_layer_norm", ints="eps", sizes="normalized_shape", follow=follow.normalized_shape, fill=_SCALE)
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
                flow.merge(x.dim(d), flow.labels(arg, only=[i]).dim(i), (x.shape[d],))
    return x


@op(
    "group_norm",
    ints="",
    sizes="num_groups width",
    follow=follow.norm_groups,
    feature=1,
    fill={"weight": 1, "bias": 0},
    repeats=(Repeat("GroupNorm", "num_channels", "weight", 0),),
    width="num_channels",
)
def _group_norm(flow: Flow, node: Node) -> Labels:
    x = flow.separate(flow.labels(node.args["input"]), 1)
    groups, n = node.args["num_groups"], x.shape[1]
    flow.freeze_dims(x, range(2, x.ndim), "group_norm takes statistics along it")
    units = x.dim(1)
    for name in ("weight", "bias"):
        if isinstance(arg := node.args.get(name), Ref):
            flow.merge(units, flow.labels(arg, only=[0]).dim(0), (n,))
    if units is not None:
        if "width" in node.args:
            flow.literal(("width",), units)
        flow.rectangle(units.reshape(groups, n // groups), [("num_groups",), None])
        if n // groups > 1:
            flow.note(units, "its statistics are those of the units that stay in the group")
    return x


@op("prelu _prelu_kernel", ints="", fill={"weight": 0.25}, repeats=(Repeat("PReLU", "num_parameters", "weight", 0),))
def _prelu(flow: Flow, node: Node) -> Labels:
    x, w = flow.labels(node.args.get("self", node.args.get("input"))), flow.labels(node.args["weight"])
    if prod(w.shape) > 1:
        d = min(1, x.ndim - 1)
        x = flow.separate(x, d)
        flow.merge(x.dim(d), w.simplified().dim(int(np.argmax(w.shape))), (x.shape[d],))
    return x


@op("_weight_norm _weight_norm_interface", ints="")
def _weight_norm(flow: Flow, node: Node) -> Labels:
    """A weight of which every slice along `dim` (-1: all of it) has the length g and the direction of v."""
    v, g = flow.labels(node.args["v"]), flow.labels(node.args["g"])
    along = node.args.get("dim", 0)
    for d in range(v.ndim):
        v = flow.separate(v, d)
        if along == -1 or d != along % v.ndim:
            flow.note(v.dim(d), "the norm of a weight is that of the part that stays")
        else:
            g = flow.separate(g, d)
            flow.merge(v.dim(d), g.dim(d), (v.shape[d],))
    return v
