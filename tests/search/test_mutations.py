"""Random mutations: what they may do, what they leave, and that graph and model agree afterwards."""

from __future__ import annotations

import copy
import logging
import random

import pytest
import torch
from problems import dense, drawn, images
from torch import nn
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.errors import RequestError
from solvemut.search import Chain, Choose, Connect, Disconnect, Insert, Remove, Resize


def runs(mut: sm.Mutator) -> None:
    """The model runs, and its graph is what a fresh look at it gives."""
    x = tuple(torch.randn(*e.shape) for e in mut.graph.examples[0].leaves)
    assert torch.isfinite(mut.model(*x)).all()
    fresh = sm.capture(mut.model, x)
    assert [(v.name, v.nin, v.nout) for v in fresh] == [(v.name, v.nin, v.nout) for v in mut.graph]
    assert (fresh.params.now, fresh.flops.now) == (mut.graph.params.now, mut.graph.flops.now)


KINDS = {
    "resize": Resize(-0.6, 0.6, p=0.7),
    "insert": Insert(),
    "remove": Remove(),
    "connect": Connect(merge="either"),
    "disconnect": Disconnect(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_mutation_the_model_runs_and_the_graph_is_its_graph(kind):
    done = 0
    for seed in range(8):
        rng = random.Random(seed)
        mut = drawn(rng) if seed % 4 else images()
        before = copy.deepcopy(mut.model.state_dict())
        plan = KINDS[kind](mut, rng)
        if plan is None:
            assert all(torch.equal(v, before[k]) for k, v in mut.model.state_dict().items()) and not mut.history
        else:
            done += 1
            assert mut.history == (plan,)
        runs(mut)
    assert done >= 4


@pytest.mark.parametrize("seed", range(4))
def test_many_mutations_one_after_another(seed):
    rng = random.Random(seed)
    mut = drawn(rng) if seed % 2 else images(seed)
    kinds = Choose((*list(KINDS.values())[1:], Resize(-0.4, 0.4, p=0.5, most=12)))
    plans = [kinds(mut, rng) for _ in range(10)]
    assert sum(p is not None for p in plans) == len(mut.history) >= 5
    runs(mut)


@pytest.mark.parametrize(("x", "size"), [(0.4, 14), (-0.4, 6), (-0.001, 9), (0.001, 11), (0.7, 17), (0, 10)])
def test_a_size_changes_by_a_share_away_from_zero(x, size):
    mut = dense(10)
    plan = Resize(x, x)(mut, random.Random(0))
    assert mut.graph["a"].nout == size and (plan is None) == (x == 0)


def test_all_layers_are_resized_at_once_and_within_bounds():
    mut = dense(10)
    plan = Resize(0.9, 0.9, most=12)(mut, random.Random(0))
    assert (plan.sizes["a"], plan.sizes["b"], plan.sizes["c"]) == ((10, 12), (7, 12), (2, 2))
    Resize(-0.9, -0.9, least=5)(mut, random.Random(0))
    assert (mut.graph["a"].nout, mut.graph["b"].nout) == (5, 5)
    for seed in range(6):
        mut, rng = images(), random.Random(seed)
        Resize(-1, 1, least=3, most=11)(mut, rng)
        assert all(3 <= v.nout <= 11 for v in mut.graph.vertices if v.makes_units)


def test_probability_0_does_nothing_and_1_always_something():
    never = [Resize(p=0), Insert(p=0), Remove(p=0), Connect(p=0), Disconnect(p=0)]
    mut = images()
    assert Chain(*never)(mut, random.Random(0)) is None and mut.history == ()
    assert sum(Insert(p=0.5)(mut.copy(), random.Random(k)) is not None for k in range(20)) in range(4, 17)


def test_what_is_inserted_by_default_passes_on_what_is_not_negative():
    mut, x = images(), torch.randn(2, 3, 6, 6)
    y = mut.model(x)
    place = [v for v in mut.graph.vertices if v.name == "act"]
    insert = Insert()
    plan = insert._made(mut, place[0], random.Random(0))
    assert plan.edits[0].what.startswith("insert conv2d_1, batchnorm2d_1, relu_1 after act")
    assert torch.allclose(mut.model(x), y, atol=1e-4) and not mut.model.batchnorm2d_1.training


def test_insert_takes_layers_that_a_function_makes():
    def make(vertex, rng):
        return [nn.Linear(vertex.nout, n := rng.randint(2, 5)), nn.Linear(n, vertex.nout)]

    mut = dense()
    assert Insert(make)(mut, random.Random(3)).edits[0].what.startswith("insert linear_1, linear_2")
    runs(mut)


def test_connect_tries_values_of_one_shape_only(monkeypatch):
    mut, told = images(), set()

    def refuse(source, target, merge):
        told.add((source, target))
        raise RequestError("not here")

    monkeypatch.setattr(mut, "connect", refuse)
    assert all(Connect(merge="add")(mut, random.Random(seed)) is None for seed in range(60))
    large = ["x", "stem", "act", "conv", "norm", "add", "side", "cat"]  # images of 6 x 6
    small = {"flat", "head"}
    assert ("x", "side") in told and ("stem", "mix") in told and ("mix", "flat") not in told
    assert all(a in large and b in {*large, "mix"} for a, b in told if b not in small) and len(told) > 15


def test_disconnect_needs_others_at_both_ends():
    assert Disconnect()(dense(), random.Random(0)) is None
    mut = images()
    assert Disconnect()(mut, random.Random(0)).edits[0].what == "disconnect act from add"
    assert [v.name for v in mut.graph.inputs("cat")] == ["norm", "side"]


def test_what_is_impossible_is_told_and_changes_nothing(caplog):
    mut = dense()
    before, graph, code = snapshot(mut.model), mut.graph, mut.model.code
    with caplog.at_level(logging.INFO, "solvemut"):
        assert Insert(lambda vertex, rng: nn.Conv2d(2, 2, 1))(mut, random.Random(0)) is None
    assert_untouched(before, snapshot(mut.model))
    assert mut.graph is graph and mut.model.code == code and mut.history == ()
    assert [r.name for r in caplog.records if "not possible" in r.message] == ["solvemut"] * 3


def test_a_mutation_draws_from_its_own_stream():
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        mut, rng = dense(), random.Random(5)
        torch.manual_seed(noise)
        Chain(Resize(0.5, 0.5), Insert(lambda v, rng: nn.Linear(v.nout, 4)))(mut, rng)
        states.append(mut.model.state_dict())
        drawn_after = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(torch.rand(1), drawn_after)  # and leaves torch's own where it was
    assert list(states[0]) == list(states[1]) and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_choose_follows_its_weights():
    told = []
    choose = Choose([lambda m, r: told.append("a"), lambda m, r: told.append("b")], [3, 1])
    for k in range(200):
        choose(None, random.Random(k))
    assert 120 <= told.count("a") <= 175 and told.count("b") == 200 - told.count("a")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(0.2, -0.2),
        lambda: Resize(p=1.5),
        lambda: Resize(least=0),
        lambda: Resize(least=5, most=4),
        lambda: Insert(p="often"),
        lambda: Remove(-1),
        lambda: Connect(merge="mul"),
        lambda: Disconnect(p=2),
        lambda: Choose([]),
        lambda: Choose([Remove()], [0]),
        lambda: Choose([Remove()], [1, 2]),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(RequestError):
        make()
