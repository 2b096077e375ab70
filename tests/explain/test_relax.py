"""`prune(on_infeasible="relax")`: the budgets taken are the lexicographic minimum of all plans' excess."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError

X = torch.ones(1, 3)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def costs(a: int, b: int) -> dict[str, int]:
    return {"params": 4 * a + a * b + b + 2 * b + 2, "flops": 2 * (3 * a + a * b + 2 * b)}


def pruned(**request: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plan = sm.Mutator(net(), X).prune(on_infeasible="relax", gap=0.0, **request)
    assert all(w.filename == __file__ for w in told if "budgets" in str(w.message))
    return plan, [str(w.message) for w in told]


def nearest(asked: dict[str, int], fits: Any) -> dict[str, int]:
    """Trying everything: the least excess of the first budget, then of the second among those plans."""
    plans = [costs(a, b) for a, b in itertools.product(range(1, 7), range(1, 6)) if fits(a, b)]
    found = {}
    for name, limit in asked.items():
        found[name] = max(limit, min(p[name] for p in plans))
        plans = [p for p in plans if p[name] <= found[name]]
    return found


FITS = {
    "nothing": (lambda g: [], lambda a, b: True),
    "a sum": (lambda g: [g["0"].out + g["2"].out >= 8], lambda a, b: a + b >= 8),
    "a size": (lambda g: [g["2"].out >= 4], lambda a, b: b >= 4),
    "multiples": (lambda g: [(g["0"].out + g["2"].out) % 4 == 0], lambda a, b: (a + b) % 4 == 0),
}


@pytest.mark.parametrize("constraints", FITS)
@pytest.mark.parametrize(
    "asked",
    [
        {"params": 20, "flops": 30},
        {"flops": 30, "params": 20},
        {"flops": 64, "params": 20},
        {"params": 40, "flops": 3},
        {"params": 3, "flops": 3},
        {"flops": 3},
        {"params": 66, "flops": 100},
    ],
    ids=str,
)
def test_budgets_taken_are_the_nearest_in_the_order_of_the_call(constraints, asked):
    request, fits = FITS[constraints]
    plan, told = pruned(**asked, constraints=request, dry_run=True)
    wanted = nearest(asked, fits)
    assert {k: plan.costs[k].budget for k in asked} == wanted
    assert all(plan.costs[k].after <= n for k, n in wanted.items())
    moved = [f"{k}: asked for at most {n}, given {wanted[k]}" for k, n in asked.items() if wanted[k] != n]
    assert len(told) == bool(moved) and all(line in told[0] for line in moved)
    assert told == [] or told[0].count("asked for") == len(moved)


def test_an_order_that_is_given_counts_more_than_that_of_the_keywords():
    request = lambda g: [g["0"].out + g["2"].out >= 8]  # noqa: E731
    first = pruned(params=20, flops=30, constraints=request, dry_run=True)[0]
    again = pruned(flops=30, params=20, order=["params"], constraints=request, dry_run=True)[0]
    assert {k: c.budget for k, c in first.costs.items()} == {k: c.budget for k, c in again.costs.items()}
    with pytest.raises(RequestError, match="order=3"):
        sm.prune(net(), X, params=0.5, order=3)


def test_what_can_be_met_is_not_touched_and_not_warned_of():
    plan, told = pruned(params=0.5, flops=0.5)
    same = sm.Mutator(net(), X).prune(params=0.5, flops=0.5, gap=0.0)
    assert told == [] and plan.sizes == same.sizes and plan.values == same.values
    assert plan.explain("0").after == plan.sizes["0"][1]


def test_sizes_are_not_relaxed_and_neither_are_budgets_among_the_constraints():
    with pytest.raises(InfeasibleError, match=r"0\.out >= 9"):
        pruned(params=0.1, constraints=lambda g: g["0"].out >= 9)
    with pytest.raises(InfeasibleError, match="params <= 5"):
        pruned(flops=0.5, constraints=lambda g: g.params <= 5)
    plan, told = pruned(params=3, constraints=lambda g: [g.flops <= 60, g["2"].out >= 3], dry_run=True)
    assert plan.costs["flops"].after <= 60 and len(told) == 1
    with pytest.raises(InfeasibleError):
        sm.Mutator(net(), X).prune(params=3)
    with pytest.raises(RequestError, match="on_infeasible='never'"):
        sm.Mutator(net(), X).prune(params=0.5, on_infeasible="never")


def test_stages_go_down_to_the_relaxed_budgets():
    data = [torch.randn(16, 3)]
    for more in ({"rounds": 3}, {"repair": sm.repair.least_squares(data)}, {"rounds": 2, "keep": "2"}):
        plan, told = pruned(params=3, **more)
        wanted = nearest({"params": 3}, lambda a, b, more=more: "keep" not in more or b == 5)
        assert plan.costs["params"].after <= wanted["params"] and len(told) == 1


def test_the_front_takes_it_too_and_the_model_is_pruned():
    model = net()
    with pytest.warns(UserWarning, match="params: asked for at most 3, given 10"):
        plan = sm.prune(model, X, params=3, on_infeasible="relax")
    assert sum(p.numel() for p in model.parameters()) == plan.costs["params"].after == 10
