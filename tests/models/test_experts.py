"""Mixtures of experts over one tensor per weight, [experts, out, in]: the width inside goes, no expert does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from grouped import grouped_mm
from oracles import assert_same, masked, outputs, randomise
from torch import nn

import solvemut as sm

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Experts(nn.Module):
    """Each token goes to `top_k` experts; gate and up projection are one tensor, one after the other or in turn."""

    def __init__(self, how: str, in_turn: bool, experts: int = 4, width: int = 32) -> None:
        super().__init__()
        self.how, self.in_turn, self.experts, self.top_k = how, in_turn, experts, 2
        self.a, self.router, self.o = nn.Linear(6, 16), nn.Linear(16, experts), nn.Linear(16, 3)
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * width, 16))
        self.bias = nn.Parameter(torch.randn(experts, 2 * width))
        self.down = nn.Parameter(torch.randn(experts, 16, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        weights, chosen = self.router(h).softmax(-1).topk(self.top_k, -1)
        y = (self.grouped if self.how == "grouped" else self.batched)(h, chosen.reshape(-1))
        y = y * weights.reshape(-1, 1)
        return self.o(y.view(x.shape[0], self.top_k, h.shape[-1]).sum(1) + h)

    def gated(self, y: torch.Tensor) -> torch.Tensor:
        gate, up = (y[..., ::2], y[..., 1::2]) if self.in_turn else y.chunk(2, -1)
        return gate.sigmoid() * gate * up

    def batched(self, h: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        h = h.repeat_interleave(self.top_k, 0)
        y = torch.bmm(self.gate_up[chosen], h.unsqueeze(-1)).squeeze(-1) + self.bias[chosen]
        return torch.bmm(self.down[chosen], self.gated(y).unsqueeze(-1)).squeeze(-1)

    def grouped(self, h: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        experts, order = chosen.sort()
        ends = experts.to(h.dtype).histc(self.experts, 0, self.experts - 1).cumsum(0).long()
        y = grouped_mm(h[order // self.top_k], self.gate_up.transpose(-2, -1), ends) + self.bias[experts]
        y = grouped_mm(self.gated(y), self.down.transpose(-2, -1), ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return y[back]


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("how", ["batched", "grouped"])
def test_the_width_inside_experts_is_one_coupled_group_for_all_of_them(how, in_turn):
    original = randomise(Experts(how, in_turn).double())
    model = copy.deepcopy(original)
    mut = sm.Mutator(model, X)
    wide = next(g for g in mut.graph.groups if ("down", 2) in g.dims)
    assert {("gate_up", 1), ("bias", 1)} <= set(wide.dims)
    assert wide.units == 32
    plan = mut.prune(params=0.5, values=sm.values.random(1))
    assert plan.shapes["down"][1][0] == 4 and plan.shapes["down"][1][2] < 32
    assert plan.shapes["gate_up"][1][1] == 2 * plan.shapes["down"][1][2]
    if how == "grouped":  # its kernels take rows of 16 bytes
        assert plan.shapes["down"][1][2] % 8 == plan.shapes["down"][1][1] % 8 == 0
    assert_same(outputs(model, (X,)), outputs(masked(original, plan), (X,)))


@pytest.mark.parametrize("how", ["batched", "grouped"])
def test_experts_stay_with_a_reason(how):
    graph = sm.capture(Experts(how, False).double(), X)
    assert "topk counts positions along it" in graph.frozen_because(graph["router"])
    problem = sm.Problem(graph)
    problem.add(graph["router"].out == 3)
    with pytest.raises(sm.errors.InfeasibleError, match="topk counts positions along it"):
        problem.solve()


class Unlike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.cut(self.a(x)))

    def cut(self, h: torch.Tensor) -> torch.Tensor:
        return torch.cat([h[:, ::3], h[:, 1::3], h[:, 2::3]], 1)


def test_a_stride_that_does_not_divide_the_dim_freezes():
    graph = sm.capture(Unlike(), X.float())
    assert "slice with steps" in graph.frozen_because(graph["a"])
