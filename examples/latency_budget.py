"""Train a small network on handwritten digits, measure how long its layers take, prune it to half the milliseconds.

Two plans for the same trained network keep what is worth most by the same values: one within half of the latency that
a table foretells, one within half of the FLOPs. Both are repaired without training, and all three are then run in
turn, a batch of 32 images at a time. At last: what more or fewer milliseconds would be worth, and why one layer has the
size that it has.

Run it: ``python examples/latency_budget.py``. It needs no download: the digits ship with scikit-learn.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import solvemut as sm

BATCH, EPOCHS, ROUNDS = 32, 12, 40


class Separable(nn.Module):
    """A depthwise and a pointwise convolution: many bytes for few FLOPs."""

    def __init__(self, nin: int, nout: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(nin, nin, 3, padding=1, groups=nin, bias=False)
        self.pointwise = nn.Conv2d(nin, nout, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(nin), nn.BatchNorm2d(nout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(Separable(32, 64), nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.MaxPool2d(2), Separable(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1200 images to train on, 597 to test on."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1200]], y[order[:1200]], x[order[1200:]], y[order[1200:]]


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
        schedule.step()
    model.eval()


@torch.inference_mode()
def milliseconds(models: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Medians of rounds that run the models in turn, in time that this thread had the processor."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            model(x)
            start = time.thread_time()
            model(x)
            found[name].append(1e3 * (time.thread_time() - start))
    return {name: statistics.median(ms) for name, ms in found.items()}


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * (model(x).argmax(1) == y).double().mean().item()


def trade_off(graph: sm.Graph, table: sm.LatencyTable, values: Any) -> Any:
    """What each millisecond is worth, and why one layer has the size that it has at half of them."""
    problem = sm.Problem(graph)
    problem.maximize(values)
    cost = graph.latency(table)
    frontier = problem.frontier(cost, points=8)
    print(f"\n{frontier}")
    if importlib.util.find_spec("matplotlib") is not None:
        path = Path(tempfile.gettempdir()) / "latency_frontier.png"
        frontier.plot(path)
        print(f"drawn in {path}")
    problem.add(cost <= 0.5 * cost.now)
    print(f"\n{problem.solve().explain('4')}")
    return frontier


def main() -> dict[str, Any]:
    """Train, measure, prune, compare; returns the numbers."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, y, test_x, test_y = digits()
    model = network()
    train(model, x, y)
    example = x[:BATCH]
    graph = sm.capture(model, example)
    start = time.perf_counter()
    table = sm.measure_latency(graph)
    print(f"measured in {time.perf_counter() - start:.0f} s: {table}\n")

    batches = list(zip(x.split(100), y.split(100), strict=True))
    values = sm.values.reconstruction(batches)
    models, told = {"trained": model}, {"trained": graph.latency(table).now}
    budgets: dict[str, dict[str, Any]] = {"half the ms": {"latency": (table, 0.5)}, "half the FLOPs": {"flops": 0.5}}
    for name, budget in budgets.items():
        small = copy.deepcopy(model)
        plan = sm.prune(small, example, values=values, repair=sm.repair.least_squares(batches), **budget)
        models[name], told[name] = small, sm.capture(small, example).latency(table).now
        print(f"{name}: {plan}\n")
    measured = milliseconds(models, example)
    print("network         foretold  measured  of trained  test accuracy")
    for name, net in models.items():
        share = measured[name] / measured["trained"]
        score = accuracy(net, test_x, test_y)
        print(f"{name:<15} {told[name]:5.2f} ms  {measured[name]:5.2f} ms  {share:10.0%}  {score:11.1f} %")
    frontier = trade_off(graph, table, values)
    return {
        "frontier": [(point.cost, point.objective) for point in frontier],
        "foretold": told,
        "measured": measured,
        "accuracy": {k: accuracy(m, test_x, test_y) for k, m in models.items()},
    }


if __name__ == "__main__":
    main()
