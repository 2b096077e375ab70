"""All engines by name, and the choice between them where the user leaves it to us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import ProgramError
from ..certificate import Answer, Request
from ..engines import additive, cpsat, enumeration, highs
from ..engines.price import search

ENGINES: dict[str, Callable[[Request], Answer]] = {
    "price": search.solve,
    "additive": additive.solve,
    "cp-sat": cpsat.solve,
    "highs": highs.solve,
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


def second_opinion(request: Request, prover: str) -> bool:
    """Whether an engine that had no part in the proof comes to "infeasible" as well, within the request's clock.

    CP-SAT confirms what HiGHS or prices have shown, HiGHS what CP-SAT had a part in; either may be unable to decide.
    """
    others = [solver for name, solver in (("cp-sat", cpsat.solve), ("highs", highs.alone)) if name not in prover]
    for place, solver in enumerate(others):
        seconds = request.clock.left / (len(others) - place)
        answer = solver(replace(request, clock=request.clock.part(seconds), feasibility=True, hint=None))
        if answer.infeasible or answer.choice is not None:
            return answer.infeasible
    return False
