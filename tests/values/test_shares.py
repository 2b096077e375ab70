"""Retention against its formula, and what it is for: that no layer is starved, whatever the weights."""

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
from nets import NETS
from oracles import randomise
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, ValuesError
from solvemut.values import retention, unit_values, worth_of

FLOOR = 1e-3


class Small(nn.Module):
    """A residual stream (stem, b) behind norms, and the inside (a) behind one."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        norm: Any = nn.BatchNorm2d if norms else nn.Identity
        self.stem, self.bn0 = nn.Conv2d(2, 4, 1), norm(4)
        self.a, self.bn1 = nn.Conv2d(4, 5, 3, padding=1), norm(5)
        self.b, self.bn2 = nn.Conv2d(5, 4, 1), norm(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.bn0(self.stem(x)).relu()
        return self.head(x + self.bn2(self.b(self.bn1(self.a(x)).relu())))


MAKES = {"stream": [("stem.weight", 0), ("b.weight", 0)], "inside": [("a.weight", 0)]}
READS = {"stream": [("a.weight", 1), ("head.weight", 1)], "inside": [("b.weight", 1)]}
NORMS = {"stream": ["bn0", "bn2"], "inside": ["bn1"]}


def by_hand(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order, and the worth of what is kept of units with these shares [tensors, units]."""
    n = shares.shape[1]
    shares = (1 - FLOOR) * shares / shares.sum(1, keepdims=True) + FLOOR / n
    order = np.argsort(-shares.sum(0), kind="stable")
    worth = [len(shares) * np.log(FLOOR / (2 * n))]
    worth += [float(np.log(shares[:, order[:k]].sum(1)).sum()) for k in range(1, n + 1)]
    return order, np.array(worth)


def energies(model: nn.Module, name: str, dim: int, p: float) -> np.ndarray:
    w = dict(model.named_parameters())[name].detach()
    return (w.abs() ** p).movedim(dim, 0).flatten(1).sum(1).double().numpy()


def image(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(1, 2, 5, 5, dtype=dtype)


def curves(model: nn.Module, metric: Any, x: torch.Tensor | None = None) -> dict[str, Any]:
    graph = sm.capture(model, image() if x is None else x)
    found = worth_of(metric, model, graph)
    assert not found.value.any() and len(found.curves) == 2
    return {
        key: (next(c for c in found.curves if set(c.units) == set(graph[v].units)), graph[v].units)
        for key, v in (("stream", "stem"), ("inside", "a"))
    }


@pytest.mark.parametrize("p", [2, 1, 0.5])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("tensors", ["readers", "all"])
def test_the_curve_of_a_group_is_the_formula(p, norms, tensors):
    model = randomise(Small(norms).double(), 3)
    found = curves(model, retention(p, tensors))
    for key, (curve, units) in found.items():
        dims = READS[key] if tensors == "readers" else READS[key] + MAKES[key]
        shares = np.stack([energies(model, name, dim, p) for name, dim in dims])
        if norms and tensors == "readers":
            scale = [model.get_submodule(n) for n in NORMS[key]]
            shares = shares * sum((m.weight.square() + m.bias.square()).detach().numpy() for m in scale)
        order, worth = by_hand(shares)
        assert curve.units.tolist() == units[order].tolist()
        np.testing.assert_allclose(curve.worth, worth, rtol=1e-9, atol=1e-12)


def test_units_that_none_reads_count_in_those_that_make_them():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(x) + torch.tanh(self.a(x)).sum(1, keepdim=True)

    model = randomise(Summed().double())
    graph = sm.capture(model, torch.ones(2, 3, dtype=torch.float64))
    (curve,) = worth_of(retention(), model, graph).curves
    order, worth = by_hand(energies(model, "a.weight", 0, 2)[None])
    assert curve.units.tolist() == graph["a"].units[order].tolist()
    np.testing.assert_allclose(curve.worth, worth, rtol=1e-9, atol=1e-12)


def test_each_part_of_a_concat_has_a_share_of_its_own():
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

        def forward(self, x):
            return self.o(torch.cat([self.a(x), self.b(x)], 1).relu())

    model = randomise(Cat().double())
    graph = sm.capture(model, torch.ones(2, 3, dtype=torch.float64))
    found = worth_of(retention(), model, graph).curves
    read = energies(model, "o.weight", 1, 2)
    for layer, part in (("a", read[:4]), ("b", read[4:])):
        curve = next(c for c in found if set(c.units) == set(graph[layer].units))
        np.testing.assert_allclose(curve.worth, by_hand(part[None])[1], rtol=1e-9, atol=1e-12)


def test_the_scale_of_a_layer_says_nothing():
    model = randomise(Small().double(), 3)
    before = curves(model, retention())
    with torch.no_grad():
        for t in (model.a.weight, model.head.weight, model.bn1.weight, model.bn1.bias):
            t *= 1e-30 if t is model.head.weight else 100
    for key, (curve, _) in curves(model, retention()).items():
        assert curve.units.tolist() == before[key][0].units.tolist()
        np.testing.assert_allclose(curve.worth, before[key][0].worth, rtol=1e-9, atol=1e-12)


def test_tensors_that_are_all_zero_count_as_shares_of_units():
    model = randomise(Small().double(), 3)
    with torch.no_grad():
        model.b.weight.zero_()
        model.a.weight.zero_()
    found = curves(model, retention())
    np.testing.assert_allclose(found["inside"][0].worth[1:], np.log(np.arange(1, 6) / 5), rtol=1e-9, atol=1e-12)
    scale = [(m.weight.square() + m.bias.square()).detach().numpy() for m in (model.bn0, model.bn2)]
    even = np.stack([np.ones(4), energies(model, "head.weight", 1, 2) * sum(scale)])
    np.testing.assert_allclose(found["stream"][0].worth, by_hand(even)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensors", ["readers", "all"])
def test_weights_that_are_not_finite_are_named(bad, tensors):
    model = randomise(Small().double(), 3)
    with torch.no_grad():
        model.b.weight[1, 2] = bad
    with pytest.raises(ValuesError, match=r"b\.weight are not all finite"):
        curves(model, retention(tensors=tensors))


def test_on_the_meta_device_and_of_equal_weights_shares_are_those_of_units():
    with torch.device("meta"):
        model = Small()
    alike = Small(norms=False)
    with torch.no_grad():
        for p in alike.parameters():
            p.fill_(0.7)
    for m, x in ((model, image(torch.float32).to("meta")), (alike, image(torch.float32))):
        for key, (curve, units) in curves(m, retention(), x).items():
            n, tensors = len(units), len(READS[key])
            np.testing.assert_allclose(curve.worth[1:], tensors * np.log(np.arange(1, n + 1) / n), rtol=1e-6, atol=1e-9)


def test_options_that_make_no_sense():
    for wrong in (lambda: retention(0), lambda: retention(-1), lambda: retention("a"), lambda: retention(2, "some")):
        with pytest.raises(ValuesError):
            wrong()
    assert retention().name == "retention(p=2)" and retention(1, "all").name == "retention(p=1, all)"


# -- no layer is starved -----------------------------------------------------------------------------------------------

STARVING = [
    "Mlp",
    "Chain2d",
    "Residual",
    "InvertedResidual",
    "SqueezeExcite",
    "UNet",
    "ConvNeXt",
    "EncoderLayer",
    "Vit",
    "Grouped",
    "Embedding",
]


def fewest(graph: Any, plan: Any) -> int:
    """Of the layers that make eight units or more, which may go, how many are left of the smallest."""
    sizes = [
        plan.sizes.get(v.name, (v.nout, v.nout))[1]
        for v in graph.vertices
        if v.makes_units and v.nout >= 8 and not graph.coupling.frozen[v.units].any()
    ]
    assert sizes
    return min(sizes)


@pytest.mark.parametrize("weights", ["random", "constant", "meta"])
@pytest.mark.parametrize("name", STARVING)
def test_no_layer_of_eight_is_left_with_one_unit(name, weights):
    net, tried = NETS[name], 0
    model, args = net.model().float(), tuple(a.float() if a.is_floating_point() else a for a in net.args())
    for seed in range(3 if weights == "random" else 1):
        if weights == "random":
            randomise(model, seed)
        elif weights == "constant":
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(0.5)
        else:
            model, args = model.to("meta"), tuple(a.to("meta") for a in args)
        mut = sm.Mutator(model, args, net.kw())
        for budget in (0.5, 0.3):
            try:
                plan = mut.prune(flops=budget, values=retention(), dry_run=True)
            except InfeasibleError:
                continue
            tried += 1
            assert fewest(mut.graph, plan) > 1, plan.sizes
    assert tried >= 1


class Deep(nn.Module):
    """Blocks of unlike scale, one of which is worth almost nothing by magnitude."""

    def __init__(self) -> None:
        super().__init__()
        wide = [8, 16, 16, 32]
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        pairs = itertools.pairwise(wide)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, stride=2), nn.BatchNorm2d(o), nn.ReLU()) for i, o in pairs
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("budget", [0.5, 0.3])
def test_scales_of_layers_starve_none(budget):
    model = randomise(Deep(), 1)
    with torch.no_grad():
        for k, block in enumerate(model.body):
            block[0].weight *= 10.0 ** (3 * k - 3)
            block[1].weight *= 10.0 ** (-2 * k)
    graph = sm.capture(model, torch.ones(1, 3, 16, 16))
    plan = sm.Mutator(model, torch.ones(1, 3, 16, 16)).prune(flops=budget, values=retention(), dry_run=True)
    assert fewest(graph, plan) > 1 and plan.costs["flops"].after <= budget * plan.costs["flops"].before


# -- growth ------------------------------------------------------------------------------------------------------------


def test_new_units_are_worth_what_the_last_one_adds():
    model = randomise(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)), 2)
    x = torch.ones(1, 4)
    graph = sm.capture(model, x)
    worth = worth_of(retention(), model, graph)
    steps = {v: next(c for c in worth.curves if set(c.units) == set(graph[v].units)).steps()[-1] for v in ("0", "2")}
    assert all(s > 0 for s in steps.values())
    twin = copy.deepcopy(model)
    plan = sm.Mutator(twin, x).prune(params=1.3 * graph.params.now, values=retention(), grow=3, gap=0.0)
    new = {v: plan.sizes[v][1] - plan.sizes[v][0] if v in plan.sizes else 0 for v in ("0", "2")}
    assert sum(new.values()) > 0 and all(0 <= n <= 3 for n in new.values())
    assert plan.objective == pytest.approx(sum(n * steps[v] for v, n in new.items()), rel=1e-9)
    torch.testing.assert_close(twin(x), model(x))
    values = unit_values(retention(), model, graph)
    assert all(values[graph[v].units].min() == pytest.approx(steps[v]) for v in ("0", "2"))


@pytest.mark.parametrize("name", ["Grouped", "Residual", "EncoderLayer", "Dense"])
def test_growing_by_retention_is_counted_right(name):
    """Some layers grow where others shrink; the solver's own recount would raise otherwise."""
    net = NETS[name]
    model, args = randomise(net.model()), net.args()
    mut = sm.Mutator(model, args, net.kw())
    free = {v.name: int((~mut.graph.coupling.frozen[v.units]).sum()) for v in mut.graph.vertices if v.makes_units}
    first = max(free, key=lambda k: free[k])
    before = mut.graph[first].nout
    plan = mut.prune(params=0.9, values=retention(), grow=0.5, constraints=lambda g: [g[first].out >= before])
    assert plan.costs["params"].after <= 0.9 * plan.costs["params"].before
    assert mut.graph[first].nout >= before and np.isfinite(plan.objective)
