"""Unit labels of a tensor: which unit stands at each position of each dim.

A label is an int. Label 0 (`FIXED`) marks a position that always stays: a batch dim, a pixel, a token. Labels that a
reshape has split over several dims stay together in one array with an axis per dim: a *factor*. A dim that is in no
factor is fixed as a whole, and costs nothing to carry.

>>> x = Labels.of((2, 6, 4), {1: np.arange(1, 7)})
>>> x.permute((1, 0, 2)).dim(0).tolist()
[1, 2, 3, 4, 5, 6]
>>> x.take(1, np.array([0, 5])).dim(1).tolist()
[1, 6]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FIXED = 0


@dataclass(frozen=True)
class Factor:
    """Labels of one dim, or of several dims together: `labels` has one axis per entry of `dims` (ascending)."""

    dims: tuple[int, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class Labels:
    """The unit labels of one tensor of the given shape."""

    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()

    @staticmethod
    def of(shape: Sequence[int], dims: Mapping[int, np.ndarray | None]) -> Labels:
        """Labels from one array (or None: fixed) per dim."""
        factors = [Factor((d,), a) for d, a in sorted(dims.items()) if a is not None and a.any()]
        return Labels(tuple(shape), tuple(factors))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def factor(self, dim: int) -> Factor | None:
        """The factor that holds `dim`, or None if the dim is fixed."""
        return next((f for f in self.factors if dim in f.dims), None)

    def dim(self, dim: int) -> np.ndarray | None:
        """The labels of a dim that stands alone in its factor; None if it is fixed."""
        f = self.factor(dim % self.ndim)
        if f is None:
            return None
        assert len(f.dims) == 1, "collapse or separate a joint factor before asking for one of its dims"
        return f.labels

    def extent(self, dim: int) -> np.ndarray | int:
        """The labels of a dim that stands alone, or the size of a fixed one."""
        a = self.dim(dim)
        return self.shape[dim % self.ndim] if a is None else a

    def filled(self, dim: int) -> np.ndarray:
        """As `dim`, with zeros for a fixed dim."""
        a = self.dim(dim)
        return np.zeros(self.shape[dim % self.ndim], dtype=np.int64) if a is None else a

    def renamed(self, shape: Sequence[int], where: Mapping[int, int]) -> Labels:
        """The same factors on a tensor of another rank: dim d moves to where[d]; factors that lose a dim must not."""
        factors = []
        for f in self.factors:
            dims = [where[d] for d in f.dims]
            order = np.argsort(dims)
            factors.append(Factor(tuple(sorted(dims)), np.transpose(f.labels, order)))
        return Labels(tuple(shape), tuple(sorted(factors, key=lambda f: f.dims)))

    def permute(self, order: Sequence[int]) -> Labels:
        """torch.permute."""
        order = [d % self.ndim for d in order]
        return self.renamed([self.shape[d] for d in order], {d: i for i, d in enumerate(order)})

    def take(self, dim: int, index: np.ndarray | slice | int) -> Labels:
        """Keep some positions of a dim (an array or a slice), or one of them (an int: the dim goes)."""
        dim %= self.ndim
        n = np.arange(self.shape[dim])[index]
        shape = list(self.shape)
        drop = np.ndim(n) == 0
        shape[dim : dim + 1] = [] if drop else [len(n)]
        factors = []
        for f in self.factors:
            dims, labels = f.dims, f.labels
            if dim in dims:
                labels = np.take(labels, n, axis=dims.index(dim))
                dims = tuple(d for d in dims if d != dim) if drop else dims
            dims = tuple(d - (drop and d > dim) for d in dims)
            if dims and labels.any():
                factors.append(Factor(dims, labels))
        return Labels(tuple(shape), tuple(factors)).simplified()

    def insert(self, dim: int, size: int = 1) -> Labels:
        """A new fixed dim of the given size before `dim`."""
        shape = (*self.shape[:dim], size, *self.shape[dim:])
        return self.renamed(shape, {d: d + (d >= dim) for d in range(self.ndim)})

    def without(self, dims: Sequence[int]) -> Labels:
        """Declare dims fixed (they must be alone in their factors, or their factors go as a whole)."""
        gone = set(dims)
        return Labels(self.shape, tuple(f for f in self.factors if not gone & set(f.dims)))

    def replaced(self, dims: Sequence[int], new: Sequence[Factor]) -> Labels:
        """Exchange the factors that touch `dims` for new ones."""
        kept = self.without(dims).factors
        factors = [f for f in (*kept, *new) if f.labels.any()]
        return Labels(self.shape, tuple(sorted(factors, key=lambda f: f.dims)))

    def resized(self, dim: int, size: int) -> Labels:
        """Give a fixed dim another size (pooling, padding of pixels)."""
        shape = list(self.shape)
        shape[dim % self.ndim] = size
        return Labels(tuple(shape), self.factors)

    def simplified(self) -> Labels:
        """Drop from each factor the axes along which its labels do not change: those dims are fixed."""
        factors: list[Factor] = []
        for f in self.factors:
            factors.extend(simplify(f))
        return Labels(self.shape, tuple(sorted(factors, key=lambda f: f.dims)))


def simplify(f: Factor) -> list[Factor]:
    """A factor without the axes along which it is constant; nothing if it is fixed throughout."""
    dims, labels = f.dims, f.labels
    if not labels.any():
        return []
    for axis in reversed(range(len(dims))):
        if len(dims) > 1 and (labels == labels.take([0], axis=axis)).all():
            labels = labels.take(0, axis=axis)
            dims = dims[:axis] + dims[axis + 1 :]
    return [Factor(dims, labels)]


def view_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The finest matching of the dims of two shapes of equal size: (dims of old, dims of new), in order.

    >>> view_groups((2, 12, 7), (2, 3, 4, 7))
    [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    >>> view_groups((2, 3, 1, 5), (6, 5))
    [((0, 1), (0,)), ((2,), ()), ((3,), (1,))]
    """
    groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b, i0, j0 = 1, 1, i, j
        while i < len(old) and (i == i0 or a < b or a == 0):
            a, i = a * old[i], i + 1
            while j < len(new) and b < a:
                b, j = b * new[j], j + 1
            if a == b and i > i0 and a != 1:
                break
        while j < len(new) and (b < a or (i == len(old) and new[j] == 1)):
            b, j = b * new[j], j + 1
        groups.append((tuple(range(i0, i)), tuple(range(j0, j))))
    return groups


def rectangle(mask: np.ndarray, ragged: int | None = None) -> tuple[tuple[int, ...], int] | None:
    """The shape that is left of an array when only the masked entries stay, and the axis along which kept positions
    differ from row to row (`ragged`, if it is known); None if what stays is no rectangle.

    >>> rectangle(np.array([[1, 0, 1], [0, 1, 1]], bool))
    ((2, 2), 1)
    >>> rectangle(np.array([[1, 0, 1], [0, 0, 1]], bool)) is None
    True
    """
    axes = range(mask.ndim) if ragged is None else [ragged]
    for axis in reversed(axes):
        counts = mask.sum(axis=axis)
        rows = counts > 0
        if rows.ndim and not _is_outer(rows):
            continue
        kept = np.unique(counts[rows]) if rows.ndim else np.array([counts])
        if len(kept) > 1:
            continue
        shape = [int(rows.any(axis=tuple(o for o in range(rows.ndim) if o != k)).sum()) for k in range(rows.ndim)]
        shape.insert(axis, int(kept[0]) if len(kept) else 0)
        return tuple(shape), axis
    return None


def stretched(times: np.ndarray) -> tuple[int, ...] | None:
    """The shape of an array whose entries are there `times` often: 0 gone, 1 kept, more: kept with new ones after it.

    None if that is no rectangle, or could be one in several ways.

    >>> stretched(np.array([1, 0, 3])), stretched(np.array([[1, 1], [2, 2]])), stretched(np.array([[1, 2], [0, 3]]))
    ((4,), (3, 2), (2, 3))
    """
    if times.ndim == 1:
        return (int(times.sum()),)
    varying = [a for a in range(times.ndim) if (times != times.take([0], axis=a)).any()]
    if len(varying) == 1:
        line = np.moveaxis(times, varying[0], -1).reshape(-1, times.shape[varying[0]])[0]
        return tuple(int(line.sum()) if a == varying[0] else n for a, n in enumerate(times.shape))
    for axis in reversed(range(times.ndim)):
        sums = times.sum(axis=axis)
        rows = sums > 0
        if len(found := np.unique(sums[rows])) == 1 and _is_outer(rows) and varying:
            shape = [int(rows.any(axis=tuple(o for o in range(rows.ndim) if o != k)).sum()) for k in range(rows.ndim)]
            shape.insert(axis, int(found[0]))
            return tuple(shape)
    return None


def _is_outer(mask: np.ndarray) -> bool:
    """Whether a mask is the outer product of one mask per axis."""
    out: np.ndarray = np.ones(mask.shape, dtype=bool)
    for k in range(mask.ndim):
        side = mask.any(axis=tuple(o for o in range(mask.ndim) if o != k))
        out &= side.reshape([-1 if o == k else 1 for o in range(mask.ndim)])
    return bool((out == mask).all())


def compressed(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The masked entries of an array as the rectangle that `rectangle` says they form."""
    found = rectangle(mask)
    if found is None:
        raise ValueError(f"{int(mask.sum())} kept positions of an array of shape {mask.shape} form no rectangle")
    shape, axis = found
    moved = np.moveaxis(labels, axis, -1)[np.moveaxis(mask, axis, -1)]
    shape_moved = [s for k, s in enumerate(shape) if k != axis] + [shape[axis]]
    return np.moveaxis(moved.reshape(shape_moved), -1, axis)


def prod(sizes: Sequence[int]) -> int:
    """math.prod, for shapes."""
    return math.prod(sizes)
