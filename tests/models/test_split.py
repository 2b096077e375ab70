"""New units that are copies: outputs stay, copies part in training, and what cannot be copied is drawn."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_recurrent  # noqa: F401
import nets_shapes  # noqa: F401
import nets_weights  # noqa: F401
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from oracles import assert_same, outputs, randomise, tensors
from test_growth import ALTERED
from test_random_graphs import prepared, programs
from torch import nn
from training import assert_untouched, snapshot, step

import solvemut as sm
from solvemut.errors import PlanMismatchError, RequestError, SolvemutError
from solvemut.plan import origins

# Weights that other numbers are computed from, or that make and read the same units: those units are drawn
DRAWN = {
    "ComputedWeight",
    "PositiveWeights",
    "RawParameters",
    "SpectralNormed",
    "SpectralNormedConvs",
    "TiedAutoencoder",
    "TiedHead",
    "WeightNormed",
    "WeightNormedByColumns",
    "WeightNormedConvs",
    "WeightNormedWhole",
}


def told(plan: Any) -> list[str]:
    return [n for n in plan.notes if "not copied" in n]


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize("grow", [3, "split"])
def test_outputs_stay_unless_the_plan_says_why_not(name, grow):
    n = NETS[name]
    model = randomise(n.model())
    before = copy.deepcopy(model)
    mut = sm.Mutator(model, n.args(), n.kw(), modes="eval")
    plan = mut.prune(grow=grow, init="split", values=sm.values.constant())
    assert any(b > a for a, b in plan.sizes.values()) and bool(told(plan)) == (name in DRAWN)
    assert plan.copies or name == "TiedAutoencoder"
    assert grow == "split" or bool(plan.alters) == (name in ALTERED)  # as when new units are drawn
    if not plan.alters:
        assert_same(outputs(model, n.args(), n.kw()), outputs(before, n.args(), n.kw()))
    again = sm.Plan.from_json(plan.to_json())
    assert again == plan and str(again) == str(plan)
    twin = again.apply(copy.deepcopy(before))
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


@settings(max_examples=30)
@given(programs(), st.integers(0, 10**6), st.integers(1, 5))
def test_outputs_of_random_networks_stay(steps, seed, most):
    model, x, _, values = prepared(steps, seed)
    model, x = model.double(), x.double()
    before = copy.deepcopy(model)

    def nothing_goes(g: Any) -> list[Any]:
        return [v.out >= v.nout for v in g.vertices if v.makes_units]

    plan = sm.Mutator(model, x, modes="eval").prune(grow=most, init="split", values=values, constraints=nothing_goes)
    assert not told(plan)
    if not plan.alters:
        assert_same(outputs(model, (x,)), outputs(before, (x,)))


def test_slices_are_those_of_the_source_and_readers_divide_theirs():
    """The plan's word held against the tensors, slice by slice, without a forward."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5)).double()
    before, x = copy.deepcopy(randomise(model)), torch.randn(2, 3).double()
    values = {"0": [1.0, 4.0, 2.0, 3.0]}
    plan = sm.Mutator(model, x).resize({"0": +6}, values=values, init="split")
    sources = [1, 3, 2, 0, 1, 3]  # by value, the best first, and round again
    assert (
        plan.copies["0.weight"][0].of == [-1] * 4 + sources and plan.indices["0.weight"][0] == [0, 1, 2, 3] + [-1] * 6
    )
    made = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    old, new = tensors(before), tensors(model)
    for name in made:
        assert torch.equal(new[name][4:], old[name][sources]) and torch.equal(new[name][:4], old[name])
    assert set(plan.copies) == {*made, "3.weight"} and plan.copies["3.weight"][1].divided
    of_source = [0, 1, 2, 3, *sources]
    total = torch.zeros_like(old["3.weight"]).index_add_(1, torch.tensor(of_source), new["3.weight"])
    torch.testing.assert_close(total, old["3.weight"], rtol=1e-12, atol=1e-12)
    shares = new["3.weight"] / old["3.weight"][:, of_source]
    counts = torch.tensor([Counter(of_source)[k] for k in of_source])
    assert ((shares * counts - 1).abs() < 0.5).all() and len(shares[:, 0].unique()) == 5
    assert "new units that are copies:\n- 0.weight, 0.bias, 1.weight and 3 more: 4 of 1, 5 of 3, 6 of 2" in str(plan)


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(3, 4), nn.LSTM(4, 5, 2, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


TRAINED = {
    "dense": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (64, 3)),
    "conv-bn": (conv_bn, (8, 3, 6, 6)),
    "lstm": (Lstm, (8, 6, 3)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_outputs_stay_in_train_mode_too(name):
    torch.manual_seed(0)
    make, shape = TRAINED[name]
    model, x = make().double().train(), torch.randn(shape).double()
    wanted = copy.deepcopy(model)(x)
    plan = sm.Mutator(model, x).prune(grow=3, init="split", values=sm.values.constant())
    assert plan.copies and plan.alters == ()
    assert_same([model(x).detach()], [wanted.detach()])


@pytest.mark.parametrize("optimizer_of", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", TRAINED)
def test_copies_part_in_training_and_nothing_is_stuck(name, optimizer_of):
    torch.manual_seed(0)
    make, shape = TRAINED[name]
    model, x = make(), torch.randn(shape)
    plan = sm.Mutator(model, x).prune(grow=2, init="split", values=sm.values.constant())
    optimizer = optimizer_of(model.parameters(), lr=0.01)
    pairs = [
        (key, d, k, c.of[k])
        for key, dims in plan.copies.items()
        for d, c in dims.items()
        for k in range(len(c.of))
        if c.of[k] >= 0 and key in dict(model.named_parameters())
    ]
    assert pairs
    first = {k: p.detach().clone() for k, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    for key, d, new, old in pairs:
        p, q = (dict(model.named_parameters())[key].select(d, k) for k in (new, plan.indices[key][d].index(old)))
        if p.dim():  # the gradient of a bias before a batch norm is zero but for rounding
            assert not torch.equal(p, q) and (p - q).abs().max() > 1e-6, key
            assert (p != first[key].select(d, new)).any(), key


def test_state_of_copies_is_zero_and_that_of_their_source_stays():
    torch.manual_seed(0)
    model, x = TRAINED["dense"][0](), torch.randn(64, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    step(model, (x,), optimizer)
    old = {k: optimizer.state[p]["exp_avg"].clone() for k, p in model.named_parameters()}
    sm.Mutator(model, x, optimizer=optimizer).resize({"0": +3}, init="split")
    for key, d in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        now = optimizer.state[dict(model.named_parameters())[key]]["exp_avg"].movedim(d, 0)
        assert torch.equal(now[:4], old[key].movedim(d, 0)) and len(now) == 7 and (now[4:] == 0).all()
    step(model, (x,), optimizer)


def test_copies_that_would_meet_otherwise_are_refused(monkeypatch):
    """A slice of one tensor copied from another unit than those it meets: the flow tells."""
    right, done = origins._origins, []

    def wrong(labels: np.ndarray, units: np.ndarray, source_of: np.ndarray) -> np.ndarray:
        found = right(labels, units, source_of)
        if (found >= 0).any() and not done:
            done.append(True)
            found[found >= 0] = np.roll(found[found >= 0], 1)
        return found

    monkeypatch.setattr(origins, "_origins", wrong)
    with pytest.raises(SolvemutError, match="copies of units would meet otherwise"):
        sm.Mutator(dense(), X).resize({"0": 2}, init="split")


# -- how it is asked for -----------------------------------------------------------------------------------------------


def dense() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double()


def test_the_ways_to_ask_for_copies_agree():
    ways: list[Any] = [{"grow": "split"}, {"grow": True, "init": "split"}, {"grow": "split", "init": "split"}]
    models = [dense() for _ in ways]
    plans = [sm.Mutator(m, X).prune(values=sm.values.constant(), **w) for m, w in zip(models, ways, strict=True)]
    assert plans[0].copies == plans[1].copies == plans[2].copies and plans[0].sizes["0"] == (4, 8)
    assert all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())
    a, b = (sm.Mutator(dense(), X).resize({"0": 9}, dry_run=True, **w) for w in ({"init": "split"}, {"grow": "split"}))
    assert a.copies == b.copies and a.sizes["0"] == (4, 13)
    problem = sm.Problem(sm.capture(dense(), X))
    problem.grow("split")
    assert problem.solve().copies
    assert not sm.Mutator(dense(), X).resize({"0": 9}).copies


def test_an_initialiser_draws_what_resize_and_prune_add():
    for ask in (lambda mut, **o: mut.resize({"0": 2}, **o), lambda mut, **o: mut.prune(grow={"0": 2}, **o)):
        model = dense()
        ask(sm.Mutator(model, X), values=sm.values.constant(), init=lambda name, shape: torch.full(shape, 7.0))
        assert (model[0].weight[4:] == 7).all() and (model[2].weight[:, 4:] == 0).all()


REFUSED = {
    "another word": lambda mut: mut.resize({"0": 1}, init="halve"),
    "a number": lambda mut: mut.prune(grow=1, init=2),
    "another limit": lambda mut: mut.prune(grow="halve"),
    "a kernel": lambda mut: mut.resize_kernel("0", 2, init="split"),
    "when it is applied": lambda mut: mut.resize({"0": 1}, dry_run=True).apply(mut.model, init="split"),
    "a plan of a mutator": lambda mut: mut.apply(mut.resize({"0": 1}, dry_run=True), init="split"),
    "an idle initialiser": lambda mut: mut.resize({"0": 1}, init=lambda n, s: torch.ones(s), dry_run=True),
    "a layer": lambda mut: mut.remove("1", grow="split"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_asked_for_is_refused(how):
    model = dense()
    before = snapshot(model)
    with pytest.raises(RequestError):
        REFUSED[how](sm.Mutator(model, X))
    assert_untouched(before, snapshot(model))


def test_a_failure_leaves_all_as_it_was(monkeypatch):
    model = dense()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, (X,), optimizer)
    mut, before = sm.Mutator(model, X, optimizer=optimizer), snapshot(model, optimizer)
    plan = mut.resize({"0": 2}, init="split", dry_run=True)
    monkeypatch.setattr("solvemut.apply.plan.verify_program", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mut.apply(plan)
    assert_untouched(before, snapshot(model, optimizer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    x = X.to(dtype)
    y = model(x)
    sm.Mutator(model, x).resize({"0": 3}, init="split")
    torch.testing.assert_close(model(x), y, rtol=0.05, atol=0.02)


# -- one plan after another --------------------------------------------------------------------------------------------


CHAINS: dict[str, list[tuple[dict[str, Any], str | None]]] = {
    "copies, then others": [({"0": 2}, "split"), ({"2": 3}, "split")],
    "copies of copies": [({"0": 5}, "split"), ({"0": 7}, "split")],
    "drawn elsewhere": [({"0": 2}, "split"), ({"2": 3}, None)],
    "drawn, then copies elsewhere": [({"2": 3}, None), ({"0": 2}, "split")],
    "copies beside drawn": [({"0": 2}, "split"), ({"0": 2}, None)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_lazy_block_composes_copies(name):
    model, y = dense(), dense()(X)
    mut = sm.Mutator(model, X)
    with mut.lazy() as pending:
        for changes, init in CHAINS[name]:
            mut.resize(changes, init=init)
    assert pending.plan.alters == () and pending.plan.copies
    assert sm.Plan.from_json(pending.plan.to_json()).copies == pending.plan.copies
    assert_same([model(X).detach()], [y.detach()])


def test_what_one_plan_cannot_say_of_copies_is_refused():
    model = dense()
    mut, before = sm.Mutator(model, X), snapshot(model)
    lone = {"0": [9.0, 1.0, 1.0, 1.0]}
    with mut.lazy():
        mut.resize({"0": 1}, values=lone, init="split")
        with pytest.raises(PlanMismatchError, match=r"in dim 1 are copies by one plan, and the second removes some"):
            mut.resize({"0": -1}, values={"0": [-9.0, 1.0, 1.0, 1.0, 1.0]})
        assert_untouched(before, snapshot(model))
    model = dense()
    mut, before = sm.Mutator(model, X), snapshot(model)
    with mut.lazy():
        mut.resize({"0": 1})
        with pytest.raises(PlanMismatchError, match="copies units that are new by the first"):
            mut.resize({"0": 1}, values={"0": [1.0, 1.0, 1.0, 1.0, 9.0]}, init="split")
        assert_untouched(before, snapshot(model))


def test_units_without_copies_may_go_afterwards():
    model, y = dense(), None
    mut = sm.Mutator(model, X)
    with torch.no_grad():
        model[2].weight[:, 3] = 0  # nothing reads it
    y = model(X)
    with mut.lazy() as pending:
        mut.resize({"0": 1}, values={"0": [9.0, 1.0, 1.0, 1.0]}, init="split")
        mut.resize({"0": -1}, values={"0": [9.0, 1.0, 1.0, -9.0, 1.0]})
    assert pending.plan.sizes["0"] == (4, 4) and pending.plan.copies["0.bias"][0].of == [-1, -1, -1, 0]
    assert_same([model(X).detach()], [y.detach()])
