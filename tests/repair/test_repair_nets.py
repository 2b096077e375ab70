"""Whole networks: the loss falls, no network gets worse, and what cannot be repaired is named."""

from __future__ import annotations

import copy
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_recurrent  # noqa: F401
import nets_shapes  # noqa: F401
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from torch import nn

import solvemut as sm
from solvemut.repair.fit import _Run


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = nn.Conv2d(i, o, 1, stride, bias=False) if i != o else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x))))).add_(self.short(x)))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[Any]]:
    """A small network that tells four patterns from each other."""
    torch.manual_seed(0)
    y = torch.arange(256).remainder(4)
    pattern = torch.randn(4, 1, 12, 12)
    x = pattern[y] + 0.7 * torch.randn(256, 1, 12, 12)
    model = Small()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for k in range(60):
        part = slice(64 * (k % 4), 64 * (k % 4) + 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model.eval(), list(zip(x.split(64), y.split(64), strict=True))


def test_a_pruned_network_is_near_the_old_one_again(trained):
    teacher, batches = trained
    for how in (sm.repair.least_squares, sm.repair.batch_norm):
        model = copy.deepcopy(teacher)
        plan = sm.prune(model, batches[0][0][:2], flops=0.5)
        report = how(batches, nn.functional.cross_entropy)(model, teacher, plan)
        assert report.left == {}
        assert report.after <= report.before
        if how is sm.repair.least_squares:
            assert report.after < 0.2 * report.before
            assert len(report.kept) >= 5
            with torch.no_grad():
                loss = sum(float(nn.functional.cross_entropy(model(x), y)) for x, y in batches) / len(batches)
            assert abs(loss - report.after) < 1e-5


def test_a_loss_that_takes_the_model(trained):
    teacher, batches = trained
    found = []
    for loss in (
        nn.functional.cross_entropy,
        lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["y"]),
    ):
        model = copy.deepcopy(teacher)
        plan = sm.prune(model, batches[0][0][:2], flops=0.5)
        data = batches if not found else [{"x": x, "y": y} for x, y in batches]
        sm.repair.least_squares(data, loss)(model, teacher, plan)
        found.append(model)
    assert all(torch.equal(p, q) for p, q in zip(found[0].parameters(), found[1].parameters(), strict=True))


class Recurrent(nn.Module):
    """Layers that are called several times, one of them between."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.cell, self.read = nn.Linear(3, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.into(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.into(x[:, t]) + self.cell(h))
        return self.read(h)


def pruned(teacher: nn.Module, x: torch.Tensor, **request: Any) -> tuple[nn.Module, Any]:
    model = copy.deepcopy(teacher)
    return model, sm.prune(model, x[:2], **request)


@pytest.mark.parametrize("varies", [False, True])
def test_a_layer_called_several_times_has_one_solution(varies, monkeypatch):
    torch.manual_seed(0)
    teacher = Recurrent().double()
    x = torch.randn(40, 4, 3, dtype=torch.float64)
    model, plan = pruned(teacher, x, params=0.5)
    other = copy.deepcopy(model)
    batches = [x, x[:, :2]] if varies else [x[:20], x[20:]]
    report = sm.repair.least_squares(batches, ridge=1e-12)(model, teacher, plan)
    assert report.after < report.before
    assert "cell.weight" in report.kept
    assert len(report.layers) == 3
    monkeypatch.setattr(_Run, "_lockstep", lambda *_: False)
    sm.repair.least_squares(batches, ridge=1e-12)(other, teacher, plan)
    assert all(torch.allclose(p, q, atol=1e-8) for p, q in zip(model.parameters(), other.parameters(), strict=True))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 10), nn.Linear(10, 6), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([self.b(torch.tanh(self.a(x))), self.b(torch.tanh(self.a(y)))], -1))


def test_the_joint_solution_of_two_calls_is_that_of_all_rows():
    torch.manual_seed(0)
    teacher = Twice().double()
    x, y = torch.randn(2, 50, 4, dtype=torch.float64)
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, (x[:2], y[:2]), params=0.6)
    sm.repair.least_squares([(x, y, 0)], ridge=1e-13)(model, teacher, plan)
    both, ones = torch.cat([x, y]), torch.ones(100, 1, dtype=torch.float64)
    rows = torch.cat([torch.tanh(model.a(both)), ones], 1)
    index = plan.indices.get("b.bias", {}).get(0, list(range(6)))
    wanted = torch.linalg.lstsq(rows, teacher.b(torch.tanh(teacher.a(both)))[:, index]).solution
    assert torch.allclose(model.b.weight, wanted[:-1].T, atol=1e-7)
    assert torch.allclose(model.b.bias, wanted[-1], atol=1e-7)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid, self.out = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.back = nn.Linear(8, 8)
        self.out.weight = self.embed.weight
        self.spare = nn.Linear(3, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.mid(self.embed(ids)))
        h = nn.functional.linear(self.back(h), self.back.weight.t())
        return self.out(h)


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_repaired_is_named():
    torch.manual_seed(0)
    teacher, ids = Tied(), torch.randint(20, (30, 6))
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, ids[:2], params=0.8)
    report = sm.repair.least_squares([ids])(model, teacher, plan)
    assert set(report.left) == {"embed.weight", "back.weight", "spare.weight"}
    assert "tied" in report.left["embed.weight"] and "embedding" in report.left["embed.weight"]
    assert "tied" in report.left["back.weight"] and "t" in report.left["back.weight"]
    assert "never called" in report.left["spare.weight"]
    assert {layer.name for layer in report.layers} == {"mid.weight"}
    assert "embed.weight" in str(report)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_are_computed_are_left(norm):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), norm(nn.Linear(10, 8)), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.randn(50, 4)
    model, plan = pruned(teacher, x, params=0.6)
    report = sm.repair.least_squares([x])(model, teacher, plan)
    assert any("parametrizations" in name and "no linear map" in why for name, why in report.left.items())
    assert report.after < report.before


def test_new_units_stay_as_they_are():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(50, 4, dtype=torch.float64)
    model = copy.deepcopy(teacher)
    plan = sm.Mutator(model, x[:2]).resize({"0": -4, "2": +3})
    assert plan.indices["2.weight"][0].count(-1) == 3
    new = torch.tensor(plan.indices["2.weight"][0]) < 0
    was = model[2].weight.detach().clone()
    report = sm.repair.least_squares([x])(model, teacher, plan)
    assert "2.weight" in report.kept
    assert torch.equal(model[2].weight[new], was[new])
    assert not torch.isclose(model[2].weight[~new], was[~new]).all()


class Stateful(nn.Module):
    """Keeps something in an attribute that it reads later in the same forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 10), nn.Linear(10, 4), nn.Linear(4, 2)
        self.kept: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = x
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))) * self.kept)


def test_a_model_with_state_is_not_run_side_by_side(monkeypatch):
    torch.manual_seed(0)
    teacher, x = Stateful().double(), torch.randn(40, 4, dtype=torch.float64)
    model, plan = pruned(teacher, x, params=0.6)
    other = copy.deepcopy(model)
    a = sm.repair.least_squares(x.split(10))(model, teacher, plan)
    monkeypatch.setattr(_Run, "_lockstep", lambda *_: False)
    b = sm.repair.least_squares(x.split(10))(other, teacher, plan)
    assert a.after == b.after < a.before


class Branching(nn.Module):
    """Calls its layers in an order that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.a(x))
        h = self.b(torch.tanh(self.c(h))) if x.shape[0] % 2 else self.c(torch.tanh(self.b(h)))
        return self.d(h)


def test_batches_that_go_other_ways():
    torch.manual_seed(0)
    teacher = Branching().double()
    x = torch.randn(51, 4, dtype=torch.float64)
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, x[:2], params=0.6, methods={"forward": x[:3]})
    report = sm.repair.least_squares([x[:20], x[20:]])(model, teacher, plan)
    assert report.after < report.before
    assert {layer.name for layer in report.layers} == {f"{k}.weight" for k in "abcd"}


def test_values_that_are_not_finite_are_left():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(50, 4)
    model, plan = pruned(teacher, x, params=0.6)
    was = [p.detach().clone() for p in model.parameters()]
    x[3, 1] = float("nan")
    report = sm.repair.least_squares([x])(model, teacher, plan)
    assert report.kept == ()
    assert all("finite" in why for why in report.left.values()) and report.left
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), was, strict=True))


def test_what_makes_the_whole_worse_is_undone():
    """A loss that no repair can please: the model comes back bit for bit, and the report says so."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(50, 4)
    model, plan = pruned(teacher, x, params=0.6)
    with torch.no_grad():
        wanted = model(x)
    was = [p.detach().clone() for p in model.parameters()]
    report = sm.repair.least_squares([(x, wanted)], nn.functional.mse_loss)(model, teacher, plan)
    assert report.before == report.after == 0
    assert report.kept == () and "undone" in str(report)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), was, strict=True))


TABLE = ["Chain3d", "UpGrouped", "GroupedRegrouped", "InstanceNorm", "InvertedResidual", "FusedQkv", "UNet", "Dense"]
TABLE += ["EncoderLayer", "ShuffleUnit", "Siamese", "Mixer", "Tagger"]


@pytest.mark.parametrize("name", TABLE)
def test_networks_of_the_table(name, monkeypatch):
    """Repaired side by side or layer by layer they become the same, and better."""
    teacher, args = NETS[name].model(), NETS[name].args()
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, args, params=0.7)
    other = copy.deepcopy(model)
    report = sm.repair.least_squares([(*args, 0)] * 2, positions=None)(model, teacher, plan)
    assert report.after < report.before
    monkeypatch.setattr(_Run, "_lockstep", lambda *_: False)
    sm.repair.least_squares([(*args, 0)] * 2, positions=None)(other, teacher, plan)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(st.sampled_from(["linear", "norm", "relu", "tanh"]), min_size=1, max_size=6),
    params=st.floats(0.2, 0.9),
    ridge=st.sampled_from([0.0, 1e-8, 1e-4, 1.0]),
    rows=st.integers(1, 40),
    labels=st.booleans(),
)
def test_no_network_gets_worse(seed, kinds, params, ridge, rows, labels):
    torch.manual_seed(seed)
    parts = {"linear": lambda: nn.Linear(8, 8), "norm": lambda: nn.BatchNorm1d(8), "relu": nn.ReLU, "tanh": nn.Tanh}
    teacher = nn.Sequential(nn.Linear(3, 8), *(parts[k]() for k in kinds), nn.Linear(8, 4)).eval()
    x, y = torch.randn(rows, 3), torch.randint(4, (rows,))
    model, plan = pruned(teacher, x, params=params)
    loss = nn.functional.cross_entropy if labels else None
    batches = list(zip(x.split(16), y.split(16), strict=True))

    def measured() -> float:
        with torch.no_grad():
            if labels:
                return float(nn.functional.cross_entropy(model(x), y))
            return float((model(x) - teacher(x)).square().mean())

    before = measured()
    report = sm.repair.least_squares(batches, loss, ridge=ridge)(model, teacher, plan)
    assert report.after <= report.before
    assert abs(report.before - before) < 1e-4 * (1 + before)
    assert abs(report.after - measured()) < 1e-4 * (1 + before)
