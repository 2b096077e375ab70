"""What it costs to hold a changed model against its plan: ``python benchmarks/verify.py``.

For every torchvision model (random weights, one 224 x 224 image, half the FLOPs) one plan is applied to copies of the
model with each way of verification, in turn; given are medians over the rounds. "from a file" is verify="program" for a
plan that was saved and read: it must be captured again, where a plan in memory knows the calls to expect. "capture" is
the whole of `capture`, "eval only" the same with modes="eval".

    python benchmarks/verify.py --models resnet18 --rounds 3
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from budget import MODELS, build, table, versions

import solvemut as sm

WAYS: dict[str, str | None] = {"nothing": None, "shapes": "shapes", "program": "program", "from a file": "program"}


def seconds(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(name: str, rounds: int) -> list[float]:
    """Medians: capture, capture in eval mode only, then apply in each way."""
    model, x = build(name, 1)
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.maximize(sm.values.constant())
    problem.add(graph.flops <= 0.5 * graph.flops.now)
    plan = problem.solve(gap=0.05)
    read = sm.Plan.from_json(plan.to_json())
    taken: list[list[float]] = [[] for _ in range(2 + len(WAYS))]
    for _ in range(rounds):
        taken[0].append(seconds(lambda: sm.capture(model, x)))
        taken[1].append(seconds(lambda: sm.capture(model, x, modes="eval")))
        for k, (way, how) in enumerate(WAYS.items()):
            other, one = copy.deepcopy(model), read if way == "from a file" else plan
            taken[2 + k].append(seconds(lambda one=one, other=other, how=how: one.apply(other, verify=how)))
    return [statistics.median(t) for t in taken]


def rows(names: Sequence[str], rounds: int) -> list[list[str]]:
    found = []
    for name in names:
        took = measure(name, rounds)
        found.append([name, *(f"{t:.2f} s" for t in took), f"{took[4] / took[3]:.2f}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    head = ("model", "capture", "eval only", *(f"apply, {way}" for way in WAYS), "program / shapes")
    print(table(head, rows(options.models, options.rounds)))
    print(versions())


if __name__ == "__main__":
    main()
