"""The choice between the engines where the user leaves it to us, and which of them checks another one's proof."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..certificate import Answer, Request
from . import additive, cpsat, enumeration, highs


def solve(request: Request) -> Answer:
    """Enumerate where there are few choices; price otherwise, programs without pair tables in their own way."""
    few = enumeration.fits(request.model.combinations)
    return enumeration.solve(request) if few else additive.solve(request)


def second_opinion(request: Request, provers: Collection[str]) -> bool:
    """Whether an engine that had no part in the proof comes to "infeasible" as well, within the request's clock.

    CP-SAT confirms what HiGHS or prices have shown, HiGHS what CP-SAT had a part in; either may be unable to decide.
    """
    others = [solver for name, solver in (("cp-sat", cpsat.solve), ("highs", highs.alone)) if name not in provers]
    for place, solver in enumerate(others):
        seconds = request.clock.left / (len(others) - place)
        answer = solver(replace(request, clock=request.clock.part(seconds), feasibility=True, hint=None))
        if answer.infeasible or answer.choice is not None:
            return answer.infeasible
    return False
