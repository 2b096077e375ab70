"""The table of small networks, continued: weights that are computed from others before every call, and shuffles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from nets import IMAGE, net
from torch import nn
from torch.nn.utils import parametrizations as p
from torch.nn.utils.parametrize import register_parametrization


def mlp(wrap: Callable[[Any], nn.Module]) -> nn.Module:
    layers = [wrap(nn.Linear(5, 8)), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


@net((3, 5), free="0 2")
def WeightNormed() -> nn.Module:
    return mlp(p.weight_norm)


@net((3, 5), free="0 2")
def WeightNormedByColumns() -> nn.Module:
    return mlp(lambda m: p.weight_norm(m, dim=1))


@net((3, 5), free="0 2")
def WeightNormedWhole() -> nn.Module:
    return mlp(lambda m: p.weight_norm(m, dim=None))


@net((2, 3, 12), free="0 2 4")
def WeightNormedConvs() -> nn.Module:
    """As in vocoders: convolutions and transposed ones, whose norms are per input channel."""
    return nn.Sequential(
        p.weight_norm(nn.Conv1d(3, 8, 3)),
        nn.ELU(),
        p.weight_norm(nn.Conv1d(8, 8, 3, bias=False)),
        nn.ELU(),
        p.weight_norm(nn.ConvTranspose1d(8, 6, 2, stride=2)),
        nn.Conv1d(6, 2, 1),
    )


@net(IMAGE, free="0 1")
def WeightNormedDepthwise() -> nn.Module:
    return nn.Sequential(
        p.weight_norm(nn.Conv2d(3, 8, 3)), p.weight_norm(nn.Conv2d(8, 8, 3, groups=8)), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )


@net((3, 5), free="0 2")
def SpectralNormed() -> nn.Module:
    return mlp(p.spectral_norm)


@net(IMAGE, free="0 2")
def SpectralNormedConvs() -> nn.Module:
    layers = [p.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), p.spectral_norm(nn.Conv2d(8, 6, 3)), nn.Conv2d(6, 2, 1)]
    return nn.Sequential(*layers)


class Positive(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w.abs() + w.square()


def positive(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, "weight", Positive())
    return layer


@net((3, 5), free="0 2")
def PositiveWeights() -> nn.Module:
    return mlp(positive)


@net((2, 5, 6), free="a")
class TwoParametrizations(nn.Module):
    """Several parametrizations of one tensor, and of several tensors of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = positive(p.weight_norm(nn.Linear(6, 8))), nn.Linear(8, 3)
        register_parametrization(self.a, "bias", Positive())

    def forward(self, x):
        return self.head(torch.tanh(self.a(x)))


@net(IMAGE, free="0 2 5")
def ShuffleOfGroups() -> nn.Module:
    """Grouped convolutions with a shuffle between them."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 1, groups=3),
        nn.ChannelShuffle(3),
        nn.Conv2d(12, 12, 3, groups=3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1),
        nn.Conv2d(8, 2, 1),
    )


@net(IMAGE, free="a b")
class ShuffledHalves(nn.Module):
    """As in ShuffleNet v2: one half passes, the other is worked on, and both are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.o(F.channel_shuffle(torch.cat((left, torch.relu(self.b(right))), 1), 2))
