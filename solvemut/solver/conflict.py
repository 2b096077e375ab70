"""Why nothing is feasible: a minimal conflict, verified, and the smallest limits that would do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..errors import InfeasibleError
from . import cpsat
from .driver import Infeasible, Options
from .engine import Answer, Request
from .exact import Number
from .model import Clock, Row
from .statement import Statement, total


def explain(statement: Statement, options: Options, found: Infeasible) -> InfeasibleError:
    """The error to raise: the minimal conflict, and for each budget in it the smallest value that would do."""
    finder = _Finder(statement, options, Clock(max(1.0, options.time_limit)))
    conflict = finder.minimal()
    smallest = finder.smallest(conflict) if finder.minimal_proven else {}
    return InfeasibleError(_message(statement, conflict, smallest, finder.minimal_proven), conflict, smallest)


class _Finder:
    def __init__(self, statement: Statement, options: Options, clock: Clock) -> None:
        self.statement, self.options, self.clock = statement, options, clock
        self.minimal_proven = True

    def infeasible(self, names: Collection[str]) -> bool | None:
        """Whether these cannot hold together (None: no answer in time)."""
        model = self.statement.model(0, names)
        model = replace(model, objective=Row("nothing", ()))
        answer = cpsat.solve(Request(model, self.clock, seed=self.options.seed, feasibility=True))
        if answer.infeasible:
            return True
        return False if answer.choice is not None else None

    def minimal(self) -> list[str]:
        """Deletion filter: drop whatever is not needed; what is left is a conflict of which each part is needed."""
        conflict = list(self.statement.names)
        for name in list(conflict):
            rest = [other for other in conflict if other != name]
            verdict = self.infeasible(rest)
            if verdict is None:
                self.minimal_proven = False
            elif verdict:
                conflict = rest
        return conflict

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
        if budget.upper is not None and least > budget.upper:
            return least
        most = self._extreme(cost, others)
        return most if budget.lower is not None and most is not None and most < budget.lower else None

    def _extreme(self, objective: Row, others: list[str]) -> Number | None:
        model = replace(self.statement.model(0, others), objective=objective)
        answer: Answer = cpsat.solve(Request(model, self.clock, seed=self.options.seed))
        return answer.value if answer.finished else None


def _message(statement: Statement, conflict: list[str], smallest: dict[str, Number], minimal: bool) -> str:
    parts = []
    for name in conflict:
        if name in statement.budgets:
            budget = statement.budgets[name]
            upper = "" if budget.upper is None else f" <= {total(budget.upper)}"
            lower = "" if budget.lower is None else f" >= {total(budget.lower)}"
            would = f" ({total(smallest[name])} would do)" if name in smallest else ""
            parts.append(f"budget {name}{upper}{lower}{would}")
        else:
            relation = statement.relations.get(name)
            parts.append(name if relation is None or str(relation) == name else f"{name}: {relation}")
    if not parts:
        return "no choice satisfies the program"
    head = "these cannot hold together" if minimal else "these cannot hold together (the set may not be minimal)"
    return f"{head}: " + "; ".join(parts)
