"""Indexing: positions picked or written by number. The dim that is indexed stays whole, all others keep their units."""

from __future__ import annotations

from collections.abc import Sequence

from ..flow import Factor, Flow, Labels, Output
from ..trace import Node, Ref
from .elementwise import broadcast, unknown
from .op import op

_INDEXED = "it is indexed"


def _whole(flow: Flow, x: Labels, dims: Sequence[int]) -> Labels:
    """The labels of a value of which some dims are indexed."""
    flow.freeze_dims(x, dims, _INDEXED)
    return x.without([d for d in dims if x.factor(d)])


# -- x[i, j], x[mask] --------------------------------------------------------------------------------------------------


def _picked(flow: Flow, node: Node) -> tuple[Labels, list[int], int] | None:
    """What advanced indexing picks: the value with its indexed dims whole, these dims, and how many dims replace them.

    None where that is not known: indexed dims that are no neighbours, or a mask among other indices. A mask indexes as
    many dims as it has.
    """
    x, indices, mask = flow.labels(node.args["self"]), node.args["indices"], bool(node.args.get("mask"))
    used = [d for d, i in enumerate(indices) if i is not None]
    given = [flow.labels(i) for i in indices if i is not None]
    for i in given:
        flow.freeze_all(i, "it is an index")
    if mask and len(given) == 1:
        used = list(range(used[0], used[0] + given[0].ndim))
    neighbours = used == list(range(used[0], used[-1] + 1))
    x = _whole(flow, x, used)
    if not neighbours or (mask and len(given) > 1):
        return None
    return x, used, 1 if mask else max(i.ndim for i in given)


def _without_indexed(x: Labels, used: Sequence[int], new: int, shape: tuple[int, ...]) -> Labels:
    """The labels of what is picked: those of the dims that are not indexed, moved to where they stand then."""
    where = {d: d if d < used[0] else d - len(used) + new for d in range(x.ndim) if d not in used}
    kept = [f for f in x.factors if all(d in where for d in f.dims)]
    return Labels(shape, tuple(Factor(tuple(where[d] for d in f.dims), f.labels) for f in kept))


@op("index", ints="")
def _index(flow: Flow, node: Node) -> Output:
    found = _picked(flow, node)
    return unknown(flow, node) if found is None else _without_indexed(*found, node.shape)


@op("index_put _index_put_impl _unsafe_index_put", ints="")
def _index_put(flow: Flow, node: Node) -> Output:
    found = _picked(flow, node)
    if found is None:
        return unknown(flow, node)
    x, used, new = found
    values, shape = flow.labels(node.args["values"]), [x.shape[d] for d in range(x.ndim) if d not in used]
    lead = values.ndim - len(shape) - new + used[0]
    picked = range(max(0, lead), max(0, lead + new))  # the dims of the values that an index says where to put
    values = _whole(flow, values, picked)
    shape[used[0] : used[0]] = [values.shape[lead + k] if lead + k >= 0 else 1 for k in range(new)]
    broadcast(flow, [_without_indexed(x, used, new, tuple(shape)), values], tuple(shape))
    return x


# -- along one dim -----------------------------------------------------------------------------------------------------


@op("index_select", ints="")
def _index_select(flow: Flow, node: Node) -> Labels:
    x = flow.labels(node.args["self"])
    d = node.args["dim"] % x.ndim
    flow.freeze_all(flow.labels(node.args["index"]), "it is an index")
    return _whole(flow, x, [d]).resized(d, node.shape[d])


@op("gather take_along_dim", ints="")
def _gather(flow: Flow, node: Node) -> Output:
    """Each position of the index picks along one dim; in all other dims the units are those of the index."""
    x = flow.labels(node.args["self"])
    index = flow.labels(node.args.get("index", node.args.get("indices")))
    if node.args.get("dim") is None or not x.ndim or x.ndim != index.ndim:
        return unknown(flow, node)
    d = node.args["dim"] % x.ndim
    if node.op == "take_along_dim":  # all but one dim are broadcast
        sides = [_whole(flow, y, [d]).resized(d, node.shape[d]) for y in (x, index)]
        return broadcast(flow, sides, node.shape)
    x, index = _cut_alike(flow, [x, index], d)
    return broadcast(flow, [x, index], node.shape)


@op("scatter scatter_add scatter_reduce", ints="value")
def _scatter(flow: Flow, node: Node) -> Output:
    """Each position of the index says where along one dim a value is written."""
    x, index = flow.labels(node.args["self"]), flow.labels(node.args["index"])
    if not x.ndim or x.ndim != index.ndim:
        return unknown(flow, node)
    d = node.args["dim"] % x.ndim
    values = [index]
    if isinstance(source := node.args.get("src"), Ref):
        values.append(flow.labels(source))
    whole = _whole(flow, x, [d])
    written = _cut_alike(flow, [x, *values], d)
    broadcast(flow, written, written[0].shape)
    return whole


def _cut_alike(flow: Flow, xs: Sequence[Labels], d: int) -> list[Labels]:
    """Values that stand side by side in all dims but `d`; a dim in which they are not equally long stays."""
    shape = [min(x.shape[k] for x in xs) for k in range(xs[0].ndim)]
    uneven = [k for k in range(len(shape)) if k == d or any(x.shape[k] != shape[k] for x in xs)]
    out = []
    for x in xs:
        x = _whole(flow, x, uneven)
        for k in uneven:
            x = x.resized(k, xs[-1].shape[k] if k == d else shape[k])
        out.append(x)
    return out


@op("index_add index_copy index_fill", ints="value alpha")
def _index_add(flow: Flow, node: Node) -> Labels:
    """Slices along one dim are written where an index says; in the other dims units meet units."""
    x, d = flow.labels(node.args["self"]), node.args["dim"]
    flow.freeze_all(flow.labels(node.args["index"]), "it is an index")
    if not x.ndim:
        return x
    d %= x.ndim
    x = _whole(flow, x, [d])
    source = flow.labels(node.args["source"]) if isinstance(node.args.get("source"), Ref) else None
    if source is not None and source.ndim == x.ndim:
        source = _whole(flow, source, [d])
        broadcast(flow, [x.resized(d, source.shape[d]), source], source.shape)
    elif source is not None:
        flow.freeze_all(source, "it is written where an index says")
    return x


# -- positions and values read back ------------------------------------------------------------------------------------


@op("nonzero argwhere item histc", ints="bins min max")
def _read_back(flow: Flow, node: Node) -> Output:
    """Positions, or a value, as numbers: what they are read off stays."""
    for ref in node.refs():
        flow.freeze_all(flow.labels(Ref(ref)), f"{node.op} reads its positions")
    outs = [Labels(s) for s in node.shapes]
    return outs if node.is_list else outs[0]
