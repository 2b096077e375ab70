"""Statistics of batch norms, estimated anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import solvemut as sm

F = nn.functional


def net() -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(
        nn.Conv2d(2, 10, 3),
        nn.BatchNorm2d(10, momentum=0.2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(10, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.BatchNorm1d(128, track_running_stats=False),
        nn.Linear(128, 3),
    )
    for _ in range(5):
        found(torch.randn(30, 2, 8, 8) + 1)
    return found.eval()


@pytest.fixture
def cut():
    teacher, x = net(), torch.randn(70, 2, 8, 8) + 1
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, x[:2], params=0.6)
    return teacher, model, plan, x


def test_statistics_are_those_of_a_plain_computation(cut):
    teacher, model, plan, x = cut
    batches = x.split(30)
    wanted = copy.deepcopy(model)
    seen = {1: [], 5: []}
    for k in seen:
        wanted[k].running_mean.zero_()
        wanted[k].running_var.fill_(1)
    for batch in batches:
        h = batch
        for k, layer in enumerate(wanted[:6]):
            if k in seen:
                mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3))
                seen[k].append((mean, var))
                h = F.batch_norm(h, None, None, layer.weight, layer.bias, training=True)
            else:
                h = layer(h)
    report = sm.repair.batch_norm(batches, lambda out: -out.new_tensor(float(model[1].running_mean.sum() != before)))
    before = float(model[1].running_mean.sum())
    report = report(model, teacher, plan)
    assert report.kept == ("1", "5") and report.left == {}
    for k, found in seen.items():
        for at, name in enumerate(("running_mean", "running_var")):
            plain = torch.stack([pair[at] for pair in found]).mean(0)
            assert torch.allclose(getattr(model[k], name), plain, atol=1e-5)
    assert [model[k].momentum for k in (1, 5)] == [0.2, None]
    assert [int(model[k].num_batches_tracked) for k in (1, 5)] == [5, 5]
    assert not model.training and not model[1].training


def test_worse_statistics_are_undone(cut):
    teacher, model, plan, x = cut
    was = {k: b.clone() for k, b in model.named_buffers()}
    with torch.no_grad():
        wanted = model(x)
    report = sm.repair.batch_norm([(x, wanted)], F.mse_loss)(model, teacher, plan)
    assert report.kept == () and report.after == report.before and "undone" in str(report)
    assert all(torch.equal(b, was[k]) for k, b in model.named_buffers())


def test_norms_that_are_not_called_stay(cut):
    _, _, _, x = cut
    teacher = net()
    teacher[3] = nn.Identity()
    teacher[3].spare = nn.BatchNorm1d(4)
    teacher[3].spare.running_mean.fill_(7)
    model = copy.deepcopy(teacher)
    plan = sm.Mutator(copy.deepcopy(net()), x[:2]).prune(params=1.0)
    report = sm.repair.batch_norm([x])(model, teacher, plan)
    assert report.left == {"3.spare": "it is never called"}
    assert bool((model[3].spare.running_mean == 7).all())


def test_a_shift_of_all_inputs_is_mended():
    """Where a cut moves the mean of what a norm gets, new statistics bring it back."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x = torch.randn(400, 4) + 2
    for _ in range(60):
        teacher(x)
    teacher.eval()
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, x[:2], params=0.5)
    report = sm.repair.batch_norm([x])(model, teacher, plan)
    assert report.after < report.before and report.kept == ("3",)
