"""Data, networks and training of accuracy.py: small networks trained in minutes on one core, cached as files."""

from __future__ import annotations

import gzip
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FASHION = Path("/usr/share/datasets/fashion-mnist")
TRAIN, VALUES, REPAIR, BATCH, CONTEXT = 20_000, 2_048, 1_024, 128, 64

Batches = list[tuple[Tensor, Tensor]]

# -- data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Examples to train on and to test on; the last dim of an output is the classes."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def epoch(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All training examples in random order."""
        for chosen in torch.randperm(len(self.train_x)).split(size):
            yield self.train_x[chosen], self.train_y[chosen]

    def sample(self, n: int, skip: int = 0, size: int = BATCH) -> Batches:
        """The same n training examples each time (or as many as there are), after some that are skipped."""
        order = torch.randperm(len(self.train_x), generator=torch.Generator().manual_seed(0))
        return [(self.train_x[i], self.train_y[i]) for i in order[skip : skip + n].split(size)]

    def held(self) -> Batches:
        """Training examples for the loss that no value and no repair sees, as far as there are enough."""
        n = len(self.train_x)
        return self.sample(VALUES, skip=VALUES if n >= 2 * VALUES else max(0, n - VALUES), size=512)

    def test(self) -> Batches:
        """The test examples."""
        return list(zip(self.test_x.split(500), self.test_y.split(500), strict=True))


def digits() -> Data:
    """scikit-learn's 1797 digits of 8 x 8 pixels: 1200 to train on, 597 to test on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.long)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, rest = order[:1200], order[1200:]
    return Data("digits", x[first], y[first], x[rest], y[rest], 10)


def fashion() -> Data:
    """Fashion-MNIST: the first 20,000 training images of 28 x 28 pixels, all 10,000 test images."""
    if not FASHION.is_dir():
        raise SystemExit(f"{FASHION} is missing: apt-get install dataset-fashion-mnist (Debian, Ubuntu)")
    parts = [_idx(f"{part}-{kind}") for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    train_x, test_x = ((x[:, None].float() / 255 - 0.2860) / 0.3530 for x in parts[::2])
    train_y, test_y = (y.long() for y in parts[1::2])
    return Data("fashion", train_x[:TRAIN].clone(), train_y[:TRAIN].clone(), test_x, test_y, 10)


def _idx(name: str) -> Tensor:
    raw = gzip.decompress((FASHION / f"{name}-ubyte.gz").read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * len(shape) :]), dtype=torch.uint8).reshape(shape)


def text() -> Data:
    """The help topics that ship with Python, as characters: each is to be told from the up to 64 before it."""
    from pydoc_data.topics import topics

    joined = "\n".join(topics[k] for k in sorted(topics))
    known = {c: k for k, c in enumerate(sorted(set(joined)))}
    codes = torch.tensor([known[c] for c in joined])
    n = (len(codes) - 1) // CONTEXT * CONTEXT
    x, y = codes[:n].reshape(-1, CONTEXT), codes[1 : n + 1].reshape(-1, CONTEXT)
    cut = len(x) * 9 // 10
    return Data("text", x[:cut], y[:cut], x[cut:], y[cut:], len(known))


DATA: dict[str, Callable[[], Data]] = {"digits": digits, "fashion": fashion, "text": text}

# -- networks ------------------------------------------------------------------------------------------------------


def conv_bn(nin: int, nout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(nin, nout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(nout))


class Block(nn.Module):
    """Two 3 x 3 convolutions around a skip, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, nin: int, nout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(nin, nout, stride=stride), conv_bn(nout, nout)
        same = nin == nout and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(nin, nout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.conv1(x))))


class ResNet(nn.Module):
    """Stages of residual blocks; with widths 16, 32, 64 and two blocks each it is ResNet-14."""

    def __init__(self, data: Data, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 2) -> None:
        super().__init__()
        self.stem, layers, nin = conv_bn(1, widths[0]), [], widths[0]
        for k, width in enumerate(widths):
            for j in range(blocks):
                layers.append(Block(nin, width, stride=2 if k and not j else 1))
                nin = width
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(nin, data.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Inverted(nn.Module):
    """Wide, depthwise, narrow; a skip where the shape stays."""

    def __init__(self, nin: int, nout: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = nin * expand
        self.widen = conv_bn(nin, wide, 1)
        self.depthwise = conv_bn(wide, wide, stride=stride, groups=wide)
        self.narrow = conv_bn(wide, nout, 1)
        self.skips = nin == nout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(F.relu6(self.depthwise(F.relu6(self.widen(x)))))
        return x + y if self.skips else y


class MobileNet(nn.Module):
    """A small MobileNet-V2."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16)
        stages = ((16, 1, 2), (24, 2, 4), (24, 1, 4), (40, 2, 4), (40, 1, 4), (64, 1, 4), (64, 1, 4))
        layers, nin = [], 16
        for nout, stride, expand in stages:
            layers.append(Inverted(nin, nout, stride, expand))
            nin = nout
        self.blocks, self.last = nn.Sequential(*layers), conv_bn(nin, 160, 1)
        self.head = nn.Linear(160, data.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.last(self.blocks(F.relu6(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class VGG(nn.Module):
    """Six convolutions with batch norms, in pairs between poolings."""

    def __init__(self, data: Data, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        nin = 1
        for width in widths:
            layers += [conv_bn(nin, width), nn.ReLU(), conv_bn(width, width), nn.ReLU(), nn.MaxPool2d(2)]
            nin = width
        self.features, self.head = nn.Sequential(*layers), nn.Linear(nin, data.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with one linear layer for queries, keys and values; the scale stays when dims of heads go."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads, self.causal, self.scale = heads, causal, (dim // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(b, t, -1))


class Layer(nn.Module):
    """Attention and an MLP, each behind a layer norm and beside a skip."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer: patches, learned positions, the mean over patches."""

    def __init__(self, data: Data, dim: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        size = data.train_x.shape[-1]
        patch = 4 if size > 8 else 2
        self.patches = nn.Conv2d(1, dim, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, dim))
        self.layers = nn.Sequential(*(Layer(dim, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, data.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))


class GPT(nn.Module):
    """A small causal transformer over characters."""

    def __init__(self, data: Data, dim: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(data.classes, dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, CONTEXT, dim))
        self.layers = nn.Sequential(*(Layer(dim, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, data.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embed(x) + self.position)))


NETWORKS: dict[str, Callable[[Data], nn.Module]] = {
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "vgg": VGG,
    "vit": ViT,
    "gpt": GPT,
}


def build(model: str, data: Data) -> nn.Module:
    """An untrained network; on digits the ResNet is a tiny one."""
    if model == "resnet" and data.name == "digits":
        return ResNet(data, (8, 16, 32), blocks=1)
    return NETWORKS[model](data)


# -- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    peak: float
    decay: float
    adam: bool = False
    batch: int = BATCH

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, or SGD with Nesterov's momentum."""
        if self.adam:
            return torch.optim.AdamW(model.parameters(), self.peak, betas=(0.9, 0.98), weight_decay=self.decay)
        return torch.optim.SGD(model.parameters(), self.peak, 0.9, weight_decay=self.decay, nesterov=True)


RECIPES = {
    "resnet": Recipe(5, 0.1, 5e-4),
    "mobilenet": Recipe(6, 0.1, 5e-4),
    "vgg": Recipe(5, 0.1, 5e-4),
    "vit": Recipe(10, 2e-3, 0.05, adam=True),
    "gpt": Recipe(12, 4e-3, 0.05, adam=True, batch=64),
}
DIGITS = {k: Recipe(20, r.peak, r.decay, r.adam, batch=32) for k, r in RECIPES.items()}
TUNE = Recipe(1, 0.02, 5e-4)  # the short fine-tune, the same for all


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over the last dim."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def train(model: nn.Module, data: Data, recipe: Recipe, seed: int, warm: float = 0.1) -> float:
    """Train: the learning rate rises in a line to its peak, then falls to 0. Returns processor seconds of an epoch."""
    torch.manual_seed(seed)
    model.train()
    optimizer, start = recipe.optimizer(model), time.process_time()
    each = math.ceil(len(data.train_x) / recipe.batch)
    for epoch in range(recipe.epochs):
        for step, (x, y) in enumerate(data.epoch(recipe.batch)):
            at = (epoch + (step + 1) / (each + 1)) / recipe.epochs
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak * min(at / warm if warm else 1.0, (1 - at) / (1 - warm))
            optimizer.zero_grad()
            loss(model(x), y).backward()
            if recipe.adam:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    for p in model.parameters():
        p.grad = None
    model.eval()
    return (time.process_time() - start) / recipe.epochs


def tune(model: nn.Module, data: Data, seed: int) -> float:
    """The short fine-tune, in place; its processor seconds."""
    return train(model, data, TUNE, seed, warm=0.0)


@torch.no_grad()
def measure(model: nn.Module, data: Data) -> dict[str, float]:
    """Percent of the test examples that are told right, and the loss on a fixed part of the training examples."""
    model.eval()
    right, n, total, m = 0, 0, 0.0, 0
    for x, y in data.test():
        right, n = right + int((model(x).argmax(-1) == y).sum()), n + y.numel()
    for x, y in data.held():
        total, m = total + len(x) * float(loss(model(x), y)), m + len(x)
    return {"accuracy": 100 * right / n, "loss": total / m}


# -- trained networks in files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A trained network, what it reaches, and the processor seconds of an epoch of its training."""

    model: nn.Module
    data: Data
    seed: int
    accuracy: float
    loss: float
    epoch_s: float


def trained(data: Data, model: str, seed: int, cache: Path, say: Callable[[str], Any] = print) -> Trained:
    """The network from the cache, trained first where it is not there."""
    path = cache / f"{data.name}-{model}-{seed}.pt"
    torch.manual_seed(seed)
    net = build(model, data)
    if not path.exists():
        say(f"training {data.name} {model} {seed}")
        recipe = (DIGITS if data.name == "digits" else RECIPES)[model]
        seconds = train(net, data, recipe, seed)
        found = measure(net, data) | {"epoch_s": seconds, "state": net.state_dict()}
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")  # whoever reads meanwhile sees a whole file or none
        torch.save(found, part)
        part.replace(path)
        say(f"trained {path.name}: {found['accuracy']:.2f} %, loss {found['loss']:.4f}, {seconds:.1f} s an epoch")
    found = torch.load(path, weights_only=True)
    net.load_state_dict(found.pop("state"))
    return Trained(net.eval(), data, seed, **found)
