"""Programs of few widths with very many levels, as growth makes them, are proven at once."""

from __future__ import annotations

import numpy as np
import pytest

from solvemut.program import Program

NOW = (1245, 1, 497)  # sizes to stay near to


def deviations(sizes: np.ndarray, now: int) -> np.ndarray:
    return -(-np.abs(sizes - now) * 400 // now)


def wide(n: int, m: int) -> Program:
    """Three widths, one the sum of the others: the most of what there was, at the least sum and maximum of changes."""
    program = Program()
    widths = [program.width(name, range(1, k)) for name, k in zip("abc", (n, 202, m), strict=True)]
    top = program.width("largest", range(80001))
    program.value(-4 * np.arange(80001), top)
    for width, sign, now in zip(widths, (1, 1, -1), NOW, strict=True):
        sizes = np.array(width.levels)
        program.cost("sum", sign * sizes, width)
        program.value(5 * np.minimum(sizes, now) - deviations(sizes, now) // 2, width)
        program.cost(f"{width.name} changes", deviations(sizes, now), width)
        program.cost(f"{width.name} changes", -np.arange(80001), top)
        program.budget(f"{width.name} changes", 0)
    program.budget("sum", 0, lower=0)
    return program


@pytest.mark.parametrize("n, m", [(600, 500), (2752, 2004)])
def test_wide_sums_are_proven(n, m):
    solution = wide(n, m).solve(time_limit=60, gap=0.0)
    assert solution.status == "optimal" and solution.seconds < 30
    a, b = np.meshgrid(np.arange(1, n), np.arange(1, 202), indexing="ij")
    sizes = (a, b, a + b)
    moved = [deviations(x, now) for x, now in zip(sizes, NOW, strict=True)]
    worth = sum(5 * np.minimum(x, now) - d // 2 for x, d, now in zip(sizes, moved, NOW, strict=True))
    best = np.where(a + b < m, worth - 4 * np.maximum.reduce(moved), -(10**9)).max()
    assert solution.objective == best


def test_more_cells_than_floats_can_count() -> None:
    p = Program()
    hub = p.width("hub", range(1, 2049))
    p.value(np.sqrt(np.arange(1, 2049)), hub)
    for k in range(100):
        w = p.width(f"w{k}", range(1, 2049))
        p.value(np.sqrt(np.arange(1, 2049)), w)
        p.product("params", 1, hub, w)
    p.budget("params", 50 * 2048**2)
    solution = p.solve(time_limit=30, gap=1e-2)
    assert solution.gap <= 1e-2
    solution.check()
