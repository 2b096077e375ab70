"""Pruning on an accelerator: device and dtype stay, the optimizer goes on, the function is the masked network's."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import masked
from torch import nn

import solvemut as sm

DEVICES = [
    pytest.param("cpu"),
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, none here")
    ),
]


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * 64, 4),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_prune_trains_on_where_it_was(device, dtype):
    torch.manual_seed(0)
    model = small_net().to(device, dtype)
    x = torch.randn(4, 3, 8, 8, device=device, dtype=dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    before = copy.deepcopy(model).eval()
    plan = sm.prune(model, x, flops=0.5, optimizer=optimizer)
    assert plan.costs["flops"].after <= plan.costs["flops"].budget
    for p in model.parameters():
        state = optimizer.state[p]
        assert (p.device.type, p.dtype) == (device, dtype)
        assert state["exp_avg"].shape == p.shape == state["exp_avg_sq"].shape
        assert state["exp_avg"].device == p.device
    expected = masked(before, plan)(x)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    assert (model.eval()(x) - expected).abs().max() <= tolerance
    first = [p.detach().clone() for p in model.parameters()]
    model.train()(x).square().mean().backward()
    optimizer.step()
    assert any((p != q).any() for p, q in zip(model.parameters(), first, strict=True))
