"""Values tracked in training go with the units through plans, and with the state through files."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from dataclasses import replace
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from nets import NETS
from oracles import randomise
from tracked import MODES, backward, batch_of, hooks_of, mlp
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.apply.tensors import select
from solvemut.edits import Selection
from solvemut.values import unit_values
from solvemut.values.places import EPS, check, followed, unseen

# -- through plans -----------------------------------------------------------------------------------------------------


def followed_by_hand(average: torch.Tensor, index: list[int]) -> list[float]:
    return [float(average[i]) for i in index]


@MODES
def test_prune_in_the_middle_of_training(activation):
    """Histories follow the index lists exactly, and what comes later is averaged into them."""
    model, x = mlp(), batch_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    mut = sm.Mutator(model, x, optimizer=optimizer)
    tracker = sm.values.track(mut, activation=activation, decay=0.75)

    def train(n: int) -> None:
        for k in range(n):
            optimizer.zero_grad()
            backward(model, batch_of(k))
            optimizer.step()

    train(3)
    modules = [m for m in model.modules() if m._forward_hooks]
    for share in (0.7, 0.6):
        before = tracker.averages
        plan = mut.prune(params=share, values=tracker)
        for key, average in before.items():
            name, dim = (f"{key}.weight", 0) if activation else (key.split("[")[0], int(key[-2]))
            index = plan.indices.get(name, {}).get(dim, list(range(len(average))))
            assert tracker.averages[key].tolist() == followed_by_hand(average, index), key
        assert any(len(a) < len(before[k]) for k, a in tracker.averages.items())
        kept, twin = tracker.averages, copy.deepcopy(model)
        one = sm.values.track(twin, x, activation=activation)
        backward(twin, batch_of(0))
        train(1)
        for key, average in tracker.averages.items():
            torch.testing.assert_close(average, 0.75 * kept[key] + 0.25 * one.averages[key], rtol=1e-10, atol=1e-15)
        train(2)
    assert [m for m in model.modules() if m._forward_hooks] == modules
    assert plan.values.startswith("track(") and len(mut.history) == 2


def test_the_plan_keeps_what_was_worth_most():
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut)
    backward(model, x)
    order = tracker.averages["0"].argsort(descending=True)
    plan = mut.prune(values=tracker, constraints=lambda g: [g["0"].out == 3, g["2"].out == 6])
    assert plan.indices["0.weight"][0] == sorted(order[:3].tolist())


@MODES
def test_a_mutation_that_fails_changes_nothing(activation, monkeypatch):
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut, activation=activation)
    backward(model, x)
    before, numbers, hooks = snapshot(model), tracker.averages, hooks_of(model)
    plan = mut.prune(params=0.5, values=tracker, dry_run=True)

    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("solvemut.apply.plan.verify_program", broken)
    with pytest.raises(ZeroDivisionError):
        mut.apply(plan)
    assert_untouched(before, snapshot(model))
    assert tracker.averages.keys() == numbers.keys() and hooks_of(model) == hooks
    assert all(torch.equal(a, numbers[k]) for k, a in tracker.averages.items())
    monkeypatch.undo()
    mut.apply(plan)
    assert len(tracker.averages[next(iter(numbers))]) < len(numbers[next(iter(numbers))])


def test_a_tracker_of_a_model_is_told_of_plans():
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x)
    backward(model, x)
    numbers = tracker.averages["0"]
    plan = sm.prune(model, x, params=0.5, values=tracker)
    with pytest.raises(sm.errors.ValuesError, match=r"units of 0, the tracker 8; .* tracker.follow\(plan\)"):
        unit_values(tracker, model, sm.capture(model, x))
    with pytest.warns(UserWarning, match=r"0 put out a tensor of shape .* call tracker.follow\(plan\)"):
        backward(model, x)
    tracker.follow(plan)
    assert tracker.averages["0"].tolist() == followed_by_hand(numbers, plan.indices["0.weight"][0])
    backward(model, x)
    assert unit_values(tracker, model, sm.capture(model, x)).min() >= 0
    with pytest.raises(sm.errors.PlanMismatchError, match=r"follows every plan once"):
        tracker.follow(plan)
    with pytest.raises(sm.errors.ValuesError, match="takes a Plan"):
        tracker.follow("plan")


def test_a_plan_of_before_tracking_and_from_a_file_is_followed():
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    text = mut.prune(params=0.5, dry_run=True).to_json()
    tracker = sm.values.track(mut)
    backward(model, x)
    numbers = tracker.averages["0"]
    plan = mut.apply(sm.Plan.from_json(text))
    index = plan.indices["0.weight"][0]
    assert len(index) < 8 and tracker.averages["0"].tolist() == followed_by_hand(numbers, index)


def test_a_tracker_that_missed_a_plan_stops_the_next():
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut)
    backward(model, x)
    mut.prune(params=0.6, dry_run=True).apply(model)
    mut = sm.Mutator(model, x)
    mut.trackers = (tracker,)
    before = snapshot(model)
    with pytest.raises(sm.errors.PlanMismatchError, match="the tracker has 8 units of 0"):
        mut.prune(params=0.6)
    assert_untouched(before, snapshot(model))


def test_gradients_of_before_a_plan_come_too_late():
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut)
    backward(model, x)
    late = model(x).sum()
    mut.prune(params=0.5, values=tracker)
    before = tracker.averages
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(RuntimeError):  # it may be refused
            late.backward()
    assert all(torch.equal(a, before[k]) for k, a in tracker.averages.items())


@MODES
@pytest.mark.parametrize(
    "name", ["Grouped", "GroupedChain", "GroupedRegrouped", "FusedQkv", "UpGrouped", "ChunkSwapped"]
)
def test_groups_heads_and_permuted_channels_follow(name, activation):
    """What a tracked mutator has afterwards equals the old numbers found by unit: by the slices themselves."""
    n = NETS[name]
    model, args = randomise(n.model()).eval(), n.args()
    mut = sm.Mutator(model, args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = sm.values.track(mut, activation=activation)
    backward(model, *args)
    assert tracker.averages  # takes in what came
    for key, place in tracker._places.items():  # number every unit, per place
        size = torch.tensor(place.shape).prod()
        tracker._places[key] = place.loaded(torch.arange(1.0, size + 1).reshape(place.shape).double(), place.seen)
    before = {key: place.average for key, place in tracker._places.items()}
    marks = {p: torch.arange(float(t.numel())).reshape(t.shape).double() for p, t in model.named_parameters()}
    plan = mut.prune(params=0.6, values=sm.values.random(3))
    moved = 0
    for key, average in tracker.averages.items():
        tensor = tracker._places[key].tensor
        assert tensor is not None
        where, dim = tensor
        wanted = numbered(marks[where].shape, before[key], dim)
        rest = select(wanted, plan.indices.get(where, {}))
        assert torch.equal(numbered(rest.shape, average, dim), rest), key
        moved += before[key].shape != average.shape
    assert moved
    backward(model, *args)
    assert np.isfinite(unit_values(tracker, model, mut.graph)).all()


def numbered(shape: torch.Size, numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """A tensor of a shape whose entries are the numbers of their slices along a dim."""
    if numbers.dim() == 2:  # one row for each group of dim 0
        rows = numbers.repeat_interleave(shape[0] // len(numbers), 0)
        return rows.reshape(*rows.shape, *[1] * (len(shape) - 2)).expand(shape).clone()
    return numbers.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape).clone()


@MODES
@pytest.mark.parametrize("graph", [True, False])
def test_a_grouped_convolution_that_becomes_depthwise_makes_no_units_any_more(activation, graph):
    n = NETS["GroupedDown"]
    model, args = randomise(n.model()).eval(), n.args()
    mut = sm.Mutator(model, args)
    tracker = sm.values.track(mut, activation=activation)
    backward(model, *args)
    numbers = tracker.averages["0" if activation else "0.weight[dim 0]"]
    for out in (["2"], ["0"]):
        plan = mut.prune(constraints=lambda g, out=out: [g[k].out == 4 for k in out], dry_run=True)
        mut.apply(plan if graph else sm.Plan.from_json(plan.to_json()))
        if not graph:
            mut.graph = sm.capture(model, args)
    assert tracker.averages["0" if activation else "0.weight[dim 0]"].tolist() == followed_by_hand(
        numbers, plan.indices["0.weight"][0]
    )
    anew = sm.values.track(model, args, activation=activation)
    gone = tracker.averages.keys() - anew.averages.keys()
    assert gone == (set() if graph else {"2"} if activation else {"2.weight[dim 1]"})
    values = unit_values(tracker, model, mut.graph)
    assert (values[~mut.graph.coupling.frozen] > 0).all()
    backward(model, *args)
    if graph:
        anew.load_state_dict(tracker.state_dict())


def test_new_units_start_small():
    """-1 in an index list: a new unit, worth float32's eps, or as little as the least positive old one."""
    plan = sm.Mutator(mlp(), batch_of()).prune(params=0.5, dry_run=True)
    grown = Selection({"w": {0: [2, -1, 0, -1]}, "g": {0: [4, 5, -1, -1, 0, 1], 1: [[1, -1], [0, 1], [0, 1]]}})
    plan = replace(plan, selection=grown, shapes={"w": ((3, 5), (4, 5)), "g": ((6, 2), (6, 2))})
    place = unseen((3,), 0, tensor=("w", 0))
    for old, start in (([4.0, 5, 6], EPS), ([4.0, 0, 1e-9], 1e-9), ([0.0, 0, 0], EPS)):
        found = followed(place.loaded(torch.tensor(old).double(), torch.tensor(3)), plan)
        np.testing.assert_allclose(found.average, [old[2], start, old[0], start], rtol=1e-6)
        assert int(found.seen) == 3
    grouped = unseen((3, 2), 1, tensor=("g", 1)).loaded(torch.arange(1.0, 7).reshape(3, 2).double(), torch.tensor(1))
    np.testing.assert_allclose(followed(grouped, plan).average, [[6, EPS], [EPS, EPS], [1, 2]], rtol=1e-6)


def test_units_that_stand_in_several_parameters_follow_by_position():
    """A layer's output whose units no parameter has in this order."""
    plan = sm.Mutator(mlp(), batch_of()).prune(params=0.5, dry_run=True)
    a, b = plan.indices["0.weight"][0], plan.indices["2.weight"][0]
    stands = tuple(("0.weight", 0, k) for k in range(8)) + (("", 0, 0),) + tuple(("2.weight", 0, k) for k in range(6))
    place = unseen((15,), -1, stands=stands).loaded(torch.arange(15.0).double(), torch.tensor(1))
    check("x", place, plan)
    found = followed(place, plan)
    assert found.average.tolist() == [*map(float, a), 8.0, *(9.0 + k for k in b)]
    assert [s for s in found.stands if s[0] == "0.weight"] == [("0.weight", 0, k) for k in range(len(a))]
    with pytest.raises(sm.errors.PlanMismatchError):
        check("x", unseen((9,), -1, stands=(("0.weight", 0, 8),) * 9), plan)


# -- state -------------------------------------------------------------------------------------------------------------


@MODES
def test_state_round_trip(activation):
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x, activation=activation, every=2, decay=0.5)
    for k in range(3):
        backward(model, batch_of(k))
    file = io.BytesIO()
    torch.save(tracker.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    other = sm.values.track(twin, x, activation=activation, every=2, decay=0.5)
    other.load_state_dict(torch.load(file))
    for k in (8, 9):  # forwards 4 and 5, of which the second is observed
        backward(model, batch_of(k))
        backward(twin, batch_of(k))
    assert tracker.calls == other.calls == 5
    for key, average in tracker.averages.items():
        assert torch.equal(other.averages[key], average), key
    assert other.state_dict()["seen"] == tracker.state_dict()["seen"]


def damaged(state: dict[str, Any], how: str) -> Any:
    first = next(iter(state["average"]))
    if how == "no dict":
        return 5
    if how == "missing":
        return {k: v for k, v in state.items() if k != "seen"}
    if how == "kind":
        return {**state, "activation": False}
    if how == "another name":
        return {**state, "average": {**state["average"], "zzz": torch.ones(3)}}
    if how == "length":
        return {**state, "average": {**state["average"], first: torch.ones(3)}}
    if how == "negative":
        return {**state, "average": {**state["average"], first: -state["average"][first]}}
    return {**state, "seen": {**state["seen"], first: torch.tensor(-1)}}


@pytest.mark.parametrize("how", ["no dict", "missing", "kind", "another name", "length", "negative", "counts"])
def test_a_state_of_other_units_is_refused_and_changes_nothing(how):
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x)
    backward(model, x)
    before = tracker.state_dict()
    with pytest.raises(sm.errors.ValuesError):
        tracker.load_state_dict(damaged(before, how))
    after = tracker.state_dict()
    assert after["calls"] == 1 and all(torch.equal(a, after["average"][k]) for k, a in before["average"].items())
    tracker.load_state_dict(before)
