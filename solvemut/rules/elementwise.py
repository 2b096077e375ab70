"""Elementwise operations: broadcast operands hold the same units; and operations with no rule at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..flow import Factor, Flow, Labels, Output
from ..trace import Node, Ref
from .op import dims_of, op


def elementwise(flow: Flow, node: Node) -> Labels:
    """Broadcasting: every tensor argument's units are those of the result."""
    operands = [flow.labels(Ref(r)) for r in node.refs()]
    return broadcast(flow, operands, node.shape)


def broadcast(flow: Flow, operands: Sequence[Labels], shape: tuple[int, ...]) -> Labels:
    """Merge the labels of operands that are broadcast together to `shape`."""
    n = len(shape)
    aligned = [x.renamed((1,) * (n - x.ndim) + x.shape, {d: d + n - x.ndim for d in range(x.ndim)}) for x in operands]
    aligned = [stretched(flow, x, shape) for x in aligned]
    for dims in joint_dims(aligned):
        aligned = _align_joint(flow, aligned, dims)
    factors: dict[tuple[int, ...], np.ndarray | None] = {}
    covered: set[int] = set()
    for x in aligned:
        for f in x.factors:
            covered.update(f.dims)
            factors.setdefault(f.dims, f.labels)
    for dims, labels in factors.items():
        size = tuple(shape[d] for d in dims)
        for x in aligned:
            if any(x.shape[d] == 1 != shape[d] for d in dims):
                continue  # broadcast along it
            found = x.factor(dims[0])
            other = None if found is None else found.labels
            if other is not labels:
                flow.merge(labels, other, size)
    return Labels(shape, tuple(Factor(d, a) for d, a in sorted(factors.items()) if a is not None))


def stretched(flow: Flow, x: Labels, shape: tuple[int, ...]) -> Labels:
    """A single unit that is broadcast along a longer dim stays, and what it becomes is fixed."""
    thin = [d for f in x.factors for d in f.dims if x.shape[d] == 1 != shape[d]]
    flow.freeze_dims(x, thin, "its only position is broadcast")
    return x.without(thin)


def joint_dims(operands: Sequence[Labels]) -> list[tuple[int, ...]]:
    """Sets of dims that share a factor of several dims in some operand, united where they overlap."""
    found: list[set[int]] = []
    for f in (f for x in operands for f in x.factors if len(f.dims) > 1):
        here = set(f.dims)
        rest = []
        for other in found:
            if other & here:
                here |= other
            else:
                rest.append(other)
        found = [*rest, here]
    return [tuple(sorted(s)) for s in found]


def _align_joint(flow: Flow, operands: list[Labels], dims: tuple[int, ...]) -> list[Labels]:
    """Operands that all hold `dims` as one factor of one shape may keep it; else only the outermost dim stays free."""
    full = [x for x in operands if any(x.shape[d] > 1 for d in dims)]
    same = all(any(f.dims == dims for f in x.factors) for x in full)
    if same and len({tuple(x.shape[d] for d in dims) for x in full}) == 1:
        return operands
    out = []
    for x in operands:
        for d in reversed(dims[1:]):
            x = flow.whole(x, d)
        out.append(x)
    return out


@op(
    "dropout dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout native_dropout lift_fresh"
    " lift_fresh_copy hardswish relu6 selu celu elu gelu silu mish softplus"
    " hardtanh hardsigmoid leaky_relu logsigmoid log_sigmoid threshold masked_fill where clamp clamp_min clamp_max"
    " copy fill nan_to_num rrelu bernoulli dequantize positive conj resolve_conj resolve_neg float half double"
    " __and__ __or__ __xor__"
    " zero mul div relu sigmoid tanh pow maximum minimum true_divide floor_divide multiply divide",
    ints="*",
)
@op("add sub rsub subtract", ints="*", fill={"self": 0, "other": 0})
@op("clone contiguous detach alias", ints="*", shown=False)
def _elementwise(flow: Flow, node: Node) -> Labels:
    return elementwise(flow, node)


@op("to type_as _to_copy zeros_like ones_like full_like empty_like rand_like randn_like", ints="*")
def _like(flow: Flow, node: Node) -> Labels:
    """The shape is that of the first argument; another only lends its dtype."""
    return flow.labels(node.args["self"])


@op(
    "softmax log_softmax _softmax _log_softmax cumsum cumprod logcumsumexp flip roll sort argsort normalize",
    ints="shifts",
)
def _along(flow: Flow, node: Node) -> Output:
    """Same shape, mixing along some dims: those stay whole when they are part of a head or group."""
    x = flow.labels(node.args.get("self", node.args.get("input")))
    name = "dims" if "dims" in node.args else "dim"
    for d in dims_of(node, name, x.ndim):
        f = x.factor(d)
        if f is None:
            continue
        if "softmax" in node.op and len(f.dims) == 1:
            flow.note(f.labels, f"{node.op} runs over the units that stay")
        else:
            x = flow.whole(x, d)
    return [x] * len(node.shapes) if node.is_list else x


@op("diff", ints="n")
def _diff(flow: Flow, node: Node) -> Labels:
    """Neighbours along a dim meet, so it stays whole; what is put before or after them stands side by side."""
    xs = [flow.labels(Ref(r)) for r in node.refs()]
    d = node.args.get("dim", -1) % xs[0].ndim
    xs = [flow.whole(x, d).resized(d, node.shape[d]) for x in xs]
    return broadcast(flow, xs, node.shape)


def unknown(flow: Flow, node: Node) -> Output:
    """No rule: freeze all that goes in, and say why."""
    why = f"no rule for {node.op}"
    for ref in node.refs():
        flow.freeze_all(flow.labels(Ref(ref)), why)
    outs = [Labels(s) for s in node.shapes]
    return outs if node.is_list else outs[0]
