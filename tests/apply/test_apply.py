"""Applying a plan: all that belongs to a parameter follows it, training goes on, a failure changes nothing."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from oracles import assert_same, masked, outputs, tensors
from torch import nn
from training import Injected, assert_untouched, planned, sliced, snapshot, step, training_set

import solvemut as sm

NAMES = ("Residual", "Dense", "InvertedResidual", "ResNeXt", "ChunkSwapped", "TiedHead")
COMPUTED = ("WeightNormed", "SpectralNormed", "ShuffleOfGroups")
RECURRENT = ("Tagger", "ProjectedLstm", "GruAttention", "LstmCellLoop", "GruCellLoop", "EncoderDecoder")


class Factored(torch.optim.Optimizer):
    """A factored second moment as in Adafactor: a row and a column statistic, and a step count."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                square = p.grad.square() + 1e-6
                if not s:
                    s["step"] = torch.zeros(())
                    shape = [square.shape[:k] + (1,) + square.shape[k + 1 :] for k in range(min(2, p.dim()))]
                    s["row"], s["col"] = (torch.zeros(shape[0]), torch.zeros(shape[-1])) if p.dim() else (None, None)
                    s["exact"] = torch.zeros_like(p)
                s["step"] += 1
                s["exact"].lerp_(p.grad, 0.1)
                if p.dim():
                    s["row"] = s["row"] * 0.9 + 0.1 * square.mean(0, keepdim=True)
                    s["col"] = s["col"] * 0.9 + 0.1 * square.mean(min(1, p.dim() - 1), keepdim=True)
                    p -= group["lr"] * s["exact"] / (s["row"] * s["col"]).pow(0.25)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "factored": Factored,
}


# -- optimizer state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES + COMPUTED + RECURRENT)
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_state_follows_value_by_value(name, kind):
    check_state(name, kind)


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k not in ("momentum", "adamw", "adafactor")])
def test_state_of_every_optimizer_follows(kind):
    check_state("InvertedResidual" if kind == "factored" else "ResNeXt", kind)


def test_factored_state_of_a_grouped_convolution():
    """Its groups keep different inputs, so one row of statistics for all cannot follow: refused, or made to fit."""
    model, args = training_set("ResNeXt")
    optimizer = Factored(model.parameters())
    step(model, args, optimizer)
    plan = planned(model, args)
    assert len({tuple(row) for row in plan.indices["g.weight"][1]}) > 1
    before = snapshot(model, optimizer)
    try:
        plan.apply(model, optimizer)
    except sm.errors.PlanMismatchError:
        assert_untouched(before, snapshot(model, optimizer))
    else:
        assert optimizer.state[model.g.weight]["row"].shape == (1, *model.g.weight.shape[1:])
        assert np.isfinite(step(model, args, optimizer))


def check_state(name: str, kind: str) -> None:
    model, args = training_set(name)
    if name == "TiedHead":
        model = model.double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, args, optimizer)
    plan = planned(model, args)
    names = {id(p): n for n, p in model.named_parameters()}
    before = {names[id(p)]: {k: copy.deepcopy(v) for k, v in s.items()} for p, s in optimizer.state.items()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = [[id(p) for p in g["params"]] for g in optimizer.param_groups]
    plan.apply(model, optimizer)
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == groups
    assert {n: id(p) for n, p in model.named_parameters()} == {n: i for i, n in names.items()}
    changed = 0
    for n, p in model.named_parameters():
        dims = plan.indices.get(n, {})
        assert torch.equal(p.detach().double(), sliced(weights[n], dims))
        assert optimizer.state.get(p, {}).keys() == before.get(n, {}).keys()
        for k, v in optimizer.state.get(p, {}).items():
            old = before[n][k]
            if not isinstance(old, torch.Tensor) or old.dim() == 0:
                assert v == old
                continue
            assert v.dtype == old.dtype and torch.equal(v.double(), sliced(old, dims)), (n, k)
            changed += v.shape != old.shape
    assert changed > 0 or kind == "sgd"
    losses = [step(model, args, optimizer) for _ in range(20)]
    assert all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_adafactor_of_torch_goes_on_or_is_refused_untouched():
    """torch's own factored statistics drop a dim, so they follow no index map by shape alone."""
    model, args = training_set("Residual")
    optimizer = OPTIMIZERS["adafactor"](model.parameters())
    step(model, args, optimizer)
    plan = planned(model, args)
    saved = snapshot(model, optimizer)
    try:
        plan.apply(model, optimizer)
    except sm.errors.PlanMismatchError as e:
        assert "optimizer" in str(e)
        assert_untouched(saved, snapshot(model, optimizer))
    else:
        assert np.isfinite(step(model, args, optimizer))


def test_training_after_pruning_is_training_the_small_network():
    """Momentum and weights follow, so the next steps are those of the masked network, whose zeros are held at zero."""
    model, args = training_set("Dense")
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        step(model, args, optimizer)
    plan = planned(model, args)
    big = masked(model, plan)
    keep = {n: (p != 0).double() for n, p in big.named_parameters()}
    big_optimizer = torch.optim.SGD(big.parameters(), lr=1e-3, momentum=0.9)
    big_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    plan.apply(model, optimizer)
    for _ in range(4):
        step(model, args, optimizer)
        step(big, args, big_optimizer)
        with torch.no_grad():
            for n, p in big.named_parameters():
                p.mul_(keep[n])
    assert_same(outputs(model, args), outputs(big, args))


def test_param_groups_and_schedulers_go_on():
    model, args = training_set("Residual")
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "lr": 1e-4}], lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(model, args, optimizer)
    planned(model, args).apply(model, optimizer)
    step(model, args, optimizer)
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [5e-4, 5e-5]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.01]
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    step(model, args, optimizer)


def test_optimizer_that_has_not_stepped_and_one_that_holds_half():
    model, args = training_set("Residual")
    fresh = torch.optim.Adam(model.parameters())
    planned(model, args).apply(model, fresh)
    assert not fresh.state
    step(model, args, fresh)
    half = torch.optim.Adam(model.a.parameters())
    step(model, args, half)
    planned(model, args, 0.8, 1).apply(model, half)
    assert half.state[model.a.weight]["exp_avg"].shape == model.a.weight.shape
    step(model, args, half)


# -- what else belongs to a parameter ----------------------------------------------------------------------------------


def test_gradients_follow():
    model, args = training_set("ResNeXt")
    model(*args).square().sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    plan = planned(model, args)
    plan.apply(model)
    for n, p in model.named_parameters():
        assert torch.equal(p.grad, sliced(grads[n], plan.indices.get(n, {}))), n


def test_buffers_follow():
    model, args = training_set("InvertedResidual")
    saved = {n: b.clone() for n, b in model.named_buffers()}
    plan = planned(model, args)
    plan.apply(model)
    assert any(b.shape != saved[n].shape for n, b in model.named_buffers())
    for n, b in model.named_buffers():
        assert torch.equal(b.double(), sliced(saved[n], plan.indices.get(n, {}))), n
    assert model.bn.num_features == model.bn.running_mean.numel()


def test_tied_weights_stay_tied():
    model, args = training_set("TiedHead")
    plan = planned(model, args)
    plan.apply(model)
    assert model.head.weight is model.embed.weight
    assert plan.shapes["head.weight"] == plan.shapes["embed.weight"]
    assert plan.costs["params"].after == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float32])
def test_dtype_stays(dtype):
    model, args = training_set("Residual")
    model, args = model.to(dtype), tuple(a.to(dtype) for a in args)
    before = copy.deepcopy(model)
    plan = planned(model, args)
    plan.apply(model)
    assert {t.dtype for n, t in tensors(model).items() if "tracked" not in n} == {dtype}
    if dtype is not torch.float16:
        scale = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
        assert_same(outputs(model, args), outputs(masked(before, plan), args), scale)


def test_mixed_dtypes():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8).double(), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).float())

    model = Mixed()
    planned(model, (torch.ones(1, 4).double(),)).apply(model)
    assert model.a.weight.dtype == torch.float64 and model.b.weight.dtype == torch.float32
    assert model.a.weight.shape[0] == model.b.weight.shape[1] < 8


def test_channels_last_stays():
    model, args = training_set("Residual")
    model = model.to(memory_format=torch.channels_last)
    assert model.a.weight.is_contiguous(memory_format=torch.channels_last)
    planned(model, args).apply(model)
    assert model.a.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.a.weight.is_contiguous()


def test_requires_grad_and_training_flags_stay():
    model, args = training_set("Residual")
    model.train()
    model.b.eval()
    model.a.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    planned(model, args).apply(model)
    assert model.training and model.a.training and not model.b.training
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"a.weight", "head.bias"}
    model(*args).sum().backward()
    assert model.a.weight.grad is None and model.b.weight.grad.shape == model.b.weight.shape


def test_hooks_survive():
    model, args = training_set("Residual")
    seen: list[Any] = []
    model.a.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    model.a.weight.register_hook(lambda g: seen.append(tuple(g.shape)))
    model.a.weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    plan = planned(model, args)
    seen.clear()
    plan.apply(model)
    seen.clear()
    model(*args).sum().backward()
    shape = tuple(model.a.weight.shape)
    assert shape[0] < 10 and seen == [(2, shape[0], 8, 8), shape, shape]


def test_module_objects_classes_and_keys_stay():
    model, args = training_set("ResNeXt")
    ids, keys = {n: id(m) for n, m in model.named_modules()}, list(model.state_dict())
    plan = planned(model, args)
    assert plan.apply(model) is model
    assert {n: id(m) for n, m in model.named_modules()} == ids and list(model.state_dict()) == keys
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            assert m.weight.shape[:2] == (m.out_channels, m.in_channels // m.groups)


def test_a_stale_autograd_graph_does_no_harm():
    """An output of before the prune is kept alive: training goes on, and the old graph cannot corrupt a gradient."""
    model, args = training_set("Residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    old = model(*args).square().sum()
    old.backward(retain_graph=True)
    plan = planned(model, args)
    plan.apply(model, optimizer)
    for _ in range(2):
        step(model, args, optimizer)
        assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    with contextlib.suppress(RuntimeError):  # it may be refused
        old.backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    optimizer.zero_grad()
    step(model, args, optimizer)


def test_inference_and_compiled_copies_are_independent():
    model, args = training_set("Residual")
    twin = copy.deepcopy(model)
    shapes = {n: t.shape for n, t in tensors(twin).items()}
    planned(model, args).apply(model)
    assert {n: t.shape for n, t in tensors(twin).items()} == shapes


# -- all or nothing ----------------------------------------------------------------------------------------------------


def failing_after(k: int, function: Any) -> tuple[Any, list[int]]:
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == k:
            raise Injected
        return function(*args, **kwargs)

    return wrapped, calls


STEPS = (
    "swap.select",
    "optimizer.select",
    "swap._swap",
    "optimizer._swap_state",
    "plan.make_edits",
    "plan.repeat_sizes",
    "attributes._assign",
    "plan.verify_program",
)


@pytest.mark.parametrize("where", STEPS)
def test_failure_at_every_step_changes_nothing(where, monkeypatch):
    """Each function of the way is made to fail at its first, second, ... call, until apply comes through."""
    room_name, where = where.split(".")
    room = importlib.import_module(f"solvemut.apply.{room_name}")
    model, args = training_set("ResNeXt")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, args, optimizer)
    plan = planned(model, args, 0.5)
    before = snapshot(model, optimizer)
    function = getattr(room, where)
    failures = 0
    for k in range(1, 200):
        wrapped, _ = failing_after(k, function)
        monkeypatch.setattr(room, where, wrapped)
        try:
            plan.apply(model, optimizer)
        except Injected:
            failures += 1
            assert_untouched(before, snapshot(model, optimizer))
        else:
            break
    assert failures >= 1
    assert model.a.weight.shape == plan.shapes["a.weight"][1]


def test_failure_in_the_middle_of_swapping_changes_nothing(monkeypatch):
    """The swap itself fails half way, also between a tensor's data and its gradient."""
    import solvemut.apply.swap as room

    model, args = training_set("ResNeXt")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, args, optimizer)
    plan = planned(model, args, 0.5)
    before = snapshot(model, optimizer)
    real = room._set
    for k in (1, 2, 5):
        calls = [0]

        def broken(tensor: torch.Tensor, *rest: Any, calls: list[int] = calls, k: int = k) -> None:
            calls[0] += 1
            if calls[0] == k:
                tensor.grad = None
                raise Injected
            real(tensor, *rest)

        monkeypatch.setattr(room, "_set", broken)
        with pytest.raises(Injected):
            plan.apply(model, optimizer)
        monkeypatch.setattr(room, "_set", real)
        assert_untouched(before, snapshot(model, optimizer))


def test_a_forward_that_cannot_follow_changes_nothing():
    """The forward compares a size with a number where nobody sees it: the run of the changed model finds out."""

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.a(x)
            if len([None] * y.shape[-1]) != 8:
                raise ValueError("eight, please")
            return self.b(y)

    model, args = Stubborn(), (torch.ones(1, 4),)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, args, optimizer)
    before = snapshot(model, optimizer)
    with pytest.raises(sm.errors.SolvemutError, match="eight, please"):
        sm.prune(model, args, params=0.5, optimizer=optimizer)
    assert_untouched(before, snapshot(model, optimizer))


def test_dry_run_changes_nothing():
    model, args = training_set("Residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, args, optimizer)
    before = snapshot(model, optimizer)
    mut = sm.Mutator(model, args, optimizer=optimizer)
    plan = mut.prune(params=0.5, dry_run=True)
    assert_untouched(before, snapshot(model, optimizer))
    mut.apply(plan)
    assert model.a.weight.shape == plan.shapes["a.weight"][1] != plan.shapes["a.weight"][0]


@pytest.mark.parametrize("other", ["wider", "missing", "attribute", "twice"])
def test_plan_for_another_model_changes_nothing(other):
    model, args = training_set("FusedQkv" if other == "attribute" else "Residual")
    plan = planned(model, args, 0.8)
    if other == "wider":
        model.a, model.b = nn.Conv2d(8, 11, 3, padding=1).double(), nn.Conv2d(11, 8, 3, padding=1).double()
    elif other == "missing":
        model.a = nn.Sequential(model.a)
    elif other == "attribute":
        plan = sm.Mutator(model, args).prune(dry_run=True, constraints=lambda g: [g["qkv"].out == 24])
        model.heads = 5
    else:
        plan.apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = snapshot(model, optimizer)
    with pytest.raises(sm.errors.PlanMismatchError):
        plan.apply(model, optimizer)
    assert_untouched(before, snapshot(model, optimizer))


def test_plan_with_wrong_indices_changes_nothing():
    model, args = training_set("Residual")
    plan = planned(model, args)
    before = snapshot(model)
    text = json.loads(plan.to_json())
    name, dims = next((n, d) for n, d in text["selection"]["indices"].items() if n == "a.weight")
    for bad in ([10**6], [-5], dims["0"][:-1], dims["0"] + [0]):
        broken = copy.deepcopy(text)
        broken["selection"]["indices"][name]["0"] = bad if len(bad) > 1 else dims["0"][:-1] + bad
        with pytest.raises(sm.errors.PlanMismatchError):
            sm.Plan.from_json(json.dumps(broken)).apply(model)
        assert_untouched(before, snapshot(model))
