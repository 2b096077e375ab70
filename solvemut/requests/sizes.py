"""Requests on sizes: affine expressions, their bounds, and what they are divisible by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..arguments import shown, whole
from ..errors import RequestError
from ..flow import Extent


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


def _affine(x: Any) -> Affine:
    return x if isinstance(x, Affine) else Affine((), _int(x))


def _int(x: Any) -> int:
    return whole(x, "sizes are compared with and multiplied by ints")
