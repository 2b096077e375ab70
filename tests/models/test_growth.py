"""New units: outputs stay as they were, or the plan says why not; they are trained from the first step on."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from oracles import assert_same, masked, outputs, randomise
from torch import nn
from training import snapshot

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError

# What frozen or shared statistics keep from growing, or whose units are read by sums over them
ALTERED = {
    "GroupNorm",
    "GroupNormSingle",
    "LayerNorm",
    "LayerNormImage",
    "Embedding",
    "AttentionSdpa",
    "AttentionManual",
    "FusedQkv",
    "FusedQkvManual",
    "FusedQkvPerHead",
    "GqaRepeat",
    "GqaExpand",
    "GqaEnabled",
    "CrossAttention",
    "SingleHead",
    "Rotary",
    "Vit",
    "Mixer",
    "Normalised",
    "ConvNeXt",
    "Einsum",
    "SoftmaxOverUnits",
    "SpatialAttention",
    "SpectralNormed",
    "SpectralNormedConvs",
    "WeightNormed",
    "WeightNormedByColumns",
    "WeightNormedConvs",
    "WeightNormedWhole",
}


def grown(name: str, most: Any = 3) -> tuple[nn.Module, nn.Module, tuple[Any, ...], Any, sm.Mutator]:
    n = NETS[name]
    model = randomise(n.model())
    before = copy.deepcopy(model)
    mut = sm.Mutator(model, n.args(), n.kw(), modes="eval")
    plan = mut.prune(grow=most, values=sm.values.constant())
    return before, model, n.args(), plan, mut


@pytest.mark.parametrize("name", sorted(NETS))
def test_outputs_stay_unless_the_plan_says_why_not(name):
    before, model, args, plan, mut = grown(name)
    assert bool(plan.alters) == (name in ALTERED)
    assert any(b > a for a, b in plan.sizes.values()) and all(b >= a for a, b in plan.sizes.values())
    kw = NETS[name].kw()
    if not plan.alters:
        assert_same(outputs(model, args, kw), outputs(before, args, kw))
    fresh = sm.capture(model, args, kw, modes="eval")
    assert (fresh.params.now, fresh.flops.now) == (plan.costs["params"].after, plan.costs["flops"].after)
    assert [(v.name, v.nin, v.nout) for v in fresh.vertices] == [(v.name, v.nin, v.nout) for v in mut.graph.vertices]
    again = sm.Plan.from_json(plan.to_json())
    assert again == plan
    twin = again.apply(copy.deepcopy(before))
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(NETS))
def test_old_slices_are_where_they_belong(name):
    """What a plan leaves and what it adds: the network without its new units is the old one."""
    before, model, _, plan, _ = grown(name, 2)
    old = dict(before.named_parameters())
    for key, p in model.named_parameters():
        a, b = old[key], p
        for d, index in plan.indices.get(key, {}).items():
            if isinstance(index[0], list):
                continue
            b = b.index_select(d, torch.tensor([k for k, i in enumerate(index) if i >= 0]))
            a = a.index_select(d, torch.tensor([i for i in index if i >= 0]))
        if not any(isinstance(i[0], list) for i in plan.indices.get(key, {}).values()):
            assert torch.equal(a, b), key


def conv_bn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten())


TRAINED = {
    "up": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose2d(4, 2, 2)), (8, 3, 5, 5)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 3, groups=2)), (8, 4, 7, 7)),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)),
        (8, 3, 7, 7),
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_after_one_step_no_new_weight_is_stuck_at_zero(name):
    torch.manual_seed(0)
    make, shape = TRAINED[name]
    model, x = make(), torch.randn(shape)
    plan = sm.Mutator(model, x).prune(grow=2, values=sm.values.constant())
    assert plan.alters == ()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    params = dict(model.named_parameters())
    new = [
        (key, d, [k for k, i in enumerate(plan.indices[key][d]) if i == -1])
        for key in params
        for d in plan.fills.get(key, {})
    ]
    assert new
    for steps in range(2):  # a new bias is reached once something reads its unit
        optimizer.zero_grad()
        (model(x) - torch.randn_like(model(x))).square().mean().backward()
        optimizer.step()
        for key, d, at in new:
            if params[key].dim() > 1 or steps:
                assert (params[key].index_select(d, torch.tensor(at, dtype=torch.long)) != 0).all(), (key, d)


def test_optimizer_state_of_new_entries_is_zero_and_training_goes_on():
    torch.manual_seed(0)
    model, x = conv_bn(), torch.randn(8, 3, 5, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    before = snapshot(model, optimizer)
    old = {k: {n: t.clone() for n, t in optimizer.state[p].items()} for k, p in model.named_parameters()}
    mut = sm.Mutator(model, x, optimizer=optimizer)
    mut.resize({"0": +3}, dry_run=True)
    assert snapshot(model, optimizer).keys() == before.keys()
    mut.resize({"0": +3})
    state = {k: optimizer.state[p] for k, p in model.named_parameters()}
    for key, d in (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("2.weight", 1)):
        for moment in ("exp_avg", "exp_avg_sq"):
            now, was = state[key][moment].movedim(d, 0), old[key][moment].movedim(d, 0)
            assert torch.equal(now[:4], was) and (now[4:] == 0).all() and len(now) == 7
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_new_units_are_drawn_as_asked_and_the_same_each_time():
    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    x = torch.ones(1, 3)
    plan = sm.Mutator(model(), x).resize({"0": 2}, dry_run=True)
    state = torch.get_rng_state()
    a, b = plan.apply(model()), plan.apply(model())
    torch.manual_seed(5)
    assert torch.equal(a[0].weight, b[0].weight) and not torch.equal(a[0].weight[4], a[0].weight[5])
    assert 0 < a[0].weight[4:].abs().max() <= 3**-0.5 and (a[2].weight[:, 4:] == 0).all()
    asked = []
    c = plan.apply(model(), init=lambda name, shape: asked.append((name, shape)) or torch.full(shape, 7.0))
    assert asked == [("0.weight", (6, 3))] and (c[0].weight[4:] == 7).all() and (c[0].weight[:4] != 7).all()
    assert len(state) == len(torch.get_rng_state())


def test_applying_a_grown_plan_leaves_the_random_state_alone():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(1, 3)
    mut = sm.Mutator(model, x)
    before = torch.get_rng_state()
    mut.resize({"0": 3})
    assert torch.equal(before, torch.get_rng_state())


# -- growing and pruning in one program --------------------------------------------------------------------------------


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))


def best_by_trying(values: list[list[float]], most: int, limit: int) -> float:
    """The largest value over all pairs of sizes; a new unit is worth as much as the least one."""
    found = -np.inf
    for a, b in itertools.product(range(1, 4 + most), range(1, 3 + most)):
        if (2 * a + a) + (a * b + b) + (b + 1) > limit:
            continue
        worth = 0.0
        for n, v in ((a, values[0]), (b, values[1])):
            ranked = sorted(v, reverse=True)
            worth += sum(ranked[:n]) + max(0, n - len(v)) * min(v)
        found = max(found, worth)
    return found


@settings(max_examples=40)
@given(
    st.lists(st.integers(-3, 9), min_size=3, max_size=3),
    st.lists(st.integers(-3, 9), min_size=2, max_size=2),
    st.integers(0, 4),
    st.integers(6, 60),
)
def test_growing_and_pruning_under_one_budget_against_trying_all(a, b, most, limit):
    values = [[float(x) for x in a], [float(x) for x in b]]
    mut = sm.Mutator(tiny(), torch.ones(1, 2))
    wanted = best_by_trying(values, most, limit)
    given_values = {"0": values[0], "2": values[1], "4": [0.0]}
    problem = sm.Problem(mut.graph)
    problem.maximize(given_values)
    problem.add(mut.graph.params <= limit)
    problem.grow(most)
    if wanted == -np.inf:
        with pytest.raises(InfeasibleError):
            problem.solve(gap=0.0)
        return
    plan = problem.solve(gap=0.0)
    assert plan.objective == pytest.approx(wanted) and plan.costs["params"].after <= limit


def test_what_earns_its_place_is_widened_and_what_does_not_is_narrowed():
    n = NETS["Residual"]
    model = randomise(n.model())
    before, mut = copy.deepcopy(model), sm.Mutator(model, n.args())
    now = mut.graph.params.now
    plan = mut.prune(params=1.0, grow=4, values={"stem": [5.0] * 8, "a": [0.01] * 10})
    assert plan.sizes["stem"] == plan.sizes["b"] == (8, 12) and plan.sizes["a"][1] < 10
    assert plan.costs["params"].after <= now
    assert_same(outputs(model, n.args()), outputs(masked(before, plan), n.args()))


@pytest.mark.parametrize(("grow", "most"), [(2, 2), (0.5, 4), (True, 8), ({"stem": 1, "b": 3}, 3), ({"a": 5}, 0)])
def test_how_much_may_come(grow, most):
    n = NETS["Residual"]
    plan = sm.Mutator(randomise(n.model()), n.args()).prune(grow=grow, values=sm.values.constant(), dry_run=True)
    assert plan.sizes["stem"] == (8, 8 + most)


@pytest.mark.parametrize("grow", [-1, "much", {"stem": -2}, {"nowhere": 1}, float("nan")])
def test_how_much_may_come_is_checked(grow):
    n = NETS["Residual"]
    with pytest.raises(RequestError):
        sm.Mutator(n.model(), n.args()).prune(grow=grow)
