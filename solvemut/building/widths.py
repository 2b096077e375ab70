"""Widths: how many features torch's own layers take and make, and in which dim, as far as that is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, padding, pooling

from ..errors import RequestError


@dataclass(frozen=True)
class Width:
    """The number of features of a tensor, and the dim that they lie in; None is unknown."""

    size: int | None = None
    dim: int | None = None

    def same_dim(self, other: Width) -> bool:
        """Whether both may lie in the same dim: an input has a size, but says of no dim."""
        return self.dim is None or other.dim is None or self.dim == other.dim


Named = tuple[str, Width]  # a vertex and what it puts out
UNKNOWN = Width()
_SAME = (nn.Identity, dropout._DropoutNd, nn.Softmax, nn.LogSoftmax)
_POINTWISE = tuple(getattr(activation, n) for n in activation.__all__ if n not in ("GLU", "MultiheadAttention"))
_SPATIAL = tuple(
    c
    for m in (pooling, padding)
    for c in vars(m).values()
    if isinstance(c, type) and issubclass(c, nn.Module) and c is not nn.Module
)
_NORMS = (batchnorm._NormBase, instancenorm._InstanceNorm)


def expected(module: nn.Module) -> list[tuple[str, Width]]:
    """For each input of a layer the attribute that says its width, and that width; none where it is not known."""
    m: Any = module
    if isinstance(m, nn.Linear):
        return [("in_features", Width(m.in_features, -1))]
    if isinstance(m, nn.Bilinear):
        return [("in1_features", Width(m.in1_features, -1)), ("in2_features", Width(m.in2_features, -1))]
    if isinstance(m, conv._ConvNd):
        return [("in_channels", Width(m.in_channels, 1))]
    if isinstance(m, _NORMS) and (m.weight is not None or m.running_mean is not None):
        return [("num_features", Width(m.num_features, 1))]
    if isinstance(m, nn.GroupNorm) and m.weight is not None:
        return [("num_channels", Width(m.num_channels, 1))]
    if isinstance(m, (nn.LayerNorm, nn.RMSNorm)):
        return [("normalized_shape", Width(m.normalized_shape[-1], -1))]
    return []


def after(module: nn.Module, given: Sequence[Named], name: str) -> Width:
    """What a layer puts out. Raises RequestError where what it is given is known not to fit."""
    if type(module) is nn.Sequential and len(given) == 1:
        width = given[0][1]
        for key, inner in module.named_children():
            width = after(inner, [(given[0][0], width)], f"{name}.{key}")
        return width
    for (attribute, wanted), (source, found) in zip(expected(module), given, strict=False):
        if found.size is not None and found.same_dim(wanted) and found.size != wanted.size:
            raise RequestError(
                f"{name}: this {type(module).__name__} has {attribute}={wanted.size}, but {source!r} puts out "
                f"{found.size}; make both the same"
            )
    return _made(module, given[0][1] if given else UNKNOWN)


def _made(module: Any, found: Width) -> Width:
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return Width(module.out_features, -1)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Width(module.embedding_dim, -1)
    if isinstance(module, conv._ConvNd):
        return Width(module.out_channels, 1)
    if isinstance(module, (*_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
        wanted = next((w for _, w in expected(module)), found)
        dim = None if isinstance(module, nn.BatchNorm1d) else wanted.dim  # which also stands behind linear layers
        return found if found.size is not None else Width(wanted.size, found.dim or dim)
    if isinstance(module, (*_SAME, *_POINTWISE)):
        return found
    if isinstance(module, (*_SPATIAL, nn.Upsample)) and not getattr(module, "return_indices", False):
        return Width(found.size, 1) if found.dim in (None, 1) else UNKNOWN
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return Width(None, -1)
    return UNKNOWN


def is_pointwise(function: Callable[..., Any]) -> bool:
    """Whether torch says that a function of its own works on each element alone."""
    name = getattr(function, "__name__", "")
    home = getattr(function, "__module__", None) or "torch"
    packet = getattr(torch.ops.aten, name, None) if home.split(".")[0] in ("torch", "_operator") and name else None
    if packet is None:
        return False
    return all(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()[:1])


def elementwise(name: str, given: Sequence[Named]) -> Width:
    """What an operation on elements puts out; a width of 1 is broadcast. Raises RequestError for unequal widths."""
    dims = {w.dim for _, w in given if w.dim is not None}
    if len(dims) > 1:
        return UNKNOWN
    wide = [(source, w.size) for source, w in given if w.size not in (None, 1)]
    for source, size in wide[1:]:
        if size != wide[0][1]:
            raise RequestError(
                f"{name}: {wide[0][0]!r} puts out {wide[0][1]} and {source!r} {size}; an operation on elements needs "
                "equal widths, so bring both to the same, or concat them"
            )
    known = all(w.size is not None for _, w in given) or bool(wide)
    return Width(wide[0][1] if wide else 1 if known and given else None, dims.pop() if dims else None)


def feature_dim(name: str, given: Sequence[Named]) -> int:
    """The dim that holds the features of all of these: 1, or the last one where linear layers make them."""
    dims = {w.dim for _, w in given if w.dim is not None}
    if len(dims) > 1:
        told = ", ".join(f"{source!r} in dim {w.dim}" for source, w in given if w.dim is not None)
        raise RequestError(f"{name}: the features lie in different dims, {told}; bring them into one, or give dim=")
    return dims.pop() if dims else 1


def joined(name: str, given: Sequence[Named], dim: int) -> Width:
    """What a concatenation along a dim puts out."""
    if all(w.dim in (None, dim) for _, w in given):
        sizes = [w.size for _, w in given]
        return Width(None if None in sizes else sum(s for s in sizes if s is not None), dim)
    own = {w.dim for _, w in given}
    if own == {1} and dim in (0, 2, 3, 4):  # across the batch or over space: features stay
        found = {w.size for _, w in given}
        if len(found - {None}) > 1:
            told = ", ".join(f"{source!r} puts out {w.size}" for source, w in given)
            raise RequestError(f"{name}: along dim {dim} the channels must be equally many, but {told}")
        return Width(None if None in found else found.pop(), 1)
    return UNKNOWN
