"""The engines by name. Each takes a Request and gives an Answer; what several of them share lies one folder up."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import ProgramError
from ..certificate import Answer, Request
from . import additive, auto, cpsat, enumeration, highs, price

ENGINES: dict[str, Callable[[Request], Answer]] = {
    "price": price.solve,
    "additive": additive.solve,
    "cp-sat": cpsat.solve,
    "highs": highs.solve,
    "enumeration": enumeration.solve,
}


def named(name: str) -> Callable[[Request], Answer]:
    """The engine of a name; "auto" chooses by the model."""
    if name == "auto":
        return auto.solve
    if name not in ENGINES:
        raise ProgramError(f"no engine {name!r}; there are {', '.join(['auto', *ENGINES])}")
    return ENGINES[name]
