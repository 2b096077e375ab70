"""A solution with its certificate, and the progress of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from ..errors import CheckError, ProgramError
from .clock import Clock
from .exact import Number
from .expressions import Width
from .model import Choice
from .shadow import ShadowPrices, shadow
from .statement import Statement, relation_row, total


@dataclass(frozen=True)
class Progress:
    """Where a search stands: what a callback is given. ``incumbent`` and ``bound`` are None until there are some."""

    incumbent: int | float | None
    bound: int | float | None
    gap: float | None
    seconds: float
    phase: str


@dataclass(frozen=True)
class Check:
    """What :meth:`Solution.check` recomputed, all exact."""

    objectives: tuple[Number, ...]
    costs: Mapping[str, Number]
    constraints: int

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {_short(value)}" for name, value in self.costs.items())
        return f"objective {_short(self.objectives[0])}; {costs or 'no costs'}; {self.constraints} constraints hold"


@dataclass(frozen=True, eq=False)
class Solution:
    """The best choice found, and what is proven about it.

    ``status`` is "optimal" where the gap asked for is proven in every stage, else "feasible". ``objective`` and
    ``bound`` are ints where they are whole numbers, else the nearest floats; ``costs`` are exact (int or Fraction).
    ``interrupted`` tells that Ctrl-C ended the search; ``notes`` say why the gap asked for is open, where it is.
    """

    choices: Mapping[str, int]
    status: str
    objectives: tuple[int | float, ...]
    bounds: tuple[int | float, ...]
    gaps: tuple[float, ...]
    costs: Mapping[str, Number]
    seconds: float
    solver: str
    statement: Statement = field(repr=False)
    choice: Choice = field(repr=False)
    exact_objectives: tuple[Number, ...] = field(repr=False)
    exact_bounds: tuple[Number, ...] = field(repr=False)
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def objective(self) -> int | float:
        """The first stage's objective."""
        return self.objectives[0]

    @property
    def bound(self) -> int | float:
        """The first stage's proven bound."""
        return self.bounds[0]

    @property
    def gap(self) -> float:
        """The first stage's relative gap."""
        return self.gaps[0]

    def __getitem__(self, width: Width | str) -> int:
        name = width.name if isinstance(width, Width) else width
        if name not in self.choices:
            raise KeyError(f"no width or switch {name!r} in this program")
        return self.choices[name]

    def check(self) -> Check:
        """Recompute objectives, costs and constraints from the choices alone; raise CheckError on any doubt."""
        statement = self.statement
        for width in statement.widths:
            if self.choices.get(width.name) not in width.levels:
                raise CheckError(f"{width.name} stands at {self.choices.get(width.name)}, which is none of its levels")
        choice = tuple(width.levels.index(self.choices[width.name]) for width in statement.widths)
        broken = statement.violated(choice)
        if broken:
            raise CheckError(f"the choices break {', '.join(broken)}")
        objectives = tuple(values.row("").at(choice) for values in statement.values)
        for stage, (found, told, bound) in enumerate(zip(objectives, self.objectives, self.exact_bounds, strict=True)):
            if total(found) != told:
                raise CheckError(f"stage {stage}: objective {told} was reported, the choices give {found}")
            over = found - bound if statement.senses[stage] == "max" else bound - found
            if over > 0:
                raise CheckError(f"stage {stage}: the choices give {found}, beyond the proven bound {bound}")
        costs = {name: statement.cost_row(name).at(choice) for name in self.costs}
        for name, cost in costs.items():
            if cost != self.costs[name]:
                raise CheckError(f"{name}: cost {self.costs[name]} was reported, the choices give {cost}")
        return Check(objectives, costs, len(statement.names))

    def explain(self, width: Width | str) -> Explanation:
        """The marginal value and price of the next level up and down, and which budgets bind."""
        name = width.name if isinstance(width, Width) else width
        for found in self.statement.widths:
            if found.name == name:
                return _explain(self, found)
        raise ProgramError(f"no width or switch {name!r} in this program")

    def prices(self, stage: int = 0, time_limit: float = 10.0) -> ShadowPrices:
        """What one unit of each budget is worth, and the bound that holds when budgets are moved: see `ShadowPrices`.

        The multipliers with the lowest Lagrangian bound, found anew for the whole program, whichever engine solved it.

        >>> from solvemut.program import Program
        >>> p = Program()
        >>> a, b = (p.width(name, levels=range(11)) for name in "ab")
        >>> for width, worth in ((a, 3), (b, 2)):
        ...     p.value([worth * k for k in range(11)], width)
        ...     p.product("flops", 1, width, p.width(f"one {width.name}", levels=[1]))
        >>> p.budget("flops", 15)
        >>> found = p.solve().prices()
        >>> round(found.prices["flops"], 6), round(found.at({"flops": -3}), 6)
        (2.0, 34.0)
        """
        return shadow(self.statement, stage, self.exact_objectives, Clock(time_limit))

    def __str__(self) -> str:
        lines = [
            f"{self.status}: objective {_short(self.objective)}, bound {_short(self.bound)}, gap {self.gap:.2e}, "
            f"{self.seconds:.2f} s by {self.solver}" + (", interrupted" if self.interrupted else "")
        ]
        lines += [f"  note: {note}" for note in self.notes]
        for name, cost in self.costs.items():
            budget = self.statement.budgets.get(name)
            limit = "" if budget is None or budget.upper is None else f" of {_short(budget.upper)}"
            if limit and budget is not None and budget.tolerance:
                limit += f" (tolerance {_short(budget.tolerance)})"
            lines.append(f"  {name}: {_short(cost)}{limit}")
        lines += [f"  {name} = {level}" for name, level in self.choices.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Step:
    """One level further: what changes in value and in each cost, what it breaks, and the value per unit of cost."""

    level: int
    value: Number
    costs: Mapping[str, Number]
    breaks: tuple[str, ...]
    value_per_cost: Mapping[str, float]


@dataclass(frozen=True)
class Explanation:
    """Why a width stands where it stands."""

    name: str
    level: int
    up: Step | None
    down: Step | None
    binding: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.name} = {self.level}"]
        for label, step in (("up", self.up), ("down", self.down)):
            if step is None:
                lines.append(f"  {label}: no level beyond")
                continue
            costs = ", ".join(f"{name} {_signed(cost)}" for name, cost in step.costs.items()) or "no cost"
            broken = f"; breaks {', '.join(step.breaks)}" if step.breaks else ""
            lines.append(f"  {label} to {step.level}: value {_signed(step.value)}, {costs}{broken}")
        lines.append(f"  binding: {', '.join(self.binding) or 'nothing'}")
        return "\n".join(lines)


def _explain(solution: Solution, width: Width) -> Explanation:
    order = sorted(width.levels)
    at = order.index(solution[width])
    up = _step(solution, width, order[at + 1]) if at + 1 < len(order) else None
    down = _step(solution, width, order[at - 1]) if at > 0 else None
    blocked = {name for step in (up, down) if step is not None for name in step.breaks}
    binding = [name for name in solution.statement.names if name in blocked or _tight(solution, name)]
    return Explanation(width.name, solution[width], up, down, tuple(binding))


def _step(solution: Solution, width: Width, level: int) -> Step:
    statement = solution.statement
    moved = list(solution.choice)
    moved[width.index] = width.levels.index(level)
    values = statement.values[0].row("")
    value = values.at(moved) - values.at(solution.choice)
    costs = {name: statement.cost_row(name).at(moved) - cost for name, cost in solution.costs.items()}
    rates = {name: float(Fraction(value) / Fraction(cost)) for name, cost in costs.items() if cost}
    return Step(level, value, costs, tuple(statement.violated(tuple(moved))), rates)


def _tight(solution: Solution, name: str) -> bool:
    """Whether a budget or a constraint holds with equality."""
    statement = solution.statement
    if name in statement.budgets:
        budget, cost = statement.budgets[name], statement.cost_row(name).at(solution.choice)
        return cost in (budget.most, budget.least)
    if name in statement.relations:
        row = relation_row(name, statement.relations[name])
        return statement.relations[name].sense != "!=" and row.at(solution.choice) in (row.lower, row.upper)
    return True  # a fixed choice


def _short(value: Number | float | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{float(value):.6g}"


def _signed(value: Number) -> str:
    return ("+" if value >= 0 else "") + _short(value)
