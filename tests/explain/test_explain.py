"""`plan.explain`: its steps against counting anew, its prices against solving again with the budget moved."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError
from solvemut.program import Program

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, where it pickles a tree


class Block(nn.Module):
    """A residual stream of twelve channels, a bottleneck, and a head that a concat reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 12, 1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Conv2d(28, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        h = torch.relu(self.a(x))
        return self.head(torch.cat([self.norm(x + self.b(h)), h], 1))


def graph() -> Any:
    torch.manual_seed(0)
    return sm.capture(Block(), torch.randn(1, 3, 6, 6))


GRAPH = graph()


def problem(*requests: Any) -> sm.Problem:
    found = sm.Problem(GRAPH)
    found.maximize(sm.values.magnitude())
    found.add(*requests)
    return found


HALF = GRAPH.flops <= 0.5 * GRAPH.flops.now


def fixed(name: str, size: int, plan: Any) -> Any:
    """The plan with one size given, and all others as they are in another plan."""
    names = [n for n, (before, after) in plan.sizes.items() if n not in ("head", name) and before]
    same = [GRAPH[n].out == plan.sizes[n][1] for n in names if not np.isin(GRAPH[n].units, GRAPH[name].units).any()]
    return problem(GRAPH[name].out == size, *same).solve(gap=0.0)


@pytest.mark.parametrize("name", ["stem", "a", "b", "norm"])
def test_steps_are_what_plans_of_these_sizes_come_to(name):
    plan = problem(GRAPH.flops <= 0.3 * GRAPH.flops.now, GRAPH.params <= 0.35 * GRAPH.params.now).solve(gap=0.0)
    why = plan.explain(name)
    assert (why.before, why.after) == (GRAPH[name].nout, plan.graph[name].nout)
    assert (why.larger is None) == (why.after == why.before) and why.smaller is not None
    for move, way in ((m, w) for m, w in ((why.larger, 1), (why.smaller, -1)) if m is not None):
        assert move.size == why.after + way
        other = fixed(name, move.size, plan)
        assert move.value == pytest.approx(other.objective - plan.objective)
        assert move.costs == {k: c.after - plan.costs[k].after for k, c in other.costs.items()}
        over = {f"{k} <= {c.budget:g}" for k, c in plan.costs.items() if other.costs[k].after > c.budget}
        assert {f"{b.split()[0]} <= {float(b.split()[2]):g}" for b in move.breaks} == over
        assert move.breaks or move.value <= 1e-9  # what fits and is worth more would have been taken
    assert set(why.binding) == set(why.larger.breaks if why.larger else ())
    assert all(use.left == pytest.approx(use.limit - use.used) and use.left >= 0 for use in why.budgets)


def test_prices_bound_what_another_budget_could_bring():
    now = GRAPH.flops.now
    plan = problem(HALF).solve(gap=0.0)
    why = plan.explain("a")
    (use,) = why.budgets
    assert use.price > 0 and why.bound >= plan.objective - 1e-9
    for part in (0.2, 0.35, 0.45, 0.49, 0.51, 0.55, 0.7, 0.9):
        other = problem(GRAPH.flops <= int(part * now)).solve(gap=0.0)
        assert other.objective <= why.bound + use.price * (int(part * now) - 0.5 * now) + 1e-9


def test_the_price_is_the_rate_where_steps_are_fine():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 2))
    fine = sm.capture(model, torch.ones(1, 8))

    def solved(limit: int) -> Any:
        found = sm.Problem(fine)
        found.maximize({"0": 1 / np.arange(1, 257), "2": 1 / np.arange(1, 129) ** 0.5})
        found.add(fine.params <= limit)
        return found.solve(gap=0.0)

    half, step = fine.params.now // 2, fine.params.now // 25
    price = solved(half).explain("0").budgets[0].price
    rate = (solved(half + step).objective - solved(half - step).objective) / (2 * step)
    assert price == pytest.approx(rate, rel=0.05)


def test_prices_of_two_budgets_bound_both_moved_at_once():
    flops, params = GRAPH.flops, GRAPH.params
    plan = problem(HALF, params <= 0.5 * params.now).solve(gap=0.0)
    why = plan.explain("stem")
    prices = {use.name.split()[0]: use.price for use in why.budgets}
    for a, b in ((0.4, 0.6), (0.6, 0.4), (0.45, 0.45), (0.7, 0.7)):
        other = problem(flops <= int(a * flops.now), params <= int(b * params.now)).solve(gap=0.0)
        moved = int(a * flops.now) - 0.5 * flops.now, int(b * params.now) - 0.5 * params.now
        assert other.objective <= why.bound + prices["flops"] * moved[0] + prices["params"] * moved[1] + 1e-9


def test_a_budget_that_does_not_bind_costs_nothing():
    why = problem(HALF, GRAPH.params <= 2 * GRAPH.params.now).solve(gap=0.0).explain("a")
    assert why.budgets[1].price == pytest.approx(0, abs=1e-9) and not why.budgets[1].binds
    loose = problem().solve().explain("a")
    assert (loose.after, loose.larger, loose.budgets, loose.smaller.breaks) == (16, None, (), ())


@pytest.mark.parametrize("sense", ["max", "min"])
def test_prices_of_a_program_hold_at_any_limits(sense):
    """Upper and lower limits, both senses, a budget over one width and one over a pair."""
    sign = 1 if sense == "max" else -1

    def program(upper: float, lower: float) -> Program:
        p = Program()
        a, b, c = (p.width(n, levels=range(1, 9)) for n in "abc")
        for k, w in enumerate((a, b, c)):
            p.value([sign * (k + 2) * n**0.5 for n in w.levels], w)
        p.product("area", 1, a, b)
        p.product("sum", 1, b, c)
        p.cost("sum", list(a.levels), a)
        p.cost("least", list(c.levels), c)
        p.budget("area", upper)
        p.budget("sum", 30)
        p.budget("least", lower=lower)
        p.objective(0, sense)
        return p

    found = program(20, 3).solve().prices()
    assert set(found.prices) == {"area", "sum", "least"}
    for upper in (4, 12, 19, 21, 40):
        for lower in (1, 3, 6):
            other = program(upper, lower).solve().objective
            assert sign * other <= sign * found.at({"area": upper - 20, "least": lower - 3}) + 1e-9


def test_what_cannot_change_says_why():
    assert problem(HALF).solve().explain("head").frozen == "model output"
    kept = problem(HALF)
    kept.keep("a")
    why = kept.solve().explain("a")
    assert (why.frozen, why.requests, why.larger, why.smaller) == ("it was asked to stay", ("keep 'a'",), None, None)
    asked = problem(GRAPH["a"].out == 8).solve().explain("a")
    assert (asked.frozen, asked.requests) == ("what is asked leaves it one size", ("a.out == 8",))


def test_sizes_step_by_what_is_asked_of_them():
    rounded = problem(GRAPH.flops <= 0.3 * GRAPH.flops.now)
    rounded.round_to(4)
    plan = rounded.solve(gap=0.0)
    why = plan.explain("a")
    assert {why.larger.size - why.after, why.after - why.smaller.size} == {4} and "round_to(4)" in why.requests
    tied = problem(HALF, GRAPH["a"].out + GRAPH["b"].out <= 17, GRAPH["a"].out >= 3)
    why = tied.solve(gap=0.0).explain("a")
    assert "a.out >= 3" in why.requests and "a.out + b.out <= 17" in why.requests


def test_it_says_what_is_coupled_and_by_what():
    why = problem(HALF).solve().explain("stem")
    (group,) = why.groups
    assert {("stem.weight", 0), ("b.weight", 0), ("norm.weight", 0)} <= set(group.dims)
    assert any("add" in origin for origin in group.origins)
    for told in ("stem (conv2d): 12 -> ", "changes together: stem.weight[0]", "coupled by", "flops <= "):
        assert told in str(why)
    assert "<table>" in why._repr_html_() and repr(why).startswith("<Explanation of stem: 12 -> ")


def test_a_concat_steps_by_whichever_part_gives_most():
    why = problem(HALF).solve(gap=0.0).explain("cat")
    assert why.larger.size == why.after + 1 and why.smaller.size == why.after - 1 and len(why.groups) == 2


def test_new_units_are_explained_too():
    more = problem(GRAPH.params <= GRAPH.params.now)
    more.grow({"a": 4})
    why = more.solve(gap=0.0).explain("a")
    assert why.larger is None or why.larger.size == why.after + 1
    assert why.smaller.size == why.after - 1 and why.after >= 16


def test_only_the_plan_that_was_solved_knows():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    mut = sm.Mutator(copy.deepcopy(model), torch.ones(1, 4))
    plan = mut.prune(params=0.6)
    assert plan.explain("0").after == plan.sizes["0"][1]
    assert copy.deepcopy(plan).solved is plan.solved and copy.copy(plan).explain("2").name == "2"
    rounds = sm.prune(copy.deepcopy(model), torch.ones(1, 4), params=0.6, rounds=2)
    gone = [sm.Plan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan)), mut.history[0], rounds]
    gone.append(sm.select.uniform(sm.capture(copy.deepcopy(model), torch.ones(1, 4)), params=0.6))
    for other in gone:
        with pytest.raises(RequestError, match=r"kept in memory.*solve again"):
            other.explain("0")
    with pytest.raises(RequestError, match="no vertex 'conv1'"):
        plan.explain("conv1")


def test_a_resized_plan_is_explained_by_its_own_stage():
    mut = sm.Mutator(Block(), torch.randn(1, 3, 6, 6))
    why = mut.resize({"a": -3}, dry_run=True).explain("a")
    assert (why.after, why.requests) == (13, ("a.out == 13",)) and str(why)
