"""A table of small networks: one per row of the rules and per way in which layers are coupled.

Each entry says which layers must be free to shrink (`free`): a test over the table fails when they are frozen.
The table goes on in `nets_shapes` and `nets_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Net:
    """A small network with example inputs. `budget`: fractions of the parameters and FLOPs to prune to."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...] | str, ...]
    free: tuple[str, ...]
    kwargs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    budget: tuple[dict[str, float], ...] = ({"params": 0.7}, {"flops": 0.5})
    masked: bool = True  # zeroed units count for nothing: a masked network is an oracle
    flops: bool = True  # torch's counter knows all its operations

    def model(self) -> nn.Module:
        """Built, in float64, in eval mode."""
        torch.manual_seed(0)
        return self.build().double().eval()

    def args(self) -> tuple[torch.Tensor, ...]:
        g = torch.Generator().manual_seed(1)
        return tuple(_example(s, g) for s in self.inputs)

    def kw(self) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(2)
        return {k: _example(s, g) for k, s in self.kwargs}


def _example(spec: tuple[int, ...] | str, g: torch.Generator) -> torch.Tensor:
    """A float64 tensor of a shape; "ids 2 5 7" is a tensor of shape (2, 5) with ints below 7."""
    if isinstance(spec, str):
        *shape, top = (int(s) for s in spec.split()[1:])
        return torch.randint(top, tuple(shape), generator=g)
    return torch.randn(spec, generator=g, dtype=torch.float64)


NETS: dict[str, Net] = {}


def net(*inputs: tuple[int, ...] | str, free: str = "", **more: Any) -> Callable[[Any], Any]:
    """Enter a class or function that builds a network, under its own name."""

    def enter(build: Any) -> Any:
        assert build.__name__ not in NETS, build.__name__
        NETS[build.__name__] = Net(build.__name__, build, inputs, tuple(free.split()), **more)
        return build

    return enter


Seq = nn.Sequential
IMAGE = (2, 3, 8, 8)


# -- chains: one per layer kind ----------------------------------------------------------------------------------------


@net((3, 5), free="0 2")
def Mlp() -> nn.Module:
    return Seq(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9, bias=False), nn.Tanh(), nn.Linear(9, 3))


@net((2, 4, 6, 5), free="0")
def LinearOnTokens() -> nn.Module:
    return Seq(nn.Linear(5, 12), nn.Sigmoid(), nn.Linear(12, 3), nn.Softmax(-1))


@net((2, 3, 12), free="0 3")
def Chain1d() -> nn.Module:
    return Seq(
        nn.Conv1d(3, 10, 3),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Conv1d(10, 8, 3, stride=2),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 2, 1),
    )


@net(IMAGE, free="0 3")
def Chain2d() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 10, 3, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU6(),
        nn.Conv2d(10, 8, 3, dilation=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@net((1, 2, 5, 5, 5), free="0 3")
def Chain3d() -> nn.Module:
    return Seq(nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ELU(), nn.Conv3d(8, 6, 1), nn.AvgPool3d(2), nn.Conv3d(6, 2, 1))


@net((2, 3, 6), free="0 2")
def Up1d() -> nn.Module:
    return Seq(
        nn.ConvTranspose1d(3, 10, 2, stride=2),
        nn.Hardswish(),
        nn.ConvTranspose1d(10, 6, 3, bias=False),
        nn.Conv1d(6, 2, 1),
    )


@net((2, 3, 4, 4), free="0 1")
def Up2d() -> nn.Module:
    return Seq(
        nn.ConvTranspose2d(3, 10, 2, stride=2),
        nn.ConvTranspose2d(10, 6, 3, output_padding=1, stride=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 2, 1),
    )


@net((1, 2, 3, 3, 3), free="0")
def Up3d() -> nn.Module:
    return Seq(nn.ConvTranspose3d(2, 8, 2, stride=2), nn.SiLU(), nn.Conv3d(8, 2, 1))


@net((2, 3, 4, 4), free="0 2")
def UpGrouped() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 12, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 18, 2, stride=2, groups=3),
        nn.ReLU(),
        nn.Conv2d(18, 2, 1),
    )


@net((2, 3, 4, 4), free="0 2")
def UpDepthwise() -> nn.Module:
    return Seq(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12), nn.Conv2d(12, 2, 1))


@net((2, 3, 4, 4), free="0 1")
def UpDepthwiseTwice() -> nn.Module:
    return Seq(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 2, stride=2, groups=8), nn.Conv2d(16, 2, 1))


@net(IMAGE, free="0 1")
def Depthwise() -> nn.Module:
    return Seq(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1))


@net(IMAGE, free="0 1")
def DepthwiseTwice() -> nn.Module:
    return Seq(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 2, 1))


@net(IMAGE, free="0 2")
def Grouped() -> nn.Module:
    return Seq(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 18, 3, groups=3), nn.ReLU(), nn.Conv2d(18, 2, 1))


@net(IMAGE, free="0 2 4")
def GroupedChain() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 12, 1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, groups=4, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 12, 1, groups=4),
        nn.Conv2d(12, 2, 1),
    )


@net(IMAGE, free="0 2")
def GroupedRegrouped() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 12, 1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(12, 12, 1, groups=3),
        nn.Conv2d(12, 2, 1),
    )


@net(IMAGE, free="0")
def GroupNorm() -> nn.Module:
    return Seq(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))


@net(IMAGE, free="0")
def GroupNormSingle() -> nn.Module:
    return Seq(nn.Conv2d(3, 12, 3), nn.GroupNorm(1, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))


@net(IMAGE, free="0")
def GroupNormEach() -> nn.Module:
    return Seq(nn.Conv2d(3, 12, 3), nn.GroupNorm(12, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))


@net(IMAGE, free="0 3")
def InstanceNorm() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 12, 3),
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.Conv2d(12, 6, 1),
        nn.InstanceNorm2d(6),
        nn.Conv2d(6, 2, 1),
    )


@net((3, 5), free="0 3")
def LayerNorm() -> nn.Module:
    return Seq(nn.Linear(5, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 8), nn.RMSNorm(8), nn.Linear(8, 2))


@net(IMAGE, free="0")
def LayerNormImage() -> nn.Module:
    return Seq(nn.Conv2d(3, 8, 3), nn.LayerNorm([8, 6, 6]), nn.ReLU(), nn.Conv2d(8, 2, 1))


@net((4, 3), free="0")
def BatchNormPlain() -> nn.Module:
    return Seq(nn.Linear(3, 10), nn.BatchNorm1d(10, affine=False), nn.ReLU(), nn.Linear(10, 2))


@net("ids 2 5 7", free="0")
def Embedding() -> nn.Module:
    return Seq(nn.Embedding(7, 12), nn.LayerNorm(12), nn.Linear(12, 3))


@net(IMAGE, free="0 2")
def Prelu() -> nn.Module:
    return Seq(nn.Conv2d(3, 10, 1), nn.PReLU(10), nn.Conv2d(10, 8, 1), nn.PReLU(), nn.Conv2d(8, 2, 1))


@net((4, 3), free="0")
def PreluOnFeatures() -> nn.Module:
    return Seq(nn.Linear(3, 10), nn.PReLU(10), nn.Linear(10, 2))


@net(IMAGE, free="0 3")
def Pools() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 10, 3, padding=1),
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(10, 8, 1),
        nn.AdaptiveMaxPool2d(2),
        nn.Upsample(size=(3, 3), mode="bilinear"),
        nn.Dropout2d(0.5),
        nn.Conv2d(8, 2, 1),
    )


# -- coupling by arithmetic --------------------------------------------------------------------------------------------


@net(IMAGE, free="stem a b")
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.bn(self.b(F.relu(self.a(x)))))
        return self.head(x).mean((2, 3))


@net(IMAGE, free="a b")
class ResidualOfInput(nn.Module):
    """The block's last layer is tied to the input, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 9, 1), nn.Conv2d(9, 3, 1)

    def forward(self, x):
        return x + self.c(F.relu(self.b(F.relu(self.a(x)))))


@net(IMAGE, free="stem expand depth project")
class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 1, bias=False)
        self.depth, self.bn = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.project, self.head = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.project(F.relu6(self.bn(self.depth(F.relu6(self.expand(x)))))))


@net(IMAGE, free="stem a g b")
class ResNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1)
        self.g, self.b, self.head = nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.b(F.relu(self.g(F.relu(self.a(x)))))))


@net(IMAGE, free="stem")
class GroupedResidual(nn.Module):
    """A grouped convolution inside a residual: the groups of its input are the groups of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.g = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.g(x)))


@net(IMAGE, free="stem squeeze")
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 6, 1)
        self.excite, self.head = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid())


@net(IMAGE, free="a b gate")
class Broadcasting(nn.Module):
    """Parameters and values of lower rank, and of size one, meet an image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gate = nn.Conv2d(3, 10, 1), nn.Conv2d(3, 10, 1), nn.Linear(3, 10)
        self.scale, self.shift = nn.Parameter(torch.ones(10, 1, 1)), nn.Parameter(torch.ones(1, 10, 1, 1))
        self.alpha, self.one = nn.Parameter(torch.ones(())), nn.Conv2d(3, 1, 1)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        g = self.gate(x.mean((2, 3)))[:, :, None, None]
        y = self.a(x) * self.scale + self.shift * self.alpha + self.b(x).maximum(g) * self.one(x)
        return self.head(torch.where(y > 0, y, 0.1 * y) + 1)


@net((3, 5), free="a b")
class NotZeroAtZero(nn.Module):
    """Functions whose value at zero is not zero, between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 10), nn.Linear(10, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.b(torch.exp(self.a(x).clamp(max=1.0)).cos() + 2)
        return self.c(F.softplus(x).rsqrt())


@net((3, 5), (3, 4), free="a b c")
class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 9), nn.Linear(4, 9), nn.Linear(5, 9), nn.Linear(9, 2)

    def forward(self, x, y):
        h = torch.addcmul(self.c(x), self.a(x), self.b(y))
        return self.d(torch.lerp(h, self.a(x), 0.3))
