"""Tables over variables: axes put where others have them, and sums of tables too large to be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .clock import CutShort
from .model import Choice

ASK = 8_000_000  # cells between two looks at the clock
Part = tuple[Choice, np.ndarray]  # variables (sorted), a table over them


def spread(table: np.ndarray, scope: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """A table's axes moved to where the target scope has them, length 1 elsewhere.

    >>> spread(np.zeros((2, 3)), (5, 4), (4, 7, 5)).shape
    (3, 1, 2)
    """
    order = sorted(range(len(scope)), key=lambda axis: target.index(scope[axis]))
    sizes = iter(np.array(table.shape)[order]) if table.ndim else iter(())
    shape = [int(next(sizes)) if u in scope else 1 for u in target]
    return table.transpose(order).reshape(shape)


class Stream:
    """A sum of tables over ``scope`` that is never kept whole: slice after slice along one of its axes.

    Every part speaks of the last variable of the scope, the one to be eliminated.
    """

    def __init__(
        self, parts: Sequence[Part], scope: Sequence[int], sizes: Sequence[int], over: Callable[[], bool]
    ) -> None:
        self.parts, self.scope, self.sizes = list(parts), tuple(scope), [sizes[u] for u in scope]
        self.over = over
        self.axis = int(np.argmax(self.sizes[:-1]))
        self.cut = self.scope[self.axis]
        self.rest = tuple(u for u in self.scope if u != self.cut)
        self.shape = [size for axis, size in enumerate(self.sizes) if axis != self.axis]

    def slices(self) -> Iterator[np.ndarray]:
        """Each slice of the sum, in one buffer that the next slice overwrites."""
        base = np.zeros(self.shape)
        moving = []
        for scope, table in self.parts:
            if self.cut in scope:
                others = [u for u in scope if u != self.cut]
                moving.append((np.ascontiguousarray(np.moveaxis(table, scope.index(self.cut), 0)), others))
            else:
                base += spread(table, scope, self.rest)
        buffer, every = np.empty(self.shape), max(1, ASK // base.size)
        for k in range(self.sizes[self.axis]):
            if k % every == 0 and self.over():
                raise CutShort
            left = base
            for table, others in moving:
                left = np.add(left, spread(table[k], others, self.rest), out=buffer)
            yield left

    def maximum(self) -> np.ndarray:
        """The largest sum over the last variable."""
        found = np.empty([self.sizes[self.axis], *self.shape[:-1]])
        for k, piece in enumerate(self.slices()):
            piece.max(axis=-1, out=found[k, ...])
        return np.moveaxis(found, 0, self.axis)

    def rows(self, choices: np.ndarray) -> np.ndarray:
        """The sum for many choices of the other variables: [N, levels of the last]."""
        last = self.scope[-1]
        found = np.zeros((len(choices), self.sizes[-1]))
        for scope, table in self.parts:
            at = tuple(choices[:, u] for u in scope if u != last)
            found += np.moveaxis(table, scope.index(last), -1)[at]
        return found

    def beliefs(self, outside: np.ndarray, targets: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """For each target scope, the largest sum plus ``outside`` (over all but the last variable) of each cell."""
        sizes = dict(zip(self.scope, self.sizes, strict=True))
        found = [np.full([sizes[u] for u in target], -np.inf) for target in targets]
        views = [
            np.moveaxis(f, t.index(self.cut), 0) if self.cut in t else None for f, t in zip(found, targets, strict=True)
        ]
        buffer = np.empty(self.shape)
        for k, piece in enumerate(self.slices()):
            belief = np.add(piece, outside.take(k, axis=self.axis)[..., None], out=buffer)
            for target, whole, view in zip(targets, found, views, strict=True):
                left = [u for u in self.rest if u in target]
                best = belief.max(axis=tuple(axis for axis, u in enumerate(self.rest) if u not in target))
                best = spread(best, left, [u for u in target if u != self.cut])
                if view is None:
                    np.maximum(whole, best, out=whole)
                else:
                    view[k, ...] = best
        return found
