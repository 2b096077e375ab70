"""Widths, switches, and linear expressions and relations over their level values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from numbers import Integral
from typing import Any, Union

from ..errors import ProgramError

Operand = Union["Affine", "Width", int]


class Affine:
    """``sum(coefficient * width) + constant`` over level values, integer coefficients."""

    __slots__ = ("coefficients", "constant")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, coefficients: Mapping[Width, int], constant: int = 0) -> None:
        self.coefficients = {width: c for width, c in coefficients.items() if c}
        self.constant = constant

    def __add__(self, other: Operand) -> Affine:
        other = affine(other)
        merged = dict(self.coefficients)
        for width, c in other.coefficients.items():
            merged[width] = merged.get(width, 0) + c
        return Affine(merged, self.constant + other.constant)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        if not isinstance(factor, Integral):
            raise ProgramError(f"{self} times {factor!r}: coefficients in constraints are ints")
        return Affine({w: c * int(factor) for w, c in self.coefficients.items()}, self.constant * int(factor))

    __rmul__ = __mul__

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: Operand) -> Affine:
        return self + -affine(other)

    def __rsub__(self, other: Operand) -> Affine:
        return affine(other) + -self

    def __le__(self, other: Operand) -> Relation:
        return Relation(self, "<=", affine(other))

    def __ge__(self, other: Operand) -> Relation:
        return Relation(self, ">=", affine(other))

    def __lt__(self, other: Operand) -> Relation:
        return Relation(self, "<=", affine(other) - 1)

    def __gt__(self, other: Operand) -> Relation:
        return Relation(self, ">=", affine(other) + 1)

    def __eq__(self, other: Any) -> Relation:  # type: ignore[override]
        return Relation(self, "==", affine(other))

    def __ne__(self, other: Any) -> Relation:  # type: ignore[override]
        return Relation(self, "!=", affine(other))

    def __str__(self) -> str:
        parts = []
        for width, c in self.coefficients.items():
            sign = "-" if c < 0 else "+"
            parts.append(f"{sign} {width.name if abs(c) == 1 else f'{abs(c)}*{width.name}'}")
        if self.constant or not parts:
            parts.append(f"{'-' if self.constant < 0 else '+'} {abs(self.constant)}")
        text = " ".join(parts)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    __repr__ = __str__


class Width:
    """A choice of one level out of several; arithmetic and comparisons speak of the level's value.

    Made by :meth:`Program.width` and :meth:`Program.switch`.
    """

    def __init__(self, owner: object, name: str, levels: tuple[int, ...], index: int, is_switch: bool = False) -> None:
        self.owner, self.name, self.levels, self._index, self.is_switch = owner, name, levels, index, is_switch

    @property
    def index(self) -> int:
        """The position among the program's widths."""
        return self._index

    @cached_property
    def by_size(self) -> list[int]:
        """The indices of the levels, from the least level to the largest."""
        return sorted(range(len(self.levels)), key=self.levels.__getitem__)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __add__(self, other: Operand) -> Affine:
        return affine(self) + other

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        return affine(self) * factor

    __rmul__ = __mul__

    def __neg__(self) -> Affine:
        return affine(self) * -1

    def __sub__(self, other: Operand) -> Affine:
        return affine(self) - other

    def __rsub__(self, other: Operand) -> Affine:
        return affine(other) - affine(self)

    def __le__(self, other: Operand) -> Relation:
        return affine(self) <= other

    def __ge__(self, other: Operand) -> Relation:
        return affine(self) >= other

    def __lt__(self, other: Operand) -> Relation:
        return affine(self) < other

    def __gt__(self, other: Operand) -> Relation:
        return affine(self) > other

    def __eq__(self, other: Any) -> Relation:  # type: ignore[override]
        return Relation(affine(self), "==", affine(other), same=(self is other) if isinstance(other, Width) else None)

    def __ne__(self, other: Any) -> Relation:  # type: ignore[override]
        return Relation(
            affine(self), "!=", affine(other), same=(self is not other) if isinstance(other, Width) else None
        )

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        kind = "switch" if self.is_switch else "width"
        return f"<{kind} {self.name}>"


class Relation:
    """A linear relation between level values, as :meth:`Program.add` takes it."""

    __slots__ = ("left", "right", "same", "sense")

    def __init__(self, left: Affine, sense: str, right: Affine, same: bool | None = None) -> None:
        self.left, self.sense, self.right, self.same = left, sense, right, same

    @property
    def difference(self) -> Affine:
        """``left - right``, to be compared with 0."""
        return self.left - self.right

    def __bool__(self) -> bool:
        if self.same is not None:  # == and != between two widths, as `in` and dictionaries ask
            return self.same
        raise ProgramError(f"'{self}' is a constraint, not a truth value; state each side by its own (no a < b < c)")

    def __str__(self) -> str:
        return f"{self.left} {self.sense} {self.right}"

    __repr__ = __str__


def affine(value: Any) -> Affine:
    """A width, an int or an affine expression as the latter."""
    if isinstance(value, Affine):
        return value
    if isinstance(value, Width):
        return Affine({value: 1})
    if isinstance(value, Integral):
        return Affine({}, int(value))
    raise ProgramError(
        f"{value!r} is no width, switch, int or sum of them; constraints are linear with int coefficients"
    )
