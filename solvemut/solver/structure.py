"""What a table over a pair is made of: numbers, vectors over one side, and a few products of two vectors.

``np.outer(a, b)`` is a product, ``a[:, None] + b`` two vectors, ``a * b + a + b`` both: engines need no table there.
Every table ``T`` is its first row and column plus a rest ``M`` that is zero there; a rest of rank ``r`` is
``C G^-1 R`` for the columns ``C``, the rows ``R`` and the crossings ``G`` of ``r`` pivots. What is found is held
against the table in integers: it says the same, bit by bit. Floats that were rounded entry by entry are exactly nothing
of the kind; :func:`nearly` finds what they are but for a few units in the last place, and how far off that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np

from .exact import RankOne, array, common_divisor, denominator, integers, max_abs

MOST_RANK = 3  # products that a table may be the sum of
LARGE = 1 << 12  # cells from which a sum of several products is better than the table
SAFE = 1 << 60  # ints below this can be added up in 64 bits
PRIMES = (2147483647, 2147483629, 2147483587, 2147483579, 2147483563, 2147483549, 2147483543, 2147483497)
ULPS = 16.0  # units in the last place of the largest entry that entries rounded one by one may be off


@dataclass(frozen=True, eq=False)
class Parts:
    """``first[i] + second[j] +`` the products; no vector, no table."""

    first: np.ndarray | None
    second: np.ndarray | None
    products: tuple[RankOne, ...]


def parts_of(table: np.ndarray) -> Parts | None:
    """What an exact table over a pair is made of; None where that is nothing simpler than the table.

    >>> parts_of(np.array([[2, 4], [3, 6]])).products
    (RankOne([2, 3], [1, 2]),)
    >>> found = parts_of(np.array([[2, 4], [3, 5]]))
    >>> found.first.tolist(), found.second.tolist(), found.products
    ([2, 3], [0, 2], ())
    """
    found = in_64_bits(table)
    if found is None:
        return None
    whole, scale = found
    divisor = common_divisor([whole])
    if not divisor:
        return Parts(None, None, ())
    unit, whole = Fraction(divisor, scale), whole // divisor
    column, row = whole[:, 0], whole[0] - whole[0, 0]
    rest = whole - column[:, None] - row
    product = _product(whole) if rest.any() else None
    if product is not None:
        return Parts(None, None, (_scaled(product, unit),))
    products = _products(rest)
    if products is None:
        return None
    return Parts(_vector(column, unit), _vector(row, unit), tuple(_scaled(found, unit) for found in products))


def in_64_bits(table: np.ndarray) -> tuple[np.ndarray, int] | None:
    """A table as integers over a common denominator, where 64 bits hold them."""
    if table.dtype == object or not table.size:
        return None
    if (
        table.dtype.kind == "f" and table.ndim == 2 and in_64_bits(table[0]) is None
    ):  # most tables of floats are told by their first row
        return None
    scale = denominator(table)
    if scale >= SAFE or float(np.abs(table).max()) * scale >= SAFE:
        return None
    return integers(table, scale), scale


Factors = tuple[Sequence[int | Fraction], Sequence[int | Fraction]]


def _vector(ints: np.ndarray, unit: Fraction) -> np.ndarray | None:
    return array([int(x) * unit for x in ints]) if ints.any() else None


def _scaled(factors: Factors, unit: Fraction) -> RankOne:
    first, second = factors
    return RankOne([x * unit for x in first], list(second))


def _product(whole: np.ndarray) -> Factors | None:
    """The two vectors of primitive integers that an integer table is the product of, if any: ``k[i] * line[j]``."""
    i, j = np.unravel_index(int(np.abs(whole).argmax()), whole.shape)
    line = whole[i] // common_divisor([whole[i]])
    times = whole[:, j] // line[j]
    if max_abs(times) * max_abs(line) >= 4 * SAFE or not np.array_equal(np.multiply.outer(times, line), whole):
        return None
    return times.tolist(), line.tolist()


def _products(rest: np.ndarray) -> list[Factors] | None:
    """The products that a table is the sum of: none, one, or a few where the table is large."""
    if not rest.any():
        return []
    found = _product(rest)
    if found is not None:
        return [found]
    if rest.size < LARGE or min(rest.shape) <= MOST_RANK:
        return None
    pivots = _pivots(rest.astype(np.float64))
    return None if pivots is None else _skeleton(rest, *pivots)


def _pivots(rest: np.ndarray) -> tuple[list[int], list[int]] | None:
    """Rows and columns that span the table, as far as floats can tell; None where they would be too many."""
    rows: list[int] = []
    columns: list[int] = []
    small = 1e-9 * np.abs(rest).max()
    for _ in range(MOST_RANK + 1):
        i, j = np.unravel_index(int(np.abs(rest).argmax()), rest.shape)
        if abs(rest[i, j]) <= small:
            return rows, columns
        rows.append(int(i))
        columns.append(int(j))
        rest = rest - np.multiply.outer(rest[:, j] / rest[i, j], rest[i])
    return None


def _skeleton(rest: np.ndarray, rows: list[int], columns: list[int]) -> list[Factors] | None:
    """``C G^-1 R``, if that is the table: ``det(G) * T == C adj(G) R``, held against each other in integers."""
    crossing = [[int(rest[i, j]) for j in columns] for i in rows]
    determinant = _determinant(crossing)
    if not determinant:
        return None
    lines = [
        [sum(_cofactor(crossing, s, r) * int(rest[i, j]) for s, i in enumerate(rows)) for j in range(rest.shape[1])]
        for r in range(len(columns))
    ]
    if not _equal(rest, determinant, [rest[:, j] for j in columns], lines):
        return None
    found: list[Factors] = []
    for j, line in zip(columns, lines, strict=True):
        divisor = gcd(*line)
        found.append(([int(x) * Fraction(divisor, determinant) for x in rest[:, j]], [x // divisor for x in line]))
    return found


def _determinant(matrix: list[list[int]]) -> int:
    if not matrix:
        return 1
    return sum(matrix[0][j] * _cofactor(matrix, 0, j) for j in range(len(matrix)))


def _cofactor(matrix: list[list[int]], i: int, j: int) -> int:
    minor = [[x for b, x in enumerate(line) if b != j] for a, line in enumerate(matrix) if a != i]
    return _determinant(minor) * (-1) ** (i + j)


def _equal(table: np.ndarray, factor: int, columns: list[np.ndarray], lines: list[list[int]]) -> bool:
    """Whether ``factor * table == sum_r columns[r] x lines[r]``: equal modulo enough primes is equal."""
    most = max_abs(table) * abs(factor)
    most += sum(max_abs(column) * max(map(abs, line)) for column, line in zip(columns, lines, strict=True))
    modulus = 1
    for prime in PRIMES:
        left = (table % prime) * (factor % prime) % prime
        right = np.zeros_like(left)
        for column, line in zip(columns, lines, strict=True):
            reduced = np.array([x % prime for x in line], dtype=np.int64)
            right = (right + np.multiply.outer(column % prime, reduced) % prime) % prime
        if not np.array_equal(left, right):
            return False
        modulus *= prime
        if modulus > 2 * most:
            return True
    return False


# -- floats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Nearly:
    """``first[i] + second[j] + left[i] * right[j]`` in floats, off by no more than ``error`` anywhere."""

    first: np.ndarray
    second: np.ndarray
    left: np.ndarray
    right: np.ndarray
    error: float

    @property
    def peak(self) -> float:
        """No sum of its parts exceeds this."""
        sides = [float(np.abs(vector).max()) for vector in (self.first, self.second, self.left, self.right)]
        return sides[0] + sides[1] + sides[2] * sides[3]

    def parts(self, scope: tuple[int, ...]) -> list[tuple[tuple[int, ...], np.ndarray | tuple[np.ndarray, np.ndarray]]]:
        """Vectors over one side each, and the two factors over both; none of them where it is 0."""
        found: list[tuple[tuple[int, ...], np.ndarray | tuple[np.ndarray, np.ndarray]]] = []
        found += [
            (over, vector) for over, vector in ((scope[:1], self.first), (scope[1:], self.second)) if vector.any()
        ]
        return [*found, (scope, (self.left, self.right))] if self.left.any() else found


def nearly(table: np.ndarray) -> Nearly | None:
    """A float table as a product and two vectors, where only the rounding of its entries tells them apart.

    >>> made = np.multiply.outer(np.arange(1, 9), np.arange(1, 7)) * 0.1
    >>> found = nearly(made)
    >>> bool(np.abs(np.multiply.outer(found.left, found.right) - made).max() <= found.error < 1e-13)
    True
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = _nearly(table, np.zeros(table.shape[0]), np.zeros(table.shape[1]), table)
        if found is None:
            column, row = table[:, 0], table[0] - table[0, 0]
            found = _nearly(table, column, row, table - column[:, None] - row)
    return found


def _nearly(table: np.ndarray, column: np.ndarray, row: np.ndarray, rest: np.ndarray) -> Nearly | None:
    ulp = float(np.abs(table).max()) * 2.0**-52
    i, j = np.unravel_index(int(np.abs(rest).argmax()), rest.shape)
    if abs(rest[i, j]) <= ULPS * ulp:
        left, right = np.zeros(len(column)), np.zeros(len(row))
    else:
        left, right = rest[:, j].copy(), rest[i] / rest[i, j]
        if abs(left[0] * right[-1] - rest[0, -1]) + abs(left[-1] * right[0] - rest[-1, 0]) > ULPS * ulp:
            return None  # most tables are not: the corners tell
    off = float(np.abs(np.multiply.outer(left, right) - rest).max())
    return Nearly(column, row, left, right, off + 8 * ulp) if off <= ULPS * ulp else None
