"""Explain: a conflict in the words of the request, with what would do instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InfeasibleError
from ..requests import Affine, Budget, Multiple, Relation
from .choices import Choices
from .question import Question


def explained(error: InfeasibleError, choices: Choices, keep: Sequence[str]) -> InfeasibleError:
    """What cannot hold, and what could; `keep` are the names that were asked to stay."""
    lines = [_line(name, error, choices) for name in error.conflict]
    question = choices.question
    given = [f"round_to={question.round_to}"] if question.round_to else []
    given += [f"keep={list(keep)}"] if keep else []
    head = "no plan satisfies " + ("this request" if len(lines) == 1 else f"these {len(lines)} requests together")
    text = head + (f" (given {', '.join(given)})" if given else "") + ":\n  " + "\n  ".join(lines)
    smallest = {name: _told(name, limit, question) for name, limit in error.smallest.items()}
    return InfeasibleError(text, error.conflict, smallest)


def _line(name: str, error: InfeasibleError, choices: Choices) -> str:
    if name.endswith(" keeps a unit"):
        return "a layer keeps at least one unit"
    would_do = nearest(name, choices) if len(error.conflict) == 1 else None
    own = "%" in name or name.startswith("the forward asks")  # its limit is nobody's to change
    if would_do is None and not own and (limit := error.smallest.get(name)) is not None:
        would_do = f"the nearest limit that would do is {_told(name, limit, choices.question)}"
    return name + (f": {would_do}" if would_do else "")


def _told(name: str, limit: Any, question: Question) -> Any:
    """A limit in the unit of the cost that it limits."""
    budget = next((b for b in question.budgets if str(b) == name.rstrip()), None)
    return limit if budget is None else budget.cost.told(limit)


def nearest(name: str, choices: Choices) -> str | None:
    """For a request on sizes that one choice decides: the nearest feasible sizes, in words."""
    request = _request(name, choices.question)
    if request is None:
        return None
    left, right = (request.left, request.right) if isinstance(request, Relation) else (request.size, Affine(()))
    if right.terms and not left.terms:  # what can change is the other one
        left, right = right, left
    left, right = left - Affine(right.terms), Affine((), right.constant)
    parts = [(e, c) for e, c, _ in left.terms]
    constant, vectors = choices.linear(parts)
    constant += left.constant
    found = {constant + v for x in vectors.values() for v in x.tolist()} if vectors else {constant}
    if len(vectors) > 1:
        return None
    if isinstance(request, Multiple):
        return f"{left} can be {', '.join(str(v) for v in sorted(found)[:8])}{', …' if len(found) > 8 else ''}"
    wanted = right.constant
    below, above = [v for v in found if v <= wanted], [v for v in found if v >= wanted]
    near = list(dict.fromkeys(str(v) for v in [*sorted(below)[-1:], *sorted(above)[:1]]))
    return f"the nearest feasible values of {left} are {' and '.join(near)}{_fixed(left, choices)}"


def _fixed(size: Affine, choices: Choices) -> str:
    """Why a size cannot change at all; nothing if some of it can."""
    why = [choices.coupling.why_frozen(e) for e, _, _ in size.terms]
    return f", which stays: {'; '.join(dict.fromkeys(why))}" if why and all(why) else ""


def _request(name: str, question: Question) -> Relation | Multiple | None:
    return next((r for r in question.requests if str(r) == name and not isinstance(r, Budget)), None)
