"""Every network of the table, pruned under random values and requests, equals its masked original to 1e-9 in float64.

With each plan the certificate is recomputed on the changed model: parameters, FLOPs as torch counts them, the size and
the kept value of every layer, the budgets. Then comes a second prune on the Mutator's graph, without a new capture.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_recurrent  # noqa: F401
import nets_shapes  # noqa: F401
import nets_weights  # noqa: F401
import numpy as np
import pytest
import torch
from nets import NETS, Net
from oracles import (
    assert_same,
    count_flops,
    count_params,
    kept_positions,
    masked,
    outputs,
    randomise,
    tensors,
)
from torch import nn

import solvemut as sm

TABLE = pytest.mark.parametrize("name", NETS)


@functools.cache
def captured(name: str) -> tuple[Net, nn.Module, Any]:
    """A network with random weights and its graph; nobody changes them."""
    n = NETS[name]
    model = randomise(n.model())
    return n, model, sm.capture(model, n.args(), n.kw())


def random_values(graph: Any, seed: int) -> dict[str, np.ndarray]:
    """Lognormal numbers for the units of every vertex that makes some; 0 for what cannot go."""
    rng = np.random.default_rng(seed)
    frozen = graph.coupling.frozen
    return {v.name: rng.lognormal(size=v.nout) * ~frozen[v.units] for v in graph.vertices if v.makes_units}


def solve(name: str, seed: int, requests: Any) -> tuple[Any, dict[str, np.ndarray]]:
    graph = captured(name)[2]
    values = random_values(graph, seed)
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.add(requests(graph))
    return problem.solve(time_limit=20), values


def check(n: Net, before: nn.Module, plan: Any, values: dict[str, np.ndarray]) -> nn.Module:
    """Apply a plan to a copy and compare it with every oracle."""
    after = copy.deepcopy(before)
    plan.apply(after)
    check_function(n, before, after, plan)
    check_certificate(n, before, after, plan, values)
    return after


def check_function(n: Net, before: nn.Module, after: nn.Module, plan: Any) -> None:
    found = outputs(after, n.args(), n.kw())
    original = outputs(before, n.args(), n.kw())
    assert [t.shape for t in found] == [t.shape for t in original]
    if n.masked:
        assert_same(found, outputs(masked(before, plan), n.args(), n.kw()))
    with torch.no_grad():  # where torch takes fused paths
        assert_same(_tensors(after(*n.args(), **n.kw())), found)


def _tensors(out: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


def check_certificate(n: Net, before: nn.Module, after: nn.Module, plan: Any, values: dict[str, np.ndarray]) -> None:
    assert plan.costs["params"].before == count_params(before)
    assert plan.costs["params"].after == count_params(after)
    assert plan.costs["flops"].before == count_flops(before, n.args(), n.kw())
    assert plan.costs["flops"].after == count_flops(after, n.args(), n.kw())
    for cost in plan.costs.values():
        assert cost.budget is None or cost.after <= cost.budget
    assert plan.status in ("optimal", "feasible")
    assert plan.bound >= plan.objective * (1 - 1e-9) - 1e-9
    assert plan.gap >= 0 and (plan.status != "optimal" or plan.gap <= 1e-3 + 1e-12)
    assert {k: tuple(t.shape) for k, t in tensors(after).items() if k in plan.shapes} == {
        k: b for k, (_, b) in plan.shapes.items()
    }
    modules, total = dict(before.named_modules()), 0.0
    complete = True
    for name, value in values.items():
        kept = kept_positions(modules[name], name, plan) if name in modules else None
        if kept is None:
            complete &= not value.any()
            continue
        assert plan.sizes[name] == (len(value), len(kept)), name
        total += float(value[kept].sum())
    if complete:
        assert math.isclose(plan.objective, total, rel_tol=1e-9, abs_tol=1e-9)


def shrunk(before: nn.Module, plan: Any) -> bool:
    return any(b != a for b, a in plan.shapes.values())


# -- the table ---------------------------------------------------------------------------------------------------------


@TABLE
def test_capture_counts_what_is_there_and_frees_what_it_should(name):
    n, model, graph = captured(name)
    assert graph.params.now == count_params(model)
    assert graph.flops.now == count_flops(model, n.args(), n.kw())
    assert {f: graph.frozen_because(graph[f]) for f in n.free} == dict.fromkeys(n.free, "")
    for vertex in graph.vertices:
        module = dict(model.named_modules()).get(vertex.name)
        if isinstance(module, nn.Linear):
            assert (vertex.nin, vertex.nout) == ([module.in_features], module.out_features)
    assert graph.coupling.facts.unsupported == []


@TABLE
def test_every_free_layer_can_shrink(name):
    n, model, _ = captured(name)
    plan, values = solve(name, 1, lambda g: [g[f].out <= g[f].nout - 1 for f in n.free])
    after = check(n, model, plan, values)
    assert shrunk(model, plan)
    for layer in n.free:
        if layer in plan.sizes:
            assert plan.sizes[layer][1] < plan.sizes[layer][0]
    assert count_params(after) < count_params(model)


@pytest.mark.parametrize(("name", "which"), [(k, i) for k, n in NETS.items() for i in range(len(n.budget))])
def test_budgets(name, which):
    n, model, _ = captured(name)
    budget = n.budget[which]
    plan, values = solve(
        name, 10 + which, lambda g: [getattr(g, c) <= f * getattr(g, c).now for c, f in budget.items()]
    )
    after = check(n, model, plan, values)
    assert shrunk(model, plan)
    recount = {"params": count_params(after), "flops": count_flops(after, n.args(), n.kw())}
    for cost, fraction in budget.items():
        assert recount[cost] <= fraction * plan.costs[cost].before


@TABLE
def test_second_prune_without_capture(name, monkeypatch):
    n, model, _ = captured(name)
    before = copy.deepcopy(model)
    mut = sm.Mutator(before, n.args(), n.kw())
    (cost, fraction), *_ = n.budget[0].items()
    mut.prune(**{cost: (1 + fraction) / 2}, values=sm.values.random(1), time_limit=20)
    fresh = sm.capture(before, n.args(), n.kw())
    assert {k: c.now for k, c in mut.graph.costs.items()} == {k: c.now for k, c in fresh.costs.items()}
    assert [(v.name, v.nin, v.nout) for v in mut.graph.vertices] == [(v.name, v.nin, v.nout) for v in fresh.vertices]
    monkeypatch.setattr("solvemut.mutator.capture", _no_capture)
    monkeypatch.setattr("torch.export.export", _no_capture)
    between = copy.deepcopy(before)
    values = random_values(mut.graph, 3)
    plan = mut.prune(**{cost: fraction * model_cost(n, model, cost)}, values=values, time_limit=20)
    assert mut.model is before and mut.graph.costs[cost].now == plan.costs[cost].after
    check_function(n, between, before, plan)
    check_certificate(n, between, before, plan, values)


def model_cost(n: Net, model: nn.Module, cost: str) -> int:
    return count_params(model) if cost == "params" else count_flops(model, n.args(), n.kw())


def _no_capture(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("captured again")


# -- units under a function that mixes them: a small network, rebuilt by hand ------------------------------------------


def test_softmax_over_units_against_a_rebuilt_network():
    _, model, _ = captured("SoftmaxOverUnits")
    plan, _ = solve("SoftmaxOverUnits", 0, lambda g: [g["a"].out == 4])
    keep = plan.indices["a.weight"][0]
    assert len(keep) == 4 and plan.indices["a.bias"][0] == keep == plan.indices["b.weight"][1]
    small = NETS["SoftmaxOverUnits"].model()
    small.a, small.b = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    with torch.no_grad():
        small.a.weight.copy_(model.a.weight[keep])
        small.a.bias.copy_(model.a.bias[keep])
        small.b.weight.copy_(model.b.weight[:, keep])
        small.b.bias.copy_(model.b.bias)
    after = copy.deepcopy(model)
    plan.apply(after)
    args = NETS["SoftmaxOverUnits"].args()
    assert_same(outputs(after, args), outputs(small, args))


def test_mean_and_maximum_over_units_against_a_rebuilt_network():
    _, model, _ = captured("SpatialAttention")
    plan, _ = solve("SpatialAttention", 0, lambda g: [g["a"].out == 5, g["b"].out == 4])
    a, b = (plan.indices[f"{k}.weight"][0] for k in "ab")
    assert plan.indices["b.weight"][1] == a and plan.indices["head.weight"][1] == b
    small = NETS["SpatialAttention"].model()
    small.a, small.b, small.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)
    small.double()
    with torch.no_grad():
        small.a.weight.copy_(model.a.weight[a])
        small.a.bias.copy_(model.a.bias[a])
        small.b.weight.copy_(model.b.weight[b][:, a])
        small.b.bias.copy_(model.b.bias[b])
        small.head.weight.copy_(model.head.weight[:, b])
        small.head.bias.copy_(model.head.bias)
        small.gate.load_state_dict(model.gate.state_dict())
    after = copy.deepcopy(model)
    plan.apply(after)
    args = NETS["SpatialAttention"].args()
    assert_same(outputs(after, args), outputs(small, args))


@pytest.mark.parametrize(
    "norm",
    [
        lambda n: nn.LayerNorm(n),
        lambda n: nn.LayerNorm(n, elementwise_affine=False),
        lambda n: nn.RMSNorm(n),
        lambda n: nn.LayerNorm(n, bias=False),
    ],
)
def test_norm_over_units_against_a_rebuilt_network(norm):
    model = randomise(nn.Sequential(nn.Linear(4, 10), norm(10), nn.Linear(10, 2)).double())
    x = torch.randn(5, 4, dtype=torch.float64)
    after = copy.deepcopy(model)
    plan = sm.prune(after, x, params=0.6, values=sm.values.random(3))
    keep = plan.indices["0.weight"][0]
    small = nn.Sequential(nn.Linear(4, len(keep)), norm(len(keep)), nn.Linear(len(keep), 2)).double()
    with torch.no_grad():
        for dim, name in ((0, "0.weight"), (0, "0.bias"), (0, "1.weight"), (0, "1.bias"), (1, "2.weight")):
            if name in tensors(model):
                tensors(small)[name].copy_(tensors(model)[name].index_select(dim, torch.tensor(keep)))
        small[2].bias.copy_(model[2].bias)
    assert_same(outputs(after, (x,)), outputs(small, (x,)))
    assert len(keep) < 10


def test_group_norm_against_a_rebuilt_network():
    model = randomise(nn.Sequential(nn.Conv2d(2, 12, 1), nn.GroupNorm(4, 12), nn.Conv2d(12, 2, 1)).double())
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    for out, groups in ((8, 4), (9, 3), (6, None)):
        after = copy.deepcopy(model)
        plan = sm.prune(after, x, values=sm.values.random(out), constraints=lambda g, out=out: [g["0"].out == out])
        keep = plan.indices["0.weight"][0]
        n = after[1].num_groups
        assert groups is None or n == groups
        by_group = [[i for i in keep if i // 3 == g] for g in range(4)]
        assert {len(k) for k in by_group} <= {0, out // n} and sum(map(bool, by_group)) == n
        small = nn.Sequential(nn.Conv2d(2, out, 1), nn.GroupNorm(n, out), nn.Conv2d(out, 2, 1)).double()
        with torch.no_grad():
            for dim, name in ((0, "0.weight"), (0, "0.bias"), (0, "1.weight"), (0, "1.bias"), (1, "2.weight")):
                tensors(small)[name].copy_(tensors(model)[name].index_select(dim, torch.tensor(keep)))
            small[2].bias.copy_(model[2].bias)
        assert_same(outputs(after, (x,)), outputs(small, (x,)))


# -- what the table cannot say -----------------------------------------------------------------------------------------


def test_groups_keep_different_positions():
    _, model, graph = captured("Grouped")
    values = {"0": [9, 1, 2, 8, 1, 9, 2, 8, 9, 1, 2, 8], "2": [1, 1, 9, 9, 9, 9, 9, 1, 9, 1, 9, 9, 1, 9, 1, 9, 9, 9]}
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.add(graph["0"].out == 6, graph["2"].out == 12)
    plan = problem.solve()
    assert plan.indices["0.weight"][0] == [0, 3, 5, 7, 8, 11]
    assert plan.indices["2.weight"] == {0: [2, 3, 4, 5, 6, 8, 10, 11, 13, 15, 16, 17], 1: [[0, 3], [1, 3], [0, 3]]}
    after = copy.deepcopy(model)
    plan.apply(after)
    w = model[2].weight
    assert torch.equal(after[2].weight[0:4], w[[2, 3, 4, 5]][:, [0, 3]])
    assert torch.equal(after[2].weight[4:8], w[[6, 8, 10, 11]][:, [1, 3]])


def test_a_whole_group_goes_when_it_is_worth_least():
    _, model, graph = captured("Grouped")
    values = {"0": [5] * 4 + [1] * 4 + [5] * 4, "2": [5] * 6 + [1] * 6 + [5] * 6}
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.add(graph.params <= graph.params.now * 0.7)
    plan = problem.solve()
    assert plan.indices["0.weight"][0] == [0, 1, 2, 3, 8, 9, 10, 11]
    after = copy.deepcopy(model)
    plan.apply(after)
    assert after[2].groups == 2 and after[2].in_channels == 8 and after[2].out_channels == 12


def test_heads_go_as_a_whole():
    _, model, graph = captured("FusedQkv")
    problem = sm.Problem(graph)
    problem.maximize({"qkv": np.repeat(np.tile([1.0, 9, 2, 8], 3), 4)})
    problem.add(graph["qkv"].out == 24)
    plan = problem.solve()
    kept = [h * 4 + i for h in (1, 3) for i in range(4)]
    assert plan.indices["qkv.weight"][0] == [t * 16 + k for t in range(3) for k in kept]
    assert plan.indices["out.weight"][1] == kept
    after = copy.deepcopy(model)
    plan.apply(after)
    assert (after.heads, after.size) == (2, 4)


def test_printed_graph_and_plan_name_every_layer():
    _, _, graph = captured("InvertedResidual")
    plan, _ = solve("InvertedResidual", 0, lambda g: [g.params <= 0.7 * g.params.now])
    for name in ("stem", "expand", "project", "head"):
        assert name in str(graph) and name in str(plan)
    assert "model output" in str(graph) and plan.status in str(plan)


def test_capture_changes_nothing():
    n = NETS["Residual"]
    model = randomise(n.model()).train()
    model.a.eval()
    saved = {k: t.clone() for k, t in tensors(model).items()}
    attributes = {k: dict(vars(m)) for k, m in model.named_modules()}
    state = torch.get_rng_state()
    sm.capture(model, n.args())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and not model.a.training and model.b.training
    assert all(torch.equal(saved[k], t) for k, t in tensors(model).items())
    for k, m in model.named_modules():
        assert {a: type(v) for a, v in vars(m).items()} == {a: type(v) for a, v in attributes[k].items()}
