"""What a forward keeps of weights in a dict, such as LeViT's biases by device, goes with the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import assert_same, masked, outputs
from torch import nn

import solvemut as sm


class Biased(nn.Module):
    """Heads whose biases are looked up once, and kept in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(8, 48), nn.Linear(16, 8)
        self.biases = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("index", torch.randint(5, (3, 3)), persistent=False)
        self.cache: dict[str, torch.Tensor] = {}
        self.other: dict[str, torch.Tensor] = {"mine": torch.ones(2)}

    def bias(self, device: torch.device) -> torch.Tensor:
        if self.training:
            return self.biases[:, self.index]
        if str(device) not in self.cache:
            self.cache[str(device)] = self.biases[:, self.index]
        return self.cache[str(device)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, -1).split([4, 4, 4], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        attn = (q @ k + self.bias(x.device)).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize("used", [False, True])
def test_a_cache_is_computed_anew(used: bool) -> None:
    torch.manual_seed(0)
    model, x = Biased().double().eval(), torch.randn(2, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    before = copy.deepcopy(model)
    if not used:
        model.cache.clear()
    plan = sm.prune(model, x, flops=0.6)
    assert plan.sizes["qkv"][1] < 48 and model.heads < 4 and not model.cache
    assert torch.equal(model.other["mine"], torch.ones(2))
    before.cache.clear()
    assert_same(outputs(model, (x,)), outputs(masked(before, plan), (x,)))


def test_a_failure_puts_it_back() -> None:
    model, x = Biased().eval(), torch.randn(2, 3, 8)
    model(x)
    held = dict(model.cache)
    plan = sm.Mutator(model, x).prune(flops=0.6, dry_run=True)
    assert model.cache.keys() == held.keys() and all(model.cache[k] is held[k] for k in held)
    model.register_forward_pre_hook(lambda *a: 1 / 0)
    with pytest.raises(sm.errors.SolvemutError):
        plan.apply(model)
    assert model.cache.keys() == held.keys() and all(model.cache[k] is held[k] for k in held)
