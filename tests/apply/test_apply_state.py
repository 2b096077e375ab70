"""What hangs on a model follows it or is refused: several optimizers, LBFGS, EMA copies, formats, inference mode."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from oracles import assert_same, outputs, randomise, tensors
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from training import assert_untouched, planned, sliced, snapshot, step, training_set

import solvemut as sm


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: copy.deepcopy(s) for p, s in optimizer.state.items()}


def assert_state_follows(plan: Any, model: nn.Module, optimizer: torch.optim.Optimizer, before: dict[str, Any]) -> None:
    named = dict(model.named_parameters())
    assert before and {n for n, p in named.items() if p in optimizer.state} == set(before)
    for n, old in before.items():
        for k, v in optimizer.state[named[n]].items():
            if isinstance(v, torch.Tensor) and v.dim():
                assert torch.equal(v.double(), sliced(old[k], plan.indices.get(n, {}))), (n, k)


# -- several optimizers, and others' -----------------------------------------------------------------------------------


def test_the_state_of_each_of_several_optimizers_follows():
    """Two that share out the parameters, and a third that holds some of them once more."""
    model, args = training_set("Residual")
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizers = [
        torch.optim.AdamW(decay, lr=1e-3),
        torch.optim.SGD(rest, lr=1e-2, momentum=0.9),
        torch.optim.RMSprop(model.a.parameters(), lr=1e-4),
    ]
    for optimizer in optimizers:
        step(model, args, optimizer)
    before = [state_of(model, o) for o in optimizers]
    plan = sm.prune(model, args, params=0.6, values=sm.values.random(0), optimizer=optimizers)
    for optimizer, old in zip(optimizers, before, strict=True):
        assert_state_follows(plan, model, optimizer, old)
        assert np.isfinite(step(model, args, optimizer))


def test_an_optimizer_given_twice_changes_once():
    model, args = training_set("Residual")
    optimizer = torch.optim.Adam(model.parameters())
    step(model, args, optimizer)
    before = state_of(model, optimizer)
    plan = planned(model, args)
    plan.apply(model, (optimizer, optimizer))
    assert_state_follows(plan, model, optimizer, before)


@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_of_another_model_is_refused(several):
    model, args = training_set("Residual")
    own = torch.optim.Adam(model.parameters())
    step(model, args, own)
    other = torch.optim.Adam(copy.deepcopy(model).parameters())
    plan = planned(model, args)
    before = snapshot(model, own)
    with pytest.raises(sm.errors.PlanMismatchError, match=r"Adam holds none of the parameters of Residual"):
        plan.apply(model, [own, other] if several else other)
    assert_untouched(before, snapshot(model, own))


@pytest.mark.parametrize("given", [torch.optim.Adam, "adam", 3, [None], {}, [["a"]]])
def test_what_is_no_optimizer_is_refused(given):
    model, args = training_set("Residual")
    plan = planned(model, args)
    before = snapshot(model)
    if given == {}:
        given = {"a": torch.optim.Adam(model.parameters())}
    with pytest.raises(sm.errors.RequestError, match=r"give a torch\.optim\.Optimizer or a list of them"):
        plan.apply(model, given)
    assert_untouched(before, snapshot(model))


class Nested(torch.optim.SGD):
    """Keeps lists and dicts of tensors, as optimizers with a history do."""

    def fill(self, shape_of: Any = lambda p: p.shape) -> None:
        for p in self.param_groups[0]["params"]:
            made = [torch.randn(shape_of(p)).to(p) for _ in range(3)]
            self.state[p] = {"history": made[:2], "more": {"deep": (made[2], 7)}, "step": torch.tensor(3.0)}


def test_state_in_lists_and_dicts_follows():
    model, args = training_set("Dense")
    optimizer = Nested(model.parameters(), lr=1e-3)
    optimizer.fill()
    before = state_of(model, optimizer)
    plan = planned(model, args)
    plan.apply(model, optimizer)
    for n, p in model.named_parameters():
        dims, new, old = plan.indices.get(n, {}), optimizer.state[p], before[n]
        for a, b in (
            (new["history"][0], old["history"][0]),
            (new["history"][1], old["history"][1]),
            (new["more"]["deep"][0], old["more"]["deep"][0]),
        ):
            assert torch.equal(a.double(), sliced(b, dims))
        assert type(new["more"]["deep"]) is tuple and new["more"]["deep"][1] == 7 and new["step"] == 3


@pytest.mark.parametrize("kind", ["flat", "global"])
def test_state_that_cannot_follow_is_refused(kind):
    model, args = training_set("Dense")
    optimizer = Nested(model.parameters(), lr=1e-3)
    optimizer.fill((lambda p: (p.numel(),)) if kind == "flat" else lambda p: p.shape)
    if kind == "global":
        optimizer.state["memory"] = {"flat": torch.ones(99)}
    plan = planned(model, args)
    before = snapshot(model)
    with pytest.raises(sm.errors.PlanMismatchError, match="history" if kind == "flat" else "'memory'"):
        plan.apply(model, optimizer)
    assert_untouched(before, snapshot(model))


def test_schedulers_and_a_gradient_scaler_go_on():
    model, args = training_set("Residual")
    model, args = model.float(), tuple(a.float() for a in args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rates_of = torch.optim.lr_scheduler
    schedules = [rates_of.CosineAnnealingLR(optimizer, 10), rates_of.LinearLR(optimizer)]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def scaled_step() -> None:
        optimizer.zero_grad()
        scaler.scale(model(*args).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        for schedule in schedules:
            schedule.step()

    scaled_step()
    rates = [schedules[0].get_last_lr(), scaler.get_scale()]
    sm.prune(model, args, params=0.5, optimizer=optimizer)
    assert rates == [schedules[0].get_last_lr(), scaler.get_scale()]
    for _ in range(3):
        scaled_step()
    assert scaler.get_scale() == 16.0 and schedules[0].last_epoch == 4


# -- LBFGS -------------------------------------------------------------------------------------------------------------


def lbfgs_step(model: nn.Module, args: Any, optimizer: torch.optim.LBFGS) -> float:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(*args).square().mean()
        loss.backward()
        return loss

    return float(optimizer.step(closure).detach())  # type: ignore[arg-type]


def trained_with_lbfgs(steps: int = 2) -> tuple[nn.Module, Any, torch.optim.LBFGS]:
    model, args = training_set("Residual")
    model.eval()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
    for _ in range(steps):
        lbfgs_step(model, args, optimizer)
    return model, args, optimizer


def test_lbfgs_starts_again_and_says_so():
    """Its next steps are those of a new LBFGS on the pruned network."""
    model, args, optimizer = trained_with_lbfgs()
    plan = planned(model, args)
    with pytest.warns(UserWarning, match=r"LBFGS keeps one history over all parameters.*was reset"):
        plan.apply(model, optimizer)
    assert not optimizer.state
    twin = copy.deepcopy(model)
    fresh = torch.optim.LBFGS(twin.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
    losses = [lbfgs_step(model, args, optimizer) for _ in range(3)]
    assert losses == [lbfgs_step(twin, args, fresh) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_lbfgs_that_has_no_history_is_not_warned_about():
    model, args, optimizer = trained_with_lbfgs(0)
    optimizer._numel()  # torch caches the number of elements when it first needs it
    plan = planned(model, args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.apply(model, optimizer)
    assert np.isfinite(lbfgs_step(model, args, optimizer))


@pytest.mark.parametrize("how", ["warning is an error", "program"])
def test_lbfgs_is_put_back_when_apply_fails(how, monkeypatch):
    model, args, optimizer = trained_with_lbfgs()
    plan = planned(model, args)
    before, history = snapshot(model), optimizer.state[optimizer._params[0]]
    saved, numel = copy.deepcopy(history), optimizer._numel_cache

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    if how == "program":
        monkeypatch.setattr("solvemut.apply.plan.verify_program", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError if how == "program" else UserWarning):
            plan.apply(model, optimizer)
    assert_untouched(before, snapshot(model))
    now = optimizer.state[optimizer._params[0]]
    assert now is history and now.keys() == saved.keys() and optimizer._numel_cache == numel
    assert torch.equal(now["d"], saved["d"]) and torch.equal(now["prev_flat_grad"], saved["prev_flat_grad"])
    assert np.isfinite(lbfgs_step(model, args, optimizer))


# -- followers ---------------------------------------------------------------------------------------------------------


def with_average(name: str = "InvertedResidual") -> tuple[nn.Module, Any, torch.optim.Optimizer, AveragedModel]:
    model, args = training_set(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(2):
        step(model, args, optimizer)
        average.update_parameters(model)
    return model, args, optimizer, average


@pytest.mark.parametrize("name", ["InvertedResidual", "ResNeXt", "TiedHead", "FusedQkv"])
def test_an_average_follows_the_model(name):
    """Its own numbers, cut as the model's are; further averages and a swap of the two go on."""
    if name == "TiedHead":
        model, args = training_set(name)
        model = model.double()
        optimizer, average = torch.optim.Adam(model.parameters(), lr=1e-2), AveragedModel(model)
        step(model, args, optimizer)
    else:
        model, args, optimizer, average = with_average(name)
    old = {n: t.detach().clone() for n, t in tensors(average.module).items()}
    count = int(average.n_averaged)
    plan = sm.prune(model, args, params=0.6, values=sm.values.random(0), optimizer=optimizer, followers=[average])
    for n, t in tensors(average.module).items():
        assert torch.equal(t.detach().double(), sliced(old[n], plan.indices.get(n, {}))), n
    assert int(average.n_averaged) == count
    step(model, args, optimizer)
    average.update_parameters(model)
    assert [a.shape for a in outputs(average, args)] == [a.shape for a in outputs(model, args)]
    update_bn([args[0]] if len(args) == 1 else [], average)
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(average.module.state_dict())
    assert_same(outputs(average.eval(), args), outputs(fresh.eval(), args))


def test_a_plain_copy_and_its_optimizer_follow():
    model, args, optimizer, _ = with_average("Residual")
    twin = copy.deepcopy(model).float()
    teacher = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
    step(twin, tuple(a.float() for a in args), teacher)
    before = state_of(twin, teacher)
    plan = planned(model, args)
    plan.apply(model, [optimizer, teacher], followers=(twin,))
    assert {t.dtype for n, t in tensors(twin).items() if "tracked" not in n} == {torch.float32}
    assert_state_follows(plan, twin, teacher, before)
    step(twin, tuple(a.float() for a in args), teacher)


def test_a_follower_that_shares_a_module_with_the_model():
    model, args = training_set("FusedQkv")
    twin = copy.deepcopy(model)
    twin.qkv = model.qkv
    plan = sm.Mutator(model, args).prune(dry_run=True, constraints=lambda g: [g["qkv"].out == 24])
    plan.apply(model, followers=[twin])
    assert twin.qkv is model.qkv and twin.heads == model.heads
    assert_same(outputs(twin, args), outputs(model, args))


@pytest.mark.parametrize("kind", ["another", "wider", "attribute", "no module", "itself"])
def test_a_follower_that_does_not_fit_changes_nothing(kind):
    model, args = training_set("FusedQkv")
    optimizer = torch.optim.Adam(model.parameters())
    step(model, args, optimizer)
    average = AveragedModel(model)
    follower: Any = copy.deepcopy(model)
    if kind == "another":
        follower = AveragedModel(nn.Linear(3, 3))
    elif kind == "wider":
        follower.qkv = nn.Linear(follower.qkv.in_features, 2 * follower.qkv.out_features)
    elif kind == "attribute":
        follower.heads = 17
    elif kind == "no module":
        follower = list(model.parameters())
    else:
        follower = nn.DataParallel(model)
    plan = sm.Mutator(model, args).prune(dry_run=True, constraints=lambda g: [g["qkv"].out == 24])
    before = snapshot(model, optimizer), snapshot(average), snapshot(follower) if kind != "no module" else {}
    with pytest.raises((sm.errors.PlanMismatchError, sm.errors.RequestError), match=r"followers\[1\]"):
        plan.apply(model, optimizer, followers=[average, follower])
    after = snapshot(model, optimizer), snapshot(average), snapshot(follower) if kind != "no module" else {}
    for a, b in zip(before, after, strict=True):
        assert_untouched(a, b)


def test_a_follower_that_would_not_run_changes_nothing():
    """It has the model's tensors, but its forward holds a size that nobody sees."""

    class Stubborn(type(training_set("Residual")[0])):  # type: ignore[misc]
        def forward(self, x):
            assert self.a.weight.shape[0] == 10
            return super().forward(x)

    model, args, optimizer, average = with_average("Residual")
    follower = copy.deepcopy(model)
    follower.__class__ = Stubborn
    plan = planned(model, args)
    assert plan.shapes["a.weight"][1][0] < 10
    before = snapshot(model, optimizer), snapshot(average), snapshot(follower)
    with pytest.raises(sm.errors.SolvemutError, match=r"followers\[1\]"):
        plan.apply(model, optimizer, [average, follower])
    for a, b in zip(before, (snapshot(model, optimizer), snapshot(average), snapshot(follower)), strict=True):
        assert_untouched(a, b)


def test_a_tie_that_the_plan_does_not_know_changes_nothing():
    model = randomise(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    plan = sm.Mutator(model, torch.ones(1, 4)).prune(
        dry_run=True, constraints=lambda g: [g["0"].out == 4, g["2"].out == 2]
    )
    model[4].bias = model[2].bias
    before = snapshot(model)
    with pytest.raises(sm.errors.PlanMismatchError, match=r"2\.bias and 4\.bias are one tensor here"):
        plan.apply(model)
    assert_untouched(before, snapshot(model))


# -- memory formats ----------------------------------------------------------------------------------------------------


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 6, 1), nn.Conv3d(6, 2, 3, padding=1)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", [Volume, Picture])
def test_the_memory_format_stays(kind, last):
    """Of parameters, gradients and optimizer state; a 1x1 kernel, which fits both formats, keeps its strides too."""
    three = kind is Volume
    name = (torch.channels_last_3d if three else torch.channels_last) if last else torch.contiguous_format
    model = randomise(kind()).to(memory_format=name)
    args = (torch.randn(2, 2, *[4] * (3 if three else 2)).to(memory_format=name),)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, args, optimizer)
    plan = planned(model, args)

    def in_format() -> list[bool]:
        found: list[torch.Tensor] = []
        for w in (model.a.weight, model.b.weight, model.c.weight):
            found += [w, w.grad, *(optimizer.state[w][k] for k in ("exp_avg", "exp_avg_sq"))]
        return [t.stride() == torch.empty(t.shape).to(memory_format=name).stride() for t in found]

    before = in_format()
    plan.apply(model, optimizer)
    assert model.a.weight.shape[0] < 6
    assert in_format() == before and sum(before) >= 11  # torch gives the gradient of a 1x1 kernel either format
    step(model, args, optimizer)


def test_a_transposed_parameter_stays_transposed():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight = nn.Parameter(torch.randn(8, 3).t())
    planned(model, (torch.ones(1, 4),)).apply(model)
    assert model[2].weight.stride() == (1, 3) and model[2].weight.shape[1] < 8


# -- sparse gradients --------------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(10, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, t):
        return self.out(self.emb(t).relu())


@pytest.mark.parametrize("coalesced", [False, True])
def test_a_sparse_gradient_follows(coalesced):
    model, args = randomise(Words()), (torch.tensor([1, 2, 2, 7]),)
    sparse = torch.optim.SparseAdam(model.emb.parameters(), lr=1e-2)
    dense = torch.optim.Adam(model.out.parameters(), lr=1e-2)
    for _ in range(2):
        model.zero_grad()
        model(*args).square().sum().backward()
        sparse.step()
        dense.step()
    if coalesced:
        model.emb.weight.grad = model.emb.weight.grad.coalesce()
    grad, before = model.emb.weight.grad.clone(), state_of(model, sparse)
    plan = sm.prune(model, args, params=0.6, optimizer=[sparse, dense])
    new = model.emb.weight.grad
    assert new.layout is torch.sparse_coo and new.is_coalesced() == coalesced and new._nnz() == grad._nnz()
    assert torch.equal(new.to_dense().double(), sliced(grad.to_dense(), plan.indices["emb.weight"]))
    assert_state_follows(plan, model, sparse, before)
    assert model.emb.weight.shape[1] == model.emb.embedding_dim < 8
    sparse.step()
    model.zero_grad()
    model(*args).square().sum().backward()
    sparse.step()
    dense.step()


# -- inference mode and no_grad ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_mode_of_the_caller_leaves_no_mark(within):
    """What apply builds can be trained, whatever the mode it was called in; the mode is the caller's afterwards."""
    model, args = training_set("ResNeXt")
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    average = AveragedModel(model)
    step(model, args, optimizer)
    with within():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        x = tuple(a.clone() for a in args)
        data = [(x[0], torch.zeros(()))]
        plan = sm.prune(
            model,
            x,
            params=0.5,
            optimizer=optimizer,
            followers=[average],
            values=sm.values.taylor(data, lambda y, t: (y - t).square().mean()),
        )
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, inference)
    found = [*tensors(model).values(), *tensors(average).values(), *(p.grad for p in model.parameters())]
    found += [v for s in optimizer.state.values() for v in s.values()]
    assert not any(t.is_inference() for t in found)
    assert plan.shapes["a.weight"][1] != plan.shapes["a.weight"][0]
    assert np.isfinite(step(model, args, optimizer))
    average.update_parameters(model)
    plan.apply(twin)
    assert [a.shape for a in outputs(model, args)] == [a.shape for a in outputs(twin, args)]


@pytest.mark.parametrize("metric", ["taylor", "activation"])
def test_values_are_the_same_in_inference_mode(metric):
    model, args = training_set("Residual")

    def values() -> Any:
        batch = args[0].clone()
        return getattr(sm.values, metric)([batch, batch * 2], lambda m, b: m(b).square().mean())

    wanted = sm.Mutator(model, args).prune(params=0.5, values=values(), dry_run=True)
    with torch.inference_mode():
        found = sm.Mutator(model, args).prune(params=0.5, values=values(), dry_run=True)
    assert found.objective == wanted.objective and found.indices == wanted.indices


def test_a_model_built_in_inference_mode_is_refused_in_words():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        with pytest.raises(sm.errors.CaptureError, match=r"built under torch\.inference_mode"):
            sm.capture(model, torch.ones(1, 4))
    plan = planned(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.ones(1, 4),))
    with pytest.raises(sm.errors.PlanMismatchError, match=r"built under torch\.inference_mode"):
        plan.apply(model)


def test_the_gradient_mode_comes_back_after_a_failure(monkeypatch):
    import solvemut.apply.plan as room

    def fail(*args: Any) -> None:
        torch.set_grad_enabled(False)
        raise ZeroDivisionError

    model, args = training_set("Residual")
    plan = planned(model, args)
    monkeypatch.setattr(room, "verify_program", fail)
    with pytest.raises(ZeroDivisionError):
        plan.apply(model)
    assert torch.is_grad_enabled()
