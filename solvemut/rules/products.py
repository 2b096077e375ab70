"""Pooling, reductions, and products of two values: matrix products and attention."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np

from ..flow import Flow, Labels, Output, prod
from ..trace import Node, Ref
from .elementwise import broadcast, elementwise, unknown
from .op import dims_of, op

_WINDOW = (
    "kernel_size stride padding dilation output_size divisor_override norm_type scales scale_factors scales_h scales_w"
    " scales_d"
)


@op(
    "max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d"
    " upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bicubic2d_aa"
    " _upsample_bilinear2d_aa lp_pool2d",
    ints=_WINDOW,
)
def _pool(flow: Flow, node: Node) -> Output:
    """Channels pass; the trailing pixel dims are resampled."""
    x = flow.labels(node.args.get("self", node.args.get("input")))
    digits = [c for c in node.op if c.isdigit()]
    k = int(digits[-1]) if digits else 2
    pooled = [x.ndim - k + i for i in range(k) if not _window_of_one(node, i)]
    flow.freeze_dims(x, pooled, f"{node.op} works along it")
    outs = []
    for shape in node.shapes:
        y = x.without(pooled)
        for d in pooled:
            y = y.resized(d, shape[d])
        outs.append(y)
    return outs if node.is_list else outs[0]


def _window_of_one(node: Node, i: int) -> bool:
    """Whether a pooling with windows leaves its pixel dim `i` as it is: it takes single positions, one by one."""

    def given(name: str, default: int) -> int:
        found = node.args.get(name)
        found = found if isinstance(found, list) else [found]
        found = found[min(i, len(found) - 1)] if found else default
        return found if isinstance(found, int) else default

    size = given("kernel_size", 0)
    return size == 1 == given("stride", size) and given("padding", 0) == 0


for _n in (1, 2, 3):
    for _name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
        op(f"{_name}{_n}d", ints=_WINDOW, feature=-1 - _n)(_pool)


@op(
    "mean sum amax amin var std prod any all logsumexp norm linalg_vector_norm max min median argmax argmin var_mean"
    " std_mean topk",
    ints="k p ord correction",
)
def _reduce(flow: Flow, node: Node) -> Output:
    x = flow.labels(node.args.get("self", node.args.get("input")))
    if len(list(node.refs())) > 1:
        return elementwise(flow, node)  # max(a, b), min(a, b)
    dims = dims_of(node, "dim", x.ndim)
    counts = node.op in ("argmax", "argmin", "topk", "median") or flow.reads_element(node, 1)
    for d in dims:
        f = x.factor(d)
        if f is None:
            continue
        if len(f.dims) > 1:
            x = flow.collapse(x, d)
        elif counts and "mean" not in node.op:
            flow.freeze(f.labels, f"{node.op} counts positions along it")
        else:
            flow.note(f.labels, f"{node.op} runs over the units that stay")
            if (least := _least(node, x, [k for k in dims if k != d])) > 1:
                flow.at_least(f.labels, least, f"{node.op} needs so many")
    y = x.without(dims)
    keep = bool(node.args.get("keepdim", False)) or node.op == "topk"
    for d in sorted(dims, reverse=True):
        y = y.resized(d, node.shape[d]) if keep else y.take(d, 0)
    return [y] * len(node.shapes) if node.is_list else y


def _least(node: Node, x: Labels, others: Sequence[int]) -> int:
    """How many positions of a dim a variance needs: times the other dims it runs over, more than its correction."""
    if node.op not in ("var", "std", "var_mean", "std_mean"):
        return 1
    correction = node.args.get("correction", int(node.args.get("unbiased", True)))
    correction = 1 if correction is None else int(correction)
    return correction // max(1, prod([x.shape[k] for k in others if x.factor(k) is None])) + 1


def contract(
    flow: Flow,
    operands: Sequence[Labels],
    terms: Sequence[str],
    out: str,
    shape: tuple[int, ...],
    args: Sequence[Any] = (None, None),
    counted: bool = True,
) -> Labels:
    """A sum of products: one letter per dim, equal letters are the same units, letters that `out` lacks are summed.

    `args` are the values that the operands are, where they are arguments of the node. Products that torch's FLOP
    counter does not know, those with vectors, are not `counted`.
    """
    units: dict[str, np.ndarray | None] = {}
    sizes: dict[str, int] = {}
    most: dict[str, int] = {}
    for x, term in zip(operands, terms, strict=True):
        most.update({k: max(n, most.get(k, 1)) for k, n in zip(term, x.shape, strict=True)})
    held: dict[str, list[tuple[Any, np.ndarray | None]]] = {}
    for arg, x, term in zip(args, operands, terms, strict=True):
        for f in x.factors:
            if len(f.dims) > 1:
                free = [d for d in f.dims if term[d] in out] or list(f.dims)
                for d in reversed(f.dims):
                    if d != free[0]:
                        x = flow.whole(x, d)
        for d, letter in enumerate(term):
            if x.shape[d] == 1 != most[letter]:
                flow.freeze_dims(x, [d], "its only position is broadcast")
                continue
            held.setdefault(letter, []).append((arg, x.dim(d)))
            if sizes.get(letter, 1) == 1:
                sizes[letter], units[letter] = x.shape[d], x.dim(d)
            else:
                flow.merge(units[letter], x.dim(d), (x.shape[d],))
                units[letter] = x.dim(d) if units[letter] is None else units[letter]
    for letter, sides in held.items():
        if letter not in out:
            flow.contracted(sides)
    if counted:
        flow.work([sizes[k] if (u := units[k]) is None else u for k in sizes])
    return Labels.of(shape, {d: units[letter] for d, letter in enumerate(out)})


@op("dot vdot", ints="")
def _dot(flow: Flow, node: Node) -> Labels:
    a, b = (flow.labels(Ref(r)) for r in node.refs())
    flow.note(a.dim(0), f"{node.op} runs over the units that stay")
    return contract(flow, [a, b], ["k", "k"], "", node.shape, counted=False)


@op("matmul bmm mm mv linalg_matmul", ints="")
def _matmul(flow: Flow, node: Node) -> Labels:
    args = [Ref(r) for r in node.refs()]
    a, b = (flow.labels(r) for r in args)
    n = max(a.ndim, b.ndim, 2) - 2
    lead = "ABCDEFGH"[:n]
    left = "k" if a.ndim == 1 else lead[n - (a.ndim - 2) :] + "ik"
    right = "k" if b.ndim == 1 else lead[n - (b.ndim - 2) :] + "kj"
    out = lead + ("" if a.ndim == 1 else "i") + ("" if b.ndim == 1 else "j")
    return contract(flow, [a, b], [left, right], out, node.shape, args, counted=b.ndim > 1)


@op("addmm baddbmm addbmm addmv", ints="alpha beta", fill={"self": 0, "input": 0})
def _addmm(flow: Flow, node: Node) -> Labels:
    names = {"addmm": ("mat1", "mat2"), "addmv": ("mat", "vec")}.get(node.op, ("batch1", "batch2"))
    a, b = (flow.labels(node.args[k]) for k in names)
    terms = {"addmm": ("ik", "kj", "ij"), "addmv": ("ik", "k", "i"), "addbmm": ("bik", "bkj", "ij")}
    left, right, out = terms.get(node.op, ("bik", "bkj", "bij"))
    args, counted = [node.args[k] for k in names], node.op in ("addmm", "baddbmm")
    y = contract(flow, [a, b], [left, right], out, node.shape, args, counted)
    return broadcast(flow, [y, flow.labels(node.args.get("self", node.args.get("input")))], node.shape)


@op("einsum", ints="")
def _einsum(flow: Flow, node: Node) -> Output:
    left, _, out = node.args["equation"].replace(" ", "").partition("->")
    if not out or "." in left:
        return unknown(flow, node)
    operands, terms = [flow.labels(r) for r in node.args["tensors"]], left.split(",")
    args = list(node.args["tensors"])
    while len(operands) > 2:  # torch contracts from left to right
        later = set("".join(terms[2:]) + out)
        term = "".join(dict.fromkeys(c for c in terms[0] + terms[1] if c in later))
        sizes = {c: n for x, t in zip(operands[:2], terms[:2], strict=True) for c, n in zip(t, x.shape, strict=True)}
        pair = contract(flow, operands[:2], terms[:2], term, tuple(sizes[c] for c in term), args[:2])
        operands, terms, args = [pair, *operands[2:]], [term, *terms[2:]], [None, *args[2:]]
    return contract(flow, operands, terms, out, node.shape, args)


@op("scaled_dot_product_attention", ints="")
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


@op("grouped_mm_fallback _grouped_mm grouped_mm", ints="")
def _grouped_mm(flow: Flow, node: Node) -> Output:
    """s i, e i o -> s o: rows in runs, each with the matrix of its expert; which one is data, so no expert goes."""
    x, w = (node.args.get(a, node.args.get(b)) for a, b in (("input", "self"), ("weight", "mat2")))
    if not (isinstance(x, Ref) and isinstance(w, Ref)) or isinstance(node.args.get("bias"), Ref):
        return unknown(flow, node)
    a, b = flow.labels(x), flow.labels(w)
    if (a.ndim, b.ndim) != (2, 3):
        return unknown(flow, node)
    flow.freeze_dims(b, [0], f"{node.op} picks the matrix of an expert by its number")
    for y, dim in ((a, 1), (b, 1), (b, 2)):  # 8 of two bytes; as many as there are now of larger ones do, too
        if (f := y.factor(dim)) is not None and len(f.dims) == 1:
            flow.multiple(f.labels, gcd(y.shape[dim], 8), f"{node.op} takes rows of 16 bytes")
    return contract(flow, [a, b.take(0, 0)], ["si", "io"], "so", node.shape, [x, w])
