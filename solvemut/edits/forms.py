"""Forms: what may stand at one place of a file, in types and ranges.

A form is a function of a place and what stands there; it raises PlanMismatchError with the place, such as
indices['a.weight'][0], and what was expected.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import PlanMismatchError

LARGEST = 2**48  # of sizes and positions; whatever is larger is damage

Check = Callable[[str, Any], None]


def fail(where: str, expected: str, found: Any) -> NoReturn:
    """Raise PlanMismatchError: this place holds something else."""
    raise PlanMismatchError(
        f"{where or 'the plan'}: expected {expected}, found {shown(found)}. The plan is damaged or was edited: "
        "take a copy that is whole, or solve and save it again"
    )


def shown(x: Any) -> str:
    """A value in few characters, all of them printable."""
    try:
        return ascii(reprlib.repr(x))[1:-1]
    except ValueError:  # an int of more digits than Python prints
        return f"a very large {type(x).__name__}"


def text(where: str, x: Any) -> None:
    """A string that can be printed."""
    if not isinstance(x, str):
        fail(where, "a string", x)
    try:
        x.encode("utf-8")
    except UnicodeEncodeError:
        fail(where, "a string without lone surrogates", x)


def whole(low: int, high: int = LARGEST) -> Check:
    """An int in a range; True and 1.0 are none."""

    def is_whole(where: str, x: Any) -> None:
        if type(x) is not int or not low <= x <= high:
            fail(where, f"an int of at least {low}" if high == LARGEST else f"an int from {low} to {high}", x)

    return is_whole


def number(low: float) -> Check:
    """A finite number that a float can hold."""

    def is_number(where: str, x: Any) -> None:
        if type(x) not in (int, float) or not low <= x < math.inf or abs(x) > 1.7e308:
            fail(where, "a finite number" + ("" if low == -math.inf else f" of at least {low:g}"), x)

    return is_number


def budget(where: str, x: Any) -> None:
    """A limit as the caller gave it: an int may be of any size, as it is compared exactly."""
    if x is not None and type(x) is not int:
        number(-math.inf)(where, x)


def optional(inner: Check) -> Check:
    """None, or what `inner` takes."""
    return lambda where, x: None if x is None else inner(where, x)


def one_of(*choices: Any) -> Check:
    """One of `choices`, of the same type too: True is no 1."""

    def is_one(where: str, x: Any) -> None:
        if not any(type(x) is type(c) and x == c for c in choices):
            fail(where, " or ".join(map(repr, choices)), x)

    return is_one


def each(inner: Check) -> Check:
    """A list of such."""

    def is_list(where: str, x: Any) -> None:
        if not isinstance(x, list):
            fail(where, "a list", x)
        for k, item in enumerate(x):
            inner(f"{where}[{k}]", item)

    return is_list


def row(*inner: Check) -> Check:
    """A list with one check per item."""

    def is_row(where: str, x: Any) -> None:
        if not isinstance(x, list) or len(x) != len(inner):
            fail(where, f"a list of {len(inner)}", x)
        for k, (checked, item) in enumerate(zip(inner, x, strict=True)):
            checked(f"{where}[{k}]", item)

    return is_row


def mapping(inner: Check, key: Check = text) -> Check:
    """An object with any keys."""

    def is_mapping(where: str, x: Any) -> None:
        if not isinstance(x, dict):
            fail(where, "an object", x)
        for k, item in x.items():
            key(f"a key of {where}", k)
            inner(f"{where}[{k!r}]", item)

    return is_mapping


def record(**inner: Check) -> Check:
    """An object with just these keys."""

    def is_record(where: str, x: Any) -> None:
        if not isinstance(x, dict):
            fail(where, "an object", x)
        if missing := [k for k in inner if k not in x]:
            fail(where, f"an entry {missing[0]!r}", list(x))
        if other := [k for k in x if k not in inner]:
            fail(where, f"no entry but {', '.join(inner)}", other)
        for k, checked in inner.items():
            checked(f"{where}.{k}" if where else k, x[k])

    return is_record


def by_dim(inner: Check) -> Check:
    """An object whose keys are dims."""

    def is_by_dim(where: str, x: Any) -> None:
        if not isinstance(x, dict):
            fail(where, "an object", x)
        for k, item in x.items():
            if k not in _DIMS:
                fail(f"a key of {where}", "a dim, as '0' or '1'", k)
            inner(f"{where}[{k}]", item)

    return is_by_dim


_DIMS = frozenset(map(str, range(64)))


def positions(where: str, x: Any) -> None:
    """The old positions that stay in a dim: distinct ints, and -1 for each new slice."""
    if not isinstance(x, list):
        fail(where, "a list", x)
    if set(map(type, x)) - {int}:
        fail(where, "ints", next(i for i in x if type(i) is not int))
    if x and not -1 <= min(x) <= max(x) < LARGEST:
        fail(where, "positions from 0 on, or -1 for a new slice", min(x) if min(x) < -1 else max(x))
    if len(set(x)) < len(x) and len(set(old := [i for i in x if i >= 0])) < len(old):
        fail(where, "each position once", next(i for k, i in enumerate(old) if i in old[:k]))


def origins(where: str, x: Any) -> None:
    """For each slice the old position that it copies, or -1; or for groups such a list for each."""
    rows = each(each(_ORIGIN)) if isinstance(x, list) and x and isinstance(x[0], list) else each(_ORIGIN)
    rows(where, x)


def fill(where: str, x: Any) -> None:
    """What new slices hold: a number, or "drawn": as the layer draws its values at first."""
    if x != "drawn":
        number(-math.inf)(where, x)


def index(where: str, x: Any) -> None:
    """Positions; or for the input dim of a grouped convolution such a list for each group that stays."""
    if isinstance(x, list) and x and isinstance(x[0], list):
        each(positions)(where, x)
    else:
        positions(where, x)


SIZE = whole(0)
_ORIGIN = whole(-1)
INT = whole(-LARGEST)
