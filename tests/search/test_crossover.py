"""Crossover: a child of two models, which stay as they are."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from problems import dense, images
from test_mutations import runs
from torch import nn
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.errors import RequestError
from solvemut.search import crossover
from solvemut.surgery import cuts


def test_cuts_are_where_everything_passes():
    mut = images()
    assert [c.vertex for c in cuts(mut.model, mut.graph)] == ["stem", "act", "cat", "mix", "pool", "flat"]
    found = {c.vertex: c for c in cuts(mut.model, mut.graph)}
    assert found["stem"].fits(found["cat"]) and not found["cat"].fits(found["mix"])
    assert 0 < found["stem"].position < found["flat"].position < 1


@pytest.mark.parametrize("seed", range(5))
def test_a_child_runs_and_parents_stay_bit_identical(seed):
    a, b = images(1), images(2)
    a.resize({"stem": 3, "mix": -2, "side": 5})
    b.insert(after="act", module=nn.Conv2d(6, 6, 3, padding=1), name="more")
    b.remove("conv")
    before = [(snapshot(m.model), m.graph, m.history, m.model.code) for m in (a, b)]
    child = crossover(a, b, random.Random(seed))
    for m, (state, graph, history, code) in zip((a, b), before, strict=True):
        assert_untouched(state, snapshot(m.model))
        assert m.graph is graph and m.history == history and m.model.code == code
    assert child.model(torch.randn(2, 3, 6, 6)).shape == (2, 5)
    assert child.history[-1].edits[0].what.startswith("graft what comes behind")
    ours = {id(t) for m in (a, b) for t in (*m.model.parameters(), *m.model.buffers())}
    assert not ours & {id(t) for t in (*child.model.parameters(), *child.model.buffers())}
    runs(child)


@pytest.mark.parametrize("seed", range(4))
def test_of_one_size_the_child_computes_what_its_parts_compute(seed):
    a, b = dense(6, seed=1), dense(6, seed=2)
    x = torch.randn(4, 3)
    child = crossover(a, b, random.Random(seed))
    back, front = child.history[-1].edits[0].what.removeprefix("graft what comes behind ").split(" to ")
    order, y = ["a", "act", "b", "c"], x
    for part in order[: order.index(front) + 1]:
        y = a.model.get_submodule(part)(y)
    for part in order[order.index(back) + 1 :]:
        y = b.model.get_submodule(part)(y)
    assert torch.allclose(child.model(x), y, atol=1e-6)


def test_sizes_that_differ_are_settled():
    a, b = dense(4, seed=1), dense(9, seed=2)
    child = crossover(a, b, random.Random(1))
    assert child.graph["a"].nout in (4, 9) or child.graph["a"].nout == child.graph["b"].nin[0]
    runs(child)


def test_names_that_are_taken_change():
    nets = []
    for order in (("one", "two"), ("two", "one")):
        net = sm.Builder()
        v = net.layer(nn.Linear(3, 4), net.input("x", 3), name=order[0])
        nets.append(sm.Mutator(net.build(net.layer(nn.Linear(4, 2), v, name=order[1])), torch.ones(1, 3)))
    child = crossover(*nets, random.Random(0))
    assert [v.name for v in child.graph] == ["x", "one", "one_0"]
    x = torch.randn(2, 3)
    assert torch.equal(child.model(x), nets[1].model.one(nets[0].model.one(x)))


class Scaled(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, hidden), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(hidden))
        self.register_buffer("shift", torch.rand(hidden))
        self.tail = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(torch.relu(self.body(x) * self.scale + self.shift))


@pytest.mark.parametrize("seed", range(4))
def test_parameters_and_buffers_of_a_followed_model_come_along(seed):
    a, b = (sm.Mutator(sm.editable(Scaled(n)), torch.ones(2, 3)) for n in (5, 5))
    child = crossover(a, b, random.Random(seed))
    front = child.history[-1].edits[0].what.split(" to ")[-1]
    names, buffers = dict(child.model.named_parameters()), dict(child.model.named_buffers())
    assert "tail.2.weight" in names and len(names) in (4, 6, 7, 8) and len(buffers) <= 1, front
    assert all(n.target in {*names, *buffers} for n in child.model.graph.nodes if n.op == "get_attr")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is left that no call reads
        runs(child)


def test_without_matching_cuts_there_is_no_child():
    flat = dense()
    assert crossover(flat, images(), random.Random(0)) is None
    assert crossover(flat, dense(seed=3), random.Random(0), deviation=0) is not None
    with pytest.raises(RequestError, match="editable"):
        crossover(sm.Mutator(nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3)), flat, random.Random(0))
