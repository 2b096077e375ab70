"""Mutations in a row on a residual network of 50 convolutions: ``python benchmarks/mutations.py``.

One `Mutator` sees all of them, of random kinds in random places: sizes up and down, prunes to a budget, prunes in which
layers may grow, layers that come and go, edges that come and go. Given are wall times by kind, how many of the requests
could be met, why the others were refused, and by how much outputs moved where the plan says that they do not. Whatever
is refused must leave the outputs as they were, to the bit. An exception that is not an error of solvemut's own is a
bug: its traceback is printed with the seed and the number of the mutation, and the exit status is 1.

    python benchmarks/mutations.py --steps 20 --seed 3 --kinds remove insert --check
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import re
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import solvemut as sm
from solvemut.errors import SolvemutError

MEDIAN, WORST, DRIFT = 0.1, 1.0, 1e-5  # targets: seconds by the median and at worst, largest change of outputs
WIDTHS = (16, 32, 64)
Vertices = list[Any]

# -- the network -------------------------------------------------------------------------------------------------------


def network(layers: int = 50, image: int = 32) -> tuple[nn.Module, torch.Tensor]:
    """A residual CNN of so many convolutions in stages of 16, 32 and 64 channels, and an image for it.

    The number is even, 18 at least. Each block is two convolutions around a skip; the first one of a stage widens, and
    the last one of a stage joins two branches by a concat.
    """
    net = sm.Builder("Residual")
    v = _conv(net, net.input("image", 3), "stem", 3, WIDTHS[0])
    blocks = max(2 * len(WIDTHS), (layers - 2 * len(WIDTHS)) // 2)  # two in each; stem, skips and branches are 6 more
    before = WIDTHS[0]
    for s, width in enumerate(WIDTHS):
        last = blocks // len(WIDTHS) + (s < blocks % len(WIDTHS)) - 1
        for b in range(last + 1):
            name, stride = f"stage{s}.block{b}", 2 if s and not b else 1
            skip = v if not stride - 1 else _conv(net, v, f"{name}.skip", before, width, 1, stride, relu=False)
            inside = _conv(net, v, f"{name}.a", before, width, 3, stride)
            if b < last:
                inside = _conv(net, inside, f"{name}.b", width, width, relu=False)
            else:
                half = [_conv(net, inside, f"{name}.{k}", width, width // 2, relu=False) for k in "bc"]
                inside = net.concat(*half, name=f"{name}.cat")
            v = net.apply(torch.relu, skip + inside, name=f"{name}.out")
            before = width
    pooled = net.layer(nn.Flatten(), net.layer(nn.AdaptiveAvgPool2d(1), v, name="pool"), name="flat")
    model = net.build(net.layer(nn.Linear(before, 10), pooled, name="head"))
    return model.eval(), torch.randn(1, 3, image, image)


@torch.no_grad()
def settle(model: nn.Module, batch: torch.Tensor) -> None:
    """Keep the network alive, as training on would: weights of zero become small, batch norms follow a batch.

    New columns begin as zeros; when the others go afterwards, nothing would come through any more.
    """
    for p in (p for p in model.parameters() if p.ndim > 1):
        p[p == 0] = torch.randn(int((p == 0).sum())) * p.std(unbiased=False)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # this batch alone
    model.train()(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _conv(
    net: sm.Builder, v: Any, name: str, nin: int, nout: int, kernel: int = 3, stride: int = 1, relu: bool = True
) -> Any:
    conv = nn.Conv2d(nin, nout, kernel, stride, padding=kernel // 2, bias=False)
    v = net.layer(nn.BatchNorm2d(nout), net.layer(conv, v, name=name), name=f"{name}_bn")
    return net.apply(torch.relu, v, name=f"{name}_relu") if relu else v


# -- the mutations -----------------------------------------------------------------------------------------------------


@dataclass
class Draw:
    """A random mutation of the graph that a mutator has now."""

    mut: sm.Mutator
    rng: random.Random
    step: int

    def shape(self, v: Any) -> tuple[int, ...]:
        trace = self.mut.graph.trace
        return tuple(trace.shape(v.nodes[-1] if v.nodes else v.name))

    def images(self) -> Vertices:
        """What puts out images, the input of the model included."""
        return [v for v in self.mut.graph if v.op != "parameter" and len(self.shape(v)) == 4]

    def layers(self) -> Vertices:
        """What has a size of its own that may change."""
        graph = self.mut.graph
        return [v for v in graph if v.makes_units and v.nout > 1 and not graph.frozen_because(v)]

    def joins(self) -> Vertices:
        return [v for v in self.images() if v.op in ("add", "cat") and len(self.mut.graph.inputs(v)) > 1]

    def resize(self, sign: int) -> Callable[[], sm.Plan]:
        v = self.rng.choice(self.layers())
        n = self.rng.randint(1, max(1, v.nout // 4))
        return lambda: self.mut.resize({v.name: sign * n})

    def resize_up(self) -> Callable[[], sm.Plan]:
        return self.resize(+1)

    def resize_down(self) -> Callable[[], sm.Plan]:
        return self.resize(-1)

    def prune(self) -> Callable[[], sm.Plan]:
        cost, part = self.rng.choice(("flops", "params")), self.rng.uniform(0.85, 0.98)
        return lambda: self.mut.prune(**{cost: part})

    def prune_grow(self) -> Callable[[], sm.Plan]:
        graph, part = self.mut.graph, self.rng.uniform(1.0, 1.25)
        budgets = {"params": round(graph.params.now * part), "flops": round(graph.flops.now * part)}
        return lambda: self.mut.prune(**budgets, grow=0.25, time_limit=10)

    def insert(self) -> Callable[[], sm.Plan]:
        v = self.rng.choice([v for v in self.images() if v.op != "input"])
        kinds = (nn.BatchNorm2d(v.nout), nn.Conv2d(v.nout, v.nout, 3, padding=1))
        module = sm.identity_init(self.rng.choice(kinds)).eval()
        return lambda: self.mut.insert(v.name, module, name=f"new{self.step}")

    def remove(self) -> Callable[[], sm.Plan]:
        """A layer whose images are as large as those that it reads: else there is nothing to put in its place."""
        graph = self.mut.graph
        found = []
        for v in self.images():
            reads = graph.inputs(v)
            if isinstance(v.layer, (nn.Conv2d, nn.BatchNorm2d)) and self.shape(v)[2:] == self.shape(reads[0])[2:]:
                found.append(v)
        v = self.rng.choice(found)
        return lambda: self.mut.remove(v.name)

    def connect(self) -> Callable[[], sm.Plan]:
        """An edge between images of one size, forwards; to an add, a concat, or a layer that then gets one of them."""
        graph, rng = self.mut.graph, self.rng
        v = rng.choice(self.joins() if rng.random() < 0.5 else [v for v in self.images() if v.op == "conv2d"])
        (read, *_) = graph.inputs(v)
        before = {a.name for a in graph.ancestors(v)}
        source = rng.choice(
            [a for a in self.images() if a.name in before and self.shape(a)[2:] == self.shape(read)[2:]]
        )
        merge = rng.choice(("concat", "add"))
        return lambda: self.mut.connect(source.name, v.name, merge=merge)

    def disconnect(self) -> Callable[[], sm.Plan]:
        """An input goes; of an add the one with fewer layers before it, as the whole network may hang on the other."""
        graph = self.mut.graph
        v = self.rng.choice(self.joins())
        reads = graph.inputs(v)
        source = min(reads, key=lambda a: len(graph.ancestors(a))) if v.op == "add" else self.rng.choice(reads)
        return lambda: self.mut.disconnect(source.name, v.name)


KINDS = ("resize_up", "resize_down", "prune", "prune_grow", "insert", "remove", "connect", "disconnect")


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation."""

    step: int
    kind: str
    wall: float
    plan: sm.Plan | None = None
    drift: float | None = None  # change of outputs, over the largest of them
    alive: bool = True  # whether another image gives other outputs: if not, the drift says nothing
    refused: str = ""  # why, without the names
    bug: str = ""

    @property
    def keeps(self) -> bool:
        """Whether the outputs were to stay: the plan says so, or what came passes on what it gets."""
        return self.plan is not None and self.alive and (not self.plan.alters or self.kind == "insert")


@dataclass
class Run:
    """A network and the mutations of it."""

    seed: int = 0
    layers: int = 50
    image: int = 32
    check: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.rng = random.Random(self.seed)
        self.model, self.x = network(self.layers, self.image)
        self.mut = sm.Mutator(self.model, self.x)
        self.batch = torch.randn(4, *self.x.shape[1:])
        settle(self.model, self.batch)

    @torch.no_grad()
    def output(self) -> torch.Tensor:
        return self.model(self.batch[:2])

    def step(self, kind: str) -> Outcome:
        """One random mutation of a kind, timed, and held against what it says."""
        n = len(self.outcomes)
        before, start = self.output(), time.perf_counter()
        try:
            call = getattr(Draw(self.mut, self.rng, n), kind)()
            start = time.perf_counter()
            plan = call()
            took = time.perf_counter() - start
            largest = before.abs().max()
            drift = ((self.output() - before).abs().max() / largest).item()
            alive = bool((before[0] - before[1]).abs().max() > 1e-2 * largest)
            told = Outcome(n, kind, took, plan, drift, alive, bug=self.found_wrong())
            settle(self.model, self.batch)
        except SolvemutError as e:
            told = Outcome(n, kind, time.perf_counter() - start, refused=f"{type(e).__name__}: {reason(e)}")
            if "please report" in str(e):
                told = Outcome(n, kind, told.wall, bug=traceback.format_exc())
            elif not torch.equal(self.output(), before):
                told = Outcome(n, kind, told.wall, bug=f"refused ({told.refused}), and the outputs are others")
        except Exception:
            told = Outcome(n, kind, time.perf_counter() - start, bug=traceback.format_exc())
        if told.bug:
            print(f"BUG: --seed {self.seed} --layers {self.layers}, mutation {n} ({kind})\n{told.bug}", flush=True)
        self.outcomes.append(told)
        return told

    def found_wrong(self) -> str:
        """How the graph differs from what a fresh look at the model gives; nothing, if it does not or is not asked."""
        if not self.check:
            return ""
        fresh, own = ({v.name: (v.nin, v.nout) for v in g} for g in (sm.capture(self.model, self.x), self.mut.graph))
        names = [name for name in {**own, **fresh} if own.get(name) != fresh.get(name)]
        return "; ".join(f"{name}: {own.get(name)} in the graph, {fresh.get(name)} in the model" for name in names)


def reason(e: Exception) -> str:
    """What an error says, without names and numbers, so that it can be counted."""
    first, _, more = str(e).partition("\n")
    text = f"{first} {more.split(chr(10))[0].strip()}" if first.endswith(":") else first
    return re.sub(r"'[^']*'|\b[\w.#]*[\d_.][\w.#]*\b", "…", text)[:140]


# -- the report --------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    wide = [max(len(r[k]) for r in (head, *rows)) for k in range(len(head))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(r, wide, strict=True)) for r in (head, *rows)]
    lines.insert(1, " | ".join("-" * w for w in wide))
    return "\n".join(f"| {line} |" for line in lines)


def row(kind: str, outcomes: Sequence[Outcome]) -> list[str]:
    made = [o for o in outcomes if o.plan is not None]
    drifts = [o.drift for o in made if o.keeps and o.drift is not None]
    cells = [kind, f"{len(made)} of {len(outcomes)}"]
    if not made:
        return cells + ["-"] * 6
    walls = [o.wall for o in made]
    inside = statistics.median(o.plan.seconds for o in made if o.plan)
    rest = statistics.median(o.wall - o.plan.seconds for o in made if o.plan)
    refused = [o.wall for o in outcomes if o.refused]
    cells += [f"{1e3 * t:.0f} ms" for t in (statistics.median(walls), max(walls), inside, rest)]
    cells.append(f"{1e3 * statistics.median(refused):.0f} ms" if refused else "-")
    return [*cells, f"{max(drifts):.0e} ({len(drifts)})" if drifts else "-"]


def report(outcomes: Sequence[Outcome]) -> str:
    """The table by kind, what was refused and why, and the targets."""
    made = [o for o in outcomes if o.plan is not None]
    bugs = [o for o in outcomes if o.bug]
    kinds = [k for k in KINDS if any(o.kind == k for o in outcomes)]
    head = ("kind", "made", "median", "worst", "compile and solve", "the rest", "refused after", "drift (of so many)")
    parts = [table(head, [*(row(k, [o for o in outcomes if o.kind == k]) for k in kinds), row("all", outcomes)])]
    tally = Counter(f"{o.kind}: {o.refused}" for o in outcomes if o.refused)
    parts.append("\n".join([f"refused: {sum(tally.values())}", *(f"- {n} x {why}" for why, n in tally.most_common())]))
    walls = [o.wall for o in made] or [math.nan]
    drift = max((o.drift for o in made if o.keeps and o.drift is not None), default=0.0)
    rate = len(outcomes) / sum(o.wall for o in outcomes)
    parts.append(
        f"{len(outcomes)} mutations, {rate:.1f} per second; {len(made) / len(outcomes):.0%} made; "
        f"{sum(not o.alive for o in made)} of a network whose outputs do not depend on the image; {len(bugs)} bugs"
        + "".join(f"\n- mutation {o.step} ({o.kind})" for o in bugs)
    )
    goals = (
        ("median", statistics.median(walls), MEDIAN, " s"),
        ("worst", max(walls), WORST, " s"),
        ("drift", drift, DRIFT, ""),
    )
    told = [f"{k} {n:.2g}{unit}, {'hit' if n < goal else 'MISSED'} ({goal:g}{unit})" for k, n, goal, unit in goals]
    return "\n\n".join([*parts, "targets: " + "; ".join(told)])


def versions() -> str:
    """What ran where."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "ortools"))
    return f"{packages}; Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}, one thread"


def main(argv: list[str] | None = None) -> Run:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="mutations in a row (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=50, help="convolutions, an even number (default %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--quick", action="store_true", help="16 mutations of 18 layers on 8 x 8 pixels")
    parser.add_argument("--check", action="store_true", help="hold the graph against a fresh capture after each one")
    parser.add_argument("--seconds", type=float, default=math.inf, help="take no further step after so many seconds")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutation")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    steps, layers, image = (16, 18, 8) if options.quick else (options.steps, options.layers, 32)
    run = Run(options.seed, layers, image, options.check)
    kinds = [k for k in options.kinds if hasattr(run.mut, k.split("_")[0])]
    start, end = repr(run.mut), time.perf_counter() + options.seconds
    for k in range(steps):
        if time.perf_counter() > end:
            break
        if k % len(kinds) == 0:
            run.rng.shuffle(kinds)
        o = run.step(kinds[k % len(kinds)])
        if options.verbose:
            print(
                f"{k:3} {o.kind:<11} {1e3 * o.wall:6.0f} ms  {o.drift} {o.alive}  {o.refused}  {run.mut!r}", flush=True
            )
    print(f"{start}\n{run.mut!r}\n\n{report(run.outcomes)}\n\n{versions()}")
    return run


if __name__ == "__main__":
    raise SystemExit(any(o.bug for o in main().outcomes))
