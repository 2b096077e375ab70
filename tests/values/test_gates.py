"""Gates against explicit ones: the derivative of each example's loss by a factor on what makes a unit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import randomise
from torch import nn
from torch.func import functional_call

import solvemut as sm
from solvemut.errors import ValuesError
from solvemut.values import bypass, fisher, unit_values


class Residual(nn.Module):
    """A stream with two addends behind norms, an inside, a convolution without norm, and linear layers."""

    gates = ("bn0", "bn1", "bn2", "c", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.a, self.bn1 = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.b, self.bn2 = nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
        self.c, self.fc, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 7), nn.Linear(7, 3)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x):
        x = self.relu(self.bn0(self.stem(x)))
        x = self.relu(x + self.bn2(self.b(self.relu(self.bn1(self.a(x))))))
        return self.head(self.drop(self.relu(self.fc(self.relu(self.c(x)).mean((2, 3))))))


class Tokens(nn.Module):
    """Embedding, norm and attention, with the batch in the first dim or in the second."""

    gates = ("norm", "attn.in_proj", "attn.out_proj", "fc")

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.emb, self.norm, self.first = nn.Embedding(9, 8), nn.LayerNorm(8), batch_first
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.fc, self.head = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, ids):
        x = self.norm(self.emb(ids if self.first else ids.t()))
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.head(F.gelu(self.fc(x)).mean(1 if self.first else 0))


class Twice(nn.Module):
    """One layer called twice; and one whose output the loss sees linearly."""

    gates = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.b(torch.tanh(self.b(torch.relu(self.a(x))))))


class Mixing(nn.Module):
    """The batch stands in the middle, behind another dim and before a third."""

    gates = ("a",)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.a(x.unflatten(1, (2, 2)).transpose(0, 1)))  # [2, batch, 2, units]
        return self.head(x.mean((0, 2)))


class Shared(nn.Module):
    """What a norm reads the residual reads as well, so that the unit leaves its producer in two ways."""

    gates = ("stem", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.fc(self.norm(x)))


def images(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 2, 5, 5, generator=g, dtype=torch.float64)


def rows(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 4, generator=g, dtype=torch.float64)


CASES: dict[str, tuple[Any, Any]] = {
    "residual": (Residual, images),
    "batch first": (lambda: Tokens(True), lambda n, g: torch.randint(9, (n, 5), generator=g)),
    "batch second": (lambda: Tokens(False), lambda n, g: torch.randint(9, (n, 5), generator=g)),
    "twice": (Twice, rows),
    "mixing": (Mixing, lambda n, g: torch.randn(n, 4, 3, generator=g, dtype=torch.float64)),
    "shared": (Shared, rows),
}


def case(name: str, sizes: tuple[int, ...] = (3, 1, 4)) -> tuple[nn.Module, list[Any]]:
    """A network with random weights, and batches of these sizes."""
    build, example = CASES[name]
    g = torch.Generator().manual_seed(5)
    data = [(example(n, g), torch.randint(3, (n,), generator=g)) for n in sizes]
    return randomise(build().double(), 2).eval(), data


def parameter_units(graph: Any, name: str, dim: int) -> np.ndarray:
    """The unit classes along a dim of a parameter."""
    coupling = graph.coupling
    for (value, d), extent in coupling.sources.items():
        p = coupling.trace.params.get(value)
        if p is not None and p.name == name and d == dim:
            return coupling.units(extent).reshape(-1)
    raise AssertionError(name)


def gated(model: Any, graph: Any, gate: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parameters with the gate of each unit multiplied in."""
    found = {}
    for name, p in model.named_parameters():
        of = next((g for g in model.gates if name in (f"{g}.weight", f"{g}.bias", f"{g}_weight", f"{g}_bias")), None)
        if of is not None:
            units = torch.as_tensor(parameter_units(graph, name, 0))
            found[name] = p.detach() * gate[units].reshape(-1, *[1] * (p.ndim - 1))
    return found


def by_hand(model: Any, graph: Any, data: list[Any]) -> np.ndarray:
    """mean(s^2) / 2, s the derivative of one example's loss by each unit's gate; the units that gates stand for."""
    total, n = torch.zeros(graph.coupling.n_units, dtype=torch.float64), 0
    twin = copy.deepcopy(model).eval()
    for x, y in data:
        for k in range(len(x)):
            gate = torch.ones(graph.coupling.n_units, dtype=torch.float64, requires_grad=True)
            out = functional_call(twin, gated(twin, graph, gate), (x[k : k + 1],))
            total += torch.autograd.grad(F.cross_entropy(out, y[k : k + 1]), gate)[0].square() / 2
            n += 1
    return (total / n).numpy()


def assert_gates(model: Any, data: list[Any], metric: Any) -> None:
    graph = sm.capture(model, data[0][0])
    wanted, found = by_hand(model, graph, data), unit_values(metric, model, graph)
    free = ~graph.coupling.frozen
    assert (wanted[free] > 0).sum() > 3
    np.testing.assert_allclose(found[free], wanted[free], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("name", CASES)
def test_fisher_is_that_of_explicit_gates_of_each_example(name):
    model, data = case(name)
    assert_gates(model, data, fisher(data, F.cross_entropy))


@pytest.mark.parametrize("name", ["residual", "batch second", "mixing"])
def test_a_loss_that_sums_over_examples(name):
    model, data = case(name)
    assert_gates(model, data, fisher(data, lambda out, y: F.cross_entropy(out, y, reduction="sum"), reduction="sum"))


@pytest.mark.parametrize("name", ["residual", "batch first", "batch second", "mixing"])
def test_how_examples_come_in_batches_is_the_same(name):
    model, data = case(name, (8,))
    x, y = data[0]
    graph = sm.capture(model, x)
    at_once = unit_values(fisher(data, F.cross_entropy), model, graph)
    for parts in ((5, 3), (1,) * 8):
        pieces = list(zip(x.split(list(parts)), y.split(list(parts)), strict=True))
        np.testing.assert_allclose(unit_values(fisher(pieces, F.cross_entropy), model, graph), at_once, rtol=1e-9)


def test_a_loss_of_model_and_batch_of_any_structure():
    model, data = case("residual")
    graph = sm.capture(model, data[0][0])
    named = [{"image": x, "label": y} for x, y in data]
    metric = fisher(named, lambda model, batch: F.cross_entropy(model(batch["image"]), batch["label"]))
    wanted = unit_values(fisher(data, F.cross_entropy), model, graph)
    np.testing.assert_allclose(unit_values(metric, model, graph), wanted, rtol=1e-12)


def test_a_generator_is_read_once_and_both_metrics_of_one_see_all():
    model, data = case("residual")
    graph = sm.capture(model, data[0][0])
    metric = fisher((b for b in data), F.cross_entropy)
    wanted = by_hand(model, graph, data)[~graph.coupling.frozen]
    for _ in range(2):
        np.testing.assert_allclose(unit_values(metric, model, graph)[~graph.coupling.frozen], wanted, rtol=1e-9)
        metric.memo.clear()


def test_what_is_no_data_is_refused():
    model, data = case("twice")
    graph = sm.capture(model, data[0][0])
    with pytest.raises(ValuesError, match="no batch"):
        unit_values(fisher([], F.cross_entropy), model, graph)
    with pytest.raises(ValuesError, match="is nan"):
        unit_values(fisher(data, lambda out, y: out.sum() * float("nan")), model, graph)
    with pytest.raises(ValuesError, match="scalar"):
        unit_values(fisher(data, lambda out, y: out), model, graph)
    for bad in (lambda: fisher(data, None), lambda: fisher(None, F.cross_entropy), lambda: fisher(data, 3)):
        with pytest.raises(ValuesError):
            bad()
    with pytest.raises(ValuesError, match="reduction"):
        fisher(data, F.cross_entropy, reduction="max")


# -- whole blocks ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(4, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return x + self.b(self.bn(self.a(x)).relu_())


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 4, 1), Block(5), Block(3)
        self.never, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x)).relu()).mean((2, 3)))


class Gate(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.gate = block, torch.ones((), dtype=torch.float64, requires_grad=True)

    def forward(self, x):
        return x + self.gate * (self.block(x) - x)


def blocks() -> tuple[nn.Module, list[Any]]:
    g = torch.Generator().manual_seed(3)
    data = [(images(n, g), torch.randint(3, (n,), generator=g)) for n in (3, 1, 2)]
    return randomise(Blocks().double(), 4).eval(), data


@pytest.mark.filterwarnings("ignore:no captured call reads")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_bypass_is_the_derivative_by_a_gate_between_input_and_output(reduction):
    model, data = blocks()
    graph = sm.capture(model, data[0][0])
    twin = copy.deepcopy(model)
    twin.one, twin.two = Gate(twin.one), Gate(twin.two)
    wanted, n = {"one": 0.0, "two": 0.0}, 0
    for x, y in data:
        for k in range(len(x)):
            value = F.cross_entropy(twin(x[k : k + 1]), y[k : k + 1])
            for name, s in zip(wanted, torch.autograd.grad(value, [twin.one.gate, twin.two.gate]), strict=True):
                wanted[name] += float(s) ** 2 / 2
            n += 1
    found = bypass(graph, ["one", "two"], data, lambda o, y: F.cross_entropy(o, y, reduction=reduction), reduction)
    assert list(found) == ["one", "two"] and all(v > 0 for v in found.values())
    assert found == pytest.approx({k: v / n for k, v in wanted.items()}, rel=1e-9)
    assert bypass(graph, "two", data, F.cross_entropy) == pytest.approx({"two": wanted["two"] / n}, rel=1e-9)


@pytest.mark.filterwarnings("ignore:no captured call reads")
def test_bypass_refuses_what_nothing_could_stand_for():
    model, data = blocks()
    graph = sm.capture(model, data[0][0])
    for name, told in (("stem", "stand for"), ("never", "never called"), ("three", "no module 'three'")):
        with pytest.raises(ValuesError, match=told):
            bypass(graph, name, data, F.cross_entropy)
        assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValuesError, match="no batch"):
        bypass(graph, "one", [], F.cross_entropy)
    with pytest.raises(ValuesError, match="loss"):
        bypass(graph, "one", data, None)


# -- nothing is left behind --------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a look at a model could leave changed."""
    found: dict[str, Any] = {k: t.detach().clone() for k, t in model.state_dict().items()}
    found |= {f"{k} grad": None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    found |= {f"{k} needs": p.requires_grad for k, p in model.named_parameters()}
    found |= {f"{k} mode": m.training for k, m in model.named_modules()}
    found |= {f"{k} hooks": (len(m._forward_hooks), len(m._backward_hooks)) for k, m in model.named_modules()}
    return {**found, "rng": torch.get_rng_state(), "grad": torch.is_grad_enabled()}


def assert_alike(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for k, x in a.items():
        assert torch.equal(x, b[k]) if isinstance(x, torch.Tensor) else x == b[k], k


def in_use() -> tuple[nn.Module, list[Any]]:
    """A model in the middle of its training."""
    model, data = case("residual")
    model.train()
    model.bn1.eval()
    model.a.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    return model, data


LOOKS = {
    "fisher": lambda graph, data, loss: unit_values(fisher(data, loss), graph.model, graph),
    "bypass": lambda graph, data, loss: bypass(graph, "relu", data, loss),
    "reconstruction": lambda graph, data, loss: unit_values(sm.values.reconstruction(data, loss), graph.model, graph),
    "measured": lambda graph, data, loss: unit_values(sm.values.measured(data, loss, points=1), graph.model, graph),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_look_leaves_model_gradients_modes_and_random_state(look, gradients):
    model, data = in_use()
    graph = sm.capture(model, data[0][0])

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out + 0 * torch.rand(()), y)

    with torch.set_grad_enabled(gradients):
        before = everything(model)
        LOOKS[look](graph, data, loss)
        assert_alike(before, everything(model))


@pytest.mark.parametrize("look", LOOKS)
def test_a_loss_that_raises_leaves_them_too(look):
    model, data = in_use()
    graph = sm.capture(model, data[0][0])
    calls: Iterator[int] = iter(range(100))

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if next(calls) == 1:
            raise ZeroDivisionError
        return F.cross_entropy(out, y)

    before = everything(model)
    with pytest.raises(ZeroDivisionError):
        LOOKS[look](graph, data, loss)
    assert_alike(before, everything(model))


@pytest.mark.parametrize("name", ["residual", "batch first"])
def test_under_autocast_the_values_are_close(name):
    model, data = case(name)
    model = model.float()
    data = [(x.float() if x.is_floating_point() else x, y) for x, y in data]
    graph = sm.capture(model, data[0][0])
    free = ~graph.coupling.frozen
    wanted = unit_values(fisher(data, F.cross_entropy), model, graph)[free]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = unit_values(fisher(data, F.cross_entropy), model, graph)[free]
    assert not np.array_equal(found, wanted)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
