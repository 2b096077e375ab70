"""Which real models can be pruned, and rightly so: ``python benchmarks/prunability.py``.

A row per model of torchvision, timm and Hugging Face (random weights; Hugging Face from small configs). Each is asked
for half of its FLOPs with solvemut's defaults, and held against three criteria: the forward runs, the FLOPs counted by
torch.utils.flop_counter fell to the budget, and the outputs equal those of the masked network. Torch-Pruning runs
beside it with its defaults (global magnitude, half of the channels), for 60 s of the processor, under the same
criteria; what it kept is read from tags in `.grad`.

* The masked network is the original with zeros for every slice that goes. A norm would see those zeros, so wherever a
  module with one vector of weights shrank, the pruned module itself runs on the channels that stay.
* Every model runs in a process of its own, with limits on time and memory. Rows are appended to the CSV file as they
  are done, and those that are there are skipped: a run that was stopped goes on.

    python benchmarks/prunability.py --zoo hf
    python benchmarks/prunability.py --only 'tv/resnet*' --limit 300
    python benchmarks/prunability.py --report                    tables from the file, nothing is run
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import fnmatch
import importlib
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from budget import read_tags, table, tag, torchvision_models
from prunability_models import ZOO, Inputs, build

import solvemut as sm

FRACTION, PEER_SECONDS = 0.5, 60
LEAST_MOVES = 1e-3  # an output that ignores the input would prove nothing
LARGEST_DIFFERENCE = {"float64": 1e-6, "float32": 1e-4}  # of outputs, relative; norms of Hugging Face are in float32
FORK = multiprocessing.get_context("fork")
ROWS = Path(__file__).with_name("prunability.csv")
SIDES = ("solvemut", "torch-pruning")
COLUMNS = (
    *("zoo", "model", "side", "ok", "stage", "failure", "flops", "params", "share", "frozen", "frozen_by"),
    *("difference", "dtype", "moves", "status", "gap", "capture_s", "solve_s", "apply_s"),
)

Row = dict[str, Any]
Kept = Mapping[str, Mapping[int, Any]]  # tensor -> dim -> positions that stay


# -- running a model -----------------------------------------------------------------------------------------------


def tensors(out: Any) -> Iterator[torch.Tensor]:
    """The tensors of floats in what a forward returns."""
    if isinstance(out, torch.Tensor):
        if out.is_floating_point():
            yield out
    elif isinstance(out, Mapping):
        for x in out.values():
            yield from tensors(x)
    elif isinstance(out, (list, tuple)):
        for x in out:
            yield from tensors(x)


def run(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """What a forward returns. With gradients on, torch takes no fused path around its layers."""
    torch.manual_seed(0)
    with torch.enable_grad():
        return [t.detach() for t in tensors(model(*inputs[0], **inputs[1]))]


def each(inputs: Inputs, f: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """The inputs with a function applied to each tensor."""
    args, kwargs = inputs
    return tuple(f(x) for x in args), {k: f(x) for k, x in kwargs.items()}


def to_double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def other(x: torch.Tensor) -> torch.Tensor:
    """Another input of the same kind; a mask stays."""
    if x.is_floating_point():
        return x.flip(-1) + 1
    return x if bool((x == 1).all()) else (x - 3 + 17) % 96 + 3


def count_flops(model: nn.Module, inputs: Inputs) -> int:
    """What torch.utils.flop_counter counts; it sees attention only in its unfused form."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def count(mode: Any) -> int:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, mode:
            model(*inputs[0], **inputs[1])
        return int(counter.get_total_flops())

    try:
        return count(FakeTensorMode(allow_non_fake_inputs=True))
    except Exception:  # a forward that looks at values: on real tensors then
        return count(contextlib.nullcontext())


# -- the masked network --------------------------------------------------------------------------------------------


def mask(model: nn.Module, kept: Kept) -> None:
    """Zero every slice that goes, in place."""
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for name, dims in kept.items():
        x = named.get(name)
        if x is None or name.endswith("running_var") or not x.is_floating_point():
            continue  # a variance of zero would blow up what is zero already
        length = kept.get(name.removesuffix("1") + "0", {}) if name.endswith(".original1") else {}
        for dim, positions in dims.items():
            if dim in length or (len(positions) and isinstance(positions[0], list)):
                continue  # zeros have no direction; inputs of a grouped convolution: what makes them is masked
            keep = torch.zeros(x.shape[dim], dtype=x.dtype)
            keep[torch.as_tensor(positions, dtype=torch.long)] = 1
            x.data.mul_(keep.reshape([-1 if d == dim else 1 for d in range(x.ndim)]))


def vector_cut(module: nn.Module, path: str, kept: Kept) -> tuple[int, Any] | None:
    """The size and the positions that stay of a module that has only vectors of weights, if these shrink."""
    own = dict(module.named_parameters(recurse=False))
    if not own or any(True for m in module.children() for _ in m.parameters()):
        return None
    if any(sum(n > 1 for n in p.shape) > 1 for p in own.values()):
        return None
    cuts = [(own[k].shape[d], index) for k in own for d, index in kept.get(f"{path}.{k}", {}).items()]
    return cuts[0] if cuts else None


def follow_norms(masked: nn.Module, pruned: nn.Module, kept: Kept) -> list[str]:
    """Where a module with one vector of weights shrank, the pruned one runs on the channels that stay.

    That is what a norm must do, be it torch's or written in Python. Returns their paths.
    """
    small, found = dict(pruned.named_modules()), []
    for path, module in masked.named_modules():
        if path in small and (cut := vector_cut(module, path, kept)) is not None:
            module.register_forward_hook(_over_kept(small[path], *cut), with_kwargs=True)
            found.append(path)
        dims = kept.get(f"{path}.weight", {})
        if path in small and "StdConv" in type(module).__name__ and 1 in dims:  # statistics over the inputs that stay
            module.register_forward_hook(_standardised(small[path], dims))
            found.append(path)
    return found


def _standardised(small: nn.Module, dims: Any) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        made = dims.get(0, range(out.shape[1]))
        y = small(args[0].index_select(1, torch.as_tensor(dims[1])))
        return torch.zeros_like(out).index_copy(1, torch.as_tensor(list(made)), y)

    return hook


def _over_kept(small: nn.Module, size: int, positions: Any) -> Callable[..., Any]:
    keep = torch.as_tensor(positions, dtype=torch.long)

    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        if x is None or not isinstance(out, torch.Tensor) or out.shape != x.shape:
            return None
        for d in (d for d in reversed(range(x.ndim)) if x.shape[d] == size):

            def cut(a: Any, d: int = d) -> Any:
                return a.index_select(d, keep) if isinstance(a, torch.Tensor) and a.shape == x.shape else a

            try:
                y = small(*map(cut, args), **{k: cut(a) for k, a in kwargs.items()})
            except (RuntimeError, ValueError):
                continue  # it works along another dim of that size
            if y.shape == cut(x).shape:
                return torch.zeros_like(out).index_copy(d, keep, y)
        return None

    return hook


def compare(pruned: nn.Module, original: nn.Module, kept: Kept, inputs: Inputs) -> Row:
    """The largest output difference from the masked original, and how far another input moves the outputs.

    Both relative to the largest number of each output; in float64, unless the original runs in float32 alone.
    """
    dtype = "float64"
    try:
        run(copy.deepcopy(original).double(), each(inputs, to_double))
        original, pruned, inputs = original.double(), pruned.double(), each(inputs, to_double)
    except RuntimeError:
        dtype = "float32"
    mask(original, kept)
    follow_norms(original, pruned, kept)
    want, moved = run(original, inputs), run(original, each(inputs, other))
    got = run(pruned, inputs)
    if [t.shape for t in got] != [t.shape for t in want]:
        raise ValueError("the outputs have other shapes than before")
    return {"dtype": dtype, "difference": _largest(got, want), "moves": _largest(moved, want)}


def _largest(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    def relative(a: torch.Tensor, b: torch.Tensor) -> float:
        finite = torch.isfinite(b)
        if not torch.equal(finite, torch.isfinite(a)):
            return float("inf")
        a, b = a[finite], b[finite]
        return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if b.numel() else 0.0

    return max((relative(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)


# -- the two sides -------------------------------------------------------------------------------------------------


def judged(row: Row) -> Row:
    """Whether all criteria hold, and else which one does not."""
    if row.get("failure"):
        return {**row, "ok": False}
    if row["share"] > FRACTION:
        return {**row, "ok": False, "stage": "budget", "failure": f"{row['share']:.1%} of the FLOPs are left"}
    if not row["difference"] <= LARGEST_DIFFERENCE[row["dtype"]]:
        return {**row, "ok": False, "stage": "outputs", "failure": "the outputs are not those of the masked network"}
    if not row["moves"] >= LEAST_MOVES:
        return {**row, "ok": False, "stage": "outputs", "failure": "the masked network ignores its input"}
    return {**row, "ok": True}


class Stages:
    """Runs the stages of one side in turn; what is raised ends it, and is the row's failure."""

    def __init__(self) -> None:
        self.row: Row = {"ok": False}

    def __call__(self, stage: str, f: Callable[[], Any]) -> Any:
        self.row["stage"], start = stage, time.perf_counter()
        found = f()
        if f"{stage}_s" in COLUMNS:
            self.row[f"{stage}_s"] = round(time.perf_counter() - start, 2)
        return found

    def through(self, side: Callable[[Stages], None]) -> Row:
        try:
            side(self)
            self.row["stage"] = ""
        except Exception as e:
            self.row["failure"] = f"{type(e).__name__}: {e}".replace("\n", " ")[:300]
        return judged(self.row)


def ours(zoo: str, name: str) -> Callable[[Stages], None]:
    """solvemut with its defaults: half the FLOPs."""

    def side(stage: Stages) -> None:
        model, inputs = stage("build", lambda: build(zoo, name))
        original, before = copy.deepcopy(model), count_flops(model, inputs)
        stage.row |= {"flops": before, "params": sum(p.numel() for p in model.parameters())}
        mut = stage("capture", lambda: sm.Mutator(model, *inputs))
        frozen = mut.graph.frozen
        stage.row |= {"frozen": round(frozen.flops, 4), "frozen_by": str(frozen[0])[:200] if frozen.flops else ""}
        plan = stage("solve", lambda: mut.prune(flops=FRACTION, dry_run=True, progress=False))
        stage.row |= {"status": plan.status, "gap": plan.gap}
        stage("apply", lambda: mut.apply(plan))
        after = stage("forward", lambda: count_flops(model, inputs))
        stage.row["share"] = after / before
        foretold = mut.graph.flops.now, plan.costs["flops"].before
        unseen = foretold[1] - before  # by a counter that does not know an operation, such as a grouped product
        if foretold != (after, before) and not (0 < foretold[0] - after < unseen):
            raise ValueError(f"counted {before} and {after} FLOPs, {foretold[1]} and {foretold[0]} were foretold")
        stage.row |= stage("outputs", lambda: compare(model, original, plan.indices, inputs))

    return side


def peer(zoo: str, name: str) -> Callable[[Stages], None]:
    """Torch-Pruning with its defaults: half of all channels by global magnitude, what makes the output left alone."""

    def side(stage: Stages) -> None:
        model, inputs = stage("build", lambda: build(zoo, name))
        original, before = copy.deepcopy(model), count_flops(model, inputs)
        stage.row |= {"flops": before, "params": sum(p.numel() for p in model.parameters())}
        ignored, shapes = output_layers(model, inputs), tag(model)
        with alarm(PEER_SECONDS):
            pruner = stage("capture", lambda: make_pruner(model, inputs, ignored))
            stage("solve", pruner.step)
        after = stage("forward", lambda: count_flops(model, inputs))
        stage.row["share"] = after / before
        kept = stage("outputs", lambda: read_tags(model, shapes))
        stage.row |= stage("outputs", lambda: compare(model, original, kept, inputs))

    return side


def make_pruner(model: nn.Module, inputs: Inputs, ignored: list[nn.Module]) -> Any:
    import torch_pruning as tp

    args, kwargs = inputs
    return tp.pruner.MetaPruner(
        model,
        kwargs or (args[0] if len(args) == 1 else args),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=FRACTION,
        ignored_layers=ignored,
        output_transform=lambda out: sum(t.sum() for t in tensors(out)),
    )


def output_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers whose result is an output of the model, as it is or reshaped."""
    made: dict[int, nn.Module] = {}
    alive: list[torch.Tensor] = []

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and isinstance(getattr(module, "weight", None), nn.Parameter):
            alive.append(out)  # its address is its own as long as it lives
            made[out.untyped_storage().data_ptr()] = module

    handles = [m.register_forward_hook(hook) for m in model.modules() if not list(m.children())]
    out = run(model, inputs)
    for h in handles:
        h.remove()
    found = [made.get(t.untyped_storage().data_ptr()) for t in out]
    return list(dict.fromkeys(m for m in found if m is not None))


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Within it TimeoutError is raised after so many seconds of the processor."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no result after {seconds} s of the processor")

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


# -- processes and files -------------------------------------------------------------------------------------------


def warm(zoos: Iterable[str], sides: Iterable[str]) -> None:
    """Import now what each process, forked from here, would take half a minute to import."""
    modules = {"timm": "timm", "hf": "transformers.models.auto.modeling_auto", "tv": "torchvision"}
    torchvision_models()
    for name in (*(modules[zoo] for zoo in zoos), *("torch_pruning" for s in sides if s != SIDES[0])):
        importlib.import_module(name)
    importlib.import_module("torch._dynamo")
    importlib.import_module("ortools.sat.python.cp_model")


def child(pipe: Connection, zoo: str, name: str, sides: Sequence[str], gigabytes: float) -> None:
    """Both sides of one model; a row for each as soon as it is done."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for side in sides:
        row = Stages().through((ours if side == SIDES[0] else peer)(zoo, name))
        pipe.send({"zoo": zoo, "model": name, "side": side, **row})


class Run:
    """One model in a process of its own."""

    def __init__(self, key: tuple[str, str], sides: Sequence[str], seconds: float, gigabytes: float) -> None:
        self.key, self.sides, self.seconds = key, sides, seconds
        self.pipe, theirs = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=child, args=(theirs, *key, sides, gigabytes), daemon=True)
        self.process.start()
        theirs.close()
        self.end = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether the process has ended, or is ended now as its time is up."""
        if self.process.is_alive() and time.monotonic() < self.end:
            return False
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        return True

    def rows(self) -> list[Row]:
        """What it told; what it did not live to tell is a row that says so."""
        found: list[Row] = []
        with contextlib.suppress(EOFError):
            while self.pipe.poll():
                found.append(self.pipe.recv())
        late = time.monotonic() >= self.end
        end = f"no result after {self.seconds:.0f} s" if late else f"the process ended with {self.process.exitcode}"
        return completed(self.key, self.sides, found, end)


def completed(key: tuple[str, str], sides: Sequence[str], rows: Sequence[Row], end: str) -> list[Row]:
    """The rows of a process; the first side that is missing takes how it ended as its failure."""
    missing = [side for side in sides if side not in {r["side"] for r in rows}]
    ended = {"zoo": key[0], "model": key[1], "ok": False, "stage": "process", "failure": end}
    return [*rows, *({**ended, "side": side} for side in missing[:1])]


def read(path: Path) -> list[Row]:
    """The rows of a file, with numbers as numbers; of several for one model and side the last counts."""
    if not path.exists():
        return []
    with path.open(newline="") as f:
        rows = [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(f)]
    return list({(r["zoo"], r["model"], r["side"]): r for r in rows}.values())


def _value(column: str, text: str) -> Any:
    if column == "ok":
        return text == "True"
    if column in ("zoo", "model", "side", "stage", "failure", "frozen_by", "dtype", "status"):
        return text
    return float(text) if text else None


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


# -- the report ----------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row]) -> str:
    """A table of all models, totals by library, and the failures by cause."""
    by = {side: {(r["zoo"], r["model"]): r for r in rows if r["side"] == side} for side in SIDES}
    keys = sorted({*by[SIDES[0]], *by[SIDES[1]]})
    header = ["model", "frozen", "FLOPs left", "difference", "capture", "solve", "apply", "solvemut", "Torch-Pruning"]
    cells = [_cells(key, by[SIDES[0]].get(key), by[SIDES[1]].get(key)) for key in keys]
    return "\n".join([totals(by), "", table(header, cells), "", causes(by)])


def _cells(key: tuple[str, str], mine: Row | None, peers: Row | None) -> list[str]:
    r = mine or {}
    seconds = [f"{r[k]:.1f} s" if r.get(k) is not None else "-" for k in ("capture_s", "solve_s", "apply_s")]
    shares = [f"{r[k]:.1%}" if r.get(k) is not None else "-" for k in ("frozen", "share")]
    difference = f"{r['difference']:.0e}" if r.get("difference") is not None else "-"
    return ["/".join(key), *shares, difference, *seconds, _verdict(mine), _verdict(peers)]


def _verdict(row: Row | None) -> str:
    return "-" if row is None else "yes" if row["ok"] else f"no: {row['stage']}"


def totals(by: Mapping[str, Mapping[tuple[str, str], Row]]) -> str:
    """How many models each side prunes, by library, of those that both were run on."""
    both = [k for k in by[SIDES[0]] if k in by[SIDES[1]]]
    lines = []
    for zoo in (*ZOO, "all"):
        keys = [k for k in both if zoo in (k[0], "all")]
        if keys:
            count = [str(sum(by[side][k]["ok"] for k in keys)) for side in SIDES]
            lines.append([zoo, str(len(keys)), *count])
    return table(["library", "models", "solvemut", "Torch-Pruning"], lines)


def causes(by: Mapping[str, Mapping[tuple[str, str], Row]]) -> str:
    """The failures of each side by cause: names and numbers left out."""
    lines = []
    for side in SIDES:
        failed = [r for r in by[side].values() if not r["ok"]]
        count = Counter(f"{r['stage']}: {general(r['failure'])}" for r in failed)
        for cause, n in count.most_common():
            names = [r["model"] for r in failed if f"{r['stage']}: {general(r['failure'])}" == cause]
            shown = ", ".join(names[:4]) + (f" and {n - 4} more" if n > 4 else "")
            lines.append([side, str(n), cause.replace("|", "/"), shown])
    return table(["side", "models", "cause", "which"], lines) if lines else "no failures"


def general(failure: str) -> str:
    """A failure without names and numbers, so that those of one cause look alike.

    >>> general("InfeasibleError: flops <= 123: the nearest is 456 at 'a.b'")
    'InfeasibleError: flops <= …: the nearest is … at …'
    """
    return re.sub(r"'[^']*'|\d[\d.,%]*", "…", failure)[:110]


# -- the command ---------------------------------------------------------------------------------------------------


def wanted(zoo: str, patterns: Iterable[str]) -> list[tuple[str, str]]:
    """The models of a zoo whose zoo/name, or name, fits one of some patterns; small ones (Hugging Face) first."""
    zoos = ("hf", "timm", "tv") if zoo == "all" else (zoo,)
    found = [(z, name) for z in zoos for name in ZOO[z]]
    return [k for k in found if any(fnmatch.fnmatch(text, p) for text in ("/".join(k), k[1]) for p in patterns)]


def main() -> None:
    """Run what is asked for and not there yet, or report what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", choices=["all", *ZOO], default="all")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="models by name, or by zoo/name")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for both sides of one model")
    parser.add_argument("--memory", type=float, default=8, metavar="GiB", help="of each process")
    parser.add_argument("--deadline", type=float, default=math.inf, metavar="SECONDS", help="start no model after that")
    parser.add_argument("--again", action="store_true", help="run also what has rows; the new ones count")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--report", action="store_true", help="print tables, run nothing")
    o = parser.parse_args()
    if not o.report:
        run_all(o)
    print(report(read(o.out)))


def run_all(o: argparse.Namespace) -> None:
    """Every model that is asked for, so many at a time."""
    there = set() if o.again else {(r["zoo"], r["model"], r["side"]) for r in read(o.out)}
    sides = {k: [s for s in o.sides if (*k, s) not in there] for k in wanted(o.zoo, o.only)}
    todo, live, start = deque(k for k in sides if sides[k]), list[Run](), time.monotonic()
    warm({zoo for zoo, _ in todo}, o.sides)
    while live or (todo and time.monotonic() - start < o.deadline):
        while todo and len(live) < o.jobs and time.monotonic() - start < o.deadline:
            key = todo.popleft()
            live.append(Run(key, sides[key], o.limit, o.memory))
        for over in [r for r in live if r.is_over()]:
            live.remove(over)
            append(o.out, rows := over.rows())
            for r in rows:
                print("/".join(over.key), r["side"], _verdict(r), r.get("failure") or "", flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
