"""Train a small network on handwritten digits, prune it to 40 % of its FLOPs and 50 % of its parameters, compare.

The network has a residual, a concat and a depthwise part, so its layers cannot be pruned one by one. Seven ways to say
what stays meet the same two budgets on the same trained network:

* optimal, reconstruction: outputs move least, as the layers that read a unit make up for it, proven to a gap of 0
* optimal, retention:      the same program, with the share of the weights that stays; it sees no data
* optimal, Taylor:         the same program, with the first-order Taylor value of each unit on training data
* optimal, magnitude:      the most L2 magnitude that fits
* uniform:                 every layer to the same ratio, the largest that fits; the units of largest magnitude stay
* global threshold:        every unit above one threshold of magnitude, the lowest that fits
* random:                  every layer to the same ratio, units in random order

Each pruned network is measured as it was cut, then repaired without any training (its layers are fitted to what the
trained network does, by least squares), and then trained on with the optimizer it was trained with.

Run it: ``python examples/prune_digits.py``. It needs no download: the digits ship with scikit-learn.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import solvemut as sm

FLOPS, PARAMS = 0.4, 0.5  # the budgets, as fractions of the trained network

# -- the network ---------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip: the input and the output keep the same channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Concat(nn.Module):
    """A 1x1 and a 3x3 branch side by side."""

    def __init__(self, nin: int, each: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(nin, each, 1, bias=False)
        self.conv3x3 = nn.Conv2d(nin, each, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * each)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.conv1x1(x), self.conv3x3(x)], dim=1)))


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution: the depthwise one has the channels of its input."""

    def __init__(self, nin: int, nout: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(nin, nin, 3, padding=1, groups=nin, bias=False)
        self.bn1 = nn.BatchNorm2d(nin)
        self.pointwise = nn.Conv2d(nin, nout, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(nout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class DigitsNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.residual1 = Residual(width, 2 * width)
        self.concat = Concat(width, width)
        self.separable = Separable(2 * width, 4 * width)
        self.residual2 = Residual(4 * width, 2 * width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:  # [b, 1, 8, 8] -> [b, 10]
        x = F.relu(self.bn(self.stem(x)))
        x = self.concat(self.residual1(x))
        x = F.max_pool2d(x, 2)
        x = self.residual2(self.separable(x))
        return self.head(x.mean((2, 3)))


# -- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """1797 images of 8x8 pixels, split at random into 1200 to train on and 597 to test on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def load(cls, seed: int, train: int = 1200) -> Digits:
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        y = torch.tensor(labels, dtype=torch.long)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        first, rest = order[:train], order[train:]
        return cls(x[first], y[first], x[rest], y[rest])

    def batches(self, size: int = 60) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.train_x)).split(size):
            yield self.train_x[chosen], self.train_y[chosen]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, label_smoothing=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Digits, epochs: int, peak: float) -> None:
    """Train with a learning rate that falls in a line from `peak` to 0."""
    model.train()
    for epoch in range(epochs):
        batches = list(data.batches())
        for step, (x, y) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = peak * (1 - (epoch + step / len(batches)) / epochs)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Percent of the test images that are read right."""
    return 100 * (model(data.test_x).argmax(1) == data.test_y).double().mean().item()


# -- seven ways to choose what stays, each within the same two budgets -----------------------------------------------

Method = Callable[[sm.Graph, Digits, int], sm.Plan]
BUDGETS: dict[str, Any] = {"flops": FLOPS, "params": PARAMS}


def examples(data: Digits) -> list[tuple[Tensor, Tensor]]:
    """The training images that values and repairs look at."""
    return list(zip(data.train_x.split(100), data.train_y.split(100), strict=True))


def optimal_reconstruction(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.optimal(graph, sm.values.reconstruction(examples(data)), gap=0, **BUDGETS)


def optimal_retention(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.optimal(graph, sm.values.retention(), gap=0, **BUDGETS)


def optimal_taylor(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.optimal(graph, sm.values.taylor(examples(data), loss), gap=0, **BUDGETS)


def optimal_magnitude(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.optimal(graph, sm.values.magnitude(p=2), gap=0, **BUDGETS)


def uniform(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.uniform(graph, sm.values.magnitude(p=2), **BUDGETS)


def global_threshold(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.global_threshold(graph, sm.values.magnitude(p=2), **BUDGETS)


def random(graph: sm.Graph, data: Digits, seed: int) -> sm.Plan:
    return sm.select.uniform(graph, sm.values.random(seed), **BUDGETS)


METHODS: dict[str, Method] = {
    "optimal, reconstruction": optimal_reconstruction,
    "optimal, retention": optimal_retention,
    "optimal, Taylor": optimal_taylor,
    "optimal, magnitude": optimal_magnitude,
    "uniform": uniform,
    "global threshold": global_threshold,
    "random": random,
}


# -- the comparison ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of one trained network under one method."""

    method: str
    seed: int
    plan: sm.Plan
    dense: float  # accuracy in percent: as trained,
    cut: float  # pruned,
    repaired: float  # and repaired,
    tuned: float  # and trained on

    def share(self, resource: str) -> float:
        cost = self.plan.costs[resource]
        return cost.after / cost.before


def one_seed(seed: int, epochs: int, tune: int) -> list[Outcome]:
    """Train one network; prune a copy of it by each method, repair it, and let its own optimizer train it on."""
    torch.manual_seed(seed)
    data = Digits.load(seed)
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    train(model, optimizer, data, epochs, peak=0.1)
    dense, outcomes = accuracy(model, data), []
    repair = sm.repair.least_squares(examples(data))
    for name, method in METHODS.items():
        pruned, same_optimizer = copy.deepcopy((model, optimizer))  # together, so that the copies belong together
        plan = method(sm.capture(model, data.train_x[:1]), data, seed)
        plan.apply(pruned, same_optimizer)
        cut = accuracy(pruned, data)
        repair(pruned, model, plan)
        repaired = accuracy(pruned, data)
        torch.manual_seed(seed)
        train(pruned, same_optimizer, data, tune, peak=0.05)
        outcomes.append(Outcome(name, seed, plan, dense, cut, repaired, accuracy(pruned, data)))
    return outcomes


STAGES = ("cut", "repaired", "tuned")


def spread(numbers: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(numbers):6.2f} ± {np.std(numbers, ddof=1) if len(numbers) > 1 else 0.0:4.2f}"


def report(outcomes: list[Outcome]) -> str:
    """One line per method, then the optimal choice against each other one, seed by seed."""
    by = {name: [outcome for outcome in outcomes if outcome.method == name] for name in METHODS}
    seeds = len(next(iter(by.values())))
    lines = [
        f"Test accuracy in percent, mean ± standard deviation over {seeds} seeds; as trained:"
        f" {spread([outcome.dense for outcome in next(iter(by.values()))])}",
        "",
        f"{'method':<24} {'FLOPs':>7} {'params':>7}  {'pruned':>14}  {'repaired':>14}  {'fine-tuned':>14}",
    ]
    for name, rows in by.items():
        flops, params = (max(row.share(resource) for row in rows) for resource in ("flops", "params"))
        found = [spread([getattr(row, when) for row in rows]) for when in STAGES]
        lines.append(f"{name:<24} {flops:7.2%} {params:7.2%}  {'  '.join(f'{text:>14}' for text in found)}")
    first, *others = by
    lines += ["", f"{first} minus ... in points, seed by seed (seeds won, drawn, lost)"]
    for name in others:
        cells = []
        for when in STAGES:
            gaps = [getattr(a, when) - getattr(b, when) for a, b in zip(by[first], by[name], strict=True)]
            won, lost = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
            cells.append(f"{spread(gaps):>14} ({won}, {seeds - won - lost}, {lost})")
        lines.append(f"{name:<24}  {'  '.join(cells)}")
    return "\n".join(lines)


def figure(outcomes: list[Outcome], path: Path) -> None:
    """Accuracy at each stage (a point per seed, a bar for the mean), and the widths that are left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    fig, all_axes = plt.subplots(1, 4, figsize=(18, 5), width_ratios=(2, 2, 2, 5), layout="constrained")
    *left, right = all_axes
    names = list(METHODS)
    colours = [f"C{nr}" for nr in range(len(names))]
    dense = float(np.mean([outcome.dense for outcome in outcomes]))
    for axes, when, title in zip(left, STAGES, ("pruned", "repaired", "fine-tuned"), strict=True):
        for nr, name in enumerate(names):
            found = [getattr(outcome, when) for outcome in outcomes if outcome.method == name]
            axes.scatter([nr] * len(found), found, s=18, alpha=0.6, c=colours[nr])
            axes.scatter([nr], [np.mean(found)], s=300, marker="_", c=colours[nr])
        axes.axhline(dense, color="gray", lw=1, ls="--")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set(ylabel="test accuracy, %", title=f"{title} (as trained: dashed)")

    layers = [name for name in outcomes[0].plan.sizes if name != "head"]
    for nr, name in enumerate(names):
        plans = [outcome.plan for outcome in outcomes if outcome.method == name]
        kept = [np.mean([plan.sizes[layer][1] / plan.sizes[layer][0] for plan in plans]) for layer in layers]
        at = np.arange(len(layers)) + (nr - (len(names) - 1) / 2) * 0.12
        right.bar(at, 100 * np.array(kept), width=0.11, color=colours[nr], label=name)
    right.set_xticks(range(len(layers)), [layer.replace(".", "\n") for layer in layers], fontsize=8)
    right.set(ylabel="channels kept, %", title=f"{FLOPS:.0%} of the FLOPs, {PARAMS:.0%} of the parameters: widths")
    right.legend(fontsize=8, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(argv: list[str] | None = None) -> list[Outcome]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="networks to train (default 5)")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of training (default 15)")
    parser.add_argument("--tune", type=int, default=2, help="epochs of fine-tuning after the pruning (default 2)")
    parser.add_argument("--figure", type=Path, default=Path("out/prune_digits.png"), help="where the figure goes")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)  # the tensors are small: more threads cost more than they save
    start, outcomes = time.perf_counter(), []
    for seed in range(options.seeds):
        outcomes += one_seed(seed, options.epochs, options.tune)
        print(f"seed {seed} done after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\nThe plan of seed 0, {outcomes[0].method}:\n\n{outcomes[0].plan}\n")
    print(report(outcomes))
    figure(outcomes, options.figure)
    print(f"\n{options.figure} written; {time.perf_counter() - start:.0f} s in all")
    return outcomes


if __name__ == "__main__":
    main()
