"""Trials: what is measured is what pruning and evaluating give."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import randomise
from torch import nn

import solvemut as sm
from solvemut.errors import ValuesError
from solvemut.values import Worth, measured, unit_values, worth_of


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def grouped() -> nn.Module:
    convs = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 3, 1)
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2], nn.Flatten())


class Attention(nn.Module):
    """Four heads of size two on a stream of six."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.heads, self.head = nn.Linear(4, 6), nn.LayerNorm(6), 4, nn.Linear(6, 3)
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        x = self.up(x[:, None] * torch.arange(1, 4, dtype=x.dtype)[:, None])
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.norm(x)).mean(1)


def model_of(build: Any) -> nn.Module:
    return randomise(build().double(), 1).eval()


def data(*shape: int) -> list[Any]:
    g = torch.Generator().manual_seed(3)
    shape = shape or (4,)
    return [
        (torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)) for n in (5, 2)
    ]


def loss_on(model: nn.Module, batches: list[Any]) -> float:
    """The mean over all examples."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def pruned_to(model: nn.Module, x: torch.Tensor, sizes: dict[str, int], values: Any) -> tuple[nn.Module, Any]:
    """A copy with some sizes as asked and all else as it was."""
    twin = copy.deepcopy(model)
    mut = sm.Mutator(twin, x)
    plan = mut.prune(values=values, constraints=lambda g: [g[k].out == n for k, n in sizes.items()], gap=0.0)
    return twin, plan


def curve_over(worth: Worth, units: np.ndarray) -> Any:
    return next(c for c in worth.curves if np.isin(units, c.units).any())


@pytest.mark.parametrize(
    ("build", "layer", "sizes", "times", "rest"),
    [
        (mlp, "0", range(1, 6), 1, {"2": 5}),
        (mlp, "2", range(1, 5), 1, {"0": 6}),
        (Attention, "q", range(1, 4), 2, {"up": 6}),
        (Attention, "up", range(1, 6), 1, {"q": 8}),
    ],
)
def test_every_size_is_that_of_a_model_pruned_to_it(build, layer, sizes, times, rest):
    model, batches = model_of(build), data()
    x = batches[0][0]
    graph = sm.capture(model, x)
    order = sm.values.magnitude()
    found = worth_of(measured(batches, F.cross_entropy, order=order, points=100), model, graph)
    units = np.unique(graph[layer].units)
    curve, ranks = curve_over(found, units), unit_values(order, model, graph)
    assert (np.diff(ranks[curve.units]) <= 0).all() and curve.worth[-1] == 0
    whole = loss_on(model, batches)
    for n in sizes:
        twin, _ = pruned_to(model, x, {layer: n * times, **rest}, order)
        assert curve.worth[n] == pytest.approx(whole - loss_on(twin, batches), rel=1e-9, abs=1e-12)


def test_a_grouped_convolution_at_every_size():
    """Whichever groups and channels stay, it is one of the losses that a mask of so many units gives."""
    model, batches = model_of(grouped), data(2, 3, 3)
    graph = sm.capture(model, batches[0][0])
    (rows_in, rows_out) = (graph[k].units.reshape(2, 2) for k in ("0", "2"))
    curve = curve_over(worth_of(measured(batches, F.cross_entropy, points=100), model, graph), rows_in)
    assert set(curve.units) == {*rows_in.reshape(-1), *rows_out.reshape(-1)}
    whole, wanted = loss_on(model, batches), {}
    for bits in itertools.product([0, 1], repeat=8):
        a, b = np.array(bits[:4]).reshape(2, 2), np.array(bits[4:]).reshape(2, 2)
        counts = [{int(n) for n in m.sum(1) if n} for m in (a, b)]
        if all(len(c) == 1 for c in counts) and (a.any(1) == b.any(1)).all():
            twin = copy.deepcopy(model)
            with torch.no_grad():
                for k, mask in (("0", a), ("2", b)):
                    gone = torch.as_tensor(mask.reshape(-1) == 0)
                    twin.get_submodule(k).weight[gone] = 0
                    twin.get_submodule(k).bias[gone] = 0
            wanted.setdefault(sum(bits), []).append(whole - loss_on(twin, batches))
    assert sorted(wanted) == [2, 3, 4, 6, 8]
    for n, options in wanted.items():
        assert min(abs(curve.worth[n] - w) for w in options) < 1e-12
    assert curve.worth[5] == pytest.approx((curve.worth[4] + curve.worth[6]) / 2)  # no such size: in between


def test_with_few_points_it_is_linear_in_between():
    model, batches = model_of(mlp), data()
    graph = sm.capture(model, batches[0][0])
    full, few = (
        curve_over(worth_of(measured(batches, F.cross_entropy, points=p), model, graph), graph["0"].units)
        for p in (100, 2)
    )
    assert few.units.tolist() == full.units.tolist()
    np.testing.assert_allclose(few.worth[[1, 5, 6]], full.worth[[1, 5, 6]], rtol=1e-9)
    np.testing.assert_allclose(few.worth[1:6], np.linspace(few.worth[1], few.worth[5], 5))


def test_a_repair_mends_each_copy_before_it_is_looked_at():
    model, batches = model_of(mlp), data()
    x = batches[0][0]
    graph = sm.capture(model, x)
    seen = []

    def repair(pruned: Any, original: Any, plan: Any) -> None:
        assert original is model and pruned is not model
        seen.append((pruned[0].out_features, pruned[2].out_features, len(plan.indices["0.weight"].get(0, range(6)))))
        with torch.no_grad():
            pruned[4].bias += 0.1 * torch.arange(3)

    order = sm.values.magnitude()
    metric = measured(batches, F.cross_entropy, order=order, points=100, repair=repair)
    curve = curve_over(worth_of(metric, model, graph), graph["0"].units)
    assert metric.name == "measured(batches, loss, points=100, repair)"
    assert sorted((a, b) for a, b, _ in seen) == sorted([(n, 5) for n in range(1, 6)] + [(6, n) for n in range(1, 5)])
    assert all(a == kept for a, _, kept in seen)
    for n in range(1, 6):
        twin, _ = pruned_to(model, x, {"0": n, "2": 5}, order)
        with torch.no_grad():
            twin[4].bias += 0.1 * torch.arange(3)
        assert curve.worth[n] == pytest.approx(loss_on(model, batches) - loss_on(twin, batches), rel=1e-9, abs=1e-12)


def test_without_an_order_it_is_that_of_the_gates():
    model, batches = model_of(mlp), data()
    graph = sm.capture(model, batches[0][0])
    found = worth_of(measured(batches, F.cross_entropy, points=1), model, graph)
    ranks = unit_values(sm.values.fisher(batches, F.cross_entropy), model, graph)
    for layer in ("0", "2"):
        curve = curve_over(found, graph[layer].units)
        assert set(curve.units) == set(graph[layer].units) and (np.diff(ranks[curve.units]) <= 0).all()


def test_the_plan_of_one_layer_is_the_size_that_loses_least():
    """The other layer stays, so that what the plan says it is worth is what its model then loses."""
    model, batches = model_of(mlp), data()
    x = batches[0][0]
    metric = measured(batches, F.cross_entropy, points=100)
    twin = copy.deepcopy(model)
    plan = sm.Mutator(twin, x).prune(params=0.7, values=metric, keep="2", gap=0.0)
    assert plan.sizes["0"][1] < 6
    assert plan.objective == pytest.approx(loss_on(model, batches) - loss_on(twin, batches), rel=1e-9)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"points": 0}, {"repair": 3}, {"loss": None}, {"batches": 5}):
        with pytest.raises(ValuesError, match="measured"):
            measured(**{"batches": data(), "loss": F.cross_entropy, **wrong})  # type: ignore[arg-type]
    model = model_of(mlp)
    with pytest.raises(ValuesError, match="no batch"):
        worth_of(measured([], F.cross_entropy, order=sm.values.magnitude()), model, sm.capture(model, data()[0][0]))
