"""Rows over integers: each row of a compact model times its common denominator, over its greatest common divisor."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, lcm

import numpy as np

from .exact import Number, RankOne, common_divisor, denominator, integers, max_abs, outer
from .model import Row

Key = tuple[tuple[int, ...], "int | None"]  # scope and switch


@dataclass(frozen=True, eq=False)
class Product:
    """``first[i] * second[j]`` over a pair of variables, both integer."""

    scope: tuple[int, int]
    when: int | None
    first: np.ndarray
    second: np.ndarray

    @property
    def peak(self) -> int:
        """The largest magnitude."""
        return max_abs(self.first) * max_abs(self.second)


@dataclass(frozen=True, eq=False)
class IntegerRow:
    """``row == scale * (tables + products) + constant``, with limits on the integer part."""

    name: str
    tables: dict[Key, np.ndarray]
    products: tuple[Product, ...]
    scale: Fraction
    constant: Number
    lower: int | None
    upper: int | None

    @property
    def peak(self) -> int:
        """No partial sum exceeds this magnitude."""
        return sum(max_abs(table) for table in self.tables.values()) + sum(product.peak for product in self.products)

    def low(self) -> int:
        """A bound from below on the integer part."""
        return sum(
            int(table.min()) if key[1] is None else min(0, int(table.min())) for key, table in self.tables.items()
        ) - sum(product.peak for product in self.products)

    def high(self) -> int:
        """A bound from above on the integer part."""
        return sum(
            int(table.max()) if key[1] is None else max(0, int(table.max())) for key, table in self.tables.items()
        ) + sum(product.peak for product in self.products)

    def outside(self, value: Number) -> Number:
        """The row's value where the integer part is ``value``."""
        return self.scale * value + self.constant

    def totals(self, codes: np.ndarray) -> np.ndarray:
        """The tables' sum for each column of level indices; there are no products."""
        wide = max(self.peak, abs(self.upper or 0), abs(self.lower or 0)) >= 1 << 62
        found = np.zeros(codes.shape[1], dtype=object if wide else np.int64)
        for (scope, when), table in self.tables.items():
            part = table[tuple(codes[v] for v in scope)]
            part = part.astype(object) if wide else part
            found = found + (part if when is None else np.where(codes[when] == 0, 0, part))
        return found

    def kept(self, codes: np.ndarray) -> np.ndarray:
        """Which columns of level indices keep the limits."""
        amounts, found = self.totals(codes), np.ones(codes.shape[1], dtype=bool)
        if self.upper is not None:
            found &= (amounts <= self.upper).astype(bool)
        if self.lower is not None:
            found &= (amounts >= self.lower).astype(bool)
        return found


def add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two integer tables, without overflow."""
    if max_abs(one) + max_abs(other) < 2**62 and one.dtype != object and other.dtype != object:
        return one + other
    return one.astype(object) + other.astype(object)


def integral(row: Row, product_cells: int = 0) -> IntegerRow:
    """Scale a row to integers, exactly. Products over at most ``product_cells`` cells become tables."""
    scale = lcm(1, *(_denominator(term.table) for term in row.terms))
    tables: dict[Key, np.ndarray] = {}
    products = []
    for term in row.terms:
        table: np.ndarray
        if isinstance(term.table, RankOne):
            first_scale, second_scale = denominator(term.table.first), denominator(term.table.second)
            first = integers(term.table.first, first_scale * (scale // (first_scale * second_scale)))
            second = integers(term.table.second, second_scale)
            if len(first) * len(second) > product_cells:
                products.append(Product((term.scope[0], term.scope[1]), term.when, first, second))
                continue
            table = outer(first, second)
        else:
            table = integers(term.table, scale)
        scope = term.scope
        if len(scope) == 2 and scope[0] > scope[1]:
            scope, table = scope[::-1], table.T
        key = (scope, term.when)
        tables[key] = add(tables[key], table) if key in tables else table
    return _over_divisor(row, tables, products, scale)


def _denominator(table: np.ndarray | RankOne) -> int:
    if isinstance(table, RankOne):
        return denominator(table.first) * denominator(table.second)
    return denominator(table)


def _over_divisor(row: Row, tables: dict[Key, np.ndarray], products: list[Product], scale: int) -> IntegerRow:
    firsts = [common_divisor([product.first]) for product in products]
    seconds = [common_divisor([product.second]) for product in products]
    numbers = [np.array([one * two], dtype=object) for one, two in zip(firsts, seconds, strict=True)]
    divisor = common_divisor([*tables.values(), *numbers]) or 1
    if divisor > 1:
        wide = divisor >= 1 << 62  # 64 bits do not hold it, and all tables are 0
        tables = {key: (table.astype(object) if wide else table) // divisor for key, table in tables.items()}
        products = [
            Product(
                p.scope, p.when, p.first.astype(object) // one, p.second.astype(object) // two * (one * two // divisor)
            )
            if one * two
            else p
            for p, one, two in zip(products, firsts, seconds, strict=True)
        ]
    unit = Fraction(divisor, scale)
    upper = None if row.upper is None else floor((Fraction(row.upper) - row.constant) / unit)
    lower = None if row.lower is None else ceil((Fraction(row.lower) - row.constant) / unit)
    return IntegerRow(row.name, tables, tuple(products), unit, row.constant, lower, upper)
