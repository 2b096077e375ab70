"""RULES: one row per ATen operation, saying how unit labels pass through it and which must be equal.

A row is a function `(flow, node) -> Labels` (a list of them for an operation with a list of outputs). Most rows come
from a small notation that reads like einops: a name is one dim and the same units wherever it stands, `...` any leading
dims, `*s` any trailing dims that must stay whole, `_` a dim that must stay whole. What a rule does with labels it says
through a `Flow` (see `coupling`): `merge`, `freeze`, `rows`, `view`, `literal`, `work`.

A new operation costs one row here and one row in the tests. Nothing is guessed: an operation without a row, that does
not carry torch's `pointwise` tag, freezes all it touches and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .flow import Flow, Output
from .labels import Factor, Labels, prod
from .trace import Node, Ref

Rule = Callable[[Flow, Node], Output]
RULES: dict[str, Rule] = {}


def row(ops: str, rule: Rule) -> None:
    """Enter a rule for one or several operations; a second rule for the same operation is an error."""
    for op in ops.split():
        if op in RULES:
            raise ValueError(f"two rules for {op}")
        RULES[op] = rule


def rule(ops: str) -> Callable[[Rule], Rule]:
    """`row`, as a decorator."""

    def enter(f: Rule) -> Rule:
        row(ops, f)
        return f

    return enter


def _dims(node: Node, name: str, ndim: int) -> list[int]:
    """A dim argument as a list of non-negative ints; all dims if it is None or empty."""
    dim = node.args.get(name)
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])] if ndim else []


# -- the notation ------------------------------------------------------------------------------------------------------


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
            x = flow.labels(arg, only=[i for i, t in enumerate(term) if t.isidentifier()] if "..." not in term else None)
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
            found += [lead.shape[d] if lead.factor(d) is None else lead.dim(d) for d in range(n)]
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


# -- layers ------------------------------------------------------------------------------------------------------------

row("linear", pattern("input weight bias", "... i, o i, o -> ... o", work="... i o"))
row("embedding", pattern("weight indices", "_ o, ... -> ... o"))
row(
    "batch_norm _native_batch_norm_legit_no_training native_batch_norm instance_norm",
    pattern("input weight bias running_mean running_var", "b c *s, c, c, c, c -> b c *s"),
)


@rule("conv1d conv2d conv3d")
def _conv(flow: Flow, node: Node) -> Labels:
    """b (g i) *s, (g o) i *k, (g o) -> b (g o) *t"""
    return _convolve(flow, node, transposed=False)


@rule("conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv_transpose(flow: Flow, node: Node) -> Labels:
    """b (g i) *s, (g i) o *k, (g o) -> b (g o) *t"""
    return _convolve(flow, node, transposed=True)


@rule("convolution")
def _convolution(flow: Flow, node: Node) -> Labels:
    return _convolve(flow, node, transposed=bool(node.args.get("transposed")))


def _convolve(flow: Flow, node: Node, transposed: bool) -> Labels:
    x, w = flow.labels(node.args["input"]), flow.labels(
        node.args["weight"], only=[0] if node.args.get("groups", 1) > 1 else [0, 1]
    )
    space = w.ndim - 2
    c = x.ndim - space - 1  # an unbatched input has no batch dim
    x = flow.separate(x, c)
    flow.freeze_dims(x, range(c + 1, x.ndim), "a convolution runs along it")
    flow.freeze_dims(w, range(2, w.ndim), "it is part of a convolution kernel")
    groups = node.args.get("groups", 1)
    kernel, pixels = prod(w.shape[2:]), prod((x.shape if transposed else node.shape)[c + 1 :])
    batch = x.shape[0] if c else 1
    inputs = x.dim(c)
    if groups == 1:
        w_in, w_out = (w.dim(0), w.dim(1)) if transposed else (w.dim(1), w.dim(0))
        flow.merge(inputs, w_in, (x.shape[c],))
        outputs = w_out
        flow.work([batch * pixels * kernel, w.shape[0] if w.dim(0) is None else w.dim(0),
                   w.shape[1] if w.dim(1) is None else w.dim(1)])
    else:
        outputs = flow.grouped(node, inputs, w, groups, transposed, work=batch * pixels * kernel)
    if isinstance(bias := node.args.get("bias"), Ref):
        n = node.shape[c]
        flow.merge(outputs, flow.labels(bias).dim(0), (n,))
    lead = {0: x.dim(0)} if c and x.factor(0) else {}
    return Labels.of(node.shape, {**lead, c: outputs})


@rule("layer_norm rms_norm native_layer_norm")
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


@rule("group_norm")
def _group_norm(flow: Flow, node: Node) -> Labels:
    x = flow.separate(flow.labels(node.args["input"]), 1)
    groups, n = node.args["num_groups"], x.shape[1]
    flow.freeze_dims(x, range(2, x.ndim), "group_norm takes statistics along it")
    units = x.dim(1)
    for name in ("weight", "bias"):
        if isinstance(arg := node.args.get(name), Ref):
            flow.merge(units, flow.labels(arg).dim(0), (n,))
    if units is not None:
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


# -- elementwise -------------------------------------------------------------------------------------------------------


def elementwise(flow: Flow, node: Node) -> Labels:
    """Broadcasting: every tensor argument's units are those of the result."""
    operands = [flow.labels(Ref(r)) for r in node.refs()]
    return broadcast(flow, operands, node.shape)


def broadcast(flow: Flow, operands: Sequence[Labels], shape: tuple[int, ...]) -> Labels:
    """Merge the labels of operands that are broadcast together to `shape`."""
    n = len(shape)
    aligned = [x.renamed((1,) * (n - x.ndim) + x.shape, {d: d + n - x.ndim for d in range(x.ndim)}) for x in operands]
    for dims in _joint_dims(aligned):
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
            f = x.factor(dims[0])
            other = f.labels if f is not None else None
            if other is not labels:
                flow.merge(labels, other, size)
    return Labels(shape, tuple(Factor(d, a) for d, a in sorted(factors.items()) if a is not None))


def _joint_dims(operands: Sequence[Labels]) -> list[tuple[int, ...]]:
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


@rule(
    "dropout dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout native_dropout clone contiguous to"
    " detach alias lift_fresh lift_fresh_copy type_as _to_copy hardswish relu6 selu celu elu gelu silu mish softplus"
    " hardtanh hardsigmoid leaky_relu logsigmoid log_sigmoid threshold masked_fill where clamp clamp_min clamp_max"
    " copy fill nan_to_num rrelu bernoulli dequantize positive conj resolve_conj resolve_neg float half double"
    " zeros_like ones_like full_like empty_like rand_like randn_like zero add sub mul div relu sigmoid tanh pow"
    " maximum minimum rsub true_divide floor_divide multiply subtract divide"
)
def _elementwise(flow: Flow, node: Node) -> Labels:
    return elementwise(flow, node)


@rule("softmax log_softmax _softmax _log_softmax cumsum cumprod logcumsumexp flip roll sort argsort normalize")
def _along(flow: Flow, node: Node) -> Labels:
    """Same shape, mixing along some dims: those stay whole when they are part of a head or group."""
    x = flow.labels(node.args.get("self", node.args.get("input")))
    name = "dims" if "dims" in node.args else "dim"
    for d in _dims(node, name, x.ndim):
        f = x.factor(d)
        if f is None:
            continue
        if "softmax" in node.op and len(f.dims) == 1:
            flow.note(f.labels, f"{node.op} runs over the units that stay")
        else:
            x = flow.whole(x, d)
    return x


# -- shape -------------------------------------------------------------------------------------------------------------


@rule("view reshape _unsafe_view view_as reshape_as flatten unflatten ravel")
def _reshape(flow: Flow, node: Node) -> Labels:
    return flow.view(flow.labels(node.args["self"]), node.shape, view_literals(node))


def view_literals(node: Node) -> list[tuple[Any, ...] | None]:
    """For each output dim of a view the argument path of the number written for it; None where it is inferred."""
    out: list[tuple[Any, ...] | None] = [None] * len(node.shape)
    for name in ("size", "shape", "sizes"):
        sizes = node.args.get(name)
        if isinstance(sizes, (list, tuple)):
            first = node.args["dim"] % (len(node.shape) - len(sizes) + 1) if node.op == "unflatten" else 0
            for i, n in enumerate(sizes):
                out[first + i] = None if n == -1 else (name, i)
    return out


@rule("permute transpose t numpy_T swapaxes swapdims movedim mT T")
def _permute(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    n = x.ndim
    order = list(range(n))
    if node.op == "permute":
        order = [d % n for d in node.args["dims"]]
    elif node.op == "movedim":
        src, dst = (np.atleast_1d(node.args[k]) % n for k in ("source", "destination"))
        order = [d for d in range(n) if d not in src]
        for s, d in sorted(zip(src.tolist(), dst.tolist(), strict=True), key=lambda p: p[1]):
            order.insert(d, s)
    elif (node.op == "t" and n == 2) or node.op in ("numpy_T", "T"):
        order = order[::-1]
    elif n >= 2:
        names = ("dim0", "dim1") if "dim0" in node.args else ("axis0", "axis1")
        a, b = (node.args.get(k, d) % n for k, d in zip(names, (-2, -1), strict=True))
        order[a], order[b] = b, a
    return x.permute(order)


@rule("unsqueeze")
def _unsqueeze(flow: Flow, node: Node) -> Labels:
    return flow.labels(node.args["self"]).insert(node.args["dim"] % len(node.shape))


@rule("squeeze")
def _squeeze(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    gone = [d for d in _dims(node, "dim", x.ndim) if x.shape[d] == 1]
    for d in sorted(gone, reverse=True):
        x = x.take(d, 0)
    return x


@rule("expand expand_as broadcast_to")
def _expand(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    lead = len(node.shape) - x.ndim
    for d in range(x.ndim):
        f = x.factor(d)
        if f is not None and "size" in node.args and node.args["size"][lead + d] != -1:
            flow.literal(("size", lead + d), f.labels if len(f.dims) == 1 else f.labels.reshape(-1))
    return x.renamed(node.shape, {d: d + lead for d in range(x.ndim)})


@rule("repeat tile")
def _repeat(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    times = list(node.args.get("repeats", node.args.get("dims")))
    x = x.renamed((1,) * (len(node.shape) - x.ndim) + x.shape, {d: d + len(node.shape) - x.ndim for d in range(x.ndim)})
    times = [1] * (x.ndim - len(times)) + times
    for d, k in enumerate(times):
        if k > 1:
            x = x.take(d, np.tile(np.arange(x.shape[d]), k)) if x.factor(d) else x.resized(d, x.shape[d] * k)
    return x


@rule("repeat_interleave")
def _repeat_interleave(flow: Flow, node: Node) -> Labels:
    x, k, d = flow.labels(node.args["self"]), node.args.get("repeats"), node.args.get("dim")
    if not isinstance(k, int) or d is None:
        return unknown(flow, node)
    return x.take(d, np.repeat(np.arange(x.shape[d]), k)) if x.factor(d % x.ndim) else x.resized(d, x.shape[d] * k)


@rule("select")
def _select(flow: Flow, node: Node) -> Labels:
    x, d = flow.labels(node.args["self"]), node.args["dim"]
    d %= x.ndim
    f = x.factor(d)
    if f is not None and len(f.dims) == 1:
        flow.freeze(f.labels, f"{node.op} picks one of its positions")
    elif f is not None and d != f.dims[0]:
        x = flow.whole(x, d)
    return x.take(d, int(node.args["index"]))


@rule("unbind")
def _unbind(flow: Flow, node: Node) -> list[Labels]:
    x, d = flow.labels(node.args["self"]), node.args.get("dim", 0)
    d %= x.ndim
    f = x.factor(d)
    if f is not None and (len(f.dims) == 1 or d != f.dims[0]):
        x = flow.whole(x, d)
    return [x.take(d, i) for i in range(x.shape[d])]


@rule("slice narrow")
def _slice(flow: Flow, node: Node) -> Labels:
    x, d = flow.labels(node.args["self"]), node.args.get("dim", 0)
    d %= x.ndim
    n = x.shape[d]
    start, stop = slice_bounds(node, n)
    if x.factor(d) is None:
        return x.resized(d, node.shape[d])
    x = _inner_whole(flow, x, d)
    if (f := x.factor(d)) is None:
        return x.resized(d, node.shape[d])
    if node.args.get("step", 1) != 1 or len(f.dims) > 1:
        flow.freeze(f.labels, "a slice with steps, or of part of a group, picks positions from it")
        return x.take(d, slice(start, stop, node.args.get("step", 1)))
    units = x.filled(d)
    for name, at in (("start", start), ("end", stop)):
        if 0 < at < n:
            raw = node.args.get(name)
            part = units[at:] if isinstance(raw, int) and raw < 0 else units[:at]
            flow.literal((name,), part)
    return x.take(d, slice(start, stop))


def slice_bounds(node: Node, n: int) -> tuple[int, int]:
    """The bounds of a slice as non-negative ints."""
    start, stop, _ = slice(node.args.get("start"), node.args.get("end")).indices(n)
    return start, max(start, stop)


def _inner_whole(flow: Flow, x: Labels, d: int) -> Labels:
    """Cutting an inner dim of a head or group keeps every head or group whole."""
    f = x.factor(d)
    return flow.whole(x, d) if f is not None and len(f.dims) > 1 and d != f.dims[0] else x


@rule("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk")
def _split(flow: Flow, node: Node) -> list[Labels]:
    x, d = flow.labels(node.args["self"]), node.args.get("dim", 0)
    d %= x.ndim
    if x.factor(d) is not None:
        x = _inner_whole(flow, x, d)
    cuts = np.cumsum([0] + [s[d] for s in node.shapes])
    f = x.factor(d)
    if f is None:
        return [x.resized(d, s[d]) for s in node.shapes]
    parts = [x.take(d, slice(a, b)) for a, b in itertools.pairwise(cuts)]
    if len(f.dims) > 1:
        flow.freeze(f.labels, "a split of a head or group cuts it")
        return parts
    units = [x.filled(d)[a:b] for a, b in itertools.pairwise(cuts)]
    if node.op in ("split_with_sizes",) or isinstance(node.args.get("split_size"), (list, tuple)):
        name = "split_sizes" if "split_sizes" in node.args else "split_size"
        for i, u in enumerate(units):
            flow.literal((name, i), u)
    elif len({len(u) for u in units}) > 1:
        flow.freeze(f.labels, "an uneven split cuts it")
    else:
        flow.equal(units, f"{node.op} into equal parts")
        if "split_size" in node.args:
            flow.literal(("split_size",), units[0])
    return parts


@rule("getitem")
def _getitem(flow: Flow, node: Node) -> Labels:
    return flow.element(node.args["a"], node.args["b"])


@rule("cat concat concatenate")
def _cat(flow: Flow, node: Node) -> Labels:
    xs = [flow.labels(r) for r in node.args["tensors"]]
    xs = [x for x in xs if x.shape != (0,)]
    d = node.args.get("dim", 0) % xs[0].ndim
    for dims in _joint_dims(xs):
        if d in dims and not all(any(f.dims == dims for f in x.factors) for x in xs):
            for k in reversed(dims[1:]):
                xs = [flow.whole(x, k) for x in xs]
    along = next((f.dims for x in xs for f in x.factors if d in f.dims), (d,))
    units = [
        f.labels if (f := x.factor(d)) else np.zeros(tuple(x.shape[k] for k in along), dtype=np.int64) for x in xs
    ]
    joined = np.concatenate(units, axis=along.index(d))
    shape = tuple(1 if k == d else s for k, s in enumerate(xs[0].shape))
    rest = [
        Labels(shape, tuple(f for f in x.factors if d not in f.dims)) for x in xs
    ]
    others = broadcast(flow, rest, shape)
    factors = [*(f for f in others.factors), Factor(along, joined)] if joined.any() else list(others.factors)
    return Labels(node.shape, tuple(sorted(factors, key=lambda f: f.dims)))


@rule("stack")
def _stack(flow: Flow, node: Node) -> Labels:
    xs = [flow.labels(r) for r in node.args["tensors"]]
    d = node.args.get("dim", 0) % len(node.shape)
    return broadcast(flow, xs, xs[0].shape).insert(d, len(xs))


@rule("pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d")
def _pad(flow: Flow, node: Node) -> Labels:
    """New positions of a labelled dim are fixed: they hold a constant."""
    x = flow.labels(node.args.get("self", node.args.get("input")))
    pad = list(node.args.get("pad", node.args.get("padding")))
    zeros = node.args.get("mode", "constant") == "constant" and node.op in ("pad", "constant_pad_nd")
    for k in range(len(pad) // 2):
        d = x.ndim - 1 - k
        before, after = pad[2 * k : 2 * k + 2]
        f = x.factor(d)
        if (before, after) == (0, 0):
            continue
        if f is None:
            x = x.resized(d, node.shape[d])
        elif not zeros or min(before, after) < 0 or len(f.dims) > 1:
            flow.freeze(f.labels, f"{node.op} copies or cuts positions of it")
            x = x.replaced([d], []).resized(d, node.shape[d])
        else:
            units = np.pad(f.labels, (before, after))
            x = x.without([d]).resized(d, node.shape[d]).replaced([d], [Factor((d,), units)])
    return x


@rule("glu")
def _glu(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    d = node.args.get("dim", -1) % x.ndim
    x = _inner_whole(flow, x, d)
    half = x.shape[d] // 2
    a, b = x.take(d, slice(0, half)), x.take(d, slice(half, None))
    return broadcast(flow, [a, b], node.shape)


@rule("pixel_shuffle pixel_unshuffle")
def _pixel_shuffle(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    c = x.ndim - 3
    x = flow.separate(x, c)
    units = x.dim(c)
    flow.freeze_dims(x, range(c + 1, x.ndim), "pixels are rearranged along it")
    if units is None:
        return Labels(node.shape)
    if node.op == "pixel_shuffle":
        square = units.reshape(node.shape[c], -1)
        flow.merge(np.broadcast_to(square[:, :1], square.shape), square, square.shape)
        return Labels.of(node.shape, {c: square[:, 0]})
    return Labels.of(node.shape, {c: np.repeat(units, node.shape[c] // len(units))})


# -- pooling, resampling and reductions --------------------------------------------------------------------------------


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
    " adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices"
    " upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d"
    " upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa"
    " lp_pool2d"
)
def _pool(flow: Flow, node: Node) -> Output:
    """Channels pass; the trailing pixel dims are resampled."""
    x = flow.labels(node.args.get("self", node.args.get("input")))
    digits = [c for c in node.op if c.isdigit()]
    k = int(digits[-1]) if digits else 2
    flow.freeze_dims(x, range(x.ndim - k, x.ndim), f"{node.op} works along it")
    outs = []
    for shape in node.shapes:
        y = x.without(range(x.ndim - k, x.ndim))
        for d in range(x.ndim - k, x.ndim):
            y = y.resized(d, shape[d])
        outs.append(y)
    return outs if node.is_list else outs[0]


@rule(
    "mean sum amax amin var std prod any all logsumexp norm linalg_vector_norm max min median argmax argmin var_mean"
    " std_mean topk"
)
def _reduce(flow: Flow, node: Node) -> Output:
    x = flow.labels(node.args.get("self", node.args.get("input")))
    if len(list(node.refs())) > 1:
        return elementwise(flow, node)  # max(a, b), min(a, b)
    dims = _dims(node, "dim", x.ndim)
    for d in dims:
        f = x.factor(d)
        if f is None:
            continue
        if len(f.dims) > 1:
            x = flow.collapse(x, d)
        elif node.op in ("argmax", "argmin", "topk", "median"):
            flow.freeze(f.labels, f"{node.op} counts positions along it")
        elif node.op != "sum":
            flow.note(f.labels, f"{node.op} runs over the units that stay")
    y = x.without(dims)
    keep = bool(node.args.get("keepdim", False)) or node.op == "topk"
    for d in sorted(dims, reverse=True):
        y = y.resized(d, node.shape[d]) if keep else y.take(d, 0)
    return [y] * len(node.shapes) if node.is_list else y


# -- products of values ------------------------------------------------------------------------------------------------


def contract(flow: Flow, operands: Sequence[Labels], terms: Sequence[str], out: str, shape: tuple[int, ...]) -> Labels:
    """A sum of products: one letter per dim, equal letters are the same units, letters that `out` lacks are summed."""
    units: dict[str, np.ndarray | None] = {}
    sizes: dict[str, int] = {}
    for x, term in zip(operands, terms, strict=True):
        for f in x.factors:
            if len(f.dims) > 1:
                free = [d for d in f.dims if term[d] in out] or list(f.dims)
                for d in reversed(f.dims):
                    if d != free[0]:
                        x = flow.whole(x, d)
        for d, letter in enumerate(term):
            if x.shape[d] == 1 and sizes.get(letter, 1) != 1:
                continue  # broadcast
            if sizes.get(letter, 1) == 1:
                sizes[letter], units[letter] = x.shape[d], x.dim(d)
            else:
                flow.merge(units[letter], x.dim(d), (x.shape[d],))
                units[letter] = x.dim(d) if units[letter] is None else units[letter]
    flow.work([sizes[k] if units[k] is None else units[k] for k in sizes])
    return Labels.of(shape, {d: units[letter] for d, letter in enumerate(out)})


@rule("matmul bmm mm mv dot linalg_matmul")
def _matmul(flow: Flow, node: Node) -> Labels:
    a, b = (flow.labels(Ref(r)) for r in node.refs())
    n = max(a.ndim, b.ndim, 2) - 2
    lead = "ABCDEFGH"[:n]
    left = "k" if a.ndim == 1 else lead[n - (a.ndim - 2) :] + "ik"
    right = "k" if b.ndim == 1 else lead[n - (b.ndim - 2) :] + "kj"
    out = lead + ("" if a.ndim == 1 else "i") + ("" if b.ndim == 1 else "j")
    return contract(flow, [a, b], [left, right], out, node.shape)


@rule("addmm baddbmm addbmm addmv")
def _addmm(flow: Flow, node: Node) -> Labels:
    names = {"addmm": ("mat1", "mat2"), "addmv": ("mat", "vec")}.get(node.op, ("batch1", "batch2"))
    a, b = (flow.labels(node.args[k]) for k in names)
    terms = {"addmm": ("ik", "kj", "ij"), "addmv": ("ik", "k", "i"), "addbmm": ("bik", "bkj", "ij")}
    left, right, out = terms.get(node.op, ("bik", "bkj", "bij"))
    y = contract(flow, [a, b], [left, right], out, node.shape)
    return broadcast(flow, [y, flow.labels(node.args.get("self", node.args.get("input")))], node.shape)


@rule("einsum")
def _einsum(flow: Flow, node: Node) -> Labels:
    left, _, out = node.args["equation"].replace(" ", "").partition("->")
    if not out or "." in left:
        return unknown(flow, node)
    return contract(flow, [flow.labels(r) for r in node.args["tensors"]], left.split(","), out, node.shape)


@rule("scaled_dot_product_attention")
def _sdpa(flow: Flow, node: Node) -> Labels:
    """b h q d, b h k d, b h k v -> b h q v, with whole heads as units."""
    q, k, v = (flow.labels(node.args[n]) for n in ("query", "key", "value"))
    n = q.ndim
    for x, name in ((q, "query"), (k, "key")):
        f = x.factor(n - 1)
        if f is not None and len(f.dims) == 1 and node.args.get("scale") is None:
            flow.freeze(f.labels, "the default scale of attention depends on its size")
        x = flow.whole(x, n - 1) if f is not None and len(f.dims) > 1 else x
        q, k = (x, k) if name == "query" else (q, x)
    if (f := v.factor(n - 1)) is not None and len(f.dims) > 1:
        v = flow.whole(v, n - 1)
    if node.args.get("enable_gqa"):
        k, v = (_share_heads(x, q.shape[-3]) for x in (k, v))
    lead = "ABCDEFGH"[: n - 2]
    scores = contract(flow, [q, k], [lead + "qd", lead + "kd"], lead + "qk", (*node.shape[:-1], k.shape[-2]))
    if isinstance(mask := node.args.get("attn_mask"), Ref):
        scores = broadcast(flow, [scores, flow.labels(mask)], scores.shape)
    return contract(flow, [scores, v], [lead + "qk", lead + "kv"], lead + "qv", node.shape)


def _share_heads(x: Labels, heads: int) -> Labels:
    """Key and value heads, each as often as query heads share it."""
    d, times = x.ndim - 3, heads // x.shape[-3]
    if times == 1:
        return x
    return x.take(d, np.repeat(np.arange(x.shape[d]), times)) if x.factor(d) else x.resized(d, heads)


# -- indexing and creation ---------------------------------------------------------------------------------------------


@rule("index")
def _index(flow: Flow, node: Node) -> Labels:
    """Advanced indexing: an indexed dim stays whole; the others pass when the indexed ones are neighbours."""
    x = flow.labels(node.args["self"])
    used = [d for d, i in enumerate(node.args["indices"]) if i is not None]
    flow.freeze_dims(x, used, "it is indexed")
    x = x.without([d for d in used if x.factor(d)])
    if used != list(range(used[0], used[-1] + 1)):
        return unknown(flow, node)
    new = len(node.shape) - (x.ndim - len(used))
    where = {d: d if d < used[0] else d - len(used) + new for d in range(x.ndim) if d not in used}
    kept = [f for f in x.factors if all(d in where for d in f.dims)]
    return Labels(node.shape, tuple(Factor(tuple(where[d] for d in f.dims), f.labels) for f in kept))


@rule("index_select")
def _index_select(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    d = node.args["dim"] % x.ndim
    flow.freeze_dims(x, [d], "it is indexed")
    return x.without([d]).resized(d, node.shape[d])


@rule("zeros ones full empty rand randn new_zeros new_ones new_full new_empty arange eye scalar_tensor linspace tensor")
def _create(flow: Flow, node: Node) -> Labels:
    """A new tensor follows the sizes it is made from; a size written as a number is fixed."""
    sizes = node.args.get("size") or []
    return Labels.of(node.shape, {d: flow.created(("size", d), n) for d, n in enumerate(sizes) if n > 1})


@rule("sym_size _assert_tensor_metadata _assert_async _assert_scalar")
def _nothing(flow: Flow, node: Node) -> Labels:
    return Labels(node.shapes[0] if node.shapes else ())


def unknown(flow: Flow, node: Node) -> Output:
    """No rule: freeze all that goes in, and say why."""
    why = f"no rule for {node.op}"
    for ref in node.refs():
        flow.freeze_all(flow.labels(Ref(ref)), why)
    outs = [Labels(s) for s in node.shapes]
    return outs if node.is_list else outs[0]


def apply_rule(flow: Flow, node: Node) -> Output:
    """The labels of a node's output, by its row, torch's pointwise tag, or `unknown`."""
    found = RULES.get(node.op)
    if found is not None:
        return found(flow, node)
    if node.pointwise:
        return elementwise(flow, node)
    flow.unsupported(node)
    return unknown(flow, node)
