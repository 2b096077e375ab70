"""Why nothing is feasible: a minimal conflict, verified, and the smallest limits that would do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, inf, nextafter, ulp

from ..errors import InfeasibleError
from .certificate import Request
from .clock import Clock
from .driver import Options
from .engines import auto
from .exact import Number, nearest, simplify
from .model import Row
from .statement import Budget, Statement, total

CONFIRM_SECONDS = 3.0
MOST_ULPS = 64  # units in the last place that adding floats up may have cost a limit


def explain(statement: Statement, options: Options) -> InfeasibleError:
    """The error to raise: the minimal conflict, and for each budget in it the smallest value that would do."""
    finder = Finder(statement, options.seed, Clock(max(2.0, options.time_limit)))
    conflict = finder.minimal()
    smallest = finder.smallest(conflict) if finder.sure else {}
    confirmed = finder.confirmed(conflict)
    if finder.clock.interrupted:
        raise KeyboardInterrupt
    return InfeasibleError(_message(statement, conflict, smallest, finder.sure, confirmed), conflict, smallest)


@dataclass
class Finder:
    """Asks which parts of a statement cannot hold together."""

    statement: Statement
    seed: int
    clock: Clock
    sure: bool = True  # no question was left unanswered
    asked: dict[frozenset[str], bool] = field(default_factory=dict)
    provers: dict[frozenset[str], list[str]] = field(default_factory=dict)  # the engines that worked on the answer

    def infeasible(self, names: Collection[str]) -> bool:
        """Whether these cannot hold together; where time runs out: no, and not sure any more."""
        key = frozenset(names)
        if key not in self.asked:
            request = self._request(names)
            request.on_engine = self.provers.setdefault(key, []).append
            answer = auto.solve(request)
            self.sure &= answer.infeasible or answer.choice is not None
            self.asked[key] = answer.infeasible
        return self.asked[key]

    def _request(self, names: Collection[str]) -> Request:
        model = replace(self.statement.model(0, names), objective=Row("nothing", ()))
        return Request(model, self.clock, seed=self.seed, feasibility=True)

    def minimal(self) -> list[str]:
        """A minimal conflict by dividing and conquering (QuickXplain), then each part's need verified."""
        names = self.statement.names
        conflict = self._within([], names) if self.infeasible(names) else names
        for name in list(conflict):
            rest = [other for other in conflict if other != name]
            if self.infeasible(rest):
                conflict = rest
        return [name for name in names if name in conflict]

    def _within(self, given: list[str], names: list[str]) -> list[str]:
        """A smallest part of ``names`` that cannot hold together with ``given``."""
        if given and self.infeasible(given):
            return []
        if len(names) == 1:
            return names
        half = len(names) // 2
        second = self._within(given + names[:half], names[half:])
        first = self._within(given + second, names[:half])
        return first + second

    def confirmed(self, conflict: list[str]) -> bool:
        """Whether an engine that had no part in the proof comes to the same end on the conflict alone."""
        request = self._request(conflict)
        request.clock = self.clock.part(CONFIRM_SECONDS)
        return auto.second_opinion(request, self.provers.get(frozenset(conflict), []))

    def smallest(self, conflict: list[str]) -> dict[str, Number]:
        """For each budget of the conflict, the limit that would do: all else as asked, or all else in the conflict."""
        found: dict[str, Number] = {}
        for name in conflict:
            if name not in self.statement.budgets:
                continue
            for others in (self.statement.names, conflict):
                limit = self._limit(name, [other for other in others if other != name])
                if limit is not None:
                    found[name] = limit
                    break
        return found

    def _limit(self, resource: str, others: list[str]) -> Number | None:
        budget, cost = self.statement.budgets[resource], self.statement.cost_row(resource)
        best = self._extreme(cost.negated(), others)
        if best is None:
            return None
        least = -best
        if budget.most is not None and least > budget.most:
            return simplify(least - budget.tolerance)
        most = self._extreme(cost, others)
        if budget.least is None or most is None or most >= budget.least:
            return None
        return simplify(most + budget.tolerance)

    def _extreme(self, objective: Row, others: list[str]) -> Number | None:
        model = replace(self.statement.model(0, others), objective=objective)
        answer = auto.solve(Request(model, self.clock, seed=self.seed))
        return answer.value if answer.finished else None


def _would_do(budget: Budget, limit: Number) -> str:
    """The limit that would do, as a number that would; where rounding alone may have missed it, that too."""
    up = budget.upper is not None and limit > budget.upper
    asked = budget.upper if up else budget.lower
    assert asked is not None
    shown = total(limit)
    if isinstance(shown, float) and (shown < limit if up else shown > limit):
        shown = nextafter(shown, inf if up else -inf)
    step = ulp(nearest(asked)) if isinstance(total(asked), float) or isinstance(shown, float) else 0.0
    steps = ceil(abs(Fraction(limit) - Fraction(asked)) / Fraction(step)) if step else 0
    if not 0 < steps <= MOST_ULPS:
        return f" ({shown} would do)"
    return f" ({shown} would do: {steps} ulp {'above' if up else 'below'}, a floating-point sum? see tolerance=)"


def _message(
    statement: Statement, conflict: list[str], smallest: dict[str, Number], minimal: bool, confirmed: bool
) -> str:
    parts = []
    for name in conflict:
        if name in statement.budgets:
            budget = statement.budgets[name]
            upper = "" if budget.upper is None else f" <= {total(budget.upper)}"
            lower = "" if budget.lower is None else f" >= {total(budget.lower)}"
            slack = f" (tolerance {total(budget.tolerance)})" if budget.tolerance else ""
            would = _would_do(budget, smallest[name]) if name in smallest else ""
            parts.append(f"budget {name}{upper}{lower}{slack}{would}")
        else:
            relation = statement.relations.get(name)
            parts.append(name if relation is None or str(relation) == name else f"{name}: {relation}")
    if not parts:
        return "no choice satisfies the program"
    head = "these cannot hold together" if minimal else "these cannot hold together (the set may not be minimal)"
    tail = "" if confirmed else " (by one engine; a second one could not decide in time)"
    return f"{head}: " + "; ".join(parts) + tail
