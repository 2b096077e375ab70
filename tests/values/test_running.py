"""Values tracked in training: against the metrics that run batches, and against numbers by hand."""

from __future__ import annotations

import copy
import warnings
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
from tracked import MODES, ORACLE, backward, batch_of, feed, linear_to_mean, loss, mlp, on_batch, placed

import solvemut as sm
from solvemut import batches
from solvemut.values import unit_values
from solvemut.values.places import EPS

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


@MODES
def test_layers_called_by_another_method(activation):
    """Without the model's own forward, a forward begins where gradients have come since, or with a backward."""

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
    tracker = sm.values.track(model, one, activation=activation, every=2, decay=0.5)
    for x in (1, 50, 3, 50, 3):
        model.project(x * one).sum().backward()
    key = "a" if activation else "a.weight[dim 0]"
    np.testing.assert_allclose(tracker.averages[key], np.array([1, 2, 3]) * (0.5 * 2 + 0.5 * 3))
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
        seen.append(batches.measuring())
        return loss(model, batch)

    model, x = mlp(), batch_of()
    unit_values(sm.values.taylor([(x,)], told), model, sm.capture(model, x))
    assert seen == [True] and not batches.measuring()
