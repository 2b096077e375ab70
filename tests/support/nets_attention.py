"""Small transformers for the table in `nets`: heads as units, in all the ways in which people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nets import net
from torch import nn

TOKENS = (2, 5, 6)
WIDE = ({"params": 0.75}, {"flops": 0.6})


class Block(nn.Module):
    """Widen, attend (`attend` of the subclass), add, norm, and a head; with room for heads of size 4."""

    def __init__(self, heads: int = 4, size: int = 4, width: int = 8) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.up, self.norm, self.head = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 2)

    def attend(self, x):
        raise NotImplementedError

    def forward(self, x):
        x = self.up(x)
        return self.head(self.norm(x + self.attend(x)))


@net(TOKENS, free="up q k v", budget=WIDE)
class AttentionSdpa(Block):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def attend(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, self.heads * self.size))


@net(TOKENS, free="up q k v", budget=WIDE)
class AttentionManual(Block):
    """Matmul, scale, mask, softmax, dropout, matmul; sizes read from the values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 12), nn.Linear(12, 8)
        self.register_buffer("mask", torch.ones(5, 5).tril().bool())

    def attend(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (q @ k.transpose(-2, -1)) * self.size**-0.5
        a = F.dropout(a.masked_fill(~self.mask, -1e9).softmax(-1), 0.1, self.training)
        return self.out((a @ v).transpose(1, 2).flatten(2))


@net(TOKENS, free="up qkv", budget=WIDE)
class FusedQkv(Block):
    """As in timm: one projection, reshaped to (3, heads, size)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48, bias=False), nn.Linear(16, 8)

    def attend(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


@net(TOKENS, free="up qkv", budget=WIDE)
class FusedQkvManual(Block):
    """One projection, cut into thirds first; the scores by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)

    def attend(self, x):
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).permute(0, 2, 1, 3) for t in self.qkv(x).chunk(3, dim=-1))
        a = torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / 2.0, dim=-1)
        return self.out(torch.matmul(a, v).permute(0, 2, 1, 3).contiguous().view(b, n, -1))


@net(TOKENS, free="up qkv", budget=WIDE)
class FusedQkvPerHead(Block):
    """q, k and v side by side within each head, as in GPT-NeoX."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)

    def attend(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, self.heads, 3 * self.size).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


@net(TOKENS, free="up q", budget=WIDE)
class GqaRepeat(Block):
    """Two key-value heads, each for two query heads, repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = 2
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def attend(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, -1, self.size).transpose(1, 2)
        k, v = (f(x).view(b, n, -1, self.size).transpose(1, 2).repeat_interleave(2, dim=1) for f in (self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


@net(TOKENS, free="up q k v", budget=WIDE)
class GqaExpand(Block):
    """As in Llama: expand, then reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.shared = 2, 2
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def attend(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, -1, self.size).transpose(1, 2)
        k, v = (self.spread(f(x).view(b, n, -1, self.size).transpose(1, 2)) for f in (self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))

    def spread(self, x):
        b, h, n, d = x.shape
        return x[:, :, None].expand(b, h, self.shared, n, d).reshape(b, h * self.shared, n, d)


@net(TOKENS, free="up q", budget=WIDE)
class GqaEnabled(Block):
    def __init__(self) -> None:
        super().__init__()
        self.kv = 2
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def attend(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


@net(TOKENS, (2, 7, 6), free="up q k", budget=WIDE)
class CrossAttention(Block):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 8)

    def forward(self, x, y):
        x = self.up(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = (f(y).view(b, y.shape[1], self.heads, -1).transpose(1, 2) for f in (self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.norm(x + self.out(z.transpose(1, 2).reshape(b, n, -1))))


@net(TOKENS, free="up q v", budget=WIDE)
class SingleHead(Block):
    """No heads at all: keys and queries share their units, with a scale that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(8, 12), nn.Linear(12, 8)

    def attend(self, x):
        a = (torch.bmm(self.q(x), self.k(x).transpose(1, 2)) * 0.25).softmax(-1)
        return self.out(torch.bmm(a, self.v(x)))


@net(TOKENS, free="up", budget=WIDE)
class Rotary(Block):
    """Rotary embedding: halves of each head are swapped and multiplied with a table."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)
        angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turn(self, x):
        half = x.shape[-1] // 2
        return x * self.cos + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sin

    def attend(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


@net(TOKENS, free="up", budget=({"params": 0.95}, {"flops": 0.9}))
class Multihead(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def attend(self, x):
        return self.fc2(self.fc1(self.attn(x, x, x, need_weights=False)[0]).relu())


@net((5, 2, 6), (7, 2, 4), free="up", budget=({"params": 0.97}, {"flops": 0.95}))
class MultiheadCross(nn.Module):
    """Keys and values of other widths, tokens first, weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.attn = nn.Linear(4, 10), nn.MultiheadAttention(6, 2, kdim=10, vdim=4)
        self.head = nn.Linear(6, 2)

    def forward(self, x, y):
        z, w = self.attn(x, self.up(y).relu(), y)
        return self.head(z), w


@net(TOKENS, free="layer.linear1", budget=({"params": 0.85}, {"flops": 0.9}))
class EncoderLayer(nn.Module):
    """Its eval mode takes a fused path when gradients are off."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.up(x)))


@net((2, 3, 8, 8), free="patch qkv fc1", budget=WIDE)
class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.patch, self.token, self.place = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Parameter(torch.zeros(1, 1, 8)),
            nn.Parameter(torch.zeros(1, 5, 8)),
        )
        self.norm1, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm2, self.fc1, self.fc2, self.head = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.place
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, -1))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])
