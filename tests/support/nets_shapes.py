"""The table of `nets`, continued: concatenation, splitting, shapes, shared parameters, inputs and outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nets import IMAGE, net
from torch import nn

# -- coupling by concatenation and splitting ---------------------------------------------------------------------------


@net(IMAGE, free="a b c")
class Dense(nn.Module):
    """Dense concatenation: each layer reads all before it, the input too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 6, 3, padding=1)
        self.bn, self.c, self.head = nn.BatchNorm2d(15), nn.Conv2d(15, 6, 1), nn.Conv2d(21, 2, 1)

    def forward(self, x):
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([x, self.b(x)], 1)
        return self.head(torch.cat([x, F.relu(self.c(self.bn(x)))], 1))


@net((3, 5), free="a b c")
class CatBothOrders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(10, 7), nn.Linear(17, 2)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.d(torch.cat([self.c(torch.cat([a, b], -1)), torch.cat([b, a], -1)], -1))


@net((3, 5), free="a b")
class CatTwice(nn.Module):
    """The same value twice in a concat, beside a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(21, 6), nn.Linear(6, 2)

    def forward(self, x):
        a = self.a(x).relu()
        return self.c(self.b(torch.cat([a, x, a], -1)).relu())


@net((3, 5), free="a b c")
class CatAdded(nn.Module):
    """A concat is added to one layer's output: each part ties its piece of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(5, 10), nn.Linear(10, 2)

    def forward(self, x):
        return self.d(torch.relu(torch.cat([self.a(x), self.b(x)], -1) + self.c(x)))


@net((3, 5), free="a")
class ChunkOrdered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        u, v = self.a(x).chunk(2, -1)
        return self.b(u) + self.c(v.relu())


@net((3, 5), free="a")
class ChunkSwapped(nn.Module):
    """The second part is read first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(6, 2), nn.Linear(12, 2)

    def forward(self, x):
        u, v = self.a(x).chunk(2, -1)
        return self.b(v) + self.c(torch.cat([v.tanh(), u], -1))


@net((3, 5), free="a b")
class SplitByAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 6, 3]
        self.a, self.b, self.c = nn.Linear(5, 13), nn.Linear(6, 6), nn.Linear(16, 2)

    def forward(self, x):
        u, v, w = self.a(x).split(self.sizes, dim=-1)
        return self.c(torch.cat([w, self.b(v), u, w], -1).relu())


@net((3, 5), free="a")
class SplitByWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.a, self.b = nn.Linear(5, 12), nn.Linear(4, 2)

    def forward(self, x):
        u, v, w = torch.split(self.a(x), self.width, -1)
        return self.b(u * v + w)


@net((3, 5), free="a")
class Sliced(nn.Module):
    """Slices by attribute and by a size that is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = 5
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(5, 2), nn.Linear(7, 2)

    def forward(self, x):
        y = self.a(x).relu()
        return self.b(y[:, : self.cut]) * self.c(y[:, self.cut :])


@net((3, 5), free="b")
class SlicedByNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(3, 12), nn.Linear(12, 2)

    def forward(self, x):
        y = self.a(x)
        return self.c(self.b(y[:, 1:4]).relu()) + y[:, 0:1] + y[:, -1:]


@net(IMAGE, free="a b")
class ChannelShuffle(nn.Module):
    """ShuffleNet: grouped, shuffled, depthwise, grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2)
        self.d, self.c, self.head = nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.c(self.d(y)).relu())


@net(IMAGE, free="a head1")
class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half passes, half is worked on; concat, shuffle by nn.ChannelShuffle's arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head1, self.head = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(12, 8, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x):
        u, v = self.a(x).chunk(2, 1)
        y = torch.cat([u, self.b(v).relu()], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(self.head1(y).relu())


@net((2, 12, 4, 4), free="stem a b")
class SwappedHalvesAdded(nn.Module):
    """x + swap(x): unit i and unit i + n/2 become one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(12, 12, 1),
            nn.Conv2d(12, 8, 1),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        u, v = x.chunk(2, 1)
        return self.head(self.b(self.a(x + torch.cat([v, u], 1)).relu()))


@net(IMAGE, free="stem a b")
class PaddedShortcut(nn.Module):
    """ResNet's option A: a strided identity with zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 3, 2, 1)
        self.b, self.head = nn.Conv2d(10, 10, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.a(x).relu())
        return self.head((y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).relu())


@net((2, 3, 4, 4), free="a b")
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(3, 24, 1), nn.PixelShuffle(2), nn.Conv2d(6, 5, 1)
        self.down, self.head = nn.PixelUnshuffle(2), nn.Conv2d(20, 2, 1)

    def forward(self, x):
        return self.head(self.down(self.b(self.up(self.a(x)).relu())))


@net((3, 5), free="a b")
class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 14), nn.Linear(7, 16), nn.Linear(8, 2)

    def forward(self, x):
        gate, y = self.b(F.glu(self.a(x), -1)).chunk(2, dim=-1)
        return self.c(F.silu(gate) * y)


@net((1, 3, 8, 8), free="a b c")
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.c = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(12, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(F.max_pool2d(a, 2)).relu()
        return self.head(self.c(torch.cat([self.up(b), a], 1)).relu())


# -- shapes ------------------------------------------------------------------------------------------------------------


@net((2, 3, 4, 4), free="a b")
class FlattenLinear(nn.Module):
    """Channels run slowest in the flattened vector; a batch is flattened with tokens, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Linear(4, 7), nn.Linear(96 + 84, 4)

    def forward(self, x):
        y = self.b(x.flatten(0, 1)).relu().unflatten(0, (2, 3))
        return self.c(torch.cat([self.a(x).relu().flatten(1), y.flatten(1)], 1))


@net((2, 3, 4, 4), free="a b")
class PermuteFlatten(nn.Module):
    """The channel runs fastest in the flattened vector."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Linear(96, 7), nn.Linear(7, 2)

    def forward(self, x):
        y = self.a(x).relu().permute(0, 2, 3, 1)
        return self.c(self.b(y.reshape(y.size(0), -1)).relu())


@net((2, 3, 4, 4), free="a")
class ViewBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Linear(96, 2)

    def forward(self, x):
        y = self.a(x)
        n, c, h, w = y.shape
        return self.b(y.view(n, c * h * w))


@net((2, 3, 4, 4), free="b")
class ViewByNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Linear(96, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).view(-1, 96)).relu())


@net((2, 6, 4), free="mix1 up head1")
class Mixer(nn.Module):
    """Tokens are mixed by linear layers on the transposed value, between residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix1, self.mix2 = nn.Linear(4, 8), nn.Linear(6, 10), nn.Linear(10, 6)
        self.norm, self.head1, self.head = nn.LayerNorm(8), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x):
        x = self.up(x)
        x = x + self.mix2(self.mix1(self.norm(x).transpose(1, 2)).relu()).transpose(1, 2)
        return self.head(self.head1(x.mean(1)).relu())


@net((2, 3, 8, 8), free="stem up down")
class ConvNeXt(nn.Module):
    """Channels last inside, a layer scale, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.gamma, self.head = nn.Parameter(torch.ones(8, 1, 1)), nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        return self.head((x + self.gamma * y.permute(0, 3, 1, 2)).mean([-2, -1]))


@net((2, 4, 4, 5), free="a b")
class Windows(nn.Module):
    """Tokens in windows as in Swin: rolled, cut into windows, put back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.roll(self.a(x), (1, 1), (1, 2))
        b, h, w, c = x.shape
        y = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        y = self.b(y).relu().view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.c(x + y)


@net((2, 6, 5), free="a b")
class SelectToken(nn.Module):
    """A class token in front, read off at the end; a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 9), nn.Linear(17, 2)
        self.token, self.place = nn.Parameter(torch.ones(1, 1, 8)), nn.Parameter(torch.ones(1, 7, 8))

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1) + self.place
        return self.c(torch.cat([self.b(x)[:, 0], x.select(1, -1)], -1).relu())


@net((2, 5), free="a b")
class RepeatExpand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.a(x).relu()
        y = y.unsqueeze(1).expand(-1, 3, -1) + y.unsqueeze(1).repeat(1, 3, 1)
        y = y.repeat_interleave(2, 1).repeat(1, 1, 2)
        return self.c(self.b(y).tanh().sum(1).unsqueeze(-1).squeeze(-1))


@net((2, 5), free="a b c")
class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        y = torch.stack([self.a(x), self.b(x)], 1)
        return self.d(self.c(y).amax(1) + torch.stack([self.c(t) for t in y.unbind(1)]).sum(0))


# -- parameters that are shared, or used outside layers ----------------------------------------------------------------


@net("ids 2 5 9", free="embed up")
class TiedHead(nn.Module):
    """The output layer shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(9, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.down(self.up(x).relu()))


@net((3, 5), free="enc")
class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.bias = nn.Linear(5, 12), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return F.linear(self.enc(x).sigmoid(), self.enc.weight.t(), self.bias)


@net((3, 5), free="a w")
class SharedLayer(nn.Module):
    """One layer, called three times in a row: its input units are its output units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.c = nn.Linear(5, 10), nn.Linear(10, 10), nn.Linear(10, 2)

    def forward(self, x):
        x = self.a(x)
        for _ in range(3):
            x = torch.tanh(self.w(x))
        return self.c(x)


@net((3, 5), (3, 5), free="a b")
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 10), nn.Linear(10, 8), nn.Linear(16, 2)

    def forward(self, x, y):
        u, v = (self.b(self.a(t).relu()) for t in (x, y))
        return self.c(torch.cat([u, v], 1))


@net((3, 5), free="matmul linear")
class RawParameters(nn.Module):
    """Weights that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.ones(5, 10)), nn.Parameter(torch.ones(10))
        self.scale, self.b, self.c = nn.Parameter(torch.ones(8, 1)), nn.Linear(10, 8), nn.Linear(8, 2)
        self.register_buffer("shift", torch.ones(10))

    def forward(self, x):
        y = (x @ self.w + self.v + self.shift).relu()
        return self.c(F.linear(y, self.b.weight * self.scale, self.b.bias).relu())


@net((2, 6, 5), free="a b")
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Linear(5, 8), nn.Linear(5, 8), nn.Parameter(torch.ones(8, 3))

    def forward(self, x):
        s = torch.einsum("bic,bjc->bij", self.a(x), self.b(x))
        return torch.einsum("bij,bjc,co->bio", s, self.a(x), self.w)


# -- inputs and outputs ------------------------------------------------------------------------------------------------


@net((2, 3, 6, 6), (2, 4), free="a b c", kwargs=(("scale", (2, 1)),))
class ManyInputs(nn.Module):
    """Two inputs and a keyword; a dict of outputs, one of them in the middle of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Linear(4, 8), nn.Linear(8, 9)
        self.aux, self.head = nn.Linear(8, 5), nn.Linear(14, 2)

    def forward(self, image, vector, *, scale):
        x = self.a(image).relu().amax((2, 3)) + self.b(vector) * scale
        aux = self.aux(x)
        return {"main": [self.head(torch.cat([self.c(x).relu(), aux], -1))], "aux": aux}


@net((2, 3), free="a", masked=False)
class SoftmaxOverUnits(nn.Module):
    """A softmax and a mean over units: they run over what stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 10), nn.Linear(10, 2)

    def forward(self, x):
        y = self.a(x)
        return self.b(y.softmax(-1)) + y.mean(-1, keepdim=True)
