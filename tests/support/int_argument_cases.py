"""Calls that stand between two layers, by the operation that they show: its int arguments over a dim that may change.

A case is the kind of input, and what the forward does with the value `h` of layer `a` (and `g` of a second layer like
it). Its dim of 16 units: the last one of "row" (16), "flat" (3, 16) and "tokens" (2, 5, 16), the channels of "line"
(16, 8), "frame" (16, 6, 6), "seq" (2, 16, 8), "image" (2, 16, 6, 6) and "volume" (2, 16, 4, 4, 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 16
INPUTS = {
    "row": (6,),
    "flat": (3, 6),
    "tokens": (2, 5, 6),
    "line": (6, 8),
    "frame": (6, 6, 6),
    "seq": (2, 6, 8),
    "image": (2, 6, 6, 6),
    "volume": (2, 6, 4, 4, 4),
}
SPACE = {"line": 1, "frame": 2, "seq": 1, "image": 2, "volume": 3}
CONVS: list[Any] = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d]
Case = tuple[str, Callable[..., Any]]


class Between(nn.Module):
    """Layers a and g, then the call, then layer o over whatever it returns."""

    def __init__(self, kind: str, use: Callable[..., Any]) -> None:
        super().__init__()
        self.use, self.space = use, SPACE.get(kind, 0)
        self.operands = use.__code__.co_argcount - len(use.__defaults__ or ()) - 1
        self.a, self.g = (self.layer(6, WIDTH, 3) for _ in range(2))
        self.extra = EXTRAS.get(use, nn.Identity)()
        self.width, self.heads, self.four = WIDTH, 4, 4
        self.register_buffer("ids", torch.tensor([0, 2, 1]))
        with torch.no_grad():
            y = self.between(torch.randn(INPUTS[kind]))
        self.conv_at_end = self.space > 0 and y.dim() in (self.space + 1, self.space + 2) and y.shape[-1] != WIDTH
        self.o = self.layer(y.shape[-self.space - 1], 3, 1) if self.conv_at_end else nn.Linear(y.shape[-1], 3)

    def layer(self, i: int, o: int, kernel: int) -> nn.Module:
        if not self.space:
            return nn.Linear(i, o)
        return CONVS[self.space](i, o, kernel, padding=kernel // 2)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        if self.operands == 1:
            return self.use(self, self.a(x))
        return self.use(self, self.a(x), self.g(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.between(x))


EXTRAS: dict[Callable[..., Any], Callable[[], nn.Module]] = {}


def extra(make: Callable[[], nn.Module], use: Callable[..., Any]) -> Callable[..., Any]:
    """A call that uses a further layer, `m.extra`."""
    EXTRAS[use] = make
    return use


def layer(make: Callable[[], nn.Module]) -> Callable[..., Any]:
    """The call of a further layer."""
    return extra(make, lambda m, h: m.extra(h))


class First(nn.Module):
    """The output of a layer that returns its states, too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.layer(h)[0]


class NormInterface(nn.Module):
    """Weight norm by the operation that also returns the norms."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_v, self.weight_g = nn.Parameter(torch.randn(12, 16)), nn.Parameter(torch.randn(12, 1))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return F.linear(h, torch._weight_norm_interface(self.weight_v, self.weight_g, 0)[0])


def every(kinds: str, use: Callable[..., Any]) -> list[Case]:
    """One call on inputs of several kinds."""
    return [(kind, use) for kind in kinds.split()]


def joined(*parts: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Parts put together in another order."""
    return torch.cat(parts[::-1], dim)


def heads(m: Any, h: torch.Tensor) -> torch.Tensor:
    """(..., 16) as (..., heads, 4), with the number of heads as an attribute."""
    return h.unflatten(-1, (m.heads, 4))


def pools(name: str, **ints: Any) -> list[Case]:
    """A pooling function in one, two or three dims, batched and not."""
    out: list[Case] = []
    for k, kinds in ((1, "seq line"), (2, "image frame"), (3, "volume")):
        f = getattr(F, name.format(k), None)
        if f is not None:
            out += every(kinds, lambda m, h, f=f: f(h, **ints))
    return out


def index_select(h: torch.Tensor, d: int, m: Any) -> torch.Tensor:
    return h.index_select(d, m.ids)


a = torch.ops.aten
CASES: dict[str, list[Case]] = {
    # layers
    "linear": [
        *every("row flat tokens", layer(lambda: nn.Linear(16, 12))),
        ("seq", extra(lambda: nn.Linear(8, 8), lambda m, h: m.extra(h.unflatten(1, (-1, 4))).flatten(1))),
    ],
    "embedding": [
        ("flat", extra(lambda: nn.Embedding(7, 16, padding_idx=0), lambda m, h: h + m.extra(m.ids))),
        ("flat", extra(lambda: nn.Embedding(7, 16, padding_idx=-2), lambda m, h: h * m.extra(m.ids))),
    ],
    "conv1d": [
        *every("seq line", layer(lambda: nn.Conv1d(16, 8, 3, stride=2, padding=2, dilation=2))),
        *every("seq line", layer(lambda: nn.Conv1d(16, 8, 3, groups=4))),
        *every("seq", layer(lambda: nn.Conv1d(16, 16, 3, groups=16, padding="same"))),
        ("tokens", extra(lambda: nn.Conv1d(5, 4, 3, stride=2, padding=1), lambda m, h: m.extra(h))),
        (
            "tokens",
            extra(lambda: nn.Conv1d(16, 12, 3, padding=1), lambda m, h: m.extra(h.transpose(1, 2)).transpose(1, 2)),
        ),
        ("flat", extra(lambda: nn.Conv1d(3, 3, 1), lambda m, h: m.extra(h.view(3, 4, 4).permute(1, 0, 2)).flatten(1))),
        ("flat", extra(lambda: nn.Conv1d(3, 3, 1), lambda m, h: m.extra(heads(m, h).permute(1, 0, 2)).sum(2).t())),
        ("flat", extra(lambda: nn.Conv1d(4, 6, 1), lambda m, h: m.extra(heads(m, h)).flatten(1))),
        ("flat", extra(lambda: nn.Conv1d(4, 6, 1), lambda m, h: m.extra(heads(m, h).transpose(1, 2)).flatten(1))),
    ],
    "conv2d": [
        *every("image frame", layer(lambda: nn.Conv2d(16, 8, 3, stride=(2, 1), padding=(1, 2), dilation=2))),
        *every("image", layer(lambda: nn.Conv2d(16, 32, 3, groups=4))),
        *every("image frame", layer(lambda: nn.Conv2d(16, 32, 3, groups=16))),
        *every("image", layer(lambda: nn.Conv2d(16, 8, 3, groups=2, padding_mode="circular", padding=1))),
    ],
    "conv3d": [
        *every("volume", layer(lambda: nn.Conv3d(16, 8, 2, stride=2, padding=1, dilation=2))),
        *every("volume", layer(lambda: nn.Conv3d(16, 8, 2, groups=2))),
    ],
    "conv_transpose1d": [
        *every("seq line", layer(lambda: nn.ConvTranspose1d(16, 8, 3, stride=2, padding=1, output_padding=1))),
        *every("seq", layer(lambda: nn.ConvTranspose1d(16, 8, 3, groups=4, dilation=2))),
    ],
    "conv_transpose2d": [
        *every("image", layer(lambda: nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1))),
        *every("image frame", layer(lambda: nn.ConvTranspose2d(16, 16, 3, groups=16, dilation=2))),
    ],
    "conv_transpose3d": [
        *every("volume", layer(lambda: nn.ConvTranspose3d(16, 8, 2, stride=2, padding=1, output_padding=1))),
        *every("volume", layer(lambda: nn.ConvTranspose3d(16, 16, 2, groups=4, dilation=2))),
    ],
    "convolution": [
        (
            "image",
            extra(
                lambda: nn.Conv2d(16, 8, 3),
                lambda m, h: a.convolution(h, m.extra.weight, m.extra.bias, [2, 2], [1, 1], [2, 2], False, [0, 0], 1),
            ),
        ),
        (
            "image",
            extra(
                lambda: nn.ConvTranspose2d(16, 8, 3, groups=2),
                lambda m, h: a.convolution(h, m.extra.weight, m.extra.bias, [2, 2], [1, 1], [1, 1], True, [1, 1], 2),
            ),
        ),
    ],
    "batch_norm": [
        *every("seq", layer(lambda: nn.BatchNorm1d(16))),
        *every("flat", layer(lambda: nn.BatchNorm1d(16))),
        *every("tokens", layer(lambda: nn.BatchNorm1d(5))),
        *every("image", layer(lambda: nn.BatchNorm2d(16))),
    ],
    "instance_norm": [
        *every("seq line", layer(lambda: nn.InstanceNorm1d(16, affine=True))),
        *every("tokens", layer(lambda: nn.InstanceNorm1d(5))),
    ],
    "native_batch_norm": [
        (
            "image",
            extra(
                lambda: nn.BatchNorm2d(16),
                lambda m, h: a.native_batch_norm(
                    h, m.extra.weight, m.extra.bias, m.extra.running_mean, m.extra.running_var, False, 0.1, 1e-5
                )[0],
            ),
        ),
        (
            "image",
            extra(
                lambda: nn.BatchNorm2d(16),
                lambda m, h: a._native_batch_norm_legit_no_training(
                    h, m.extra.weight, m.extra.bias, m.extra.running_mean, m.extra.running_var, 0.1, 1e-5
                )[0],
            ),
        ),
        ("flat", lambda m, h: a.native_dropout(h, 0.5, False)[0]),
        (
            "image",
            extra(
                lambda: nn.BatchNorm2d(16),
                lambda m, h: F.batch_norm(h, m.extra.running_mean, m.extra.running_var, m.extra.weight, m.extra.bias),
            ),
        ),
        ("image", extra(lambda: nn.GroupNorm(4, 16), lambda m, h: F.group_norm(h, 4, m.extra.weight, m.extra.bias))),
        ("image", lambda m, h: F.group_norm(h, m.heads)),
    ],
    "layer_norm": [
        *every("row flat tokens", layer(lambda: nn.LayerNorm(16))),
        ("seq", layer(lambda: nn.LayerNorm(8))),
        ("image", layer(lambda: nn.LayerNorm((6, 6)))),
        ("tokens", extra(lambda: nn.LayerNorm(16), lambda m, h: m.extra(h.flip(-2)))),
    ],
    "rms_norm": [*every("row tokens", layer(lambda: nn.RMSNorm(16))), ("seq", layer(lambda: nn.RMSNorm(8)))],
    "native_layer_norm": [
        (
            "flat",
            extra(
                lambda: nn.LayerNorm(16),
                lambda m, h: a.native_layer_norm(h, [h.shape[1]], m.extra.weight, m.extra.bias, 1e-5)[0],
            ),
        ),
        ("seq", lambda m, h: a.native_layer_norm(h, [8], None, None, 1e-5)[0]),
    ],
    "group_norm": [
        ("image", layer(lambda: nn.GroupNorm(4, 16))),
        ("seq", layer(lambda: nn.GroupNorm(16, 16))),
        ("flat", layer(lambda: nn.GroupNorm(2, 16))),
        ("tokens", layer(lambda: nn.GroupNorm(5, 5))),
    ],
    # along dims
    "softmax": [
        ("flat", lambda m, h: h.softmax(0)),
        ("tokens", lambda m, h: h.softmax(-2)),
        ("image", lambda m, h: h.softmax(-1)),
        *every("row flat tokens", lambda m, h: h.softmax(-1)),
        ("tokens", lambda m, h: heads(m, h).softmax(-1).flatten(-2)),
        ("tokens", lambda m, h: heads(m, h).softmax(-2).flatten(-2)),
    ],
    "log_softmax": [("flat", lambda m, h: h.log_softmax(0)), ("flat", lambda m, h: h.log_softmax(1))],
    "_softmax": [("flat", lambda m, h: a._softmax(h, 0, False)), ("flat", lambda m, h: a._softmax(h, -1, False))],
    "_log_softmax": [
        ("flat", lambda m, h: a._log_softmax(h, 0, False)),
        ("flat", lambda m, h: a._log_softmax(h, -1, False)),
    ],
    "cumsum": [
        ("flat", lambda m, h: h.cumsum(0)),
        ("flat", lambda m, h: h.cumsum(-1)),
        ("tokens", lambda m, h: h.cumsum(-2)),
        ("tokens", lambda m, h: heads(m, h).cumsum(-1).flatten(-2)),
    ],
    "cumprod": [("tokens", lambda m, h: h.cumprod(1)), ("flat", lambda m, h: h.cumprod(1))],
    "logcumsumexp": [("tokens", lambda m, h: h.logcumsumexp(1)), ("flat", lambda m, h: h.logcumsumexp(-1))],
    "flip": [
        ("tokens", lambda m, h: h.flip(0, -2)),
        ("flat", lambda m, h: h.flip(1)),
        ("image", lambda m, h: h.flip(-1)),
        ("tokens", lambda m, h: heads(m, h).flip(-1).flatten(-2)),
        ("flat", lambda m, h: heads(m, h).flip(1).flatten(1)),
    ],
    "roll": [
        ("tokens", lambda m, h: h.roll((1, -2), (0, 1))),
        ("flat", lambda m, h: h.roll(3, 1)),
        ("flat", lambda m, h: h.roll(5)),
        ("row", lambda m, h: h.roll(-2, 0)),
        ("image", lambda m, h: h.roll(7, -1)),
        ("tokens", lambda m, h: heads(m, h).roll(1, -1).flatten(-2)),
    ],
    "sort": [
        ("tokens", lambda m, h: h.sort(1)[0]),
        ("flat", lambda m, h: h.sort(dim=-1, descending=True)[0]),
        ("tokens", lambda m, h: h + h.sort(dim=1, stable=True)[1]),
        ("flat", lambda m, h: h + h.sort()[1]),
    ],
    "argsort": [
        ("tokens", lambda m, h: h + h.argsort(1)),
        ("flat", lambda m, h: h + h.argsort(-1)),
        ("tokens", lambda m, h: h + h.argsort(dim=-2, stable=True)),
    ],
    # pooling
    "max_pool1d": pools("max_pool{}d", kernel_size=3, stride=2, padding=1, dilation=2),
    "max_pool": [
        ("flat", lambda m, h: F.max_pool1d(h, 2)),
        ("tokens", lambda m, h: F.max_pool1d(h, 4, 4)),
        ("tokens", lambda m, h: F.max_pool2d(h, (2, 1), (1, 1))),
    ],
    "avg_pool1d": pools("avg_pool{}d", kernel_size=3, stride=2, padding=1),
    "avg_pool2d": [
        *every("image frame", lambda m, h: F.avg_pool2d(h, 2, divisor_override=3)),
        ("volume", lambda m, h: F.avg_pool3d(h, 2, divisor_override=5)),
    ],
    "adaptive_avg_pool1d": pools("adaptive_avg_pool{}d", output_size=2),
    "adaptive_max_pool1d": pools("adaptive_max_pool{}d", output_size=3),
    "adaptive": [
        ("tokens", lambda m, h: F.adaptive_avg_pool1d(h, 4)),
        ("tokens", lambda m, h: F.adaptive_avg_pool2d(h, (1, 16))),
        ("image", lambda m, h: h + F.adaptive_max_pool2d(h, 6, return_indices=True)[1]),
    ],
    "max_pool2d_with_indices": [
        ("image", lambda m, h: F.max_pool2d(h, (2, 3), (1, 2), 1, 2, return_indices=True)[0]),
        ("image", lambda m, h: F.max_pool2d(h, 2, return_indices=True)[1].to(h.dtype)),
    ],
    "upsample": [
        *(
            ("image", lambda m, h, mode=mode: F.interpolate(h, size=(4, 9), mode=mode))
            for mode in ("nearest", "bilinear", "bicubic", "nearest-exact")
        ),
        *(
            ("image", lambda m, h, mode=mode: F.interpolate(h, size=(4, 9), mode=mode, antialias=True))
            for mode in ("bilinear", "bicubic")
        ),
        *(("seq", lambda m, h, mode=mode: F.interpolate(h, size=(11,), mode=mode)) for mode in ("nearest", "linear")),
        *(
            ("volume", lambda m, h, mode=mode: F.interpolate(h, size=(3, 5, 6), mode=mode))
            for mode in ("nearest", "trilinear")
        ),
        ("tokens", lambda m, h: F.interpolate(h, size=32)),
        ("image", lambda m, h: F.interpolate(h, scale_factor=2)),
        ("image", lambda m, h: F.interpolate(h, size=(h.shape[1], 4))),
    ],
    "lp_pool2d": [("image", lambda m, h: F.lp_pool2d(h, 2, 2, stride=2)), ("seq", lambda m, h: F.lp_pool1d(h, 1, 3))],
    # reductions
    **{
        op: [
            ("tokens", lambda m, h, op=op: getattr(h, op)(dim=1)),
            ("tokens", lambda m, h, op=op: getattr(h, op)(dim=(0, -2))),
            ("flat", lambda m, h, op=op: h * getattr(h, op)(dim=-1, keepdim=True)),
            ("image", lambda m, h, op=op: getattr(h, op)(dim=(2, -1))),
            ("image", lambda m, h, op=op: h * getattr(h, op)(dim=(1, 3), keepdim=True)),
            ("tokens", lambda m, h, op=op: h * getattr(heads(m, h), op)(dim=-2).repeat(1, 1, m.heads)),
            ("tokens", lambda m, h, op=op: getattr(heads(m, h), op)(dim=-1)),
        ]
        for op in ("sum", "mean", "amax", "amin", "var", "std", "logsumexp")
    },
    "prod": [("tokens", lambda m, h: h.prod(1)), ("flat", lambda m, h: h * h.prod(-1, keepdim=True))],
    "all": [
        ("tokens", lambda m, h: (h > 0).all((0, 1)).to(h.dtype)),
        ("flat", lambda m, h: h * (h > 0).all(-1, True)),
        ("tokens", lambda m, h: (h > 0).all(1).to(h.dtype)),
        ("flat", lambda m, h: h * (h > 0).all()),
    ],
    "any": [
        ("tokens", lambda m, h: (h > 0).any((0, 1)).to(h.dtype)),
        ("flat", lambda m, h: h * (h > 0).any(-1, True)),
        ("tokens", lambda m, h: (h > 0).any(1).to(h.dtype)),
    ],
    "norm": [
        ("tokens", lambda m, h: h.norm(3, dim=1)),
        ("tokens", lambda m, h: a.norm(h, 3, [1])),
        ("flat", lambda m, h: h * a.norm(h, 2, [-1], True)),
        ("flat", lambda m, h: h * h.norm(1, dim=1, keepdim=True)),
    ],
    "linalg_vector_norm": [
        ("tokens", lambda m, h: torch.linalg.vector_norm(h, 3, 1)),
        ("flat", lambda m, h: h * torch.linalg.vector_norm(h, 1, dim=(-1,), keepdim=True)),
    ],
    "max": [
        ("tokens", lambda m, h: h.max(1)[0]),
        ("flat", lambda m, h: h * h.max(-1, keepdim=True)[0]),
        ("tokens", lambda m, h: h.max(1)[1].to(h.dtype)),
        ("flat", lambda m, h: h + h.max(1, keepdim=True)[1]),
        ("flat", lambda m, h, g: torch.max(h, g)),
        ("flat", lambda m, h: h * h.max()),
    ],
    "min": [("tokens", lambda m, h: h.min(1)[0]), ("flat", lambda m, h: h + h.min(1, keepdim=True)[1])],
    "median": [
        ("tokens", lambda m, h: h.median(1)[0]),
        ("tokens", lambda m, h: h[:, 0] + h.median(1)[1]),
        ("flat", lambda m, h: h * h.median(1, keepdim=True)[0]),
        ("flat", lambda m, h: h + h.median(1, keepdim=True)[1]),
    ],
    "argmax": [
        ("tokens", lambda m, h: h.argmax(1).to(h.dtype)),
        ("flat", lambda m, h: h + h.argmax(1, keepdim=True)),
        ("flat", lambda m, h: h + h.argmax()),
        ("tokens", lambda m, h: h + heads(m, h).argmax(-1).repeat_interleave(4, -1)),
        ("tokens", lambda m, h: h + heads(m, h).argmax(-2).repeat(1, 1, m.heads)),
    ],
    "argmin": [("tokens", lambda m, h: h.argmin(-2).to(h.dtype)), ("flat", lambda m, h: h + h.argmin(1, keepdim=True))],
    "var_mean": [
        ("tokens", lambda m, h: torch.var_mean(h, 1)[0]),
        ("tokens", lambda m, h: torch.var_mean(h, dim=1, correction=0)[1]),
        ("flat", lambda m, h: h * torch.var_mean(h, -1, keepdim=True)[0]),
        ("flat", lambda m, h: h * torch.var(h, -1, correction=5, keepdim=True)),
    ],
    "std_mean": [
        ("tokens", lambda m, h: torch.std_mean(h, 1)[0]),
        ("flat", lambda m, h: h * torch.std_mean(h, -1, keepdim=True)[1]),
    ],
    "topk": [
        ("tokens", lambda m, h: h.topk(2, 1)[0]),
        ("flat", lambda m, h: h.topk(8, 1)[0]),
        ("tokens", lambda m, h: h.topk(3, -2, largest=False)[1].to(h.dtype)),
        ("flat", lambda m, h: h.topk(4)[0]),
    ],
    # products
    "matmul": [("tokens", lambda m, h, g: h @ g.transpose(1, 2)), ("tokens", lambda m, h, g: h.transpose(1, 2) @ g)],
    "bmm": [("tokens", lambda m, h, g: torch.bmm(h, g.transpose(1, 2)))],
    "mm": [("flat", lambda m, h, g: torch.mm(h, g.t())), ("flat", lambda m, h, g: torch.mm(h.t(), g))],
    "addmm": [("flat", lambda m, h, g: torch.addmm(h[:, :1], h, g.t(), beta=3, alpha=2))],
    "baddbmm": [
        ("tokens", lambda m, h, g: torch.baddbmm(h[..., :1], h, g.transpose(1, 2), beta=3, alpha=2)),
        ("tokens", lambda m, h, g: torch.addbmm(h[0, :, :1], h, g.transpose(1, 2), beta=3, alpha=2)),
    ],
    "einsum": [
        ("tokens", lambda m, h, g: torch.einsum("bnc,bmc->bnm", h, g)),
        ("tokens", lambda m, h: torch.einsum("bnc->bc", h)),
        ("flat", lambda m, h: torch.einsum("bcc->bc", h.unsqueeze(1) * h.unsqueeze(2))),
        ("tokens", lambda m, h, g: torch.einsum("bnc,bmc,bmd->bnd", h, g, h)),
        ("tokens", lambda m, h: torch.einsum("bnhd->bnd", heads(m, h))),
    ],
    "scaled_dot_product_attention": [
        (
            "tokens",
            lambda m, h, g: (
                F.scaled_dot_product_attention(*(heads(m, x).transpose(1, 2) for x in (h, g, h)))
                .transpose(1, 2)
                .flatten(-2)
            ),
        ),
        (
            "tokens",
            lambda m, h, g: (
                F.scaled_dot_product_attention(*(heads(m, x).transpose(1, 2) for x in (h, g, h)), is_causal=True)
                .transpose(1, 2)
                .flatten(-2)
            ),
        ),
        ("tokens", lambda m, h, g: F.scaled_dot_product_attention(h, g, h, scale=0.5)),
        ("tokens", lambda m, h, g: F.scaled_dot_product_attention(h, g, h)),
        ("seq", lambda m, h, g: F.scaled_dot_product_attention(h, g, h)),
        ("seq", lambda m, h, g: F.scaled_dot_product_attention(h, g, g, is_causal=True)),
        ("seq", lambda m, h: F.scaled_dot_product_attention(h, h, h, is_causal=True)),
        (
            "tokens",
            lambda m, h, g: (
                F.scaled_dot_product_attention(
                    heads(m, h).transpose(1, 2),
                    *(x[..., :8].unflatten(-1, (2, 4)).transpose(1, 2) for x in (g, g)),
                    enable_gqa=True,
                )
                .transpose(1, 2)
                .flatten(-2)
            ),
        ),
    ],
    # shapes
    "view": [
        ("tokens", lambda m, h: h.view(10, 16)),
        ("tokens", lambda m, h: h.view(2, 5, 4, 4).flatten(2)),
        ("tokens", lambda m, h: h.view(2, 5, -1, 4).relu().view(2, 5, -1)),
        ("tokens", lambda m, h: h.view(2, 5, 4, -1).sum(2)),
        ("tokens", lambda m, h: h.view(2, 5, m.heads, -1).sum(-1)),
        ("tokens", lambda m, h: h.view(-1, h.size(-1))),
        ("image", lambda m, h: h.view(2, 16, 36)),
        ("image", lambda m, h: h.view(2, -1, 6, 6)),
        ("flat", lambda m, h: h.view(torch.int64).to(h.dtype)),
        ("flat", lambda m, h: h.view(3, -1, 4)[:, 2]),
        ("flat", lambda m, h: torch.cat(h.view(3, -1, 4).unbind(1)[::-1], 1)),
    ],
    "reshape": [
        *every("image frame", lambda m, h: h.reshape(h.shape[0], -1)),
        ("tokens", lambda m, h: h.reshape(2, 80)),
        ("seq", lambda m, h: h.reshape(2, 2, 8, 8).transpose(1, 2).reshape(2, 16, 8)),
        ("tokens", lambda m, h: h.reshape(5, 2, 16)),
        ("tokens", lambda m, h: h.transpose(1, 2).reshape(2, 8, 10).sum(1)),
    ],
    "_unsafe_view": [
        ("tokens", lambda m, h: a._unsafe_view(h, [10, 16])),
        ("tokens", lambda m, h: a._unsafe_view(h, [2, 5, 4, 4]).sum(2)),
    ],
    "view_as": [
        ("flat", lambda m, h: h.view_as(torch.zeros(3, 4, 4)).flatten(1)),
        ("flat", lambda m, h, g: h.view_as(g) * g),
        ("flat", lambda m, h: h.reshape_as(torch.zeros(3, 2, 8)).sum(1)),
        ("flat", lambda m, h, g: h.view_as(heads(m, g)).sum(1)),
    ],
    "flatten": [
        *every("image frame", lambda m, h: h.flatten(1)),
        ("image", lambda m, h: h.flatten(0, 1).mean((-1, -2))[None]),
        ("image", lambda m, h: h.flatten(-2).mean(-1)),
        ("tokens", lambda m, h: h.flatten(0, -2)),
        ("tokens", lambda m, h: h.flatten(-2, -1)),
        ("image", lambda m, h: h.flatten(1, 2).sum(-1)),
    ],
    "unflatten": [
        ("tokens", lambda m, h: h.unflatten(-1, (4, 4)).flatten(-2)),
        ("tokens", lambda m, h: h.unflatten(2, (-1, 2)).sum(-1)),
        ("image", lambda m, h: h.unflatten(1, (8, -1)).flatten(1, 2)),
        ("seq", lambda m, h: h.unflatten(-1, (2, 4)).sum(-1)),
        ("image", lambda m, h: h.unflatten(-3, (m.heads, 4)).flatten(1, 2)),
    ],
    "permute": [
        ("image", lambda m, h: h.permute(0, -1, 2, 1).mean(1)),
        ("row", lambda m, h: h.permute(0)),
        ("tokens", lambda m, h: h.permute(-2, 0, -1)),
    ],
    "transpose": [
        ("seq", lambda m, h: h.transpose(1, -1)),
        ("tokens", lambda m, h: h.transpose(0, 1)),
        ("tokens", lambda m, h: heads(m, h).transpose(-1, 2).flatten(-2)),
    ],
    "swapaxes": [("seq", lambda m, h: h.swapaxes(-2, 2)), ("seq", lambda m, h: h.swapdims(2, 1))],
    "movedim": [
        ("image", lambda m, h: h.movedim(1, -1).mean(1)),
        ("image", lambda m, h: h.movedim((1, -1), (3, 0)).mean(0)),
        ("seq", lambda m, h: h.movedim(-1, -2)),
    ],
    "unsqueeze": [
        ("tokens", lambda m, h: h.unsqueeze(-1).unsqueeze(1).squeeze(-1)[:, 0]),
        ("row", lambda m, h: h.unsqueeze(0)),
    ],
    "squeeze": [
        ("tokens", lambda m, h: h[:1].squeeze(0)),
        ("tokens", lambda m, h: h[:1, :1].squeeze((0, 1))),
        ("tokens", lambda m, h: h[:1].squeeze()),
        ("flat", lambda m, h: h.squeeze(-1)),
        ("flat", lambda m, h: h.squeeze((0, 1))),
        ("tokens", lambda m, h: h.squeeze(-2)),
        ("tokens", lambda m, h: h.unflatten(2, (-1, 8)).flip(3).squeeze().flatten(2)),
        ("tokens", lambda m, h: heads(m, h).squeeze(2).transpose(2, -1).flatten(2)),
    ],
    "expand": [
        ("tokens", lambda m, h: h[:1].expand(4, -1, 16)),
        ("row", lambda m, h: h.expand(3, 16)),
        ("row", lambda m, h: h.expand(2, -1)),
        ("flat", lambda m, h: h.sum(1, keepdim=True).expand(-1, h.shape[1]) + h),
        ("flat", lambda m, h: h.sum(1, keepdim=True).expand(3, 16) + h),
        ("flat", lambda m, h, g: h[:1].expand(g.shape)),
        ("tokens", lambda m, h: h.unsqueeze(2).expand(-1, -1, 3, -1).sum(2)),
        ("flat", lambda m, h: h.broadcast_to(2, 3, 16)),
        ("flat", lambda m, h: h.broadcast_to(2, -1, -1)),
        ("flat", lambda m, h: h[:, :1].expand_as(h) * h),
    ],
    "broadcast_to": [
        ("flat", lambda m, h: a.broadcast_to(h, [2, 3, 16])),
        ("flat", lambda m, h: a.broadcast_to(h, [2, 3, -1])),
    ],
    "repeat": [
        ("flat", lambda m, h: h.repeat(2, 1)),
        ("flat", lambda m, h: h.repeat(1, 3)),
        ("row", lambda m, h: h.repeat(2, 2)),
        ("tokens", lambda m, h: h.repeat(1, 2, 1)),
        ("image", lambda m, h: h.repeat(1, 2, 1, 3)),
        ("flat", lambda m, h: h.repeat(1, h.shape[1] // 8)),
        ("tokens", lambda m, h: heads(m, h).repeat(1, 1, 1, 2).flatten(2)),
        ("tokens", lambda m, h: heads(m, h).repeat(1, 1, 2, 1).flatten(2)),
        ("flat", lambda m, h: torch.cat([h, h.repeat(1, 0)], 1)),
    ],
    "tile": [
        ("flat", lambda m, h: h.tile(2)),
        ("tokens", lambda m, h: h.tile((2, 1))),
        ("row", lambda m, h: h.tile((2, 2))),
    ],
    "repeat_interleave": [
        ("flat", lambda m, h: h.repeat_interleave(2, 1)),
        ("tokens", lambda m, h: h.repeat_interleave(3, -1)),
        ("tokens", lambda m, h: h.repeat_interleave(2, 1)),
        ("flat", lambda m, h: h.repeat_interleave(2, 1, output_size=32)),
        ("row", lambda m, h: h.repeat_interleave(2)),
        ("flat", lambda m, h: h.repeat_interleave(m.ids + 1, 0, output_size=6)),
        ("tokens", lambda m, h: heads(m, h).repeat_interleave(2, 2).flatten(2)),
    ],
    "select": [
        ("tokens", lambda m, h: h[:, -1]),
        ("tokens", lambda m, h: h.select(1, 2)),
        ("flat", lambda m, h: h * h.select(-1, 3)[:, None]),
        ("flat", lambda m, h: h * h[:, -1:]),
        ("tokens", lambda m, h: heads(m, h)[:, :, 1]),
        ("tokens", lambda m, h: heads(m, h)[..., -1]),
        ("flat", lambda m, h: h * h[:, h.shape[1] // 2, None]),
    ],
    "unbind": [
        ("tokens", lambda m, h: joined(*h.unbind(1))),
        ("tokens", lambda m, h: h.unbind()[1]),
        ("tokens", lambda m, h: joined(*heads(m, h).unbind(2))),
        ("tokens", lambda m, h: joined(*heads(m, h).unbind(-1))),
        ("flat", lambda m, h: torch.stack(h.unbind(1)[::-1], 1)),
        ("seq", lambda m, h: torch.stack(list(h.unbind(-1)), -1)),
    ],
    "slice": [
        ("flat", lambda m, h: h[:, :100]),
        ("flat", lambda m, h: h[:, -100:]),
        ("flat", lambda m, h: h[:, 4:12]),
        ("flat", lambda m, h: h[:, :-4]),
        ("flat", lambda m, h: h[:, -12:-4]),
        ("flat", lambda m, h: joined(h[:, ::2], h[:, 1::2])),
        ("tokens", lambda m, h: h[..., ::2] * h[..., 1::2]),
        ("flat", lambda m, h: torch.stack([h[:, 3::4], h[:, ::4]], -1).flatten(1)),
        ("tokens", lambda m, h: h[:, 1:-1:2]),
        ("tokens", lambda m, h: h[:, -3:100]),
        ("tokens", lambda m, h: h[-1:]),
        ("flat", lambda m, h: h[:, : h.shape[1]]),
        ("flat", lambda m, h: joined(h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :])),
        ("flat", lambda m, h: h[:, -(h.shape[1] // 2) :]),
        ("flat", lambda m, h: joined(h, h[:, 20:])),
        ("flat", lambda m, h: joined(h, h[:, 9:4])),
        ("flat", lambda m, h: joined(h, h[:, 2:-20])),
        ("flat", lambda m, h: h[:, : m.width]),
        ("image", lambda m, h: h[:, :, 1:4, -2:]),
        ("tokens", lambda m, h: heads(m, h)[..., 1:3].flatten(2)),
        ("tokens", lambda m, h: heads(m, h)[:, :, 1:].flatten(2)),
        ("tokens", lambda m, h: heads(m, h)[:, :, :9].flatten(2)),
        ("row", lambda m, h: h[4:]),
        ("flat", lambda m, h: h[:, 0:16]),
        ("flat", lambda m, h: h[..., :16:1] + h[:, :16]),
        ("flat", lambda m, h, g: torch.cat([h, g], 1)[:, : h.shape[1]]),
        ("flat", lambda m, h, g: torch.cat([h, g], 1)[:, h.shape[1] :]),
        ("flat", lambda m, h, g: torch.cat([h, g], 1)[:, 8:24]),
    ],
    "narrow": [
        ("flat", lambda m, h: h.narrow(1, 4, 8)),
        ("flat", lambda m, h: h.narrow(1, 0, h.shape[1])),
        ("flat", lambda m, h: h.narrow(-1, -8, 8)),
        ("tokens", lambda m, h: h.narrow(1, 1, 3)),
        ("tokens", lambda m, h: h.narrow(-2, -2, 2)),
        ("row", lambda m, h: h.narrow(0, 2, 3)),
        ("flat", lambda m, h: joined(h.narrow(1, 0, h.shape[1] // 2), h.narrow(1, h.shape[1] // 2, h.shape[1] // 2))),
        ("flat", lambda m, h: joined(h, h.narrow(1, 3, 0))),
        ("flat", lambda m, h, g: torch.cat([h, g], 1).narrow(1, h.shape[1], g.shape[1])),
        ("tokens", lambda m, h: heads(m, h).narrow(-1, 1, 2).flatten(2)),
        ("tokens", lambda m, h: heads(m, h).narrow(2, 1, 2).flatten(2)),
    ],
    "split": [
        ("flat", lambda m, h: joined(*h.split(8, 1))),
        ("flat", lambda m, h: joined(*h.split(h.shape[1] // 2, 1))),
        ("flat", lambda m, h: joined(*h.split(6, -1))),
        ("flat", lambda m, h: joined(*h.split([4, 12], 1))),
        ("flat", lambda m, h: h.split(20, 1)[0]),
        ("tokens", lambda m, h: h.split(2, 1)[0]),
        ("tokens", lambda m, h: h.split(9, 1)[0]),
        ("tokens", lambda m, h: h.split([1, 4], -2)[1]),
        ("flat", lambda m, h: joined(*h.split([0, 16], 1))),
        ("flat", lambda m, h: joined(*torch.split(h, 4, dim=1))),
        ("flat", lambda m, h: joined(*h.split([h.shape[1] // 4, h.shape[1] - h.shape[1] // 4], 1))),
        ("tokens", lambda m, h: joined(*(x.flatten(2) for x in heads(m, h).split(2, -1)))),
        ("tokens", lambda m, h: joined(*(x.flatten(2) for x in heads(m, h).split(2, 2)))),
        ("row", lambda m, h: joined(*h.split(4))),
    ],
    "split_with_sizes": [
        ("flat", lambda m, h: joined(*h.split_with_sizes([4, 12], 1))),
        ("tokens", lambda m, h: h.split_with_sizes([1, 4], 1)[1]),
        ("flat", lambda m, h, g: torch.cat([h, g], 1).split_with_sizes([h.shape[1], g.shape[1]], 1)[1]),
    ],
    "chunk": [
        ("flat", lambda m, h: joined(*h.chunk(2, 1))),
        ("flat", lambda m, h: joined(*h.chunk(3, 1))),
        ("flat", lambda m, h: joined(*h.chunk(5, -1))),
        ("flat", lambda m, h: joined(*h.chunk(20, 1))),
        ("tokens", lambda m, h: joined(*h.chunk(3, 1), dim=1)),
        ("row", lambda m, h: joined(*h.chunk(4))),
        ("tokens", lambda m, h: joined(*(x.flatten(2) for x in heads(m, h).chunk(2, 2)))),
        ("flat", lambda m, h: joined(*h.chunk(m.heads, 1))),
    ],
    "tensor_split": [
        ("flat", lambda m, h: joined(*h.tensor_split(2, 1))),
        ("flat", lambda m, h: joined(*h.tensor_split(3, -1))),
        ("flat", lambda m, h: joined(*h.tensor_split([4, 10], 1))),
        ("flat", lambda m, h: joined(*h.tensor_split([-4], 1))),
        ("flat", lambda m, h: joined(*h.tensor_split([20], 1))),
        ("tokens", lambda m, h: joined(*h.tensor_split([1, 3], 1), dim=1)),
        ("flat", lambda m, h: joined(*h.tensor_split([h.shape[1] // 4], 1))),
        ("tokens", lambda m, h: joined(*h.tensor_split(2, 1), dim=1)),
        ("flat", lambda m, h: joined(*h.tensor_split([9, 3], 1))),
        ("flat", lambda m, h: joined(*h.tensor_split([-20, 8], 1))),
    ],
    "unsafe_split": [
        ("flat", lambda m, h: joined(*torch.unsafe_split(h, 8, 1))),
        ("flat", lambda m, h: joined(*torch.unsafe_split(h, 6, -1))),
        ("flat", lambda m, h: joined(*torch.unsafe_chunk(h, 2, 1))),
        ("tokens", lambda m, h: torch.unsafe_chunk(h, 3, 1)[0]),
    ],
    "cat": [
        ("flat", lambda m, h, g: torch.cat([h, g], 1)),
        ("flat", lambda m, h, g: torch.cat([h, g], 0)),
        ("row", lambda m, h, g: torch.cat([h, g])),
        ("tokens", lambda m, h, g: torch.concat([h, g], -2)),
        ("tokens", lambda m, h, g: torch.concatenate([g, h], dim=-1)),
        ("tokens", lambda m, h, g: torch.cat([heads(m, h), heads(m, g)], -1).flatten(2)),
        ("tokens", lambda m, h, g: torch.cat([heads(m, h).sum(0), heads(m, g).sum(0)], 1).flatten(1)),
        ("tokens", lambda m, h, g: torch.cat([heads(m, h), heads(m, g)], 2).flatten(2)),
        ("flat", lambda m, h: torch.cat([torch.zeros(0), h], 1)),
        ("flat", lambda m, h, g: torch.hstack([h, g])),
        ("flat", lambda m, h, g: torch.vstack([h, g])),
        ("row", lambda m, h, g: torch.hstack([h, g])),
        ("flat", lambda m, h, g: torch.dstack([h, g]).flatten(1)),
        ("flat", lambda m, h, g: torch.column_stack([h, g])),
    ],
    "stack": [
        ("flat", lambda m, h, g: torch.stack([h, g])),
        ("flat", lambda m, h, g: torch.stack([h, g], -1).flatten(1)),
        ("flat", lambda m, h, g: torch.stack([h, g], 1).sum(1)),
    ],
    "pad": [
        ("flat", lambda m, h: F.pad(h, (2, 3))),
        ("tokens", lambda m, h: F.pad(h, (0, 0, 1, 2), value=0.5)),
        ("flat", lambda m, h: F.pad(h, (1, 1), value=2.0)),
        ("flat", lambda m, h: F.pad(h, (-2, 0))),
        ("flat", lambda m, h: F.pad(h, (3, -3))),
        ("image", lambda m, h: F.pad(h, (1, 2, -1, 0))),
        *(
            ("image", lambda m, h, mode=mode: F.pad(h, (1, 2, 2, 1), mode=mode))
            for mode in ("reflect", "replicate", "circular")
        ),
        *(
            ("tokens", lambda m, h, mode=mode: F.pad(h, (1, 1), mode=mode))
            for mode in ("reflect", "replicate", "circular")
        ),
        ("image", lambda m, h: F.pad(h, (0, 0, 0, 0, 4, 4))),
        ("flat", lambda m, h: F.pad(h, (0, h.shape[1] // 4))),
        ("flat", lambda m, h: F.pad(h[:, :8], (0, h.shape[1] - 8)) + h),
        ("flat", lambda m, h: F.pad(h, (1, 0), value=h.shape[1])),
        ("tokens", lambda m, h: F.pad(heads(m, h), (1, 1)).flatten(2)),
    ],
    "constant_pad_nd": [
        ("flat", lambda m, h: torch.constant_pad_nd(h, (1, 2), 3)),
        ("tokens", lambda m, h: torch.constant_pad_nd(h, (0, 0, 1, 0))),
    ],
    "reflection_pad1d": [
        ("seq", lambda m, h: a.reflection_pad1d(h, [2, 1])),
        ("tokens", lambda m, h: a.reflection_pad1d(h, [2, 1])),
        ("image", lambda m, h: a.reflection_pad2d(h, [2, 1, 1, 0])),
        ("seq", lambda m, h: a.replication_pad1d(h, [2, 1])),
        ("image", lambda m, h: a.replication_pad2d(h, [2, 1, 1, 0])),
        ("volume", lambda m, h: a.replication_pad3d(h, [2, 1, 1, 0, 1, 1])),
    ],
    "glu": [
        ("tokens", lambda m, h: F.glu(h)),
        ("image", lambda m, h: F.glu(h, 1)),
        ("seq", lambda m, h: F.glu(h, -1)),
        ("tokens", lambda m, h: F.glu(heads(m, h), 2).flatten(2)),
        ("tokens", lambda m, h: F.glu(heads(m, h), -1).flatten(2)),
    ],
    "pixel_shuffle": [
        *every("image frame", lambda m, h: F.pixel_shuffle(h, 2)),
        *every("image frame", lambda m, h: F.pixel_unshuffle(h, 3)),
    ],
    "channel_shuffle": [
        *every("image seq volume", lambda m, h: F.channel_shuffle(h, 4)),
        *every("image seq", layer(lambda: nn.ChannelShuffle(2))),
        *every("image", lambda m, h: F.channel_shuffle(h, m.four)),
        *every("image", lambda m, h: F.channel_shuffle(h + F.channel_shuffle(h, 4), 2)),
        *every("image", extra(lambda: nn.Conv2d(16, 32, 1, groups=4), lambda m, h: F.channel_shuffle(m.extra(h), 4))),
        *every("image", lambda m, h: F.channel_shuffle(torch.cat((h, h.relu()), 1), 2)),
    ],
    # recurrent layers
    "lstm": [
        *every("tokens flat", layer(lambda: First(nn.LSTM(16, 12, 2)))),
        *every("tokens", layer(lambda: First(nn.LSTM(16, 16, 2, batch_first=True, bidirectional=True, proj_size=8)))),
        ("tokens", extra(lambda: nn.LSTM(16, 16, 2, bidirectional=True), lambda m, h: m.extra(h)[1][0][-1] + h[0])),
        ("tokens", extra(lambda: nn.LSTM(16, 16, 2), lambda m, h: m.extra(h)[1][1].sum(0) + h[0])),
    ],
    "gru": [
        *every("tokens flat", layer(lambda: First(nn.GRU(16, 12, 2, bidirectional=True, bias=False)))),
        ("tokens", extra(lambda: nn.GRU(16, 16, 2), lambda m, h: m.extra(h, h[:2])[0])),
        ("tokens", extra(lambda: nn.GRU(16, 16), lambda m, h: m.extra(h, h[:1])[0] + h)),
    ],
    "rnn": [
        *every("tokens flat", layer(lambda: First(nn.RNN(16, 12, 3)))),
        *every("tokens flat", layer(lambda: First(nn.RNN(16, 12, 2, nonlinearity="relu")))),
        ("tokens", extra(lambda: nn.RNN(2, 5), lambda m, h: m.extra(h.permute(1, 2, 0))[0])),
    ],
    "cells": [
        *every("row flat", layer(lambda: First(nn.LSTMCell(16, 12)))),
        ("flat", extra(lambda: nn.GRUCell(16, 16), lambda m, h: m.extra(h, h.relu()))),
        ("flat", extra(lambda: nn.RNNCell(16, 16), lambda m, h: m.extra(m.extra(h), h))),
        ("flat", extra(lambda: nn.RNNCell(16, 12, nonlinearity="relu"), lambda m, h: m.extra(h))),
    ],
    "weight_norm": [
        ("flat", layer(NormInterface)),
        *every("row flat tokens", layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 12)))),
        *every("flat", layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 12), dim=1))),
        *every("flat", layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 12), dim=None))),
        *every("image", layer(lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 8, 3)))),
        *every("image", layer(lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(16, 8, 3), dim=1))),
    ],
    "index": [
        ("tokens", lambda m, h: h[:, [0, -1]]),
        ("flat", lambda m, h: h[:, [3, 1, 2]]),
        ("tokens", lambda m, h: h[:, m.ids]),
        ("tokens", lambda m, h: h[torch.arange(2), :, :][:, [1, 0]]),
        ("tokens", lambda m, h: h[torch.arange(2), torch.tensor([1, -1])]),
        ("image", lambda m, h: h[:, :, [0, 2], [1, 1]]),
    ],
    "index_select": [
        ("tokens", lambda m, h: index_select(h, -2, m)),
        ("flat", lambda m, h: index_select(h, 1, m)),
        ("tokens", lambda m, h: index_select(h, 1, m)),
    ],
    "index_put": [
        ("tokens", lambda m, h: set_item(h * 1, (slice(None), m.ids), 0.5)),
        ("tokens", lambda m, h: set_item(h * 1, (torch.arange(2), m.ids[:2]), h[:, 3] * 2)),
        ("tokens", lambda m, h: set_item(h * 1, torch.tensor([[True, False, True, False, False]] * 2), 0.5)),
        ("tokens", lambda m, h: set_item(h * 1, torch.tensor([[True, False, True, False, False]] * 2), h[0, 0])),
        ("tokens", lambda m, h: set_item(h * 1, torch.tensor([[True] + [False] * 15] * 5).expand(2, -1, -1), 0.5)),
        ("flat", lambda m, h: h.index_put((m.ids, m.ids * 4), torch.ones(3))),
        ("flat", lambda m, h: h.index_put((m.ids,), h, accumulate=True)),
    ],
    "gather": [
        ("tokens", lambda m, h: h.gather(1, m.ids[None, :, None].expand(2, -1, h.shape[2]))),
        ("tokens", lambda m, h: h.gather(1, m.ids[None, :, None].repeat(2, 1, h.shape[2]))),
        ("tokens", lambda m, h: h.gather(1, m.ids[None, :, None].repeat(2, 1, 16))),
        ("tokens", lambda m, h: h.gather(-2, m.ids[None, :, None].expand(2, -1, 1)) * h[:, :3]),
        ("tokens", lambda m, h, g: h.gather(1, g.argsort(1)[:, :3])),
        ("flat", lambda m, h: h + h.gather(1, m.ids[:, None] * 5)),
    ],
    "take_along_dim": [
        ("tokens", lambda m, h: h.take_along_dim(m.ids[None, :, None], 1)),
        ("tokens", lambda m, h, g: h.take_along_dim(g.argmax(1, keepdim=True), dim=-2)),
        ("flat", lambda m, h: h + h.take_along_dim(m.ids[:, None] * 4, 1)),
    ],
    "scatter": [
        ("tokens", lambda m, h: h.scatter(1, m.ids[None, :, None].expand(2, -1, h.shape[2]), 2)),
        ("tokens", lambda m, h, g: h.scatter(1, m.ids[None, :, None].repeat(2, 1, h.shape[2]), g)),
        ("tokens", lambda m, h, g: h.scatter_add(1, m.ids[None, :, None].repeat(2, 1, h.shape[2]), g)),
        ("tokens", lambda m, h: h.scatter_add(1, m.ids[None, :, None].repeat(2, 1, 3), h)),
        ("tokens", lambda m, h, g: h.scatter_reduce(1, m.ids[None, :, None].repeat(2, 1, h.shape[2]), g, "sum")),
        ("flat", lambda m, h: h.scatter(1, m.ids[:, None] * 5, 2)),
    ],
    "index_add": [
        ("tokens", lambda m, h, g: h.index_add(1, m.ids, g[:, :3], alpha=2)),
        ("tokens", lambda m, h, g: h.index_copy(-2, m.ids, g[:, 1:4])),
        ("tokens", lambda m, h: h.index_fill(1, m.ids, 2)),
        ("flat", lambda m, h: h.index_add(1, m.ids * 4, h[:, :3])),
        ("flat", lambda m, h: h.index_copy(1, m.ids * 4, h[:, 5:8])),
        ("flat", lambda m, h: h.index_fill(1, m.ids * 4, 2)),
    ],
    "expand_to_a_size": [
        ("tokens", lambda m, h: h * torch.ones(2, 5, 1).expand(-1, -1, h.shape[2])),
        ("tokens", lambda m, h: h * torch.ones(2, 5, 1).expand(2, 5, m.width)),
        ("tokens", lambda m, h: (h * torch.ones(5, 1).expand(h.shape)).flatten(0, 1)),
    ],
    # creation
    "zeros": [
        *(("flat", lambda m, h, f=f: h + f(3, h.shape[1])) for f in (torch.zeros, torch.ones)),
        ("flat", lambda m, h: h + torch.full((3, h.shape[1]), 2.0)),
        ("flat", lambda m, h: h + torch.zeros(3, 16)),
        ("flat", lambda m, h: h + torch.ones(h.shape)),
        ("flat", lambda m, h: joined(h, torch.zeros(3, h.shape[1]))),
        ("flat", lambda m, h: joined(h, torch.ones(3, 4))),
        ("flat", lambda m, h: h + 0 * torch.rand(3, h.shape[1])),
        ("flat", lambda m, h: h + 0 * torch.randn(h.shape)),
        ("flat", lambda m, h: h + torch.empty(3, h.shape[1]).zero_()),
        ("flat", lambda m, h: h + torch.full((h.shape[1],), h.shape[1], dtype=h.dtype)),
        ("tokens", lambda m, h: h + torch.zeros(m.heads, 4).flatten()),
    ],
    "new_zeros": [
        *(("flat", lambda m, h, f=f: h + getattr(h, f)(3, h.shape[1])) for f in ("new_zeros", "new_ones")),
        ("flat", lambda m, h: h * h.new_full((h.shape[1],), 3)),
        ("flat", lambda m, h: h + h.new_empty((h.shape[1],)).zero_()),
        ("flat", lambda m, h: h + h.new_zeros(16)),
    ],
    "arange": [
        ("flat", lambda m, h: h + torch.arange(16)),
        ("flat", lambda m, h: h + torch.arange(h.shape[1])),
        ("flat", lambda m, h: h + torch.arange(0, h.shape[1] * 2, 2)),
        ("tokens", lambda m, h: h + torch.arange(h.shape[1])[:, None]),
    ],
    "eye": [
        ("flat", lambda m, h: h @ torch.eye(h.shape[1])),
        ("flat", lambda m, h: h @ torch.eye(16, 8)),
        ("flat", lambda m, h: h @ torch.eye(h.shape[1], 8)),
        ("tokens", lambda m, h: torch.eye(h.shape[1], 4).t() @ h),
    ],
    "linspace": [
        ("flat", lambda m, h: h + torch.linspace(0, 1, h.shape[1])),
        ("tokens", lambda m, h: h + torch.linspace(0, 1, h.shape[1])[:, None]),
    ],
    "scalar_tensor": [
        ("flat", lambda m, h: h * torch.scalar_tensor(h.shape[1])),
        ("flat", lambda m, h: h * torch.tensor(3)),
    ],
    # elementwise
    "add": [
        ("flat", lambda m, h, g: torch.add(h, g, alpha=3)),
        ("flat", lambda m, h: h + h.shape[1]),
        ("flat", lambda m, h: h + 4),
        ("flat", lambda m, h, g: torch.sub(h, g, alpha=2)),
        ("flat", lambda m, h: torch.rsub(h, 3, alpha=2)),
        ("flat", lambda m, h: h.add_(2).mul_(h.shape[0])),
        ("flat", lambda m, h: h**3 / 5),
        ("flat", lambda m, h: h.clamp(-1, 2)),
        ("flat", lambda m, h: h.masked_fill(h > 1, 3)),
        ("flat", lambda m, h: torch.where(h > 0, h, 2)),
        ("flat", lambda m, h: F.threshold(h, 0, 3)),
        ("flat", lambda m, h: h.clamp_max(h.shape[1])),
        ("flat", lambda m, h: F.leaky_relu(h, 2)),
        ("flat", lambda m, h: F.hardtanh(h, -1, m.heads)),
        ("flat", lambda m, h: torch.full_like(h, 3) * h),
    ],
    "round": [
        ("flat", lambda m, h: h.round(decimals=1)),
        ("flat", lambda m, h: torch.polygamma(1, h.abs() + 1)),
        ("flat", lambda m, h: torch.mvlgamma(h.abs() + 3, 3)),
    ],
}

# Operations that no rule knows, or that only parts of them know: what they touch stays, or comes out right.
WITHOUT_RULE: dict[str, Case] = {
    "diagonal": ("flat", lambda m, h: (h[:, None] * h[:, :, None]).diagonal(1, 1, 2)),
    "diag_embed": ("flat", lambda m, h: h.diag_embed(1).sum(1)),
    "tril": ("flat", lambda m, h: (h[:, None] * h[:, :, None]).tril(-2).sum(1)),
    "triu": ("flat", lambda m, h: (h[:, None] * h[:, :, None]).triu(3).sum(1)),
    "cummax": ("flat", lambda m, h: h.cummax(1)[0]),
    "cummin": ("tokens", lambda m, h: h + h.cummin(-1).indices),
    "kthvalue": ("flat", lambda m, h: h + h.kthvalue(5, 1, keepdim=True)[0]),
    "mode": ("flat", lambda m, h: h * h.round().mode(1, keepdim=True)[0]),
    "nanmedian": ("flat", lambda m, h: h + h.nanmedian(1, keepdim=True)[0]),
    "nanmean": ("flat", lambda m, h: h + h.nanmean(1, keepdim=True)),
    "nansum": ("flat", lambda m, h: h + h.nansum(1, keepdim=True)),
    "quantile": ("flat", lambda m, h: h + h.quantile(0.3, 1, keepdim=True)),
    "msort": ("flat", lambda m, h: h.t().msort().t()),
    "unfold": ("flat", lambda m, h: h.unfold(1, 4, 2).sum(1)),
    "as_strided": ("flat", lambda m, h: h.as_strided((3, 8), (16, 2), 1)),
    "take": ("flat", lambda m, h: h * h.take(m.ids * 9)[:, None]),
    "masked_scatter": ("flat", lambda m, h, g: h.masked_scatter(h > 0, g)),
    "slice_scatter": ("flat", lambda m, h: h.slice_scatter(torch.ones(3, 4), 1, 2, 6)),
    "select_scatter": ("flat", lambda m, h: h.select_scatter(torch.ones(3), 1, 7)),
    "set_item": ("flat", lambda m, h: set_item(h * 1, (slice(None), slice(4)), 0.5)),
    "set_column": ("flat", lambda m, h: set_item(h * 1, (slice(None), 9), 0.5)),
    "set_row": ("flat", lambda m, h: set_item(h * 1, 1, 0.5)),
    "fliplr": ("flat", lambda m, h: h.fliplr()),
    "rot90": ("image", lambda m, h: h.rot90(1, (1, 2))),
    "renorm": ("flat", lambda m, h: h.renorm(2, 0, 1.0)),
    "cdist": ("tokens", lambda m, h, g: torch.cdist(h, g)),
    "pairwise_distance": ("tokens", lambda m, h, g: F.pairwise_distance(h, g)),
    "cosine_similarity": ("tokens", lambda m, h, g: h * F.cosine_similarity(h, g, 2)[..., None]),
    "cross": ("flat", lambda m, h, g: torch.linalg.cross(h[:, :3], g[:, 5:8])),
    "cross_of_rows": ("flat", lambda m, h, g: torch.linalg.cross(h, g, dim=0)),
    "tensordot": ("tokens", lambda m, h, g: torch.tensordot(h, g, ([2], [2])).flatten(2)),
    "tensordot_count": ("flat", lambda m, h: torch.tensordot(h, h.t(), 1)),
    "kron": ("flat", lambda m, h: torch.kron(h, torch.ones(1, 2))),
    "outer": ("row", lambda m, h, g: torch.outer(h, g)),
    "inner": ("flat", lambda m, h, g: torch.inner(h, g)),
    "block_diag": ("flat", lambda m, h, g: torch.block_diag(h, g)),
    "cartesian_prod": ("row", lambda m, h: torch.cartesian_prod(h, h).sum(-1)),
    "im2col": ("image", lambda m, h: F.unfold(h, 2, dilation=2, padding=1, stride=2).transpose(1, 2)),
    "col2im": ("image", lambda m, h: F.fold(h.flatten(2), (7, 7), 2)[:, :, 0]),
    "bilinear": ("flat", extra(lambda: nn.Bilinear(16, 16, 5), lambda m, h, g: m.extra(h, g))),
    "embedding_bag": ("flat", extra(lambda: nn.EmbeddingBag(9, 16), lambda m, h: h + m.extra(m.ids[:, None]))),
    "one_hot": ("flat", lambda m, h: h + F.one_hot(m.ids, 16)),
    "one_hot_of_a_winner": ("flat", lambda m, h: h + F.one_hot(h.argmax(1), h.shape[1])),
    "bucketize": ("flat", lambda m, h: h + torch.bucketize(h, torch.tensor([0.0, 1.0]))),
    "bucketize_by": ("flat", lambda m, h: h + torch.bucketize(torch.ones(3, 1), h[0].sort()[0])),
    "searchsorted": ("flat", lambda m, h: h + torch.searchsorted(h.sort(1)[0], torch.ones(3, 1))),
    "histc": ("flat", lambda m, h: h[:, :5] * h.histc(5)),
    "trapezoid": ("flat", lambda m, h: h * torch.trapezoid(h, dim=1)[:, None]),
    "cumulative_trapezoid": ("flat", lambda m, h: torch.cumulative_trapezoid(h, dim=1)),
    "diff": ("flat", lambda m, h: h.diff(2, 1)),
    "diff_of_rows": ("tokens", lambda m, h: h.diff(1, 1)),
    "vander": ("flat", lambda m, h: torch.linalg.vander(h, N=3).sum(-1)),
    "count_nonzero": ("flat", lambda m, h: h * h.count_nonzero(1)[:, None]),
    "aminmax": ("flat", lambda m, h: h - h.aminmax(dim=1, keepdim=True)[0]),
    "triu_of_pixels": ("image", lambda m, h: h.triu(1)),
    "local_response_norm": ("image", lambda m, h: F.local_response_norm(h, 3)),
    "max_unpool2d": ("image", lambda m, h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2)),
    "grid_sample": ("image", lambda m, h: F.grid_sample(h, torch.zeros(2, 3, 3, 2))),
    "fractional": ("image", lambda m, h: F.interpolate(h, scale_factor=0.5, mode="area")),
    "fft": ("flat", lambda m, h: torch.fft.rfft(h, dim=1).abs()),
    "fft_of_rows": ("tokens", lambda m, h: torch.fft.rfft(h, n=7, dim=1).abs()),
    "cholesky": ("flat", lambda m, h: torch.linalg.cholesky(h @ h.t() + 9 * torch.eye(3))),
    "svd": ("flat", lambda m, h: h * torch.linalg.svdvals(h).sum()),
    "logcumsumexp": ("flat", lambda m, h: h.logcumsumexp(1)),
    "softmin": ("flat", lambda m, h: F.softmin(h, 0)),
    "gumbel": ("tokens", lambda m, h: h.nan_to_num().tile(2)),
    "split_then_zip": ("tokens", lambda m, h: torch.cat([x * k for k, x in enumerate(h.split(4, -1))], -1)),
    "meshgrid": ("row", lambda m, h, g: torch.meshgrid(h, g, indexing="ij")[0]),
    "prelu": ("image", extra(lambda: nn.PReLU(16), lambda m, h: m.extra(h))),
    "cummin_of_rows": ("tokens", lambda m, h: h.cummin(1)[0]),
}


def set_item(h: torch.Tensor, where: Any, value: float) -> torch.Tensor:
    """Write into a part of a value."""
    h[where] = value
    return h
