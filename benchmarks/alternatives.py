"""Widths, low rank, or both, on trained networks: ``python benchmarks/alternatives.py``.

The networks of ``accuracy.py`` (ViT and ResNet on Fashion-MNIST, GPT on text; trained first where the cache lacks them)
are brought to the same share of their parameters: by widths alone, by options of low rank for every linear layer and
convolution that can be one, and by both in one program. No training afterwards. A row tells the loss on
examples of the training set, the accuracy on the test set, the value lost, how near to the optimum it is proven to be,
the layers that became of low rank, the seconds of finding the values and the options, and those of the solve.

    python benchmarks/alternatives.py --models vit --values fisher
    python benchmarks/alternatives.py --scale         ResNet-50 (torchvision), random weights: seconds by step
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from accuracy import VALUES
from accuracy_nets import Trained, fashion, loss, measure, text, trained
from budget import build, table
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError

MODELS = {"vit": fashion, "resnet": fashion, "gpt": text}
SHARES = (0.7, 0.5, 0.35)
RANKS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)  # of the smaller side of a weight
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def options(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The layers that save something by low rank, with their options."""
    found: dict[str, dict[str, Any]] = {}
    for name, m in model.named_modules():
        if type(m) not in PLAIN or getattr(m, "groups", 1) != 1:
            continue
        outputs, inputs = m.weight.flatten(1).shape
        ranks = sorted({max(1, round(r * min(outputs, inputs))) for r in RANKS})
        saves = [r for r in ranks if r * (outputs + inputs) < outputs * inputs and r < min(outputs, inputs)]
        if saves:
            found[name] = {"dense": None, **{f"rank {r}": sm.LowRank(r) for r in saves}}
    return found


def rows(name: str, case: Trained, values: str) -> list[list[str]]:
    """Widths, low rank and both at every share."""
    batches = case.data.sample(VALUES)
    metric = sm.values.reconstruction(batches) if values == "outputs" else sm.values.fisher(batches, loss)
    graph, found = sm.capture(case.model, case.data.train_x[:1]), []
    for way in ("widths", "low rank", "both"):
        start, problem = time.process_time(), sm.Problem(graph)
        problem.maximize(metric)
        if way == "low rank":
            problem.keep("*")
        for layer, offered in options(case.model).items() if way != "widths" else ():
            try:
                problem.choose(layer, offered)
            except RequestError as e:
                print(f"{name}: {e}", file=sys.stderr)
        problem.settle()
        seconds, everything = time.process_time() - start, problem.objective_of(np.ones(graph.coupling.n_units))
        for share in SHARES:
            problem.requests = []
            problem.add(graph.params <= share * graph.params.now)
            try:
                plan = problem.solve(time_limit=60, gap=1e-5, progress=False)
            except InfeasibleError:
                found.append([name, f"{share:g}", way, *["cannot be"] * 2, *[""] * 5])
                continue
            other = copy.deepcopy(case.model)
            plan.apply(other)
            told = measure(other, case.data)
            lost = f"{everything - plan.objective:.4g}"
            chosen = f"{len(plan.chosen)} of {len(problem.choices)}"
            solve = f"{plan.seconds:.1f}"
            found.append(
                [
                    name,
                    f"{share:g}",
                    way,
                    f"{told['loss']:.3f}",
                    f"{told['accuracy']:.2f}",
                    lost,
                    f"{plan.gap:.1e}",
                    chosen,
                    f"{seconds:.0f}",
                    solve,
                ]
            )
            print("  ".join(found[-1]), flush=True)
    return found


def scale() -> None:
    """Options for every layer of a ResNet-50, half of its FLOPs and of its parameters, sizes in multiples of 8."""
    model, x = build("resnet50", 1)
    seconds, start = {}, time.perf_counter()

    def done(step: str) -> None:
        nonlocal start
        seconds[step], start = time.perf_counter() - start, time.perf_counter()

    graph = sm.capture(model, x)
    done("capture")
    problem = sm.Problem(graph)
    for layer, offered in options(model).items():
        problem.choose(layer, offered)
    done("options")
    problem.settle()
    done("worth")
    problem.add(graph.flops <= 0.5 * graph.flops.now, graph.params <= 0.5 * graph.params.now)
    problem.round_to(8)
    plan = problem.solve(time_limit=120, gap=1e-3, progress=False)
    done("solve")
    print(", ".join(f"{step} {s:.1f} s" for step, s in seconds.items()))
    print(f"{len(problem.choices)} layers, {len(plan.chosen)} of low rank; {plan.status}, gap {plan.gap:.1e}")


HEAD = ("network", "params", "by", "loss", "accuracy", "value lost", "gap", "low rank", "values s", "solve s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--values", default="fisher", choices=("fisher", "outputs"))
    parser.add_argument("--cache", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--scale", action="store_true", help="how long a large network takes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.scale:
        return scale()
    found = []
    for name in given.models:
        case = trained(MODELS[name](), name, 0, given.cache)
        told = measure(case.model, case.data)
        print(f"{name}: as trained {told}", flush=True)
        found += rows(name, case, given.values)
    print(table(HEAD, found))


if __name__ == "__main__":
    main()
