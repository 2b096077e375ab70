"""The least of one resource, and of the largest of several; k best among some widths; frontiers over several."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from solvemut.errors import InfeasibleError, ProgramError
from solvemut.program import Program

LEVELS = range(1, 8)


def program(scale: Fraction | int = 1) -> Program:
    p = Program()
    a, b, c = (p.width(n, levels=LEVELS) for n in "abc")
    for k, w in enumerate((a, b, c), 2):
        p.value([k * n for n in LEVELS], w)
    p.product("x", 3 * scale, a, b)
    p.product("y", 2 * scale, b, c)
    p.cost("y", [scale * (9 - n) for n in LEVELS], a)
    p.add(a + b + c >= 12)
    return p


def every(scale: Fraction | int = 1) -> list[dict[str, Fraction | int]]:
    triples = (t for t in itertools.product(LEVELS, repeat=3) if sum(t) >= 12)
    return [
        {"x": 3 * scale * a * b, "y": scale * (2 * b * c + 9 - a), "v": 2 * a + 3 * b + 4 * c} for a, b, c in triples
    ]


@pytest.mark.parametrize("scale", [1, Fraction(1, 7)])
@pytest.mark.parametrize("resources", [["x"], ["y"], ["x", "y"], ["y", "x", "y"]])
def test_the_least_against_every_choice(resources, scale):
    found = program(scale).least(resources)
    wanted = min(max(costs[r] for r in resources) for costs in every(scale))
    assert max(found.costs[r] for r in resources) == pytest.approx(wanted, rel=1e-8)
    assert found.status == "optimal" or (len(resources) > 1 and scale != 1)


def test_enough_is_enough_and_limits_count_until_they_are_taken_away():
    p = program()
    found = p.least(["x", "y"], enough=60)
    assert max(found.costs.values()) <= 60
    p.budget("y", lower=50)
    least = min(c["x"] for c in every() if c["y"] >= 50)
    assert p.least("x").costs["x"] == least
    p.free("y")
    p.free("nothing that is limited")
    assert p.least("x").costs["x"] == min(c["x"] for c in every())
    p.add(p["a"] + p["b"] <= 1, name="too small")
    with pytest.raises(InfeasibleError, match="too small"):
        p.least("x")
    with pytest.raises(ProgramError, match="nothing costs any 'z'"):
        p.least(["x", "z"])


def test_a_frontier_over_the_largest_of_two():
    points = program().frontier(["x", "y"], points=6)
    spent = [max(s.costs.values()) for s in points]
    assert spent == sorted(spent) and spent[0] == min(max(c["x"], c["y"]) for c in every())
    for solution, cost in zip(points, spent, strict=True):
        assert solution.objective == max(c["v"] for c in every() if max(c["x"], c["y"]) <= cost)
    repeated = program().frontier(["x", "y"], points=40, repeats=True)
    assert len(repeated) == 40 > len(program().frontier(["x", "y"], points=40))


def test_k_best_among_some_widths():
    p = Program()
    a, s, b = p.width("a", levels=[1, 2, 3]), p.switch("s"), p.width("b", levels=[4, 5])
    p.value([1, 2, 3], a)
    p.value([0, 10], b)
    p.cost("on", 5, s)
    assert [x["a"] for x in p.k_best(9, among=["a"])] == [3, 2, 1]
    assert [(x["a"], x["b"]) for x in p.k_best(9, among=[a, b])] == [(3, 5), (2, 5), (1, 5), (3, 4), (2, 4), (1, 4)]
    assert len(p.k_best(99)) == 12 and len(p.k_best(9, among=[])) == 1
