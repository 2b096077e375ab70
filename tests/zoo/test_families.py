"""Every family of the zoo, pruned to half of its FLOPs: the masked network, a recount, a step of training."""

from __future__ import annotations

import copy

import benchmarks_path  # noqa: F401  (lets tests import what lies in benchmarks/)
import families_attention  # noqa: F401  (enters its families in the table)
import families_vision  # noqa: F401
import pytest
import torch
from families import FAMILIES
from oracles import assert_same, count_flops, count_params, masked, outputs, randomise, tensors
from prunability import follow_norms
from torch import nn

import solvemut as sm


def step(model: nn.Module, args: tuple, optimizer: torch.optim.Optimizer) -> None:
    """One step of training; Adam keeps two tensors per parameter."""
    optimizer.zero_grad()
    sum(t.square().mean() for t in tensors_of(model(*args))).backward()
    optimizer.step()


def tensors_of(out: object) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_flops(name):
    family = FAMILIES[name]
    assert (family.flops == 0.5) == (family.floor == "")
    model, args = randomise(family.net.model()), family.net.args()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model.train(), args, optimizer)
    before = copy.deepcopy(model.eval())
    plan = sm.prune(model, args, flops=family.flops, optimizer=optimizer, progress=False)

    other = masked(before, plan)
    norms = follow_norms(other, model, plan.indices)
    assert_same(outputs(model, args), outputs(other, args))
    written = {
        k
        for k, m in before.named_modules()
        if "Norm" in type(m).__name__ and not type(m).__module__.startswith("torch")
    }
    assert {k for k in written if f"{k}.weight" in plan.indices} <= {*norms}

    assert plan.costs["flops"].before == count_flops(before, args)
    assert plan.costs["flops"].after == count_flops(model, args) <= family.flops * count_flops(before, args)
    assert plan.costs["params"].after == count_params(model) < count_params(before)

    step(model.train(), args, optimizer)
    for p in model.parameters():
        assert torch.isfinite(p).all() and (p not in optimizer.state or optimizer.state[p]["exp_avg"].shape == p.shape)
    assert {k: v.shape for k, v in tensors(model).items() if k in plan.shapes} == {
        k: torch.Size(after) for k, (_, after) in plan.shapes.items()
    }
