"""Deterministic instances for the solver: network shapes written as data, no torch needed.

Every generator returns a :class:`solvemut.program.Program`. The shapes are those of the published networks; the unit
values are lognormal, because measured magnitudes and Taylor scores are. The value of keeping ``n`` units of a width is
the sum of its ``n`` largest unit values, so each value vector is concave.

>>> sorted(INSTANCES)[:2]
['all_pairs', 'chain']
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from solvemut.program import Program

HALF_FLOPS: Mapping[str, float] = {"flops": 0.5}


@dataclass
class Net:
    """A network's shape as data: named widths, and for each resource its products, linear terms and constant.

    >>> net = Net({"a": 4, "b": 6})
    >>> net.conv(3, "a", 1, 2); net.conv("a", "b", 3, 2)
    >>> net.total("params")
    248
    """

    widths: dict[str, int]
    steps: dict[str, int] = field(default_factory=dict)  # widths whose step differs from the instance's
    pairs: dict[str, Counter[tuple[str, str]]] = field(
        default_factory=lambda: {"flops": Counter(), "params": Counter()}
    )
    linear: dict[str, Counter[str]] = field(default_factory=lambda: {"flops": Counter(), "params": Counter()})
    constant: Counter[str] = field(default_factory=Counter)

    def conv(
        self, source: str | int | Sequence[str], out: str | int, kernel: int, side: int, *, norm: bool = True
    ) -> None:
        """A convolution onto a ``side`` x ``side`` map; several sources: their concatenation; an int: a frozen size."""
        sources = [source] if isinstance(source, (str, int)) else source
        for one in sources:
            self.multiply(one, out, flops=2 * kernel**2 * side**2, params=kernel**2)
        if norm and isinstance(out, str):
            self.linear["params"][out] += 2

    def depthwise(self, width: str, kernel: int, side: int) -> None:
        """A depthwise convolution and its norm: linear in the one width it runs over."""
        self.linear["flops"][width] += 2 * kernel**2 * side**2
        self.linear["params"][width] += kernel**2 + 2

    def multiply(self, a: str | int, b: str | int, **coefficients: int) -> None:
        """Add ``coefficient * a * b`` to each resource named."""
        for resource, coefficient in coefficients.items():
            if isinstance(a, str) and isinstance(b, str):
                self.pairs[resource][a, b] += coefficient
            elif isinstance(a, str):
                self.linear[resource][a] += coefficient * int(b)
            elif isinstance(b, str):
                self.linear[resource][b] += coefficient * a
            else:
                self.constant[resource] += coefficient * a * b

    def total(self, resource: str) -> int:
        """The cost of the network as it is."""
        pairs = sum(c * self.widths[a] * self.widths[b] for (a, b), c in self.pairs[resource].items())
        return pairs + sum(c * self.widths[a] for a, c in self.linear[resource].items()) + self.constant[resource]

    def levels(self, name: str, step: int) -> list[int]:
        """Multiples of the step up to the width, and the width itself."""
        size, step = self.widths[name], self.steps.get(name, step)
        return sorted({*range(step, size + 1, step), size})


def prefix_sums(units: np.ndarray, levels: Sequence[int]) -> list[float]:
    """The summed value of the best ``n`` units, for each ``n`` in ``levels``."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(units)[::-1])])
    return [float(sums[n]) for n in levels]


def unit_values(net: Net, seed: int, sigma: float = 1.0) -> dict[str, np.ndarray]:
    """What each unit of each width is worth: lognormal, in no order."""
    rng = np.random.default_rng(seed)
    return {name: rng.lognormal(0.0, sigma, size) for name, size in net.widths.items()}


def limit_of(net: Net, resource: str, fraction: float) -> int:
    """A budget: a fraction of what the network costs now."""
    return int(Fraction(fraction).limit_denominator(10_000) * net.total(resource))


def build(
    net: Net, step: int, budgets: Mapping[str, float], seed: int, worth: Mapping[str, np.ndarray] | None = None
) -> Program:
    """The program of a network: one width per block, budgets as fractions of what the network costs now."""
    program, handles, levels = Program(), {}, {}
    for name, units in (unit_values(net, seed) if worth is None else worth).items():
        levels[name] = net.levels(name, step)
        handles[name] = program.width(name, levels=levels[name])
        program.value(prefix_sums(units, levels[name]), handles[name])
    for resource, fraction in budgets.items():
        for (a, b), coefficient in net.pairs[resource].items():
            program.product(resource, coefficient, handles[a], handles[b])
        for a, coefficient in net.linear[resource].items():
            program.cost(resource, [coefficient * n for n in levels[a]], handles[a])
        if net.constant[resource]:
            program.cost(resource, net.constant[resource])
        program.budget(resource, limit_of(net, resource, fraction))
    return program


def build_plain(net: Net, step: int, budgets: Mapping[str, float], seed: int, unit: int = 1) -> Program:
    """The program of a network as many would write it: every cost an array over two widths, in units of ``unit``."""
    program, handles, levels = Program(), {}, {}
    for name, units in unit_values(net, seed).items():
        levels[name] = net.levels(name, step)
        handles[name] = program.width(name, levels=levels[name])
        program.value(prefix_sums(units, levels[name]), handles[name])
    for resource, fraction in budgets.items():
        for (a, b), coefficient in net.pairs[resource].items():
            table = coefficient * np.outer(levels[a], levels[b])
            program.cost(resource, table if unit == 1 else table / unit, handles[a], handles[b])
        for a, coefficient in net.linear[resource].items():
            program.cost(resource, coefficient * np.array(levels[a]) / unit, handles[a])
        program.budget(resource, (limit_of(net, resource, fraction) - net.constant[resource]) / unit)
    return program


# -- the shapes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A residual stage: its blocks, inner width, output width, and side of its maps (before and after the stride)."""

    blocks: int
    inner: int
    out: int
    side_in: int
    side: int


BOTTLENECK_STAGES = {
    50: (
        Stage(3, 64, 256, 56, 56),
        Stage(4, 128, 512, 56, 28),
        Stage(6, 256, 1024, 28, 14),
        Stage(3, 512, 2048, 14, 7),
    ),
    101: (
        Stage(3, 64, 256, 56, 56),
        Stage(4, 128, 512, 56, 28),
        Stage(23, 256, 1024, 28, 14),
        Stage(3, 512, 2048, 14, 7),
    ),
}
BASIC_STAGES = (
    Stage(2, 64, 64, 56, 56),
    Stage(2, 128, 128, 56, 28),
    Stage(2, 256, 256, 28, 14),
    Stage(2, 512, 512, 14, 7),
)


def bottleneck_net(depth: int = 50, classes: int = 1000) -> Net:
    """ResNet-50 or ResNet-101: the residual stream of a stage is one width, every block has two inner ones.

    >>> net = bottleneck_net(50)
    >>> len(net.widths), len(net.pairs["flops"]), net.total("flops") // 10**6, net.total("params")
    (37, 52, 8178, 25556032)
    """
    net = Net({"stem": 64})
    net.conv(3, "stem", 7, 112)
    before = "stem"
    for number, stage in enumerate(BOTTLENECK_STAGES[depth], 1):
        out = f"layer{number}"
        net.widths[out] = stage.out
        for block in range(stage.blocks):
            one, two, source = f"{out}.{block}.conv1", f"{out}.{block}.conv2", before if block == 0 else out
            net.widths |= {one: stage.inner, two: stage.inner}
            net.conv(source, one, 1, stage.side_in if block == 0 else stage.side)
            net.conv(one, two, 3, stage.side)
            net.conv(two, out, 1, stage.side)
            if block == 0:
                net.conv(source, out, 1, stage.side)
        before = out
    net.multiply(before, classes, flops=2, params=1)
    return net


def basic_net(classes: int = 1000) -> Net:
    """ResNet-18: 12 widths; the stem belongs to the first residual stream, which has no downsampling convolution.

    >>> net = basic_net()
    >>> len(net.widths), net.total("flops") // 10**6, net.total("params")
    (12, 3628, 11688512)
    """
    net = Net({"layer1": 64})
    net.conv(3, "layer1", 7, 112)
    before = "layer1"
    for number, stage in enumerate(BASIC_STAGES, 1):
        out = f"layer{number}"
        net.widths[out] = stage.out
        for block in range(stage.blocks):
            inner, source = f"{out}.{block}.conv1", before if block == 0 else out
            net.widths[inner] = stage.inner
            net.conv(source, inner, 3, stage.side)
            net.conv(inner, out, 3, stage.side)
            if block == 0 and number > 1:
                net.conv(source, out, 1, stage.side)
        before = out
    net.multiply(before, classes, flops=2, params=1)
    return net


def densenet_net(blocks: Sequence[int] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000) -> Net:
    """DenseNet-121: every layer reads the concatenation of all before it in its block.

    >>> net = densenet_net()
    >>> len(net.widths), len(net.pairs["flops"]), net.total("flops") // 10**6
    (120, 638, 5668)
    """
    net = Net({"stem": 64})
    net.conv(3, "stem", 7, 112)
    entry, size, side = "stem", 64, 56
    for number, layers in enumerate(blocks, 1):
        stream = [entry]
        for layer in range(layers):
            neck, new = f"block{number}.{layer}.conv1", f"block{number}.{layer}.conv2"
            net.widths |= {neck: 4 * growth, new: growth}
            net.conv(stream, neck, 1, side)
            net.conv(neck, new, 3, side)
            stream.append(new)
        size += layers * growth
        if number < len(blocks):
            entry, size = f"transition{number}", size // 2
            net.widths[entry] = size
            net.conv(stream, entry, 1, side)
            side //= 2
    for one in stream:
        net.multiply(one, classes, flops=2, params=1)
    return net


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_net(classes: int = 1000) -> Net:
    """MobileNet-V2: inverted residuals; a stage's output width is shared by its blocks, the hidden one is each block's.

    >>> net = mobilenet_net()
    >>> len(net.widths), net.total("flops") // 10**6, net.total("params")
    (25, 601, 3503872)
    """
    net = Net({"stem": 32})
    net.conv(3, "stem", 3, 112)
    before, side = "stem", 112
    for number, (expand, out_size, repeats, stride) in enumerate(MOBILENET_V2, 1):
        out = f"stage{number}"
        net.widths[out] = out_size
        for block in range(repeats):
            hidden, hidden_size = f"{out}.{block}.hidden", net.widths[before] * expand
            if expand == 1:
                hidden = before  # the first block has no expansion: its depthwise layer runs over the stem's units
            else:
                net.widths[hidden] = hidden_size
                net.conv(before, hidden, 1, side)
            side //= stride if block == 0 else 1
            net.depthwise(hidden, 3, side)
            net.conv(hidden, out, 1, side)
            before = out
    net.widths["head"] = 1280
    net.conv(before, "head", 1, side)
    net.multiply("head", classes, flops=2, params=1)
    return net


def unet_net(base: int = 64, depth: int = 4, side: int = 256) -> Net:
    """U-Net: two convolutions a level, the decoder reads its level's skip beside the upsampled stream.

    >>> net = unet_net()
    >>> len(net.widths), len(net.pairs["flops"])
    (22, 25)
    """
    net, before = Net({}), 3
    source: str | int = before
    skips = []
    for level in range(depth + 1):
        size, here = base << level, side >> level
        mid, out = f"down{level}.conv1", f"down{level}.conv2"
        net.widths |= {mid: size, out: size}
        net.conv(source, mid, 3, here)
        net.conv(mid, out, 3, here)
        skips.append(out)
        source = out
    for level in reversed(range(depth)):
        size, here = base << level, side >> level
        up, mid, out = f"up{level}.up", f"up{level}.conv1", f"up{level}.conv2"
        net.widths |= {up: size, mid: size, out: size}
        net.multiply(source, up, flops=2 * 4 * (here // 2) ** 2, params=4)  # 2 x 2 transposed convolution
        net.conv([skips[level], up], mid, 3, here)
        net.conv(mid, out, 3, here)
        source = out
    net.conv(source, 2, 1, side)
    return net


def vit_net(layers: int = 12, embed: int = 768, heads: int = 12, tokens: int = 197, classes: int = 1000) -> Net:
    """ViT-B/16: one embedding width under everything, and per layer its number of heads and its MLP's hidden width.

    >>> net = vit_net()
    >>> len(net.widths), net.total("flops") // 10**6
    (25, 35127)
    """
    net, head = Net({"embed": embed}), embed // heads
    net.multiply(3 * 16 * 16, "embed", flops=2 * (tokens - 1), params=1)
    net.multiply(tokens, "embed", params=1)
    for layer in range(layers):
        attention, hidden = f"layer{layer}.heads", f"layer{layer}.mlp"
        net.widths |= {attention: heads, hidden: 4 * embed}
        net.steps[attention] = 1
        net.multiply("embed", attention, flops=2 * 4 * head * tokens, params=4 * head)
        net.multiply(1, attention, flops=2 * 2 * head * tokens**2, params=3 * head)
        net.multiply("embed", hidden, flops=2 * 2 * tokens, params=2)
        net.multiply(6, "embed", params=1)
        net.multiply(1, hidden, params=1)
    net.multiply("embed", classes, flops=2, params=1)
    return net


# -- the instances ---------------------------------------------------------------------------------------------------


def resnet50(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0) -> Program:
    """ResNet-50 (37 widths, 53 convolutions), budgets as fractions of now."""
    return build(bottleneck_net(50), step, budgets, seed)


def resnet50_plain(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0, unit: int = 1) -> Program:
    """ResNet-50, its costs as plain arrays; with a ``unit``, as rounded floats."""
    return build_plain(bottleneck_net(50), step, budgets, seed, unit)


def equal_units(depth: int = 50, step: int = 1, budgets: Mapping[str, float] = HALF_FLOPS) -> Program:
    """ResNet-50 or ResNet-101 where every unit is worth 1: values are linear, and the blocks of a stage all alike."""
    net = bottleneck_net(depth)
    return build(net, step, budgets, 0, {name: np.ones(size) for name, size in net.widths.items()})


def all_pairs(
    blocks: int = 4, layers: int = 12, levels: int = 16, kind: str = "all", budget: float = 0.5, seed: int = 0
) -> Program:
    """Blocks in which layers multiply one another, without bottlenecks between them.

    ``kind``: "all" pairs of a block, "rank one" (all, with coefficients ``c_i * c_j``), "halves" (each of the first
    half with each of the second), "some" (a quarter with all), "sums" (halves of one block of all layers), "nearly"
    (all pairs but a few).
    """
    rng, program, total = np.random.default_rng(seed), Program(), 0
    sizes = range(1, levels + 1)
    widths = [[program.width(f"block{b}.{i}", levels=sizes) for i in range(layers)] for b in range(blocks)]
    if kind == "sums":
        widths = [[width for block in widths for width in block]]
    for width in (width for block in widths for width in block):
        program.value(prefix_sums(rng.lognormal(0.0, 1.0, levels), sizes), width)
    for block in widths:
        scale = int(rng.integers(1, 50))
        own = [int(x) for x in rng.integers(1, 6, len(block))] if kind == "rank one" else [1] * len(block)
        half, few = len(block) // 2, len(block) // 4
        for i, j in itertools.combinations(range(len(block)), 2):
            if (kind in ("halves", "sums") and not i < half <= j) or (kind == "some" and i >= few):
                continue
            if kind == "nearly" and rng.random() < 0.05:
                continue
            program.product("flops", scale * own[i] * own[j], block[i], block[j])
            total += scale * own[i] * own[j] * levels**2
    program.budget("flops", int(Fraction(budget) * total))
    return program


def resnet18(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0) -> Program:
    """ResNet-18 (12 widths)."""
    return build(basic_net(), step, budgets, seed)


def densenet121(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0) -> Program:
    """DenseNet-121 (120 widths, 638 products: no small separator within a block)."""
    return build(densenet_net(), step, budgets, seed)


def mobilenet_v2(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0) -> Program:
    """MobileNet-V2 (25 widths)."""
    return build(mobilenet_net(), step, budgets, seed)


def unet(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0) -> Program:
    """U-Net with 4 poolings on 256 x 256 images (22 widths)."""
    return build(unet_net(), step, budgets, seed)


def vit_b(step: int = 8, budgets: Mapping[str, float] = HALF_FLOPS, seed: int = 0) -> Program:
    """ViT-B/16: embedding, heads and hidden widths (25 widths, a star)."""
    return build(vit_net(), step, budgets, seed)


def chain(layers: int = 48, levels: int = 64, budgets: Sequence[float] = (0.5, 0.5), seed: int = 0) -> Program:
    """A chain of layers with two product budgets whose coefficients differ from layer to layer."""
    rng = np.random.default_rng(seed)
    program = Program()
    names = [program.width(f"layer{i}", levels=range(1, levels + 1)) for i in range(layers)]
    for width in names:
        program.value(prefix_sums(rng.lognormal(0.0, 1.0, levels), range(1, levels + 1)), width)
    for resource, fraction in zip(("flops", "params"), budgets, strict=True):
        coefficients = [int(c) for c in rng.integers(1, 100, layers - 1)]
        for a, b, coefficient in zip(names, names[1:], coefficients, strict=False):
            program.product(resource, coefficient, a, b)
        program.budget(resource, int(Fraction(fraction) * sum(coefficients) * levels**2))
    return program


def variants(layers: int = 80, choices: int = 16, budget: float = 0.55, seed: int = 0) -> Program:
    """One variant per layer, three additive budgets (latency, memory, params), as in searches over replaced layers.

    A variant keeps a fraction of its layer; each resource shrinks with it in its own way, and quality is concave in it.
    """
    rng = np.random.default_rng(seed)
    program, resources = Program(), ("latency_us", "memory", "params")
    totals = dict.fromkeys(resources, 0)
    for layer in range(layers):
        width = program.width(f"layer{layer}", levels=range(choices))
        kept = np.sort(rng.uniform(0.05, 1.0, choices))
        quality = rng.lognormal(0.0, 0.6) * kept ** rng.uniform(0.2, 0.7) * rng.normal(1.0, 0.03, choices)
        program.value([float(v) for v in quality], width)
        for resource in resources:
            scale = rng.lognormal(8.0, 0.4)
            table = [int(c) for c in scale * kept ** rng.uniform(0.6, 1.4) * rng.normal(1.0, 0.05, choices)]
            program.cost(resource, table, width)
            totals[resource] += max(table)
    for resource in resources:
        program.budget(resource, int(Fraction(budget) * totals[resource]))
    return program


def latency_ms(out: int, source: int, kernel: int, side: int, tile: int, rng: np.random.Generator) -> float:
    """A measured-looking latency: launch cost, a staircase of tiles, a penalty off the fast path, noise."""
    tiles = -(-out // tile) * -(-source // tile)
    work = tiles * tile * tile * kernel**2 * side**2
    slow = 1.0 + 0.12 * (out % tile > 0) + 0.08 * (source % tile > 0)
    return round((0.012 + work / 4e9) * slow * float(rng.normal(1.0, 0.04)), 6)


GROUP = {64: 16, 128: 16, 256: 32, 512: 32, 1024: 64, 2048: 128}  # channels that are kept or removed together


def latency(depth: int = 50, budget: float = 0.5, seed: int = 0) -> Program:
    """A residual network under a measured latency table, after the published latency-pruning programs (HALP, MDP).

    Widths move in groups of channels; every layer has a table over (its output, its input) that is not monotone; a
    switch per residual block takes away all of the block's tables and values at once. The importance of a layer's
    channels counts only while its block is on. The stem is not pruned and the first block stays, as published.
    """
    rng = np.random.default_rng(seed)
    program = Program()
    total = 0.0

    def width(name: str, size: int) -> tuple[Any, list[int]]:
        levels = list(range(GROUP[size], size + 1, GROUP[size]))
        return program.width(name, levels=levels), levels

    def layer(out: Any, source: Any, order: np.ndarray, kernel: int, side: int, when: Any) -> float:
        units = order * rng.lognormal(0.0, 0.5, order.size) * rng.lognormal(0.0, 0.3)
        sums = np.cumsum(units)
        program.value([float(sums[n - 1]) for n in out[1]], out[0], when=when)
        table = [[latency_ms(o, i, kernel, side, 64, rng) for i in source[1]] for o in out[1]]
        program.cost("latency_ms", table, out[0], source[0], when=when)
        return table[-1][-1]

    before = (program.width("stem", levels=[64]), [64])
    for number, stage in enumerate(BOTTLENECK_STAGES[depth], 1):
        out = width(f"layer{number}", stage.out)
        shared = np.sort(rng.lognormal(0.0, 1.0, stage.out))[::-1]  # coupled layers rank their channels alike
        for block in range(stage.blocks):
            name, source, first = f"layer{number}.{block}", before if block == 0 else out, number == 1 and block == 0
            switch = None if first else program.switch(name)
            one, two = width(f"{name}.conv1", stage.inner), width(f"{name}.conv2", stage.inner)
            orders = [np.sort(rng.lognormal(0.0, 1.0, stage.inner))[::-1] for _ in range(2)]
            total += layer(one, source, orders[0], 1, stage.side_in if block == 0 else stage.side, switch)
            total += layer(two, one, orders[1], 3, stage.side, switch)
            total += layer(out, two, shared, 1, stage.side, switch)
            if block == 0:
                total += layer(out, source, shared, 1, stage.side, switch)
        before = out
    program.budget("latency_ms", round(budget * total, 4))
    return program


INSTANCES: dict[str, Callable[..., Program]] = {
    "resnet50": resnet50,
    "resnet50_plain": resnet50_plain,
    "equal_units": equal_units,
    "all_pairs": all_pairs,
    "resnet18": resnet18,
    "densenet121": densenet121,
    "mobilenet_v2": mobilenet_v2,
    "unet": unet,
    "vit_b": vit_b,
    "chain": chain,
    "variants": variants,
    "latency": latency,
}
