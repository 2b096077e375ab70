"""Costs as sums of products, tables and switches over sizes; budgets on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..arguments import number, shown
from ..errors import RequestError
from ..flow import Extent, prod

ROUNDING = 1e-14  # of a limit that was computed with floats


@dataclass(frozen=True)
class Switch:
    """Something that can be on or off, such as a block that may be left out; now it is on, unless said otherwise."""

    name: str
    now: bool = True


@dataclass(frozen=True, eq=False)
class Monomial:
    """coefficient * product of extents, of one vertex; counted where the switch `when` is on.

    `of` names the node or the value of the trace that it counts, in costs that are sums over these; of a tensor that
    the forward does not read its name.
    """

    coefficient: int
    extents: tuple[Extent, ...]
    vertex: str = ""
    when: Switch | None = None
    of: str = ""

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
    of: str = ""

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
    """A resource as a sum of products of sizes and of tables over sizes. `.now` is its value on the captured model.

    It is counted in whole numbers. Users see and give it in its `unit`, of which one is `scale` of these: a latency is
    counted in nanoseconds and told in milliseconds.
    """

    __array_ufunc__ = None

    name: str
    monomials: tuple[Monomial | Table, ...]
    owner: Any = None  # the coupling whose cost this is
    scale: int = 1
    unit: str = ""
    again: Callable[..., Cost] | None = None  # of another graph, and sets of nodes whose terms are to stand apart

    @property
    def now(self) -> int | float:
        return self.told(self.counted)

    @property
    def counted(self) -> int:
        """What `now` is told of, in whole numbers."""
        return sum(m.now for m in self.monomials if m.when is None or m.when.now)

    def told(self, count: int) -> int | float:
        """A count in the unit that users see."""
        return count if self.scale == 1 else count / self.scale

    def count(self, coupling: Any, kept: np.ndarray, on: Mapping[str, bool] | None = None) -> int:
        """The whole number when only `kept` (bool per unit class) stays; switches as `on` says, else as they are."""
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
        found = Fraction(number(limit, f"{self.name} {sense} {shown(limit)}", "a budget is a finite number"))
        return found if self.scale == 1 else _snapped(found * self.scale)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Peak(Cost):
    """The largest of several sums, such as the memory in use over the moments of a forward."""

    monomials: tuple[Monomial | Table, ...] = ()
    moments: tuple[Cost, ...] = ()

    @property
    def counted(self) -> int:
        return max((m.counted for m in self.moments), default=0)

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
    whole: Budget | None = None  # the budget that was asked for, where this states it, or a part of it

    @property
    def asked(self) -> Budget:
        """The budget that was asked for."""
        return self if self.whole is None else self.whole

    def sums(self, grows: bool) -> list[Budget]:
        """The budgets on sums that say the same: of a maximum one for each that could be broken.

        Unless something grows, sums within a limit now will be; all are there where the limit holds of all already.
        """
        if not isinstance(self.cost, Peak):
            return [self]
        every = grows or self.cost.counted <= self.limit
        moments = [m for m in self.cost.moments if every or m.counted > self.limit]
        return [Budget(m, self.limit, self.sense, self) for m in moments]

    def __bool__(self) -> bool:
        raise RequestError(f"'{self}' is a request, not a truth value")

    @property
    def told(self) -> int | float:
        """The limit as it is printed; a cost is whole, so beyond floats the whole part says it all."""
        if self.cost.scale != 1:
            return float(self.limit / self.cost.scale)
        return int(self.limit) if self.limit.denominator == 1 or abs(self.limit) > 2**1000 else float(self.limit)

    def __str__(self) -> str:
        return f"{self.cost.name} {self.sense} {self.told}" + (f" {self.cost.unit}" if self.cost.unit else "")

    __repr__ = __str__


def timed(latency: Any, table: Any = None) -> tuple[Any, Any]:
    """The table and the limit of a latency as `prune` takes it: (table, limit), or a limit with the table beside it."""
    both = isinstance(latency, tuple) and len(latency) == 2
    found, limit = latency if both else (table, latency)
    if found is None or (both and table is not None and table is not found):
        raise RequestError(
            f"latency={shown(latency)}: give (table, limit), or table= beside the limit, once; measure_latency(graph) "
            "makes a table. A limit in (0, 1] is a fraction of the present latency, a larger one is in ms"
        )
    return found, limit


def budget_of(cost: Cost, limit: float) -> Budget:
    """A budget as `prune` takes it: a number in (0, 1] is a fraction of the present cost, a larger one is absolute."""
    what, give = f"{cost.name}={shown(limit)}", "a budget is a fraction in (0, 1], or an absolute number above 1"
    found = number(limit, what, give)
    if not found > 0:
        raise RequestError(f"{what}: {give}")
    if found > 1:
        return cost <= found
    share = Fraction(found) * cost.counted
    return Budget(cost, share if cost.scale == 1 else _snapped(share))


def _snapped(limit: Fraction) -> Fraction:
    """A limit in whole numbers: `0.3 * cost.now` is a float, which must not miss a count by its rounding."""
    whole = round(limit)
    return Fraction(whole) if abs(limit - whole) <= ROUNDING * abs(whole) else limit
