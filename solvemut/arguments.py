"""What a caller gives, checked in one place: each message names the argument, what was given, and what to give.

A 0-d array or tensor counts as the number in it, whatever library it is of.

>>> import numpy as np
>>> scalar(np.float32(0.5)), whole(np.int64(8), "round_to", least=1), names(None, "keep")
(0.5, 8, [])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from .errors import RequestError

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


def number(x: Any, what: str, give: str) -> int | float | Fraction:
    """A finite real number, exact as it was given."""
    found = scalar(x)
    if isinstance(found, Decimal) and found.is_finite():
        found = Fraction(found)
    if isinstance(found, bool) or not isinstance(found, Real):
        raise RequestError(f"{what}: {give}, not {shown(x)}")
    if not isinstance(found, (int, float, Fraction)):  # numpy's wide floats
        found = int(found) if isinstance(found, Integral) else float(found)
    if found != found or found in (float("inf"), -float("inf")):
        raise RequestError(f"{what}: {give}, not {found}")
    exact = Fraction(found)
    if abs(exact) >= LARGEST or exact.denominator >= LARGEST:
        raise RequestError(f"{what}: {give}; this one has more than 1000 digits")
    return found


def whole(x: Any, what: str, least: int | None = None) -> int:
    """An int; a float counts where it is one."""
    give = "give an int" if least is None else f"give an int of at least {least}"
    found = number(x, what, give)
    if found != int(found) or (least is not None and found < least):
        raise RequestError(f"{what}: {give}, not {shown(x)}")
    return int(found)


def flag(x: Any, what: str) -> bool:
    """True or False."""
    found = scalar(x)
    if not isinstance(found, bool):
        raise RequestError(f"{what}: give True or False, not {shown(x)}")
    return found


def one_of(x: Any, what: str, options: Sequence[Any]) -> Any:
    """One of a few words."""
    if not any(type(x) is type(o) and x == o for o in options):
        raise RequestError(f"{what}={shown(x)}: choose from {', '.join(map(repr, options))}")
    return x


def names(x: Any, what: str) -> list[str]:
    """Names or globs: one, several or none."""
    found = [] if x is None else [x] if isinstance(x, str) else x
    if not isinstance(found, Iterable) or isinstance(found, (bytes, Mapping)):
        raise RequestError(f"{what}={shown(x)}: give names or globs of vertices, such as 'layer1.*', or a list of them")
    found = list(found)
    for n in found:
        if not isinstance(n, str) or not n:
            raise RequestError(f"{what}={shown(x)}: give names or globs of vertices; {shown(n)} is none")
    return found


def near(name: str, known: Iterable[str]) -> list[str]:
    """Names that were perhaps meant: those that end in this one, then those spelt alike, whatever the case.

    >>> near("conv1", ["layer1.0.conv1", "layer1.0.conv2", "fc"]), near("FC", ["fc", "layer1.0.conv1"])
    (['layer1.0.conv1', 'layer1.0.conv2'], ['fc'])
    """
    wanted, names = name.lower(), list(dict.fromkeys(k for k in known if k))
    ends = [k for k in names if k.lower() == wanted or k.lower().endswith("." + wanted)]
    whole_names = _alike(wanted, {k: k.lower() for k in names})
    last = _alike(wanted.rpartition(".")[2], {k: k.lower().rpartition(".")[2] for k in names})
    return list(dict.fromkeys([*ends, *whole_names, *last]))[:3]


def _alike(wanted: str, known: Mapping[str, str]) -> list[str]:
    """The names whose text is spelt like this one, nearest first."""
    texts = difflib.get_close_matches(wanted, list(dict.fromkeys(known.values())), 3, 0.5)
    return [k for text in texts for k, v in known.items() if v == text]
