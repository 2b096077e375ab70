"""Infeasible programs: the conflict is sufficient, every part of it is needed, and the limits named would do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_program import Budget, Spec, all_choices, build, costs, exact, feasible, same
from strategies_program import SHAPES, examples, linear_of, specs

from solvemut.errors import InfeasibleError
from solvemut.program import Program, ProgramError


@st.composite
def infeasible_specs(draw: st.DrawFn) -> Spec:
    """Programs whose budgets and rows are drawn, each on its own, until nothing satisfies them all."""
    spec = draw(specs(shape=draw(st.sampled_from(sorted(SHAPES))), stages=1).filter(lambda spec: len(spec.levels) > 1))
    spec = replace(spec, linear=draw(linear_of(spec, most=4)))
    rows = [linear.name for linear in spec.linear]
    spent = [costs(spec, choice) for choice in all_choices(spec)]
    budgets = []
    for resource in dict.fromkeys(str(term.of) for term in spec.costs):
        low, high = (f(exact(used[resource]) for used in spent) for f in (min, max))
        share = draw(st.sampled_from([-1, 0, 1, 5, 30]))
        limit = low + (high - low) * share // 100 if share >= 0 else low - 1
        limit = int(limit) if exact(limit) == int(limit) else float(limit)
        budgets.append(Budget(resource, limit) if draw(st.integers(0, 3)) else Budget(resource, None, limit))
    assert len(set(rows)) == len(rows)
    return replace(spec, budgets=tuple(budgets))


def only(spec: Spec, names: Collection[str]) -> Spec:
    """The program with nothing but the constraints and budgets named."""
    return replace(
        spec,
        linear=tuple(linear for linear in spec.linear if linear.name in names),
        budgets=tuple(budget for budget in spec.budgets if budget.resource in names),
    )


def satisfiable(spec: Spec) -> bool:
    return any(feasible(spec, choice) for choice in all_choices(spec))


def names_of(spec: Spec) -> set[str]:
    return {linear.name for linear in spec.linear} | {budget.resource for budget in spec.budgets}


@examples(90)
@given(infeasible_specs())
def test_conflicts_are_sufficient_minimal_and_come_with_the_limits_that_would_do(spec):
    if satisfiable(spec):
        assert feasible(spec, build(spec).solve(time_limit=60).choices)
        return
    with pytest.raises(InfeasibleError) as caught:
        build(spec).solve(time_limit=60)
    conflict = caught.value.conflict
    assert len(set(conflict)) == len(conflict)
    assert conflict and set(conflict) <= names_of(spec)
    assert not satisfiable(only(spec, conflict)), "sufficient"
    for name in conflict:
        assert satisfiable(only(spec, set(conflict) - {name})), f"{name} is needed"
    smallest = caught.value.smallest
    assert set(smallest) <= {budget.resource for budget in spec.budgets if budget.resource in conflict}
    for budget in spec.budgets:
        if budget.resource in conflict:
            assert_limit_would_do(spec, conflict, budget, smallest)


def assert_limit_would_do(spec: Spec, conflict: list[str], budget: Budget, smallest: dict[str, object]) -> None:
    """The tightest limit with which the rest of the program, as asked, can be kept.

    Where another conflict stands beside this one, no limit does that: then the tightest that resolves this conflict.
    """
    others = names_of(spec) - {budget.resource}
    within: list[int | Fraction] = []
    for kept in (others, others & set(conflict)):
        rest = only(spec, kept)
        within = [costs(spec, choice)[budget.resource] for choice in all_choices(spec) if feasible(rest, choice)]
        if within:
            break
    limit = min(within) if budget.upper is not None else max(within)
    assert same(smallest[budget.resource], limit)
    loosened = replace(budget, upper=limit) if budget.upper is not None else replace(budget, lower=limit)
    assert satisfiable(replace(rest, budgets=(*rest.budgets, loosened)))


def three_in_a_ring() -> Program:
    """x < y < z < x, each comparison needed; a budget and a constraint that do not matter stand beside them."""
    p = Program()
    x, y, z = (p.width(name, levels=range(1, 6)) for name in "xyz")
    p.value(range(5), x)
    p.cost("size", range(5), x)
    p.budget("size", 3)
    p.add(x + 1 <= y, name="x below y")
    p.add(y + 1 <= z, name="y below z")
    p.add(z + 1 <= x, name="z below x")
    p.add(x + y + z <= 12, name="small")
    return p


def test_a_ring_of_comparisons():
    with pytest.raises(InfeasibleError) as caught:
        three_in_a_ring().solve()
    assert sorted(caught.value.conflict) == ["x below y", "y below z", "z below x"]
    assert caught.value.smallest == {}
    for name in caught.value.conflict:
        assert name in str(caught.value)


@pytest.mark.parametrize("limit", [41, 42])
def test_a_budget_just_below_and_at_what_the_smallest_choice_costs(limit):
    p = Program()
    a, b = p.width("a", levels=[8, 16]), p.width("b", levels=[4, 8])
    p.value([1, 2], a)
    p.product("flops", 1, a, b)
    p.cost("flops", 10)
    p.budget("flops", limit)
    if limit == 42:
        assert p.solve().costs == {"flops": 42}
        return
    with pytest.raises(InfeasibleError) as caught:
        p.solve()
    assert caught.value.conflict == ["flops"]
    assert caught.value.smallest == {"flops": 42}


def test_two_budgets_that_cannot_both_be_kept():
    p = Program()
    a, b = p.width("a", levels=range(1, 11)), p.width("b", levels=range(1, 11))
    p.value(range(10), a)
    p.product("flops", 1, a, b)
    p.budget("flops", 19)  # a + b >= 12 needs a * b >= 2 * 10
    p.cost("breadth", range(1, 11), a)
    p.cost("breadth", range(1, 11), b)
    p.budget("breadth", lower=12)  # a * b <= 19 allows a + b <= 1 + 10
    with pytest.raises(InfeasibleError) as caught:
        p.solve()
    assert sorted(caught.value.conflict) == ["breadth", "flops"]
    assert caught.value.smallest == {"flops": 20, "breadth": 11}


def test_fixed_choices_are_named_in_the_conflict():
    p = Program()
    a, b = p.width("a", levels=range(1, 5)), p.width("b", levels=range(1, 5))
    p.add(a + b <= 3, name="narrow")
    p.fix({a: 4})
    with pytest.raises(InfeasibleError) as caught:
        p.solve()
    assert "narrow" in caught.value.conflict
    assert any("a" in name and name != "narrow" for name in caught.value.conflict)


def test_a_large_infeasible_program_is_explained_in_time():
    p = Program()
    widths = [p.width(f"w{i}", levels=range(8, 129, 8)) for i in range(30)]
    for a, b in itertools.pairwise(widths):
        p.value(range(16), a)
        p.product("flops", 2, a, b)
    p.budget("flops", 29 * 2 * 64 - 1)
    p.add(sum(widths) >= 300, name="wide")
    p.add(widths[0] <= widths[1], name="idle")
    with pytest.raises(InfeasibleError) as caught:
        p.solve(time_limit=60)
    assert caught.value.conflict == ["flops"]
    assert caught.value.smallest == {"flops": 28 * 2 * 64 + 2 * 8 * 72}  # 300 is reached where it is cheap: at the end


# -- limits that are sums of floats ------------------------------------------------------------------------------------


def cells(order: tuple[float, ...], limit: float | None = None, lower: float | None = None, **more: object) -> Program:
    p = Program()
    for k, ms in enumerate(order):
        p.cost("ms", [0, ms], p.switch(f"cell{k}"))
        p.fix({f"cell{k}": 1})
    p.budget("ms", limit, lower=lower, **more)
    return p


def test_a_limit_that_rounding_put_below_its_sum_is_told_and_the_number_named_would_do():
    order = (0.1, 0.2, 0.7)
    limit = 0.7 + 0.2 + 0.1
    assert Fraction(limit) < sum(map(Fraction, order))
    with pytest.raises(InfeasibleError, match=r"1 ulp above, a floating-point sum\? see tolerance=") as error:
        cells(order, limit).solve()
    would = float(re.search(r"\(([\d.]+) would do", str(error.value)).group(1))
    assert cells(order, would).solve().status == "optimal"
    with pytest.raises(InfeasibleError, match=r"\([\d.]+ would do\)"):
        cells(order, 0.5).solve()


def test_a_limit_from_below_is_named_in_its_own_direction():
    order = (0.1, 0.2, 0.3)
    lower = 0.1 + 0.2 + 0.3
    assert Fraction(lower) > sum(map(Fraction, order))
    with pytest.raises(InfeasibleError, match="1 ulp below") as error:
        cells(order, lower=lower).solve()
    would = float(re.search(r"\(([\d.]+) would do", str(error.value)).group(1))
    assert cells(order, lower=would).solve().status == "optimal"


def test_a_tolerance_counts_exactly_and_is_kept_printed_and_written():
    order = (0.1, 0.2, 0.7)
    limit = 0.7 + 0.2 + 0.1
    short = sum(map(Fraction, order)) - Fraction(limit)
    assert cells(order, limit, tolerance=short).solve().status == "optimal"
    with pytest.raises(InfeasibleError) as error:
        cells(order, limit, tolerance=short - Fraction(1, 10**40)).solve()
    assert error.value.smallest["ms"] == Fraction(limit) + Fraction(1, 10**40)
    p = cells(order, limit, tolerance=0.125)
    assert "<= 1 (tolerance 0.125)" in str(p) and "tolerance 0.125" in str(p.solve())
    again = Program.from_json(p.to_json())
    assert again.statement().budgets == p.statement().budgets and again.to_json() == p.to_json()
    p.budget("ms", 0.9)  # the tolerance stays until it is given again
    assert p.solve().status == "optimal"
    p.budget("ms", tolerance=0)
    with pytest.raises(InfeasibleError):
        p.solve()
    for wrong in (-1e-9, float("nan"), "much"):
        with pytest.raises(ProgramError, match="budget 'ms'"):
            p.budget("ms", 1, tolerance=wrong)
    with pytest.raises(ProgramError, match="give a limit"):
        Program().budget("ms", tolerance=1)
