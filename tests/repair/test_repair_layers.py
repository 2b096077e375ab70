"""Each kind of linear map against an oracle that knows nothing of unfolding: the layer's own derivative by its weights.

A layer's output is affine in its weight and bias, so its Jacobian is the design matrix of the least-squares problem.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.calls import watched
from solvemut.repair.fit import _Run

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Outer(nn.Module):
    """A part between two more layers, so that it loses inputs, outputs, or has worse inputs."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = torch.tanh(part(x))
        return x


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: [nn.Linear(4, 10), nn.Linear(10, 8), nn.Linear(8, 3)], (60, 4)),
    "linear on tokens": (lambda: [nn.Linear(4, 10), nn.Linear(10, 8, bias=False), nn.Linear(8, 3)], (20, 5, 4)),
    "conv1d": (lambda: [nn.Conv1d(2, 8, 3), nn.Conv1d(8, 6, 3, stride=2, padding=1), nn.Conv1d(6, 2, 1)], (20, 2, 12)),
    "conv2d": (
        lambda: [
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 6, (3, 2), stride=2, dilation=(1, 2), padding=1),
            nn.Conv2d(6, 2, 3, padding="same", bias=False),
        ],
        (24, 2, 7, 6),
    ),
    "padding modes": (
        lambda: [
            nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(6, 2, 3, padding=1, padding_mode="replicate"),
        ],
        (24, 2, 5, 5),
    ),
    "grouped": (
        lambda: [nn.Conv2d(2, 12, 3), nn.Conv2d(12, 8, 3, groups=2, padding=1), nn.Conv2d(8, 2, 1)],
        (30, 2, 6, 6),
    ),
    "depthwise": (
        lambda: [
            nn.Conv2d(2, 10, 3),
            nn.Conv2d(10, 8, 1),
            nn.Conv2d(8, 8, 3, groups=8, padding=1),
            nn.Conv2d(8, 3, 1),
        ],
        (20, 2, 6, 6),
    ),
    "conv3d": (
        lambda: [nn.Conv3d(1, 6, 2), nn.Conv3d(6, 4, 2, stride=(1, 2, 1)), nn.Conv3d(4, 2, 1)],
        (20, 1, 4, 5, 4),
    ),
    "transposed": (
        lambda: [
            nn.Conv2d(2, 8, 2),
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(6, 2, (2, 3), dilation=(2, 1)),
        ],
        (20, 2, 4, 5),
    ),
    "transposed in groups": (
        lambda: [nn.Conv1d(2, 12, 1), nn.ConvTranspose1d(12, 8, 3, groups=2, stride=2), nn.Conv1d(8, 2, 1)],
        (40, 2, 6),
    ),
}


def case(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module, Any, torch.Tensor]:
    """Teacher, pruned model, plan and inputs."""
    torch.manual_seed(seed)
    parts, shape = NETS[name]
    teacher = Outer(*parts()).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    model = copy.deepcopy(teacher)
    plan = sm.prune(model, x[:2], params=0.6)
    return teacher, model, plan, x


def seen(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of each layer."""
    found = {}
    handles = [
        m.register_forward_hook(lambda _, args, out, k=k: found.__setitem__(k, (args[0], out)))
        for k, m in model.named_modules()
        if isinstance(m, LAYERS)
    ]
    with torch.no_grad():
        model(x)
    for h in handles:
        h.remove()
    return found


def axis_of(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def kept(layer: nn.Module, name: str, plan: Any, n: int) -> list[int]:
    """Which outputs stay: the bias tells, or else the weight of a layer that is not transposed."""
    at = f"{name}.bias" if layer.bias is not None else f"{name}.weight"
    return list(plan.indices.get(at, {}).get(0, range(n)))


def best(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights with which a layer makes of x what is nearest to y."""
    tensors = {k: p.detach() for k, p in layer.named_parameters()}
    jacobian = torch.func.jacrev(lambda t: torch.func.functional_call(layer, t, (x,)).flatten())(tensors)
    design = torch.cat([j.reshape(y.numel(), -1) for j in jacobian.values()], 1)
    flat = torch.linalg.lstsq(design, y.flatten(), driver="gelsd").solution
    parts = flat.split([t.numel() for t in tensors.values()])
    return {k: part.reshape(t.shape) for (k, t), part in zip(tensors.items(), parts, strict=True)}


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {k: m for k, m in model.named_modules() if isinstance(m, LAYERS)}


@pytest.mark.parametrize("name", NETS)
def test_each_layer_is_the_least_squares_solution(name):
    teacher, model, plan, x = case(name)
    report = sm.repair.least_squares(x.split(13), ridge=1e-13, positions=None)(model, teacher, plan)
    assert report.left == {}
    assert report.after < report.before
    was, now = seen(teacher, x), seen(model, x)
    for k, layer in layers(model).items():
        index = kept(layer, k, plan, was[k][1].shape[axis_of(layer)])
        wanted = was[k][1].index_select(axis_of(layer), torch.tensor(index))
        for at, w in best(layer, now[k][0], wanted).items():
            assert torch.allclose(layer.get_parameter(at), w, atol=1e-6), (k, at)


@pytest.mark.parametrize("name", NETS)
def test_where_nothing_was_cut_nothing_changes(name):
    teacher, _, _, x = case(name)
    model = copy.deepcopy(teacher)
    nothing = sm.Mutator(copy.deepcopy(model), x[:2]).prune(params=1.0)
    report = sm.repair.least_squares(x.split(13))(model, teacher, nothing)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), teacher.parameters(), strict=True))
    assert report.before == report.after == 0
    assert report.kept == ()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("positions", [20, None])
def test_streamed_is_as_in_lockstep(name, positions, monkeypatch):
    teacher, model, plan, x = case(name)
    other = copy.deepcopy(model)
    a = sm.repair.least_squares(x.split(13), positions=positions)(model, teacher, plan)
    monkeypatch.setattr(_Run, "_lockstep", lambda *_: False)
    b = sm.repair.least_squares(x.split(13), positions=positions)(other, teacher, plan)
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    assert a.kept == b.kept != ()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-10)


def test_twice_is_the_same_bit_for_bit():
    teacher, model, plan, x = case("conv2d")
    other = copy.deepcopy(model)
    for m in (model, other):
        sm.repair.least_squares(x.split(5), positions=4, seed=3)(m, teacher, plan)
        torch.rand(3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_few_rows_solve_the_same_ridge_problem():
    """With fewer rows than columns the answer is that of the plain formula."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 5)).double()
    model, x = copy.deepcopy(teacher), torch.randn(9, 4, dtype=torch.float64)
    plan = sm.prune(model, x, params=0.7)
    h, w = torch.tanh(model[0](x)), torch.cat([model[2].weight, model[2].bias[:, None]], 1).detach()
    h = torch.cat([h, torch.ones(9, 1)], 1).detach()
    assert h.shape[0] < h.shape[1]
    weight = 0.01 * h.square().sum() / h.shape[1]
    gram = h.T @ h + weight * torch.eye(h.shape[1], dtype=torch.float64)
    wanted = w + torch.linalg.solve(gram, h.T @ (teacher(x) - h @ w.T)).detach().T
    sm.repair.least_squares([x], ridge=0.01)(model, teacher, plan)
    assert torch.allclose(torch.cat([model[2].weight, model[2].bias[:, None]], 1), wanted, atol=1e-10)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = x + self.attention(x, x, x)[0]
        return self.d(torch.tanh(self.c(x)))


def test_projections_of_attention():
    torch.manual_seed(0)
    teacher = Attending().double().eval()
    model, x = copy.deepcopy(teacher), torch.randn(30, 5, 6, dtype=torch.float64)
    plan = sm.Mutator(model, x[:2]).resize({"a": -10})
    report = sm.repair.least_squares(x.split(10), ridge=1e-13, positions=None)(model, teacher, plan)
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} <= set(report.kept)
    was, now = {}, {}
    for net, found in ((teacher, was), (model, now)):
        with torch.no_grad(), watched(net, after=lambda call, found=found: found.__setitem__(call.weight, call)):
            net(x)
    for name, bias in (("in_proj_weight", "in_proj_bias"), ("out_proj.weight", "out_proj.bias")):
        x1 = now[f"attention.{name}"].x
        rows = torch.cat([x1.reshape(-1, x1.shape[-1]), torch.ones(150, 1, dtype=torch.float64)], 1)
        y = was[f"attention.{name}"].y
        index = plan.indices.get(f"attention.{bias}", {}).get(0, range(y.shape[-1]))
        wanted = torch.linalg.lstsq(rows, y.reshape(150, -1)[:, list(index)]).solution
        assert torch.allclose(model.attention.get_parameter(name), wanted[:-1].T, atol=1e-6)
        assert torch.allclose(model.attention.get_parameter(bias), wanted[-1], atol=1e-6)


def test_redundant_units_cost_nothing():
    """Of units that are there twice one goes, and the model is exact again."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1)).double()
    with torch.no_grad():
        teacher[0].weight[4:] = 1.5 * teacher[0].weight[:4]
        teacher[0].bias[4:] = 1.5 * teacher[0].bias[:4]
        teacher[2].weight[1] = teacher[2].weight[0]
        teacher[2].bias[1] = teacher[2].bias[0]
    model, x = copy.deepcopy(teacher), torch.randn(40, 2, 8, 8, dtype=torch.float64)
    worth = {"0": [1.0] * 4 + [2.0] * 4, "2": [1.0] + [2.0] * 5}
    plan = sm.Mutator(model, x[:2]).resize({"0": -4, "2": -1}, values=worth)
    report = sm.repair.least_squares(x.split(10), ridge=1e-13)(model, teacher, plan)
    assert model[0].out_channels == 4 and model[2].out_channels == 5
    assert report.before > 1e-4 and report.after < 1e-16
    assert torch.allclose(model(x), teacher(x), atol=1e-8)
