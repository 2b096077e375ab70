"""Layers that come and go in a model whose forward is code."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.conv3 = nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv1(x)).relu()
        return self.conv3(y + self.block(y))


def made() -> tuple[sm.Mutator, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 8, 8)
    return sm.Mutator(model, x, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)), x


def runs(mut: sm.Mutator, x: torch.Tensor) -> None:
    mut.model(x)
    fresh = sm.capture(mut.model, x)
    assert [(v.name, v.nin, v.nout) for v in fresh] == [(v.name, v.nin, v.nout) for v in mut.graph]


def test_what_comes_passes_on_and_names_stay():
    mut, x = made()
    y, names = mut.model(x), list(mut.model.state_dict())
    mut.insert("block.0", sm.identity_init(nn.Conv2d(8, 8, 3, padding=1)), "extra")
    assert torch.allclose(mut.model(x), y, atol=1e-6)
    assert list(mut.model.state_dict()) == [*names, "extra.weight", "extra.bias"]
    assert [v.name for v in mut.graph.outputs("block.0")] == ["extra"]
    assert {id(p) for g in mut.optimizer.param_groups for p in g["params"]} == {id(p) for p in mut.model.parameters()}
    runs(mut, x)
    mut.resize({"block.0": -2})
    assert mut.model.extra.in_channels == 6
    for twin in (copy.deepcopy(mut.model), pickle.loads(pickle.dumps(mut.model))):
        assert torch.equal(twin(x), mut.model(x))
        with torch.no_grad():
            twin.extra.weight.zero_()
        assert not torch.equal(twin(x), mut.model(x))
    mut.remove("extra")
    assert list(mut.model.state_dict()) == names and not mut.model.block[0]._forward_hooks
    runs(mut, x)


def test_chains_stand_in_their_order():
    mut, x = made()
    mut.insert("conv1", [nn.Conv2d(8, 8, 1), nn.ReLU()], ["b", "c"])
    mut.insert("conv1", nn.Conv2d(8, 8, 1), "a")
    mut.insert(before="conv3", module=nn.ReLU(), name="before_last")
    names = [v.name for v in mut.graph]
    assert names[names.index("conv1") :][:5] == ["conv1", "a", "b", "c", "bn"] and names[-2:] == [
        "before_last",
        "conv3",
    ]
    conv = mut.model.conv1
    wanted = mut.model.c(mut.model.b(mut.model.a(nn.functional.conv2d(x, conv.weight, conv.bias, padding=1))))
    assert torch.allclose(conv(x), wanted, atol=1e-6)
    runs(mut, x)


def test_other_sizes_are_aligned():
    mut, x = made()
    mut.insert("conv1", nn.Conv2d(5, 7, 1), "odd")
    assert mut.graph["conv1"].nout == mut.graph["odd"].nin[0] and mut.graph["odd"].nout == mut.graph["bn"].nout
    assert not [k for k, _ in mut.model.named_modules() if "port" in k]
    runs(mut, x)


def test_what_goes_leaves_nothing_to_do():
    mut, x = made()
    mut.remove("bn")
    assert isinstance(mut.model.bn, nn.Identity)
    mut.remove("block.0")
    assert isinstance(mut.model.block[0], nn.Identity)
    runs(mut, x)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    plan = sm.Mutator(model, torch.ones(1, 3)).remove("2")
    assert plan.sizes["0"] == (5, 7) and model[4].in_features == 7 and model(torch.ones(2, 3)).shape == (2, 2)


IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "an edge": (lambda m: m.connect("conv1", "add"), "editable"),
    "an edge that goes": (lambda m: m.disconnect("bn", "add"), "editable"),
    "some consumers": (lambda m: m.insert("conv1", nn.ReLU(), "r", consumers=["bn"]), "editable"),
    "code": (lambda m: m.insert("add", nn.ReLU(), "r"), "editable"),
    "code that goes": (lambda m: m.remove("relu"), "editable"),
    "some edges": (lambda m: m.remove("bn", reconnect=[]), "editable"),
    "a taken name": (lambda m: m.insert("conv1", nn.ReLU(), "bn"), "taken"),
    "no home": (lambda m: m.insert("conv1", nn.ReLU(), "far.away"), "far"),
    "another shape": (lambda m: m.insert("block.0", nn.Conv2d(8, 8, 3), "r"), "does not run"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_changes_nothing(what):
    call, told = IMPOSSIBLE[what]
    mut, x = made()
    mut.insert("conv1", nn.ReLU(), "early")
    mut.model(x).sum().backward()
    mut.optimizer.step()
    before, graph, y = snapshot(mut.model, mut.optimizer), mut.graph, mut.model(x)
    with pytest.raises((RequestError, InfeasibleError)) as e:
        call(mut)
    assert told in str(e.value)
    assert_untouched(before, snapshot(mut.model, mut.optimizer))
    assert mut.graph is graph and torch.equal(mut.model(x), y) and len(mut.history) == 1
    runs(mut, x)
