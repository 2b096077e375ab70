"""Values tracked in training: against the metrics that run batches, against numbers by hand, and through plans."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import warnings
import weakref
from dataclasses import replace
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from nets import NETS
from oracles import randomise
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.apply.tensors import select
from solvemut.edits import Selection
from solvemut.values import data, unit_values
from solvemut.values.places import EPS, check, followed, units_at, unseen

ORACLE = {True: sm.values.activation, False: sm.values.taylor}
MODES = pytest.mark.parametrize("activation", [True, False])


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(*batch) - 1).square().mean()


def backward(model: nn.Module, *batch: torch.Tensor) -> None:
    loss(model, batch).backward()


def mlp(seed: int = 0) -> nn.Sequential:
    return randomise(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double(), seed
    )


def batch_of(seed: int = 0, n: int = 5) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hooks_of(model: nn.Module) -> dict[str, Any]:
    """Every hook of every module and parameter, by kind."""
    found: dict[str, Any] = {}
    for name, m in model.named_modules():
        found[name] = {k: dict(v) for k, v in vars(m).items() if "hooks" in k and v is not None}
    for name, p in model.named_parameters():
        found[f"parameter {name}"] = (p._backward_hooks, p._post_accumulate_grad_hooks)
    return found


def placed(values: np.ndarray, graph: Any, activation: bool) -> np.ndarray:
    """The values of what some place shows; 0 for the rest."""
    shown = np.zeros(len(values))
    for units in units_at(graph.model, graph, activation).values():
        shown[units] = 1
    shown[0] = 0
    return shown * values


def on_batch(activation: bool, model: nn.Module, batch: tuple[Any, ...]) -> np.ndarray:
    return unit_values(ORACLE[activation]([batch], loss), model, sm.capture(model, batch))


# -- the same as the metrics of batches --------------------------------------------------------------------------------

SAMPLE = [
    *("Mlp", "Chain1d", "UpGrouped", "DepthwiseTwice", "Grouped", "GroupedChain", "GroupNorm", "Embedding"),
    *("Residual", "Siamese", "Glu", "ChunkSwapped", "FusedQkv", "Stacked", "TiedHead", "EncoderLayer"),
]


@MODES
@pytest.mark.parametrize("name", SAMPLE)
def test_one_batch_is_worth_what_the_metric_of_batches_says(name, activation):
    n = NETS[name]
    model, args = randomise(n.model()).eval(), n.args()
    graph = sm.capture(model, args)
    wanted = placed(unit_values(ORACLE[activation]([args], loss), model, graph), graph, activation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = sm.values.track(model, args, activation=activation, decay=0)
    backward(model, *(batch * 2 if batch.is_floating_point() else batch for batch in args))  # forgotten
    model.zero_grad()
    backward(model, *args)
    found = placed(unit_values(tracker, model, graph), graph, activation)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-13)
    assert (wanted > 0).sum() > 2


class WrittenOver(nn.Module):
    """In-place operations behind layers: what counts is what the layer put out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        y = torch.relu_(self.a(x))
        z = self.b(y)
        z += y
        return self.c(z)


class HiddenWrite(WrittenOver):
    """The write goes through a view, where the trace does not say what it hits."""

    def forward(self, x):
        z = self.b(torch.relu(self.a(x)))
        z.view(2, -1).mul_(3)
        return self.c(z)


def by_hand(model: nn.Module, out: torch.Tensor, value: torch.Tensor) -> np.ndarray:
    return (out * torch.autograd.grad(value, out)[0]).abs().mean(0).detach().numpy()


def test_outputs_that_are_written_over():
    model, x = randomise(WrittenOver().double(), 3), batch_of()
    tracker = sm.values.track(model, x)
    backward(model, x)
    a = model.a(x)
    b = model.b(a.relu())
    value = (model.c(b + a.relu()) - 1).square().mean()
    np.testing.assert_allclose(tracker.averages["b"].numpy(), by_hand(model, b, value), rtol=1e-10)
    np.testing.assert_allclose(
        unit_values(tracker, model, sm.capture(model, x)), on_batch(True, model, (x,)), rtol=1e-9
    )


def test_a_write_that_the_trace_does_not_show_costs_one_observation():
    model, x = randomise(HiddenWrite().double(), 3), batch_of(n=4)
    tracker = sm.values.track(model, x)
    backward(model, x)
    assert (tracker.averages["b"] == EPS).all() and (tracker.averages["c"] != EPS).all()
    tracker_of_two = tracker.averages["c"]
    backward(model, x)
    b = model.b(torch.relu(model.a(x)))
    value = (model.c(b * 3) - 1).square().mean()
    np.testing.assert_allclose(tracker.averages["b"].numpy(), by_hand(model, b, value), rtol=1e-10)
    assert torch.allclose(tracker.averages["c"], tracker_of_two, rtol=1e-12)


# -- averages ----------------------------------------------------------------------------------------------------------


def linear_to_mean() -> nn.Module:
    """Of input x, unit k of layer 0 is w_k x, and the gradient 1/3: its value is |w_k x| / 3."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [6.0], [-9.0]]))
        model[1].weight.fill_(1 / 3)
    return model


def feed(model: nn.Module, x: float) -> None:
    model(torch.full((1, 1), x, dtype=torch.float64)).sum().backward()


def test_averages_by_hand():
    """new average = decay * old + (1 - decay) * new, and the first observation is taken whole."""
    model = linear_to_mean()
    tracker = sm.values.track(model, torch.ones(1, 1, dtype=torch.float64), decay=0.7)
    assert tracker.averages["0"].tolist() == [EPS] * 3
    for x, wanted in ((1, 1), (5, 0.7 * 1 + 0.3 * 5), (-2, 0.7 * 2.2 + 0.3 * 2)):
        feed(model, x)
        np.testing.assert_allclose(tracker.averages["0"], np.array([1, 2, 3]) * wanted, rtol=1e-12)


def test_a_larger_decay_forgets_more_slowly():
    left = []
    for decay in (0.0, 0.5, 0.9):
        model = linear_to_mean()
        tracker = sm.values.track(model, torch.ones(1, 1, dtype=torch.float64), decay=decay)
        feed(model, 1)
        feed(model, 0)
        left.append(float(tracker.averages["0"][0]))
    np.testing.assert_allclose(left, [0.0, 0.5, 0.9], atol=1e-15)


@MODES
def test_every_third_forward_is_observed(activation, monkeypatch):
    model = linear_to_mean()
    tracker = sm.values.track(model, torch.ones(1, 1, dtype=torch.float64), activation=activation, every=3, decay=0.5)
    calls = []
    for part in ("position_means", "slice_sums"):
        real = getattr(sm.values.running, part)
        monkeypatch.setattr(sm.values.running, part, lambda *a, real=real: calls.append(1) or real(*a))
    key, seen = ("0" if activation else "0.weight[dim 0]"), []
    for x in (1, 50, 50, 3, 50, 50, 5):
        before = len(calls)
        feed(model, x)
        seen.append(len(calls) > before)
    assert seen == [True, False, False, True, False, False, True] and tracker.calls == 7
    # |x|, or |w * gradient| with gradient x/3, of units 1, 2, 3: averages 1, then 2, then 3.5
    np.testing.assert_allclose(tracker.averages[key], [3.5, 7, 10.5], rtol=1e-12)


def test_a_forward_that_no_backward_follows_does_not_use_up_a_turn():
    """Evaluation with gradients on, between training steps, at the same rhythm as `every`."""
    model = linear_to_mean()
    tracker = sm.values.track(model, torch.ones(1, 1, dtype=torch.float64), every=2)
    for x in (1, 2, 3):
        model(torch.full((1, 1), 100.0, dtype=torch.float64))
        feed(model, x)
    assert (tracker.averages["0"] < 10).all() and (tracker.averages["0"] >= 1).all()


# -- what is one observation -------------------------------------------------------------------------------------------


@MODES
def test_runs_without_gradients_do_nothing(activation):
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x, activation=activation)
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    assert tracker.calls == 0
    model.eval()
    model(x)
    assert all((a == EPS).all() for a in tracker.averages.values())
    with pytest.raises(sm.errors.ValuesError, match=r"has seen no gradient yet of 0.* in 1 forwards"):
        unit_values(tracker, model, sm.capture(model, x))


@MODES
def test_metrics_captures_and_solves_are_no_training(activation):
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut, activation=activation, decay=0.5)
    backward(model, x)
    before = tracker.state_dict()
    for values in (None, sm.values.taylor([(x,)], loss), sm.values.activation([(x,)], loss), tracker):
        mut.prune(params=0.6, values=values, dry_run=True)
        sm.capture(model, x)
    with pytest.raises(sm.errors.InfeasibleError):
        mut.prune(params=1 / 10**6, values=tracker)
    after = tracker.state_dict()
    assert after["calls"] == before["calls"] == 1 and after["seen"] == before["seen"]
    assert all(torch.equal(a, after["average"][k]) for k, a in before["average"].items())


def test_a_layer_called_twice_counts_the_sum_over_its_calls():
    n = NETS["Siamese"]
    model, args = randomise(n.model()).eval(), n.args()
    tracker = sm.values.track(model, args)
    outs: list[torch.Tensor] = []
    name = next(k for k in tracker.averages)
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: outs.append(o))
    loss(model, args).backward()
    handle.remove()
    found = tracker.averages[name]
    twin = [o.detach().requires_grad_() for o in outs]
    assert len(twin) == 2
    again = iter(twin)
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: next(again))
    value = loss(copy.deepcopy(model), args)
    handle.remove()
    wanted: Any = 0
    for o, g in zip(twin, torch.autograd.grad(value, twin), strict=True):
        c = (o * g).movedim(1, -1) if o.dim() > 2 else o * g
        wanted = wanted + c.reshape(len(c), -1, c.shape[-1]).mean(1).abs().mean(0)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-10, atol=1e-15)


@MODES
def test_several_backward_passes_through_one_forward_are_one_observation(activation):
    """The parts of a loss have gradients of either sign; what counts is their sum."""
    one, two, x = mlp(), mlp(), batch_of()
    trackers = [sm.values.track(m, x, activation=activation) for m in (one, two)]
    one(x).square().sum().backward()
    out = two(x)
    (3 * out.square().sum()).backward(retain_graph=True)
    (-2 * out.square().sum()).backward()
    for key, wanted in trackers[0].averages.items():
        torch.testing.assert_close(trackers[1].averages[key], wanted, rtol=1e-9, atol=1e-13)


@MODES
def test_gradient_accumulation_observes_each_part(activation):
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x, activation=activation, decay=0.5)
    backward(model, x)
    backward(model, 2 * x)  # .grad holds the sum of both by now
    for key, found in tracker.averages.items():
        alone = []
        for part in (x, 2 * x):
            twin = mlp()
            one = sm.values.track(twin, x, activation=activation)
            backward(twin, part)
            alone.append(one.averages[key])
        torch.testing.assert_close(found, (alone[0] + alone[1]) / 2, rtol=1e-10, atol=1e-15)


def test_two_forwards_before_one_backward_are_two_observations():
    model, one = linear_to_mean(), torch.ones(1, 1, dtype=torch.float64)
    tracker = sm.values.track(model, one, decay=0.5)
    (model(one) + model(3 * one)).sum().backward()
    np.testing.assert_allclose(tracker.averages["0"], np.array([1, 2, 3]) * 2.0)
    assert tracker.calls == 2


def test_layers_called_by_another_method():
    """Without the model's own forward, a forward begins where gradients have come since, or at the same layer."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)

        def forward(self, x):
            return self.b(self.a(x))

        def project(self, x):
            return self.b(self.a(x))

    model = Two().double()
    model.load_state_dict(dict(zip(("a.weight", "b.weight"), linear_to_mean().state_dict().values(), strict=True)))
    one = torch.ones(1, 1, dtype=torch.float64)
    tracker = sm.values.track(model, one, every=2, decay=0.5)
    for x in (1, 50, 3, 50, 3):
        model.project(x * one).sum().backward()
    np.testing.assert_allclose(tracker.averages["a"], np.array([1, 2, 3]) * (0.5 * 2 + 0.5 * 3))
    assert tracker.calls == 5


def test_observations_that_are_not_finite_are_left_out():
    model = linear_to_mean()
    tracker = sm.values.track(model, torch.ones(1, 1, dtype=torch.float64), decay=0.5)
    for x in (float("inf"), 1, float("nan"), 3, -float("inf")):
        feed(model, x)
    np.testing.assert_allclose(tracker.averages["0"], [2, 4, 6])
    assert int(tracker.state_dict()["seen"]["0"]) == 2


def test_autocast():
    model, x = mlp().float(), batch_of().float()
    tracker = sm.values.track(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model, (x,))
    (value * 2.0**10).backward()
    wide = on_batch(True, mlp(), (batch_of(),))
    found = unit_values(tracker, model, sm.capture(model, x)) / 2.0**10
    np.testing.assert_allclose(found, wide, rtol=0.15, atol=0.02 * wide.max())
    assert tracker.averages["0"].dtype == torch.float64


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        y = checkpoint(self.inner[:4], x, use_reentrant=self.reentrant) if self.training else self.inner[:4](x)
        return self.inner[4](y)


@MODES
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_checkpoint_runs_again_does_not_count_twice(activation, reentrant, whole):
    plain, x = mlp(), batch_of().requires_grad_()
    wanted = sm.values.track(plain, x.detach(), activation=activation, decay=0.5)
    model = mlp() if whole else Checkpointed(mlp(), reentrant)
    tracker = sm.values.track(model, x.detach(), activation=activation, decay=0.5)
    for scale in (1, 3):
        backward(plain, scale * x)
        if whole:
            (checkpoint(model, scale * x, use_reentrant=reentrant) - 1).square().mean().backward()
        else:
            backward(model, scale * x)
    assert tracker.calls == wanted.calls == 2
    for key, average in wanted.averages.items():
        torch.testing.assert_close(tracker.averages[key if whole else f"inner.{key}"], average)


def test_parameters_that_are_thawed_later_are_observed_from_then_on():
    model, x = mlp(), batch_of()
    model[0].weight.requires_grad_(False)
    tracker = sm.values.track(model, x, activation=False, decay=0)
    backward(model, x)
    assert (tracker.averages["0.weight[dim 0]"] == EPS).all() and (tracker.averages["0.bias[dim 0]"] != EPS).all()
    model[0].weight.requires_grad_(True)
    model.zero_grad()
    backward(model, x)
    wanted = on_batch(False, model, (x,))
    np.testing.assert_allclose(unit_values(tracker, model, sm.capture(model, x)), wanted, rtol=1e-9)


def test_what_the_loss_does_not_depend_on_is_named():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.a(x)), self.d(self.c(x))

    model, x = Aside(), torch.randn(3, 4)
    tracker = sm.values.track(model, x)
    model(x)[0].sum().backward()
    with pytest.raises(sm.errors.ValuesError, match="no gradient yet of c, in 1 forwards"):
        sm.prune(model, x, params=0.7, values=tracker)
    model(x)[1].sum().backward()
    sm.prune(model, x, params=0.7, values=tracker)
    assert model.a.out_features + model.c.out_features < 14


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


# -- nothing is disturbed ----------------------------------------------------------------------------------------------


@MODES
def test_outputs_gradients_and_random_state_are_the_same(activation):
    def run(tracked: bool) -> list[torch.Tensor]:
        model = nn.Sequential(*mlp()[:4], nn.Dropout(0.5), mlp()[4])
        tracker = sm.values.track(model, batch_of(), activation=activation) if tracked else None
        torch.manual_seed(0)
        out = model(batch_of())
        out.square().sum().backward()
        if tracker is not None:
            assert (tracker.averages.keys() >= {"0", "2", "5"}) is activation
        return [out.detach(), *(p.grad for p in model.parameters()), torch.rand(3)]

    assert all(map(torch.equal, run(True), run(False)))


@MODES
def test_the_graph_is_not_kept_alive(activation):
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x, activation=activation)
    kept = []
    handle = model[2].register_forward_hook(lambda m, i, o: kept.append(weakref.ref(o)))
    backward(model, x)
    backward(model, x)
    gc.collect()
    assert len(kept) == 2 and all(ref() is None for ref in kept)
    assert not any(t.requires_grad for t in tracker.averages.values())
    handle.remove()


@MODES
def test_remove_leaves_no_trace(activation):
    model, x = mlp(), batch_of()
    model[0].register_forward_hook(nothing)
    model[2].weight.register_hook(lambda g: None)
    before = hooks_of(model)
    mut = sm.Mutator(model, x)
    with sm.values.track(mut, activation=activation) as tracker:
        assert hooks_of(model) != before and mut.trackers == (tracker,)
        backward(model, x)
    assert hooks_of(model) == before and mut.trackers == ()
    numbers = tracker.averages
    backward(model, 3 * x)
    tracker.remove()
    assert all(torch.equal(a, numbers[k]) for k, a in tracker.averages.items())
    assert mut.prune(params=0.6, values=tracker).values == tracker.name  # the numbers are still values


def nothing(*args: Any) -> None:
    """A hook of somebody else's."""


@MODES
def test_copies_and_files_of_the_model_leave_the_tracker_alone(activation):
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x, activation=activation)
    backward(model, x)
    before = tracker.averages
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"Tracker" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    small = io.BytesIO()
    torch.save(model.state_dict(), small)
    ema = torch.optim.swa_utils.AveragedModel(model)
    for other in (twin, loaded, ema):
        backward(other, 5 * x)
        assert all(p.grad is not None for p in other.parameters())
    assert tracker.calls == 1 and all(torch.equal(a, before[k]) for k, a in tracker.averages.items())
    backward(model, x)
    assert tracker.calls == 2


@MODES
def test_copies_and_files_of_the_tracker_have_the_numbers(activation):
    model, x = mlp(), batch_of()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut, activation=activation)
    backward(model, x)
    values, hooks = unit_values(tracker, model, mut.graph), hooks_of(model)
    for other in (copy.deepcopy(tracker), pickle.loads(pickle.dumps(tracker))):
        assert (unit_values(other, model, mut.graph) == values).all() and repr(other).endswith("removed>")
        backward(model, x)
        assert other.calls == 1 and hooks_of(model) == hooks
        other.remove()
        assert hooks_of(model) == hooks
    assert mut.copy().trackers == () and mut.trackers == (tracker,)


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_models(when):
    model, x = mlp(), batch_of()
    if when == "before":
        for compiled in (torch.compile(model, backend="eager"), nn.Sequential(torch.compile(model, backend="eager"))):
            with pytest.raises(sm.errors.ValuesError, match="is compiled, and compiled code runs no hooks"):
                sm.values.track(compiled, x)
        return
    tracker = sm.values.track(model, x)
    backward(torch.compile(model, backend="eager", fullgraph=True), x)
    assert tracker.calls == 0 and all((a == EPS).all() for a in tracker.averages.values())
    backward(model, x)
    assert tracker.calls == 1


def replica_of(module: nn.Module) -> Any:
    """As torch.nn.parallel.replicate makes it, on the same device."""
    replica = module._replicate_for_data_parallel()
    replica._parameters.update(module._parameters)
    for name, child in module.named_children():
        replica._modules[name] = replica_of(child)
    return replica


def test_replicas_are_told_of_and_not_observed():
    model, x = mlp(), batch_of()
    tracker = sm.values.track(nn.DataParallel(model), x)
    replica = replica_of(model)
    with pytest.warns(UserWarning, match="DataParallel runs replicas"):
        replica(x)
    assert tracker.calls == 0
    backward(model, x)
    assert tracker.calls == 1


def test_function_transforms_run_through():
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x)
    wanted = torch.autograd.grad(loss(model, (x,)), list(model.parameters()))
    before = tracker.averages
    params = {k: p.detach() for k, p in model.named_parameters()}
    grads = torch.func.grad(lambda p: (torch.func.functional_call(model, p, (x,)) - 1).square().mean())(params)
    assert all(torch.allclose(g, grads[k]) for g, k in zip(wanted, params, strict=True))
    each = torch.func.vmap(lambda row: torch.func.functional_call(model, params, (row,)))(x)
    assert torch.allclose(each, model(x))
    assert all(torch.isfinite(a).all() and len(a) == len(before[k]) for k, a in tracker.averages.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, none here")
@MODES
def test_on_an_accelerator(activation):
    model, x = mlp().cuda(), batch_of().cuda()
    mut = sm.Mutator(model, x)
    tracker = sm.values.track(mut, activation=activation)
    backward(model, x)
    assert all(a.device.type == "cuda" for a in tracker.averages.values())
    np.testing.assert_allclose(unit_values(tracker, model, mut.graph), on_batch(activation, model, (x,)), rtol=1e-8)
    mut.prune(params=0.6, values=tracker)
    backward(model, x)


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: sm.values.track(mlp()), "args: give example inputs"),
        (lambda: sm.values.track("model", batch_of()), "track takes a Mutator"),
        (lambda: sm.values.track(sm.Mutator(mlp(), batch_of()), batch_of()), "has example inputs already"),
        (lambda: sm.values.track(mlp(), batch_of(), every=0), "every: give an int of at least 1"),
        (lambda: sm.values.track(mlp(), batch_of(), decay=1), "decay: give a number"),
        (lambda: sm.values.track(mlp(), batch_of(), decay=-0.1), "decay: give a number"),
        (lambda: sm.values.track(mlp(), batch_of(), normalize="median"), "normalize"),
        (lambda: unit_values(sm.values.track, mlp(), sm.capture(mlp(), batch_of())), "was not called"),
    ],
)
def test_arguments_that_make_no_sense(given, message):
    with pytest.raises(sm.errors.ValuesError, match=message):
        given()


def test_a_state_of_another_model_is_refused_as_values():
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x)
    backward(model, x)
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).double()
    with pytest.raises(sm.errors.ValuesError, match="made for another model"):
        unit_values(tracker, other, sm.capture(other, x))


def test_units_that_no_layer_puts_out_are_told_of():
    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(8, 4)), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(nn.functional.linear(x, self.w).relu())

    model, x = Weight(), torch.randn(3, 4)
    with pytest.warns(UserWarning, match=r"no layer's output has the units of w .* activation=False"):
        tracker = sm.values.track(model, x)
    backward(model, x)
    graph = sm.capture(model, x)
    np.testing.assert_allclose(unit_values(tracker, model, graph)[graph["w"].units], EPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker = sm.values.track(model, x, activation=False)
    backward(model, x)
    assert (unit_values(tracker, model, graph)[graph["w"].units] > EPS).all()


# -- it is worth something ---------------------------------------------------------------------------------------------


def trained(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Any]:
    """A net that has learnt to tell which of three directions is the longest, tracked while it did."""
    torch.manual_seed(seed)
    x = torch.randn(256, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    tracker = sm.values.track(model, x[:2], decay=0.9)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y, tracker


def test_without_its_most_valuable_units_a_net_is_worse_than_without_its_least_valuable():
    harm = []
    for seed in range(5):
        model, x, y, tracker = trained(seed)
        graph = sm.capture(model, x[:2])
        worth = tracker.averages["0"].numpy()
        both = []
        for values in (tracker, {"0": worth.max() - worth}):
            small = copy.deepcopy(model)
            plan = sm.prune(small, x[:2], values=values, constraints=lambda g: [g["0"].out == 16])
            assert len(plan.indices["0.weight"][0]) == 16
            with torch.no_grad():
                both.append(float(nn.functional.cross_entropy(small(x), y)))
        harm.append(both[1] - both[0])
        assert graph["0"].nout == 32
    assert all(h > 0.1 for h in harm), harm


def test_data_metrics_say_that_they_run():
    seen = []

    def told(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(data.measuring())
        return loss(model, batch)

    model, x = mlp(), batch_of()
    unit_values(sm.values.taylor([(x,)], told), model, sm.capture(model, x))
    assert seen == [True] and not data.measuring()
