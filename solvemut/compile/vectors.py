"""Exact vectors: int64 where a bound shows that nothing overflows, Python's own numbers where it could.

>>> plus(np.array([1, 2]), np.array([3, 4])).dtype.name, times(np.array([1, 2]), 2**62).tolist()
('int64', [4611686018427387904, 9223372036854775808])
>>> times(np.array([1, 2]), Fraction(1, 2)).tolist()
[Fraction(1, 2), Fraction(1, 1)]
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

FITS = 2**62  # what is smaller fits int64, and so does the sum of two
Number = int | Fraction


def whole(x: Number) -> Number:
    """An int, where a fraction is one."""
    return int(x) if x.denominator == 1 else x


def plus(a: Any, b: Any) -> Any:
    """a + b, of vectors or numbers."""
    fits = largest(a) + largest(b) < FITS
    return a + b if fits else _wide(a) + _wide(b)


def times(a: Any, b: Any) -> Any:
    """a * b entry by entry, of vectors or numbers."""
    fits = largest(a) * largest(b) < FITS
    return a * b if fits else _wide(a) * _wide(b)


def largest(a: Any) -> Number:
    """The largest magnitude; what is no vector of int64 has none that counts, since Python's numbers never overflow."""
    if not isinstance(a, np.ndarray):
        return abs(a)
    if a.dtype == object:
        return 0
    return max(int(a.max()), -int(a.min())) if a.size else 0


def within(v: np.ndarray, low: Number, high: Number) -> np.ndarray:
    """Bool per entry: low <= entry <= high."""
    return np.asarray((v >= ceil(low)) & (v <= floor(high)) if v.dtype != object else (v >= low) & (v <= high), bool)


def divisible(v: np.ndarray, k: int) -> np.ndarray:
    """Bool per entry: above 0, and a multiple of k."""
    v = v if k < FITS else v.astype(object)
    return np.array((v > 0) & (v % k == 0), dtype=bool)


def span(constant: Number, vectors: Mapping[Any, np.ndarray]) -> tuple[Number, Number]:
    """The least and the most of a constant and one entry of every vector."""
    low, high = constant, constant
    for v in vectors.values():
        low, high = low + min(v.tolist()), high + max(v.tolist())
    return low, high


def _wide(a: Any) -> Any:
    return a.astype(object) if isinstance(a, np.ndarray) else a
