"""Weight standardisation: a convolution whose weight is normalised in the forward, over the part of it that stays."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same, outputs, randomise
from torch import nn

import solvemut as sm

X = torch.randn(2, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Standardised(nn.Conv2d):
    """A convolution with its weight standardised, written in one of several ways."""

    def __init__(self, *args: int, way: str, groups: int = 1) -> None:
        super().__init__(*args, padding=1, groups=groups)
        self.way, self.gain = way, nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, getattr(self, self.way)(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def batch_norm(self) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(flat, None, None, (self.gain * 0.5).view(-1), training=True, momentum=0.0, eps=1e-6)
        return w.reshape_as(self.weight)

    def std_mean(self) -> torch.Tensor:
        std, mean = torch.std_mean(self.weight, dim=[1, 2, 3], keepdim=True, correction=0)
        return self.gain * 0.5 * (self.weight - mean) / (std**2 + 1e-6).sqrt()

    def flat(self) -> torch.Tensor:
        w = self.weight.flatten(1)
        w = (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        return self.gain * 0.5 * w.view(self.weight.shape)


class Net(nn.Module):
    def __init__(self, way: str, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = Standardised(3, 16, 3, way=way), Standardised(16, 12, 3, way=way, groups=groups)
        self.o = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.b(self.a(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("way", ["batch_norm", "std_mean", "flat"])
def test_standardised_weights_are_those_of_the_slices_that_stay(way, groups):
    original = randomise(Net(way, groups).double())
    model = copy.deepcopy(original)
    plan = sm.prune(model, X, params=0.6, values=sm.values.random(3))
    assert model.a.out_channels < 16
    assert any("statistics are those of the units that stay" in n or "runs over the units" in n for n in plan.notes)
    with torch.no_grad():  # by hand: the same slices of every weight, and then standardised
        for name, layer in (("a", original.a), ("b", original.b)):
            dims = plan.indices[f"{name}.weight"]
            out, into = dims.get(0, [*range(layer.out_channels)]), dims.get(1, [*range(layer.weight.shape[1])])
            layer.weight.data, layer.bias.data = layer.weight[out][:, into], layer.bias[out]
            layer.gain.data, layer.out_channels = layer.gain[out], len(out)
        original.b.groups = model.b.groups
        original.o.weight.data = original.o.weight[:, out]
    assert_same(outputs(model, (X,)), outputs(original, (X,)))
