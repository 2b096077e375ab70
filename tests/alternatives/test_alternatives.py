"""Options of layers: each alone on every network, all of them with widths against brute force, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math

import families_attention  # noqa: F401  (enters its families in the table)
import families_vision  # noqa: F401
import nets_attention  # noqa: F401
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from brute import Block, assert_best, top
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Net
from oracles import assert_same, count_flops, count_params, masked, outputs, randomise
from torch import nn

import solvemut as sm
from solvemut.errors import PlanMismatchError, RequestError

ZOO: dict[str, Net] = {**NETS, **{f"family {k}": f.net for k, f in FAMILIES.items()}}
F64 = torch.float64


def mlp(sizes: tuple[int, ...] = (3, 5, 4, 2)) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU()))).double().eval()


def second_by_svd(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of a rank, by another way than the library's."""
    u, s, v = torch.linalg.svd(weight.double().reshape(weight.shape[0], -1), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def linear_layers(model: nn.Module, graph: sm.Graph) -> list[str]:
    """Layers of their own that can be of low rank."""
    seen = {n.module for n in graph.trace.nodes}
    found = []
    for name, m in model.named_modules():
        plain = type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and getattr(m, "groups", 1) == 1
        if plain and name in seen and min(m.weight.flatten(1).shape) > 1:
            found.append(name)
    return found


# -- each by itself ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", [k for k, net in ZOO.items() if not net.masked or k in [*NETS][1::4]])
def test_a_layer_of_low_rank_in_networks(name: str) -> None:
    net = ZOO[name]
    model, args, kwargs = randomise(net.model()), net.args(), net.kw()
    graph = sm.capture(model, args, kwargs)
    for path in linear_layers(model, graph)[-1:]:
        problem = sm.Problem(graph)
        try:
            problem.choose(path, {"dense": None, "rank 1": sm.LowRank(1, value=1.0)})
        except RequestError as e:  # its weight is read by more than the layer
            assert "does not run" in str(e) or "other names" in str(e)
            continue
        plan = problem.solve()
        assert plan.chosen == {path: "rank 1"}
        other, wanted = copy.deepcopy(model), copy.deepcopy(model)
        sm.Plan.from_json(plan.to_json()).apply(other)
        layer = copy.deepcopy(wanted.get_submodule(path))
        wanted.set_submodule(path, layer)  # what was tied to it stays as it was
        with torch.no_grad():
            layer.weight.copy_(second_by_svd(layer.weight, 1).reshape(layer.weight.shape))
        assert_same(outputs(other, args, kwargs), outputs(wanted, args, kwargs), atol=1e-7)
        assert plan.costs["params"].after == count_params(other)
        if net.flops:
            assert plan.costs["flops"].after == count_flops(other, args, kwargs)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", [k for k, net in ZOO.items() if net.masked and k not in [*NETS][1::2]])
def test_widths_and_low_rank_together_in_networks(name: str) -> None:
    net = ZOO[name]
    model, args, kwargs = randomise(net.model()), net.args(), net.kw()
    graph = sm.capture(model, args, kwargs)
    problem = sm.Problem(graph)
    problem.add(graph.params <= 0.8 * graph.params.now, graph.weight_bytes <= 0.8 * graph.weight_bytes.now)
    chosen: dict[str, str] = {}
    for path in linear_layers(model, graph)[:2]:
        try:
            problem.choose(path, {"dense": None, "rank 1": sm.LowRank(1, value=0.5)})
            chosen[path] = "rank 1"
        except RequestError:
            continue
    if not chosen:
        pytest.skip("no layer of this network has alternatives")
    try:
        plan = problem.solve()
    except sm.errors.InfeasibleError:
        pytest.skip("this network cannot be made so small")
    after, full = copy.deepcopy(model), copy.deepcopy(model)
    plan.apply(after)
    for e in (e for e in plan.edits if e.kind == "substitute"):
        full.set_submodule(e.module, copy.deepcopy(e.given))
    assert_same(outputs(after, args, kwargs), outputs(masked(full, plan), args, kwargs))
    assert plan.costs["params"].after == count_params(after)
    nbytes = sum(t.numel() * t.element_size() for t in {id(t): t for t in after.state_dict().values()}.values())
    assert plan.costs["weight_bytes"].after <= 0.8 * graph.weight_bytes.now
    if len({t.data_ptr() for t in model.state_dict().values()}) == len(model.state_dict()):
        assert plan.costs["weight_bytes"].after == nbytes


# -- against brute force -----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.floats(0.2, 1.1), st.integers(0, 99))
def test_options_and_widths_against_brute_force(share: float, seed: int) -> None:
    sizes = (3, 5, 4, 2)
    model, x = mlp(sizes), torch.ones(2, 3, dtype=F64)
    draw = np.random.default_rng(seed)
    values = {"0": draw.normal(size=5), "2": draw.normal(size=4)}
    worth = {k: float(draw.normal()) for k in ("rank 1", "rank 2", "small", "int8")}
    options = {
        "dense": None,
        "rank 1": sm.LowRank(1, value=worth["rank 1"]),
        "rank 2": sm.LowRank(2, value=worth["rank 2"]),
        "small": sm.Alternative(nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 4)).double(), value=worth["small"]),
        "int8": sm.Alternative(value=worth["int8"], costs={"params": 0.3}),
    }

    def middle(option: str, a: int, b: int) -> float:
        if option in ("dense", "int8"):
            return (a * b + b) * (0.3 if option == "int8" else 1)
        rank = 2 if option == "rank 2" else 1
        return a * rank + rank * b + b + (1 if option == "small" else 0)

    limit = share * 20 + 24 * share + 10 * share
    best = -math.inf
    for a, b, option in itertools.product(range(1, 6), range(1, 5), options):
        cost = 3 * a + a + middle(option, a, b) + 2 * b + 2
        if cost <= limit + 1e-9:
            best = max(best, top(values["0"], a) + top(values["2"], b) + worth.get(option, 0.0))
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.choose("2", options)
    problem.add(graph.params <= limit)
    if (plan := assert_best(problem, best, model)) is None:
        return
    if plan.chosen.get("2") != "int8":
        assert plan.costs["params"].after == count_params(model) <= limit + 1e-9
    else:
        own = sum(p.numel() for p in model[2].parameters())
        assert plan.costs["params"].after == pytest.approx(count_params(model) - 0.7 * own)


@settings(max_examples=15)
@given(st.floats(0.2, 1.0), st.integers(0, 99))
def test_options_in_branches_that_may_go(share: float, seed: int) -> None:
    inner = (4, 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), *(Block(4, n) for n in inner), nn.Linear(4, 2)).double().eval()
    draw = np.random.default_rng(seed)
    lost = {str(k + 1): float(draw.normal()) for k in range(2)}
    gain = {str(k + 1): float(draw.normal()) for k in range(2)}
    values = {"0": np.ones(4), **{f"{k + 1}.up": draw.random(n) for k, n in enumerate(inner)}}

    def block(width: int, n: int | None, low: bool) -> int:
        if n is None:
            return 0
        up = width + n + n if low else (width + 1) * n
        return up + (n + 1) * width

    limit = share * (12 + sum(block(4, n, False) for n in inner) + 10)
    best = -math.inf
    states = [[(None, False), *itertools.product(range(1, n + 1), (False, True))] for n in inner]
    for width in range(1, 5):
        for picked in itertools.product(*states):
            if 3 * width + sum(block(width, n, low) for n, low in picked) + 2 * width + 2 <= limit:
                value = float(width)
                for k, (n, low) in enumerate(picked):
                    key = str(k + 1)
                    value += -lost[key] if n is None else top(values[f"{key}.up"], n) + (gain[key] if low else 0.0)
                best = max(best, value)
    graph = sm.capture(model, torch.ones(2, 2, dtype=F64))
    problem = sm.Problem(graph)
    problem.maximize({**values, **{f"{k}.down": np.zeros(4) for k in lost}})
    problem.add(graph.params <= limit)
    problem.drop(graph.removable, lost)
    for k, g in gain.items():
        problem.choose(f"{k}.up", {"dense": None, "rank 1": sm.LowRank(1, value=g)})
    if plan := assert_best(problem, best, model):
        assert plan.costs["params"].after == count_params(model) <= limit


# -- units and costs ---------------------------------------------------------------------------------------------------


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)
        )
        .double()
        .eval()
    )


def test_what_an_alternative_couples_stays_where_it_is_chosen() -> None:
    model, x = conv_net(), torch.randn(1, 3, 6, 6, dtype=F64)
    graph = sm.capture(model, x)
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8).double()
    for value in (100.0, -100.0):
        problem = sm.Problem(graph)
        problem.maximize({"0": -1.0, "2": -1.0, "4": 1.0})  # fewer channels are better
        problem.choose("2", {"dense": None, "depthwise": sm.Alternative(depthwise, value=value)})
        plan = problem.solve(gap=0.0)
        other = copy.deepcopy(model)
        plan.apply(other)
        if value > 0:  # the depthwise one reads and makes the same channels
            assert plan.chosen == {"2": "depthwise"} and other[0].out_channels == other[2].groups == 8
            wanted = copy.deepcopy(model)
            wanted[2] = depthwise
            assert_same(outputs(other, (x,)), outputs(wanted, (x,)))
        else:
            assert plan.chosen == {} and plan.sizes["0"][1] == plan.sizes["2"][1] == 1


def test_a_block_of_layers_has_options_and_its_own_units_count_only_where_it_stays() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    model = nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 2)).double().eval()
    x = torch.randn(5, 3, dtype=F64)
    graph = sm.capture(model, x)
    values = {"0": 1.0, "1.0": 10.0, "1.2": 1.0}
    for worth, chosen in ((59.0, {}), (61.0, {"1": "one"})):  # its six units are worth 10 each
        problem = sm.Problem(graph)
        problem.maximize(values)
        problem.choose("1", {"as it is": None, "one": sm.Alternative(nn.Linear(4, 4).double(), value=worth)})
        plan = problem.solve(gap=0.0)
        assert plan.chosen == chosen
        other = copy.deepcopy(model)
        plan.apply(other)
        assert plan.costs["params"].after == count_params(other)
        assert isinstance(other[1], nn.Linear) == bool(chosen)


def test_costs_alone_leave_the_module_as_it_is() -> None:
    model, x = mlp(), torch.ones(2, 3, dtype=F64)
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.choose("2", {"float": None, "int8": sm.Alternative(value=-0.01, costs={"weight_bytes": 0.125})})
    problem.add(graph.weight_bytes <= 0.7 * graph.weight_bytes.now)
    problem.keep("*")
    plan = problem.solve()
    assert plan.chosen == {"2": "int8"} and plan.sizes["2"] == (4, 4)
    assert plan.costs["weight_bytes"].after == graph.weight_bytes.now - 24 * 7
    assert "its costs are counted; the module is as it was" in str(plan)
    before = copy.deepcopy(model)
    sm.Plan.from_json(plan.to_json()).apply(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_latency_counts_what_stands_there() -> None:
    table = sm.roofline(flops_per_s=1e6, bytes_per_s=1e6, overhead_s=1e-3)
    for seed in range(4):
        model, x = conv_net(), torch.randn(1, 3, 6, 6, dtype=F64)
        graph = sm.capture(randomise(model, seed), x)
        now = graph.latency(table)
        problem = sm.Problem(graph)
        problem.add(now <= (0.5 + 0.1 * seed) * now.now)
        problem.choose("2", {"dense": None, **{f"rank {r}": sm.LowRank(r) for r in (1, 2, 4)}})
        problem.choose("0", {"dense": None, "rank 2": sm.LowRank(2)})
        plan = problem.solve()
        plan.apply(model)
        assert plan.costs["latency"].after == sm.capture(model, x).latency(table).now
        assert plan.costs["latency"].after <= plan.costs["latency"].budget


def test_an_option_may_be_all_there_is() -> None:
    model, x = mlp(), torch.ones(2, 3, dtype=F64)
    problem = sm.Problem(sm.capture(model, x))
    problem.choose("2", {"rank 1": sm.LowRank(1, value=-9.0), "rank 2": sm.LowRank(2, value=-8.0)})
    assert problem.solve().chosen == {"2": "rank 2"}


# -- values ------------------------------------------------------------------------------------------------------------


def test_low_rank_keeps_the_outputs_on_the_data_as_well_as_a_rank_can() -> None:
    model = mlp((6, 7, 5, 3))
    x = torch.randn(200, 6, dtype=F64, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)
    batches = [(x[:100], x[:100, :3]), (x[100:], x[100:, :3])]
    graph = sm.capture(model, x[:1])
    problem = sm.Problem(graph)
    problem.maximize(sm.values.reconstruction(batches))
    problem.choose("2", {"rank 2": sm.LowRank(2)})
    problem.keep("*")
    plan = problem.solve()
    other = copy.deepcopy(model)
    sm.Plan.from_json(plan.to_json()).apply(other)
    inputs = model[1](model[0](x)).detach()
    y = inputs @ model[2].weight.detach().T
    best = float(torch.linalg.svdvals(y)[2:].square().sum())  # no map of rank 2 comes nearer
    found = float((other[2](inputs) - model[2](inputs)).detach().square().sum())
    assert found == pytest.approx(best, rel=1e-5)
    weights = float((inputs @ second_by_svd(model[2].weight, 2).T - y).square().sum())
    assert found < 0.999 * weights


def test_worth_is_measured_in_place() -> None:
    model, loss = mlp((6, 7, 5, 3)), nn.functional.mse_loss
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 6, dtype=F64, generator=g), torch.randn(20, 3, dtype=F64, generator=g)
    other = nn.Linear(7, 5).double()
    replaced = copy.deepcopy(model)
    replaced[2] = other
    rise = float(loss(replaced(x), y) - loss(model(x), y))
    change = float((replaced(x) - model(x)).square().sum()) / 2 / 20
    z = model[1](model[0](x))
    squares = []
    for k in range(20):
        out = model[2](z[k : k + 1]).detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(model[3:](out), y[k : k + 1]), out)
        squares.append(float((grad * (out - other(z[k : k + 1]))).sum()) ** 2 / 2)
    for values, lost in (
        (sm.values.measured([(x, y)], loss, points=2), rise),
        (sm.values.reconstruction([(x, y)]), change),
        (sm.values.fisher([(x, y)], loss), float(np.mean(squares))),
    ):
        problem = sm.Problem(sm.capture(model, x[:1]))
        problem.maximize(values)
        problem.choose("2", {"dense": None, "other": other})
        assert problem.alternatives.offers["2"][1].worth == pytest.approx(-lost)
    assert other.training  # as it was given


def test_worth_of_low_rank_by_weights_alone_is_the_energy_that_stays() -> None:
    model = mlp((6, 7, 5, 3))
    problem = sm.Problem(sm.capture(model, torch.ones(1, 6, dtype=F64)))
    problem.choose("2", {"dense": None, "rank 2": sm.LowRank(2)})
    kept = second_by_svd(model[2].weight, 2).square().sum() / model[2].weight.square().sum()
    assert problem.alternatives.offers["2"][1].worth == pytest.approx(math.log(float(kept)))


# -- applied -----------------------------------------------------------------------------------------------------------


def test_new_parameters_are_trained_and_those_that_went_are_not() -> None:
    model, x = mlp(), torch.randn(4, 3, dtype=F64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ema = torch.optim.swa_utils.AveragedModel(model)
    plan = sm.prune(
        model,
        x,
        params=0.8,
        optimizer=optimizer,
        followers=[ema],
        choose={"2": {"dense": None, "rank 1": sm.LowRank(1, value=9.0)}},
    )
    assert plan.chosen == {"2": "rank 1"} and count_params(model) == plan.costs["params"].after
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len(list(model.parameters()))
    assert {id(p) for p in optimizer.state} <= {id(p) for p in held}
    assert [tuple(p.shape) for p in ema.module.parameters()] == [tuple(p.shape) for p in model.parameters()]
    before = model[2][0].weight.clone()
    model(x).square().sum().backward()
    optimizer.step()
    ema.update_parameters(model)
    assert not torch.equal(before, model[2][0].weight)


def test_several_optimizers_are_told_of() -> None:
    model, x = mlp(), torch.randn(4, 3, dtype=F64)
    both = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2:].parameters(), lr=0.1)]
    with pytest.warns(UserWarning, match="3 parameters are new, and in no optimizer"):
        sm.prune(model, x, optimizer=both, choose={"2": {"rank 1": sm.LowRank(1, value=0.0)}})


def test_all_or_nothing() -> None:
    model, x = mlp(), torch.randn(4, 3, dtype=F64)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    plan = sm.Mutator(model, x).prune(params=0.8, choose={"2": {"rank 1": sm.LowRank(1, value=0.0)}}, dry_run=True)
    modules, tensors = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    groups = [[id(p) for p in g["params"]] for g in optimizer.param_groups]
    state = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    model.register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(sm.errors.SolvemutError):
        plan.apply(model, optimizer)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == groups
    assert {id(p) for p in optimizer.state} == set(state)
    assert all(torch.equal(s[k], state[id(p)][k]) for p, s in optimizer.state.items() for k in s)


def test_a_file_holds_no_modules() -> None:
    model, x = mlp(), torch.randn(4, 3, dtype=F64)
    other = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4)).double()
    options = {"dense": None, "two": sm.Alternative(other, value=1.0)}
    plan = sm.Mutator(model, x).prune(params=0.8, choose={"2": options}, dry_run=True)
    text = plan.to_json()
    with pytest.raises(PlanMismatchError, match=r"modules=\{'2': \{'two': module\}\}"):
        sm.Plan.from_json(text).apply(copy.deepcopy(model))
    wanted, found = copy.deepcopy(model), copy.deepcopy(model)
    plan.apply(wanted)
    sm.Plan.from_json(text, modules={"2": options}).apply(found)
    assert_same(outputs(found, (x,)), outputs(wanted, (x,)))
    assert found[2] is not other and other[0].out_features == 3
    with pytest.raises(PlanMismatchError):
        sm.Plan.from_json(text, modules={"2": {"two": nn.Linear(5, 4).double()}}).apply(copy.deepcopy(model))


def test_a_mutator_goes_on_with_what_was_chosen() -> None:
    model, x = mlp((8, 16, 16, 4)), torch.randn(4, 8, dtype=F64)
    mut = sm.Mutator(model, x)
    mut.prune(choose={"2": {"rank 6": sm.LowRank(6, value=0.0)}})
    plan = mut.prune(params=0.6)  # the rank is a width like any other now
    assert plan.sizes["2.0"][0] == 6 and plan.costs["params"].after == count_params(model)
    plan = mut.resize({"2.0": -1})
    assert model[2][0].out_features == plan.sizes["2.0"][1]


def test_frontier_best_and_explain_take_options() -> None:
    model, x = mlp((8, 16, 16, 4)), torch.randn(4, 8, dtype=F64)
    problem = sm.Problem(sm.capture(model, x))
    problem.choose("2", {"dense": None, **{f"rank {r}": sm.LowRank(r, value=-0.1 / r) for r in (2, 4, 8)}})
    frontier = problem.frontier("params", points=4)
    assert [p.plan.costs["params"].after for p in frontier] == [p.cost for p in frontier]
    assert any(p.plan.chosen for p in frontier)
    problem.add(problem.graph.params <= 0.5 * problem.graph.params.now)
    best = problem.best(2)
    assert best[0].objective >= best[1].objective
    assert best[0].objective == pytest.approx(problem.solve(gap=0.0).objective)
    assert "params" in str(best[0].explain("0"))


def test_costs_that_are_shares_are_told_in_their_own_unit() -> None:
    model, x = mlp((8, 16, 16, 4)), torch.randn(4, 8, dtype=F64)
    graph = sm.capture(model, x)
    options = {"float": None, "int8": sm.Alternative(value=-0.001, costs={"weight_bytes": 0.3, "params": 0.3})}
    problem = sm.Problem(graph)
    problem.choose("2", options)
    now = graph.weight_bytes.now
    for p in problem.frontier("weight_bytes", points=5):
        plan = p.plan
        assert p.cost == pytest.approx(plan.costs["weight_bytes"].after) and 0 < p.cost <= now
        assert p.limit is None or p.cost <= p.limit <= now
        found = sm.Problem(graph)
        found.choose("2", options)
        found.add(graph.weight_bytes <= (now if p.limit is None else p.limit))
        assert found.solve(gap=0.0).objective <= p.bound + 1e-9
        assert [b.limit for b in plan.explain("0").budgets if b.name.startswith("weight_bytes")] in ([], [p.limit])
    best = problem.best(2)  # the same sizes, and int8
    assert best[0].sizes == best[1].sizes and [p.chosen for p in best] == [{}, {"2": "int8"}]
    with pytest.warns(UserWarning, match=r"weight_bytes: asked for at most 40(\.0)?, given"):
        plan = sm.prune(model, x, weight_bytes=40, choose={"2": options}, on_infeasible="relax", dry_run=True)
    least = 8 * (8 + 1 + 4 + 4) + 0.3 * 8 * 2  # each layer one unit wide, the middle one in int8
    assert plan.costs["weight_bytes"].after == pytest.approx(least) == pytest.approx(plan.costs["weight_bytes"].budget)


def test_explain_tells_what_another_option_would_change() -> None:
    model, x = mlp((8, 16, 16, 4)), torch.randn(4, 8, dtype=F64)
    graph = sm.capture(model, x)
    options = {"dense": None, **{f"rank {r}": sm.LowRank(r, value=-0.1 / r) for r in (2, 4)}}
    options["int8"] = sm.Alternative(value=-0.3, costs={"params": 0.25})
    problem = sm.Problem(graph)
    problem.choose("2", options)
    problem.add(graph.params <= 0.5 * graph.params.now)
    plan = problem.solve(gap=0.0)
    told = plan.explain("2").options
    assert set(told) == {f"2: {k}" for k in options} - {f"2: {plan.chosen['2']}"}
    for name, move in told.items():  # the same sizes with just that option
        option = name.removeprefix("2: ")
        other = sm.Problem(graph)
        other.choose("2", {option: options[option]} if options[option] is not None else options)
        other.add(
            *(graph[v].out == plan.sizes[n][1] for v, n in (("0", "0"), ("2", "2.1" if "2.1" in plan.sizes else "2")))
        )
        found = other.solve(gap=0.0)
        assert found.chosen.get("2", "dense") == option
        assert move.value == pytest.approx(found.objective - plan.objective)
        for cost in ("params", "flops"):
            assert move.costs[cost] == pytest.approx(found.costs[cost].after - plan.costs[cost].after)
        fits = found.costs["params"].after <= plan.costs["params"].budget
        assert (move.breaks == ()) == fits
        assert f"{name}  " in str(plan.explain("2"))


# -- refused -----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b, self.unused = self.a, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def test_what_is_refused() -> None:
    model, x = mlp(), torch.ones(2, 3, dtype=F64)
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    low = {"dense": None, "rank 1": sm.LowRank(1)}
    for target, options, told in (
        ("22", low, "no module of that name"),
        ("2", {}, "a dict of options"),
        ("2", {"a": None, "b": None}, "just one option is the layer as it is"),
        ("2", {"a": 3}, "'a' is 3"),
        ("2", {"a": sm.LowRank(4)}, "takes a rank from 1 to 3"),
        ("1", {"a": sm.LowRank(1)}, "not for ReLU"),
        ("2", {"a": nn.Linear(5, 3).double()}, "the model does not run: .*same reduction dim"),
        ("6", {"a": nn.Linear(2, 3).double()}, "no module of that name"),
        ("5", {"a": nn.Linear(2, 3).double()}, r"gives shapes \[\(2, 3\)\], not \[\(2, 2\)\]"),
    ):
        with pytest.raises(RequestError, match=told):
            problem.choose(target, options)
    assert problem.choices == ()
    with pytest.raises(RequestError, match="under other names too: a, b"):
        sm.Problem(sm.capture(Tied(), torch.ones(1, 4))).choose("a", low)
    with pytest.raises(RequestError, match="does not run it"):
        sm.Problem(sm.capture(Tied(), torch.ones(1, 4))).choose("unused", low)
    with pytest.raises(RequestError, match="without a module it needs value= and costs="):
        sm.Alternative()
    with pytest.raises(RequestError, match="there are flops, params, weight_bytes, latency"):
        sm.Alternative(value=0.0, costs={"memory": 0.5})
    with pytest.raises(RequestError, match="a share is at least 0"):
        sm.Alternative(value=0.0, costs={"flops": -1})
    problem.choose("2", {"dense": None, "other": nn.Linear(5, 4).double()})
    with pytest.raises(RequestError, match="what 'other' is worth is not known"):
        problem.solve()
    problem.choose("2", low)  # in its place
    problem.add(graph.memory <= 0.5 * graph.memory.now)
    with pytest.raises(RequestError, match="budgets are on flops, params, weight_bytes, latency"):
        problem.solve()
    nested = nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 2))
    problem = sm.Problem(sm.capture(nested, torch.ones(1, 3)))
    problem.choose("0.0", low)
    with pytest.raises(RequestError, match="one lies in the other"):
        problem.choose("0", {"a": None, "b": sm.Alternative(nn.Linear(3, 3), value=0.0)})
    with pytest.raises(RequestError, match="choose goes by itself"):
        sm.prune(model, x, params=0.5, choose={"2": low}, rounds=2)


@pytest.mark.parametrize("basis", ["x", "AAAA", "eJwDAAAAAAE=", ""])
def test_a_damaged_basis_is_refused(basis: str) -> None:
    from solvemut.edits import unpacked

    with pytest.raises(PlanMismatchError):
        unpacked(basis, 3)


def test_hooks_and_computed_weights_are_refused() -> None:
    for change in (
        lambda m: m[2].register_forward_hook(lambda *a: None),
        lambda m: nn.utils.parametrizations.weight_norm(m[2]),
    ):
        model = mlp()
        change(model)
        with pytest.raises(RequestError, match=r"computes its weight or has hooks|not for Parametrized"):
            sm.Problem(sm.capture(model, torch.ones(1, 3, dtype=F64))).choose("2", {"a": sm.LowRank(1)})
