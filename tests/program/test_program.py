"""The public layer of the program: statements, text, JSON, errors, hints, stages, k best, frontier, explanation."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from solvemut.errors import CheckError, InfeasibleError, ProgramError, SolvemutError, TimeLimitError
from solvemut.program import Program, RankOne


def small() -> Program:
    """Two widths, a switch and a budget; the optimum (a=16, b=2, on) is worth 10 at cost 44 of 45."""
    p = Program()
    a, b, s = p.width("a", levels=[8, 16, 24]), p.width("b", levels=[1, 2, 3]), p.switch("block")
    p.value([1, 4, 5], a)
    p.value([1, 3, 4], b, when=s)
    p.value(3, s)
    p.product("flops", 1, a, b, when=s)
    p.cost("flops", 12, s)
    p.budget("flops", 45)
    return p


def test_the_statements_of_the_issue():
    p = Program()
    a, b = p.width("a", levels=[8, 16, 24]), p.width("b", levels=range(1, 65))
    s, t = p.switch("block3"), p.switch("t")
    table = np.add.outer(np.arange(3.0), np.arange(64.0)) * 10
    p.value([0.1, 0.3, 0.4], a, when=s)
    p.value(np.sqrt(np.arange(1, 65)), b)
    p.cost("latency", table, a, b, when=s)
    p.cost("latency", 3.5, s)
    p.budget("latency", 300.0)
    p.add(a <= b, a + 2 * b <= 100, s >= t, a == 16)
    solution = p.solve(time_limit=60, gap=0.0)
    # a = 16, so b <= 42; with the block on, 10 (1 + b - 1) + 3.5 <= 300 gives b <= 29: off is worth sqrt(42) = 6.48,
    # on is worth 0.3 + sqrt(29) = 5.69
    assert solution["a"] == solution[a] == 16
    assert solution.choices == {"a": 16, "b": 42, "block3": 0, "t": 0}
    assert solution.status == "optimal"
    assert solution.objective == float(np.sqrt(42))
    assert solution.bound == solution.objective and solution.gap == 0
    assert solution.costs == {"latency": 0}
    assert 0 < solution.seconds < 60
    assert isinstance(solution.solver, str) and solution.solver
    solution.check()


def test_the_small_program():
    solution = small().solve()
    assert solution.choices == {"a": 16, "b": 2, "block": 1}
    assert solution.objective == 10
    assert solution.costs == {"flops": 44}


def test_a_program_without_budgets_takes_the_best_of_each():
    p = Program()
    a = p.width("a", levels=[3, 1, 2])
    p.value([5, 9, 7], a)
    assert p.solve()[a] == 1


def test_an_empty_program_and_one_with_nothing_to_choose():
    assert Program().solve().objective == 0
    p = Program()
    p.width("a", levels=[4])
    p.value(2.5)
    solution = p.solve()
    assert (solution["a"], solution.objective) == (4, 2.5)


def test_minimise():
    p = Program()
    a = p.width("a", levels=range(5))
    p.value([4, 2, 1, 3, 7], a)
    p.objective(0, sense="min")
    solution = p.solve()
    assert (solution[a], solution.objective, solution.bound) == (2, 1, 1)


def test_values_add_up_over_calls_and_terms():
    p = Program()
    a, b, s = p.width("a", levels=[1, 2]), p.width("b", levels=[5, 6]), p.switch("s")
    p.value([1, 0], a)
    p.value([0, 3], a)
    p.value([[0, 10], [2, 0]], a, b)
    p.value(4, when=s)
    p.value(0.5)
    solution = p.solve()
    assert (solution[a], solution[b], solution[s], solution.objective) == (1, 6, 1, 15.5)


def test_a_pair_table_is_indexed_first_name_first():
    p = Program()
    a, b = p.width("a", levels=[1, 2]), p.width("b", levels=[1, 2, 3])
    p.value([[0, 0, 0], [0, 0, 9]], a, b)
    p.cost("x", [[0, 0, 1], [2, 3, 4]], a, b)
    p.budget("x", 4)
    solution = p.solve()
    assert (solution[a], solution[b], solution.costs["x"]) == (2, 3, 4)


@pytest.mark.parametrize(
    "state",
    [
        lambda p, a, b: p.product("x", 3, a, b),
        lambda p, a, b: p.cost("x", RankOne([3, 6], [10, 20, 30]), a, b),
        lambda p, a, b: p.cost("x", [[30, 60, 90], [60, 120, 180]], a, b),
        lambda p, a, b: p.cost("x", np.array([[30, 60], [60, 120], [90, 180]]), b, a),
    ],
    ids=["product", "RankOne", "table", "transposed"],
)
def test_the_ways_to_state_a_product_agree(state):
    p = Program()
    a, b = p.width("a", levels=[1, 2]), p.width("b", levels=[10, 20, 30])
    p.value([1, 5], a)
    p.value([1, 2, 6], b)
    state(p, a, b)
    p.budget("x", 120)
    solution = p.solve()
    assert (solution[a], solution[b], solution.objective, solution.costs["x"]) == (1, 30, 7, 90)


def test_negative_costs_pay_for_others():
    p = Program()
    a, b = p.width("a", levels=[0, 1]), p.width("b", levels=[0, 1])
    p.value([0, 5], a)
    p.value([2, 0], b)
    p.cost("x", [0, 3], a)
    p.cost("x", [0, -3], b)
    p.budget("x", 0)
    solution = p.solve()
    assert (solution[a], solution[b], solution.objective) == (1, 1, 5)


def test_a_lower_budget_forces_spending():
    p = Program()
    a = p.width("a", levels=[1, 2, 3])
    p.value([3, 2, 1], a)
    p.cost("x", [10, 20, 30], a)
    p.budget("x", lower=15)
    assert p.solve()[a] == 2


def test_a_budget_given_again_replaces_what_it_was():
    p = small()
    p.budget("flops", 35)
    assert p.solve().costs["flops"] == 28
    p.budget("flops", 45, lower=1)
    assert p.solve().costs["flops"] == 44


@pytest.mark.parametrize("count", [float("1e300"), 10**40, Fraction(10**30, 3)])
def test_numbers_of_any_size_are_exact(count):
    p = Program()
    a = p.width("a", levels=[0, 1, 2])
    p.value([0, count, count], a)
    p.value([0, 0, 1], a)
    p.cost("x", [0, count, count], a)
    p.cost("x", [0, 0, 1], a)
    p.budget("x", count)
    solution = p.solve()
    assert solution[a] == 1
    solution.check()


@pytest.mark.parametrize(
    ("relation", "expected"),
    [
        (lambda a, b: a <= b, (3, 3)),
        (lambda a, b: a >= b + 2, (3, 1)),
        (lambda a, b: a + 2 * b <= 6, (2, 2)),
        (lambda a, b: 6 >= b * 2 + a, (2, 2)),  # noqa: SIM300
        (lambda a, b: a == 2, (2, 3)),
        (lambda a, b: a == b - 1, (2, 3)),
        (lambda a, b: sum([a, b]) <= 4, (1, 3)),
        (lambda a, b: -a - b >= -3, (1, 2)),
        (lambda a, b: 2 * (a - b) == -4, (1, 3)),
    ],
)
def test_linear_constraints_are_over_level_values(relation, expected):
    p = Program()
    a, b = p.width("a", levels=[1, 2, 3]), p.width("b", levels=[1, 2, 3])
    p.value([10, 20, 30], a)
    p.value([11, 22, 33], b)
    p.add(relation(a, b))
    solution = p.solve()
    assert (solution[a], solution[b]) == expected


def test_levels_may_come_in_any_order_and_below_zero():
    p = Program()
    a = p.width("a", levels=[5, -3, 0])
    p.value([1, 3, 2], a)
    p.add(a >= -1)
    assert p.solve()[a] == 0


# -- text and JSON ---------------------------------------------------------------------------------------------------


def test_the_text_names_everything():
    p = small()
    p.add(p.width("c", levels=[1, 2]) + p.width("d", levels=[3]) <= 40, name="sum of both")
    text = str(p)
    for word in ("a", "b", "block", "flops", "45", "sum of both", "c + d", "max"):
        assert word in text


def test_the_text_stays_short_for_large_programs():
    p = Program()
    a, b = p.width("a", levels=range(1, 2001)), p.width("b", levels=range(1, 2001))
    p.value(np.arange(2000), a)
    p.product("flops", 2, a, b)
    p.budget("flops", 10**6)
    assert len(str(p)) < 4000


def test_json_round_trip_gives_the_same_program_and_solution():
    p = small()
    p.hint({"a": 24})
    p.fix({"block": 1})
    text = p.to_json()
    json.loads(text)
    again = Program.from_json(text)
    assert again.to_json() == text and str(again) == str(p)
    assert again.solve().choices == p.solve().choices


def test_json_keeps_big_and_fractional_numbers():
    p = Program()
    a = p.width("a", levels=[0, 1])
    p.value([0, Fraction(1, 3)], a)
    p.cost("x", [0, 10**40 + 1], a)
    p.budget("x", 10**40)
    assert Program.from_json(p.to_json()).solve()[a] == 0
    p.budget("y", 1)
    p.cost("y", 0.1, when=p.switch("s"))
    assert Program.from_json(p.to_json()).solve().objective == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"widths": 3}', "not json"])
def test_bad_json_is_refused(text):
    with pytest.raises(ProgramError):
        Program.from_json(text)


# -- what is refused, and in what words ------------------------------------------------------------------------------

REFUSED = {
    "no levels": (lambda p, a, b, s: p.width("c", levels=[]), "c"),
    "levels twice": (lambda p, a, b, s: p.width("c", levels=[1, 1]), "c"),
    "levels of no int": (lambda p, a, b, s: p.width("c", levels=[1.5]), "c"),
    "name twice": (lambda p, a, b, s: p.width("a", levels=[1]), "a"),
    "switch of a taken name": (lambda p, a, b, s: p.switch("a"), "a"),
    "short vector": (lambda p, a, b, s: p.value([1, 2], a), "a"),
    "wrong table": (lambda p, a, b, s: p.cost("x", [[1, 2], [3, 4]], a, b), "x"),
    "transposed table": (lambda p, a, b, s: p.cost("x", [[1, 2, 3], [1, 2, 3]], a, b), "x"),
    "ragged table": (lambda p, a, b, s: p.cost("x", [[1, 2], [3], [4, 5]], a, b), ""),
    "NaN": (lambda p, a, b, s: p.value([1, 2, float("nan")], a), ""),
    "infinite": (lambda p, a, b, s: p.cost("x", [1, 2, float("inf")], a), ""),
    "text for a number": (lambda p, a, b, s: p.value("much"), ""),
    "the same width twice": (lambda p, a, b, s: p.cost("x", np.ones((3, 3)), a, a), "diagonal"),
    "a product with itself": (lambda p, a, b, s: p.product("x", 1, a, a), "diagonal"),
    "three widths": (lambda p, a, b, s: p.value(np.ones((3, 2, 2)), a, b, s), ""),
    "when is no switch": (lambda p, a, b, s: p.value([1, 2, 3], a, when=b), "b"),
    "scalar on a width": (lambda p, a, b, s: p.value(3, a), "a"),
    "a width from elsewhere": (lambda p, a, b, s: p.value([1, 2], Program().width("z", levels=[1, 2])), "z"),
    "budget of nothing": (lambda p, a, b, s: p.budget("x"), "x"),
    "NaN budget": (lambda p, a, b, s: p.budget("x", float("nan")), "x"),
    "half a coefficient": (lambda p, a, b, s: p.add(0.5 * a <= 3), "0.5"),
    "a square": (lambda p, a, b, s: p.add(a * b <= 3), ""),
    "a truth value": (lambda p, a, b, s: p.add(True), ""),
    "a chained comparison": (lambda p, a, b, s: p.add(1 <= a <= 3), ""),
    "hint of no level": (lambda p, a, b, s: p.hint({a: 5}), "a"),
    "fix of no level": (lambda p, a, b, s: p.fix({"a": 5}), "a"),
    "hint of no name": (lambda p, a, b, s: p.hint({"nobody": 5}), "nobody"),
    "sense": (lambda p, a, b, s: p.objective(0, sense="biggest"), "biggest"),
    "negative time": (lambda p, a, b, s: p.solve(time_limit=-1), "time_limit"),
    "negative gap": (lambda p, a, b, s: p.solve(gap=-0.1), "gap"),
    "k": (lambda p, a, b, s: p.k_best(0), "k"),
    "frontier over nothing": (lambda p, a, b, s: p.frontier("nothing"), "nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_and_named(case):
    act, word = REFUSED[case]
    p = Program()
    a, b, s = p.width("a", levels=[1, 2, 3]), p.width("b", levels=[1, 2]), p.switch("s")
    with pytest.raises(ProgramError) as caught:
        act(p, a, b, s)
    assert isinstance(caught.value, (ValueError, SolvemutError))
    assert word in str(caught.value)


def test_a_refused_statement_leaves_the_program_as_it_was():
    p = small()
    before = p.to_json()
    for act in (
        lambda: p.width("c", levels=[1, 1]),
        lambda: p.value([1], p.width("a", levels=[1])),
        lambda: p.budget("flops", float("nan")),
        lambda: p.cost("flops", [[1]], 3),
    ):
        with pytest.raises((ProgramError, TypeError)):
            act()
    assert p.to_json() == before


# -- solving with more to say ----------------------------------------------------------------------------------------


def test_stages_are_decided_in_order():
    p = Program()
    a, b = p.width("a", levels=range(4)), p.width("b", levels=range(4))
    p.value([0, 5, 5, 1], a)
    p.value([1, 2, 3, 4], b, stage=1)
    p.value([0, 10, 20, 30], a, stage=2)
    p.cost("x", [0, 1, 2, 3], a)
    p.cost("x", [0, 1, 2, 3], b)
    p.budget("x", 4)
    p.objective(2, sense="min")
    solution = p.solve()
    assert (solution[a], solution[b]) == (1, 3)
    assert solution.objectives == (5, 4, 10)
    assert solution.bounds == (5, 4, 10)
    assert (solution.objective, solution.bound) == (5, 5)


def test_a_hint_is_taken_as_the_first_incumbent():
    seen = []
    p = small()
    p.hint({"a": 16, "b": 2, "block": 1})

    def watch(progress):
        seen.append(progress.incumbent)

    p.solve(callback=watch)
    assert next(value for value in seen if value is not None) == 10


def test_an_infeasible_hint_is_no_constraint():
    p = small()
    p.hint({"a": 24, "b": 3, "block": 1})
    assert p.solve().objective == 10


def test_fix():
    p = small()
    p.fix({"block": 0})
    solution = p.solve()
    assert (solution["block"], solution["a"], solution.objective) == (0, 24, 5)


def test_progress_carries_numbers_that_fit_each_other():
    from benchmarks_path import instances

    seen = []
    instances.resnet18(step=16).solve(time_limit=20, gap=1e-3, callback=lambda progress: seen.append(progress) and None)
    assert seen
    assert [progress.seconds for progress in seen] == sorted(progress.seconds for progress in seen)
    last = seen[-1]
    assert last.incumbent is not None and last.bound >= last.incumbent
    assert last.gap == pytest.approx((last.bound - last.incumbent) / abs(last.incumbent), abs=1e-12)
    incumbents = [progress.incumbent for progress in seen if progress.incumbent is not None]
    assert incumbents == sorted(incumbents)
    bounds = [progress.bound for progress in seen if progress.bound is not None]
    assert bounds == sorted(bounds, reverse=True)
    assert all(isinstance(progress.phase, str) and progress.phase for progress in seen)


def test_k_best():
    solutions = small().k_best(4)
    assert [solution.objective for solution in solutions] == [10, 9, 8, 8]
    assert len({tuple(solution.choices.items()) for solution in solutions}) == 4


def test_k_best_of_a_program_with_fewer_choices():
    p = Program()
    a = p.width("a", levels=[1, 2, 3])
    p.value([1, 2, 3], a)
    p.add(a <= 2)
    assert [solution[a] for solution in p.k_best(10)] == [2, 1]


def test_frontier():
    p = Program()
    a, b = p.width("a", levels=range(1, 9)), p.width("b", levels=range(1, 9))
    p.value(np.sqrt(np.arange(1, 9)), a)
    p.value(np.log1p(np.arange(1, 9)), b)
    p.product("flops", 1, a, b)
    p.budget("flops", 40)
    before = str(p)
    points = p.frontier("flops", points=6)
    assert 3 <= len(points) <= 6
    spent = [solution.costs["flops"] for solution in points]
    gained = [solution.objective for solution in points]
    assert spent == sorted(set(spent)) and gained == sorted(set(gained))
    assert all(solution.gap == 0 for solution in points)
    for solution in points:
        solution.check()
    assert str(p) == before


def test_explain_names_the_next_levels_their_value_and_their_price():
    solution = small().solve()
    told = str(solution.explain("a"))
    assert "flops" in told
    assert "24" in told and "8" in told
    assert str(solution.explain("a")) == told


def test_check_finds_a_changed_answer():
    import dataclasses

    solution = small().solve()
    solution.check()
    for change in (
        {"objectives": (solution.objective + 1,)},
        {"choices": {**solution.choices, "a": 24, "b": 3}},
        {"choices": {**solution.choices, "a": 7}},
        {"costs": {"flops": 43}},
    ):
        with pytest.raises(CheckError):
            dataclasses.replace(solution, **change).check()


def test_infeasible_says_so_and_names_the_conflict():
    p = small()
    p.fix({"block": 1, "a": 24})
    p.add(p.width("c", levels=[1, 2]) <= 5, name="idle")
    p.budget("other", 3)
    p.cost("flops", 10)
    with pytest.raises(InfeasibleError) as caught:
        p.solve()
    assert "flops" in caught.value.conflict and "idle" not in caught.value.conflict
    assert "other" not in caught.value.conflict
    assert caught.value.smallest["flops"] == 46
    assert "flops" in str(caught.value) and "46" in str(caught.value)


def test_no_time_is_an_error_of_its_own_or_an_answer():
    from benchmarks_path import instances

    try:
        solution = instances.chain().solve(time_limit=0.001)
    except TimeLimitError as error:
        assert "0.001" in str(error)
    else:
        assert solution.status == "feasible"
        solution.check()
