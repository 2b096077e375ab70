"""Ctrl-C during a solve: nothing is changed, nothing is swallowed, and what comes back says that it was interrupted."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import tensors
from strategies_program import NIGHTLY
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError
from solvemut.program import Program
from solvemut.progress import Reporter

MOMENTS = 150 if NIGHTLY else 6
PATIENCE = 6.0  # seconds from the signal to the end, of the 60 that the solve would take


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(8, 40)]
    for _ in range(10):
        layers += [nn.ReLU(), nn.Linear(40, 40)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(40, 4))


def request(graph: Any, remainders: int = 1) -> dict[str, Any]:
    """What no search settles in a minute: a remainder of a sum of large multiples; with two, no plan is found."""
    outs = [v for v in graph.vertices if v.makes_units][:-1]
    draw, rng = random.Random(0), np.random.default_rng(0)
    sums = [sum(draw.randrange(1000, 10_000) * v.out for v in outs[1:]) for _ in range(remainders)]
    values = {v.name: rng.lognormal(0, 2, v.nout) for v in outs}
    return {"values": values, "params": 0.5, "gap": 0, "constraints": [s % 997 == 17 for s in sums]}


@pytest.fixture(scope="module")
def mutator() -> sm.Mutator:
    return sm.Mutator(network(), torch.ones(1, 8))


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    """A real SIGINT from another thread; the handler in place must be the same afterwards."""
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    assert time.monotonic() - start < seconds + PATIENCE
    assert signal.getsignal(signal.SIGINT) is before


def moments(most: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [round(draw.uniform(0, most), 3) for _ in range(MOMENTS)]


@pytest.mark.parametrize("seconds", moments(2.0, 1))
def test_ctrl_c_in_prune_is_raised_and_changes_nothing(mutator, seconds):
    before = {k: t.clone() for k, t in tensors(mutator.model).items()}
    with pytest.raises(KeyboardInterrupt), ctrl_c_after(seconds):
        mutator.prune(**request(mutator.graph))
    after = tensors(mutator.model)
    assert before.keys() == after.keys() and all(torch.equal(before[k], t) for k, t in after.items())


@pytest.mark.parametrize("seconds", moments(2.0, 2))
def test_ctrl_c_returns_the_plan_unapplied_where_that_is_asked(mutator, monkeypatch, seconds):
    """Before there is a plan it is raised all the same."""
    found: list[Any] = []
    monkeypatch.setattr(Reporter, "__call__", lambda self, p: found.append(p.incumbent) if p.incumbent else None)
    try:
        with ctrl_c_after(seconds):
            plan = mutator.prune(**request(mutator.graph), on_interrupt="return")
    except KeyboardInterrupt:
        assert not found
    else:
        assert plan.status == "interrupted" and "interrupted" in str(plan) and "interrupted after" in plan.notes[0]
        assert plan.bound >= plan.objective
        assert mutator.model[0].weight.shape == (40, 8)
        model = copy.deepcopy(mutator.model)
        plan.apply(model)
        assert sum(p.numel() for p in model.parameters()) <= 0.5 * mutator.graph.params.now


def test_ctrl_c_before_any_plan_is_found(mutator):
    for on_interrupt in ("raise", "return"):
        with pytest.raises(KeyboardInterrupt), ctrl_c_after(1.0):
            mutator.prune(**request(mutator.graph, remainders=2), on_interrupt=on_interrupt)


def test_ctrl_c_while_a_conflict_is_explained(mutator):
    """Too much is asked for: the search for the smallest conflict is interrupted, which is no answer either."""
    graph = mutator.graph
    asked = request(graph, remainders=2)
    problem = sm.Problem(graph)
    problem.add(asked["constraints"], graph.params <= 0.2 * graph.params.now, graph.params >= 0.9 * graph.params.now)
    with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.5):
        problem.solve(time_limit=60)


@pytest.mark.parametrize("calls", [1, 2, 7])
def test_a_callback_that_raises(mutator, monkeypatch, calls):
    told: list[Any] = []

    def callback(self: Reporter, progress: Any) -> None:
        told.extend([progress] if progress.incumbent is not None else [])
        if len(told) >= calls:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "__call__", callback)
    with pytest.raises(KeyboardInterrupt):
        mutator.prune(**request(mutator.graph))
    assert mutator.model[0].weight.shape == (40, 8)
    told.clear()
    plan = mutator.prune(**request(mutator.graph), on_interrupt="return")
    assert plan.status == "interrupted" and mutator.model[0].weight.shape == (40, 8)


PACKAGE = str(Path(sm.__file__).parent)


class Calls:
    """Counts the calls of solvemut's own functions; at one of them Ctrl-C is pressed."""

    def __init__(self, at: int | None = None) -> None:
        self.count, self.at = 0, at

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> Calls:
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


SHORT: dict[str, Any] = {
    "price": lambda g: {"params": 0.5, "values": sm.values.random(0)},
    "additive": lambda g: {"constraints": [sum(v.out for v in g.vertices if v.makes_units) <= 100]},
    "remainder": lambda g: {"constraints": [g["2"].out % 7 == 3, (g["2"].out + g["4"].out + g["6"].out) % 5 == 3]},
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_ctrl_c_at_any_call_is_not_lost(mutator, kind, on_interrupt):
    """Wherever it lands between the first line of prune and the plan."""
    asked = {**SHORT[kind](mutator.graph), "dry_run": True, "on_interrupt": on_interrupt}
    with Calls() as calls:
        mutator.prune(**asked)
    for at in sorted(random.Random(kind).sample(range(1, calls.count + 1), 2 * MOMENTS)):
        with Calls(at) as again:
            try:
                plan = mutator.prune(**asked)
            except KeyboardInterrupt:
                continue
        assert again.count < at or (on_interrupt == "return" and plan.status == "interrupted"), at


def test_a_solve_that_ends_by_itself_is_not_interrupted(mutator):
    plan = mutator.prune(params=0.5, dry_run=True, on_interrupt="return")
    assert plan.status == "optimal" and not any("interrupted" in note for note in plan.notes)


@pytest.mark.parametrize("bad", ["ignore", None, True, 1])
def test_on_interrupt_is_one_of_two(mutator, bad):
    with pytest.raises(RequestError, match="on_interrupt"):
        mutator.prune(params=0.5, on_interrupt=bad)


def split(columns: int = 60) -> Program:
    """A subset of large numbers as near to half their sum as can be: a choice at once, proofs never."""
    p, draw = Program(), random.Random(3)
    x = [p.switch(f"x{i}") for i in range(columns)]
    numbers = [draw.randrange(10**14) for _ in x]
    for n, one in zip(numbers, x, strict=True):
        p.value(n, one)
        p.cost("sum", n, one)
        p.cost("other", draw.randrange(10**14), one)
    p.budget("sum", sum(numbers) // 2)
    p.budget("other", sum(numbers) // 2)
    return p


@pytest.mark.parametrize("seconds", [0.3, 1.0])
@pytest.mark.parametrize("engine", ["auto", "price", "cp-sat", "highs"])
def test_a_program_says_that_it_was_interrupted(engine, seconds):
    try:
        with ctrl_c_after(seconds):
            solution = split().solve(engine=engine)
    except KeyboardInterrupt:  # before there was a choice
        return
    if solution.gap:
        assert solution.interrupted and "interrupted" in str(solution)
    solution.check()


def test_a_stop_by_the_callback_is_no_interrupt():
    solution = split().solve(callback=lambda progress: progress.incumbent is not None)
    assert not solution.interrupted and "interrupted" not in str(solution)


def test_ctrl_c_ends_all_solves_of_k_best_and_frontier():
    for many in (lambda p: p.k_best(50), lambda p: p.frontier("sum", points=50)):
        try:
            with ctrl_c_after(1.0):
                found = many(split())
        except KeyboardInterrupt:
            continue
        assert len(found) < 50
