"""Rules of selection against their definitions: one share for all, one threshold for all, and the optimum."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from caller_costs import graph_of
from nets import NETS
from oracles import count_flops, count_params, outputs, randomise
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError
from solvemut.plan import kept_units
from solvemut.select import certified, global_threshold, optimal, uniform
from solvemut.values import magnitude, random, retention, unit_values, worth_of

RULES = {"optimal": optimal, "uniform": uniform, "global_threshold": global_threshold}
NAMES = ["Mlp", "Residual", "Grouped", "AttentionSdpa", "Dense"]


def mlp(seed: int = 0, widths: tuple[int, ...] = (5, 12, 9, 7, 3)) -> Any:
    pairs = [(nn.Linear(i, o), nn.ReLU()) for i, o in itertools.pairwise(widths)]
    model = randomise(nn.Sequential(*itertools.chain(*pairs)).double(), seed)
    return sm.capture(model, torch.ones(1, widths[0], dtype=torch.float64))


LAYERS = ["0", "2", "4"]


def sizes(graph: Any, plan: Any) -> tuple[int, ...]:
    return tuple(int(kept_units(graph, plan)[graph[k].units].sum()) for k in LAYERS)


def params_of(n: tuple[int, ...]) -> int:
    """Of the chain 5 - n - 3."""
    return sum(i * o + o for i, o in itertools.pairwise((5, *n, 3)))


# -- whatever the rule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cost", ["params", "flops"])
def test_budgets_hold_and_the_plan_applies(rule, name, cost):
    net = NETS[name]
    model, args = randomise(net.model()), net.args()
    graph = sm.capture(model, args)
    before = graph.costs[cost].now
    values = retention() if cost == "params" else magnitude()
    plan = RULES[rule](graph, values, **{cost: 0.7})
    told = plan.costs[cost]
    assert told.before == before and told.after <= 0.7 * before and told.budget == pytest.approx(0.7 * before)
    kept = kept_units(graph, plan)
    assert graph.costs[cost].count(graph.coupling, kept) == told.after
    plan.apply(model)
    assert count_params(model) == plan.costs["params"].after
    assert not net.flops or count_flops(model, args) == plan.costs["flops"].after
    assert all(torch.isfinite(t).all() for t in outputs(model, args))


@pytest.mark.parametrize("name", ["Mlp", "Residual", "Grouped", "AttentionSdpa"])
@pytest.mark.parametrize("values", [retention(), magnitude(), random(3)], ids=lambda v: v.name)
def test_the_certificate_is_the_worth_of_what_stays_beside_the_optimum(name, values):
    graph = graph_of(name)
    worth = worth_of(values, graph.model, graph)
    plans = {key: rule(graph, values, flops=0.6) for key, rule in RULES.items()}
    best = plans["optimal"]
    for key, plan in plans.items():
        found = worth.of(kept_units(graph, plan), graph.coupling.frozen)
        assert plan.objective == pytest.approx(found, rel=1e-9, abs=1e-9), key
        assert plan.bound >= best.objective - 1e-9 * abs(best.objective) and plan.objective <= plan.bound
        assert plan.gap == pytest.approx((plan.bound - plan.objective) / abs(plan.objective), rel=1e-6, abs=1e-9)
        assert best.gap <= plan.gap + 1e-3 and plan.objective <= best.bound + 1e-9 * abs(best.bound)
        assert plan.values == values.name
    assert best.gap <= 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_that_cannot_be_met_is_told(rule):
    graph = mlp()
    smallest = params_of((1, 1, 1))
    with pytest.raises(InfeasibleError, match="params"):
        RULES[rule](graph, params=smallest - 1)
    plan = RULES[rule](graph, params=smallest)
    assert sizes(graph, plan) == (1, 1, 1) and plan.costs["params"].after == smallest


@pytest.mark.parametrize("rule", RULES)
def test_without_a_budget_all_stays(rule):
    graph = mlp()
    plan = RULES[rule](graph)
    assert sizes(graph, plan) == (12, 9, 7) and all(a == b for a, b in plan.sizes.values())


@pytest.mark.parametrize("rule", RULES)
def test_what_is_asked_besides_is_heard(rule):
    graph = mlp()
    rounded = RULES[rule](graph, params=0.6, round_to=4)
    assert all(n % 4 == 0 or n == 7 for n in sizes(graph, rounded)) and sizes(graph, rounded) != (12, 9, 7)
    assert sizes(graph, RULES[rule](graph, params=0.6, keep="2"))[1] == 9
    equal = RULES[rule](graph, params=0.6, constraints=lambda g: [g["0"].out == g["2"].out, g["4"].out >= 6])
    assert sizes(graph, equal)[0] == sizes(graph, equal)[1] and sizes(graph, equal)[2] >= 6
    for plan in (rounded, equal):
        assert plan.costs["params"].after <= 0.6 * plan.costs["params"].before


@pytest.mark.parametrize("rule", RULES)
def test_both_budgets_at_once_and_one_from_below(rule):
    graph = graph_of("Residual")
    plan = RULES[rule](graph, params=0.8, flops=0.5)
    assert all(plan.costs[k].after <= share * plan.costs[k].before for k, share in (("params", 0.8), ("flops", 0.5)))
    low = 0.4 * graph.params.now
    both = RULES[rule](graph, params=0.8, constraints=lambda g: [g.params >= low])
    assert low <= both.costs["params"].after <= 0.8 * graph.params.now


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_leaves_model_and_graph_alone_and_finds_the_same_again(rule):
    graph = graph_of("Residual")
    before = {k: t.clone() for k, t in graph.model.state_dict().items()}
    frozen = graph.coupling.frozen.copy()
    plans = [RULES[rule](graph, params=0.6) for _ in range(2)]
    assert plans[0].indices == plans[1].indices and plans[0].objective == plans[1].objective
    assert all(torch.equal(t, before[k]) for k, t in graph.model.state_dict().items())
    assert (graph.coupling.frozen == frozen).all()


# -- uniform -----------------------------------------------------------------------------------------------------------


def at_share(share: float, now: tuple[int, ...]) -> tuple[int, ...]:
    """The nearest sizes to a share of each, one unit at least."""
    return tuple(max(1, round(share * n)) for n in now)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [0.8, 0.5, 0.3, 0.15])
def test_uniform_is_the_largest_share_within_the_budget(seed, budget):
    graph = mlp(seed)
    now = (12, 9, 7)
    plan = uniform(graph, magnitude(), params=budget)
    ways = list(dict.fromkeys(at_share(s, now) for s in np.linspace(0.0003, 1, 4001)))
    costs = [params_of(n) for n in ways]
    assert costs == sorted(costs)
    wanted = max(k for k, c in enumerate(costs) if c <= budget * graph.params.now)
    assert sizes(graph, plan) == ways[wanted] and costs[wanted + 1] > budget * graph.params.now
    assert plan.costs["params"].after == costs[wanted]


def test_uniform_keeps_the_units_that_are_worth_most():
    graph = mlp(4)
    for values in (magnitude(), random(1), retention()):
        plan = uniform(graph, values, params=0.5)
        order, kept = worth_of(values, graph.model, graph).order, kept_units(graph, plan)
        for k in LAYERS:
            units = graph[k].units
            assert order[units][kept[units]].min() > order[units][~kept[units]].max()


def test_uniform_of_groups_is_the_nearest_size_that_there_is():
    """Three groups of four channels in, six out: whole groups go, or equally many of each."""
    graph = graph_of("Grouped")
    ways = {(r * i, r * o) for r in (1, 2, 3) for i in range(1, 5) for o in range(1, 7)}
    for budget in (0.8, 0.6, 0.4, 0.2):
        kept = kept_units(graph, uniform(graph, magnitude(), flops=budget))
        found = tuple(int(kept[graph[k].units].sum()) for k in ("0", "2"))

        def far(way: tuple[int, int], share: float) -> float:
            return abs(way[0] / 12 - share) + abs(way[1] / 18 - share)

        assert any(far(found, s) <= min(far(w, s) for w in ways) + 1e-9 for s in np.linspace(0, 1, 1001)), found


# -- one threshold -----------------------------------------------------------------------------------------------------


def by_sorting(graph: Any, worth: np.ndarray, budget: float) -> np.ndarray:
    """All units by rising worth go, the last of a layer never, until the budget holds."""
    kept = np.ones(graph.coupling.n_units, dtype=bool)
    layers = {int(u): graph[k].units for k in LAYERS for u in graph[k].units}
    for u in sorted(layers, key=lambda u: worth[u]):
        if graph.params.count(graph.coupling, kept) <= budget * graph.params.now:
            return kept
        if kept[layers[u]].sum() > 1:
            kept[u] = False
    assert graph.params.count(graph.coupling, kept) <= budget * graph.params.now
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [0.9, 0.5, 0.2, 0.08])
@pytest.mark.parametrize(
    "values", [magnitude(), magnitude(normalize=None), random(2), retention()], ids=lambda v: v.name
)
def test_one_threshold_is_a_sort_of_all_units(seed, budget, values):
    graph = mlp(seed)
    worth = unit_values(values, graph.model, graph)
    kept = kept_units(graph, global_threshold(graph, values, params=budget))
    wanted = by_sorting(graph, worth, budget)
    for k in LAYERS:
        assert kept[graph[k].units].tolist() == wanted[graph[k].units].tolist(), k


def test_no_layer_is_emptied_by_a_threshold():
    graph = mlp(1)
    values = {"0": np.arange(12) + 100.0, "2": np.arange(9) / 100, "4": np.arange(7) + 50.0}
    plan = global_threshold(graph, values, params=0.3)
    assert sizes(graph, plan)[1] == 1 and plan.indices["2.weight"][0] == [8]
    assert sizes(graph, plan)[0] > 1


def test_a_threshold_may_be_infeasible_where_another_rule_is_not():
    """Units of one worth go together, and so may miss what lies between two budgets."""
    graph = mlp(0, (5, 6, 6, 6, 3))
    low = 0.6 * graph.params.now
    with pytest.raises(InfeasibleError, match="no threshold of this rule"):
        global_threshold(graph, sm.values.constant(), params=0.7, constraints=lambda g: [g.params >= low])
    plan = optimal(graph, sm.values.constant(), params=0.7, constraints=lambda g: [g.params >= low])
    assert low <= plan.costs["params"].after <= 0.7 * graph.params.now


# -- the certificate ---------------------------------------------------------------------------------------------------


def test_the_optimum_of_a_small_net_is_that_of_all_sizes():
    graph = mlp(2, (5, 4, 4, 3, 3))
    worth = worth_of(magnitude(), graph.model, graph)
    plan = optimal(graph, magnitude(), params=0.5, gap=0.0)
    prefix = [np.cumsum(-np.sort(-worth.value[graph[k].units])) for k in LAYERS]
    ways = itertools.product(range(1, 5), range(1, 5), range(1, 4))
    best = max(
        sum(p[n - 1] for p, n in zip(prefix, way, strict=True))
        for way in ways
        if params_of(way) <= 0.5 * graph.params.now
    )
    assert plan.objective == pytest.approx(best) and plan.status == "optimal"


def test_a_plan_that_beats_the_best_one_found_has_no_gap():
    graph = mlp()
    plan = optimal(graph, magnitude(), params=0.5)
    more = certified(copy.copy(plan), plan.bound + 1, plan)
    assert (more.objective, more.bound, more.gap, more.status) == (plan.bound + 1, plan.bound + 1, 0.0, "feasible")
    less = certified(plan, plan.objective / 2, plan)
    assert less.bound == plan.bound and less.gap == pytest.approx((plan.bound - less.objective) / less.objective)
