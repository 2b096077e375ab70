"""The request language: affine sizes, costs, budgets, and what may be asked of them.

>>> import numpy as np
>>> a, b = (Affine.of(Extent(np.arange(1, 1 + n)), name) for n, name in ((4, "a.out"), (6, "b.out")))
>>> print(2 * a + b <= 12, "|", a % 2 == 0, "|", a == b)
2*a.out + b.out <= 12 | a.out % 2 == 0 | a.out == b.out
>>> (2 * a + b).now
14
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from .arguments import items, number, shown, takes_one, whole
from .errors import RequestError
from .flow import Extent
from .labels import prod


@dataclass(frozen=True, eq=False)
class Affine:
    """A size expression: constant + sum of coefficient * extent. `name` is how it prints."""

    __array_ufunc__ = None  # numpy's numbers leave arithmetic and comparison to us

    terms: tuple[tuple[Extent, int, str], ...]
    constant: int = 0

    @staticmethod
    def of(extent: Extent | int, name: str) -> Affine:
        """The size of one extent; a plain int is a size that nothing changes."""
        return Affine((), extent) if isinstance(extent, int) else Affine(((extent, 1, name),))

    @property
    def now(self) -> int:
        """The value on the captured model."""
        return self.constant + sum(c * e.now for e, c, _ in self.terms)

    def __add__(self, other: Any) -> Affine:
        if isinstance(other, Affine):
            return Affine(self.terms + other.terms, self.constant + other.constant)
        return replace(self, constant=self.constant + _int(other))

    __radd__ = __add__

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: Any) -> Affine:
        return self + -_affine(other)

    def __rsub__(self, other: Any) -> Affine:
        return -self + other

    def __mul__(self, k: Any) -> Affine:
        n = _int(k)
        return Affine(tuple((e, c * n, name) for e, c, name in self.terms), self.constant * n)

    __rmul__ = __mul__

    def __mod__(self, k: Any) -> Remainder:
        return Remainder(self, whole(k, f"the divisor of {self}", least=1))

    def __le__(self, other: Any) -> Relation:
        return Relation(self, "<=", _affine(other))

    def __ge__(self, other: Any) -> Relation:
        return Relation(self, ">=", _affine(other))

    def __lt__(self, other: Any) -> Relation:
        return self <= _affine(other) - 1

    def __gt__(self, other: Any) -> Relation:
        return self >= _affine(other) + 1

    def __eq__(self, other: Any) -> Relation:  # type: ignore[override]
        return Relation(self, "==", _affine(other))

    def __ne__(self, other: Any) -> bool:
        raise RequestError(f"{self} != {shown(other)}: sizes are compared with <=, >=, ==, < or >")

    __hash__ = object.__hash__

    def __str__(self) -> str:
        text = ""
        for _, c, name in self.terms:
            sign = " - " if c < 0 else " + " if text else ""
            text += f"{sign if text or c > 0 else '-'}{'' if abs(c) == 1 else f'{abs(c)}*'}{name}"
        if self.constant or not text:
            text += f" {'-' if self.constant < 0 else '+'} {abs(self.constant)}" if text else str(self.constant)
        return text


Axis = Affine


@dataclass(frozen=True)
class Remainder:
    """size % divisor, waiting for its `== remainder`."""

    __array_ufunc__ = None

    size: Affine
    divisor: int

    def __eq__(self, other: Any) -> Multiple:  # type: ignore[override]
        return Multiple(self.size, self.divisor, _int(other) % self.divisor)

    def __bool__(self) -> bool:
        raise RequestError(f"'{self.size} % {self.divisor}' is half a request; say what it equals")

    __hash__ = object.__hash__


@dataclass(frozen=True, eq=False)
class Relation:
    """left (<=, >= or ==) right, over sizes."""

    left: Affine
    sense: str
    right: Affine

    def __bool__(self) -> bool:
        raise RequestError(f"'{self}' is a request, not a truth value; chained comparisons must be given one by one")

    def __str__(self) -> str:
        return f"{self.left} {self.sense} {self.right}"

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class Multiple:
    """size % divisor == remainder."""

    size: Affine
    divisor: int
    remainder: int = 0

    def __bool__(self) -> bool:
        raise RequestError(f"'{self}' is a request, not a truth value")

    def __str__(self) -> str:
        return f"{self.size} % {self.divisor} == {self.remainder}"

    __repr__ = __str__


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
class Budget:
    """cost <= limit, or >= it."""

    cost: Cost
    limit: Fraction
    sense: str = "<="

    def __bool__(self) -> bool:
        raise RequestError(f"'{self}' is a request, not a truth value")

    @property
    def told(self) -> int | float:
        """The limit as it is printed; a cost is whole, so beyond floats the whole part says it all."""
        return int(self.limit) if self.limit.denominator == 1 or abs(self.limit) > 2**1000 else float(self.limit)

    def __str__(self) -> str:
        return f"{self.cost.name} {self.sense} {self.told}"

    __repr__ = __str__


Request = Relation | Multiple | Budget


def budget_of(cost: Cost, limit: float) -> Budget:
    """A budget as `prune` takes it: a number in (0, 1] is a fraction of the present cost, a larger one is absolute."""
    what, give = f"{cost.name}={shown(limit)}", "a budget is a fraction in (0, 1], or an absolute number above 1"
    found = number(limit, what, give)
    if not found > 0:
        raise RequestError(f"{what}: {give}")
    return cost <= (Fraction(found) * cost.now if found <= 1 else found)


def owners(request: Request) -> list[Any]:
    """The couplings that a request speaks of."""
    if isinstance(request, Budget):
        return [request.cost.owner]
    sides = [request.left, request.right] if isinstance(request, Relation) else [request.size]
    return [e.owner for side in sides for e, _, _ in side.terms]


def flat(requests: Iterable[Any]) -> list[Request]:
    """Requests from nested lists, with anything else refused."""
    out: list[Request] = []
    for r in requests:
        if isinstance(r, (list, tuple)):
            out += flat(r)
        elif isinstance(r, (Relation, Multiple, Budget)):
            out.append(r)
        else:
            raise RequestError(f"{shown(r)} is no request; compare sizes or costs, as in graph['conv1'].out <= 32")
    return out


def asked(constraints: Any, graph: Any) -> list[Request]:
    """Requests as `prune` takes them: none, one, several, or a function from the graph to such."""
    if callable(constraints) and (why := takes_one(constraints)) is not None:
        raise RequestError(f"constraints={shown(constraints)}: a function is called with the graph; {why}")
    found = constraints(graph) if callable(constraints) else constraints
    if found is None or isinstance(found, (Relation, Multiple, Budget)):
        return flat([] if found is None else [found])
    several = None if isinstance(found, (str, bytes, Mapping)) else items(found)
    if several is None:
        raise RequestError(
            f"constraints={shown(found)}: give a list of requests, such as graph['conv1'].out <= 32, or a function "
            "from the graph to one"
        )
    return flat(several)


def _affine(x: Any) -> Affine:
    return x if isinstance(x, Affine) else Affine((), _int(x))


def _int(x: Any) -> int:
    return whole(x, "sizes are compared with and multiplied by ints")


__all__: Sequence[str] = [
    "Affine", "Axis", "Budget", "Cost", "Monomial", "Multiple", "Relation", "Remainder", "Request", "budget_of", "flat",
]  # fmt: skip
