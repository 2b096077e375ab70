"""What pruning costs in accuracy, row by row: ``python benchmarks/accuracy.py``.

Small networks are trained once, kept in files, and pruned to several budgets. A row is one way to choose what stays
(values and a selection) on one network at one budget: test accuracy, and loss on 2,048 training examples, as cut, after
either repair, and with `--tune` after one short fine-tune of each repaired network, which is the same for all rows.

* optimal: the most value that fits, by integer programming; `rounds`: in three rounds, repaired after each; `refine`:
  with the eight best-looking plans tried and the one of least loss taken
* uniform: every layer to the same ratio; global: every unit above one threshold
* torch-pruning: Torch-Pruning 1.6.1 run as its scripts do, global ranking in small steps until the budget is met. Its
  models get the same repairs: what it kept is read from tags carried in `.grad`, as budget.py does.

Rows are appended to a file as soon as they are done, and rows that are there are skipped: a run that was stopped goes
on, one with `--tune` adds what is missing. Seconds are processor seconds on one thread.

    python benchmarks/accuracy.py --quick                    digits, a minute or two
    python benchmarks/accuracy.py --models resnet --seeds 3 --tune --deadline 3000
    python benchmarks/accuracy.py --only '*/0.3/optimal/*' --retry
    python benchmarks/accuracy.py --report                   tables, targets and a figure from the file, nothing is run
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import inspect
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy_nets import DATA, NETWORKS, REPAIR, VALUES, Trained, loss, measure, trained, tune
from budget import count_flops, read_tags, table, tag

import solvemut as sm
from solvemut.edits import Selection
from solvemut.plan import PlanRecord

CACHE = Path("out/accuracy")
BUDGETS, GAP, TIME_LIMIT = ("0.5", "0.3", "0.15", "0.5+0.5"), 1e-4, 20.0
STEPS, SAMPLES = 100, 512  # of Torch-Pruning: steps to nothing, and examples for the gradients of each
STAGES = {
    "once": "as cut",
    "bn": "batch norm",
    "ls": "least squares",
    "bn+tune": "batch norm, tuned",
    "ls+tune": "least squares, tuned",
}
KINDS = (
    *(("optimal", v) for v in ("retention", "retention-all", "fisher", "outputs", "reconstruction", "measured")),
    *(("optimal", v) for v in ("taylor", "magnitude")),
    *((s, v) for s in ("rounds", "refine") for v in ("outputs", "reconstruction")),
    *(("uniform", v) for v in ("magnitude", "fisher", "outputs", "reconstruction", "random")),
    *(("global", v) for v in ("magnitude", "fisher", "outputs", "reconstruction")),
    *(("torch-pruning", v) for v in ("magnitude", "taylor", "hessian")),
)
QUICK = (
    *(("optimal", v) for v in ("retention", "outputs", "reconstruction", "magnitude")),
    *((s, "magnitude") for s in ("uniform", "global", "torch-pruning")),
    ("torch-pruning", "taylor"),
)
OPTIMAL = ("optimal", "rounds", "refine")
LARGEST_LOSS = {"0.5": 0.8, "0.3": 1.5, "0.15": 3.5}  # points of accuracy, of the ResNet on Fashion-MNIST

Row = dict[str, Any]


class Missing(Exception):
    """What this version of solvemut does not have."""


@dataclass(frozen=True)
class Key:
    """What a row is about; rows with the same key are the same row."""

    data: str
    model: str
    seed: int
    budget: str
    selection: str
    values: str

    def __str__(self) -> str:
        return "/".join(map(str, vars(self).values()))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Key:
        return cls(**{k: row[k] for k in cls.__dataclass_fields__})


def fractions(budget: str) -> dict[str, float]:
    """A budget as fractions: "0.5" of the FLOPs, "0.5+0.5" of the FLOPs and of the parameters."""
    return dict(zip(("flops", "params"), map(float, budget.split("+")), strict=False))


# -- one network ---------------------------------------------------------------------------------------------------


def the(path: str) -> Any:
    """sm.<path>, where this version has it."""
    found: Any = sm
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise Missing(f"sm.{path} is not in this version") from None
    return found


class Clock:
    """Processor seconds since the clock was made."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def __call__(self) -> float:
        return round(time.process_time() - self.start, 3)


@dataclass
class Case:
    """A trained network with what is worked out once and used by many rows: metrics, Torch-Pruning's ways."""

    name: str
    trained: Trained
    budgets: Sequence[str]
    metrics: dict[str, tuple[Any, float]] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model, self.data = self.trained.model, self.trained.data
        self.x = self.data.train_x[:1]
        self.batches, self.repair_batches = self.data.sample(VALUES), self.data.sample(REPAIR)
        self.graph = sm.capture(self.model, self.x)
        self.size = size(self.model, self.x)

    def metric(self, values: str) -> tuple[Any, float]:
        """A metric and the seconds of its first evaluation; later ones are the metric's own business."""
        if values not in self.metrics:
            metric, clock = self.made(values), Clock()
            sm.values.unit_values(metric, self.model, self.graph)
            self.metrics[values] = metric, clock()
        return self.metrics[values]

    def made(self, values: str) -> Any:
        if values == "outputs":
            return the("values.reconstruction")(self.batches)
        if values == "retention-all":
            return the("values.retention")(tensors="all")
        make = the(f"values.{values}")
        if values == "magnitude":
            return make(p=2, normalize="mean")
        if values == "random":
            return make(self.trained.seed)
        if values == "retention":
            return make()
        if values == "measured":
            return make(self.batches, loss, points=8, repair=the("repair.batch_norm")(self.repair_batches))
        return make(self.batches, loss)

    def peer(self, importance: str) -> Peer:
        if importance not in self.peers:
            self.peers[importance] = Peer(self, importance)
        return self.peers[importance]


def size(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """FLOPs as torch counts them, and parameters."""
    return {"flops": count_flops(model, x), "params": sum(p.numel() for p in model.parameters())}


# -- Torch-Pruning -------------------------------------------------------------------------------------------------


class Peer:
    """One run of Torch-Pruning on a copy of a network, in small steps, and the model where it first meets a budget."""

    def __init__(self, case: Case, importance: str) -> None:
        self.case, self.importance = case, importance
        self.model, self.seconds, self.met = copy.deepcopy(case.model), 0.0, dict[str, Any]()
        self.shapes = tag(self.model)
        self.tags = {k: p.grad for k, p in self.model.named_parameters()}
        self.pruner = make_pruner(self.model, case.x, importance)

    def at(self, budget: str) -> tuple[nn.Module, Any, float]:
        """The model where it first fits the budget, a stand-in for its plan, the seconds until then."""
        while budget not in self.met:
            if self.pruner.current_step >= STEPS:
                raise RuntimeError("did not meet the budget")
            clock = Clock()
            self.step()
            self.seconds += clock()
            now = size(self.model, self.case.x)
            for b in self.case.budgets:
                if b not in self.met and all(now[k] <= self.case.size[k] * f for k, f in fractions(b).items()):
                    self.met[b] = (*self.taken(), self.seconds)
        return self.met[budget]

    def step(self) -> None:
        """Importances are worked out before the first group is cut; from then on `.grad` carries the tags."""
        prepare(self.model, self.importance, self.examples())
        cut = False
        for group in self.pruner.step(interactive=True):
            if not cut:
                self.carry()
                cut = True
            group.prune()
        if cut:
            self.tags = {k: p.grad for k, p in self.model.named_parameters()}

    def examples(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of the batches that values see as many as count for a step, others at the next one."""
        batches, n = self.case.batches, max(1, SAMPLES // len(self.case.batches[0][0]))
        start = self.pruner.current_step * n
        return [batches[(start + k) % len(batches)] for k in range(min(n, len(batches)))]

    def carry(self) -> None:
        for name, p in self.model.named_parameters():
            p.grad = self.tags[name]

    def taken(self) -> tuple[nn.Module, Any]:
        """A copy of the model as it is, and which positions it kept of each parameter and buffer."""
        self.carry()
        kept = with_buffers(self.model, read_tags(self.model, self.shapes))
        model = copy.deepcopy(self.model)
        for p in model.parameters():
            p.grad = None
        return model.eval(), stand_in(self.case.model, model, kept)


def make_pruner(model: nn.Module, x: torch.Tensor, importance: str) -> Any:
    """Torch-Pruning's global pruner with its defaults, the classifier left alone; heads stay, their dims may go."""
    import torch_pruning as tp

    kinds = {"magnitude": "GroupMagnitudeImportance", "taylor": "GroupTaylorImportance"}
    scores = getattr(tp.importance, kinds.get(importance, "GroupHessianImportance"))
    return tp.pruner.MetaPruner(
        model,
        x,
        importance=scores(),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[model.head],
        num_heads={m.qkv: m.heads for m in model.modules() if hasattr(m, "qkv")},
        in_channel_groups={},  # its defaults are dicts shared by all pruners
        out_channel_groups={},
    )


def prepare(model: nn.Module, importance: str, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """What its importances read from `.grad`: the gradient, or the mean of squared gradients of single examples.

    Its own `accumulate_grad` (1.6.1) looks parameters up by name and stores them by tensor, so that only the last
    example counts; here all count.
    """
    for p in model.parameters():
        p.grad = None
    if importance == "taylor":
        n = sum(len(x) for x, _ in batches)
        for x, y in batches:
            (loss(model(x), y) * (len(x) / n)).backward()
    elif importance == "hessian":
        squares = [torch.zeros_like(p) for p in model.parameters()]
        singles = [one for x, y in batches for one in zip(x.split(1), y.split(1), strict=True)]
        singles = singles[: max(1, SAMPLES // 4)]
        for x, y in singles:
            found = torch.autograd.grad(loss(model(x), y), list(model.parameters()), allow_unused=True)
            for total, g in zip(squares, found, strict=True):
                total += 0 if g is None else g.square() / len(singles)
        for p, total in zip(model.parameters(), squares, strict=True):
            p.grad = total


def with_buffers(model: nn.Module, kept: Mapping[str, Mapping[int, Any]]) -> dict[str, Mapping[int, Any]]:
    """The same positions for the statistics of batch norms as for their weights."""
    found = {k: dims for k, dims in kept.items() if dims}
    for name, m in model.named_modules():
        if isinstance(m, nn.BatchNorm2d) and f"{name}.weight" in found:
            found |= {f"{name}.{b}": found[f"{name}.weight"] for b in ("running_mean", "running_var")}
    return found


def stand_in(original: nn.Module, model: nn.Module, kept: Mapping[str, Mapping[int, Any]]) -> PlanRecord:
    """A plan that says of a model what was kept, as far as repairs read it."""
    old, new = original.state_dict(), model.state_dict()
    return PlanRecord(
        status="feasible",
        objective=0.0,
        bound=math.inf,
        gap=math.inf,
        seconds=0.0,
        solver="Torch-Pruning",
        sizes={},
        selection=Selection(kept),
        shapes={k: (tuple(old[k].shape), tuple(new[k].shape)) for k in kept},
        costs={},
    )


# -- one row -------------------------------------------------------------------------------------------------------


@dataclass
class Chosen:
    """A pruned network, its plan or a stand-in, and what it took."""

    model: nn.Module
    plan: Any
    seconds: dict[str, float]


def choose(case: Case, key: Key) -> Chosen:
    """What a row says: values, selection, budget."""
    if key.selection == "torch-pruning":
        model, plan, seconds = case.peer(key.values).at(key.budget)
        return Chosen(model, plan, {"values": 0.0, "solve": seconds})
    metric, seconds = case.metric(key.values)
    model, clock = copy.deepcopy(case.model), Clock()
    if key.selection in ("rounds", "refine"):
        option = {"rounds": 3} if key.selection == "rounds" else {"refine": 8}
        if not {"repair", *option} <= set(inspect.signature(sm.Mutator.prune).parameters):
            raise Missing(f"sm.prune has no {key.selection} in this version")
        option["repair"] = the("repair.least_squares")(case.repair_batches, loss if key.selection == "refine" else None)
        plan = sm.prune(model, case.x, **fractions(key.budget), values=metric, gap=GAP, time_limit=TIME_LIMIT, **option)
    else:
        select = the(f"select.{'global_threshold' if key.selection == 'global' else key.selection}")
        limits = {"gap": GAP, "time_limit": TIME_LIMIT} if key.selection == "optimal" else {}
        plan = select(case.graph, metric, **fractions(key.budget), **limits)
        plan.apply(model)
    return Chosen(model, plan, {"values": seconds, "solve": clock()})


def run_row(case: Case, key: Key, tuned: bool) -> Row:
    """All stages of a row; one that fails says why, one that this version cannot do is left out."""
    chosen = choose(case, key)
    now = size(chosen.model, case.x)
    row: Row = vars(key) | {"stages": {}, "seconds": chosen.seconds, **{k: now[k] / case.size[k] for k in now}}
    row |= {k: getattr(chosen.plan, k) for k in ("gap", "status")} if key.selection in OPTIMAL else {}
    row["dense"] = {k: getattr(case.trained, k) for k in ("accuracy", "loss", "epoch_s")}
    row["stages"]["once"] = measure(chosen.model, case.data)
    for stage, name in (("bn", "repair.batch_norm"), ("ls", "repair.least_squares")):
        try:
            model, repair, clock = copy.deepcopy(chosen.model), the(name)(case.repair_batches), Clock()
            repair(model, case.model, chosen.plan)
            row["seconds"][stage] = clock()
            row["stages"][stage] = measure(model, case.data)
            if tuned:
                row["seconds"]["tune"] = round(tune(model, case.data, key.seed), 3)
                row["stages"][f"{stage}+tune"] = measure(model, case.data)
        except Missing as e:
            print(f"  {e}", flush=True)
        except Exception as e:  # a failure is a result
            told = {"error": f"{type(e).__name__}: {e}"[:300]}
            row["stages"] |= {s: told for s in (stage, f"{stage}+tune")[: 1 + tuned] if s not in row["stages"]}
    return row


# -- the file of rows ----------------------------------------------------------------------------------------------


def read(path: Path) -> dict[Key, Row]:
    """The rows of a file; of several with one key the last, of a line cut short none."""
    rows: dict[Key, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[Key.of(row)] = row
    return rows


def done(row: Row | None, tuned: bool, retry: bool = False) -> bool:
    """Whether a row has all that is asked for; with `retry` failures do not count."""
    if row is None:
        return False
    failed = "error" in row or any("error" in s for s in row["stages"].values())
    if failed:
        return not retry
    return {s for s in STAGES if tuned or "tune" not in s} <= set(row["stages"])


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a") as f:
        f.write("\n" * bool(cut_short) + json.dumps(row) + "\n")


def keys(options: argparse.Namespace) -> Iterator[Key]:
    """The rows that are asked for, network by network."""
    for model in options.models:
        data = "text" if model == "gpt" else options.data
        for seed in range(options.seeds):
            for selection, values in QUICK if options.quick else KINDS:
                for budget in options.budgets:
                    key = Key(data, model, seed, budget, selection, values)
                    if fnmatch.fnmatch(str(key), options.only):
                        yield key


def run(options: argparse.Namespace, row_of: Callable[[Case, Key, bool], Row] = run_row) -> None:
    """Every row that is not in the file yet, until the deadline."""
    start, known, data, case = time.perf_counter(), read(options.out), {}, None
    for key in keys(options):
        old = known.get(key)
        if not options.again and done(old, options.tune, options.retry):
            continue
        if time.perf_counter() - start > options.deadline:
            print("the deadline is over; run again to go on")
            return
        name = f"{key.data}/{key.model}/{key.seed}"
        if case is None or case.name != name:
            data.setdefault(key.data, DATA[key.data]())
            case = Case(name, trained(data[key.data], key.model, key.seed, options.cache), options.budgets)
        tuned = options.tune or any("tune" in s for s in (old or {}).get("stages", ()))
        try:
            row = row_of(case, key, tuned)
        except Missing as e:
            print(f"{key}: {e}", flush=True)
            continue
        except Exception as e:  # a failure is a result
            row = vars(key) | {"error": f"{type(e).__name__}: {e}"[:300], "stages": {}}
        append(options.out, row)
        print(f"{key}: {row.get('error') or ', '.join(told(row))}", flush=True)


def told(row: Row) -> Iterator[str]:
    for stage, found in row["stages"].items():
        yield f"{stage} {found['accuracy']:.2f} %" if "error" not in found else f"{stage} {found['error'][:80]}"


# -- the report ----------------------------------------------------------------------------------------------------


class Table:
    """Rows of one network, in means over seeds."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[tuple[str, str, str], dict[int, Row]] = {}
        for row in rows:
            self.rows.setdefault((row["budget"], row["selection"], row["values"]), {})[row["seed"]] = row

    def numbers(self, at: tuple[str, str, str], stage: str, what: str = "accuracy") -> dict[int, float]:
        """By seed; seeds where the stage is missing or failed are left out."""
        found = {s: r["stages"].get(stage, {}) for s, r in self.rows.get(at, {}).items()}
        return {s: f[what] for s, f in found.items() if what in f}

    def lead(self, a: tuple[str, str, str], b: tuple[str, str, str], stage: str) -> float:
        """By how many points a is ahead of b, in the mean over the seeds that both have."""
        first, second = self.numbers(a, stage), self.numbers(b, stage)
        both = sorted(first.keys() & second.keys())
        return float(np.mean([first[s] - second[s] for s in both])) if both else math.nan

    def dense(self, what: str = "accuracy") -> dict[int, float]:
        return {s: r["dense"][what] for rows in self.rows.values() for s, r in rows.items() if "dense" in r}

    def lost(self, at: tuple[str, str, str], stage: str) -> float:
        """Points of accuracy below the network as trained."""
        dense, now = self.dense(), self.numbers(at, stage)
        return float(np.mean([dense[s] - now[s] for s in now])) if now else math.nan

    def kinds(self, budget: str, selections: Sequence[str]) -> list[tuple[str, str, str]]:
        known = [(budget, *k) for k in KINDS if k[0] in selections]
        return [k for k in known if k in self.rows]

    def best(self, budget: str, stage: str) -> tuple[str, str, str] | None:
        """The optimal row of the highest mean accuracy at a stage."""
        fine = [k for k in self.kinds(budget, OPTIMAL) if self.numbers(k, stage)]
        return min(fine, key=lambda k: self.lost(k, stage), default=None)


def spread(numbers: Iterable[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    found = list(numbers)
    if not found:
        return ""
    std = f" ± {np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{np.mean(found):.{digits}f}{std}"


def by_network(rows: Mapping[Key, Row]) -> dict[tuple[str, str], Table]:
    names = dict.fromkeys((k.data, k.model) for k in rows)
    return {n: Table(r for k, r in rows.items() if (k.data, k.model) == n) for n in names}


def accuracies(found: Table, budget: str) -> str:
    """Accuracy of every row at a budget."""
    lines = []
    for k in found.kinds(budget, [s for s, _ in KINDS]):
        rows = [r for r in found.rows[k].values() if "error" not in r]
        sizes = [f"{100 * np.mean([r[what] for r in rows]):.1f}" if rows else "" for what in ("flops", "params")]
        cells = [spread(found.numbers(k, stage).values()) for stage in STAGES]
        if not rows:
            cells[0] = next(iter(found.rows[k].values()))["error"][:60]
        lines.append([*k[1:], str(len(rows)), *sizes, *cells])
    return table(("selection", "values", "seeds", "FLOPs %", "params %", *STAGES.values()), lines)


def losses(found: Table, budget: str) -> str:
    """Loss on training examples, and the seconds of each step."""
    steps, lines = ("values", "solve", "bn", "ls", "tune"), []
    for k in found.kinds(budget, [s for s, _ in KINDS]):
        rows = [r for r in found.rows[k].values() if "error" not in r]
        seconds = [[r["seconds"][step] for r in rows if step in r["seconds"]] for step in steps]
        cells = [spread(found.numbers(k, stage, "loss").values(), 3) for stage in STAGES]
        lines.append([*k[1:], *cells, *(f"{np.mean(s):.1f}" if s else "" for s in seconds)])
    return table(("selection", "values", *(f"loss {s}" for s in STAGES), *(f"{s} s" for s in steps)), lines)


def verdict(name: str, hit: bool | None, why: str) -> str:
    return f"* {name}: {'no rows' if hit is None else 'HIT' if hit else 'MISSED'}{': ' * bool(why)}{why}"


def against(found: Table, mine: tuple[str, str, str] | None, rivals: Sequence[Any], stage: str, name: str) -> str:
    """Whether a row is ahead of every rival at a stage; the closest ones are named."""
    if mine is None or not found.numbers(mine, stage):
        return verdict(name, None, "")
    leads = {k: found.lead(mine, k, stage) for k in rivals if k != mine}
    leads = {k: v for k, v in sorted(leads.items(), key=lambda i: i[1]) if not math.isnan(v)}
    who = ", ".join(f"{v:+.2f} on {k[1]} {k[2]}" for k, v in list(leads.items())[:4])
    here = f"{mine[1]} {mine[2]} {spread(found.numbers(mine, stage).values())}"
    return verdict(name, all(v > 0 for v in leads.values()) if leads else None, f"{here}; {who}")


def targets(found: Table, limits: Mapping[str, float]) -> list[str]:
    """What was aimed for, with the numbers."""
    lines = []
    plain = (("uniform", "magnitude"), ("global", "magnitude"), ("uniform", "random"), ("torch-pruning", "magnitude"))
    for b in ("0.5", "0.3"):
        rivals = [(b, *k) for k in plain]
        lines.append(against(found, (b, "optimal", "retention"), rivals, "bn", f"(a) without data, {b}, batch norm"))
    for b in dict.fromkeys(k[0] for k in found.rows):
        best, rivals = found.best(b, "ls"), found.kinds(b, ("uniform", "global", "torch-pruning"))
        if best and b in limits:
            lost = found.lost(best, "ls")
            why = f"{best[1]} {best[2]} loses {lost:.2f} points"
            lines.append(verdict(f"(b) at most {limits[b]} points lost, {b}, least squares", lost <= limits[b], why))
        lines.append(against(found, best, rivals, "ls", f"(b) ahead, {b}, least squares"))
        lines.append(against(found, best, rivals, "ls+tune", f"(c) ahead, {b}, least squares and fine-tune"))
    return [*lines, *quickness(found)]


def quickness(found: Table) -> Iterator[str]:
    """Seconds of values and repair against those of an epoch of training."""
    took: dict[str, list[float]] = {}
    for k, rows in found.rows.items():
        good = [r["seconds"] for r in rows.values() if k[1] == "optimal" and "ls" in r.get("seconds", ())]
        took.setdefault(k[2], []).extend(s["values"] + s["ls"] for s in good)
    epoch = float(np.mean(list(found.dense("epoch_s").values()) or [math.nan]))
    for values, seconds in took.items():
        if seconds:
            why = f"{np.mean(seconds):.1f} s, an epoch {epoch:.1f} s"
            yield verdict(f"(d) values and repair within an epoch, {values}", bool(np.mean(seconds) < epoch), why)


def report(rows: Mapping[Key, Row]) -> str:
    """Tables and targets of every network."""
    parts = []
    for (data, model), found in by_network(rows).items():
        dense, loss_, epoch = (spread(found.dense(w).values()) for w in ("accuracy", "loss", "epoch_s"))
        parts.append(f"## {model} on {data}\n\nas trained: {dense} %, loss {loss_}, an epoch {epoch} s")
        for budget in dict.fromkeys(k[0] for k in found.rows):
            parts += [f"### budget {budget}", accuracies(found, budget), losses(found, budget)]
        limits = LARGEST_LOSS if (data, model) == ("fashion", "resnet") else {}
        parts += ["### targets", "\n".join(targets(found, limits))]
    return "\n\n".join(parts)


def figure(rows: Mapping[Key, Row], path: Path) -> None:
    """Accuracy over the FLOPs that stay: a row of panels per network, a panel per stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    nets, styles = by_network(rows), {"uniform": ":", "global": "--", "torch-pruning": "-."}
    fig, axes = plt.subplots(len(nets), len(STAGES), figsize=(4.2 * len(STAGES), 3.6 * len(nets)), squeeze=False)
    for line, ((data, model), found) in zip(axes, nets.items(), strict=True):
        for ax, (stage, name) in zip(line, STAGES.items(), strict=True):
            for n, kind in enumerate(KINDS):
                at = [(float(k[0]), found.numbers(k, stage)) for k in found.rows if k[1:] == kind and "+" not in k[0]]
                at = sorted((b, float(np.mean(list(v.values())))) for b, v in at if v)
                if at:
                    style, color = styles.get(kind[0], "-"), plt.get_cmap("tab20")(n)
                    ax.plot(*zip(*at, strict=True), style, color=color, marker="o", ms=3, label=" ".join(kind))
            ax.axhline(np.mean(list(found.dense().values()) or [math.nan]), color="gray", lw=0.8)
            ax.set(title=f"{model}, {data}: {name}", xlabel="FLOPs", ylabel="test accuracy, %")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, fontsize=8)
    fig.tight_layout(rect=(0, 0.25 / len(nets), 1, 1))
    fig.savefig(path, dpi=110)
    plt.close(fig)


# -- all of it -----------------------------------------------------------------------------------------------------


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with those that --quick sets."""
    parser = argparse.ArgumentParser(description="Accuracy of pruned networks, by values, selection and repair")
    parser.add_argument("--data", choices=("digits", "fashion"), default="fashion", help="of the image networks")
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=["resnet"], metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="FLOPs, or FLOPs+params, such as 0.5+0.5")
    parser.add_argument("--quick", action="store_true", help="digits, one tiny network, one budget, few rows")
    parser.add_argument("--tune", action="store_true", help="the short fine-tune after each repair, too")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="data/model/seed/budget/selection/values")
    parser.add_argument("--retry", action="store_true", help="run rows again that failed")
    parser.add_argument("--again", action="store_true", help="run rows again whatever is there; the last one counts")
    parser.add_argument("--deadline", type=float, default=math.inf, metavar="SECONDS", help="start no row after this")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained networks (default %(default)s)")
    parser.add_argument("--out", type=Path, help="rows, as JSON lines (default: results.jsonl in the cache)")
    parser.add_argument("--report", action="store_true", help="run nothing; tables, targets, and a figure beside --out")
    options = parser.parse_args(arguments)
    if options.quick:
        options.data, options.models, options.seeds, options.budgets = "digits", ["resnet"], 1, ["0.5"]
    options.out = options.out or options.cache / ("quick.jsonl" if options.quick else "results.jsonl")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not there yet, or report."""
    options = parsed(arguments)
    if not options.report:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        run(options)
    rows = read(options.out)
    if options.report or options.quick:
        print(report(rows))
        figure(rows, options.out.with_suffix(".png"))
        print(f"\nfigure: {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
