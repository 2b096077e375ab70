"""Layers of a single unit: they grow again, unless their one position may be there to be broadcast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import assert_same, masked, outputs, randomise
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError

Seq = nn.Sequential
IMAGE, ROWS = (2, 3, 6, 6), (5, 3)


class Gated(nn.Module):
    """A gate of one channel is broadcast over all others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.a(x) * self.gate(x))


class Viewed(nn.Module):
    def __init__(self, view: Callable[[Any], Any], head: nn.Module) -> None:
        super().__init__()
        self.a, self.view, self.head = nn.Conv2d(3, 4, 3), view, head

    def forward(self, x):
        return self.head(self.view(self.a(x)))


def built(merge: str) -> nn.Module:
    net = sm.Builder()
    x = net.input("x", 3)
    a, b = (net.layer(nn.Linear(3, 4), x, name=name) for name in ("a", "b"))
    y = a + b if merge == "add" else net.concat(a, b, name="cat")
    return net.build(net.layer(nn.Linear(4 if merge == "add" else 8, 2), y, name="head"))


GROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (lambda: Seq(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), ROWS, "0"),
    "born single": (lambda: Seq(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)), ROWS, "0"),
    "norms": (lambda: Seq(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 2)), ROWS, "0"),
    "conv": (lambda: Seq(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGE, "0"),
    "up": (lambda: Seq(nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose2d(4, 2, 2)), IMAGE, "0"),
    "group norm": (lambda: Seq(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), nn.Conv2d(4, 2, 1)), IMAGE, "0"),
    "depthwise": (lambda: Seq(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)), IMAGE, "0"),
    "flatten": (lambda: Seq(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)), IMAGE, "0"),
    "pooled": (lambda: Seq(nn.Conv2d(3, 4, 3), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 2)), IMAGE, "0"),
    "add": (lambda: built("add"), ROWS, "a"),
    "concat": (lambda: built("concat"), ROWS, "a"),
    "gated": (Gated, IMAGE, "a"),
}


@pytest.mark.parametrize("init", [None, "split"])
@pytest.mark.parametrize("name", GROWS)
def test_a_layer_shrinks_to_one_unit_and_grows_again(name, init):
    make, shape, key = GROWS[name]
    torch.manual_seed(0)
    model, x = randomise(make().double().eval()), (torch.randn(shape).double(),)
    mut = sm.Mutator(model, x, modes="eval")
    for size in (5, 3):
        original = copy.deepcopy(model)
        plan = mut.resize({key: sm.exactly(1)})
        assert_same(outputs(model, x), outputs(masked(original, plan), x))
        fresh = sm.capture(model, x, modes="eval")
        assert [(v.name, v.nin, v.nout) for v in fresh.vertices] == [
            (v.name, v.nin, v.nout) for v in mut.graph.vertices
        ]
        before = outputs(model, x)
        plan = mut.resize({key: sm.exactly(size)}, init=init)
        assert plan.sizes[key] == (1, size) and plan.alters == () and mut.graph[key].nout == size
        assert_same(outputs(model, x), before)


STAYS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    "broadcast": (Gated, IMAGE, "gate", "its only position is broadcast"),
    "squeeze": (
        lambda: Viewed(lambda y: y.squeeze(1).flatten(1), nn.Linear(16, 2)),
        IMAGE,
        "a",
        "squeeze takes out its only position",
    ),
    "pixels": (
        lambda: Viewed(lambda y: y.flatten(2), nn.Conv1d(1, 2, 1)),
        IMAGE,
        "a",
        "a view moves its only position",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_position_that_may_mean_something_else_stays(name):
    make, shape, key, why = STAYS[name]
    model = make()
    if key == "a":
        model.a = nn.Conv2d(3, 1, 3)
    graph = sm.capture(model, torch.randn(shape))
    assert graph[key].nout == 1 and graph.frozen_because(graph[key]).startswith(why)
    with pytest.raises(InfeasibleError):
        sm.Mutator(model, torch.randn(shape)).resize({key: 2})


class Twice(nn.Module):
    """A layer's weight of one row is also added to something."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 1), nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.a(x + self.a.weight))


def test_a_single_row_that_is_broadcast_elsewhere_stays():
    graph = sm.capture(Twice(), torch.randn(ROWS))
    assert graph.frozen_because(graph["a"]).startswith("its only position may be broadcast")
