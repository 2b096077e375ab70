"""Half the FLOPs of eight torchvision models, beside Torch-Pruning: ``python benchmarks/budget.py``.

For every model (random weights, 224 x 224 images) solvemut and Torch-Pruning get the same request: at most half of the
FLOPs, sizes in multiples of 8, units valued by their L2 magnitude. Reported are the share of the budget used, the
proven gap, the value kept, the largest output difference from the masked network, and the seconds of each step.

* FLOPs of both are counted by torch.utils.flop_counter on the model that comes out, never by the tools themselves.
* The value kept is measured for both with solvemut's value vector, which solvemut maximises and Torch-Pruning does not
  know: the positions of its surviving parameter slices are mapped to units. They are read from a tag on each element,
  carried in `.grad`, which it cuts alongside. Where it keeps a part of a unit (channels of an attention head) that part
  counts in full proportion.
* Torch-Pruning runs as its own ImageNet script does: global magnitude ranking in small steps until the budget is met.
  It also runs in one shot at the smallest ratio that meets the budget. Whichever keeps more value is reported.
* The masked network is the original with every removed slice set to zero. A LayerNorm would see those zeros, so in the
  reference it normalises over the channels that stay; the column "oracle" says where that was needed.

Needs torchvision and torch-pruning; benchmarks/README.md says how to install them.

    python benchmarks/budget.py --quick                      two small models
    python benchmarks/budget.py --models resnet50 vit_b_16
    python benchmarks/budget.py --time-limit 30 --json out.json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import solvemut as sm
from solvemut.values import unit_values

MODELS = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "densenet121",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
)
QUICK = ("resnet18", "mobilenet_v2")
FRACTION, MULTIPLE, SECONDS = 0.5, 8, 60.0
LEAST_USED, LARGEST_GAP, OPTIMAL = 0.995, 0.005, 1e-5
LEAST_MOVES = 1e-2  # an output that ignores the input would prove nothing
LARGEST_DIFFERENCE = {"float32": 1e-4, "float64": 1e-9}  # relative to the largest output
PEER_STEPS, PEER_HALVINGS, PEER_SECONDS = 50, 8, 600.0  # processor seconds of each way
CHILD_SECONDS = 3600.0

SIDES = ("ours", "peer")

Kept = Mapping[str, Mapping[int, Any]]  # parameter -> dim -> positions that stay


# -- models --------------------------------------------------------------------------------------------------------


def torchvision_models() -> Any:
    """torchvision.models. A torchvision built for CUDA wants two schemas that a CPU build of torch does not have."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_models.library = library  # type: ignore[attr-defined]  # it must stay alive
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    return torchvision.models


def build(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """A model in eval mode and its input, the same in every process."""
    torch.manual_seed(0)
    model = torchvision_models().get_model(name, weights=None).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() > 1 and p.std() < 1e-3:  # fresh norms, layer scales and ViT's head hide wrong index maps
                p.add_(torch.randn_like(p) * (0.2 if p.ndim != 2 else 0.02))
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for m in norms:  # statistics of real activations: with the initial ones some outputs ignore the input
            m.train()
            m.momentum = 1.0
        model(torch.randn(4, 3, 128, 128)) if norms else None
        for m in norms:
            m.eval()
            m.momentum = 0.1
    return model, torch.randn(batch, 3, 224, 224)


def count_flops(model: nn.Module, x: torch.Tensor) -> int:
    """What torch.utils.flop_counter counts, on shapes alone; it sees attention only in its unfused form."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fake, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, fake:
        model(x)
    return int(counter.get_total_flops())


# -- the masked network --------------------------------------------------------------------------------------------


def mask(model: nn.Module, kept: Kept) -> bool:
    """Zero every slice that goes, in place. Returns whether a LayerNorm had to be told which channels stay."""
    parameters = dict(model.named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for name, dims in kept.items():
        for dim, positions in dims.items() if name in parameters else ():
            if len(positions) and isinstance(positions[0], list):
                continue  # inputs of a grouped convolution: its outputs and what makes the inputs are masked
            p = parameters[name]
            masks[name] = torch.zeros(p.shape[dim], dtype=torch.bool)
            masks[name][torch.as_tensor(positions, dtype=torch.long)] = True
            p.data.mul_(masks[name].reshape([-1 if d == dim else 1 for d in range(p.ndim)]))
    norms = {k: m for k, m in model.named_modules() if isinstance(m, nn.LayerNorm) and f"{k}.weight" in masks}
    for name, norm in norms.items():
        norm.forward = over_kept(norm, masks[f"{name}.weight"])  # type: ignore[assignment]
    return bool(norms)


def over_kept(norm: nn.LayerNorm, keep: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of a layer norm whose statistics are those of the channels that stay."""
    dim = 1 if type(norm).__name__ == "LayerNorm2d" else -1

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(dim, -1)  # [..., channels]
        y = torch.zeros_like(x)
        y[..., keep] = F.layer_norm(x[..., keep], (int(keep.sum()),), norm.weight[keep], norm.bias[keep], norm.eps)
        return y.movedim(-1, dim)

    return forward


def difference(pruned: nn.Module, original: nn.Module, kept: Kept, x: torch.Tensor) -> tuple[float, float, bool]:
    """Largest output difference from the masked original, how far another input moves the output, and `mask`'s word.

    Both relative to the largest output. Masks `original` in place.
    """
    told = mask(original, kept)
    with torch.no_grad():
        got, want, other = pruned(x), original(x), original(x.flip(-1) + 1)
    scale = want.abs().max()
    return float((got - want).abs().max() / scale), float((other - want).abs().max() / scale), told


# -- the value kept ------------------------------------------------------------------------------------------------


def kept_share(graph: sm.Graph, kept: Kept) -> np.ndarray:
    """How much of each unit stays: the largest share of its positions over the parameter dims that it stands in."""
    coupling = graph.coupling
    share = np.zeros(coupling.n_units)
    for (value, dim), extent in coupling.sources.items():
        p = coupling.trace.params.get(value)
        if p is None or p.kind != "parameter" or extent.per_row:
            continue
        units = coupling.units(extent).reshape(-1)
        before = np.bincount(units, minlength=len(share))
        positions = kept.get(p.name, {}).get(dim)
        after = before if positions is None else np.bincount(units[np.asarray(positions)], minlength=len(share))
        share = np.maximum(share, after / np.maximum(before, 1))
    return share


def value_kept(graph: sm.Graph, values: np.ndarray, kept: Kept) -> float:
    """The share of the value of all units that may go which a selection keeps."""
    free = ~graph.coupling.frozen
    return float((values * kept_share(graph, kept))[free].sum() / values[free].sum())


# -- solvemut ------------------------------------------------------------------------------------------------------


def run_ours(name: str, batch: int, limit: float, gap: float) -> dict[str, Any]:
    """Capture, solve and apply, each timed; then the checks."""
    model, x = build(name, batch)
    original = copy.deepcopy(model)
    before = count_flops(model, x)
    start, cpu = time.perf_counter(), time.process_time()
    graph = sm.capture(model, x)
    captured = time.perf_counter()
    metric = sm.values.magnitude(p=2)
    problem = sm.Problem(graph)
    problem.maximize(metric)
    problem.round_to(MULTIPLE)
    problem.add(graph.flops <= FRACTION * graph.flops.now)
    plan = problem.solve(time_limit=limit, gap=gap, progress=False)
    solved = time.perf_counter()
    plan.apply(model)
    applied, cpu = time.perf_counter(), time.process_time() - cpu
    values = unit_values(metric, original, graph)
    found = {
        "counts_agree": graph.flops.now == before and plan.costs["flops"].after == count_flops(model, x),
        "used": count_flops(model, x) / (FRACTION * before),
        "value": value_kept(graph, values, plan.indices),
        "gap": plan.gap,
        "status": plan.status,
        "solver": plan.solver,
        "capture_s": captured - start,
        "solve_s": solved - captured,
        "apply_s": applied - solved,
        "cpu_s": cpu,
    }
    for dtype in (torch.float32, torch.float64):  # indexing is exact in both, so the pruned model may be converted
        reference = copy.deepcopy(original).to(dtype)
        d, moves, told = difference(model.to(dtype), reference, plan.indices, x.to(dtype))
        found |= {str(dtype).removeprefix("torch."): d, "moves": moves}
        found["oracle"] = "masked, LayerNorm over kept" if told else "masked"
    return found


# -- Torch-Pruning -------------------------------------------------------------------------------------------------


def tag(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Write the flat position of each element into its gradient, as bits; returns the shapes."""
    for p in model.parameters():
        p.grad = torch.arange(p.numel(), dtype=torch.int32).view(torch.float32).reshape(p.shape)
    return {k: tuple(p.shape) for k, p in model.named_parameters()}


def read_tags(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Kept:
    """The positions that survive in each dim of each parameter."""
    kept: dict[str, dict[int, list[int]]] = {}
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape
        flat = p.grad.contiguous().view(torch.int32).numpy()
        index = [np.unique(i) for i in np.unravel_index(flat, shapes[name])]
        assert [len(i) for i in index] == list(p.shape), f"{name}: what survives is no rectangle"
        kept[name] = {d: i.tolist() for d, i in enumerate(index) if len(i) < shapes[name][d]}
    return kept


def make_pruner(model: nn.Module, x: torch.Tensor, ratio: float, steps: int) -> Any:
    """Torch-Pruning's global magnitude pruner with its defaults, the classifier left alone."""
    import torch_pruning as tp

    heads = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return tp.pruner.MetaPruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        iterative_steps=steps,
        ignored_layers=[m for m in model.modules() if getattr(m, "out_features", 0) == 1000],
        round_to=math.lcm(MULTIPLE, *heads),  # its rule for nn.MultiheadAttention: whole channels for every head
    )


def peer_step(pruner: Any, model: nn.Module) -> None:
    """One step, and the attribute that torchvision's ViT reads in its forward, as Torch-Pruning's examples set it."""
    pruner.step()
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.get_submodule("conv_proj").out_channels  # type: ignore[assignment]


def in_steps(model: nn.Module, x: torch.Tensor, budget: float, deadline: float) -> nn.Module | None:
    """Raise the ratio step by step until the budget is met."""
    pruner = make_pruner(model, x, 1.0, PEER_STEPS)
    for _ in range(PEER_STEPS):
        if time.process_time() > deadline:
            return None
        peer_step(pruner, model)
        if count_flops(model, x) <= budget:
            return model
    return None


def in_one_shot(model: nn.Module, x: torch.Tensor, budget: float, deadline: float) -> nn.Module | None:
    """The smallest ratio (to 1/256) that meets the budget in one step."""
    low, high, best = 0.0, 1.0, None
    for _ in range(PEER_HALVINGS):
        if time.process_time() > deadline:
            break
        ratio, trial = (low + high) / 2, copy.deepcopy(model)
        for p, q in zip(trial.parameters(), model.parameters(), strict=True):
            p.grad = q.grad
        peer_step(make_pruner(trial, x, ratio, 1), trial)
        if count_flops(trial, x) <= budget:
            high, best = ratio, trial
        else:
            low = ratio
    return best


def run_peer(name: str, batch: int) -> dict[str, Any]:
    """Both ways of running Torch-Pruning; the one that keeps more value, measured as solvemut's is."""
    original, x = build(name, batch)
    graph = sm.capture(original, x)
    values = unit_values(sm.values.magnitude(p=2), original, graph)
    budget = FRACTION * count_flops(original, x)
    found: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    for way in (in_steps, in_one_shot):
        model, start = copy.deepcopy(original), time.perf_counter()
        shapes = tag(model)
        try:
            pruned = way(model, x, budget, time.process_time() + PEER_SECONDS)
        except Exception as e:  # its failures are a result
            errors[way.__name__] = f"{type(e).__name__}: {e}"[:200]
            continue
        if pruned is None:
            errors[way.__name__] = "did not meet the budget in its time"
            continue
        seconds, kept = time.perf_counter() - start, read_tags(pruned, shapes)
        d, _, _ = difference(pruned, copy.deepcopy(original), kept, x)
        found.append(
            {
                "way": way.__name__,
                "used": count_flops(pruned, x) / budget,
                "float32": d,
                "seconds": seconds,
                "value": value_kept(graph, values, kept),
            }
        )
    return {"errors": errors, "ways": found, **max(found, key=lambda f: f["value"], default={})}


# -- all models ----------------------------------------------------------------------------------------------------


def in_child(side: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side of one model in a process of its own; a crash is a result."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--models",
        name,
        "--batch",
        str(options.batch),
        "--time-limit",
        str(options.time_limit),
        "--gap",
        str(options.gap),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": "timed out"}
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}


def one_side(options: argparse.Namespace) -> None:
    """What a child does: print its result as the last line."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path hides its FLOPs from the counter
    name = options.models[0]
    if options.side == "ours":
        print(json.dumps(run_ours(name, options.batch, options.time_limit, options.gap)))
    else:
        print(json.dumps(run_peer(name, options.batch)))


def targets(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, str]:
    """Which targets a model hits, and why not."""
    if "error" in ours:
        return dict.fromkeys(("in budget", "99.5 % used", "gap", "seconds", "value", "output"), "missed")
    hits = {
        "in budget": ours["used"] <= 1 and ours["counts_agree"],
        "99.5 % used": ours["used"] >= LEAST_USED,
        "gap": ours["gap"] <= LARGEST_GAP,
        "seconds": ours["solve_s"] <= SECONDS * 1.1,
        "value": ours["value"] > peer.get("value", math.inf),
        "output": all(ours[k] <= limit for k, limit in LARGEST_DIFFERENCE.items()) and ours["moves"] > LEAST_MOVES,
    }
    told = {k: "hit" if hit else "missed" for k, hit in hits.items()}
    if told["99.5 % used"] == "missed" and ours["gap"] <= OPTIMAL:
        told["99.5 % used"] = "missed: optimum"  # nothing that fits is worth more
    if "value" not in peer:
        told["value"] = "no rival"
    return told


HEAD = (
    "model",
    "budget used",
    "gap",
    "value",
    "diff f32",
    "diff f64",
    "capture",
    "solve",
    "apply",
    "CPU",
    "TP used",
    "TP value",
    "TP diff",
    "TP s",
    "TP way",
)


def cells(name: str, ours: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    """A row of the table of numbers."""
    if "error" in ours:
        left = [ours["error"][:60], *[""] * 8]
    else:
        star = "*" if "LayerNorm" in ours["oracle"] else ""
        left = [f"{ours[k]:.3%}" for k in ("used", "gap", "value")]
        left += [f"{ours[k]:.0e}{star}" for k in LARGEST_DIFFERENCE]
        left += [f"{ours[k]:.1f} s" for k in ("capture_s", "solve_s", "apply_s", "cpu_s")]
    if "value" not in peer:
        why = peer.get("error") or "; ".join(peer.get("errors", {}).values())
        return [name, *left, "failed", "", "", "", why[:60]]
    right = [f"{peer['used']:.3%}", f"{peer['value']:.3%}", f"{peer['float32']:.0e}", f"{peer['seconds']:.1f}"]
    return [name, *left, *right, peer["way"].replace("_", " ")]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    wide = [max(len(r[k]) for r in (head, *rows)) for k in range(len(head))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(r, wide, strict=True)) for r in (head, *rows)]
    lines.insert(1, " | ".join("-" * w for w in wide))
    return "\n".join(f"| {line} |" for line in lines)


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables and a line about what was not hit."""
    goals = {name: targets(r["ours"], r["peer"]) for name, r in results.items()}
    columns = list(next(iter(goals.values())))
    hits = [[name, *goal.values()] for name, goal in goals.items()]
    missed = [f"{name}: {k}" for name, goal in goals.items() for k in columns if goal[k] != "hit"]
    parts = [
        table(HEAD, [cells(name, r["ours"], r["peer"]) for name, r in results.items()]),
        "value: share of the value of all prunable units that is kept; diff: from the masked network, relative to the "
        "largest output; * LayerNorms of the masked network normalise over kept channels; CPU: processor seconds of "
        "capture, solve and apply; TP: Torch-Pruning",
        table(["target", *columns], hits),
        "optimum: proven optimal to 1e-5, so nothing that fits the budget is worth more",
        "all targets hit" if not missed else "not hit: " + ", ".join(missed),
    ]
    return "\n\n".join(parts)


def versions() -> str:
    """What ran where."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "ortools", "torch-pruning"))
    return f"{packages}; Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    """Run every model, print the tables."""
    parser = argparse.ArgumentParser(description="Half the FLOPs of torchvision models, beside Torch-Pruning")
    parser.add_argument("--models", nargs="+", default=None, choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    parser.add_argument("--time-limit", type=float, default=SECONDS, help="seconds for a solve (default %(default)g)")
    parser.add_argument("--gap", type=float, default=1e-5, help="stop a solve at this gap (default %(default)g)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers to this file too; what it holds already is kept")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="run only one side, read the other")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return one_side(options)
    print(versions(), flush=True)
    known = json.loads(options.json.read_text())["results"] if options.json and options.json.exists() else {}
    names = options.models or (QUICK if options.quick else MODELS)
    for name in names:
        nothing = {side: {"error": "not run"} for side in SIDES}
        known[name] = nothing | known.get(name, {}) | {side: in_child(side, name, options) for side in options.sides}
        print(" | ".join(cells(name, **known[name])), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"versions": versions(), "results": known}, indent=1))
    print("", report({name: known[name] for name in names}), sep="\n")


if __name__ == "__main__":
    main()
