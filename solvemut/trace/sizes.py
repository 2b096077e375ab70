"""Sizes: where an int in a forward came from, as expressions over attributes and dims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Size:
    """Where an int in a forward came from: an attribute of a module, a dim of a value, or arithmetic on such.

    `op` is "attr" (args: module path, attribute, index or None), "size" (args: value name, dim), "const" (args: int),
    or one of + - * // % with two sizes.

    >>> heads = Size("attr", ("attn", "heads", None))
    >>> Size("*", (heads, Size("const", (64,)))).evaluate({heads: 3})
    192
    """

    op: str
    args: tuple[Any, ...]

    def evaluate(self, env: Mapping[Size, int]) -> int:
        """The value, given one for every attribute and dim in it."""
        if self.op == "const":
            return int(self.args[0])
        if self.op in ("attr", "size"):
            return env[self]
        a, b = (x.evaluate(env) for x in self.args)
        match self.op:
            case "+":
                return a + b
            case "-":
                return a - b
            case "*":
                return a * b
            case "//":
                return a // b
            case _:
                return a % b

    def leaves(self) -> tuple[Size, ...]:
        """The attributes and dims it is made of."""
        return self._leaves

    @cached_property
    def _leaves(self) -> tuple[Size, ...]:
        if self.op in ("attr", "size"):
            return (self,)
        return () if self.op == "const" else tuple(leaf for x in self.args for leaf in x.leaves())

    def __str__(self) -> str:
        match self.op:
            case "attr":
                module, name, index = self.args
                return ".".join(filter(None, ("self", module, name))) + ("" if index is None else f"[{index}]")
            case "size":
                return f"{self.args[0]}.shape[{self.args[1]}]"
            case "const":
                return str(self.args[0])
            case _:
                return f"({self.args[0]} {self.op} {self.args[1]})"


def affine(size: Size, exact: bool = False) -> tuple[Fraction, dict[Size, Fraction]] | None:
    """A size as constant + sum of coefficient * leaf; None if it is not affine.

    // is taken to leave no remainder, or not taken at all if the form must be exact.
    """
    match size.op:
        case "const":
            return Fraction(size.args[0]), {}
        case "attr" | "size":
            return Fraction(0), {size: Fraction(1)}
    left, right = (affine(a, exact) for a in size.args)
    if left is None or right is None:
        return None
    (a, xs), (b, ys) = left, right
    if size.op in "+-":
        sign = 1 if size.op == "+" else -1
        terms = {k: xs.get(k, Fraction(0)) + sign * ys.get(k, Fraction(0)) for k in {**xs, **ys}}
        return a + sign * b, {k: c for k, c in terms.items() if c}
    if size.op == "*" and not (xs and ys):
        k, c, terms = (b, a, xs) if not ys else (a, b, ys)
        return c * k, {t: v * k for t, v in terms.items() if k}
    if size.op == "//" and not ys and b and not exact:
        return a / b, {t: v / b for t, v in xs.items()}
    return None
