"""Random programs as plain data, and the brute-force oracle that says what the solver must answer.

A :class:`Spec` is what a user would type, written down. ``build`` types it into a :class:`solvemut.program.Program`;
``evaluate``, ``feasible_choices`` and ``best`` read the same data with :class:`fractions.Fraction` and know nothing of
the solver. Every shape of program that the solver must not care about is a strategy in ``SHAPES``.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from solvemut.program import Program, RankOne, Solution

NIGHTLY = os.environ.get("SOLVEMUT_NIGHTLY") == "1"
MAX_CHOICES = 700  # of the brute force, per example
Number = int | float


def examples(count: int, nightly: int = 20) -> settings:
    """Settings with ``count`` examples, ``nightly`` times as many in the nightly profile."""
    return settings(max_examples=count * (nightly if NIGHTLY else 1))


class Stopwatch:
    """Seconds since it was made: by the clock on the wall; on an overloaded machine those that the process had."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        wall, cpu = time.monotonic() - self.wall, time.process_time() - self.cpu
        overloaded = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
        return min(wall, cpu) if overloaded else wall


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


# -- numbers ---------------------------------------------------------------------------------------------------------

NUMBERS: dict[str, st.SearchStrategy[Number]] = {
    "small": st.integers(-4, 9),
    "ties": st.integers(0, 2),
    "dyadic": st.integers(-20, 60).map(lambda n: n / 8),
    "float": st.floats(-3.0, 8.0, allow_nan=False),
    "huge": st.integers(-(10**17), 10**18),
    "mixed": st.sampled_from([0, 1, 10**9, 10**12 + 1, 1e-6, 0.1, 3, 2.5e8]),
}


def vectors(numbers: st.SearchStrategy[Number], size: int) -> st.SearchStrategy[tuple[Number, ...]]:
    return st.lists(numbers, min_size=size, max_size=size).map(tuple)


@st.composite
def prefix_sums(draw: st.DrawFn, size: int) -> tuple[Number, ...]:
    """What a block's value looks like: concave, from unit values sorted from the best down."""
    units = sorted(draw(vectors(st.integers(0, 12), size)), reverse=True)
    return tuple(itertools.accumulate(units))


# -- programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Who stands beside whom: level counts, the pairs that carry tables, and the switch of each name or pair."""

    sizes: Mapping[str, int]
    pairs: tuple[tuple[str, str], ...]
    switches: tuple[str, ...] = ()
    owner: Mapping[str, str] = ()  # type: ignore[assignment]  # inner width -> the switch that removes it


@st.composite
def sizes_of(draw: st.DrawFn, names: Sequence[str], room: int = MAX_CHOICES) -> dict[str, int]:
    """Level counts from 1 up whose product stays within the brute force's reach."""
    sizes = {}
    for left, name in enumerate(names):
        share = int(room ** (1 / (len(names) - left)) + 1e-9)
        sizes[name] = draw(st.integers(1, max(1, min(6, share + 1))))
        room //= sizes[name]
        room = max(room, 1)
    return sizes


@st.composite
def chains(draw: st.DrawFn) -> Layout:
    names = [f"w{i}" for i in range(draw(st.integers(1, 6)))]
    return Layout(draw(sizes_of(names)), tuple(itertools.pairwise(names)))


@st.composite
def stars(draw: st.DrawFn) -> Layout:
    """A residual stream and its blocks: stream to inner, inner to inner, inner back to the stream."""
    blocks = draw(st.integers(1, 2))
    names, pairs = ["stream"], []
    for block in range(blocks):
        one, two = f"b{block}.1", f"b{block}.2"
        names += [one, two]
        pairs += [("stream", one), (one, two), (two, "stream")]
    return Layout(draw(sizes_of(names)), tuple(pairs))


@st.composite
def dense_blocks(draw: st.DrawFn) -> Layout:
    names = [f"d{i}" for i in range(draw(st.integers(3, 6)))]
    return Layout(draw(sizes_of(names)), tuple(itertools.combinations(names, 2)))


@st.composite
def u_shapes(draw: st.DrawFn) -> Layout:
    names = [f"u{i}" for i in range(2 * draw(st.integers(1, 3)) + 1)]
    skips = [(names[i], names[-1 - i]) for i in range(len(names) // 2)]
    return Layout(draw(sizes_of(names)), tuple(dict.fromkeys([*itertools.pairwise(names), *skips])))


@st.composite
def components(draw: st.DrawFn) -> Layout:
    """Parts that share nothing but the budgets."""
    parts = [[f"c{part}.{i}" for i in range(draw(st.integers(1, 3)))] for part in range(draw(st.integers(2, 3)))]
    pairs = tuple(pair for part in parts for pair in itertools.pairwise(part))
    return Layout(draw(sizes_of([name for part in parts for name in part])), pairs)


@st.composite
def switched(draw: st.DrawFn) -> Layout:
    """Residual blocks that a switch takes away, tables, values and all."""
    names, pairs, switches, owner = ["stream"], [], [], {}
    for block in range(draw(st.integers(1, 3))):
        switch, inner = f"s{block}", f"b{block}"
        switches.append(switch)
        names.append(inner)
        pairs += [("stream", inner), (inner, "stream")]
        owner[inner] = switch
    sizes = draw(sizes_of(names, room=MAX_CHOICES >> len(switches)))
    return Layout(sizes, tuple(pairs), tuple(switches), owner)


@st.composite
def free_graphs(draw: st.DrawFn) -> Layout:
    names = [f"g{i}" for i in range(draw(st.integers(1, 5)))]
    switches = tuple(f"s{i}" for i in range(draw(st.integers(0, 2))))
    every = [(a, b) for a, b in itertools.permutations([*names, *switches], 2)]
    pairs = tuple(draw(st.lists(st.sampled_from(every), max_size=6, unique=True))) if every else ()
    owner = {name: draw(st.sampled_from(switches)) for name in names if switches and draw(st.booleans())}
    return Layout(draw(sizes_of(names, room=MAX_CHOICES >> len(switches))), pairs, switches, owner)


SHAPES: dict[str, Callable[[], st.SearchStrategy[Layout]]] = {
    "chain": chains,
    "star": stars,
    "dense": dense_blocks,
    "u": u_shapes,
    "components": components,
    "switched": switched,
    "free": free_graphs,
}


@st.composite
def level_values(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Mostly multiples of a step, sometimes anything: negative, zero, in any order."""
    if draw(st.integers(0, 3)):
        step = draw(st.sampled_from([1, 8]))
        return tuple(range(step, step * size + 1, step))
    return tuple(draw(st.lists(st.integers(-5, 9), min_size=size, max_size=size, unique=True)))


def owner_of(layout: Layout, names: Sequence[str]) -> str | None:
    """The switch that takes away a table over these names; never a name the table itself runs over."""
    owner = dict(layout.owner)
    return next((owner[name] for name in names if name in owner and owner[name] not in names), None)


@st.composite
def value_terms(draw: st.DrawFn, layout: Layout, numbers: st.SearchStrategy[Number], stage: int) -> list[Term]:
    terms = []
    for name, size in layout.sizes.items():
        if draw(st.integers(0, 9)) == 0:
            continue
        data = draw(prefix_sums(size) if draw(st.booleans()) else vectors(numbers, size))
        terms.append(Term("vector", data, (name,), owner_of(layout, [name]), stage))
    counts = {**layout.sizes, **dict.fromkeys(layout.switches, 2)}
    for a, b in layout.pairs:
        if draw(st.integers(0, 4)) == 0:  # pair values are rare, but they are there
            table = draw(vectors(vectors(numbers, counts[b]), counts[a]))
            terms.append(Term("table", table, (a, b), owner_of(layout, [a, b]), stage))
    for switch in layout.switches:
        if draw(st.booleans()):
            names, when = ((switch,), None) if draw(st.booleans()) else ((), switch)
            terms.append(Term("scalar", draw(numbers), names, when, stage))
    if draw(st.integers(0, 3)) == 0:
        terms.append(Term("scalar", draw(numbers), (), None, stage))
    return terms


@st.composite
def pair_cost(
    draw: st.DrawFn, layout: Layout, pair: tuple[str, str], numbers: st.SearchStrategy[Number], resource: str
) -> Term:
    counts = {**layout.sizes, **dict.fromkeys(layout.switches, 2)}
    form = draw(st.sampled_from(["product", "table", "rank one"]))
    data: Any = draw(st.integers(1, 5))
    if form == "table":
        data = draw(vectors(vectors(numbers, counts[pair[1]]), counts[pair[0]]))
    elif form == "rank one":
        data = (draw(vectors(numbers, counts[pair[0]])), draw(vectors(numbers, counts[pair[1]])))
    return Term(form, data, pair, owner_of(layout, pair), resource)


@st.composite
def cost_terms(draw: st.DrawFn, layout: Layout, numbers: st.SearchStrategy[Number], resource: str) -> list[Term]:
    terms = [draw(pair_cost(layout, pair, numbers, resource)) for pair in layout.pairs if draw(st.integers(0, 6))]
    for name, size in layout.sizes.items():
        if draw(st.integers(0, 2)) == 0 or not layout.pairs:
            terms.append(Term("vector", draw(vectors(numbers, size)), (name,), owner_of(layout, [name]), resource))
    for switch in layout.switches:
        if draw(st.integers(0, 2)) == 0:
            terms.append(Term("scalar", draw(numbers), (switch,), None, resource))
    if draw(st.integers(0, 4)) == 0:
        terms.append(Term("scalar", draw(numbers), (), None, resource))
    return terms


def nearby(spec: Spec, choice: Mapping[str, int], resource: str, slack: int) -> Number:
    """A limit at what the choice costs (slack 0: hit exactly, if a float can say it), or a little off."""
    at = Fraction(costs(spec, choice)[resource])
    limit = at + slack * abs(at) / 10
    return int(limit) if at.denominator == 1 else float(limit)


@st.composite
def budgets_of(draw: st.DrawFn, spec: Spec, resources: Sequence[str]) -> tuple[Budget, ...]:
    some = {name: draw(st.sampled_from(levels)) for name, levels in spec.levels.items()}
    budgets = []
    for resource in resources:
        slack = draw(st.sampled_from([0, 0, 0, 1, 2, -1]))
        kind = draw(st.sampled_from(["upper"] * 5 + ["lower", "both"]))
        limit = nearby(spec, some, resource, slack)
        if kind == "both":
            low = nearby(spec, some, resource, -abs(slack))
            budgets.append(Budget(resource, max(limit, low), min(limit, low)))
        else:
            budgets.append(Budget(resource, limit, None) if kind == "upper" else Budget(resource, None, limit))
    return tuple(budgets)


@st.composite
def linear_of(draw: st.DrawFn, spec: Spec, most: int = 2) -> tuple[Linear, ...]:
    some = {name: draw(st.sampled_from(levels)) for name, levels in spec.levels.items()}
    rows = []
    for number in range(draw(st.integers(0, most))):
        names = draw(st.lists(st.sampled_from(list(spec.levels)), min_size=1, max_size=3, unique=True))
        terms = tuple((draw(st.sampled_from([1, 1, 2, -1, -2, 3])), name) for name in names)
        sense = draw(st.sampled_from(["<=", ">=", "<=", ">=", "=="]))
        right = sum(c * some[n] for c, n in terms) + draw(st.sampled_from([0, 0, 0, 1, -1]))
        rows.append(Linear(f"row{number}", terms, sense, right))
    return tuple(rows)


@st.composite
def specs(draw: st.DrawFn, shape: str | None = None, numbers: str | None = None, stages: int | None = None) -> Spec:
    """A random program of a shape (or any), with numbers of a kind (or any), and so many stages (or 1 to 3)."""
    shape = shape or draw(st.sampled_from(sorted(SHAPES)))
    layout = draw(SHAPES[shape]())
    kinds = [NUMBERS[numbers or draw(st.sampled_from(sorted(NUMBERS)))] for _ in range(2)]
    count = stages or draw(st.sampled_from([1, 1, 1, 2, 3]))
    senses = tuple(draw(st.sampled_from(["max", "max", "min"])) for _ in range(count))
    levels = {name: draw(level_values(size)) for name, size in layout.sizes.items()}
    levels |= dict.fromkeys(layout.switches, (0, 1))
    values = [term for stage in range(count) for term in draw(value_terms(layout, kinds[0], stage))]
    resources = [f"r{i}" for i in range(draw(st.integers(0, 3)))]
    costs_ = [term for resource in resources for term in draw(cost_terms(layout, kinds[1], resource))]
    spec = Spec(levels, layout.switches, tuple(values), tuple(costs_), senses=senses, shape=shape)
    budgeted = [r for r in resources if any(t.of == r for t in costs_)]
    spec = replace(spec, budgets=draw(budgets_of(spec, budgeted)))
    return replace(spec, linear=draw(linear_of(spec)))
