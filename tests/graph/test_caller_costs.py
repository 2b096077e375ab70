"""Costs and budgets that a caller builds: what the program counts is what the decoded plan has."""

from __future__ import annotations

from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
from caller_costs import cost_of, graph_of, part

import solvemut as sm
from solvemut.errors import RequestError, SolvemutError
from solvemut.flow import Extent
from solvemut.requests import Budget, Cost, Monomial


def solved(graph: Any, values: Any, *requests: Any) -> Any:
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.add(*requests)
    return problem.solve(time_limit=20)


def test_a_cost_over_half_of_a_layer_is_counted_in_that_half():
    graph = graph_of("Mlp")
    values = {"0": np.r_[np.full(6, 5.0), np.ones(6)]}
    plan = solved(graph, values, cost_of(graph, part(graph, "0", slice(6))) <= 2)
    kept = plan.indices["0.weight"][0]
    assert len([i for i in kept if i < 6]) == 2 and len(kept) == 8
    assert plan.costs["part"].before == 6 and plan.costs["part"].after == 2 and plan.costs["part"].budget == 2


def test_a_cost_with_a_lower_limit():
    graph = graph_of("Mlp")
    values = {"0": np.r_[np.zeros(6), np.ones(6)]}
    plan = solved(graph, values, cost_of(graph, part(graph, "0", slice(6))) >= 3, graph["0"].out == 5)
    kept = plan.indices["0.weight"][0]
    assert (len([i for i in kept if i < 6]), len(kept)) == (3, 5)


@pytest.mark.parametrize("name", ["Mlp", "Residual", "Dense", "Grouped", "FusedQkv"])
@pytest.mark.parametrize("seed", range(3))
def test_costs_over_random_positions_are_kept(name, seed):
    """Whatever positions a cost counts, twice or in products, what it says of the plan is what the plan keeps."""
    graph = graph_of(name)
    rng = np.random.default_rng(seed)
    makers = [v for v in graph.vertices if v.makes_units and not graph.frozen_because(v)]
    vertices = [makers[int(k)] for k in rng.integers(0, len(makers), 2)]
    places = [rng.integers(0, v.nout, rng.integers(1, v.nout + 1)) for v in vertices]
    factors = [part(graph, v.name, p) for v, p in zip(vertices, places, strict=True)]
    cost = cost_of(graph, *factors[: int(rng.integers(1, 3))])
    plan = solved(graph, sm.values.random(seed), cost <= max(1, cost.now // 2), graph.params <= 0.8 * graph.params.now)
    told = 1
    for v, p in list(zip(vertices, places, strict=True))[: len(cost.monomials[0].extents)]:
        kept = set(_kept(plan, graph, v))
        told *= sum(int(i) in kept for i in p)
    assert plan.costs["part"].after == told <= max(1, cost.now // 2)


def _kept(plan: Any, graph: Any, vertex: Any) -> list[int]:
    """The positions of a layer's output that stay, read off its weight."""
    index = plan.indices.get(f"{vertex.name}.weight", {}).get(0)
    return list(range(vertex.nout)) if index is None else index


def test_the_same_budget_twice_counts_once():
    graph = graph_of("Residual")
    limit = graph.params.now // 2
    once = solved(graph, sm.values.random(0), graph.params <= limit)
    twice = solved(graph, sm.values.random(0), graph.params <= limit, graph.params <= limit)
    assert once.sizes == twice.sizes and twice.costs["params"].after <= limit


def test_two_costs_of_one_name_do_not_mix():
    graph = graph_of("Mlp")
    first, second = (cost_of(graph, part(graph, "0", s)) for s in (slice(6), slice(6, 12)))
    plan = solved(graph, sm.values.constant(), first <= 2, second <= 2)
    kept = plan.indices["0.weight"][0]
    assert (len([i for i in kept if i < 6]), len([i for i in kept if i >= 6])) == (2, 2)


def test_a_cost_named_like_one_of_ours_is_not_taken_for_it():
    graph = graph_of("Mlp")
    plan = solved(graph, sm.values.random(0), cost_of(graph, part(graph, "0", slice(6)), name="params") <= 2)
    assert plan.costs["params"].before == graph.params.now and plan.costs["params"].budget is None


def test_a_program_that_counts_wrongly_is_found_out(monkeypatch):
    """Blocks blind to the caller's cost, as they once were: solve raises instead of returning."""
    from solvemut.compile.choices import Choices

    features = Choices._features
    graph = graph_of("Mlp")
    mine = part(graph, "0", slice(6))

    def blind(self: Choices) -> Any:
        return (labels for labels in features(self) if labels is not mine.labels)

    monkeypatch.setattr(Choices, "_features", blind)
    with pytest.raises(SolvemutError, match=r"part <= 2.*recount"):
        solved(graph, {"0": np.r_[np.full(6, 5.0), np.ones(6)]}, cost_of(graph, mine) <= 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: Cost("x", (Monomial(1, (Extent(np.array([10**9])),)),), g.coupling),
        lambda g: Cost("x", (Monomial(1, (Extent(np.array([-1])),)),), g.coupling),
        lambda g: Cost("x", (Monomial(1, (Extent(np.array([0.5])),)),), g.coupling),
        lambda g: Cost("x", (Monomial(1, ("a",)),), g.coupling),  # type: ignore[arg-type]
        lambda g: Cost("x", (3,), g.coupling),  # type: ignore[arg-type]
        lambda g: Cost("x", (), None),
    ],
)
def test_costs_of_nothing_in_this_graph_are_refused(make):
    graph = graph_of("Mlp")
    with pytest.raises(RequestError):
        solved(graph, sm.values.constant(), make(graph) <= 2)


def test_budgets_made_by_hand_hold():
    graph = graph_of("Mlp")
    plan = solved(graph, sm.values.random(0), Budget(graph.params, graph.params.now // 2))  # type: ignore[arg-type]
    assert plan.costs["params"].after <= graph.params.now // 2
