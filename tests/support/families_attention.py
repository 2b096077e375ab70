"""Families of transformers and what stands in for attention, with norms as Hugging Face writes them in Python."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from families import family
from torch import nn

Seq = nn.Sequential
IMAGE, TEXT = (2, 3, 16, 16), "ids 2 7 20"


class RMSNorm(nn.Module):
    """As Llama's: no module of torch."""

    def __init__(self, n: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(n)), eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class PythonLayerNorm(nn.Module):
    """As older models write it: mean and variance by hand."""

    def __init__(self, n: int, eps: float = 1e-7) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n)), eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(variance + self.eps)) + self.bias


class Attention(nn.Module):
    """Separate projections, heads by a stored number, as most of Hugging Face."""

    def __init__(self, n: int, heads: int, head_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.causal = heads, head_dim, causal
        self.q, self.k, self.v = (nn.Linear(n, heads * head_dim) for _ in range(3))
        self.o = nn.Linear(heads * head_dim, n)

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x, memory=None, bias=None):
        memory = x if memory is None else memory
        q, k, v = self.heads(self.q(x)), self.heads(self.k(memory)), self.heads(self.v(memory))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=self.causal)
        return self.o(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class Mlp(nn.Module):
    def __init__(self, n: int, wide: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(n, wide), nn.Linear(wide, n)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Pre(nn.Module):
    """A transformer block with norms in front."""

    def __init__(self, n: int, mixer: nn.Module, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.mixer, self.norm2, self.mlp = norm(n), mixer, norm(n), Mlp(n, 2 * n)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """Patches of an image as tokens, with a place for each."""

    def __init__(self, n: int, patch: int, cls: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, n, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, n)) if cls else None
        self.place = nn.Parameter(torch.zeros(1, (16 // patch) ** 2 + cls, n))

    def forward(self, x):
        x = self.proj(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        return x + self.place


@family("ViT", IMAGE)
class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(12, 8, cls=True)
        self.blocks = Seq(*(Pre(12, Attention(12, 3, 4)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x)))[:, 0])


class WindowAttention(nn.Module):
    """Swin: windows of 2 x 2, a table of relative places for every head, a shift by rolling."""

    def __init__(self, n: int, heads: int, shift: int, fixed_scale: bool) -> None:
        super().__init__()
        self.num_heads, self.shift, self.scale = heads, shift, (n // heads) ** -0.5 if fixed_scale else None
        self.qkv, self.proj = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.table = nn.Parameter(torch.zeros(9, heads))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None, :]) + 1
        self.register_buffer("index", apart[0] * 3 + apart[1])

    def forward(self, x):
        b, h, w, c = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(x).reshape(x.shape[0], 4, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scale = (c // self.num_heads) ** -0.5 if self.scale is None else self.scale
        scores = (q * scale) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], 4, -1)
        y = self.proj(y).view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


@family("Swin", IMAGE)
class Swin(nn.Module):
    fixed_scale = True

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.stage1 = Seq(*(Pre(8, WindowAttention(8, 2, shift, self.fixed_scale)) for shift in (0, 1)))
        self.merge_norm, self.merge = nn.LayerNorm(32), nn.Linear(32, 12)
        self.stage2, self.last = Pre(12, WindowAttention(12, 3, 0, self.fixed_scale)), nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.stage1(self.norm(self.patch(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(self.last(self.stage2(self.merge(self.merge_norm(x)))).mean((1, 2)))


@family(
    "Swin, the scale from the width",
    IMAGE,
    flops=0.8,
    floor="the forward computes width // heads ** -0.5, so that both are part of the function: widths and heads stay",
)
class SwinByWidth(Swin):
    """As torchvision writes it."""

    fixed_scale = False


class Transposed(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


@family("MLP-Mixer", IMAGE)
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.block = Tokens(12, 4), Seq(*(Pre(12, Transposed(Mlp(16, 10))) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.norm(self.block(self.tokens(x))).mean(1))


class SpatialGate(nn.Module):
    """gMLP: one half of the features, mixed over tokens, is multiplied with the other."""

    def __init__(self, n: int, wide: int, tokens: int) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(n, 2 * wide), nn.LayerNorm(wide), nn.Linear(wide, n)
        self.mix = nn.Linear(tokens, tokens)

    def forward(self, x):
        u, v = F.gelu(self.fc1(x)).chunk(2, dim=-1)
        return self.fc2(u * self.mix(self.norm(v).transpose(-1, -2)).transpose(-1, -2))


@family("gMLP", IMAGE)
class Gmlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = Tokens(12, 4), nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.gates, self.head = nn.ModuleList(SpatialGate(12, 10, 16) for _ in range(2)), nn.Linear(12, 4)

    def forward(self, x):
        x = self.tokens(x)
        for norm, gate in zip(self.norm, self.gates, strict=True):
            x = x + gate(norm(x))
        return self.head(x.mean(1))


@family("CoAtNet, convolutions then attention", IMAGE)
class CoAtNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Seq(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU())
        self.up, self.depth = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.down, self.wider = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 12, 2, 2)
        self.block, self.head = Pre(12, Attention(12, 3, 4)), nn.Linear(12, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(F.gelu(self.depth(F.gelu(self.up(x)))))
        return self.head(self.block(self.wider(x).flatten(2).transpose(1, 2)).mean(1))


@family("GPT", TEXT)
class Gpt(nn.Module):
    """Fused projections split by a stored width, a causal mask, the head tied to the embedding."""

    class Block(nn.Module):
        def __init__(self, n: int, heads: int) -> None:
            super().__init__()
            self.n_head, self.head_dim, self.split_size = heads, n // heads, n
            self.ln_1, self.c_attn, self.c_proj = nn.LayerNorm(n), nn.Linear(n, 3 * n), nn.Linear(n, n)
            self.ln_2, self.mlp = nn.LayerNorm(n), Mlp(n, 2 * n)

        def forward(self, x):
            q, k, v = (
                t.view(*t.shape[:-1], -1, self.head_dim).transpose(1, 2)
                for t in self.c_attn(self.ln_1(x)).split(self.split_size, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x = x + self.c_proj(y.reshape(*y.shape[:-2], -1))
            return x + self.mlp(self.ln_2(x))

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 12), nn.Embedding(7, 12)
        self.h, self.ln_f = nn.ModuleList(Gpt.Block(12, 3) for _ in range(2)), nn.LayerNorm(12)
        self.lm_head = nn.Linear(12, 20, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


@family("BERT", TEXT)
class Bert(nn.Module):
    """Norms behind, written in Python; a pooled first token; the word head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place, self.kind = nn.Embedding(20, 12), nn.Embedding(7, 12), nn.Embedding(2, 12)
        self.norm = PythonLayerNorm(12)
        self.attention = nn.ModuleList(Attention(12, 3, 4) for _ in range(2))
        self.mlp = nn.ModuleList(Mlp(12, 24) for _ in range(2))
        self.norms = nn.ModuleList(PythonLayerNorm(12) for _ in range(4))
        self.pooler, self.classes = nn.Linear(12, 12), nn.Linear(12, 3)
        self.transform, self.decoder = nn.Linear(12, 12), nn.Linear(12, 20)
        self.decoder.weight = self.word.weight

    def forward(self, ids):
        places = torch.arange(ids.shape[1]).unsqueeze(0)
        x = self.norm(self.word(ids) + self.place(places) + self.kind(torch.zeros_like(ids)))
        for k, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = self.norms[2 * k](x + attention(x))
            x = self.norms[2 * k + 1](x + mlp(x))
        return self.classes(torch.tanh(self.pooler(x[:, 0]))), self.decoder(F.gelu(self.transform(x)))


@family("T5, encoder and decoder", TEXT, "ids 2 5 20")
class T5(nn.Module):
    """One embedding for both sides, relative places as a bias shared by all layers, cross attention, RMS norms."""

    class Layer(nn.Module):
        def __init__(self, n: int, cross: bool) -> None:
            super().__init__()
            self.norms = nn.ModuleList(RMSNorm(n) for _ in range(2 + cross))
            self.own, self.mlp = Attention(n, 3, 4), Mlp(n, 24)
            self.cross = Attention(n, 3, 4) if cross else None

        def forward(self, x, bias, memory=None):
            x = x + self.own(self.norms[0](x), bias=bias)
            if self.cross is not None:
                x = x + self.cross(self.norms[1](x), memory)
            return x + self.mlp(self.norms[-1](x))

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.bias = nn.Embedding(20, 12), nn.Embedding(8, 3)
        self.decoder_bias = nn.Embedding(8, 3)
        self.encoder, self.decoder = T5.Layer(12, False), T5.Layer(12, True)
        self.norm, self.last, self.head = RMSNorm(12), RMSNorm(12), nn.Linear(12, 20, bias=False)

    def places(self, table, n):
        at = torch.arange(n)
        return table((at[None, :] - at[:, None]).abs().clamp(max=7)).permute(2, 0, 1).unsqueeze(0)

    def forward(self, ids, target):
        memory = self.norm(self.encoder(self.shared(ids), self.places(self.bias, ids.shape[1])))
        y = self.decoder(self.shared(target), self.places(self.decoder_bias, target.shape[1]), memory)
        return self.head(self.last(y))


class LlamaAttention(nn.Module):
    """Grouped queries, rotary places, heads by `view(..., -1, head_dim)`."""

    def __init__(self, n: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups = head_dim, heads // kv_heads
        self.q_proj = nn.Linear(n, heads * head_dim, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(n, kv_heads * head_dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * head_dim, n, bias=False)

    def repeat_kv(self, x):
        b, heads, n, d = x.shape
        x = x[:, :, None].expand(b, heads, self.num_key_value_groups, n, d)
        return x.reshape(b, heads * self.num_key_value_groups, n, d)

    @staticmethod
    def turned(x, cos, sin):
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    def forward(self, x, cos, sin):
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.turned(q, cos, sin), self.turned(k, cos, sin)
        scores = q @ self.repeat_kv(k).transpose(2, 3) * self.head_dim**-0.5
        mask = torch.full((x.shape[1], x.shape[1]), -1e9, dtype=x.dtype).triu(1)
        y = torch.softmax(scores + mask, dim=-1) @ self.repeat_kv(v)
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:-1], -1))


class SwiGlu(nn.Module):
    def __init__(self, n: int, wide: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(n, wide, bias=False), nn.Linear(n, wide, bias=False)
        self.down_proj = nn.Linear(wide, n, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@family("Llama: RMS norm, rotary, grouped queries, SwiGLU", TEXT)
class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.norms = nn.ModuleList(RMSNorm(12) for _ in range(5))
        self.attention = nn.ModuleList(LlamaAttention(12, 4, 2, 4) for _ in range(2))
        self.mlp, self.head = nn.ModuleList(SwiGlu(12, 20) for _ in range(2)), nn.Linear(12, 20, bias=False)
        self.register_buffer("inv_freq", torch.tensor([1.0, 0.1]))

    def forward(self, ids):
        x = self.embed(ids)
        angle = torch.arange(ids.shape[1], dtype=x.dtype)[:, None] * self.inv_freq
        angle = torch.cat([angle, angle], -1)
        for k, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = x + attention(self.norms[2 * k](x), angle.cos(), angle.sin())
            x = x + mlp(self.norms[2 * k + 1](x))
        return self.head(self.norms[-1](x))


@family("mixture of experts", TEXT)
class MoE(nn.Module):
    """Every expert runs on every token; a token heeds the two that the router likes best."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.router = nn.Embedding(20, 12), RMSNorm(12), nn.Linear(12, 4, bias=False)
        self.experts = nn.ModuleList(SwiGlu(12, 16) for _ in range(4))
        self.last, self.head = RMSNorm(12), nn.Linear(12, 20)

    def forward(self, ids):
        x = self.embed(ids)
        y = self.norm(x)
        weights = torch.softmax(self.router(y), -1)
        top = weights.topk(2, dim=-1).values[..., -1:]
        weights = torch.where(weights >= top, weights, torch.zeros_like(weights))
        for k, expert in enumerate(self.experts):
            x = x + weights[..., k : k + 1] * expert(y)
        return self.head(self.last(x))


@family("Mamba: a scan and a causal convolution", TEXT)
class Mamba(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n, self.state, self.rank = 12, 4, 3
        self.embed, self.norm = nn.Embedding(20, 8), RMSNorm(8)
        self.in_proj, self.out_proj = nn.Linear(8, 24, bias=False), nn.Linear(12, 8, bias=False)
        self.conv1d = nn.Conv1d(12, 12, 3, groups=12, padding=2)
        self.x_proj, self.dt_proj = nn.Linear(12, 11, bias=False), nn.Linear(3, 12)
        self.A_log, self.D = nn.Parameter(torch.zeros(12, 4)), nn.Parameter(torch.ones(12))
        self.last, self.head = RMSNorm(8), nn.Linear(8, 20)

    def scan(self, x):
        dt, b, c = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        decay, gain = torch.exp(-dt[..., None] * torch.exp(self.A_log)), (dt * x)[..., None] * b[:, :, None, :]
        h, found = torch.zeros_like(gain[:, 0]), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + gain[:, t]
            found.append((h * c[:, t, None, :]).sum(-1))
        return torch.stack(found, 1) + x * self.D

    def forward(self, ids):
        x = self.embed(ids)
        y, gate = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        y = F.silu(self.conv1d(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        x = x + self.out_proj(self.scan(y) * F.silu(gate))
        return self.head(self.last(x))


@family("CLIP, two towers", IMAGE, TEXT)
class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Seq(Tokens(12, 8), Pre(12, Attention(12, 3, 4))), nn.Embedding(20, 8)
        self.block, self.scale = Pre(8, Attention(8, 2, 4, causal=True)), nn.Parameter(torch.tensor(1.0))
        self.a, self.b = nn.Linear(12, 10, bias=False), nn.Linear(8, 10, bias=False)

    def forward(self, image, ids):
        u = F.normalize(self.a(self.image(image).mean(1)), dim=-1)
        v = F.normalize(self.b(self.block(self.text(ids))[:, -1]), dim=-1)
        return self.scale.exp() * u @ v.t()


@family("DETR, queries over an image", IMAGE)
class Detr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Seq(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1))
        self.encoder, self.queries = Pre(12, Attention(12, 3, 4)), nn.Parameter(torch.zeros(1, 3, 12))
        self.cross, self.norm, self.mlp = Attention(12, 3, 4), nn.LayerNorm(12), Mlp(12, 24)
        self.classes, self.boxes = nn.Linear(12, 4), Seq(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x):
        memory = self.encoder(self.backbone(x).flatten(2).transpose(1, 2))
        y = self.queries.expand(x.shape[0], -1, -1)
        y = self.norm(y + self.cross(y, memory))
        y = y + self.mlp(y)
        return self.classes(y), self.boxes(y).sigmoid()


@family("DiT, norms that a condition shifts", IMAGE, (2, 6))
class Dit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.embed, self.shift = Tokens(12, 4), Seq(nn.Linear(6, 12), nn.SiLU()), nn.Linear(12, 36)
        self.norm, self.attention = nn.LayerNorm(12), Attention(12, 3, 4)
        self.last, self.out = nn.LayerNorm(12), nn.Linear(12, 48)

    def forward(self, x, t):
        x = self.tokens(x)
        shift, scale, gate = self.shift(self.embed(t)).unsqueeze(1).chunk(3, dim=-1)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift)
        return self.out(self.last(x))


# -- neither images nor text -------------------------------------------------------------------------------------------


@family("PointNet", (2, 3, 10))
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = Seq(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
        self.fc = nn.Linear(8, 9)
        self.body = Seq(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16))
        self.head = Seq(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x):
        turn = self.fc(self.turn(x).amax(2)).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        return self.head(torch.max(self.body(turn @ x), 2, keepdim=False)[0])


@family("graph network, messages by index_add", (6, 5), "ids 2 9 6")
class Gnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.own = nn.Linear(5, 10), nn.Linear(20, 12), nn.Linear(10, 12)
        self.norm, self.head = nn.LayerNorm(12), Seq(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, edges):
        x = F.relu(self.embed(x))
        sent = F.relu(self.message(torch.cat([x[edges[0]], x[edges[1]]], -1)))
        gathered = torch.zeros(x.shape[0], sent.shape[1], dtype=x.dtype).index_add(0, edges[1], sent)
        return self.head(self.norm(F.relu(self.own(x) + gathered)))


@family("audio: dilated gated convolutions", (2, 1, 64))
class WaveNet(nn.Module):
    """WaveNet: gates, a residual, and skips that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 4, 4)
        self.gates = nn.ModuleList(nn.Conv1d(8, 20, 3, padding=d, dilation=d) for d in (1, 2))
        self.keep, self.skip = (nn.ModuleList(nn.Conv1d(10, n, 1) for _ in range(2)) for n in (8, 12))
        self.last = Seq(nn.ReLU(), nn.Conv1d(12, 8, 1), nn.ReLU(), nn.Conv1d(8, 3, 1))

    def forward(self, x):
        x, total = self.first(x), 0
        for gate, keep, skip in zip(self.gates, self.keep, self.skip, strict=True):
            a, b = gate(x).chunk(2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + keep(y), total + skip(y)
        return self.last(total)


@family("speech: convolutions, then attention", (2, 1, 64))
class Speech(nn.Module):
    """wav2vec: a convolution stack with group norm, a grouped positional convolution, a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(1, 8, 4, 2), nn.GroupNorm(8, 8), nn.Conv1d(8, 8, 3, 2)
        self.project, self.place = nn.Linear(8, 12), nn.Conv1d(12, 12, 3, padding=1, groups=3)
        self.block, self.head = Pre(12, Attention(12, 3, 4)), nn.Linear(12, 5)

    def forward(self, x):
        x = self.project(F.gelu(self.b(F.gelu(self.norm(self.a(x))))).transpose(1, 2))
        x = x + F.gelu(self.place(x.transpose(1, 2)).transpose(1, 2))
        return self.head(self.block(x))


@family("time series: patches, channels apart", (2, 16, 3))
class PatchSeries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(4, 12), Pre(12, Attention(12, 3, 4))
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        b, _, c = x.shape
        x = x.transpose(1, 2).unfold(-1, 4, 4).reshape(b * c, 4, 4)
        return self.head(self.block(self.embed(x)).flatten(1)).view(b, c, -1)


@family("recommender: embeddings, a product, a deep part", "ids 4 2 9", (4, 3))
class DeepFm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.dense = nn.Embedding(9, 8), nn.Linear(3, 8)
        self.deep = Seq(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, ids, x):
        found = torch.cat([self.embed(ids), self.dense(x).unsqueeze(1)], 1)
        pairs = 0.5 * (found.sum(1).square() - found.square().sum(1)).sum(1, keepdim=True)
        return self.deep(found.flatten(1)) + pairs / math.sqrt(3)
