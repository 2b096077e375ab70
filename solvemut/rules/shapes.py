"""Views, splits, joins, slices, padding, indexing, and tensors that a forward creates."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..flow import Factor, Flow, Labels, Output
from ..trace import Node
from . import follow
from .elementwise import broadcast, joint_dims, stretched, unknown
from .op import dims_of, op


@op("view_as reshape_as", ints="")
def _view_as(flow: Flow, node: Node) -> Labels:
    """The sizes are those of another value: dim by dim equally many units, or they stay."""
    other = flow.labels(node.args["other"])
    y = flow.view(flow.labels(node.args["self"]), node.shape, [None] * len(node.shape))
    for d in range(y.ndim):
        a, b = y.factor(d), other.factor(d)
        if a is not None and b is not None and len(a.dims) == len(b.dims) == 1:
            flow.equal([a.labels, b.labels], f"{node.op} gives both one size")
        else:
            flow.freeze_dims(y, [d], f"{node.op} needs the size of another value")
            flow.freeze_dims(other, [d], f"{node.op} takes its size")
    return y


@op("view reshape _unsafe_view unflatten", ints="", sizes="size shape sizes", follow=follow.shape)
@op("flatten ravel", ints="")
def _reshape(flow: Flow, node: Node) -> Output:
    if "dtype" in node.args:  # the same bytes read as other numbers
        return unknown(flow, node)
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


@op("permute transpose t numpy_T swapaxes swapdims movedim mT T", ints="")
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


@op("unsqueeze", ints="")
def _unsqueeze(flow: Flow, node: Node) -> Labels:
    return flow.labels(node.args["self"]).insert(node.args["dim"] % len(node.shape))


@op("squeeze", ints="")
def _squeeze(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    dims = dims_of(node, "dim", x.ndim)
    gone = [d for d in dims if x.shape[d] == 1]
    for d in dims:
        if (f := x.factor(d)) is None:
            continue
        if len(f.dims) == 1 and d in gone:
            flow.freeze(f.labels, "squeeze takes out its only position")
        elif len(f.dims) == 1:
            flow.at_least(f.labels, 2, "squeeze leaves a dim with more than one position")
        else:
            flow.hold(f.labels, f.dims.index(d))
    for d in sorted(gone, reverse=True):
        x = x.take(d, 0)
    return x


@op("expand broadcast_to", ints="", sizes="size", follow=follow.shape)
@op("expand_as", ints="")
def _expand(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    lead = len(node.shape) - x.ndim
    size = node.args.get("size", [-1] * len(node.shape))
    x = stretched(flow, x, node.shape[lead:])
    for f in x.factors:
        flow.rectangle(f.labels, [("size", lead + d) if size[lead + d] != -1 else None for d in f.dims])
    y = x.renamed(node.shape, {d: d + lead for d in range(x.ndim)})
    for d, n in enumerate(size):
        if n > 1 and (d < lead or x.shape[d - lead] == 1):
            y = _made_long(flow, y, d, n, "size")
    if node.op == "expand_as":  # a dim of size 1 takes over the units of the dim it is expanded to
        other = flow.labels(node.args["other"])
        new = [f for f in other.factors if all(d < lead or x.shape[d - lead] == 1 for d in f.dims)]
        y = y.replaced([], new)
    return y


@op("hstack vstack row_stack", ints="")
def _hstack(flow: Flow, node: Node) -> Labels:
    xs = [flow.labels(r) for r in node.args["tensors"]]
    if node.op != "hstack":
        xs = [x.insert(0) if x.ndim == 1 else x for x in xs]
    return concatenate(flow, xs, 1 if node.op == "hstack" and xs[0].ndim > 1 else 0, node.shape)


@op("tile", ints="")
@op("repeat", ints="", sizes="repeats", follow=follow.repeats)
def _repeat(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    times = list(node.args.get("repeats", node.args.get("dims")))
    x = x.renamed((1,) * (len(node.shape) - x.ndim) + x.shape, {d: d + len(node.shape) - x.ndim for d in range(x.ndim)})
    times = [1] * (x.ndim - len(times)) + times
    for d, k in enumerate(times):
        if k == 1:
            continue
        if x.factor(d):
            x = x.take(d, np.tile(np.arange(x.shape[d]), k))
        elif x.shape[d] > 1 or node.op == "tile":
            x = x.resized(d, x.shape[d] * k)
        else:
            x = _made_long(flow, x, d, k, "repeats")
    return x


def _made_long(flow: Flow, x: Labels, d: int, n: int, name: str) -> Labels:
    """A single position made as long as a size says: that of other units, if the size is theirs."""
    units = flow.created((name, d), n)
    return x.resized(d, n).replaced([], [] if units is None else [Factor((d,), units)])


@op("repeat_interleave", ints="repeats")
def _repeat_interleave(flow: Flow, node: Node) -> Output:
    x, k, d = flow.labels(node.args["self"]), node.args.get("repeats"), node.args.get("dim")
    if not isinstance(k, int) or d is None:
        return unknown(flow, node)
    return x.take(d, np.repeat(np.arange(x.shape[d]), k)) if x.factor(d % x.ndim) else x.resized(d, x.shape[d] * k)


@op("select", ints="index")
def _select(flow: Flow, node: Node) -> Labels:
    x, d = flow.labels(node.args["self"]), node.args["dim"]
    d %= x.ndim
    f = x.factor(d)
    if f is not None and len(f.dims) == 1:
        flow.freeze(f.labels, f"{node.op} picks one of its positions")
    elif f is not None and d != f.dims[0]:
        x = flow.whole(x, d)
    elif f is not None:
        flow.hold(f.labels, 0)
    return x.take(d, int(node.args["index"]))


@op("unbind", ints="")
def _unbind(flow: Flow, node: Node) -> list[Labels]:
    x, d = flow.labels(node.args["self"]), node.args.get("dim", 0)
    d %= x.ndim
    f = x.factor(d)
    if f is not None and (len(f.dims) == 1 or d != f.dims[0]):
        x = flow.whole(x, d)
    elif f is not None:
        flow.hold(f.labels, 0)
    return [x.take(d, i) for i in range(x.shape[d])]


@op("slice", ints="step", sizes="start end", follow=follow.bounds)
def _slice(flow: Flow, node: Node) -> Labels:
    x, d = flow.labels(node.args["self"]), node.args.get("dim", 0)
    d %= x.ndim
    n = x.shape[d]
    start, stop = follow.slice_bounds(node, n)
    if x.factor(d) is None:
        return x.resized(d, node.shape[d])
    x = _inner_whole(flow, x, d)
    if (f := x.factor(d)) is None:
        return x.resized(d, node.shape[d])
    if (step := node.args.get("step", 1)) != 1 and _strides_evenly(node, x, d, step):
        return _every(flow, x, d, step, start)
    if step != 1 or len(f.dims) > 1:
        flow.freeze(f.labels, "a slice with steps, or of part of a group, picks positions from it")
        return x.take(d, slice(start, stop, node.args.get("step", 1)))
    units = x.filled(d)
    for name, at in (("start", start), ("end", stop)):
        if 0 < at < n:
            raw = node.args.get(name)
            from_the_end = isinstance(raw, int) and raw < 0
            flow.literal((name,), units[at:] if from_the_end else units[:at], -1 if from_the_end else 1)
    flow.nonempty([units[start:stop]])
    return x.take(d, slice(start, stop))


def _strides_evenly(node: Node, x: Labels, d: int, step: int) -> bool:
    """Whether a slice takes one position of each `step`, to the end of the dim: then these go and stay together."""
    n = x.shape[d]
    start, stop = follow.slice_bounds(node, n)
    return n % step == 0 and start < step and stop == n and len(x.factors) > 0 and x.dim(d) is not None


def _every(flow: Flow, x: Labels, d: int, step: int, start: int) -> Labels:
    """Position `start` of each run of `step`."""
    shape = (*x.shape[:d], x.shape[d] // step, step, *x.shape[d + 1 :])
    y = flow.view(x, shape, [None] * len(shape))
    return flow.whole(y, d + 1).take(d + 1, start)


@op("narrow", ints="", sizes="start length", follow=follow.narrowed)
def _narrow(flow: Flow, node: Node) -> Labels:
    x, d = flow.labels(node.args["self"]), node.args["dim"]
    d %= x.ndim
    start, n = node.args["start"], node.shape[d]
    x = _inner_whole(flow, x, d)
    if (f := x.factor(d)) is None:
        return x.resized(d, n)
    if not isinstance(start, int) or start < 0 or len(f.dims) > 1:
        flow.freeze(f.labels, "narrow picks positions from it")
        return x.without([d]).resized(d, n)
    units = x.filled(d)
    flow.literal(("start",), units[:start])
    flow.literal(("length",), units[start : start + n])
    flow.nonempty([units[start : start + n]])
    return x.take(d, slice(start, start + n))


def _inner_whole(flow: Flow, x: Labels, d: int) -> Labels:
    """Cutting an inner dim of a head or group keeps every head or group whole."""
    f = x.factor(d)
    return flow.whole(x, d) if f is not None and len(f.dims) > 1 and d != f.dims[0] else x


@op("split split_with_sizes unsafe_split", ints="", sizes="split_size split_sizes", follow=follow.parts)
@op("tensor_split", ints="sections", sizes="indices", follow=follow.parts)
@op("chunk unsafe_chunk", ints="chunks")
def _split(flow: Flow, node: Node) -> list[Labels]:
    x, d = flow.labels(node.args["self"]), node.args.get("dim", 0)
    d %= x.ndim
    if x.factor(d) is not None:
        x = _inner_whole(flow, x, d)
    cuts = np.cumsum([0] + [s[d] for s in node.shapes])
    f = x.factor(d)
    if f is None:
        return [x.resized(d, s[d]) for s in node.shapes]
    if isinstance(node.args.get("indices"), list) and node.args["indices"] != cuts[1:-1].tolist():
        flow.freeze(f.labels, "tensor_split picks positions from it")
        return [x.without([d]).resized(d, s[d]) for s in node.shapes]
    parts = [x.take(d, slice(a, b)) for a, b in itertools.pairwise(cuts)]
    if len(f.dims) > 1:
        flow.freeze(f.labels, "a split of a head or group cuts it")
        return parts
    units = [x.filled(d)[a:b] for a, b in itertools.pairwise(cuts)]
    flow.nonempty(units)
    if node.op == "tensor_split" and "sections" not in node.args:
        if not isinstance(indices := node.args.get("indices"), list):
            flow.freeze(f.labels, "tensor_split picks positions from it")
            return parts
        for i, at in enumerate(indices):
            flow.literal(("indices", i), x.filled(d)[:at])
    elif "split_sizes" in node.args or isinstance(node.args.get("split_size"), (list, tuple)):
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


@op("getitem", ints="b", shown=False)
def _getitem(flow: Flow, node: Node) -> Labels:
    return flow.element(node.args["a"], node.args["b"])


@op("cat concat concatenate", ints="")
def _cat(flow: Flow, node: Node) -> Labels:
    xs = [x for x in (flow.labels(r) for r in node.args["tensors"]) if x.shape != (0,)]
    return concatenate(flow, xs, node.args.get("dim", 0) % xs[0].ndim, node.shape)


def concatenate(flow: Flow, xs: list[Labels], d: int, shape_out: tuple[int, ...]) -> Labels:
    """Units one after another along dim `d`; the other dims hold the same units."""
    for dims in joint_dims(xs):
        if d in dims[1:] or (d in dims and not all(any(f.dims == dims for f in x.factors) for x in xs)):
            for k in reversed(dims[1:]):
                xs = [flow.whole(x, k) for x in xs]
    along = next((f.dims for x in xs for f in x.factors if d in f.dims), (d,))
    units = [f.labels if (f := x.factor(d)) else np.zeros(tuple(x.shape[k] for k in along), dtype=np.int64) for x in xs]
    joined = np.concatenate(units, axis=along.index(d))
    if len(along) > 1:
        flow.rectangle(joined, [None] * len(along))
    shape = tuple(1 if k == d else s for k, s in enumerate(xs[0].shape))
    rest = [Labels(shape, tuple(f for f in x.factors if d not in f.dims)) for x in xs]
    others = broadcast(flow, rest, shape)
    factors = [*(f for f in others.factors), Factor(along, joined)] if joined.any() else list(others.factors)
    return Labels(shape_out, tuple(sorted(factors, key=lambda f: f.dims)))


@op("stack", ints="")
def _stack(flow: Flow, node: Node) -> Labels:
    xs = [flow.labels(r) for r in node.args["tensors"]]
    d = node.args.get("dim", 0) % len(node.shape)
    return broadcast(flow, xs, xs[0].shape).insert(d, len(xs))


@op(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d",
    ints="pad padding value",
)
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


@op("glu", ints="")
def _glu(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    d = node.args.get("dim", -1) % x.ndim
    x = _inner_whole(flow, x, d)
    half = x.shape[d] // 2
    a, b = x.take(d, slice(0, half)), x.take(d, slice(half, None))
    return broadcast(flow, [a, b], node.shape)


@op("pixel_shuffle", ints="upscale_factor", feature=-3)
@op("pixel_unshuffle", ints="downscale_factor")
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


@op("channel_shuffle", ints="", sizes="groups", follow=follow.shuffled)
def _channel_shuffle(flow: Flow, node: Node) -> Labels:
    """Channels in rows, one per group, are dealt in turn."""
    x, groups = flow.separate(flow.labels(node.args["self"]), 1), node.args["groups"]
    batch, channels, *pixels = x.shape
    rows = (batch, groups, channels // groups, *pixels)
    y = flow.view(x, rows, [None, ("groups",), *[None] * (len(rows) - 2)])
    y = y.permute([0, 2, 1, *range(3, len(rows))])
    return flow.view(y, x.shape, [None] * x.ndim)


@op(
    "zeros ones full empty rand randn new_zeros new_ones new_full new_empty",
    ints="*",
    sizes="size",
    follow=follow.shape,
)
@op("arange eye scalar_tensor linspace tensor", ints="*")
def _create(flow: Flow, node: Node) -> Labels:
    """A new tensor follows the sizes it is made from; a size written as a number is fixed."""
    sizes = node.args.get("size") or []
    return Labels.of(node.shape, {d: flow.created(("size", d), n) for d, n in enumerate(sizes) if n > 1})


@op("sym_size _assert_tensor_metadata", ints="*", shown=False)
@op("_assert_async _assert_scalar", ints="*")
def _nothing(flow: Flow, node: Node) -> Labels:
    return Labels(node.shapes[0] if node.shapes else ())
