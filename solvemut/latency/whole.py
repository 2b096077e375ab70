"""Whole models: what a table says is held against pruned copies of the model that are run, and corrected by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..compile import Worth
from ..errors import InfeasibleError, RequestError, TimeLimitError
from ..graph import Graph
from ..plan import kept_units
from ..problem import Problem
from .clock import Clock
from .compiled import compiled_forward, every_copy_compiled
from .samples import forward_of
from .sites import Site
from .table import Fit

SHARES = (0.35, 0.9)  # of the FLOPs, between which pruned copies lie
PULL = (0.15, 0.15, 0.6)  # towards no correction: runs are off by 3 %, factors by 20 %, a constant by 5 % of all


@dataclass(frozen=True, eq=False)
class Run:
    """A model that was run: its seconds, and those of its nodes by the table, with which of them multiply."""

    seconds: float
    nodes: np.ndarray
    works: np.ndarray

    def predicted(self, fit: Fit) -> float:
        """What the table says of it, corrected."""
        factor = np.where(self.works, fit.work, fit.other)
        return float(np.maximum(0.0, self.nodes * factor + fit.each * 1e-9).sum())


def drawn_plans(graph: Graph, n: int, multiple: int, seed: int) -> Iterator[tuple[torch.nn.Module, np.ndarray]]:
    """The model, then pruned copies, and the unit classes that each keeps: layers are worth more or less, at random."""
    coupling = graph.coupling
    yield copy.deepcopy(graph.model), np.ones(coupling.n_units, dtype=bool)
    rng = np.random.default_rng(seed)
    low, high = SHARES
    for k in range(n):
        share = low + (high - low) * (k + 0.5) / n
        of_group = np.exp(rng.normal(size=len(coupling.groups) + 1))
        value = of_group[coupling.group_of] * rng.uniform(0.9, 1.1, coupling.n_units)
        problem = Problem(graph)
        problem.maximize(Worth(value))
        problem.round_to(multiple)
        problem.add(graph.flops <= max(1.0, share * graph.flops.now))
        try:
            plan = problem.solve(time_limit=20.0, gap=0.05, progress=False)
        except (InfeasibleError, TimeLimitError):  # a model of which hardly anything can go
            continue
        model = copy.deepcopy(graph.model)
        plan.apply(model)
        yield model, kept_units(graph, plan)


@torch.inference_mode()
def timed_models(
    graph: Graph,
    models: Sequence[torch.nn.Module],
    clock: Clock,
    dtype: torch.dtype,
    rounds: int,
    after: Callable[[str], object] = lambda what: None,
    compiled: bool = False,
) -> list[float]:
    """Seconds of a forward of each. The first, run beside every other one, says how fast the machine is at that moment.

    Of each model the median over rounds of how it compares with the first is taken, times the median of the first.
    `after` hears what has been done; with `compiled` each model is compiled before that, for its sizes.
    """
    assert clock.device is not None
    forwards = [forward_of(m.to(clock.device, dtype).eval(), graph, clock.device, dtype) for m in models]
    if compiled:
        forwards = [compiled_forward(f) for f in forwards]
        _compile(forwards, after)
    found, beside = np.empty((rounds, len(models))), np.empty((rounds, len(models)))
    for r in range(rounds):
        for k, forward in enumerate(forwards):
            for timed, f in ((beside, forwards[0]), (found, forward)):
                clock.run(f)  # its weights come into the caches
                timed[r, k] = clock.run(f)
        after(f"round {r + 1} of {rounds}")
    return [float(x) for x in np.median(found / beside, axis=0) * np.median(beside)]


def _compile(forwards: Sequence[Callable[[], object]], after: Callable[[str], object]) -> None:
    """Compile each by running it once."""
    with every_copy_compiled(len(forwards)):
        for k, forward in enumerate(forwards):
            try:
                forward()
            except Exception as e:  # whatever torch raises
                why = f"{type(e).__name__}: {e}".splitlines()[0]
                raise RequestError(
                    f"the model cannot be compiled whole ({why}); measure_latency(..., check=0) makes a table that is "
                    "held against no whole model"
                ) from e
            after(f"{k + 1} of {len(forwards)} compiled")


def site_seconds(sites: Sequence[Site], at: Callable[[str, tuple[int, ...]], float], kept: np.ndarray) -> np.ndarray:
    """By site what a table says at the sizes that are left when `kept` stays."""
    return np.array([at(s.key, tuple(s.graph.coupling.count(a.extent, kept) for a in s.axes)) for s in sites])


def fitted(runs: Sequence[Run]) -> Fit:
    """The correction that brings the sums near the runs, with what it says of each when that one is left out."""
    if not runs:
        return Fit()
    out = (
        [_least_squares([r for r in runs if r is not left]) for left in runs] if len(runs) > 2 else [Fit()] * len(runs)
    )
    found = _least_squares(runs) if len(runs) > 2 else Fit()
    measured = tuple(r.seconds * 1e3 for r in runs)
    held_out = tuple(r.predicted(fit) * 1e3 for r, fit in zip(runs, out, strict=True))
    plain = tuple(r.predicted(Fit()) * 1e3 for r in runs)
    return Fit(found.work, found.other, found.each, measured, held_out, plain)


def _least_squares(runs: Sequence[Run]) -> Fit:
    """Relative errors, pulled towards factors of 1 and nothing besides."""
    n = len(runs[0].nodes)
    seconds = np.array([r.seconds for r in runs])
    sums = np.array([[r.nodes[r.works].sum(), r.nodes[~r.works].sum(), n * seconds.mean() / max(1, n)] for r in runs])
    rows = sums / seconds[:, None]
    pull = np.diag(PULL)
    left = np.vstack([rows, pull])
    right = np.concatenate([1.0 - rows[:, 0] - rows[:, 1], np.zeros(3)])  # of factors, what differs from 1
    work, other, each = np.linalg.lstsq(left, right, rcond=None)[0]
    return Fit(max(0.0, 1 + float(work)), max(0.0, 1 + float(other)), float(each * seconds.mean() / max(1, n) * 1e9))
