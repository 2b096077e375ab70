"""More networks for the table of `nets`: computed weights, sizes in arithmetic, norms by hand, layers of torch.nn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nets import IMAGE, Seq, net
from torch import nn

NARROW = ({"params": 0.85}, {"flops": 0.85})  # what must stay leaves little to prune


@net(IMAGE, free="a b")
class ComputedWeight(nn.Module):
    """Weights that are made of other parameters in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1)
        self.gain, self.head = nn.Parameter(torch.ones(10, 1, 1, 1)), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return self.head((y + F.conv2d(self.a(x), self.b.weight * self.gain)).relu())


@net(IMAGE, free="0")
def Paddings() -> nn.Module:
    return Seq(
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 10, 3, padding=1, padding_mode="circular"),
        nn.ReflectionPad2d(1),
        nn.ZeroPad2d(1),
        nn.Conv2d(10, 2, 3, padding=1, padding_mode="replicate"),
    )


@net(IMAGE, free="stem a b")
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 10, 1),
            nn.Conv2d(10, 8, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        y = self.b(F.relu_(self.a(x)))
        y += x
        y.mul_(0.5).clamp_(min=0)
        return self.head(y)


@net(IMAGE, free="a b", masked=False)
class SpatialAttention(nn.Module):
    """CBAM: mean and maximum over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 1, 3, padding=1)
        self.b, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.a(x)
        m = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(self.b(x * self.gate(m).sigmoid()).relu())


@net((2, 4, 6), (2, 5, 6), free="layer.linear1", budget=({"params": 0.9},))
class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(6, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x, memory):
        return self.head(self.layer(x, memory))


@net((2, 4, 6), free="up layers.layers.0.linear1", budget=({"params": 0.9},))
class Encoder(nn.Module):
    """Two layers of torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.layers(self.up(x)))


@net((3, 5), free="a cell.w")
class Recurrent(nn.Module):
    """A cell written by hand, with gates that are cut from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.cell = nn.ModuleDict({"w": nn.Linear(5, 18), "u": nn.Linear(6, 18, bias=False)})

    def forward(self, x):
        h = self.a(x).tanh()
        for _ in range(2):
            r, z, n = self.cell["w"](x).chunk(3, 1)
            rr, zz, nn_ = self.cell["u"](h).chunk(3, 1)
            r, z = torch.sigmoid(r + rr), torch.sigmoid(z + zz)
            h = (1 - z) * torch.tanh(n + r * nn_) + z * h
        return self.head(h)


@net((2, 3, 8, 8), free="a b lateral0 lateral1")
class Pyramid(nn.Module):
    """A feature pyramid with several outputs and a shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.lateral0, self.lateral1 = nn.Conv2d(6, 7, 1), nn.Conv2d(8, 7, 1)
        self.tower, self.head = nn.Conv2d(7, 7, 3, padding=1), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        a = self.a(x).relu()
        p1 = self.lateral1(self.b(a).relu())
        p0 = self.lateral0(a) + F.interpolate(p1, scale_factor=2.0, mode="nearest")
        return [self.head(self.tower(p).relu()) for p in (p0, p1)]


@net(IMAGE, free="0 2", budget=({"params": 0.4},))
def GroupedDown() -> nn.Module:
    """So few parameters that whole groups go."""
    return Seq(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1))


@net((2, 4, 5), free="a b", budget=({"params": 0.6},))
class BatchNormOnTokens(nn.Module):
    """Batch norm of (batch * tokens, channels) and of (batch, channels, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn1, self.b, self.bn2 = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.c = nn.Linear(6, 2)

    def forward(self, x):
        b, n, _ = x.shape
        y = self.bn1(self.a(x).flatten(0, 1)).view(b, n, -1)
        return self.c(self.bn2(self.b(y).transpose(1, 2)).transpose(1, 2))


@net((2, 6, 5), free="up", budget=NARROW)
class ScaleBySize(nn.Module):
    """The scale of the scores is computed from a size: that size must stay, or the scale would change."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.up, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        a = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.head(a @ self.up(x))


@net((2, 6, 5), free="up", budget=NARROW)
class ScaleByAttribute(nn.Module):
    """As before; the attribute also says how a value is viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.q, self.k, self.up, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        q, k = self.q(x).view(2, -1, self.width), self.k(x)
        a = (q @ k.transpose(1, 2) / self.width**0.5).softmax(-1)
        return self.head(a @ self.up(x))


@net((2, 6, 5), free="up", budget=NARROW)
class MeanBySize(nn.Module):
    """A mean by hand: a sum divided by the number of units."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.up, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x):
        q = self.q(x)
        return self.head(self.up(x) * (q.sum(-1, keepdim=True) / q.size(-1)))


@net((2, 6, 5), free="a b")
class Normalised(nn.Module):
    """Unit length over the channels; distances; a norm over the channels: zeros add nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 9), nn.Linear(9, 2)

    def forward(self, x):
        y = F.normalize(self.a(x), dim=-1)
        return self.c(self.b(x).relu()) + (y @ y.transpose(1, 2)).sum(-1, keepdim=True)


@net((2, 6, 5), free="mlp", budget=NARROW)
class HeadsStay(nn.Module):
    """Heads that meet numbers stay; the width that is divided by their number must stay with them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.mlp, self.up = nn.Linear(5, 20), nn.Linear(20, 12)
        self.qkv, self.head = nn.Linear(12, 36), nn.Linear(12, 2)

    def forward(self, x):
        x = self.up(self.mlp(x).relu())
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) * torch.linspace(1.0, 2.0, 3).view(3, 1, 1)).softmax(-1)
        return self.head((a @ v).transpose(1, 2).reshape(b, n, c))
