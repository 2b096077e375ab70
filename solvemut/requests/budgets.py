"""Costs as sums of products, tables and switches over sizes; budgets on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..arguments import number, shown
from ..errors import RequestError
from ..flow import Extent, prod


@dataclass(frozen=True)
class Switch:
    """Something that can be on or off, such as a block that may be left out; now it is on, unless said otherwise."""

    name: str
    now: bool = True


@dataclass(frozen=True, eq=False)
class Monomial:
    """coefficient * product of extents, of one vertex; counted where the switch `when` is on."""

    coefficient: int
    extents: tuple[Extent, ...]
    vertex: str = ""
    when: Switch | None = None

    @property
    def now(self) -> int:
        return self.at([e.now for e in self.extents])

    def at(self, sizes: Sequence[int]) -> int:
        """The value at other sizes."""
        return self.coefficient * prod(sizes)


@dataclass(frozen=True, eq=False)
class Table:
    """An entry of `values` by one size or two: a latency that was measured, say; counted where `when` is on."""

    values: np.ndarray  # ints, [size of the first extent, size of the second], from 0 to all
    extents: tuple[Extent, ...]
    vertex: str = ""
    when: Switch | None = None

    def __post_init__(self) -> None:
        wanted = tuple(e.now + 1 for e in self.extents)
        if np.shape(self.values) != wanted or len(wanted) not in (1, 2):
            raise RequestError(f"a table over {len(wanted)} sizes has shape {wanted}, not {np.shape(self.values)}")

    @property
    def now(self) -> int:
        return self.at([e.now for e in self.extents])

    def at(self, sizes: Sequence[int]) -> int:
        """The value at other sizes."""
        return int(self.values[tuple(sizes)])


@dataclass(frozen=True, eq=False)
class Cost:
    """A resource as a sum of products of sizes and of tables over sizes. `.now` is its value on the captured model."""

    __array_ufunc__ = None

    name: str
    monomials: tuple[Monomial | Table, ...]
    owner: Any = None  # the coupling whose cost this is

    @property
    def now(self) -> int:
        return sum(m.now for m in self.monomials if m.when is None or m.when.now)

    def count(self, coupling: Any, kept: np.ndarray, on: Mapping[str, bool] | None = None) -> int:
        """The value when only `kept` (bool per unit class) stays, with switches as `on` says, or else as they are."""
        states = on or {}
        terms = [m for m in self.monomials if m.when is None or states.get(m.when.name, m.when.now)]
        return sum(m.at([coupling.count(e, kept) for e in m.extents]) for m in terms)

    def check(self, labels: np.ndarray) -> None:
        """Raises RequestError unless every monomial counts some of these labels."""
        for m in self.monomials:
            if not isinstance(m, (Monomial, Table)) or not all(isinstance(e, Extent) for e in m.extents):
                raise RequestError(f"the cost {self.name!r} holds {m!r}: give Monomials over Extents")
            for e in m.extents:
                ints = isinstance(e.labels, np.ndarray) and e.labels.dtype.kind in "iu"
                rows = not e.per_row or (ints and e.labels.ndim == 2)
                if not ints or not rows or ((e.labels < 0) | (e.labels >= len(labels))).any():
                    raise RequestError(f"the cost {self.name!r} counts labels that are not of this graph: {e.labels!r}")

    def __le__(self, limit: Any) -> Budget:
        return Budget(self, self._limit("<=", limit))

    def __ge__(self, limit: Any) -> Budget:
        return Budget(self, self._limit(">=", limit), ">=")

    def __lt__(self, limit: Any) -> Budget:
        raise RequestError(f"{self.name} < {shown(limit)}: a budget is given with <= or >=")

    def __gt__(self, limit: Any) -> Budget:
        raise RequestError(f"{self.name} > {shown(limit)}: a budget is given with <= or >=")

    def _limit(self, sense: str, limit: Any) -> Fraction:
        return Fraction(number(limit, f"{self.name} {sense} {shown(limit)}", "a budget is a finite number"))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Peak(Cost):
    """The largest of several sums, such as the memory in use over the moments of a forward."""

    monomials: tuple[Monomial | Table, ...] = ()
    owner: Any = None
    moments: tuple[Cost, ...] = ()

    @property
    def now(self) -> int:
        return max((m.now for m in self.moments), default=0)

    def count(self, coupling: Any, kept: np.ndarray, on: Mapping[str, bool] | None = None) -> int:
        return max((m.count(coupling, kept, on) for m in self.moments), default=0)

    def check(self, labels: np.ndarray) -> None:
        for m in self.moments:
            m.check(labels)

    def __ge__(self, limit: Any) -> Budget:
        raise RequestError(f"{self.name} >= {shown(limit)}: of a maximum only an upper limit can be asked for")


@dataclass(frozen=True, eq=False)
class Budget:
    """cost <= limit, or >= it."""

    cost: Cost
    limit: Fraction
    sense: str = "<="
    whole: Budget | None = None  # the budget on a maximum that this is the part of for one of its sums

    def sums(self, grows: bool) -> list[Budget]:
        """The budgets on sums that say the same: of a maximum one for each that could be broken.

        Unless something grows, sums within a limit now will be; all are there where the limit holds of all already.
        """
        if not isinstance(self.cost, Peak):
            return [self]
        every = grows or self.cost.now <= self.limit
        moments = [m for m in self.cost.moments if every or m.now > self.limit]
        return [Budget(m, self.limit, self.sense, self) for m in moments]

    def __bool__(self) -> bool:
        raise RequestError(f"'{self}' is a request, not a truth value")

    @property
    def told(self) -> int | float:
        """The limit as it is printed; a cost is whole, so beyond floats the whole part says it all."""
        return int(self.limit) if self.limit.denominator == 1 or abs(self.limit) > 2**1000 else float(self.limit)

    def __str__(self) -> str:
        return f"{self.cost.name} {self.sense} {self.told}"

    __repr__ = __str__


def budget_of(cost: Cost, limit: float) -> Budget:
    """A budget as `prune` takes it: a number in (0, 1] is a fraction of the present cost, a larger one is absolute."""
    what, give = f"{cost.name}={shown(limit)}", "a budget is a fraction in (0, 1], or an absolute number above 1"
    found = number(limit, what, give)
    if not found > 0:
        raise RequestError(f"{what}: {give}")
    return cost <= (Fraction(found) * cost.now if found <= 1 else found)
