"""Composed plans and lazy blocks: one plan does what several do one after the other."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import reduce
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from oracles import count_params, outputs, randomise
from torch import nn
from training import Injected, assert_untouched, snapshot, step

import solvemut as sm
from solvemut.edits import Edit, Selection, SetAttribute
from solvemut.errors import InfeasibleError, PlanMismatchError, RequestError, SolvemutError
from solvemut.plan import changes_nothing, then


def convs() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2, padding=1),
        nn.Conv2d(12, 12, 3, groups=12, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 6, 1),
        nn.ConvTranspose2d(6, 8, 2, 2),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 2),
    )


IMAGE = (2, 3, 5, 5)


def trained(model: nn.Module, args: tuple[Any, ...]) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        step(model, args, optimizer)
    return optimizer


def held_by(plan: sm.Plan, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a tensor is old, and where it is new and holds just numbers: position by position."""
    old, drawn = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for d, index in plan.indices.get(name, {}).items():
        is_drawn = plan.fills.get(name, {}).get(d) == "drawn"
        rows = index if index and isinstance(index[0], list) else [index] * shape[0]
        for k in range(shape[0]):
            row = rows[k // (shape[0] // len(rows))] if d else index
            for at in [i for i, j in enumerate(row) if j == -1]:
                part = (k, *[slice(None)] * (d - 1), at) if d else (at,)
                old[part] = False
                drawn[part] |= is_drawn
    return old, ~old & ~drawn


def assert_does_the_same(plan: sm.Plan, composed: Any, eager: Any) -> None:
    """Two models with their optimizers: what stays is equal, zeros are zeros, and all state is equal."""
    (a, state_a), (b, state_b) = composed, eager
    mine, yours = dict(a.named_parameters()), dict(b.named_parameters())
    assert {k: p.shape for k, p in mine.items()} == {k: p.shape for k, p in yours.items()}
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        old, numbers = held_by(plan, name, tuple(x.shape)) if x.dim() else (torch.tensor(True), torch.tensor(False))
        assert torch.equal(x[old], y[old]) and torch.equal(x[numbers], y[numbers]), name
        assert torch.isfinite(x).all()
    for name, p in mine.items():
        for key, value in state_a.state[p].items():
            assert torch.equal(value, state_b.state[yours[name]][key]), (name, key)
    for (path, m), (_, n) in zip(a.named_modules(), b.named_modules(), strict=True):
        assert repr(m) == repr(n), path


def ask(mut: sm.Mutator, what: tuple[str, Any]) -> bool:
    kind, amount = what
    try:
        if kind == "prune":
            mut.prune(params=amount, values=sm.values.random(1))
        elif kind == "grow":
            mut.prune(grow=amount, values=sm.values.constant())
        elif kind == "kernel":
            mut.resize_kernel(*amount)
        else:
            mut.resize(amount)
    except (InfeasibleError, RequestError):
        return False
    return True


ASKED = st.one_of(
    st.tuples(st.just("prune"), st.sampled_from([0.5, 0.8])),
    st.tuples(st.just("grow"), st.integers(1, 3)),
    st.tuples(
        st.just("resize"),
        st.dictionaries(st.sampled_from("03678"), st.integers(-3, 3).map(sm.relaxed), min_size=1, max_size=2),
    ),
    st.tuples(st.just("kernel"), st.tuples(st.sampled_from("03478"), st.sampled_from([2, -2, (2, 0), (0, 4)]))),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(ASKED, min_size=2, max_size=4))
def test_composed_plans_do_what_they_do_one_after_the_other(asked):
    model, x = randomise(convs()), (torch.randn(IMAGE, generator=torch.Generator().manual_seed(0)),)
    optimizer = trained(model, x)
    eager = copy.deepcopy((model, optimizer))
    mut = sm.Mutator(eager[0], x, optimizer=eager[1], modes="eval")
    first = mut.graph
    if not [what for what in asked if ask(mut, what)]:
        return
    plan = reduce(then, mut.history)
    again = sm.Plan.from_json(plan.to_json())
    assert again == plan
    again.apply(model, optimizer)
    assert_does_the_same(plan, (model, optimizer), eager)
    assert plan.costs["params"].before == first.params.now and plan.costs["params"].after == count_params(model)
    assert all((a, b) == (first[name].nout, mut.graph[name].nout) for name, (a, b) in plan.sizes.items())
    assert {v.name for v in mut.graph.vertices if v.makes_units} <= plan.sizes.keys()
    step(model, x, optimizer)


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_network_twice_pruned_and_grown_in_one_plan(name):
    n = NETS[name]
    model = randomise(n.model())
    eager, args = copy.deepcopy(model), n.args()
    mut = sm.Mutator(eager, args, n.kw(), modes="eval")
    for what in (("prune", 0.8), ("grow", 2), ("prune", 0.8)):
        ask(mut, what)
    assert mut.history
    plan = reduce(then, mut.history)
    assert sm.Plan.from_json(plan.to_json()) == plan
    plan.apply(model)
    for key, x in model.state_dict().items():
        y = eager.state_dict()[key]
        old, numbers = held_by(plan, key, tuple(x.shape)) if x.dim() else (torch.tensor(True), torch.tensor(False))
        assert torch.equal(x[old], y[old]) and torch.equal(x[numbers], y[numbers]), key
    found, wanted = outputs(model, args, n.kw()), outputs(eager, args, n.kw())
    assert [t.shape for t in found] == [t.shape for t in wanted]


# -- what it says ------------------------------------------------------------------------------------------------------


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


X = torch.ones(1, 4)


def test_index_maps_are_those_of_one_after_the_other():
    """Told by hand, for both dims of one weight."""
    shape = {"a.weight": ((4, 4), (5, 5))}
    after = {"a.weight": ((5, 5), (4, 4))}
    mut = sm.Mutator(dense(), X)
    base = replace(mut.resize({"0": 1}, dry_run=True), sizes={}, costs={}, graph=None, edits=())
    units = {
        "a.weight": {
            0: [[[1, 4, 1]], [[2, 1, 1], [9, 1, 1], [3, 1, 1], [10, 1, 1], [4, 1, 1]]],
            1: [[[11, 4, 1]], [[20, 1, 1], [11, 1, 1], [13, 1, 1], [21, 1, 1], [14, 1, 1]]],
        }
    }
    first = replace(
        base,
        selection=Selection({"a.weight": {0: [1, -1, 2, -1, 3], 1: [-1, 0, 2, -1, 3]}}),
        shapes=shape,
        units=units,
        fills={"a.weight": {0: "drawn", 1: 0.0}},
    )
    units = {"a.weight": {0: [[[1, 5, 1]], [[1, 2, 1], [5, 1, 1], [9, 1, 1]]], 1: [[[11, 5, 1]]]}}
    second = replace(
        base,
        selection=Selection({"a.weight": {0: [0, 1, 4, -1], 1: [0, 1, 3, 4]}}),
        shapes=after,
        units=units,
        fills={"a.weight": {0: "drawn"}},
    )
    plan = then(first, second)
    assert plan.indices == {"a.weight": {0: [1, -1, 3, -1], 1: [-1, 0, -1, 3]}}
    assert plan.shapes == {"a.weight": ((4, 4), (4, 4))} and plan.fills == {"a.weight": {0: "drawn", 1: 0.0}}
    clash = replace(second, fills={"a.weight": {0: 1.0}})
    with pytest.raises(PlanMismatchError, match=r"new slices of a.weight in dim 0 hold drawn .* and 1.0 by the second"):
        then(first, clash)
    with pytest.raises(PlanMismatchError, match=r"the second plan expects a.weight to have shape \(4, 4\), the first"):
        then(first, first)


def test_a_composed_plan_says_what_both_say():
    mut = sm.Mutator(dense(), X)
    params = mut.graph.params.now
    first = mut.prune(params=0.8, values=sm.values.random(0))
    second = mut.resize({"0": 2})
    plan = then(first, second)
    assert plan.sizes["0"] == (6, mut.graph["0"].nout) and plan.alters == ("units go",)
    assert plan.costs["params"].before == params and plan.costs["params"].after == mut.graph.params.now
    held = plan.costs["params"].after <= 0.8 * params
    assert plan.costs["params"].budget == (first.costs["params"].budget if held else None)
    assert plan.program == second.program and plan.outputs == second.outputs and plan.graph is second.graph
    assert plan.seconds == first.seconds + second.seconds
    assert (plan.objective, plan.bound) == (second.objective, second.bound)
    assert then(plan, mut.resize({"2": 1})).sizes["2"] == (5, mut.graph["2"].nout)


def test_there_and_back_is_a_plan_that_changes_nothing():
    model = dense()
    before, mut = snapshot(model), sm.Mutator(model, X)
    with mut.lazy() as pending:
        mut.resize({"0": +3})
        new = [i >= 6 for i in range(9)]
        mut.resize({"0": -3}, values={"0": [-1.0 if is_new else 1.0 for is_new in new]})
    assert mut.graph["0"].nout == 6 and len(pending.plans) == 2
    assert changes_nothing(pending.plan) and pending.plan.alters == () and pending.plan.edits == ()
    assert not changes_nothing(pending.plans[0])
    assert_untouched(before, snapshot(model))
    x = torch.randn(1, 2, 8, 8)
    conv = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    before, mut = snapshot(conv), sm.Mutator(conv, x)
    plan = then(mut.resize_kernel("0", 2), mut.resize_kernel("0", -2))
    assert changes_nothing(plan) and plan.alters == ()
    assert torch.equal(conv[0].weight, before["0.weight"][1])
    plan.apply(conv)
    assert torch.equal(conv[0].weight, before["0.weight"][1])


def test_edits_of_one_thing_become_one():
    heads, other = SetAttribute("attn", "heads", None, 8, 6), SetAttribute("attn", "width", None, 4, 3)
    less, back = SetAttribute("attn", "heads", None, 6, 4), SetAttribute("attn", "heads", None, 6, 8)
    base = replace(sm.Mutator(dense(), X).resize({"0": 1}, dry_run=True), graph=None)
    same = replace(base, selection=Selection(), units={}, fills={}, sizes={}, shapes={}, costs={})
    first = replace(same, edits=(heads, other))
    assert then(first, replace(same, edits=(less,))).edits == (SetAttribute("attn", "heads", None, 8, 4), other)
    assert then(first, replace(same, edits=(back,))).edits == (other,)
    assert then(same, first).edits == first.edits == then(first, same).edits


def test_what_cannot_be_composed_is_refused():
    class Other(Edit):
        kind = "other"
        form = staticmethod(lambda where, x: None)
        apply = back = lambda self, trace=None: self

        def describe(self) -> str:
            return "something else"

    plan = sm.Mutator(dense(), X).resize({"0": 1}, dry_run=True)
    with pytest.raises(PlanMismatchError, match=r"kind 'other' \(something else\) cannot be composed yet"):
        then(plan, replace(plan, edits=(Other(),)))
    with pytest.raises(PlanMismatchError, match="a plan of Net cannot follow one of Sequential"):
        then(plan, replace(plan, root="Net"))


# -- lazy blocks -------------------------------------------------------------------------------------------------------


def test_a_lazy_block_changes_all_at_once():
    model, x = randomise(convs()), (torch.randn(IMAGE),)
    optimizer = trained(model, x)
    follower, eager = copy.deepcopy(model), copy.deepcopy((model, optimizer))
    before = snapshot(model, optimizer)
    mut = sm.Mutator(model, x, optimizer=optimizer, followers=[follower], modes="eval")
    now = sm.Mutator(eager[0], x, optimizer=eager[1], modes="eval")
    with mut.lazy() as pending:
        for m in (mut, now):
            m.resize({"0": -2})
            m.resize_kernel("3", 2)
            m.prune(params=0.8, values=sm.values.random(0))
            m.resize({"6": +2})
        assert mut.graph["0"].nout == now.graph["0"].nout < 8 and mut.graph["6"].nout == now.graph["6"].nout
        assert mut.graph.params.now == now.graph.params.now == pending.plan.costs["params"].after
        assert mut.model is model and mut.history == ()
        assert_untouched(before, snapshot(model, optimizer))
    assert mut.history == (pending.plan,)
    assert mut.history[0].selection == reduce(then, now.history).selection
    assert_does_the_same(pending.plan, (model, optimizer), eager)
    assert all(torch.equal(v, follower.state_dict()[k]) for k, v in model.state_dict().items())
    assert mut.graph.model is model and mut.graph.trace.nodes == now.graph.trace.nodes
    mut.resize({"0": +2})
    assert len(mut.history) == 2
    step(model, x, optimizer)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Injected])
def test_an_exception_in_a_lazy_block_leaves_all_as_it_was(error):
    model, x = randomise(convs()), (torch.randn(IMAGE),)
    optimizer = trained(model, x)
    mut = sm.Mutator(model, x, optimizer=optimizer, modes="eval")
    before, graph = snapshot(model, optimizer), mut.graph
    with pytest.raises(error), mut.lazy():
        mut.resize({"0": -2})
        raise error
    assert mut.graph is graph and mut.history == () and mut.pending is None
    assert_untouched(before, snapshot(model, optimizer))
    mut.resize({"0": -2})


def test_what_fails_at_the_end_leaves_all_as_it_was():
    model = dense()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, (X,), optimizer)
    optimizer.state[model[0].weight]["odd"] = torch.ones(7)
    mut = sm.Mutator(model, X, optimizer=optimizer)
    before, graph = snapshot(model, optimizer), mut.graph
    with pytest.raises(SolvemutError, match=r"the optimizer's odd of 0\.weight"), mut.lazy():
        mut.resize({"0": -2})
    assert mut.graph is graph and mut.history == ()
    assert_untouched(before, snapshot(model, optimizer))


def test_a_refused_request_leaves_a_lazy_block_going():
    model = dense()
    mut = sm.Mutator(model, X)
    with mut.lazy() as pending:
        mut.resize({"0": -2})
        with pytest.raises(InfeasibleError):
            mut.resize({"4": -1})
        with pytest.raises(RequestError, match="lazy blocks cannot be nested"), mut.lazy():
            pass
        with pytest.raises(RequestError, match="copy: this mutator is in a lazy block"):
            mut.copy()
        mut.resize({"2": +1}, dry_run=True)
        mut.resize({"2": -1})
    assert len(pending.plans) == 2 and (model[0].out_features, model[2].out_features) == (4, 4)
    assert repr(pending).startswith("<Pending: 2 plans")


def test_an_empty_lazy_block_is_none():
    mut = sm.Mutator(dense(), X)
    graph = mut.graph
    with mut.lazy() as pending:
        pass
    assert pending.plan is None and pending.plans == () == mut.history and mut.graph is graph


def test_an_initialiser_is_refused_in_a_lazy_block():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    mut = sm.Mutator(model, torch.ones(1, 2, 6, 6))
    with mut.lazy() as pending, pytest.raises(RequestError, match="init= cannot be given in a lazy block"):
        mut.resize_kernel("0", 2, init=lambda name, shape: torch.ones(shape))
    assert pending.plan is None and model[0].kernel_size == (3, 3)
