"""Recurrent layers and their cells: a hidden unit is the same unit in every gate.

Each layer and each direction has hidden units of its own. The final states of all of them stand in one dense tensor,
[layers * directions, batch, units], and one `hidden_size` goes for all, so that all keep equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..flow import Factor, Flow, Labels, Output
from ..trace import Node, Ref
from .elementwise import unknown
from .op import OPS, Repeat, op

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# What a state of zeros may go through on its way to a layer.
_PASSES = frozenset(
    ("to", "clone", "contiguous", "detach", "alias", "expand", "unsqueeze", "squeeze", "view", "select")
)
_LAYER, _CELL = "modules.rnn.RNNBase", "modules.rnn.RNNCellBase"
_ZEROS = ("zeros", "new_zeros", "zeros_like")


@dataclass(frozen=True)
class _Weights:
    """The parameters of one direction of one layer: of the input, of the hidden state, biases, of the projection."""

    ih: Ref
    hh: Ref
    biases: tuple[Ref, ...]
    hr: Ref | None = None


@dataclass(frozen=True)
class _States:
    """The labels of the initial states of one direction of one layer; None: zeros, in which no unit is any other."""

    hidden: np.ndarray | None
    cell: np.ndarray | None = None


def _direction(
    flow: Flow, gates: int, weights: _Weights, x: np.ndarray, before: _States
) -> tuple[np.ndarray, np.ndarray]:
    """The units of the output and of the cell of one direction of one layer."""
    ih, hh = (flow.labels(w) for w in (weights.ih, weights.hh))
    for d in (0, 1):
        ih, hh = flow.separate(ih, d), flow.separate(hh, d)
    n, lead = ih.shape[0] // gates, flow.node.shapes[0][:-1]
    tall = [ih.filled(0), hh.filled(0), *(flow.labels(b).filled(0) for b in weights.biases)]
    given = [before.cell] if weights.hr is not None else [before.hidden, before.cell]
    units = _first(given, tall[0].reshape(gates, n)[0])
    for a in tall:
        _meet(flow, np.broadcast_to(units, (gates, n)), a.reshape(gates, n))
    _meet_all(flow, units, given)
    flow.makes(weights.ih, 0)
    _meet(flow, x, ih.filled(1))
    flow.contracted([(flow.node.args["input"], x), (weights.ih, ih.filled(1))])
    flow.contracted([(weights.hh, hh.filled(1))])
    out = units if weights.hr is None else _projection(flow, weights.hr, units, before.hidden)
    _meet(flow, out, hh.filled(1))
    for pair in [(x, tall[0]), (out, tall[0]), *([(units, out)] if weights.hr is not None else [])]:
        flow.work([*lead, *(a if a.any() else len(a) for a in pair)])
    return out, units


def _projection(flow: Flow, weight: Ref, units: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """The units that an LSTM projects its hidden units to."""
    hr = flow.labels(weight)
    for d in (0, 1):
        hr = flow.separate(hr, d)
    _meet(flow, units, hr.filled(1))
    flow.contracted([(weight, hr.filled(1))])
    out = _first([before], hr.filled(0))
    _meet(flow, out, hr.filled(0))
    _meet_all(flow, out, [before])
    flow.makes(weight, 0)
    return out


def _first(given: Sequence[np.ndarray | None], own: np.ndarray) -> np.ndarray:
    """The units by which all go, in their order: those that come in, or else those of a parameter."""
    return next((u for u in given if u is not None and u.any()), own)


def _meet(flow: Flow, a: np.ndarray, b: np.ndarray) -> None:
    flow.merge(a if a.any() else None, b if b.any() else None, b.shape)


def _meet_all(flow: Flow, units: np.ndarray, given: Sequence[np.ndarray | None]) -> None:
    for u in (u for u in given if u is not None and u is not units):
        _meet(flow, units, u)


@op(
    "lstm gru rnn_tanh rnn_relu",
    ints="num_layers",
    feature=-1,
    repeats=(
        Repeat(_LAYER, "input_size", "weight_ih_l0", 1),
        Repeat(_LAYER, "hidden_size", "weight_hh_l0", 1, unless="weight_hr_l0"),
        Repeat(_LAYER, "hidden_size", "weight_hr_l0", 1),
        Repeat(_LAYER, "proj_size", "weight_hr_l0", 0),
    ),
)
def _stacked(flow: Flow, node: Node) -> Output:
    """All layers and directions, as torch.nn's modules call them."""
    if not isinstance(node.args.get("num_layers"), int) or "batch_sizes" in node.args:  # packed sequences
        return unknown(flow, node)
    directions = 1 + bool(node.args["bidirectional"])
    layers = int(node.args["num_layers"])
    x = _input(flow, node)
    weights = _weights(node, layers * directions)
    before = _before(flow, node, layers * directions)
    hidden: list[np.ndarray] = []
    cells: list[np.ndarray] = []
    for layer in range(layers):
        outs = []
        for k in range(layer * directions, (layer + 1) * directions):
            out, units = _direction(flow, _GATES[node.op], weights[k], x, before[k])
            outs.append(out)
            hidden.append(out)
            cells.append(units)
        x = outs[0] if directions == 1 else np.concatenate(outs)
    states = [_final(flow, hidden, node.shapes[1])]
    if node.op == "lstm":
        states.append(_final(flow, cells, node.shapes[2]))
    return [Labels.of(node.shapes[0], {len(node.shapes[0]) - 1: x}), *states]


@op(
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    ints="",
    feature=-1,
    repeats=(Repeat(_CELL, "input_size", "weight_ih", 1), Repeat(_CELL, "hidden_size", "weight_hh", 1)),
)
def _cell(flow: Flow, node: Node) -> Output:
    """One step of one layer."""
    x = _input(flow, node)
    biases = tuple(b for name in ("b_ih", "b_hh") if isinstance(b := node.args.get(name), Ref))
    (before,) = _before(flow, node, 1)
    weights = _Weights(node.args["w_ih"], node.args["w_hh"], biases)
    out, _ = _direction(flow, _GATES[node.op.removesuffix("_cell")], weights, x, before)
    outs = [Labels.of(shape, {len(shape) - 1: out}) for shape in node.shapes]
    return outs if node.is_list else outs[0]


def _input(flow: Flow, node: Node) -> np.ndarray:
    """The units that come in; steps and batch stay as they are."""
    x = flow.labels(node.args["input"])
    flow.freeze_dims(x, range(x.ndim - 1), f"{node.op} works along it")
    return flow.separate(x, x.ndim - 1).filled(x.ndim - 1)


def _weights(node: Node, parts: int) -> list[_Weights]:
    """The flat list of parameters, part by part: ih, hh, two biases or none, and the projection where there is one."""
    params = node.args["params"]
    each, biases = len(params) // parts, 2 * bool(node.args["has_biases"])
    flat = [params[k : k + each] for k in range(0, len(params), each)]
    return [_Weights(p[0], p[1], tuple(p[2 : 2 + biases]), p[2 + biases] if each > 2 + biases else None) for p in flat]


# -- states ------------------------------------------------------------------------------------------------------------


def _before(flow: Flow, node: Node, parts: int) -> list[_States]:
    """The initial states, part by part."""
    given = node.args["hx"]
    refs = given if isinstance(given, list) else [given]
    rows = [_state(flow, node, ref, parts) for ref in refs]
    return [_States(*part) for part in zip(*rows, strict=True)]


def _state(flow: Flow, node: Node, ref: Ref, parts: int) -> list[np.ndarray | None]:
    """The units of one initial state, part by part.

    All positions of a state of zeros are alike, so that it needs as many as there are units, and need not be the same
    ones in every part.
    """
    x = flow.labels(ref)
    last = x.ndim - 1
    f = x.factor(last)
    stacked = f is not None and last == 2 and f.dims == (0, 2)
    flow.freeze_dims(x, [1] if stacked else range(last), f"{node.op} works along it")
    if f is not None and stacked:
        return list(f.labels)
    units = flow.separate(x, last).filled(last)
    if not _is_zero(flow, ref):
        return [units] * parts
    one = x.shape[last] == 1  # a new dim of size 1 has no labels
    return [None if one else units, *[None] * (parts - 1)]


def _is_zero(flow: Flow, ref: Ref) -> bool:
    """Whether a value is zeros that the forward has just made.

    Nothing but recurrent layers may read them, nor any view of them, through which the forward might write.
    """
    nodes = {n.name: n for n in flow.trace.nodes}
    readers: dict[str, list[Node]] = {}
    for n in flow.trace.nodes:
        for r in n.refs():
            readers.setdefault(r, []).append(n)
    node = nodes.get(ref.name)
    while node is not None and node.op in _PASSES:
        before = list(node.refs())
        node = nodes.get(before[0]) if len(before) == 1 else None
    if node is None or node.op not in _ZEROS:
        return False
    views, read = [node], set()
    while views:
        found = readers.get(views.pop().name, [])
        read |= {n.op for n in found}
        views += [n for n in found if n.op in _PASSES]
    return read <= {*_PASSES, *_RECURRENT, "_assert_tensor_metadata"}


def _final(flow: Flow, units: list[np.ndarray], shape: tuple[int, ...]) -> Labels:
    """The final states of all parts, stacked: none of them goes, and all keep equally many units."""
    labels = np.stack(units)
    if len(units) == 1:
        return Labels.of(shape, {2: labels[0]})
    flow.rectangle(labels, [None, None])
    if labels.any():
        flow.hold(labels, 0)
    return Labels(shape, (Factor((0, 2), labels),)).simplified()


_RECURRENT = tuple(name for name, record in OPS.items() if record.labels in (_stacked, _cell))
