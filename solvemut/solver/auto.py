"""All engines by name, and the choice between them where the user leaves it to us."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ProgramError
from . import cpsat, engine_additive, enumeration, search
from .engine import Answer, Request

ENGINES: dict[str, Callable[[Request], Answer]] = {
    "price": search.solve,
    "additive": engine_additive.solve,
    "cp-sat": cpsat.solve,
    "enumeration": enumeration.solve,
}


def named(name: str) -> Callable[[Request], Answer]:
    """The engine of a name; "auto" chooses by the model."""
    if name == "auto":
        return solve
    if name not in ENGINES:
        raise ProgramError(f"no engine {name!r}; there are {', '.join(['auto', *ENGINES])}")
    return ENGINES[name]


def solve(request: Request) -> Answer:
    """Enumerate where there are few choices; price otherwise, programs without pair tables in their own way."""
    name = "enumeration" if enumeration.fits(request.model.combinations) else "additive"
    answer = ENGINES[name](request)
    answer.engine = answer.engine or name
    return answer
