"""What a caller gives, checked in one place: each message names the argument, what was given, and what to give.

A 0-d array or tensor counts as the number in it, whatever library it is of.

>>> import numpy as np
>>> scalar(np.float32(0.5)), whole(np.int64(8), "round_to", least=1), names(None, "keep")
(0.5, 8, [])
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from .errors import RequestError, SolvemutError

LARGEST = 10**1000  # of a number, and of its denominator: beyond it no message could print it


def scalar(x: Any) -> Any:
    """The number in a 0-d array or tensor; anything else as it is."""
    item = getattr(x, "item", None)
    if item is None or isinstance(x, type) or getattr(x, "ndim", None) != 0:
        return x
    try:
        return item()
    except Exception:  # a tensor without data, such as one on the meta device
        return x


def shown(x: Any) -> str:
    """How a value prints in a message, at most 80 characters."""
    try:
        text = repr(x)
    except Exception:  # a repr of the caller's, or an int with too many digits
        text = f"a value of type {type(x).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"


def number(x: Any, what: str, give: str, error: type[SolvemutError] = RequestError) -> int | float | Fraction:
    """A finite real number, exact as it was given."""
    found = scalar(x)
    if isinstance(found, Decimal) and found.is_finite():
        found = Fraction(found)
    if isinstance(found, bool) or not isinstance(found, Real):
        raise error(f"{what}: {give}, not {shown(x)}")
    if not isinstance(found, (int, float, Fraction)):  # numpy's wide floats
        found = int(found) if isinstance(found, Integral) else float(found)
    if found != found or found in (float("inf"), -float("inf")):
        raise error(f"{what}: {give}, not {found}")
    exact = Fraction(found)
    if abs(exact) >= LARGEST or exact.denominator >= LARGEST:
        raise error(f"{what}: {give}; this one has more than 1000 digits")
    return found


def real(x: Any, what: str, give: str, error: type[SolvemutError] = RequestError) -> float:
    """A finite float."""
    try:
        return float(number(x, what, give, error))
    except OverflowError:
        raise error(f"{what}: {give}, one that a float holds, not {shown(x)}") from None


def whole(x: Any, what: str, least: int | None = None, error: type[SolvemutError] = RequestError) -> int:
    """An int; a float counts where it is one."""
    give = "give an int" if least is None else f"give an int of at least {least}"
    found = number(x, what, give, error)
    if found != int(found) or (least is not None and found < least):
        raise error(f"{what}: {give}, not {shown(x)}")
    return int(found)


def search_limits(
    time_limit: Any, gap: Any, seed: Any, error: type[SolvemutError] = RequestError
) -> tuple[float, int | float | Fraction, int]:
    """The numbers that steer a search: seconds (None: no limit, an infinite one), relative gap, seed."""
    limit, give = scalar(time_limit), "give seconds above 0, or None for no limit"
    endless = limit is None or (isinstance(limit, float) and limit == float("inf"))
    seconds = float("inf") if endless else real(limit, "time_limit", give, error)
    if seconds <= 0:
        raise error(f"time_limit: {give}, not {shown(limit)}")
    give = "give a relative gap of at least 0, such as 1e-3"
    if real(gap, "gap", give, error) < 0:
        raise error(f"gap: {give}, not {shown(gap)}")
    return seconds, number(gap, "gap", give, error), whole(seed, "seed", error=error)


def flag(x: Any, what: str) -> bool:
    """True or False."""
    found = scalar(x)
    if not isinstance(found, bool):
        raise RequestError(f"{what}: give True or False, not {shown(x)}")
    return found


def one_of(x: Any, what: str, options: Sequence[Any], error: type[SolvemutError] = RequestError) -> Any:
    """One of a few words."""
    if not any(type(x) is type(o) and x == o for o in options):
        raise error(f"{what}={shown(x)}: choose from {', '.join(map(repr, options))}")
    return x


def takes_one(function: Callable[..., Any]) -> str | None:
    """Why a function cannot be called with one argument; None if it can, as far as can be told."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None
    try:
        signature.bind(None)
    except TypeError as e:
        return str(e)
    return None


def items(x: Any) -> list[Any] | None:
    """What there is in a collection; None for what is none."""
    try:
        return list(x)
    except TypeError:
        return None


def names(x: Any, what: str) -> list[str]:
    """Names or globs: one, several or none."""
    found = [] if x is None else [x] if isinstance(x, str) else None if isinstance(x, (bytes, Mapping)) else items(x)
    if found is None:
        raise RequestError(f"{what}={shown(x)}: give names or globs of vertices, such as 'layer1.*', or a list of them")
    for n in found:
        if not isinstance(n, str) or not n:
            raise RequestError(f"{what}={shown(x)}: give names or globs of vertices; {shown(n)} is none")
    return found


def near(name: str, known: Iterable[str]) -> list[str]:
    """Names that were perhaps meant: those that end in this one, then those spelt alike, whatever the case.

    >>> near("conv1", ["layer1.0.conv1", "layer1.0.conv2", "fc"]), near("FC", ["fc", "layer1.0.conv1"])
    (['layer1.0.conv1', 'layer1.0.conv2'], ['fc'])
    """
    wanted, names = name.lower(), list(dict.fromkeys(k for path in known for k in (path, *_containers(path)) if k))
    ends = [k for k in names if k.lower() == wanted or k.lower().endswith("." + wanted)]
    whole_names = _alike(wanted, {k: k.lower() for k in names})
    last = _alike(wanted.rpartition(".")[2], {k: k.lower().rpartition(".")[2] for k in names})
    return list(dict.fromkeys([*ends, *whole_names, *last]))[:3]


def _containers(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _alike(wanted: str, known: Mapping[str, str]) -> list[str]:
    """The names whose text is spelt like this one, nearest first."""
    texts = difflib.get_close_matches(wanted, list(dict.fromkeys(known.values())), 3, 0.5)
    return [k for text in texts for k, v in known.items() if v == text]
