"""Families of image networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from families import family
from torch import nn

Seq = nn.Sequential
IMAGE = (2, 3, 16, 16)


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    return Seq(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), act())


def head(i: int, classes: int = 4) -> nn.Module:
    return Seq(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, classes))


class Basic(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.down = Seq(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride > 1 or i != o else None

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


@family("ResNet, basic blocks", IMAGE)
def ResNetBasic() -> nn.Module:
    return Seq(conv(3, 8), Basic(8, 8), Basic(8, 12, 2), Basic(12, 12), head(12))


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.body = Seq(conv(i, o // 4, 1), conv(o // 4, o // 4, 3, stride), nn.Conv2d(o // 4, o, 1), nn.BatchNorm2d(o))
        self.down = Seq(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o)) if stride > 1 or i != o else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.down(x))


@family("ResNet, bottlenecks", IMAGE)
def ResNetBottleneck() -> nn.Module:
    return Seq(conv(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), Bottleneck(8, 16), Bottleneck(16, 24, 2), head(24))


class PreAct(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1)
        self.down = nn.Conv2d(i, o, 1) if i != o else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        short = x if self.down is None else self.down(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + short


@family("ResNet, pre-activation", IMAGE)
def PreActResNet() -> nn.Module:
    return Seq(nn.Conv2d(3, 8, 3, 2, 1), PreAct(8, 8), PreAct(8, 12), nn.BatchNorm2d(12), nn.ReLU(), head(12))


@family("VGG", IMAGE)
def Vgg() -> nn.Module:
    features = Seq(conv(3, 8), nn.MaxPool2d(2), conv(8, 12), nn.MaxPool2d(2), conv(12, 12), nn.AdaptiveAvgPool2d(2))
    return Seq(features, nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))


class DenseBlock(nn.Module):
    def __init__(self, i: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Seq(nn.BatchNorm2d(i + k * growth), nn.ReLU(), nn.Conv2d(i + k * growth, growth, 3, padding=1))
            for k in range(layers)
        )

    def forward(self, x):
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


@family("DenseNet", IMAGE)
def DenseNet() -> nn.Module:
    down = Seq(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
    return Seq(nn.Conv2d(3, 8, 3, 2, 1), DenseBlock(8, 4, 3), down, DenseBlock(10, 4, 2), nn.BatchNorm2d(18), head(18))


class InceptionBlock(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.a, self.b = conv(i, 4, 1), Seq(conv(i, 4, 1), conv(4, 6))
        self.c, self.d = Seq(conv(i, 3, 1), conv(3, 4), conv(4, 4)), conv(i, 4, 1)

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(F.avg_pool2d(x, 3, 1, 1))], 1)


@family("Inception", IMAGE)
def Inception() -> nn.Module:
    return Seq(conv(3, 8, 3, 2), InceptionBlock(8), nn.MaxPool2d(2), InceptionBlock(18), head(18))


class SqueezeExcite(nn.Module):
    def __init__(self, n: int, gate: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(n, max(2, n // 4), 1), nn.Conv2d(max(2, n // 4), n, 1), gate()

    def forward(self, x):
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, wide: int, stride: int = 1, act: type[nn.Module] = nn.ReLU6, se: bool = False):
        super().__init__()
        squeeze = [SqueezeExcite(wide)] if se else []
        self.body = Seq(
            *(conv(i, wide, 1, act=act), conv(wide, wide, 3, stride, wide, act), *squeeze),
            *(nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o)),
        )
        self.residual = stride == 1 and i == o

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


@family("MobileNetV2", IMAGE)
def MobileNetV2() -> nn.Module:
    blocks = Inverted(8, 8, 16), Inverted(8, 12, 24, 2), Inverted(12, 12, 24)
    return Seq(conv(3, 8, 3, 2, act=nn.ReLU6), *blocks, conv(12, 24, 1, act=nn.ReLU6), head(24))


@family("MobileNetV3, squeeze and excite", IMAGE)
def MobileNetV3() -> nn.Module:
    blocks = Inverted(8, 8, 16, 1, nn.Hardswish, True), Inverted(8, 12, 24, 2, nn.Hardswish, True)
    return Seq(conv(3, 8, 3, 2, act=nn.Hardswish), *blocks, conv(12, 24, 1, act=nn.Hardswish), head(24))


class FusedInverted(nn.Module):
    def __init__(self, i: int, wide: int) -> None:
        super().__init__()
        self.body = Seq(conv(i, wide, act=nn.SiLU), SqueezeExcite(wide, nn.Sigmoid), nn.Conv2d(wide, i, 1))
        self.bn = nn.BatchNorm2d(i)

    def forward(self, x):
        return x + self.bn(self.body(x))


@family("EfficientNet", IMAGE)
def EfficientNet() -> nn.Module:
    blocks = FusedInverted(8, 16), Inverted(8, 12, 24, 2, nn.SiLU, True), Inverted(12, 12, 24, 1, nn.SiLU, True)
    return Seq(conv(3, 8, 3, 2, act=nn.SiLU), *blocks, conv(12, 24, 1, act=nn.SiLU), head(24))


class ShuffleBlock(nn.Module):
    """ShuffleNetV2: half of the channels passes by, then both halves are shuffled."""

    def __init__(self, n: int) -> None:
        super().__init__()
        h = n // 2
        self.body = Seq(conv(h, h, 1), nn.Conv2d(h, h, 3, 1, 1, groups=h), nn.BatchNorm2d(h), conv(h, h, 1))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.body(b)), dim=1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


@family("ShuffleNetV2", IMAGE)
def ShuffleNet() -> nn.Module:
    return Seq(conv(3, 16, 3, 2), ShuffleBlock(16), ShuffleBlock(16), conv(16, 24, 1), head(24))


class RegBlock(nn.Module):
    def __init__(self, i: int, o: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.b, self.se = conv(i, o, 1), conv(o, o, 3, stride, o // width), SqueezeExcite(o, nn.Sigmoid)
        self.c = Seq(nn.Conv2d(o, o, 1, bias=False), nn.BatchNorm2d(o))
        self.down = Seq(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o)) if stride > 1 or i != o else nn.Identity()

    def forward(self, x):
        return F.relu(self.c(self.se(self.b(self.a(x)))) + self.down(x))


@family("RegNet", IMAGE)
def RegNet() -> nn.Module:
    return Seq(conv(3, 8, 3, 2), RegBlock(8, 16, 4), RegBlock(16, 24, 4, 2), head(24))


class LayerNorm2d(nn.Module):
    """Over the channels of an image."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x):
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return y.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(n, n, 7, padding=3, groups=n), nn.LayerNorm(n)
        self.up, self.down, self.gamma = nn.Linear(n, 3 * n), nn.Linear(3 * n, n), nn.Parameter(torch.ones(n))

    def forward(self, x):
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@family("ConvNeXt", IMAGE)
def ConvNeXt() -> nn.Module:
    down = Seq(LayerNorm2d(8), nn.Conv2d(8, 12, 2, 2))
    return Seq(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), ConvNeXtBlock(8), down, ConvNeXtBlock(12), head(12))


class PoolBlock(nn.Module):
    """PoolFormer: pooling in place of attention, group norm with one group, layer scale."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, n), nn.GroupNorm(1, n)
        self.mlp = Seq(nn.Conv2d(n, 2 * n, 1), nn.GELU(), nn.Conv2d(2 * n, n, 1))
        self.scale1, self.scale2 = nn.Parameter(torch.ones(n)), nn.Parameter(torch.ones(n))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.scale1[:, None, None] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        return x + self.scale2[:, None, None] * self.mlp(self.norm2(x))


@family("PoolFormer", IMAGE)
def PoolFormer() -> nn.Module:
    return Seq(nn.Conv2d(3, 8, 4, 4), PoolBlock(8), nn.Conv2d(8, 12, 3, 2, 1), PoolBlock(12), head(12))


class Aspp(nn.Module):
    """DeepLab: branches of several dilations and a pooled one, joined; a decoder that reads an early map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 8, 3, 2), Seq(conv(8, 12, 3, 2), conv(12, 16))
        self.branches = nn.ModuleList(nn.Conv2d(16, 6, 3, padding=d, dilation=d) for d in (1, 2, 3))
        self.pooled, self.join = Seq(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 6, 1), nn.ReLU()), conv(24, 8, 1)
        self.low, self.last = conv(8, 4, 1), Seq(conv(12, 8), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        low = self.stem(x)
        y = self.body(low)
        size = y.shape[-2:]
        found = [F.relu(b(y)) for b in self.branches]
        found.append(F.interpolate(self.pooled(y), size=size, mode="bilinear", align_corners=False))
        y = F.interpolate(self.join(torch.cat(found, 1)), size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.last(torch.cat([y, self.low(low)], 1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


family("DeepLab, ASPP", IMAGE)(Aspp)


@family("detector with a feature pyramid", (2, 3, 32, 32))
class Detector(nn.Module):
    """Three levels of features, added from the top down; one head, shared by all levels, with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 8, 3, 4), conv(8, 12, 3, 2), conv(12, 16, 3, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(n, 8, 1) for n in (8, 12, 16))
        self.smooth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.tower, self.scores, self.boxes = conv(8, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        maps = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for k in (1, 0):
            maps[k] = maps[k] + F.interpolate(maps[k + 1], scale_factor=2.0, mode="nearest")
        towers = [self.tower(smooth(m)) for smooth, m in zip(self.smooth, maps, strict=True)]
        scores = torch.cat([self.scores(t).flatten(2).transpose(1, 2) for t in towers], 1)
        boxes = torch.cat([self.boxes(t).flatten(2).transpose(1, 2) for t in towers], 1)
        return {"scores": scores.reshape(x.shape[0], -1, 3), "boxes": boxes.reshape(x.shape[0], -1, 4)}


@family("GAN generator", (2, 6))
class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.up1 = nn.Linear(6, 12 * 4), nn.ConvTranspose2d(12, 10, 4, 2, 1, bias=False)
        self.bn1, self.up2 = nn.BatchNorm2d(10), nn.ConvTranspose2d(10, 8, 4, 2, 1, bias=False)
        self.bn2, self.out = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, z):
        x = self.fc(z)
        x = x.view(x.shape[0], -1, 2, 2)
        return torch.tanh(self.out(F.relu(self.bn2(self.up2(F.relu(self.bn1(self.up1(x))))))))


@family("GAN discriminator, spectral norm", IMAGE)
def Discriminator() -> nn.Module:
    sn = nn.utils.parametrizations.spectral_norm
    body = sn(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2), sn(nn.Conv2d(8, 12, 4, 2, 1)), nn.LeakyReLU(0.2)
    return Seq(*body, nn.Conv2d(12, 1, 4))


@family("variational autoencoder", IMAGE)
class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = Seq(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.mean, self.spread = nn.Linear(192, 6), nn.Linear(192, 6)
        self.fc, self.decode = nn.Linear(6, 192), Seq(nn.ConvTranspose2d(12, 8, 2, 2), nn.ReLU())
        self.out = nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x):
        h = self.encode(x)
        mean, spread = self.mean(h), self.spread(h)
        z = mean + torch.exp(0.1 * torch.tanh(spread)) * 0.5  # the noise is a number here
        return self.out(self.decode(F.relu(self.fc(z)).unflatten(1, (-1, 4, 4)))), mean, spread


@family("3-D convolutions", (2, 2, 6, 8, 8))
def Video() -> nn.Module:
    def block(i: int, o: int, stride: int = 1) -> nn.Module:
        return Seq(nn.Conv3d(i, o, (3, 1, 1), stride, (1, 0, 0)), nn.Conv3d(o, o, (1, 3, 3), 1, (0, 1, 1)), nn.ReLU())

    return Seq(block(2, 8), nn.BatchNorm3d(8), block(8, 12, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 3))


@family("spatial transformer, coordinates", IMAGE)
class CoordConv(nn.Module):
    """Coordinates are made in the forward and joined as channels, then a grid of them samples the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(5, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1), nn.Linear(10, 6)
        self.c, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3)

    def forward(self, x):
        rows = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)[None, None, :, None].expand(x.shape[0], 1, -1, 16)
        theta = self.fc(F.relu(self.b(F.relu(self.a(torch.cat([x, rows, rows.transpose(2, 3)], 1))))).mean((2, 3)))
        grid = F.affine_grid(torch.tanh(theta).view(-1, 2, 3), [2, 3, 16, 16], align_corners=False)
        return self.out(F.relu(self.c(F.grid_sample(x, grid, align_corners=False))).mean((2, 3)))


@family("U-Net with attention gates and group norm", IMAGE)
class GatedUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Seq(nn.Conv2d(3, 8, 3, 1, 1), nn.GroupNorm(2, 8)), nn.Conv2d(8, 12, 3, 2, 1)
        self.gate_x, self.gate_y, self.psi = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 1, 1)
        self.c, self.out = nn.Conv2d(20, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.silu(self.a(x))
        b = F.interpolate(F.silu(self.b(a)), scale_factor=2.0, mode="nearest")
        gate = torch.sigmoid(self.psi(F.relu(self.gate_x(a) + self.gate_y(b))))
        return self.out(F.silu(self.c(torch.cat([a * gate, b], 1))))
