"""Integer programs over widths and switches: state one, solve it to a proven optimum, ask why.

>>> p = Program()
>>> a = p.width("a", levels=[8, 16, 24])
>>> b = p.width("b", levels=range(1, 65))
>>> s = p.switch("block3")
>>> p.value([10, 30, 40], a, when=s)
>>> p.value(range(1, 65), b)
>>> p.product("flops", 2, a, b, when=s)
>>> p.budget("flops", 1213)
>>> p.add(a <= b, a + 2 * b <= 140)
>>> solution = p.solve()
>>> solution.status, solution.objective, solution[a], solution["b"], solution[s]
('optimal', 74, 8, 64, 1)

Every number given counts exactly as it is: ints of any size, floats as the rationals that their bits spell. Nothing
here knows of torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from .arguments import search_limits, whole
from .errors import InfeasibleError, ProgramError, TimeLimitError
from .solver import conflict, driver, frontier, text
from .solver.clock import Clock
from .solver.exact import RankOne, Table, array, number
from .solver.expressions import Affine, Relation, Width
from .solver.model import Term
from .solver.shadow import ShadowPrices
from .solver.solution import Check, Explanation, Progress, Solution, Step
from .solver.statement import Budget, Statement, Sum

__all__ = [
    "Affine",
    "Check",
    "Explanation",
    "InfeasibleError",
    "Program",
    "ProgramError",
    "Progress",
    "RankOne",
    "Relation",
    "ShadowPrices",
    "Solution",
    "Step",
    "TimeLimitError",
    "Width",
]

Callback = Callable[[Progress], Any]
Handle = Width | str


class Program:
    """Widths and switches to choose, values to maximise, costs within budgets, linear constraints.

    All methods that take a width also take its name.
    """

    def __init__(self) -> None:
        self._widths: list[Width] = []
        self._by_name: dict[str, Width] = {}
        self._values: dict[int, Sum] = {0: Sum()}
        self._senses: dict[int, str] = {}
        self._costs: dict[str, Sum] = {}
        self._budgets: dict[str, Budget] = {}
        self._relations: dict[str, Relation] = {}
        self._fixed: dict[int, int] = {}
        self._hint: dict[int, int] = {}

    # -- what there is to choose -------------------------------------------------------------------------------------

    def width(self, name: str, levels: Iterable[int]) -> Width:
        """A choice of one of ``levels``: distinct ints, any order, at least one."""
        ints = _ints(name, levels)
        if not ints:
            raise ProgramError(f"width {name!r} has no levels")
        if len(set(ints)) < len(ints):
            twice = next(level for level in ints if ints.count(level) > 1)
            raise ProgramError(f"width {name!r} has level {twice} more than once")
        return self._new(name, ints, False)

    def switch(self, name: str) -> Width:
        """A choice between 0 and 1."""
        return self._new(name, (0, 1), True)

    def _new(self, name: str, levels: tuple[int, ...], is_switch: bool) -> Width:
        if not isinstance(name, str) or not name:
            raise ProgramError(f"a name is a non-empty string, not {name!r}")
        if name in self._by_name:
            raise ProgramError(f"there is a width or switch {name!r} already")
        width = Width(self, name, levels, len(self._widths), is_switch)
        self._widths.append(width)
        self._by_name[name] = width
        return width

    def __getitem__(self, name: str) -> Width:
        return self._find(name)

    # -- what it is worth, what it costs -----------------------------------------------------------------------------

    def value(self, table: Any, *widths: Handle, when: Handle | None = None, stage: int = 0) -> None:
        """Add value: a vector over a width, a table over a pair, a scalar on a switch, or a constant.

        Counted only where the switch ``when`` is on. ``stage`` says which objective: stage 0 comes first, a later one
        decides among what is optimal for those before it.
        """
        self._check_stage(stage)
        before = self._values.get(stage, Sum())
        self._values[stage] = self._plus(before, f"value of stage {stage}", table, widths, when)

    def cost(self, resource: str, table: Any, *widths: Handle, when: Handle | None = None) -> None:
        """Add to a resource's cost: a vector over a width, a table (or RankOne) over a pair, a scalar on a switch."""
        self._check_resource(resource)
        before = self._costs.get(resource, Sum())
        self._costs[resource] = self._plus(before, f"cost {resource!r}", table, widths, when)

    def product(self, resource: str, coefficient: Any, a: Handle, b: Handle, when: Handle | None = None) -> None:
        """Add ``coefficient * level of a * level of b`` to a resource's cost."""
        first, second = self._find(a), self._find(b)
        factor = number(coefficient)
        left = array([factor * level for level in first.levels])
        self.cost(resource, RankOne(left, array(list(second.levels))), first, second, when=when)

    def objective(self, stage: int = 0, sense: str = "max") -> None:
        """Say whether a stage is maximised ("max", the default) or minimised ("min")."""
        self._check_stage(stage)
        if sense not in ("max", "min"):
            raise ProgramError(f"a sense is 'max' or 'min', not {sense!r}")
        self._senses[stage] = sense
        self._values.setdefault(stage, Sum())

    def _plus(self, before: Sum, what: str, table: Any, handles: Sequence[Handle], when: Handle | None) -> Sum:
        widths = [self._find(handle) for handle in handles]
        switch = None if when is None else self._find(when)
        if switch is not None and not switch.is_switch and switch.levels != (0, 1):
            raise ProgramError(f"{what}: when= takes a switch, {switch.name!r} is a width")
        if not isinstance(table, RankOne):
            table = array(table)
            if table.ndim == 0:
                return self._plus_scalar(before, what, number(table[()]), widths, switch)
        if len(widths) == 2 and widths[0] is widths[1]:
            raise ProgramError(f"{what}: a table over {widths[0].name!r} twice; give its diagonal as a vector instead")
        expected = tuple(len(width.levels) for width in widths)
        if table.shape != expected or len(widths) > 2:
            names = ", ".join(width.name for width in widths) or "no width"
            raise ProgramError(f"{what}: a table of shape {table.shape} over {names}, whose levels make {expected}")
        return replace(before, terms=(*before.terms, _term(table, widths, switch)))

    def _plus_scalar(self, before: Sum, what: str, value: Any, widths: list[Width], switch: Width | None) -> Sum:
        if len(widths) > 1 or (widths and not widths[0].is_switch):
            names = ", ".join(width.name for width in widths)
            raise ProgramError(f"{what}: a scalar stands alone or on one switch, not over {names}")
        if not widths and switch is None:
            return replace(before, constant=before.constant + value)
        width = widths[0] if widths else switch
        assert width is not None
        if width is switch:
            switch = None
        return replace(before, terms=(*before.terms, _term(array([0, value]), [width], switch)))

    # -- limits ------------------------------------------------------------------------------------------------------

    def budget(self, resource: str, upper: Any = None, *, lower: Any = None, tolerance: Any = None) -> None:
        """Keep a resource's cost at most ``upper`` and at least ``lower``; what is given again replaces what it was.

        Costs are added up exactly, so that a limit which is a sum of floats may lie a rounding below what it is the
        sum of. ``tolerance``, an absolute number, is exactly how far beyond its limits the cost may lie (at first 0).

        >>> p = Program()
        >>> cells = [p.width(f"cell{k}", levels=[0, 1]) for k in range(3)]
        >>> for cell, ms in zip(cells, (0.1, 0.2, 0.7)):
        ...     p.cost("ms", [0, ms], cell)
        >>> p.fix({cell: 1 for cell in cells})
        >>> p.budget("ms", 0.7 + 0.2 + 0.1, tolerance=1e-12)
        >>> p.solve().status
        'optimal'
        """
        self._check_resource(resource)
        before = self._budgets.get(resource, Budget())
        limits = (upper, lower) if tolerance is None else (upper, lower, before.upper, before.lower)
        if all(limit is None for limit in limits):
            raise ProgramError(f"budget {resource!r}: give a limit, or lower=")
        if resource in self._relations:
            raise ProgramError(f"{resource!r} is the name of a constraint already")
        given = {"upper": upper, "lower": lower, "tolerance": tolerance}
        try:
            changes = {side: number(value) for side, value in given.items() if value is not None}
        except ProgramError as error:
            raise ProgramError(f"budget {resource!r}: {error}") from None
        if changes.get("tolerance", 0) < 0:
            raise ProgramError(f"budget {resource!r}: a tolerance is 0 or more, not {tolerance!r}")
        self._budgets[resource] = replace(before, **changes)

    def free(self, resource: str) -> None:
        """Take the limits of a resource away; what it costs is still counted."""
        self._budgets.pop(resource, None)

    def add(self, *relations: Relation, name: str | None = None) -> None:
        """Add linear constraints over level values: ``a + 2 * b <= 40``, ``s >= t``, ``a == 16``, ``a != 8``."""
        for relation in relations:
            if not isinstance(relation, Relation):
                raise ProgramError(f"{relation!r} is no constraint; compare widths with <=, >=, == or !=")
            for width in relation.difference.coefficients:
                self._find(width)
            if relation.sense == "!=" and len(relation.difference.coefficients) > 2:
                raise ProgramError(f"'{relation}': != takes at most two widths")
            wanted = str(relation) if name is None else name
            if name is not None and (len(relations) > 1):
                wanted = f"{name} ({relation})"
            self._relations[self._free_name(wanted)] = relation

    def _free_name(self, wanted: str) -> str:
        taken = {**self._relations, **self._budgets}
        count, found = 2, wanted
        while found in taken:
            found, count = f"{wanted} #{count}", count + 1
        return found

    def fix(self, choices: Mapping[Handle, int]) -> None:
        """Settle some widths at given levels."""
        for handle, level in choices.items():
            self._fixed[self._find(handle).index] = self._level(handle, level)

    @contextlib.contextmanager
    def fixed(self, choices: Mapping[Handle, int]) -> Iterator[None]:
        """Within it some more widths are settled."""
        before = dict(self._fixed)
        try:
            self.fix(choices)
            yield
        finally:
            self._fixed = before

    def hint(self, choices: Mapping[Handle, int]) -> None:
        """Start the search from these levels; they need not be feasible nor complete."""
        for handle, level in choices.items():
            self._hint[self._find(handle).index] = self._level(handle, level)

    def _level(self, handle: Handle, level: int) -> int:
        width = self._find(handle)
        if level not in width.levels:
            near = sorted(width.levels, key=lambda known: abs(known - level))[:2]
            raise ProgramError(f"{width.name!r} has no level {level}; the nearest are {near}")
        return width.levels.index(level)

    def _find(self, handle: Handle) -> Width:
        if isinstance(handle, Width):
            if handle.owner is not self:
                raise ProgramError(f"{handle.name!r} belongs to another program")
            return handle
        if handle not in self._by_name:
            raise ProgramError(f"no width or switch {handle!r} in this program")
        return self._by_name[handle]

    @staticmethod
    def _check_stage(stage: int) -> None:
        if not isinstance(stage, Integral) or stage < 0:
            raise ProgramError(f"a stage is 0, 1, 2, ..., not {stage!r}")

    @staticmethod
    def _check_resource(resource: str) -> None:
        if not isinstance(resource, str) or not resource:
            raise ProgramError(f"a resource is named by a non-empty string, not {resource!r}")

    # -- asking ------------------------------------------------------------------------------------------------------

    def statement(self) -> Statement:
        """The program as it stands, frozen."""
        stages = range(max(self._values) + 1)
        return Statement(
            tuple(self._widths),
            tuple(self._values.get(stage, Sum()) for stage in stages),
            tuple(self._senses.get(stage, "max") for stage in stages),
            dict(self._costs),
            dict(self._budgets),
            dict(self._relations),
            dict(self._fixed),
            dict(self._hint),
        )

    def solve(
        self,
        time_limit: float | None = 60.0,
        gap: float = 0.0,
        seed: int = 0,
        callback: Callback | None = None,
        engine: str = "auto",
    ) -> Solution:
        """The best choice, proven to the relative ``gap`` asked for unless the time limit (seconds) is reached.

        ``callback`` is given a :class:`Progress` as the search goes on, and stops it by returning True; so does
        Ctrl-C: either way the incumbent comes back, its status "feasible", and ``interrupted`` says whether it was
        Ctrl-C. Raises InfeasibleError with the smallest conflict, TimeLimitError where time ran out with nothing found,
        KeyboardInterrupt where Ctrl-C came before anything was.
        """
        options = replace(_options(time_limit, gap, seed), callback=callback, engine=engine)
        statement = self.statement()
        try:
            return driver.solve(statement, options)
        except driver.Infeasible:
            raise conflict.explain(statement, options) from None

    def k_best(
        self,
        k: int,
        time_limit: float | None = 60.0,
        gap: float = 0.0,
        seed: int = 0,
        among: Iterable[Handle] | None = None,
    ) -> list[Solution]:
        """The ``k`` best distinct choices, best first; fewer if no more are feasible.

        Choices are distinct that differ in one of the widths ``among`` (None: in any). Each search has an equal part
        of the time that is left.
        """
        k, options = whole(k, "k", 1, ProgramError), _options(time_limit, gap, seed)
        widths = None if among is None else {self._find(handle).index for handle in among}
        try:
            return frontier.k_best(self.statement(), k, options, widths)
        except driver.Infeasible:
            raise conflict.explain(self.statement(), options) from None

    def frontier(
        self,
        resource: str | Sequence[str],
        points: int = 12,
        time_limit: float | None = 60.0,
        gap: float = 0.0,
        seed: int = 0,
        repeats: bool = False,
    ) -> list[Solution]:
        """The best objective for a range of budgets on one resource, cheapest first, each with its own gap.

        The budgets are spread evenly between the least that is feasible and what the best choice without this budget
        costs; solutions that repeat a choice are left out, unless ``repeats``. Of several resources the largest counts.
        """
        resources, options = self._resources(resource), _options(time_limit, gap, seed)
        points = whole(points, "points", 1, ProgramError)
        try:
            found = frontier.frontier(self.statement(), resources, points, options)
        except driver.Infeasible:
            raise conflict.explain(self.statement(), options) from None
        return found if repeats else frontier.distinct(found)

    def least(
        self,
        resource: str | Sequence[str],
        time_limit: float | None = 60.0,
        enough: Any = None,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Solution:
        """The choice that costs least of a resource, whatever it is worth; of several resources the largest counts.

        Its status is "optimal" where no choice costs less. The search ends early at a choice that costs no more than
        ``enough``. Limits on the resource itself count, too, unless it is freed of them.

        >>> p = Program()
        >>> a, b = p.width("a", levels=[1, 2, 3]), p.width("b", levels=[1, 2, 3])
        >>> p.product("flops", 5, a, b)
        >>> p.add(a + b >= 5)
        >>> found = p.least("flops")
        >>> found.costs["flops"], found.status
        (30, 'optimal')
        """
        resources, options = self._resources(resource), _options(time_limit, 0.0, seed)
        limit = None if enough is None else number(enough)
        statement, clock = self.statement(), Clock(options.time_limit)
        try:
            return frontier.least(statement, resources, replace(options, callback=callback), clock, limit)
        except driver.Infeasible:
            raise conflict.explain(statement, options) from None

    def _resources(self, given: str | Sequence[str]) -> list[str]:
        resources = [given] if isinstance(given, str) else list(given)
        for resource in resources:
            if resource not in self._costs:
                raise ProgramError(f"nothing costs any {resource!r}; there are {list(self._costs)}")
        return resources

    # -- text --------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return text.printed(self.statement())

    def to_json(self) -> str:
        """The whole program as JSON text, every number exact."""
        return text.to_json(self.statement())

    @classmethod
    def from_json(cls, source: str) -> Program:
        """The program that :meth:`to_json` wrote."""
        data = text.parsed(source)
        program = cls()
        for entry in data["widths"]:
            program._new(entry["name"], tuple(entry["levels"]), entry["switch"])
        widths = program._widths
        program._values = {stage: text.read_sum(found) for stage, found in enumerate(data["values"])}
        program._senses = dict(enumerate(data["senses"]))
        program._costs = {name: text.read_sum(found) for name, found in data["costs"].items()}
        program._budgets = {name: text.read_budget(found) for name, found in data["budgets"].items()}
        program._relations = {name: text.read_relation(found, widths) for name, found in data["constraints"].items()}
        program._fixed = {int(index): k for index, k in data["fixed"].items()}
        program._hint = {int(index): k for index, k in data["hint"].items()}
        return program


def _ints(name: str, levels: Iterable[int]) -> tuple[int, ...]:
    if isinstance(levels, range) or (isinstance(levels, np.ndarray) and levels.ndim == 1 and levels.dtype.kind in "iu"):
        return tuple(levels.tolist() if isinstance(levels, np.ndarray) else levels)
    found = tuple(levels)
    if not all(isinstance(level, Integral) for level in found):
        wrong = next(x for x in found if not isinstance(x, Integral))
        raise ProgramError(f"width {name!r}: levels are ints, not {wrong!r}")
    return tuple(int(level) for level in found)


def _options(time_limit: Any, gap: Any, seed: Any) -> driver.Options:
    """How to search, checked."""
    limit, relative, start = search_limits(time_limit, gap, seed, ProgramError)
    return driver.Options(limit, number(relative), start)


def _term(table: Table, widths: Sequence[Width], switch: Width | None) -> Term:
    """A term; where its own switch is in its scope, the tables's off entries become 0."""
    scope = tuple(width.index for width in widths)
    if switch is None or switch.index not in scope:
        return Term(scope, table, None if switch is None else switch.index)
    axis = scope.index(switch.index)
    if isinstance(table, RankOne):
        factors = [table.first.copy(), table.second.copy()]
        factors[axis][0] = 0
        return Term(scope, RankOne(*factors))
    table = np.array(table)
    table[(slice(None),) * axis + (0,)] = 0
    return Term(scope, table)
