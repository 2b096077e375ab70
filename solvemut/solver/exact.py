"""Exact numbers: tables of ints, floats or fractions, and what they are once scaled to integers.

A float stands for the rational number that its bits spell, so every table is exact; rounding happens only where an
engine needs it, and each engine says in which direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import gcd, lcm
from numbers import Integral, Rational
from typing import Any

import numpy as np

from ..errors import ProgramError

Number = int | Fraction
_EXACT_FLOAT = 2**53  # ints up to here survive a trip through float64


def number(value: Any) -> Number:
    """One number, exact.

    >>> number(0.5), number(3.0), number(7)
    (Fraction(1, 2), 3, 7)
    """
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, (Rational, Decimal)):
        return simplify(Fraction(value))
    try:
        as_float = float(value)
    except (TypeError, ValueError) as error:
        raise ProgramError(f"{value!r} is not a number") from error
    if not np.isfinite(as_float):
        raise ProgramError(f"{value!r} is not finite; leave levels out (or forbid them by a constraint) instead")
    return simplify(Fraction(as_float))


def simplify(value: Number) -> Number:
    """An int where the fraction is one."""
    return int(value) if value.denominator == 1 else value


def array(values: Any) -> np.ndarray:
    """A table as an array whose entries are exact: int64, float64, or object (int, Fraction).

    >>> array([[1, 2], [3, 4]]).dtype, array([0.5, 2]).dtype, array([10**30, 0.5])[1]
    (dtype('int64'), dtype('float64'), Fraction(1, 2))
    """
    if isinstance(values, RankOne):
        raise ProgramError("a RankOne table stands for a pair of widths; it is no array")
    if not isinstance(values, np.ndarray):
        if hasattr(values, "__array__") and hasattr(values, "dtype"):
            values = np.asarray(values)
        elif isinstance(values, Iterable) and not isinstance(values, (Sequence, str)):
            values = list(values)
    try:
        found = np.asarray(values)
        if found.dtype.kind == "f" and not isinstance(values, np.ndarray):
            objects = np.asarray(values, dtype=object)
            if not _floats_hold(found, objects):
                found = objects
    except (ValueError, OverflowError) as error:
        raise ProgramError(f"a table must be a rectangle of numbers: {error}") from error
    return _normal(found)


def _floats_hold(floats: np.ndarray, objects: np.ndarray) -> bool:
    """Whether turning the entries to float64 lost nothing."""
    if floats.size and np.abs(floats).max() < _EXACT_FLOAT:
        return all(isinstance(entry, (float, int, np.floating, np.integer)) for entry in objects.flat)
    return all(isinstance(entry, (float, np.floating)) for entry in objects.flat)


def _normal(found: np.ndarray) -> np.ndarray:
    kind = found.dtype.kind
    if kind in "bi" or (kind == "u" and (not found.size or int(found.max()) < 2**63)):
        return np.array(found, dtype=np.int64)
    if kind == "f" and found.dtype.itemsize <= 8:
        floats = np.array(found, dtype=np.float64)
        if not np.isfinite(floats).all():
            raise ProgramError("a table holds NaN or an infinity; leave levels out (or forbid them) instead")
        return floats
    exact = np.empty(found.shape, dtype=object)
    for index, entry in np.ndenumerate(found):
        exact[index] = number(entry)
    if all(isinstance(entry, int) and abs(entry) < 2**62 for entry in exact.flat):
        return exact.astype(np.int64)
    if all(isinstance(entry, int) or _is_float(entry) for entry in exact.flat) and not any(
        isinstance(entry, int) and abs(entry) > _EXACT_FLOAT for entry in exact.flat
    ):
        return np.array([float(entry) for entry in exact.flat], dtype=np.float64).reshape(exact.shape)
    return exact


def _is_float(value: Number) -> bool:
    """Whether a float spells exactly this number."""
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


class RankOne:
    """The table ``first[i] * second[j]``, kept as its two factors.

    >>> RankOne([1, 2], [10, 20, 30]).entry(1, 2)
    60
    """

    __slots__ = ("first", "second")

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = array(first), array(second)
        if self.first.ndim != 1 or self.second.ndim != 1:
            raise ProgramError("RankOne takes two vectors")

    @property
    def shape(self) -> tuple[int, int]:
        """The table's shape."""
        return len(self.first), len(self.second)

    def entry(self, i: int, j: int) -> Number:
        """The exact product at (i, j)."""
        return simplify(entry(self.first, i) * entry(self.second, j))

    def transpose(self) -> RankOne:
        """The same table with its axes swapped."""
        return RankOne(self.second, self.first)

    def __repr__(self) -> str:
        return f"RankOne({self.first.tolist()!r}, {self.second.tolist()!r})"


Table = np.ndarray | RankOne


def entry(table: Table, *index: int) -> Number:
    """One exact entry of a table."""
    if isinstance(table, RankOne):
        return table.entry(*index)
    found = table[index]
    if isinstance(found, np.integer):
        return int(found)
    if isinstance(found, np.floating):
        return simplify(Fraction(float(found)))
    return found


def floats(table: np.ndarray) -> np.ndarray:
    """The nearest float64 of each entry; huge ones are clipped to the largest float."""
    if table.dtype != object:
        return table.astype(np.float64)
    return np.array([nearest(value) for value in table.flat], dtype=np.float64).reshape(table.shape)


def nearest(value: Number) -> float:
    """The nearest float; clipped where there is none."""
    try:
        return float(value)
    except OverflowError:
        return float(np.finfo(np.float64).max) * (1 if value > 0 else -1)


def denominator(table: np.ndarray) -> int:
    """The least common denominator of a table's entries.

    >>> denominator(array([0.5, 0.375])), denominator(array([3, 4]))
    (8, 1)
    """
    if table.dtype.kind == "i" or not table.size:
        return 1
    if table.dtype == object:
        return lcm(*{value.denominator for value in table.flat})
    return 1 << _fraction_bits(table)


def _fraction_bits(table: np.ndarray) -> int:
    """How many binary places the most finely divided entry has."""
    mantissa, exponent = np.frexp(table)
    bits = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = bits & -bits
    places = 53 - exponent - np.frexp(lowest.astype(np.float64))[1] + 1
    return int(max(0, places[bits != 0].max(initial=0)))


def integers(table: np.ndarray, scale: int) -> np.ndarray:
    """``table * scale`` as ints (int64 where they fit, Python ints otherwise); the scale must clear all fractions.

    >>> integers(array([0.5, 0.375]), 8)
    array([4, 3])
    """
    if table.dtype.kind == "i":
        largest = max(abs(int(table.max(initial=0))), abs(int(table.min(initial=0))))
        if scale < 2**62 and largest * scale < 2**62:
            return table * scale
        return table.astype(object) * scale
    if table.dtype.kind == "f" and scale & (scale - 1) == 0 and scale.bit_length() < 1000:
        with np.errstate(over="ignore"):
            scaled = np.ldexp(table, scale.bit_length() - 1)
        if np.abs(scaled).max(initial=0.0) < 2.0**62:
            return scaled.astype(np.int64)
    exact = np.empty(table.shape, dtype=object)
    for index, value in np.ndenumerate(table):
        exact[index] = int(number(value) * scale)
    return exact


def outer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The outer product of two integer vectors, without overflow."""
    largest = max_abs(first) * max_abs(second)
    if largest < 2**62 and first.dtype != object and second.dtype != object:
        return np.multiply.outer(first, second)
    return np.multiply.outer(first.astype(object), second.astype(object))


def max_abs(table: np.ndarray) -> int:
    """The largest magnitude in an integer table."""
    if not table.size:
        return 0
    if table.dtype == object:
        return max(abs(value) for value in table.flat)
    return max(abs(int(table.max())), abs(int(table.min())))


def common_divisor(tables: Iterable[np.ndarray]) -> int:
    """The greatest common divisor of all entries (0 if all are 0)."""
    divisor = 0
    for table in tables:
        if table.size:
            if table.dtype == object:
                divisor = gcd(divisor, *(int(value) for value in table.flat))
            else:
                divisor = gcd(divisor, int(np.gcd.reduce(table, axis=None)))
        if divisor == 1:
            return 1
    return divisor


def primitive(vector: np.ndarray, shift: bool = False) -> tuple[tuple[int, ...], Fraction]:
    """A vector (with ``shift`` less its first entry) as integers without a common divisor, and the factor to it.

    The first integer that is not 0 is positive; where all are 0, so is the factor.

    >>> primitive(array([0.5, -1.0])), primitive(array([3, 5]), shift=True)
    (((1, -2), Fraction(1, 2)), ((0, 1), Fraction(2, 1)))
    """
    scale = denominator(vector)
    whole = integers(vector, scale)
    if shift:
        whole = whole - whole[0] if max_abs(whole) < 2**62 else whole.astype(object) - int(whole[0])
    divisor = common_divisor([whole])
    if not divisor:
        return tuple(0 for _ in whole), Fraction(0)
    ints = [x // divisor for x in whole.tolist()]
    if next(x for x in ints if x) < 0:
        ints, divisor = [-x for x in ints], -divisor
    return tuple(ints), Fraction(divisor, scale)
