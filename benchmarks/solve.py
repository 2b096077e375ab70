"""How long the solver takes on the shapes of real networks, and what it proves: ``python benchmarks/solve.py``.

Each case runs in a process of its own, so that its seconds and its memory are its own. A case asks for the gap of its
target within the time of its target: *hit* means proven to that gap within that time. At the end the per-neuron boolean
formulation runs beside the solver on ResNet-18, both on CP-SAT, and the table says how long each took to equal gaps.

    python benchmarks/solve.py --quick                 a few minutes' worth of cases
    python benchmarks/solve.py --only resnet50 chain   cases whose names begin so
    python benchmarks/solve.py --json out.json         the numbers as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import instances

from solvemut.program import Program, Progress

BOTH = {"flops": 0.5, "params": 0.5}
MEMORY_MIB = 2048
NEURON_RATIO = 100  # at least so many times faster at equal gap
NEURON_GAPS = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0001)


@dataclass(frozen=True)
class Case:
    """An instance, the seconds it may take, and the gap it must reach (0: proven)."""

    name: str
    make: Callable[[], Program]
    seconds: float
    gap: float
    quick: bool = False


def cases() -> list[Case]:
    """Every row of the table."""
    net = {name: instances.INSTANCES[name] for name in ("densenet121", "mobilenet_v2", "unet", "vit_b")}
    found = [
        Case("resnet50/8", partial(instances.resnet50, 8), 5, 1e-3, quick=True),
        Case("resnet50/8 fine", partial(instances.resnet50, 8), 60, 2e-5),
        Case("resnet50/1", partial(instances.resnet50, 1), 30, 1e-3),
        Case("resnet50/8 flops+params", partial(instances.resnet50, 8, BOTH), 30, 2e-3, quick=True),
        Case("resnet50/1 plain arrays", partial(instances.resnet50_plain, 1), 30, 1e-3),
        Case("resnet50/1 plain arrays, MFLOPs", partial(instances.resnet50_plain, 1, unit=10**6), 30, 1e-3),
        Case("resnet50/1 flops+params", partial(instances.resnet50, 1, BOTH), 30, 2e-3),
        Case("equal units, depth 50", instances.equal_units, 30, 1e-3),
        Case("equal units, depth 101", partial(instances.equal_units, 101), 30, 1e-3),
        Case("equal units flops+params", partial(instances.equal_units, 50, 1, BOTH), 30, 1e-3),
        Case("chain 48x64", instances.chain, 10, 0.0, quick=True),
        Case("chain 48x64 seed 1", partial(instances.chain, budgets=(0.4, 0.5), seed=1), 10, 0.0),
        Case("chain 48x64 seed 2", partial(instances.chain, budgets=(0.3, 0.3), seed=2), 10, 0.0),
    ]
    found += [Case(f"{name}/8", partial(make, 8), 30, 2e-3, quick=True) for name, make in net.items()]
    found += [Case(f"{name}/1", partial(make, 1), 30, 2e-3) for name, make in net.items()]
    found += [Case(f"{name}/8 flops+params", partial(make, 8, BOTH), 30, 2e-3) for name, make in net.items()]
    found += [
        Case(f"all pairs, {kind}", partial(instances.all_pairs, kind=kind), 30, 2e-3)
        for kind in ("all", "rank one", "nearly", "halves", "some", "sums")
    ]
    found += [Case("all pairs of 48", partial(instances.all_pairs, 1, 48), 30, 2e-3)]
    found += [Case("variants 80x16", instances.variants, 2, 0.0, quick=True)]
    found += [
        Case(f"variants 80x16 {share} seed {seed}", partial(instances.variants, budget=share, seed=seed), 2, 0.0)
        for share, seed in ((0.4, 1), (0.7, 2))
    ]
    found += [
        Case(f"latency {depth} at {share}", partial(instances.latency, depth, share, seed), 10, 0.0, quick=share == 0.5)
        for seed, share in enumerate((0.5, 0.3, 0.4, 0.6, 0.75))
        for depth in (50, 101)
    ]
    return found


# -- one case, in a process of its own -------------------------------------------------------------------------------


def memory_mib() -> float:
    """Peak resident memory of this process (the imports of OR-Tools and numpy included)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if platform.system() == "Darwin" else 1024)


def run_case(case: Case, seed: int) -> dict[str, Any]:
    """Solve one case; the solution is checked in exact arithmetic before its numbers are believed."""
    start = time.perf_counter()
    program = case.make()
    built = time.perf_counter()
    solution = program.solve(time_limit=case.seconds, gap=case.gap, seed=seed)
    seconds = time.perf_counter() - built
    solution.check()
    return {
        "instance": case.name,
        "way": solution.solver,
        "status": solution.status,
        "build_seconds": built - start,
        "seconds": seconds,
        "gap": solution.gap,
        "objective": float(solution.objective),
        "bound": float(solution.bound),
        "memory_mib": memory_mib(),
        "target_seconds": case.seconds,
        "target_gap": case.gap,
        "hit": solution.gap <= case.gap and seconds <= case.seconds and memory_mib() < MEMORY_MIB,
    }


Trace = list[tuple[float, float, float]]  # seconds, incumbent, bound


def run_blocks(limit: float, seed: int) -> dict[str, Any]:
    """ResNet-18, single channels, as widths: when each gap was reached."""
    program, trace = instances.resnet18(1), []

    def watch(progress: Progress) -> None:
        if progress.incumbent is not None and progress.bound is not None:
            trace.append((progress.seconds, float(progress.incumbent), float(progress.bound)))

    solution = program.solve(time_limit=limit, gap=NEURON_GAPS[-1], seed=seed, callback=watch)
    solution.check()
    trace.append((solution.seconds, float(solution.objective), float(solution.bound)))
    return {"trace": trace, "objective": float(solution.objective), "memory_mib": memory_mib()}


def run_neurons(limit: float, seed: int) -> dict[str, Any]:
    """The same program with one boolean per neuron, directly in CP-SAT: sizes are sums, costs their products."""
    from ortools.sat.python import cp_model

    net, scale = instances.basic_net(), 10**6
    model, sizes, worth = cp_model.CpModel(), {}, []
    for name, units in instances.unit_values(net, 0).items():
        keep = [model.new_bool_var("") for _ in units]
        sizes[name] = model.new_int_var(1, len(units), name)
        model.add(sizes[name] == sum(keep))
        worth += [round(float(u) * scale) * x for u, x in zip(units, keep, strict=True)]
    spent = [coefficient * sizes[name] for name, coefficient in net.linear["flops"].items()]
    for (a, b), coefficient in net.pairs["flops"].items():
        product = model.new_int_var(1, net.widths[a] * net.widths[b], "")
        model.add_multiplication_equality(product, [sizes[a], sizes[b]])
        spent.append(coefficient * product)
    model.add(sum(spent) + net.constant["flops"] <= instances.limit_of(net, "flops", 0.5))
    model.maximize(sum(worth))
    solver, trace = cp_model.CpSolver(), []
    best = {"incumbent": 0.0, "bound": float("inf")}
    start = time.perf_counter()

    def note(**news: float) -> None:
        best.update(news)
        trace.append((time.perf_counter() - start, best["incumbent"] / scale, best["bound"] / scale))

    class Watch(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            note(incumbent=self.objective_value, bound=self.best_objective_bound)

    solver.best_bound_callback = lambda bound: note(bound=bound)
    solver.parameters.max_time_in_seconds = limit
    solver.parameters.num_workers = os.cpu_count() or 1
    solver.parameters.random_seed = seed
    solver.parameters.relative_gap_limit = NEURON_GAPS[-1]
    solver.solve(model, Watch())
    note(incumbent=solver.objective_value, bound=solver.best_objective_bound)
    return {"trace": trace, "objective": solver.objective_value / scale, "memory_mib": memory_mib()}


# -- all cases -------------------------------------------------------------------------------------------------------


def in_child(name: str, seed: int, limit: float) -> dict[str, Any]:
    """Run one case in a fresh process and read its JSON; a crash is a row that says so."""
    command = [sys.executable, __file__, "--one", name, "--seed", str(seed), "--neuron-limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"instance": name, "error": (done.stderr.strip().splitlines() or ["no message"])[-1], "hit": False}


HEAD = ("instance", "way", "seconds", "gap", "bound", "MiB", "target", "")
ROW = "| {:<28} | {:<44} | {:>7} | {:>8} | {:>12} | {:>5} | {:<17} | {:<6} |"


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    if "error" in row:
        return ROW.format(row["instance"], row["error"][:44], *[""] * 5, "failed")
    proof = "proven" if row["target_gap"] == 0 else f"{row['target_gap']:.0e}"
    return ROW.format(
        row["instance"],
        row["way"][:44],
        f"{row['seconds']:.2f}",
        f"{row['gap']:.1e}",
        f"{row['bound']:.2f}",
        f"{row['memory_mib']:.0f}",
        f"{proof} in {row['target_seconds']:g} s",
        "hit" if row["hit"] else "missed",
    )


def reached(trace: Trace, gap: float) -> float | None:
    """When a search first knew an incumbent and a bound that close together."""
    return next((t for t, value, bound in trace if value > 0 and bound - value <= gap * value), None)


def compare_with_neurons(limit: float, seed: int) -> list[dict[str, Any]]:
    """Seconds to equal gaps: one boolean per neuron against widths, the same machine and the same engine family."""
    neurons, blocks = in_child("neurons", seed, limit), in_child("blocks", seed, limit)
    if "error" in neurons or "error" in blocks:
        raise SystemExit(f"per-neuron comparison failed: {neurons.get('error') or blocks.get('error')}")
    print(f"\nResNet-18, single channels, 50 % FLOPs; per-neuron booleans {limit:g} s at most\n")
    print("| gap     | per neuron, s | solvemut, s | ratio |\n|---|---|---|---|")
    rows = []
    last = neurons["trace"][-1]
    for gap in sorted({*NEURON_GAPS, (last[2] - last[1]) / last[1]}, reverse=True):
        slow, fast = reached(neurons["trace"], gap), reached(blocks["trace"], gap)
        ratio = None if fast is None else (slow or limit) / fast
        rows.append({"gap": gap, "neurons_seconds": slow, "blocks_seconds": fast, "ratio": ratio})
        told = "-" if ratio is None else f"{'' if slow else '> '}{ratio:.0f}"
        left = f"{slow:.1f}" if slow else f"> {limit:g}"
        print(f"| {gap:<7.2g} | {left:>13} | {fast or float('nan'):>11.2f} | {told:>5} |")
    tightest = min((row for row in rows if row["neurons_seconds"]), key=lambda row: row["gap"], default=None)
    if tightest is not None:
        hit = tightest["ratio"] is not None and tightest["ratio"] >= NEURON_RATIO
        print(f"\ntarget, {NEURON_RATIO} x at the tightest gap that booleans reached: {'hit' if hit else 'missed'}")
    for name, run in (("per neuron", neurons), ("solvemut", blocks)):
        seconds, value, bound = run["trace"][-1]
        print(f"\n{name}: objective {value:.2f}, bound {bound:.2f} after {seconds:.1f} s, {run['memory_mib']:.0f} MiB")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if every target was hit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases whose names begin so")
    parser.add_argument("--quick", action="store_true", help="the quick cases alone, and no per-neuron comparison")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neuron-limit", type=float, default=300.0, help="seconds for the per-neuron formulation")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        special = {"neurons": run_neurons, "blocks": run_blocks}
        if options.one in special:
            print(json.dumps(special[options.one](options.neuron_limit, options.seed)))
        else:
            print(json.dumps(run_case(next(c for c in cases() if c.name == options.one), options.seed)))
        return 0
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, seed {options.seed}\n")
    print(ROW.format(*HEAD) + "\n|" + "---|" * len(HEAD), flush=True)
    rows = []
    for case in cases():
        if (options.quick and not case.quick) or (options.only and not case.name.startswith(tuple(options.only))):
            continue
        rows.append(in_child(case.name, options.seed, options.neuron_limit))
        print(line(rows[-1]), flush=True)
    wanted = not options.quick and (not options.only or any("neurons".startswith(o) for o in options.only))
    neurons = compare_with_neurons(options.neuron_limit, options.seed) if wanted else []
    print(f"\n{sum(row['hit'] for row in rows)} of {len(rows)} targets hit")
    if options.json:
        Path(options.json).write_text(json.dumps({"cases": rows, "neurons": neurons}, indent=1), encoding="utf-8")
    return 0 if all(row["hit"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
