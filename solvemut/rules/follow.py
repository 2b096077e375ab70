"""How int arguments follow when units go: each function writes the new sizes into the arguments of one operation."""

from __future__ import annotations

from typing import Any

from ..trace import Node
from .op import After


def shape(after: After, node: Node, args: dict[str, Any]) -> None:
    """The sizes of a view, an expansion or a new tensor are those of its result; -1 stays."""
    for name in ("size", "shape", "sizes"):
        if isinstance(sizes := args.get(name), list):
            first = args["dim"] % (len(after.shapes[0]) - len(sizes) + 1) if node.op == "unflatten" else 0
            args[name] = [n if n == -1 else after.shapes[0][first + i] for i, n in enumerate(sizes)]


def repeats(after: After, node: Node, args: dict[str, Any]) -> None:
    """A single position that is repeated makes a dim as long as the result's."""
    shape = after.labels(args["self"]).shape
    lead = len(after.shapes[0]) - len(shape)
    made = [d < lead or shape[d - lead] == 1 for d in range(len(after.shapes[0]))]
    args["repeats"] = [after.shapes[0][d] if made[d] else n for d, n in enumerate(args["repeats"])]


def normalized_shape(after: After, node: Node, args: dict[str, Any]) -> None:
    """The trailing sizes of the result."""
    args["normalized_shape"] = list(after.shapes[0][-len(args["normalized_shape"]) :])


def groups(after: After, node: Node, args: dict[str, Any]) -> None:
    """The groups of a convolution that are left."""
    if args.get("groups", 1) > 1:
        f = after.labels(args["weight"]).factor(0)
        if f is None or len(f.dims) == 1:  # a joint factor is a computed weight, which stays
            args["groups"] = after.rows(None if f is None else f.labels, args["groups"])


def norm_groups(after: After, node: Node, args: dict[str, Any]) -> None:
    """The groups of a group norm that are left."""
    channels(after, node, args)
    args["num_groups"] = after.rows(after.labels(args["input"]).dim(1), args["num_groups"])


def shuffled(after: After, node: Node, args: dict[str, Any]) -> None:
    """The rows of channels that are left of those that a shuffle deals in turn."""
    f = after.labels(node.args["self"]).factor(1)
    if f is not None and len(f.dims) == 1:
        args["groups"] = after.rows(f.labels, args["groups"])


def channels(after: After, node: Node, args: dict[str, Any]) -> None:
    """The width that a norm layer says it has."""
    if "width" in args:
        args["width"] = after.shapes[0][1]


def features(after: After, node: Node, args: dict[str, Any]) -> None:
    """The widths that a layer says its input and output have."""
    if "width" in args:
        args["width"] = after.shapes[0][-1]
    if "in_width" in args:
        args["in_width"] = after.shape(after.labels(args["input"]))[-1]


def bounds(after: After, node: Node, args: dict[str, Any]) -> None:
    """The bounds of a slice: how many units before it are left; counted from the end, how many after."""
    x = after.labels(args["self"])
    d = args.get("dim", 0) % x.ndim
    f = x.factor(d)
    if f is None or len(f.dims) > 1 or args.get("step", 1) != 1:
        return
    n = x.shape[d]
    for name, at in zip(("start", "end"), slice_bounds(node, n), strict=True):
        if 0 < at < n:
            args[name] = -after.count(f.labels[at:]) if args[name] < 0 else after.count(f.labels[:at])


def slice_bounds(node: Node, n: int) -> tuple[int, int]:
    """The bounds of a slice as non-negative ints."""
    start, stop, _ = slice(node.args.get("start"), node.args.get("end")).indices(n)
    return start, max(start, stop)


def narrowed(after: After, node: Node, args: dict[str, Any]) -> None:
    """Where a narrowed range begins, and its length."""
    x = after.labels(args["self"])
    d = args["dim"] % x.ndim
    if (f := x.factor(d)) is not None and len(f.dims) == 1 and isinstance(args["start"], int) and args["start"] > 0:
        args["start"] = after.count(f.labels[: args["start"]])
    args["length"] = after.shapes[0][d]


def parts(after: After, node: Node, args: dict[str, Any]) -> None:
    """The sizes of the parts of a split, or the places where they begin."""
    x = after.labels(args["self"])
    d = args.get("dim", 0) % x.ndim
    for name in ("split_sizes", "split_size"):
        if name in args:
            args[name] = [s[d] for s in after.shapes] if isinstance(args[name], list) else after.shapes[0][d]
    if isinstance(args.get("indices"), list) and (f := x.factor(d)) is not None and len(f.dims) == 1:
        args["indices"] = [after.count(f.labels[:i]) if i > 0 else i for i in args["indices"]]
