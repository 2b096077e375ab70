"""`problem.frontier` and `problem.best` against trying every plan; pictures and HTML tables."""

from __future__ import annotations

import builtins
import html
import itertools
import pickle
import sys
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from caller_costs import cost_of, part
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError
from solvemut.report import Table
from solvemut.report import html as as_html

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, where it pickles a tree


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


GRAPH = sm.capture(net(), torch.ones(1, 3))
WORTH = {"0": [7.0, 5.0, 4.0, 2.0, 1.5, 1.0], "2": [9.0, 3.0, 2.5, 2.0, 0.5]}


def problem(*requests: Any) -> sm.Problem:
    found = sm.Problem(GRAPH)
    found.maximize(WORTH)
    found.add(*requests)
    return found


def params(a: int, b: int) -> int:
    return 3 * a + a + a * b + b + 2 * b + 2


def every(fits: Any = lambda a, b: True) -> list[tuple[float, int, int]]:
    """Value and sizes of all plans that fit, best first."""
    sizes = ((a, b) for a, b in itertools.product(range(1, 7), range(1, 6)) if fits(a, b))
    return sorted(((sum(WORTH["0"][:a]) + sum(WORTH["2"][:b]), a, b) for a, b in sizes), reverse=True)


def sizes(plan: Any) -> tuple[int, int]:
    return plan.sizes["0"][1], plan.sizes["2"][1]


# -- frontier ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [1, 2, 7, 30])
def test_points_are_the_best_within_their_budgets_and_the_band_holds_everywhere(points):
    frontier = problem().frontier("params", points=points, gap=0.0)
    assert 1 <= len(frontier) <= points
    assert [p.cost for p in frontier] == sorted(p.cost for p in frontier)
    for p in frontier:
        best = every(lambda a, b, p=p: params(a, b) <= (inf if p.limit is None else p.limit))[0]
        assert p.objective == pytest.approx(best[0]) and p.bound == pytest.approx(best[0])
        assert (p.status, p.gap) == ("optimal", 0.0)
        assert p.plan.costs["params"].after == p.cost == params(*sizes(p.plan))
        assert p.plan.objective == pytest.approx(p.objective) and p.plan is p.plan
        assert p.plan.costs["params"].budget == p.limit
    assert frontier[-1].cost == GRAPH.params.now == frontier.now[0]
    assert frontier.now[1] == pytest.approx(every()[0][0])
    if points > 1:
        assert frontier[0].cost == params(1, 1)
    for budget in range(params(1, 1), GRAPH.params.now + 5):
        best = every(lambda a, b, budget=budget: params(a, b) <= budget)[0][0]
        reached, bound = frontier.band(budget)
        assert reached <= best + 1e-9 and best <= bound + 1e-9
    assert frontier.band(params(1, 1) - 1)[0] == -inf


def test_the_band_narrows_between_the_points():
    frontier = problem().frontier("params", points=5, gap=0.0)
    middle = (frontier[1].cost + frontier[2].cost) // 2
    assert frontier.band(middle)[1] < frontier[2].bound - 0.1  # the shadow prices say more than the next point does


def test_other_requests_hold_on_a_frontier_and_its_own_budget_is_left_out():
    asked = problem(GRAPH.params <= 30, GRAPH["0"].out >= 3, GRAPH.flops <= 0.8 * GRAPH.flops.now)
    frontier = asked.frontier("params", points=6, gap=0.0)
    most = 0.8 * GRAPH.flops.now
    fits = lambda a, b: a >= 3 and 2 * (3 * a + a * b + 2 * b) <= most  # noqa: E731
    assert frontier[0].cost == min(params(a, b) for _, a, b in every(fits))
    assert frontier[-1].objective == pytest.approx(every(fits)[0][0]) and frontier[-1].cost > 30
    assert len(asked.requests) == 3
    why = frontier[1].plan.explain("0")
    assert {u.name.split()[0]: u.limit for u in why.budgets} == {"flops": most, "params": frontier[1].limit}


def test_a_frontier_over_a_cost_of_the_callers():
    rows = cost_of(GRAPH, part(GRAPH, "0", slice(None)))
    frontier = problem().frontier(rows, points=6, gap=0.0)
    assert [p.cost for p in frontier] == list(range(1, 7))
    assert [sizes(p.plan) for p in frontier] == [(n, 5) for n in range(1, 7)]


def test_what_a_frontier_is_asked_in_vain():
    with pytest.raises(RequestError, match=r"no cost 'flop'; there are .*flops"):
        problem().frontier("flop")
    with pytest.raises(RequestError, match="no cost 3"):
        problem().frontier(3)
    with pytest.raises(RequestError, match="points=0"):
        problem().frontier("flops", points=0)
    with pytest.raises(InfeasibleError, match=r"0\.out >= 7"):
        problem(GRAPH["0"].out >= 7, GRAPH.params <= 50).frontier("params")
    other = sm.capture(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), torch.ones(1, 3))
    with pytest.raises(RequestError, match="another graph"):
        problem().frontier(other.params)


def test_a_frontier_prints_and_pickles():
    frontier = problem().frontier("params", points=4)
    assert str(frontier).splitlines()[0].startswith("Sequential: params 71, value 37.5 as it is")
    assert len(str(frontier).splitlines()) == 4 + len(frontier)
    assert repr(frontier) == "<Frontier of Sequential: 4 plans, params 10 to 71>"
    again = pickle.loads(pickle.dumps(frontier))
    assert sizes(again[1].plan) == sizes(frontier[1].plan) and again.band(30) == frontier.band(30)
    assert [p.cost for p in frontier[1:3]] == [p.cost for p in frontier][1:3]


# -- best --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 100])
def test_the_k_best_plans_are_those_of_an_enumeration(k):
    limit = 0.6 * GRAPH.params.now
    plans = problem(GRAPH.params <= limit).best(k)
    wanted = every(lambda a, b: params(a, b) <= limit)
    assert len(plans) == min(k, len(wanted)) and len({sizes(p) for p in plans}) == len(plans)
    assert [p.objective for p in plans] == pytest.approx([v for v, _, _ in wanted[:k]])
    assert all(params(*sizes(p)) <= limit and p.explain("0").after == sizes(p)[0] for p in plans)


def test_where_nothing_can_change_there_is_one_plan():
    fixed = problem()
    fixed.keep("0", "2")
    assert [sizes(p) for p in fixed.best(3)] == [(6, 5)]
    with pytest.raises(InfeasibleError, match="params <= 3"):
        problem(GRAPH.params <= 3).best(2)
    with pytest.raises(RequestError, match="k=0"):
        problem().best(0)


# -- pictures and tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_written_and_the_backend_is_left_alone(kind, tmp_path):
    known = sys.modules.get("matplotlib.pyplot")
    frontier = problem(GRAPH.flops <= 0.7 * GRAPH.flops.now).frontier("params", points=4)
    for name, drawn in (("plan", frontier[1].plan), ("frontier", frontier)):
        assert drawn.plot(tmp_path / f"{name}.{kind}") is None
        assert (tmp_path / f"{name}.{kind}").stat().st_size > 1000
    assert sys.modules.get("matplotlib.pyplot") is known


def test_pictures_show_what_there_is():
    frontier = problem(GRAPH.flops <= 0.7 * GRAPH.flops.now).frontier("params", points=4)
    curve = frontier.plot().axes[0]
    dots = next(line for line in curve.lines if line.get_label() == "plans")
    assert dots.get_xydata().tolist() == [[p.cost, p.objective] for p in frontier]
    plan = frontier[1].plan
    upper, lower = sm.Plan.from_json(plan.to_json()).plot().axes
    assert [t.get_text() for t in upper.get_yticklabels()] == list(plan.sizes)
    assert [bar.get_width() for bar in upper.patches] == [
        n for k in (0, 1) for n in (s[k] for s in plan.sizes.values())
    ]
    assert [bar.get_width() for bar in lower.patches] == [100 * c.after / c.before for c in plan.costs.values()]
    alone = problem().frontier("params", points=1)
    assert len(alone) == 1 and alone.plot().axes


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RequestError, match=r"pip install solvemut\[plot\]"):
        problem(GRAPH.params <= 30).solve().plot()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("<script>alert(1)</script>&$x$", nn.Linear(3, 4))
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self._modules["<script>alert(1)</script>&$x$"](x))


def test_html_is_tables_with_every_text_escaped(tmp_path):
    graph = sm.capture(Odd(), torch.ones(1, 3))
    asked = sm.Problem(graph)
    asked.add(graph.params <= 20)
    plan, frontier = asked.solve(), asked.frontier("params", points=3)
    for shown in (graph, plan, frontier, plan.explain(next(iter(plan.sizes)))):
        found = shown._repr_html_()
        assert "<script" not in found and "<table>" in found and found.count("<div>") == found.count("</div>") == 1
        if shown is not frontier:
            assert html.escape("<script>alert(1)</script>&$x$") in found
    plan.plot(tmp_path / "odd.png")


def test_html_says_what_the_text_says():
    plan = problem(GRAPH.params <= 30).solve()
    for shown in (GRAPH, plan, problem().frontier("params", points=3)):
        found = shown._repr_html_()
        for tag in ("table", "tr", "td", "th", "pre", "div"):
            assert found.count(f"</{tag}>") == found.count(f"<{tag}>") + found.count(f"<{tag} ")
        words = html.unescape(found.replace("<", " <").replace(">", "> "))
        assert all(word in words for word in str(shown).split() if set(word) != {"-"})
    assert as_html([Table(["a"], [[np.int64(3)]])]).count("3") == 1
