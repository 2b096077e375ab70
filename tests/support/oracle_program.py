"""Programs as plain data, and the brute-force oracle that says what the solver must answer.

A :class:`Spec` is what a user would type, written down. ``build`` types it into a :class:`solvemut.program.Program`;
the oracle reads the spec directly, looks at every choice in exact arithmetic, and so shares no code with the solver.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

from solvemut.program import Program, RankOne, Solution

Number = int | float

# -- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One ``p.value``, ``p.cost`` or ``p.product``: a table of some form over none, one or two names."""

    form: str  # "scalar", "vector", "table", "rank one" or "product"
    data: Any  # number, tuple, tuple of tuples, (f, g), or the coefficient
    names: tuple[str, ...]
    when: str | None
    of: str | int  # the resource of a cost, the stage of a value


@dataclass(frozen=True)
class Budget:
    resource: str
    upper: Number | None
    lower: Number | None = None


@dataclass(frozen=True)
class Linear:
    name: str
    terms: tuple[tuple[int, str], ...]  # coefficient, name
    sense: str  # "<=", ">=" or "=="
    right: int


@dataclass(frozen=True)
class Spec:
    """A program as data. Switches are names whose levels are (0, 1) and that are listed in ``switches``."""

    levels: Mapping[str, tuple[int, ...]]
    switches: tuple[str, ...] = ()
    values: tuple[Term, ...] = ()
    costs: tuple[Term, ...] = ()
    budgets: tuple[Budget, ...] = ()
    linear: tuple[Linear, ...] = ()
    senses: tuple[str, ...] = ("max",)
    shape: str = "free"


# The ways to solve that must all be exact: engine, and the constants that are set otherwise. Programs small enough for
# brute force are small enough for enumeration, so the pricing engine is kept from it; "starved" also takes away its
# room, so that tables are split, envelopes used, partial choices dropped and the rest left to CP-SAT.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "cp-sat": ("cp-sat", {}),
    "price": ("price", {"engines.enumeration.fits": lambda combinations: False}),
    "starved": (
        "price",
        {
            "engines.enumeration.fits": lambda combinations: False,
            "order.CELLS": 12,
            "order.ENVELOPE_FROM": 7,
            "order.ENVELOPE_COST": 1,
            "engines.price.search.KEPT": (1, 3),
        },
    ),
}


@contextmanager
def constants_of(way: str) -> Iterator[str]:
    """Set the constants of one of the ``WAYS``; yields the engine's name."""
    engine, constants = WAYS[way]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(f"solvemut.solver.{name}", value)
        yield engine


def solve(spec: Spec, way: str = "auto", time_limit: float = 60.0, **options: Any) -> Solution:
    """Solve in one of the ``WAYS``."""
    with constants_of(way) as engine:
        return build(spec).solve(time_limit=time_limit, engine=engine, **options)


def build(spec: Spec) -> Program:
    """Type the data into a program, as a user would."""
    program = Program()
    handles: dict[str | None, Any] = {None: None}
    for name, levels in spec.levels.items():
        handles[name] = program.switch(name) if name in spec.switches else program.width(name, levels=levels)
    for term in spec.values:
        over = [handles[name] for name in term.names]
        program.value(as_table(term), *over, when=handles[term.when], stage=term.of)
    for term in spec.costs:
        over = [handles[name] for name in term.names]
        if term.form == "product":
            program.product(term.of, term.data, *over, when=handles[term.when])
        else:
            program.cost(term.of, as_table(term), *over, when=handles[term.when])
    for budget in spec.budgets:
        if budget.upper is not None and budget.lower is not None:
            program.budget(budget.resource, budget.upper, lower=budget.lower)
        elif budget.upper is not None:
            program.budget(budget.resource, budget.upper)
        else:
            program.budget(budget.resource, lower=budget.lower)
    for linear in spec.linear:
        left = sum(coefficient * handles[name] for coefficient, name in linear.terms)
        relation = {"<=": left <= linear.right, ">=": left >= linear.right, "==": left == linear.right}[linear.sense]
        program.add(relation, name=linear.name)
    for stage, sense in enumerate(spec.senses):
        program.objective(stage, sense=sense)
    return program


def as_table(term: Term) -> Any:
    """The table as the public layer takes it: a number, a list, a list of lists or a RankOne."""
    if term.form == "table":
        return [list(row) for row in term.data]
    if term.form == "vector":
        return list(term.data)
    return RankOne(list(term.data[0]), list(term.data[1])) if term.form == "rank one" else term.data


# -- the oracle ------------------------------------------------------------------------------------------------------


def exact(number: Number | Fraction) -> int | Fraction:
    """The number itself, with no rounding at all."""
    number = Fraction(number)
    return number.numerator if number.denominator == 1 else number


def amount(spec: Spec, term: Term, choice: Mapping[str, int]) -> int | Fraction:
    """What one term adds under a choice of level values."""
    if term.when is not None and choice[term.when] == 0:
        return 0
    if term.form == "scalar" and term.names and choice[term.names[0]] == 0:
        return 0  # a scalar on a switch
    at = [spec.levels[name].index(choice[name]) for name in term.names]
    if term.form == "vector":
        return exact(term.data[at[0]])
    if term.form == "table":
        return exact(term.data[at[0]][at[1]])
    if term.form == "rank one":
        return exact(term.data[0][at[0]]) * exact(term.data[1][at[1]])
    if term.form == "product":
        return exact(term.data) * choice[term.names[0]] * choice[term.names[1]]
    return exact(term.data)


def objectives(spec: Spec, choice: Mapping[str, int]) -> tuple[int | Fraction, ...]:
    """The value of every stage."""
    stages = range(len(spec.senses))
    return tuple(sum((amount(spec, t, choice) for t in spec.values if t.of == stage), 0) for stage in stages)


def costs(spec: Spec, choice: Mapping[str, int]) -> dict[str, int | Fraction]:
    """The cost of every resource that has a term or a budget."""
    used = dict.fromkeys([*(str(t.of) for t in spec.costs), *(b.resource for b in spec.budgets)], exact(0))
    for term in spec.costs:
        used[str(term.of)] += amount(spec, term, choice)
    return used


def holds(linear: Linear, choice: Mapping[str, int]) -> bool:
    left = sum(coefficient * choice[name] for coefficient, name in linear.terms)
    return {"<=": left <= linear.right, ">=": left >= linear.right, "==": left == linear.right}[linear.sense]


def feasible(spec: Spec, choice: Mapping[str, int]) -> bool:
    """Every linear constraint and every budget kept, exactly."""
    if not all(holds(linear, choice) for linear in spec.linear):
        return False
    used = costs(spec, choice)
    upper = all(b.upper is None or used[b.resource] <= exact(b.upper) for b in spec.budgets)
    return upper and all(b.lower is None or used[b.resource] >= exact(b.lower) for b in spec.budgets)


def all_choices(spec: Spec) -> Iterator[dict[str, int]]:
    for levels in itertools.product(*spec.levels.values()):
        yield dict(zip(spec.levels, levels, strict=True))


def feasible_choices(spec: Spec) -> list[dict[str, int]]:
    return [choice for choice in all_choices(spec) if feasible(spec, choice)]


def rank(spec: Spec, stages: Sequence[int | Fraction]) -> tuple[int | Fraction, ...]:
    """Bigger is better, whatever the senses: the key by which stages are compared, the first one first."""
    return tuple(v if sense == "max" else -v for v, sense in zip(stages, spec.senses, strict=True))


def best(spec: Spec) -> tuple[int | Fraction, ...] | None:
    """The optimal value of every stage in lexicographic order, or None if nothing is feasible."""
    return max(
        (objectives(spec, choice) for choice in feasible_choices(spec)), key=lambda o: rank(spec, o), default=None
    )


# -- what a certificate must say -------------------------------------------------------------------------------------


def same(number: Any, truth: int | Fraction) -> bool:
    """The number is the exact one, or the float nearest to it."""
    return number == truth or (isinstance(number, float) and number == float(truth))


def never_below(bound: Any, truth: int | Fraction, sense: str) -> bool:
    """A bound on the right side of the optimum; a float may be the one nearest to it."""
    bound, truth = (float(bound), float(truth)) if isinstance(bound, float) else (bound, truth)
    return bound >= truth if sense == "max" else bound <= truth


def assert_certified(spec: Spec, solution: Solution) -> None:
    """The choices are feasible in exact arithmetic, and every number reported is the one recomputed from them."""
    choice = {name: solution.choices[name] for name in spec.levels}
    assert all(choice[name] in levels for name, levels in spec.levels.items())
    assert feasible(spec, choice)
    values = objectives(spec, choice)
    reported = solution.objectives if len(spec.senses) > 1 else (solution.objective,)
    assert len(reported) == len(values) and all(map(same, reported, values)), (reported, values)
    assert same(solution.objective, values[0])
    for resource, used in costs(spec, choice).items():
        assert same(solution.costs[resource], used), resource
    solution.check()


def assert_optimal(spec: Spec, solution: Solution, truth: Sequence[int | Fraction]) -> None:
    """The solution is optimal in every stage, says so, and its bounds are honest."""
    assert_certified(spec, solution)
    assert solution.status == "optimal"
    assert objectives(spec, {name: solution.choices[name] for name in spec.levels}) == tuple(truth)
    bounds = solution.bounds if len(spec.senses) > 1 else (solution.bound,)
    assert all(map(never_below, bounds, truth, spec.senses)), (bounds, truth)
    assert solution.gap == 0
