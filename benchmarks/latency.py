"""Latency foretold and latency measured, on this processor: ``python benchmarks/latency.py``.

For every model (random weights, one 224 x 224 image, one thread; eager, or under torch.compile with --compiled) the
table of `measure_latency` is held against models that are run:

* Foretold: what the table says of pruned copies that had no part in it, beside what a forward of them takes. All copies
  run in turn, each beside the model itself. A machine that others use too is not always equally fast, so the
  error is also given "at the same speed": the measurements times what the model itself took when the table was made,
  over what it takes now.
  The heap is told to keep what it has: where it gives memory back to the system after each forward and fetches it anew,
  a forward takes up to a third longer, depending on what was allocated before.
* Half the time: a plan within half of the latency, beside plans within budgets on FLOPs, all run in the same rounds.
  Reported is the value that each keeps at equal measured latency; between two plans on FLOPs the value is interpolated.

Needs torchvision, with --compiled a C++ compiler: every copy is compiled, which takes most of the time.

    python benchmarks/latency.py --quick                  resnet18 alone
    python benchmarks/latency.py --models vit_b_16 --json out.json --tables folder
    python benchmarks/latency.py --models resnet18 --compiled
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from budget import build, table

import solvemut as sm
from solvemut.compile import Worth
from solvemut.latency.clock import clock_of
from solvemut.latency.whole import drawn_plans, timed_models
from solvemut.values import unit_values

MODELS = ("resnet18", "mobilenet_v2", "vit_b_16")
QUICK = ("resnet18",)
HELD_OUT, MULTIPLE, ROUNDS, FRACTION = 8, 8, 5, 0.5
LADDER = (0.1, 0.18, 0.26, 0.36, 0.48, 0.62)  # FLOPs of the plans beside, as fractions
MEDIAN, WORST = 0.07, 0.15  # the errors aimed at


def keep_heap() -> None:
    """Ask glibc, where it is there, not to give memory back to the system between two forwards."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter, size in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 26)) if mallopt else ():
        mallopt(parameter, size)  # the thresholds of mmap and of trimming, and what is fetched at a time


def errors(told: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Median and worst relative error."""
    off = np.abs(told / measured - 1)
    return {"median": float(np.median(off)), "worst": float(off.max())}


def milliseconds(graph: sm.Graph, models: Sequence[torch.nn.Module], times: sm.LatencyTable) -> list[float]:
    """What a forward of each takes, compiled if the table is of compiled models."""
    clock = clock_of(torch.device("cpu"))
    seconds = timed_models(graph, models, clock, torch.float32, ROUNDS, compiled=times.compiled)
    return [1e3 * s for s in seconds]


def held_out(graph: sm.Graph, times: sm.LatencyTable, seed: int) -> dict[str, Any]:
    """What the table says of pruned copies, and what they take; the first is the model itself."""
    cost = graph.latency(times)
    drawn = list(drawn_plans(graph, HELD_OUT, MULTIPLE, seed))
    measured = np.array(milliseconds(graph, [m for m, _ in drawn], times))
    told = np.array([cost.told(cost.count(graph.coupling, kept)) for _, kept in drawn])
    speed = times.fit.measured[0] / measured[0]  # the model itself, then and now
    return {
        "told": told[1:].tolist(),
        "measured": measured[1:].tolist(),
        "speed": speed,
        "raw": errors(told[1:], measured[1:]),
        "same speed": errors(told[1:], measured[1:] * speed),
    }


def solved(graph: sm.Graph, values: np.ndarray, budget: Any) -> sm.Plan:
    """The best plan within one budget."""
    problem = sm.Problem(graph)
    problem.maximize(Worth(values))
    problem.round_to(MULTIPLE)
    problem.add(budget)
    return problem.solve(time_limit=60, gap=1e-3, progress=False)


def half(graph: sm.Graph, times: sm.LatencyTable) -> dict[str, Any]:
    """Half of the latency, beside budgets on FLOPs: value kept and milliseconds of each."""
    values = unit_values(sm.values.retention(), graph.model, graph)
    cost = graph.latency(times)
    plans = [solved(graph, values, cost <= FRACTION * cost.now)]
    plans += [solved(graph, values, graph.flops <= share * graph.flops.now) for share in LADDER]
    models = [copy.deepcopy(graph.model), *(p.apply(copy.deepcopy(graph.model)) for p in plans)]
    now, ours, *others = milliseconds(graph, models, times)
    total = float(values.sum())
    kept = [p.objective / total for p in plans]
    order = np.argsort(others)
    at_equal = float(np.interp(ours, np.array(others)[order], np.array(kept[1:])[order]))
    return {
        "now": now,
        "asked": FRACTION,
        "reached": ours / now,
        "foretold": plans[0].costs["latency"].after / plans[0].costs["latency"].before,
        "value": kept[0],
        "value of FLOPs": at_equal,
        "inside": min(others) <= ours <= max(others),
        "ladder": [[share, ms / now, v] for share, ms, v in zip(LADDER, others, kept[1:], strict=True)],
        "gap": plans[0].gap,
    }


def run(name: str, tables: Path | None, seed: int, compiled: bool) -> dict[str, Any]:
    """One model: its table, the copies held out, and half of its latency."""
    model, x = build(name, 1)
    graph, start = sm.capture(model, x), time.perf_counter()
    file = None if tables is None else tables / f"{name}{'_compiled' * compiled}.json"
    if file is not None and file.exists():
        times = sm.LatencyTable.load(file)
    else:
        times = sm.measure_latency(graph, compile=compiled, cache=tables)
        if file is not None:
            times.save(file)
    seconds = time.perf_counter() - start
    return {
        "table_s": seconds,
        "points": sum(e.values.size for e in times.entries.values()),
        "own": {"median": times.error, "worst": times.worst},
        **held_out(graph, times, seed),
        "half": half(graph, times),
    }


HEAD = ("model", "ms", "points", "table s", "own error", "held out", "at same speed", "reached", "value", "FLOPs value")


def cells(name: str, r: Mapping[str, Any]) -> list[str]:
    """A row of the report."""
    h = r["half"]
    both = [f"{e['median']:.1%} / {e['worst']:.1%}" for e in (r["own"], r["raw"], r["same speed"])]
    ladder = f"{h['value of FLOPs']:.2%}" + ("" if h["inside"] else " (nearest)")
    return [
        name,
        f"{h['now']:.1f}",
        str(r["points"]),
        f"{r['table_s']:.0f}",
        *both,
        f"{h['reached']:.1%}",
        f"{h['value']:.2%}",
        ladder,
    ]


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, what its columns are, and which targets were missed."""
    missed = []
    for name, r in results.items():
        e = r["same speed"]
        missed += [f"{name}: median error"] * (e["median"] > MEDIAN) + [f"{name}: worst error"] * (e["worst"] > WORST)
        missed += [f"{name}: value"] * (r["half"]["value"] <= r["half"]["value of FLOPs"])
    parts = [
        table(HEAD, [cells(name, r) for name, r in results.items()]),
        "errors: median / worst; own: of the table on the models that it was fitted to, each held out; held out: on "
        f"{HELD_OUT} pruned copies that it never saw; reached: measured latency of the plan within {FRACTION:.0%}; "
        "value: share that it keeps, beside what budgets on FLOPs keep at equal measured latency",
        "all targets hit" if not missed else "not hit: " + ", ".join(missed),
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run every model, print the report."""
    parser = argparse.ArgumentParser(description="Latency foretold and measured")
    parser.add_argument("--models", nargs="+", default=None, choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    parser.add_argument("--compiled", action="store_true", help="models under torch.compile, and a table of these")
    parser.add_argument("--tables", type=Path, help="a folder for tables: those that are there are not measured again")
    parser.add_argument("--seed", type=int, default=99, help="of the pruned copies held out (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too; what it holds already is kept")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    keep_heap()
    torch.set_num_threads(1)  # so that other processes' share of the machine can be told from the model's
    torch.backends.mha.set_fastpath_enabled(False)  # the nodes of a trace are those of the plain path
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in options.models or (QUICK if options.quick else MODELS):
        found = run(name, options.tables, options.seed, options.compiled)
        label = name + " compiled" * options.compiled
        known[label] = found
        print(" | ".join(cells(label, found)), flush=True)
        if options.json:
            options.json.write_text(json.dumps(known, indent=1))
    print("", report(known), sep="\n")
    return known  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
