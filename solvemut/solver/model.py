"""The compiled program: choices, an objective to maximise, rows to keep within limits. All numbers exact.

A *choice* is a tuple with one level index per variable. A *row* is a sum of terms; a term is a table over one or two
variables, counted only where its switch (if it has one) stands at index 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from .exact import Number, RankOne, Table, entry, simplify
from .structure import Parts, parts_of

Choice = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Term:
    """A table over ``scope`` (one or two variables), counted where ``when`` (None: always) is on."""

    scope: tuple[int, ...]
    table: Table
    when: int | None = None

    @property
    def variables(self) -> tuple[int, ...]:
        """The scope and the switch."""
        return self.scope if self.when is None else (*self.scope, self.when)

    @cached_property
    def structure(self) -> Parts | None:
        """What a table over a pair is made of, if that is anything simpler; found once, whoever asks."""
        return None if isinstance(self.table, RankOne) or len(self.scope) < 2 else parts_of(self.table)

    def at(self, choice: Sequence[int]) -> Number:
        """The term's exact contribution."""
        if self.when is not None and choice[self.when] == 0:
            return 0
        return entry(self.table, *(choice[v] for v in self.scope))

    def negated(self) -> Term:
        """The term with the opposite sign."""
        if isinstance(self.table, RankOne):
            return replace(self, table=RankOne(-self.table.first, self.table.second))
        return replace(self, table=-self.table)


@dataclass(frozen=True, eq=False)
class Row:
    """A named sum of terms with limits (None: none). As an objective, its limits are ignored."""

    name: str
    terms: tuple[Term, ...]
    constant: Number = 0
    lower: Number | None = None
    upper: Number | None = None

    def at(self, choice: Sequence[int]) -> Number:
        """The row's exact value at a choice.

        >>> Row("r", (Term((0,), np.array([1, 5])),), constant=2).at((1,))
        7
        """
        whole, rest = 0, Fraction(0)
        for term in self.terms:
            value = term.at(choice)
            if isinstance(value, int):
                whole += value
            else:
                rest += value
        return simplify(rest + whole + self.constant)

    def holds(self, choice: Sequence[int]) -> bool:
        """Whether the limits are kept, exactly."""
        value = self.at(choice)
        return (self.lower is None or value >= self.lower) and (self.upper is None or value <= self.upper)

    def negated(self) -> Row:
        """The row with the opposite sign (limits swapped)."""
        lower = None if self.upper is None else -self.upper
        upper = None if self.lower is None else -self.lower
        terms = tuple(term.negated() for term in self.terms)
        return replace(self, terms=terms, constant=-self.constant, lower=lower, upper=upper)


@dataclass(frozen=True, eq=False)
class Model:
    """Variables with their allowed level indices, an objective to maximise, and rows to keep."""

    domains: tuple[np.ndarray, ...]
    objective: Row
    rows: tuple[Row, ...] = ()

    def feasible(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps every row and domain, exactly."""
        inside = all(k in domain for k, domain in zip(choice, self.domains, strict=True))
        return inside and all(row.holds(choice) for row in self.rows)

    def restricted(self, domains: Sequence[np.ndarray]) -> Model:
        """The same model on fewer levels."""
        return replace(self, domains=tuple(domains))

    def with_rows(self, *rows: Row) -> Model:
        """The same model with more rows."""
        return replace(self, rows=(*self.rows, *rows))

    @property
    def combinations(self) -> int:
        """How many choices the domains allow."""
        product = 1
        for domain in self.domains:
            product *= len(domain)
        return product
