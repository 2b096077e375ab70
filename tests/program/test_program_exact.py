"""Random programs of every shape against brute force in exact arithmetic: same optimum, honest certificate."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle_program import (
    WAYS,
    Budget,
    Linear,
    Spec,
    assert_certified,
    assert_optimal,
    best,
    build,
    costs,
    exact,
    feasible_choices,
    never_below,
    objectives,
    rank,
    solve,
)
from strategies_program import NUMBERS, SHAPES, examples, specs

from solvemut.errors import InfeasibleError
from solvemut.program import Program, RankOne


def solve_against_brute_force(spec: Spec) -> None:
    """Every way of solving gives the brute-force optimum: small programs must not only be right by being small."""
    truth = best(spec)
    for way in WAYS:
        if truth is None:
            with pytest.raises(InfeasibleError):
                solve(spec, way)
        else:
            assert_optimal(spec, solve(spec, way), truth)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@examples(30)
@given(data=st.data())
def test_optimum_is_brute_force_optimum_for_every_shape(shape, data):
    solve_against_brute_force(data.draw(specs(shape=shape)))


@pytest.mark.parametrize("numbers", sorted(NUMBERS))
@examples(20)
@given(data=st.data())
def test_optimum_is_brute_force_optimum_for_every_kind_of_number(numbers, data):
    solve_against_brute_force(data.draw(specs(numbers=numbers)))


@pytest.mark.parametrize("stages", [2, 3])
@examples(15)
@given(data=st.data())
def test_stages_are_lexicographic(stages, data):
    solve_against_brute_force(data.draw(specs(stages=stages)))


@examples(30)
@given(specs(stages=1), st.sampled_from([0.01, 0.1, 0.5]))
def test_a_wider_gap_is_kept_and_its_bound_holds(spec, gap):
    truth = best(spec)
    assume(truth is not None)
    for way in WAYS:
        solution = solve(spec, way, gap=gap)
        assert_certified(spec, solution)
        assert solution.status == "optimal"
        assert never_below(solution.bound, truth[0], spec.senses[0])
        distance = abs(Fraction(solution.bound) - Fraction(solution.objective))
        scale = max(Fraction(1, 10**12), abs(Fraction(solution.objective)))
        assert distance <= Fraction(gap) * scale * (1 + Fraction(1, 10**9))
        assert solution.gap <= gap


@examples(30)
@given(specs(), st.data())
def test_a_hint_never_changes_the_optimum(spec, data):
    truth = best(spec)
    assume(truth is not None)
    program = build(spec)
    names = data.draw(st.lists(st.sampled_from(list(spec.levels)), unique=True))
    program.hint({name: data.draw(st.sampled_from(spec.levels[name])) for name in names})
    assert_optimal(spec, program.solve(time_limit=60), truth)


@examples(30)
@given(specs(), st.data())
def test_fixed_choices_are_constraints(spec, data):
    names = data.draw(st.lists(st.sampled_from(list(spec.levels)), min_size=1, unique=True))
    fixed = {name: data.draw(st.sampled_from(spec.levels[name])) for name in names}
    rows = tuple(Linear(f"fix {name}", ((1, name),), "==", value) for name, value in fixed.items())
    truth = best(replace(spec, linear=spec.linear + rows))
    program = build(spec)
    program.fix(fixed)
    if truth is None:
        with pytest.raises(InfeasibleError):
            program.solve(time_limit=60)
    else:
        assert_optimal(spec, program.solve(time_limit=60), truth)


@examples(40)
@given(specs())
def test_json_keeps_the_program(spec):
    text = build(spec).to_json()
    again = Program.from_json(text)
    assert again.to_json() == text
    assert str(again) == str(build(spec))
    truth = best(spec)
    assume(truth is not None)
    assert_optimal(spec, again.solve(time_limit=60), truth)


PLAIN = [shape for shape in sorted(SHAPES) if shape not in ("switched", "free")]


@pytest.mark.parametrize("shape", PLAIN)
@examples(8)
@given(data=st.data())
def test_k_best_are_the_k_best_distinct_choices(shape, data):
    spec = data.draw(specs(shape=shape, stages=1))
    ranked = sorted((rank(spec, objectives(spec, choice)) for choice in feasible_choices(spec)), reverse=True)
    assume(ranked)
    k = data.draw(st.integers(1, 5))
    solutions = build(spec).k_best(k)
    for solution in solutions:
        assert_certified(spec, solution)
    chosen = [tuple(solution.choices[name] for name in spec.levels) for solution in solutions]
    assert len(set(chosen)) == len(chosen)
    found = [rank(spec, objectives(spec, dict(zip(spec.levels, one, strict=True)))) for one in chosen]
    assert found == ranked[:k]


@examples(25)
@given(specs(stages=1), st.integers(2, 6))
def test_every_point_of_a_frontier_is_the_best_for_what_it_costs(spec, points):
    upper = [budget for budget in spec.budgets if budget.upper is not None]
    assume(upper)
    resource = upper[0].resource
    others = tuple(budget for budget in spec.budgets if budget.resource != resource)
    low = next((b.lower for b in spec.budgets if b.resource == resource), None)
    assume(best(replace(spec, budgets=(*others, Budget(resource, None, low)))) is not None)
    try:
        frontier = build(spec).frontier(resource, points=points)
    except InfeasibleError:
        assert best(spec) is None  # only a program that cannot be solved as it stands may have no frontier
        return
    assert 1 <= len(frontier) <= points
    for solution in frontier:
        choice = {name: solution.choices[name] for name in spec.levels}
        used = costs(spec, choice)[resource]
        assert solution.gap == 0
        rivals = feasible_choices(replace(spec, budgets=(*others, Budget(resource, None, low))))
        rival = max(rank(spec, objectives(spec, c)) for c in rivals if costs(spec, c)[resource] <= used)
        assert rank(spec, objectives(spec, choice)) == rival
    spent = [exact(costs(spec, {n: s.choices[n] for n in spec.levels})[resource]) for s in frontier]
    assert spent == sorted(spent)


def test_a_width_of_very_many_levels():
    """The optimum is on a hyperbola: a * b <= 70,000, worth 3 a + 100,000 b."""
    p = Program()
    a, b = p.width("a", levels=range(1, 70_001)), p.width("b", levels=range(1, 4))
    p.value(range(3, 210_001, 3), a)
    p.value([100_000, 200_000, 300_000], b)
    p.product("x", 1, a, b)
    p.budget("x", 70_000)
    solution = p.solve()
    assert (solution[a], solution[b], solution.objective) == (23_333, 3, 369_999)


def test_a_table_of_zeros_beside_factors_beyond_64_bits():
    p = Program()
    a, b, c = p.width("a", range(4)), p.width("b", [0]), p.width("c", [0, 1])
    p.value([[0.0]] * 4, a, b)
    p.value([[0.0, 0.0]], b, c)
    p.cost("r", RankOne([0.0, 0.0, 0.0, 1.8424376604240287], [1.036993787253011]), a, b)
    p.cost("r", [0.0], b)
    p.cost("r", [0.0, 0.0], c)
    p.budget("r", 0)
    solution = p.solve()
    assert solution.objective == 0 and solution[a] < 3
