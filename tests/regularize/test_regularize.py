"""Regularisers against loops over units; their gradients, at zero too; what they are made of and called with."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import nets_shapes  # noqa: F401  (enters its networks in the table)
import numpy as np
import pytest
import torch
from nets import NETS
from oracles import randomise
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError, ValuesError

R = sm.regularize


class Stream(nn.Module):
    """A residual stream of four units that three layers make, and six units inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.a, self.bn1 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn2 = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
        self.head, self.bn3 = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.bn0(self.stem(x)).relu()
        return self.bn3(self.head(x + self.bn2(self.b(self.bn1(self.a(x)).relu()))))


def captured(name: str = "") -> tuple[nn.Module, sm.Graph]:
    if name:
        n = NETS[name]
        model = randomise(n.model())
        return model, sm.capture(model, n.args())
    model = randomise(Stream().double(), 3)
    return model, sm.capture(model, torch.ones(1, 2, 5, 5).double())


def slices(model: nn.Module, graph: sm.Graph) -> dict[int, list[torch.Tensor]]:
    """The slices of every free unit class, one by one."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, list[torch.Tensor]] = {int(u): [] for u in np.flatnonzero(~graph.coupling.frozen)}
    for (value, dim), extent in graph.coupling.sources.items():
        p, units = graph.trace.params.get(value), graph.coupling.units(extent)
        if p is None or p.kind != "parameter":
            continue
        for at in np.ndindex(units.shape):
            w = named[p.name] if not extent.per_row else named[p.name].chunk(len(units))[at[0]]
            found.get(int(units[at]), []).append(w.select(dim, at[-1]))
    return found


def lasso(model: nn.Module, graph: sm.Graph) -> torch.Tensor:
    total = torch.zeros(()).double()
    for parts in slices(model, graph).values():
        n, square = sum(p.numel() for p in parts), sum(p.square().sum() for p in parts)
        total = total + n**0.5 * torch.as_tensor(square).sqrt()
    return total


def l2(model: nn.Module, graph: sm.Graph, units: Any) -> torch.Tensor:
    found = slices(model, graph)
    return sum(p.square().sum() for u in units for p in found[int(u)]) / 2


def gradient(value: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def regularisers(graph: sm.Graph) -> dict[str, Any]:
    return {
        "group_lasso": R.group_lasso(graph, 0.3),
        "bn_scale": R.bn_scale(graph, 0.3),
        "growing": R.growing(graph, 0.3, 0.1, 1),
    }


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "Grouped", "UpGrouped", "Depthwise", "TiedHead", "Siamese", "SharedLayer", "CatTwice", "Embedding"]
)
def test_group_lasso_is_that_of_a_loop_over_units(name):
    model, graph = captured(name)
    found, wanted = R.group_lasso(graph, 0.3)(model), 0.3 * lasso(model, graph)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for a, b in zip(gradient(found, model), gradient(wanted, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_a_residual_stream_is_one_group_and_what_is_frozen_is_in_none():
    model, graph = captured()
    inside, stream = graph["a"].units, graph["stem"].units
    assert (graph["b"].units == stream).all() and graph.coupling.frozen[graph["head"].units].all()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.stem.weight[1], model.bn2.weight[1], model.head.weight[:, 1] = 1.0, 2.0, 3.0
        model.head.bias[:], model.bn3.weight[:] = 5.0, 5.0
    found = slices(model, graph)
    assert set(found) == {*inside.tolist(), *stream.tolist()}
    n = sum(p.numel() for p in found[int(stream[1])])
    assert n == 2 + 1 + 2 + 9 * 6 + 6 + 1 + 2 + 3  # stem, its bias, bn0, a, b, its bias, bn2, head
    torch.testing.assert_close(R.group_lasso(graph, 1.0)(model), torch.tensor((n * (2 + 4 + 27)) ** 0.5).double())
    value = R.group_lasso(graph)(model)
    assert all(
        (g == 0).all()
        for g in torch.autograd.grad(value, [model.head.bias, model.bn3.weight], allow_unused=True)
        if g is not None
    )


def test_bn_scale():
    model, graph = captured()
    wanted = sum(m.weight.abs().sum() for m in (model.bn0, model.bn1, model.bn2))
    found = R.bn_scale(graph, 0.2)(model)
    torch.testing.assert_close(found, 0.2 * wanted)
    found.backward()
    torch.testing.assert_close(model.bn1.weight.grad, 0.2 * model.bn1.weight.sign())
    assert model.bn3.weight.grad is None and model.a.weight.grad is None


@pytest.mark.parametrize("name", ["", "Grouped", "UpGrouped", "TiedHead"])
def test_growing_is_half_the_factor_times_the_squares_of_the_least_units(name):
    model, graph = captured(name)
    value = sm.values.unit_values(None, model, graph)
    least: list[int] = []
    for g in range(len(graph.groups)):
        units = np.flatnonzero((graph.coupling.group_of == g) & ~graph.coupling.frozen)
        least += sorted(units, key=lambda u: value[u])[: len(units) // 2]
    reg = R.growing(graph, 0.3)
    assert sorted(reg.units) == sorted(least)
    found, wanted = reg(model), 0.3 * l2(model, graph, least)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for a, b in zip(gradient(found, model), gradient(wanted, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["group_lasso", "bn_scale", "growing"])
def test_gradients_are_those_of_differences(name):
    model, graph = captured()
    reg = regularisers(graph)[name]

    def value(*params: torch.Tensor) -> torch.Tensor:
        if name == "growing":
            reg.calls = 5
        return reg(model)

    assert torch.autograd.gradcheck(value, tuple(model.parameters()))


@pytest.mark.parametrize("name", ["group_lasso", "bn_scale", "growing"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-22])
def test_gradients_of_weights_near_zero_are_finite(name, size):
    model, graph = captured()
    model = model.float()
    reg = regularisers(graph)[name]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * size)
    reg(model).backward()
    for p in model.parameters():
        assert p.grad is None or (p.grad.isfinite().all() and p.grad.abs().max() < 10)


# -- growing -----------------------------------------------------------------------------------------------------------


def test_the_factor_grows_by_calls_with_gradients_up_to_most():
    model, graph = captured()
    reg = R.growing(graph, weight=0.0, step=0.1, every=3, most=0.25)
    once = float(l2(model, graph, reg.units).detach())
    found = []
    for _ in range(11):
        with torch.no_grad():
            reg(model)  # a look
        found.append(float(reg(model).detach()) / once)
    np.testing.assert_allclose(found, [0] * 3 + [0.1] * 3 + [0.2] * 3 + [0.25] * 2, rtol=1e-12)


def test_units_by_numbers_by_vertex_by_metric_and_by_plan():
    model, graph = captured()
    inside, stream = graph["a"].units, graph["stem"].units
    numbers = np.ones(graph.coupling.n_units)
    numbers[inside[[0, 3]]], numbers[stream[2]] = 0.1, 0.2
    wanted = sorted([*inside[[0, 3]], stream[2]])
    for given in (numbers, torch.tensor(numbers), numbers.tolist(), {"a": numbers[inside], "stem": numbers[stream]}):
        assert sorted(R.growing(graph, share=0.34, values=given).units) == wanted
    taylor = sm.values.taylor([torch.randn(2, 2, 5, 5).double()], lambda m, b: m(b).square().mean())
    assert len(R.growing(graph, share=0.5, values=taylor).units) == 5
    plan = sm.Mutator(model, torch.ones(1, 2, 5, 5).double()).prune(
        params=0.6, values={"a": numbers[inside]}, dry_run=True
    )
    gone = [inside[i] for i in range(6) if i not in plan.indices["a.weight"][0]]
    gone += [stream[i] for i in range(4) if i not in plan.indices["stem.weight"][0]]
    assert gone and sorted(R.growing(graph, plan=plan).units) == sorted(gone)


@pytest.mark.parametrize(
    ("name", "params"), [("Grouped", 0.5), ("UpGrouped", 0.5), ("UpGrouped", 0.8), ("Siamese", 0.5), ("ResNeXt", 0.5)]
)
def test_units_of_a_plan_are_those_it_drops(name, params):
    """Without them every parameter has the shape that the plan foretells."""
    model, graph = captured(name)
    plan = sm.Mutator(model, NETS[name].args()).prune(params=params, dry_run=True)
    units = R.growing(graph, plan=plan).units
    kept = ~np.isin(np.arange(graph.coupling.n_units), units)
    for (value, dim), extent in graph.coupling.sources.items():
        p = graph.trace.params.get(value)
        if p is not None and p.kind == "parameter":
            assert graph.coupling.count(extent, kept) == plan.shapes.get(p.name, (p.shape, p.shape))[1][dim]


def test_state_goes_on_where_it_was():
    model, graph = captured()
    first, second = (R.growing(graph, 0.1, 0.1, 2, share=s) for s in (0.5, 0.2))
    for _ in range(5):
        first(model)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.factor == first.factor and torch.equal(second(model), first(model))
    for state in ({}, {"calls": -1, "units": []}, {"calls": 1, "units": [10**6]}, {"calls": 1, "units": "ab"}, 3):
        with pytest.raises(RequestError):
            second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    assert copy.deepcopy(first).factor == first.factor


# -- training ----------------------------------------------------------------------------------------------------------


def norms(model: nn.Module) -> np.ndarray:
    a, b = model[0], model[2]
    return (a.weight.square().sum(1) + a.bias.square() + b.weight.square().sum(0)).sqrt().detach().numpy()


def trained(weight: float) -> np.ndarray:
    """The norms of the hidden units of a network that learns a function of two units."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = (x[:, :1] - x[:, 1:2]).relu() - x[:, 2:3].relu()
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1))
    reg = R.group_lasso(sm.capture(model, x), weight)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        ((model(x) - y).square().mean() + reg(model)).backward()
        optimizer.step()
    assert float((model(x) - y).square().mean()) < 0.2 * float(y.var())
    return np.sort(norms(model))


def test_training_with_group_lasso_makes_redundant_units_small():
    without, regularised = trained(0.0), trained(5e-3)
    assert regularised[:6].max() < 0.2 * without[:6].min()
    assert regularised[-2:].min() > 5 * regularised[:6].max()


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["group_lasso", "bn_scale", "growing"])
def test_copies_wrapped_models_and_other_precisions(name):
    model, graph = captured()
    wanted = float(regularisers(graph)[name](model))
    reg = regularisers(graph)[name]
    for twin in (
        copy.deepcopy(model),
        nn.DataParallel(model),
        copy.deepcopy(model).float(),
        copy.deepcopy(model).bfloat16(),
    ):
        if name == "growing":
            reg.calls = 0
        found = reg(twin)
        assert found.shape == () and found.dtype in (torch.float64, torch.float32)
        np.testing.assert_allclose(float(found), wanted, rtol=0.02)
    with pytest.raises(RequestError, match="captured"):
        reg(Stream().a)


@pytest.mark.parametrize("name", ["group_lasso", "bn_scale", "growing"])
def test_a_model_that_was_changed_is_told(name):
    model, graph = captured()
    reg = regularisers(graph)[name]
    sm.prune(model, torch.ones(1, 2, 5, 5).double(), params=0.6)
    with pytest.raises(RequestError, match="changed since"):
        reg(model)
    with pytest.raises(RequestError, match="changed since"):
        R.growing(graph)


def test_looks_leave_the_model_as_it_was():
    model, graph = captured()
    model.train()
    saved = copy.deepcopy(model.state_dict())
    for reg in regularisers(graph).values():
        reg(model)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(saved.values(), model.state_dict().values()))


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, graph = captured()
    wanted = {k: float(reg(model)) for k, reg in regularisers(graph).items()}
    twin = copy.deepcopy(model).cuda()
    for k, reg in regularisers(graph).items():
        reg(twin).backward()
        np.testing.assert_allclose(float(regularisers(graph)[k](twin)), wanted[k], rtol=1e-12)


def test_requests_that_make_no_sense():
    model, graph = captured()
    plan = sm.Mutator(model, torch.ones(1, 2, 5, 5).double()).prune(params=0.6, dry_run=True)
    for make in (
        lambda: R.group_lasso(model),
        lambda: R.group_lasso(graph, -1),
        lambda: R.bn_scale(graph, "much"),
        lambda: R.growing(graph, every=0),
        lambda: R.growing(graph, weight=2.0),
        lambda: R.growing(graph, share=1.0),
        lambda: R.growing(graph, share=0.01),
        lambda: R.growing(graph, plan={}),
        lambda: R.growing(graph, plan=plan, values=np.ones(3)),
        lambda: R.bn_scale(captured("Mlp")[1]),
        lambda: R.growing(captured("Siamese")[1], plan=plan),
        lambda: R.group_lasso(graph)(3),
    ):
        with pytest.raises(RequestError):
            make()
    with pytest.raises(ValuesError):
        R.growing(graph, values=np.ones(3))
