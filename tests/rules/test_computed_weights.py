"""Weights that a parametrization or a hook computes before every call: pruned with what they are computed from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import nets_weights  # noqa: F401  (enters its networks in the table)
import pytest
import torch
from nets import NETS
from oracles import assert_same, count_flops, count_params, masked, outputs, randomise
from torch import nn
from torch.nn.utils import parametrizations as p
from torch.nn.utils.parametrize import register_parametrization

import solvemut as sm


def mlp(wrap: Callable[[Any], nn.Module]) -> nn.Module:
    layers = [wrap(nn.Linear(5, 8)), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3)]
    return randomise(nn.Sequential(*layers).double().eval())


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def planned(model: nn.Module, args: Any = X, params: float = 0.55) -> Any:
    with torch.no_grad():
        model(*args) if isinstance(args, tuple) else model(args)
    return sm.Mutator(model, args).prune(params=params, values=sm.values.random(2), dry_run=True)


def kept(plan: Any, name: str, dim: int, size: int) -> list[int]:
    return list(plan.indices.get(name, {}).get(dim, range(size)))


# -- the small network, rebuilt ----------------------------------------------------------------------------------------


@torch.no_grad()
def rebuilt(model: Any, weight: Callable[..., torch.Tensor], a: list[int], b: list[int]) -> torch.Tensor:
    """What the network of the units left gives, by weights that `weight` computes for rows and columns of a layer."""
    h = torch.relu(X @ weight(model[0], a, list(range(5))).T + model[0].bias[a])
    h = torch.tanh(h @ weight(model[2], b, a).T + model[2].bias[b])
    return h @ model[4].weight[:, b].T + model[4].bias


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_against_a_rebuilt_network(dim):
    """The direction of what stays is that of its own part, its length the one it had."""
    model = mlp(lambda m: p.weight_norm(m, dim=dim))
    plan = planned(model)
    a = kept(plan, "0.parametrizations.weight.original1", 0, 8)
    b = kept(plan, "2.parametrizations.weight.original1", 0, 8)
    assert kept(plan, "2.parametrizations.weight.original1", 1, 8) == a and len(a) + len(b) < 16

    def weight(layer: Any, rows: list[int], columns: list[int]) -> torch.Tensor:
        g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1[rows][:, columns]
        g = g[rows] if dim == 0 else g[:, columns] if dim == 1 else g
        length = v.square().sum() if dim is None else v.square().sum(1 - dim, keepdim=True)
        return g * v / length.sqrt()

    after = copy.deepcopy(model)
    plan.apply(after)
    assert_same(outputs(after, (X,)), [rebuilt(model, weight, a, b)])
    assert any("the norm of a weight is that of the part that stays" in note for note in plan.notes)
    assert (after[0].out_features, after[2].in_features, after[2].out_features) == (len(a), len(a), len(b))


def test_weight_norm_is_exact_when_outputs_go():
    """With norms per output, what stays of a layer that loses outputs alone is what it was, number by number."""
    model = randomise(nn.Sequential(p.weight_norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 3)).double())
    plan = planned(model)
    a = kept(plan, "0.parametrizations.weight.original1", 0, 8)
    after = copy.deepcopy(model)
    plan.apply(after)
    assert 0 < len(a) < 8 and torch.equal(after[0].weight, model[0].weight[a])
    assert plan.notes == ()


def test_spectral_norm_against_a_rebuilt_network():
    """Its vectors follow, and the norm that they estimate is that of what stays."""
    model = mlp(p.spectral_norm)
    plan = planned(model)
    a = kept(plan, "0.parametrizations.weight.original", 0, 8)
    b = kept(plan, "2.parametrizations.weight.original", 0, 8)

    def weight(layer: Any, rows: list[int], columns: list[int]) -> torch.Tensor:
        w, norm = layer.parametrizations.weight.original[rows][:, columns], layer.parametrizations.weight[0]
        return w / (norm._u[rows] @ w @ norm._v[columns])

    after = copy.deepcopy(model)
    plan.apply(after)
    assert_same(outputs(after, (X,)), [rebuilt(model, weight, a, b)])
    assert any("runs over the units that stay" in note for note in plan.notes)
    norm = after[2].parametrizations.weight[0]
    assert (norm._u.shape, norm._v.shape) == ((len(b),), (len(a),)) and len(a) + len(b) < 16
    after.train()
    for _ in range(200):  # in training the vectors come to fit what stays
        after(X)
    after.eval()
    assert abs(float(torch.linalg.matrix_norm(after[2].weight.detach(), 2)) - 1) < 1e-6


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute(wrap):
    model = mlp(wrap)
    graph = sm.capture(model, X)
    assert {k: graph.frozen_because(graph[k]) for k in "02"} == {"0": "", "2": ""}
    plan = planned(model)
    wanted = outputs(masked(model, plan), (X,))
    with torch.no_grad():
        model(X)
    after = copy.deepcopy(model)
    plan.apply(after)
    for k in (0, 2):
        assert tuple(after[k].weight.shape) == (after[k].out_features, after[k].in_features)
    assert after[0].out_features == plan.sizes["0"][1] < 8 or after[2].out_features == plan.sizes["2"][1] < 8
    assert_same(outputs(after, (X,)), wanted)
    assert plan.costs["params"].after == count_params(after)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_failure_puts_back_what_hooks_had_computed(wrap, monkeypatch):
    model = mlp(wrap)
    plan = planned(model)
    before = {k: model[k].weight for k in (0, 2)}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("solvemut.apply.plan.verify_program", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        plan.apply(model)
    assert all(model[k].weight is w for k, w in before.items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, p.weight_norm])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weights_of_a_recurrent_layer(wrap, kind):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = wrap(wrap(getattr(nn, kind)(5, 8), "weight_hh_l0"), "weight_ih_l0")
            self.o = nn.Linear(8, 3)

        def forward(self, x):
            return self.o(self.rnn(x)[0])

    args = (torch.randn(4, 2, 5, dtype=torch.float64),)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the states that the layer makes
    try:
        model = randomise(Net())
        plan = planned(model, args)
        wanted = outputs(masked(model, plan), args)
        with torch.no_grad():
            model(*args)
        plan.apply(model)
        assert_same(outputs(model, args), wanted)
    finally:
        torch.set_default_dtype(before)
    assert plan.sizes["rnn"] == (8, model.rnn.hidden_size) and model.rnn.hidden_size < 8


# -- what cannot be followed -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no rule for")
@pytest.mark.parametrize(("outputs_of_it", "way"), [(8, "matrix_exp"), (8, "cayley"), (6, "householder")])
def test_what_an_orthogonal_weight_is_computed_from_stays_with_a_reason(outputs_of_it, way):
    """Operations without a rule make a square matrix of it; units of the buffer that it is multiplied by may go."""
    wrapped = p.orthogonal(nn.Linear(8, outputs_of_it), orthogonal_map=way)
    layers = [nn.Linear(5, 8), nn.ReLU(), wrapped, nn.ReLU(), nn.Linear(outputs_of_it, 7), nn.Linear(7, 3)]
    model = nn.Sequential(*layers).double()
    graph = sm.capture(model, X)
    stays = graph.coupling.units(graph.coupling.sources["p_2_parametrizations_weight_original", 0])
    assert {graph.coupling.reasons[u].partition(":")[0] for u in stays.tolist()} <= {"no rule for tril"}
    assert graph.coupling.frozen[stays].all() and any("no rule for tril" in note for note in graph.notes)
    after = copy.deepcopy(model)
    plan = sm.prune(after, X, values=sm.values.random(0), params=0.8, constraints=lambda g: [g["4"].out == 4])
    assert plan.sizes["4"] == (7, 4)
    name = "2.parametrizations.weight.original"
    assert torch.equal(after.get_parameter(name), model.get_parameter(name))
    assert_same(outputs(after, (X,)), outputs(masked(model, plan), (X,)))


class Half(nn.Module):
    """Not elementwise: one half of the rows are the other half, turned round."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return torch.cat((w, -w), 0)

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w[: len(w) // 2]


def test_a_parametrization_of_another_shape():
    """Rows that are computed from one row are one unit."""
    layer = nn.Linear(5, 8)
    register_parametrization(layer, "weight", Half(), unsafe=True)
    model = randomise(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)).double())
    plan = sm.Mutator(model, X).prune(params=0.6, values=sm.values.random(0), dry_run=True)
    rows = kept(plan, "0.parametrizations.weight.original", 0, 4)
    assert kept(plan, "2.weight", 1, 8) == [*rows, *(4 + k for k in rows)] and 0 < len(rows) < 4
    after = copy.deepcopy(model)
    plan.apply(after)
    assert_same(outputs(after, (X,)), outputs(masked(model, plan), (X,)))


# -- words, and work ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WeightNormed", "SpectralNormed", "PositiveWeights", "WeightNormedConvs"])
def test_a_layer_and_what_computes_its_weight_are_one_vertex(name):
    n = NETS[name]
    model = n.model()
    graph = sm.capture(model, n.args())
    names = [v.name for v in graph.vertices if v.op != "input"]
    assert names == [k for k, m in model.named_children()]
    by_vertex = {m.vertex for m in (*graph.params.monomials, *graph.flops.monomials)}
    assert by_vertex <= set(names) and {"0", "2"} <= by_vertex
    assert graph.flops.now == count_flops(model, n.args())


class Products(nn.Module):
    """Products with vectors, which torch's counter does not know, and one of each kind that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.v, self.w = nn.Linear(5, 8), nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        h = self.a(x)
        y = torch.matmul(h, self.v) + torch.mv(h, self.v) + torch.addmv(x[:, 0], h, self.v) + torch.dot(self.v, self.v)
        return y, torch.vdot(self.v, self.v), torch.matmul(h, self.w), torch.matmul(h[0], self.w), torch.mm(h, self.w)


def test_products_with_vectors_count_as_torch_counts_them():
    model = randomise(Products().double())
    graph = sm.capture(model, X)
    assert graph.flops.now == count_flops(model, (X,)) > 0
    after = copy.deepcopy(model)
    plan = sm.prune(after, X, constraints=lambda g: [g["a"].out == 3])
    assert plan.costs["flops"].after == count_flops(after, (X,))
    assert_same(outputs(after, (X,)), outputs(masked(model, plan), (X,)))
