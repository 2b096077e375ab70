"""Seconds and memory from a model to its plan, by phase, as models grow: ``python benchmarks/scale.py``.

Every case runs in a process of its own on one thread. A model (on meta tensors, where it would not fit) is captured,
valued by the default, compiled, solved to a gap of 1e-3 and drawn up; a plan of a model with data is applied, too:

* capture: `sm.capture`, train mode included
* values, compile, solve: what `problem.solve` does first, each on its own
* plan: all of `problem.solve` less these three: drawing up the plan and recounting it on the changed graph
* verify: what applying with the default `verify=` takes beyond applying with none; this and compile are medians of five
* MiB: peak resident memory of the process, torch and OR-Tools included

`--fit` measures a sequence of models of twice the size each, and prints for every phase the power of the number of
parameter dims (log-log fit) by which its seconds grow: 1 is linear.

    python benchmarks/scale.py --only llama-7b
    python benchmarks/scale.py --fit
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from budget import build, table
from solve import memory_mib

import solvemut as sm

PHASES = ("capture", "values", "compile", "solve", "plan", "verify")
GAP, FIT = 1e-3, (4, 8, 16, 32, 64)
OFTEN, LONG = 5, 3.0  # medians of so many, but for what takes longer than these seconds


# -- models ----------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.q, self.o = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.grouped = heads != kv_heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = RMSNorm(dim), Attention(dim, heads, kv_heads), RMSNorm(dim)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """The shape of a Llama: what is written of positions is left out, since it changes no size."""

    def __init__(self, layers: int, dim: int, heads: int, kv_heads: int, hidden: int, vocabulary: int = 32000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, kv_heads, hidden) for _ in range(layers))
        self.norm, self.head = RMSNorm(dim), nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


Built = tuple[nn.Module, Tensor]


def llama(*shape: int) -> Built:
    with torch.device("meta"):
        return Llama(*shape), torch.zeros(1, 16, dtype=torch.long)


def sequential(layers: int) -> Built:
    return nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(64, 64), nn.ReLU()))), torch.ones(2, 64)


# -- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model, a budget of half of one cost, and what it may take: seconds by phase (several: together) and GiB."""

    name: str
    build: Callable[[], Built]
    cost: str = "params"
    seconds: tuple[tuple[tuple[str, ...], float], ...] = ()
    gib: float = math.inf


TO_PLAN = ("capture", "values", "compile", "solve", "plan")
CASES = (
    Case("llama-7b", partial(llama, 32, 4096, 32, 32, 11008), seconds=((TO_PLAN, 15),), gib=3),
    Case("llama-70b", partial(llama, 80, 8192, 64, 8, 28672), seconds=((TO_PLAN, 60),), gib=8),
    Case("resnet50", partial(build, "resnet50", 1), "flops", ((("compile",), 0.05), (("verify",), 0.1))),
    Case("sequential-300", partial(sequential, 300), seconds=((TO_PLAN, 10),)),
)


def fitted(layers: int) -> Case:
    return Case(f"llama of {layers} layers", partial(llama, layers, 512, 8, 8, 1376))


def measured(case: Case) -> dict[str, Any]:
    """Seconds by phase, memory, gap, and how many dims of parameters there are."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, x = case.build()
    seconds: dict[str, float] = {}

    def timed(name: str, f: Callable[[], Any], often: int = 1) -> Any:
        taken: list[float] = []
        while len(taken) < often and sum(taken) < LONG:
            start = time.perf_counter()
            found = f()
            taken.append(time.perf_counter() - start)
        seconds[name] = statistics.median(taken)
        return found

    graph = timed("capture", lambda: sm.capture(model, x))
    problem, cost = sm.Problem(graph), graph.costs[case.cost]
    problem.add(cost <= cost.now // 2)
    worth = timed("values", lambda: problem.worth)
    compiled = timed("compile", lambda: problem._compiled(worth), often=OFTEN)
    timed("solve", lambda: compiled.program.solve(gap=GAP))
    plan = timed("plan", lambda: problem.solve(gap=GAP, progress=False))
    seconds["plan"] = max(0.0, seconds["plan"] - sum(seconds[p] for p in ("values", "compile", "solve")))
    if not any(p.is_meta for p in model.parameters()):
        copies = [copy.deepcopy(model) for _ in range(2 * OFTEN)]
        timed("nothing", lambda: plan.apply(copies.pop(), verify=None), often=OFTEN)
        timed("verify", lambda: plan.apply(copies.pop()), often=OFTEN)
        seconds["verify"] = max(0.0, seconds["verify"] - seconds.pop("nothing"))
    dims = len(graph.coupling.sources)
    return {"case": case.name, "dims": dims, "seconds": seconds, "mib": memory_mib(), "gap": plan.gap}


def in_child(name: str) -> dict[str, Any]:
    """Measure one case in a fresh process; a crash is a row that says so."""
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"case": name, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}


def case_of(name: str) -> Case:
    """A case by name; "N" is the model of N layers that --fit measures."""
    return fitted(int(name)) if name.isdigit() else next(c for c in CASES if c.name == name)


# -- what is told ----------------------------------------------------------------------------------------------------


def verdicts(case: Case, row: dict[str, Any]) -> list[str]:
    """Each target with its number."""
    taken = [(phases, sum(row["seconds"][p] for p in phases), most) for phases, most in case.seconds]
    found = [
        f"{' to '.join(dict.fromkeys((phases[0], phases[-1])))} {took:.2f} s of {most:g} s: {_hit(took <= most)}"
        for phases, took, most in taken
    ]
    if case.gib < math.inf:
        found.append(f"{row['mib'] / 1024:.2f} GiB of {case.gib:g} GiB: {_hit(row['mib'] <= 1024 * case.gib)}")
    return [*found, f"gap {row['gap']:.1e}: {_hit(row['gap'] <= GAP)}"]


def _hit(hit: bool) -> str:
    return "hit" if hit else "MISSED"


def line(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["case"], row["error"][:60], *[""] * (len(PHASES) + 2)]
    seconds = [f"{row['seconds'][p]:.2f}" if p in row["seconds"] else "" for p in PHASES]
    return [row["case"], str(row["dims"]), *seconds, f"{row['mib']:.0f}", f"{row['gap']:.0e}"]


def power(dims: Sequence[int], seconds: Sequence[float]) -> float:
    """By which power of the dims the seconds grow.

    >>> round(power([1, 2, 4], [3, 6, 12]), 3), round(power([1, 2, 4], [1, 4, 16]), 3)
    (1.0, 2.0)
    """
    return float(np.polyfit(np.log(dims), np.log(np.maximum(seconds, 1e-6)), 1)[0])


HEAD = ("case", "dims", *PHASES, "MiB", "gap")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if every target was hit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[c.name for c in CASES], help="names of cases")
    parser.add_argument("--fit", action="store_true", help="models of twice the size each, and how phases grow")
    parser.add_argument("--layers", nargs="+", type=int, default=FIT, help="of the models that --fit measures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measured(case_of(options.one))))
        return 0
    names = [str(n) for n in options.layers] if options.fit else options.only
    rows = [in_child(name) for name in names]
    print(table(HEAD, [line(row) for row in rows]))
    if options.fit:
        dims = [row["dims"] for row in rows]
        for phase in TO_PLAN:
            print(f"* {phase}: power {power(dims, [row['seconds'][phase] for row in rows]):.2f}")
        return 0
    told = [[name, *verdicts(case_of(name), row)] for name, row in zip(names, rows, strict=True) if "error" not in row]
    print("\n".join(f"* {'; '.join(found)}" for found in told))
    return int(len(told) < len(rows) or any("MISSED" in v for found in told for v in found))


if __name__ == "__main__":
    sys.exit(main())
