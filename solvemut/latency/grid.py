"""Grids of sizes: where a surface is measured, what lies between, and where it bends so that more points are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BETWEEN = ("line", "step")
FIRST = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of the size at which an axis is measured first


def first_sizes(most: int, step: int, multiple: int) -> tuple[int, ...]:
    """The sizes at which an axis is measured first: multiples of its step, and of `multiple` where it is larger.

    >>> first_sizes(512, 1, 8), first_sizes(12, 1, 8), first_sizes(64, 16, 8), first_sizes(100, 1, 8)
    ((64, 128, 256, 384, 512), (2, 3, 6, 9, 12), (16, 32, 48, 64), (16, 24, 48, 72, 100))
    """
    found = {snapped(share * most, most, step, multiple) for share in FIRST}
    return tuple(sorted(found))


def snapped(size: float, most: int, step: int, multiple: int) -> int:
    """The nearest size that an axis can have."""
    unit = step if most < 4 * multiple else int(np.lcm(step, multiple))
    if size >= most or unit >= most:
        return most if unit < most or size > most / 2 else max(step, round(size / step) * step)
    return min(most, max(unit, int(size / unit + 0.5) * unit))


def halved(low: int, high: int, most: int, step: int, multiple: int) -> int | None:
    """A size between two, if there is one."""
    found = snapped((low + high) / 2, most, step, multiple)
    return found if low < found < high else None


def surface(
    grid: Sequence[Sequence[int]], values: np.ndarray, sizes: Sequence[int], between: str = "line"
) -> np.ndarray:
    """The values at all sizes from 0 to `sizes`: in straight lines between grid points, or in steps up to the next one.

    Below the first grid point it is as there, so nothing falls below 0. Lines go up where the grid does, and down where
    it does.

    >>> surface([(2, 4)], np.array([10.0, 30.0]), (5,)).tolist()
    [10.0, 10.0, 10.0, 20.0, 30.0, 30.0]
    >>> surface([(2, 4)], np.array([10.0, 30.0]), (5,), "step").tolist()
    [10.0, 10.0, 10.0, 30.0, 30.0, 30.0]
    """
    out = np.asarray(values, dtype=float)
    for axis, (at, most) in enumerate(zip(grid, sizes, strict=True)):
        every = np.arange(most + 1)
        if between == "step":
            out = out.take(np.minimum(np.searchsorted(at, every), len(at) - 1), axis=axis)
            continue
        high = np.clip(np.searchsorted(at, every), 1, max(1, len(at) - 1))
        if len(at) == 1:
            out = out.take(np.zeros(most + 1, dtype=int), axis=axis)
            continue
        left, right = np.asarray(at)[high - 1], np.asarray(at)[high]
        share = np.clip((every - left) / (right - left), 0.0, 1.0)
        shape = [-1 if k == axis else 1 for k in range(out.ndim)]
        share = share.reshape(shape)
        out = out.take(high - 1, axis=axis) * (1 - share) + out.take(high, axis=axis) * share
    return out


def bends(grid: Sequence[Sequence[int]], values: np.ndarray) -> list[tuple[float, int, int]]:
    """(by how much, axis, index): how far each inner grid line lies from the straight line of its neighbours."""
    found = []
    for axis, at in enumerate(grid):
        moved = np.moveaxis(np.asarray(values, dtype=float), axis, 0)
        for k in range(1, len(at) - 1):
            share = (at[k] - at[k - 1]) / (at[k + 1] - at[k - 1])
            line = moved[k - 1] * (1 - share) + moved[k + 1] * share
            found.append((float(np.abs(moved[k] - line).max()), axis, k))
    return found


def refined(
    grid: Sequence[Sequence[int]],
    values: np.ndarray,
    steps: Sequence[int],
    multiple: int,
    tolerance: float,
    points: int,
) -> tuple[tuple[int, ...], ...]:
    """The grid with a size put into the gaps beside each line that bends by more than `tolerance`, the worst first.

    It has at most so many points.

    >>> refined([(2, 4, 8)], np.array([0.0, 9.0, 10.0]), [1], 1, 1.0, 4)
    ((2, 3, 4, 8),)
    """
    new = [set(at) for at in grid]
    for by, axis, k in sorted(bends(grid, values), key=lambda b: -b[0]):
        at = grid[axis]
        for low, high in ((at[k - 1], at[k]), (at[k], at[k + 1])) if by > tolerance else ():
            found = halved(low, high, at[-1], steps[axis], multiple)
            more = [len(a) + (j == axis) for j, a in enumerate(new)]
            if found is not None and int(np.prod(more)) <= points:
                new[axis].add(found)
    return tuple(tuple(sorted(a)) for a in new)


def array_of(grid: Sequence[Sequence[int]], by_point: Mapping[tuple[int, ...], float]) -> np.ndarray:
    """Values by point as an array over the grid."""
    out = np.empty([len(a) for a in grid])
    for index in np.ndindex(out.shape):
        out[index] = by_point[tuple(a[i] for a, i in zip(grid, index, strict=True))]
    return out
