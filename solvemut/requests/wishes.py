"""Wishes: what a size should become, relative to what it is or absolute, hard or as near as it can be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ..arguments import number, shown, whole
from ..errors import RequestError


@dataclass(frozen=True)
class Wish:
    """A size from `low` to `high`; with `delta` both are relative to the present size, with `share` a factor of it.

    A relaxed wish is no condition: the size comes as near as the others let it, and it changes, if a change was asked.
    """

    low: int | None
    high: int | None
    delta: bool = False
    share: Fraction | None = None
    relaxed: bool = False

    def bounds(self, now: int) -> tuple[int | None, int | None]:
        """The least and the largest size that is wished for; None: no limit."""
        if self.share is not None:
            size = max(1, math.floor(self.share * now + Fraction(1, 2)))
            return size, size
        base = now if self.delta else 0
        return tuple(None if x is None else base + x for x in (self.low, self.high))  # type: ignore[return-value]

    def __str__(self) -> str:
        if self.share is not None:
            text = f"ratio({float(self.share):g})"
        elif self.low == self.high:
            text = f"{self.low:+d}" if self.delta else f"exactly({self.low})"
        else:
            text = f"between({self.low}, {self.high})"
        return f"relaxed({text})" if self.relaxed else text

    __repr__ = __str__


def exactly(size: int) -> Wish:
    """This size, whatever it is now.

    >>> exactly(32).bounds(now=40)
    (32, 32)
    """
    n = whole(size, f"exactly({shown(size)})", least=1)
    return Wish(n, n)


def between(low: int | None, high: int | None) -> Wish:
    """A size from `low` to `high`, None for no limit.

    >>> between(8, 16).bounds(now=40), between(None, 16).bounds(now=40)
    ((8, 16), (None, 16))
    """
    what = f"between({shown(low)}, {shown(high)})"
    least, most = (None if x is None else whole(x, what, least=1) for x in (low, high))
    if least is not None and most is not None and least > most:
        raise RequestError(f"{what}: no size is at least {least} and at most {most}")
    return Wish(least, most)


def ratio(share: float) -> Wish:
    """A share of the present size, to the nearest whole number, at least 1.

    >>> ratio(0.5).bounds(now=40)
    (20, 20)
    """
    found = number(share, f"ratio({shown(share)})", "give a number above 0, such as 0.5")
    if not found > 0:
        raise RequestError(f"ratio({shown(share)}): give a number above 0, such as 0.5")
    return Wish(None, None, share=Fraction(found))


def relaxed(wish: Any) -> Wish:
    """As near to this as the other requests allow: a change by so much (an int), or another wish.

    >>> relaxed(-3).bounds(now=40), relaxed(exactly(32)).bounds(now=40)
    ((37, 37), (32, 32))
    """
    return replace(wish_of(wish, "relaxed"), relaxed=True)


def wish_of(x: Any, what: str) -> Wish:
    """A wish as users give it: an int is a change by so much."""
    if isinstance(x, Wish):
        return x
    give = "give a change by so much (an int), or exactly(...), between(...), ratio(...) or relaxed(...)"
    if isinstance(x, (bool, str)) or x is None:
        raise RequestError(f"{what}: {shown(x)}; {give}")
    n = whole(x, f"{what}: {shown(x)}; {give}")
    return Wish(n, n, delta=True)
