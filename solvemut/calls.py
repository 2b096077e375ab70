"""Calls: the layers of a model as a real forward calls them, whoever calls them: modules, functions, or a graph.

A layer is known by its weight: whatever function is given a parameter of the model as its weight is a call of that
layer, so that `F.linear(x, self.w)` and `nn.Linear` are alike. A weight that is computed first is no parameter, and its
calls go by unseen.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .tracing import python_functions_open

LINEAR, CONV, TRANSPOSED, NORM, EMBEDDING = "linear", "conv", "conv_transpose", "norm", "embedding"
MAPS = (LINEAR, CONV, TRANSPOSED)  # linear in their input: y = W x + b, position by position


@dataclass(eq=False)
class LayerCall:
    """One call of a layer: `weight` and `bias` are names of parameters ("" where there is none), `nr` counts the calls.

    `x` goes in and `y` comes out, which is None before the call. `axis` is the dim of `y` that has the layer's outputs,
    counted from the end. `out_dim` and `in_dim` are those of the weight. With `groups` its inputs are a group's own.
    """

    kind: str
    weight: str
    bias: str
    nr: int
    x: torch.Tensor
    axis: int
    out_dim: int = 0
    in_dim: int = 1
    groups: int = 1
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()  # before and after, by spatial dim; of zeros
    taps: tuple[int, ...] = ()
    y: torch.Tensor | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[str, int]:
        """What the same call has in common in two models of one architecture."""
        return self.weight, self.nr


Look = Callable[[LayerCall], Any]


class _Watch(TorchFunctionMode):
    """Tells `before` and `after` of every call of a layer; what `after` returns, unless None, is put out instead."""

    def __init__(self, model: nn.Module, before: Look | None, after: Look | None) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.before, self.after = before, after
        self.count: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _READERS.get(func)
        call = None if read is None else read(self, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        if call.weight:
            self.count[call.weight] += 1
        if self.before is not None:
            self.before(call)
        call.y = func(*args, **kwargs)
        given = None if self.after is None else self.after(call)
        return call.y if given is None else given

    def name(self, tensor: Any) -> str:
        """The parameter that a tensor is, "" for others."""
        return self.names.get(id(tensor), "")


@contextlib.contextmanager
def watched(model: nn.Module, before: Look | None = None, after: Look | None = None) -> Iterator[None]:
    """Within it, every call of a layer of the model is told to `before` (y is None yet) and to `after`.

    Calls are counted anew each time: one forward in one `watched`. What `after` returns, unless None, goes on in place
    of the output.

    >>> model, seen = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), []
    >>> with watched(model, after=lambda call: seen.append((call.weight, tuple(call.y.shape)))):
    ...     _ = model(torch.ones(5, 2))
    >>> seen
    [('0.weight', (5, 3)), ('2.weight', (5, 1))]
    """
    with python_functions_open(), _Watch(model, before, after):
        yield


# -- what functions are calls of layers -------------------------------------------------------------------------------


def _given(names: str, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def _linear(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
    a = _given("input weight bias", args, kwargs)
    name = watch.name(a["weight"])
    return LayerCall(LINEAR, name, watch.name(a.get("bias")), watch.count[name], a["input"], -1) if name else None


def _addmm(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
    a = _given("input mat1 mat2", args, kwargs)
    name = watch.name(a["mat2"])
    if not name or a.get("beta", 1) != 1 or a.get("alpha", 1) != 1 or a["input"].ndim != 1:
        return None
    bias = watch.name(a["input"])
    return LayerCall(LINEAR, name, bias, watch.count[name], a["mat1"], -1, out_dim=1, in_dim=0)


def _matmul(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
    a = _given("input other", args, kwargs)
    other: Any = a.get("other", a.get("mat2"))
    name = watch.name(other)
    if not name or other.ndim != 2 or a["input"].ndim < 2:
        return None
    return LayerCall(LINEAR, name, "", watch.count[name], a["input"], -1, out_dim=1, in_dim=0)


def _each(x: Any, k: int) -> tuple[int, ...]:
    """One int, or one for each spatial dim."""
    found = tuple(x) if isinstance(x, (tuple, list)) else (x,)
    return tuple(int(v) for v in (found * k if len(found) == 1 else found))


def _conv(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
    a = _given("input weight bias stride padding dilation groups", args, kwargs)
    if not watch.name(a["weight"]):
        return None
    spans, padding = _spans(a), a.get("padding", 0)
    if padding == "same":  # what is left over comes behind
        pads = tuple((s // 2, s - s // 2) for s in spans)
    else:
        pads = tuple((p, p) for p in _each(0 if padding == "valid" else padding, len(spans)))
    return _spatial(watch, CONV, a, pads, out_dim=0, in_dim=1)


def _conv_transpose(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
    a = _given("input weight bias stride padding output_padding groups dilation", args, kwargs)
    if not watch.name(a["weight"]):
        return None
    spans = _spans(a)
    padding, more = (_each(a.get(key, 0), len(spans)) for key in ("padding", "output_padding"))
    pads = tuple((s - p, s - p + m) for s, p, m in zip(spans, padding, more, strict=True))
    return _spatial(watch, TRANSPOSED, a, pads, out_dim=1, in_dim=0)


def _spans(a: Mapping[str, Any]) -> list[int]:
    """By spatial dim how far the last tap of a kernel is from its first."""
    taps = a["weight"].shape[2:]
    return [d * (t - 1) for d, t in zip(_each(a.get("dilation", 1), len(taps)), taps, strict=True)]


def _spatial(
    watch: _Watch, kind: str, a: Mapping[str, Any], padding: tuple[tuple[int, int], ...], out_dim: int, in_dim: int
) -> LayerCall:
    """A convolution of either kind."""
    name, taps = watch.name(a["weight"]), tuple(a["weight"].shape[2:])
    return LayerCall(
        kind,
        name,
        watch.name(a.get("bias")),
        watch.count[name],
        a["input"],
        -(len(taps) + 1),
        groups=int(a.get("groups", 1)),
        stride=_each(a.get("stride", 1), len(taps)),
        dilation=_each(a.get("dilation", 1), len(taps)),
        padding=padding,
        taps=taps,
        out_dim=out_dim,
        in_dim=in_dim,
    )


def _norm(names: str, axis: int | None) -> Callable[[_Watch, Any, Any], LayerCall | None]:
    """A norm; `axis` of its channels, None: dim 1 of what it gets."""

    def read(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
        a = _given(names, args, kwargs)
        name, x = watch.name(a.get("weight")), a["input"]
        at = 1 - x.ndim if axis is None else axis
        return LayerCall(NORM, name, watch.name(a.get("bias")), watch.count[name], x, at)

    return read


def _embedding(watch: _Watch, args: Any, kwargs: Any) -> LayerCall | None:
    a = _given("weight indices", args, kwargs)
    name = watch.name(a["weight"])
    at: Any = a.get("indices", a.get("input"))
    return LayerCall(EMBEDDING, name, "", watch.count[name], at, -1, out_dim=1) if name else None


_READERS: dict[Any, Callable[[_Watch, Any, Any], LayerCall | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm), _matmul),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _conv),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _conv_transpose),
    torch.batch_norm: _norm("input weight bias", None),
    torch.instance_norm: _norm("input weight bias", None),
    torch.group_norm: _norm("input num_groups weight bias", None),
    torch.layer_norm: _norm("input normalized_shape weight bias", -1),
    torch.rms_norm: _norm("input normalized_shape weight", -1),
    torch.embedding: _embedding,
}


# -- a linear map as a matrix -----------------------------------------------------------------------------------------


def positions(call: LayerCall, y: torch.Tensor, examples: int) -> int:
    """At how many positions of an example a linear map is applied."""
    outputs = y.shape[call.axis]
    return max(1, y.numel() // max(1, outputs * examples))


def columns(call: LayerCall, x: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor:
    """The unfolded input of a linear map, [examples, positions, groups, inputs of a group times taps].

    With `matrix(call, weight)` of shape [groups, outputs of a group, inputs of a group times taps], the output at a
    position is their product plus the bias. `at` picks positions, counted through the output's spatial dims. The
    examples of a linear layer are its first dim, all others are positions.

    >>> conv, x = nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(4, 2, 5, 5)
    >>> calls = []
    >>> with watched(conv, after=calls.append):
    ...     y = conv(x)
    >>> rows = columns(calls[0], x) @ matrix(calls[0], conv.weight).transpose(1, 2)[0] + conv.bias
    >>> torch.allclose(rows.reshape(4, 3, 3, 3), y.permute(0, 2, 3, 1), atol=1e-5)
    True
    """
    if call.kind == LINEAR:
        rows = x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, 1, x.shape[-1])
        return rows if at is None else rows[:, at]
    k = len(call.taps)
    x = x if x.ndim == k + 2 else x[None]
    x = F.pad(_spread(call, x), [p for pair in reversed(call.padding) for p in pair])
    steps = (1,) * k if call.kind == TRANSPOSED else call.stride
    sizes = [
        (n - d * (t - 1) - 1) // s + 1 for n, d, t, s in zip(x.shape[2:], call.dilation, call.taps, steps, strict=True)
    ]
    at = torch.arange(math.prod(sizes), device=x.device) if at is None else at.to(x.device)
    starts = torch.unravel_index(at, tuple(sizes))
    offsets = torch.unravel_index(torch.arange(math.prod(call.taps), device=x.device), call.taps)
    index = torch.zeros(len(at), math.prod(call.taps), dtype=torch.long, device=x.device)
    for d in range(k):
        places = starts[d][:, None] * steps[d] + offsets[d][None] * call.dilation[d]
        index = index * x.shape[2 + d] + places
    found = x.flatten(2)[:, :, index.reshape(-1)].reshape(*x.shape[:2], *index.shape)  # [n, channels, positions, taps]
    found = found.permute(0, 2, 1, 3)
    return found.reshape(found.shape[0], found.shape[1], call.groups, -1)


def _spread(call: LayerCall, x: torch.Tensor) -> torch.Tensor:
    """The input of a transposed convolution with stride - 1 zeros between its positions."""
    if call.kind != TRANSPOSED or all(s == 1 for s in call.stride):
        return x
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], call.stride, strict=True)]
    found = x.new_zeros(*x.shape[:2], *sizes)
    every: tuple[Any, ...] = (slice(None), slice(None), *(slice(None, None, s) for s in call.stride))
    found[every] = x
    return found


def outputs(call: LayerCall, y: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor:
    """The output of a linear map, or a gradient of it, as rows: [examples, positions, outputs]."""
    if call.kind == LINEAR:
        rows = y.reshape(y.shape[0] if y.ndim > 1 else 1, -1, y.shape[-1])
    else:
        y = y if y.ndim == len(call.taps) + 2 else y[None]
        rows = y.flatten(2).transpose(1, 2)
    return rows if at is None else rows[:, at.to(y.device)]


def matrix(call: LayerCall, weight: torch.Tensor) -> torch.Tensor:
    """A weight, or a gradient of it, as [groups, outputs of a group, inputs of a group times taps]."""
    if call.kind == LINEAR:
        return (weight if call.out_dim == 0 else weight.t())[None]
    if call.kind == CONV:
        return weight.reshape(call.groups, weight.shape[0] // call.groups, -1)
    spatial = list(range(2, weight.ndim))
    w = weight.flip(spatial).reshape(call.groups, weight.shape[0] // call.groups, weight.shape[1], -1)
    return w.transpose(1, 2).flatten(2)


def from_matrix(call: LayerCall, m: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The weight of that shape that has this matrix: the way back from `matrix`."""
    if call.kind == LINEAR:
        return m[0] if call.out_dim == 0 else m[0].t()
    if call.kind == CONV:
        return m.reshape(shape)
    groups, out, _ = m.shape
    w = m.reshape(groups, out, shape[0] // groups, *shape[2:]).transpose(1, 2)
    return w.reshape(shape).flip(list(range(2, len(shape))))
