"""Values tracked in training disturb nothing: outputs, copies, files and other users of hooks; what is refused."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from torch import nn
from tracked import MODES, backward, batch_of, hooks_of, loss, mlp, on_batch

import solvemut as sm
from solvemut.values import unit_values
from solvemut.values.places import EPS

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


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_traces_and_exports_by_torch_see_no_hooks():
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x)
    assert torch.equal(torch.jit.trace(model, x)(x), model(x)) and tracker.calls == 1
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x)) and tracker.calls == 2


def test_problems_with_tracked_values_pickle():
    model, x = mlp(), batch_of()
    tracker = sm.values.track(model, x)
    backward(model, x)
    problem = sm.Problem(sm.capture(model, x))
    problem.maximize(tracker)
    problem.add(problem.graph.params <= 60)
    assert pickle.loads(pickle.dumps(problem)).solve().indices == problem.solve().indices


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


@pytest.mark.gpu
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


# -- what is refused and told of ---------------------------------------------------------------------------------------


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
            return self.b(nn.functional.linear(x, self.w))

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
