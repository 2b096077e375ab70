"""What a program states, frozen: widths, values, costs, budgets, constraints; and the models compiled from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ProgramError
from .exact import Number, array, simplify
from .expressions import Relation, Width
from .model import Choice, Model, Row, Term
from .recognise import simplest


@dataclass(frozen=True)
class Budget:
    """Limits on a resource (None: no limit on that side), and how far beyond them a cost may still lie."""

    upper: Number | None = None
    lower: Number | None = None
    tolerance: Number = 0

    @property
    def most(self) -> Number | None:
        """The largest cost that is kept."""
        return None if self.upper is None else simplify(self.upper + self.tolerance)

    @property
    def least(self) -> Number | None:
        """The smallest cost that is kept."""
        return None if self.lower is None else simplify(self.lower - self.tolerance)


@dataclass(frozen=True)
class Sum:
    """A sum of terms and a constant: a resource's cost or a stage's value."""

    terms: tuple[Term, ...] = ()
    constant: Number = 0

    def row(self, name: str) -> Row:
        """The sum without limits."""
        return Row(name, self.terms, self.constant)


@dataclass(frozen=True, eq=False)
class Statement:
    """A program as it stood when it was solved."""

    widths: tuple[Width, ...]
    values: tuple[Sum, ...]  # one per stage
    senses: tuple[str, ...]
    costs: Mapping[str, Sum]
    budgets: Mapping[str, Budget]
    relations: Mapping[str, Relation]
    fixed: Mapping[int, int]  # width -> level index
    hint: Mapping[int, int]

    @property
    def names(self) -> list[str]:
        """The names of everything that can be in conflict."""
        return [*self.budgets, *self.relations, *map(self.fix_name, self.fixed)]

    def fix_name(self, width: int) -> str:
        """How a fixed choice is called where it is part of a conflict."""
        return f"fix {self.widths[width].name} == {self.widths[width].levels[self.fixed[width]]}"

    def objective(self, stage: int) -> Row:
        """A stage's objective, as maximised (a minimised one with its sign changed)."""
        row = self.values[stage].row(f"stage {stage}")
        return row if self.senses[stage] == "max" else row.negated()

    def cost_row(self, resource: str) -> Row:
        """A resource's cost, no limits."""
        return self.costs.get(resource, Sum()).row(resource)

    def model(self, stage: int = 0, active: Collection[str] | None = None, rows: Sequence[Row] = ()) -> Model:
        """Compile one stage; ``active`` names the budgets, constraints and fixes that count (None: all)."""
        used = set(self.names if active is None else active)
        domains = [np.arange(len(width.levels)) for width in self.widths]
        for width, k in self.fixed.items():
            if self.fix_name(width) in used:
                domains[width] = domains[width][domains[width] == k]
        kept = []
        for name, relation in self.relations.items():
            if name not in used:
                continue
            coefficients = relation.difference.coefficients
            if len(coefficients) == 1:
                width = next(iter(coefficients)).index
                domains[width] = domains[width][self._mask(relation, width)[domains[width]]]
            else:
                kept.append(relation_row(name, relation))
        for resource, budget in self.budgets.items():
            if resource in used:
                kept.append(replace(self.cost_row(resource), upper=budget.most, lower=budget.least))
        return simplest(Model(tuple(domains), self.objective(stage), (*kept, *rows)))

    def _mask(self, relation: Relation, width: int) -> np.ndarray:
        row = relation_row("", relation)
        choice = [0] * len(self.widths)
        found = np.zeros(len(self.widths[width].levels), dtype=bool)
        for k in range(len(found)):
            choice[width] = k
            found[k] = row.holds(choice)
        return found

    def violated(self, choice: Choice) -> list[str]:
        """The names of everything that a choice does not keep, in exact arithmetic."""
        rows = [relation_row(name, relation) for name, relation in self.relations.items()]
        for resource, budget in self.budgets.items():
            rows.append(replace(self.cost_row(resource), upper=budget.most, lower=budget.least))
        found = [row.name for row in rows if not row.holds(choice)]
        return found + [self.fix_name(width) for width, k in self.fixed.items() if choice[width] != k]


def relation_row(name: str, relation: Relation) -> Row:
    """A linear relation over level values as a row."""
    difference = relation.difference
    right = -difference.constant
    if relation.sense == "!=":
        return _unequal_row(name, relation)
    terms = tuple(
        Term((width.index,), array([c * level for level in width.levels]))
        for width, c in difference.coefficients.items()
    )
    lower = right if relation.sense in (">=", "==") else None
    upper = right if relation.sense in ("<=", "==") else None
    return Row(name, terms, 0, lower, upper)


def _unequal_row(name: str, relation: Relation) -> Row:
    """``!=`` over at most two widths: a table that is 1 where both sides are equal, kept at 0."""
    difference = relation.difference
    widths = list(difference.coefficients)
    if len(widths) > 2:
        raise ProgramError(f"'{relation}': != takes at most two widths")
    if not widths:
        return Row(name, (), int(difference.constant == 0), None, 0)
    total = np.array(difference.constant, dtype=object)
    for width in widths:
        levels = np.array([difference.coefficients[width] * level for level in width.levels], dtype=object)
        total = np.add.outer(total, levels)
    equal = (total == 0).astype(np.int64)
    return Row(name, (Term(tuple(width.index for width in widths), equal),), 0, None, 0)


def total(value: Number) -> int | float:
    """A number as reported for objectives: an int where it is one, else the nearest float."""
    value = simplify(value)
    return value if isinstance(value, int) else float(value)
