"""Each metric against a direct computation on a small network; the model, its gradients and the random state stay."""

from __future__ import annotations

import copy
from typing import Any

import nets_shapes  # noqa: F401  (enters its networks in the table)
import numpy as np
import pytest
import torch
from nets import NETS
from oracles import randomise, tensors
from torch import nn

import solvemut as sm
from solvemut.values import unit_values


class Small(nn.Module):
    """Two units classes to tell apart: a residual stream (stem, b) and the inside (a)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.a, self.bn1 = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.b, self.bn2 = nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.bn0(self.stem(x)).relu()
        return self.head(self.drop(x + self.bn2(self.b(self.bn1(self.a(x)).relu()))))


STREAM = [
    ("stem.weight", 0),
    ("stem.bias", 0),
    ("bn0.weight", 0),
    ("bn0.bias", 0),
    ("a.weight", 1),
    ("b.weight", 0),
    ("b.bias", 0),
    ("bn2.weight", 0),
    ("bn2.bias", 0),
    ("head.weight", 1),
]
INSIDE = [("a.weight", 0), ("a.bias", 0), ("bn1.weight", 0), ("bn1.bias", 0), ("b.weight", 1)]


def small() -> nn.Module:
    return randomise(Small().double(), 3)


def example(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - 1).square().mean()


def found(model: nn.Module, values: Any) -> dict[str, np.ndarray]:
    """The value of each unit of the stream and of the inside."""
    graph = sm.capture(model, example())
    v = unit_values(values, model, graph)
    assert (graph["stem"].units == graph["b"].units).all()
    return {"stream": v[graph["stem"].units], "inside": v[graph["a"].units]}


def direct(model: nn.Module, score: Any) -> dict[str, np.ndarray]:
    """A score of every slice of every parameter, added up over the slices that make or read the unit."""
    named = dict(model.named_parameters())
    out = {}
    for key, places in (("stream", STREAM), ("inside", INSIDE)):
        n = 4 if key == "stream" else 5
        total = np.zeros(n)
        for name, dim in places:
            for i in range(n):
                total[i] += float(score(name, named[name].detach(), dim, i))
        out[key] = total
    return out


def assert_close(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for key, wanted in b.items():
        np.testing.assert_allclose(a[key], wanted, rtol=1e-10, atol=1e-12, err_msg=key)


# -- magnitude, scale, random, constant --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3, 0.5])
def test_magnitude(p):
    model = small()

    def score(name: str, w: torch.Tensor, dim: int, i: int) -> torch.Tensor:
        return w.select(dim, i).abs().pow(p).sum().pow(1 / p)

    assert_close(found(model, sm.values.magnitude(p=p, normalize=None)), direct(model, score))


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        ("mean", np.mean),
        ("max", np.max),
        ("sum", np.sum),
        ("l2", lambda v: np.sqrt((v**2).sum())),
    ],
)
def test_normalisation_is_over_each_coupled_group(how, scale):
    model = small()
    raw = found(model, sm.values.magnitude(p=1, normalize=None))
    assert_close(found(model, sm.values.magnitude(p=1, normalize=how)), {k: v / scale(v) for k, v in raw.items()})


def test_default_is_magnitude_with_mean_one():
    model = small()
    values = found(model, None)
    assert_close(values, found(model, sm.values.magnitude(p=2, normalize="mean")))
    assert all(abs(v.mean() - 1) < 1e-12 for v in values.values())


def test_scaling_a_layer_moves_no_default_value_of_another():
    model = small()
    before = found(model, None)
    with torch.no_grad():
        for m in (model.a, model.bn1):
            m.weight *= 100
            m.bias *= 100
        model.b.weight *= 100
    assert_close({"inside": found(model, None)["inside"]}, {"inside": before["inside"]})


def test_bn_scale():
    model = small()
    w = {n: m.weight.detach().abs().numpy() for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert_close(found(model, sm.values.bn_scale()), {"stream": w["bn0"] + w["bn2"], "inside": w["bn1"]})


def test_random_is_reproducible_and_leaves_the_global_state():
    model = small()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = (found(model, sm.values.random(seed)) for seed in (5, 5, 6))
    assert_close(a, b)
    assert not np.allclose(a["inside"], c["inside"])
    assert all((v > 0).all() and (v <= 1).all() and len(set(v)) == len(v) for v in a.values())
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


def test_constant():
    assert_close(found(small(), sm.values.constant(2.5)), {"stream": np.full(4, 2.5), "inside": np.full(5, 2.5)})


# -- given by the caller -----------------------------------------------------------------------------------------------


def test_dict_scalars_arrays_and_what_is_missing():
    """Values of coupled vertices add up; a layer that is left out counts 1 per unit."""
    values = found(small(), {"stem": [1.0, 2, 3, 4], "b": 10, "a": torch.arange(5)})
    assert_close(values, {"stream": np.array([11.0, 12, 13, 14]), "inside": np.arange(5.0)})
    assert_close(found(small(), {"stem": 0.0}), {"stream": np.ones(4), "inside": np.ones(5)})
    assert_close(found(small(), {}), {"stream": np.full(4, 2.0), "inside": np.ones(5)})


def test_dict_on_a_vertex_without_units_of_its_own():
    values = found(small(), {"bn1": np.arange(5), "a": 0.0})
    assert_close({"inside": values["inside"]}, {"inside": np.arange(5.0)})


def test_callable_sees_the_vertex():
    seen = []

    def values(v: Any) -> Any:
        seen.append((v.name, v.nin, v.nout))
        return np.arange(v.nout) if v.name == "a" else 0.5

    assert_close(found(small(), values), {"stream": np.full(4, 1.0), "inside": np.arange(5.0)})
    assert ("a", [4], 5) in seen and ("head", [4], 2) in seen
    assert not any(name.startswith(("bn", "relu", "drop")) for name, _, _ in seen)


def test_the_most_valuable_units_stay():
    model = small()
    graph = sm.capture(model, example())
    problem = sm.Problem(graph)
    problem.maximize({"a": [3.0, 9, 1, 7, 5], "stem": [1.0, 2, 9, 4], "b": [5.0, 0, 0, 0]})
    problem.add(graph["a"].out == 3, graph["stem"].out == 2)
    plan = problem.solve()
    assert plan.indices["a.weight"] == {0: [1, 3, 4], 1: [0, 2]}  # stream: 6 2 9 4
    assert plan.indices["b.weight"] == {0: [0, 2], 1: [1, 3, 4]}
    assert plan.objective == 9 + 7 + 5 + 6 + 9


# -- with data ---------------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    twin = copy.deepcopy(model).eval()
    value = loss(twin, batch)
    names, params = zip(*twin.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, params), strict=True))


@pytest.mark.parametrize("batches", [1, 3])
def test_taylor(batches):
    """|sum of weight x gradient| over each slice, summed over slices and batches."""
    model = small().train()
    data = [example(s) for s in range(batches)]
    total: dict[str, np.ndarray] = {}
    for batch in data:
        grads = gradients(model, batch)

        def score(name: str, w: torch.Tensor, dim: int, i: int, grads: Any = grads) -> torch.Tensor:
            return (w * grads[name]).select(dim, i).sum().abs()

        for k, v in direct(model, score).items():
            total[k] = total.get(k, 0) + v
    assert_close(found(model, sm.values.taylor(data, loss)), total)


def test_activation():
    """|mean over pixels of activation x gradient|, averaged over examples and batches, where the unit is made."""
    model = small()
    data = [example(s) for s in range(3)]
    wanted = {"stem": np.zeros(4), "b": np.zeros(4), "a": np.zeros(5)}
    for batch in data:
        twin = copy.deepcopy(model).eval()
        kept: dict[str, torch.Tensor] = {}
        for name in wanted:

            def hook(m: nn.Module, i: Any, o: torch.Tensor, name: str = name, kept: Any = kept) -> None:
                kept[name] = o

            twin.get_submodule(name).register_forward_hook(hook)
        value = loss(twin, batch)
        for name, g in zip(kept, torch.autograd.grad(value, list(kept.values())), strict=True):
            per = (kept[name] * g).mean((2, 3)).abs()  # [examples, units], as eq. 8 of the paper
            wanted[name] += per.mean(0).detach().numpy() / len(data)
    both = {"stream": wanted["stem"] + wanted["b"], "inside": wanted["a"]}
    assert_close(found(model, sm.values.activation(data, loss)), both)


@pytest.mark.parametrize("metric", ["taylor", "activation"])
@pytest.mark.parametrize("name", ["Grouped", "ChunkSwapped", "Glu", "Embedding", "Siamese", "UpGrouped"])
def test_data_metrics_of_other_layers_are_finite_and_not_flat(metric, name):
    n = NETS[name]
    model, args = randomise(n.model()), n.args()
    graph = sm.capture(model, args)
    values = unit_values(getattr(sm.values, metric)([args] * 2, lambda m, b: m(*b).square().mean()), model, graph)
    free = ~graph.coupling.frozen
    assert np.isfinite(values).all() and len(set(values[free].round(12))) > 2
    assert (values[free] >= 0).all() and values[free].sum() > 0


def test_taylor_of_a_grouped_convolution():
    model, args = randomise(NETS["Grouped"].model()), NETS["Grouped"].args()
    graph = sm.capture(model, args)
    values_of = unit_values(sm.values.taylor([args], lambda m, b: m(*b).square().mean()), model, graph)
    twin = copy.deepcopy(model)
    twin(*args).square().mean().backward()
    p = {k: (v * v.grad).detach() for k, v in twin.named_parameters()}
    wanted = p["0.weight"].flatten(1).sum(1).abs() + p["0.bias"].abs()
    for i in range(12):  # input i is position i % 4 of group i // 4, whose outputs are six rows
        wanted[i] += p["2.weight"][i // 4 * 6 : i // 4 * 6 + 6, i % 4].sum().abs()
    np.testing.assert_allclose(values_of[graph["0"].units], wanted, rtol=1e-10)


def test_an_iterator_is_read_once_and_batches_of_any_structure():
    model = small()
    data = ({"x": example(s)} for s in range(2))
    values = found(model, sm.values.taylor(data, lambda m, b: loss(m, b["x"])))
    assert_close(values, found(model, sm.values.taylor([example(0), example(1)], loss)))
    assert next(data, None) is None


# -- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [
        lambda: sm.values.magnitude(),
        lambda: sm.values.bn_scale(),
        lambda: sm.values.random(),
        lambda: sm.values.taylor([example()], loss),
        lambda: sm.values.activation([example()], loss),
    ],
)
def test_model_gradients_mode_and_random_state_stay(metric):
    nothing_moves(metric())


def nothing_moves(values: Any) -> None:
    """Pruning by these values, not applied, leaves the model, its gradients and modes, and the random state."""
    model = small().train()
    model.bn1.eval()
    model.a.weight.requires_grad_(False)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    grads = {n: p.grad for n, p in model.named_parameters()}
    saved = {n: t.detach().clone() for n, t in tensors(model).items()}
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    sm.Mutator(model, example()).prune(params=0.7, values=values, dry_run=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is grads[n] for n, p in model.named_parameters())
    assert (model.stem.weight.grad == 1).all()
    assert all(torch.equal(t, saved[n]) for n, t in tensors(model).items())
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"a.weight"}
    assert model.training and not model.bn1.training and model.drop.training
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks


def test_model_is_restored_when_the_loss_fails():
    model = small().train()
    saved = {n: t.detach().clone() for n, t in tensors(model).items()}

    def broken(m: nn.Module, batch: Any) -> torch.Tensor:
        m(batch)
        raise ZeroDivisionError

    for metric in (sm.values.taylor, sm.values.activation):
        with pytest.raises(ZeroDivisionError):
            sm.prune(model, example(), params=0.7, values=metric([example()], broken))
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, saved[n]) for n, t in tensors(model).items())
    assert not any(m._forward_hooks for m in model.modules())


def test_values_follow_a_change_of_weights_between_prunes():
    """A metric is evaluated on the model as it is when the problem is solved."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    mut = sm.Mutator(model, torch.ones(1, 4))
    with torch.no_grad():
        model[1].weight.fill_(1)
        model[1].weight[:, [1, 5]] = 50
    plan = mut.prune(constraints=lambda g: [g["0"].out == 2])
    assert plan.indices["0.weight"][0] == [1, 5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: sm.values.magnitude(p=0),
        lambda: sm.values.magnitude(p=-1),
        lambda: sm.values.magnitude(normalize="median"),
        lambda: sm.values.taylor([], loss, normalize="x"),
    ],
)
def test_options_that_make_no_sense(make):
    with pytest.raises(sm.errors.ValuesError):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_metrics_in_low_precision(dtype):
    model = small().to(dtype)
    graph = sm.capture(model, example().to(dtype))
    v = unit_values(sm.values.magnitude(normalize=None), model, graph)
    wanted = unit_values(sm.values.magnitude(normalize=None), model.double(), sm.capture(model, example()))
    np.testing.assert_allclose(v, wanted, rtol=0.02)


# -- numbers of every size ---------------------------------------------------------------------------------------------


def wide_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def both(model: nn.Module, x: torch.Tensor, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values of a model, and those of its copy in double precision."""
    twin = wide_copy(model)
    y = x.double() if x.is_floating_point() else x
    return unit_values(values, model, sm.capture(model, x)), unit_values(values, twin, sm.capture(twin, y))


@pytest.mark.parametrize("p", [1, 2, 3, 12])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 1e-4),
        (torch.float16, 1e-6),
        (torch.float16, 3e4),
        (torch.bfloat16, 1e-30),
        (torch.bfloat16, 1e30),
        (torch.float32, 1e-30),
        (torch.float32, 1e25),
        (torch.float32, 1e-44),
        (torch.float64, 1e-200),
        (torch.float64, 1e200),
    ],
)
def test_magnitude_of_numbers_whose_squares_do_not_fit(dtype, size, p):
    """Each value is as the definition has it, with numbers that fit, to single precision or better."""
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)
    with torch.no_grad():
        for i, t in enumerate(model.parameters()):
            t.copy_((torch.arange(1, t.numel() + 1).reshape(t.shape).double() / t.numel() + i / 8) * size)
    graph = sm.capture(model, torch.ones(1, 3, dtype=dtype))
    found = unit_values(sm.values.magnitude(p=p, normalize=None), model, graph)[graph["0"].units] / size
    w, b, v = (t.detach().double() / size for t in list(model.parameters())[:3])
    slices = [w, b.unsqueeze(1), v.t()]
    wanted = sum((s.abs() ** p).sum(1) ** (1 / p) for s in slices)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-9 if dtype == torch.float64 or p > 2 else 1e-6)
    assert len(set(found)) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", ["taylor", "activation", "bn_scale"])
def test_other_metrics_take_no_products_in_low_precision(metric, dtype):
    """Weights and gradients fit fp16, their products do not."""
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2, bias=False)).to(dtype)
    with torch.no_grad():
        for t in model.parameters():
            t.copy_(torch.arange(1, t.numel() + 1).reshape(t.shape) * 2.0**-11)
    x = torch.ones(1, 4, dtype=dtype)

    def small_loss(m: nn.Module, b: torch.Tensor) -> torch.Tensor:
        return m(b).sum() * 2.0**-6

    made = sm.values.bn_scale() if metric == "bn_scale" else getattr(sm.values, metric)([x], small_loss)
    graph = sm.capture(model, x)
    values = unit_values(made, model, graph)[graph["0"].units]
    assert (values > 0).all() and len(set(values)) == 8 and (np.diff(values) > 0).all()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_weights_of_eight_bits(name):
    """They are valued, and follow a plan with their bytes as they are."""

    class Eight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.a.weight = nn.Parameter(self.a.weight.detach().to(getattr(torch, name)), requires_grad=False)

        def forward(self, x):
            return self.b(nn.functional.linear(x, self.a.weight.to(x.dtype), self.a.bias).relu())

    model, x = Eight(), torch.ones(1, 4)
    found, wanted = both(model, x, sm.values.magnitude())
    np.testing.assert_allclose(found, wanted)
    assert len(set(found)) > 5
    before = model.a.weight.detach().clone().view(torch.uint8)
    plan = sm.prune(model, x, params=0.6)
    assert torch.equal(model.a.weight.view(torch.uint8), before[plan.indices["a.weight"][0]])
    assert model.a.weight.dtype == getattr(torch, name) and len(plan.indices["a.weight"][0]) < 8
    model(x).sum().backward()
