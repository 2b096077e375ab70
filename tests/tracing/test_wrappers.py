"""What stands around a module is looked through, or refused in words; the module inside is never half changed."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from oracles import assert_same, randomise
from torch import nn

import solvemut as sm

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def pruned_plain() -> tuple[nn.Module, Any]:
    model = net()
    return model, sm.prune(model, X, params=0.5)


@pytest.mark.parametrize("has_run", [False, True])
def test_a_compiled_model_is_pruned_itself_and_compiled_anew(has_run):
    model = net()
    compiled: Any = torch.compile(model, backend="eager")
    if has_run:
        compiled(X)
    plan = sm.prune(compiled, X, params=0.5)
    wanted, plain = pruned_plain()
    assert dict(plan.sizes) == dict(plain.sizes) and "0" in plan.sizes
    assert_same([compiled(X).detach(), model(X).detach()], [wanted(X).detach()] * 2, 1e-6)
    compiled(X).sum().backward()
    assert model[0].weight.grad.shape == model[0].weight.shape == (plan.sizes["0"][1], 6)


@pytest.mark.slow
def test_code_of_the_default_backend_is_neither_run_on_fake_memory_nor_kept():
    model = net()
    compiled: Any = torch.compile(model)
    try:
        compiled(X)
    except Exception as e:  # no C++ compiler on this machine
        pytest.skip(f"torch.compile does not work here: {type(e).__name__}")
    sm.prune(compiled, X, params=0.5)
    assert_same([compiled(X).detach()], [model(X).detach()], 1e-6)


def test_compiled_in_place_and_compiled_inside():
    model = net()
    model.compile(backend="eager")
    model(X)
    sm.prune(model, X, params=0.5)
    assert_same([model(X).detach()], [pruned_plain()[0](X).detach()], 1e-6)
    outer = nn.Sequential(torch.compile(net(), backend="eager"), nn.ReLU())
    outer(X)
    plan = sm.prune(outer, X, params=0.5)
    assert plan.costs["params"].after <= 0.5 * plan.costs["params"].before
    assert outer(X).shape == (4, 3)


def test_a_plan_is_applied_through_a_wrapper():
    plan = sm.prune(net(), X, params=0.5, dry_run=True)
    for wrapped in (torch.compile(net(), backend="eager"), nn.DataParallel(net())):
        assert plan.apply(wrapped) is wrapped
        assert_same([wrapped(X).detach()], [pruned_plain()[0](X).detach()], 1e-6)


def test_data_parallel_is_looked_through():
    model = net()
    wrapped = nn.DataParallel(model)
    plan = sm.prune(wrapped, X, params=0.5)
    assert "0" in plan.sizes and wrapped.module is model and model[0].out_features < 16


def exported() -> nn.Module:
    return torch.export.export(net(), (X,)).module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(net()), "TorchScript.*prune the module it was made from"),
        (lambda: torch.jit.trace(net(), X), "TorchScript"),
        (lambda: nn.Sequential(torch.jit.script(net()), nn.ReLU()), "in 0: TorchScript"),
        (exported, "torch.export has written its sizes into the graph; prune the module it was exported from"),
        (lambda: nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 3)), "lazy: run Sequential once"),
    ],
)
def test_refused_in_words(make, words):
    model = make()
    with pytest.raises(sm.errors.RequestError, match=words):
        sm.prune(model, X, params=0.5)
    with pytest.raises(sm.errors.RequestError, match=words):
        sm.capture(model, X)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
@pytest.mark.filterwarnings("ignore")
def test_distributed_wrappers_are_refused_in_words(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(net())
        with pytest.raises(sm.errors.RequestError, match="prune the plain module first and wrap what comes out"):
            sm.prune(model, X, params=0.5)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        sharded = fully_shard(net(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(sm.errors.RequestError, match="sharded by FSDP"):
            sm.prune(sharded, X, params=0.5)
    finally:
        torch.distributed.destroy_process_group()


# -- threads -----------------------------------------------------------------------------------------------------------


def deep(seed: int) -> nn.Module:
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.GroupNorm(2, 8), nn.Flatten()]
    return randomise(nn.Sequential(*layers, nn.Linear(8 * 16, 5)), seed)


def test_threads_that_prune_at_once_get_the_plans_they_would_get_alone():
    x = torch.randn(1, 3, 8, 8)
    names = [n for n in vars(torch.nn.functional) if n.startswith("has_torch_function")]
    before = {n: getattr(torch.nn.functional, n) for n in names}
    alone = [sm.prune(deep(k), x, params=0.6) for k in range(4)]
    rounds = 5 if os.environ.get("SOLVEMUT_NIGHTLY") else 1
    for _ in range(rounds):
        found: dict[int, Any] = {}

        def work(k: int, found: dict[int, Any] = found) -> None:
            try:
                found[k] = sm.prune(deep(k), x, params=0.6)
            except BaseException as e:
                found[k] = e

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert [getattr(found[k], "indices", found[k]) for k in range(4)] == [p.indices for p in alone]
    assert {n: getattr(torch.nn.functional, n) for n in names} == before


def test_a_capture_that_fails_restores_what_it_watches():
    import math

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    watched = (math.log2, math.gcd, torch.nn.functional.has_torch_function_unary, torch.backends.cudnn.enabled)
    for _ in range(2):
        with pytest.raises(sm.errors.CaptureError, match="no"):
            sm.capture(Fails(), X)
    assert watched == (
        math.log2,
        math.gcd,
        torch.nn.functional.has_torch_function_unary,
        torch.backends.cudnn.enabled,
    )
    assert torch.is_grad_enabled() and not torch.compiler.is_compiling()
