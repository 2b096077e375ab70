"""Interrupts: Ctrl-C at any moment leaves a model and all that hangs on it as it was, or fully changed."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import randomise, tensors
from strategies_program import NIGHTLY
from torch import nn
from torch.optim.swa_utils import AveragedModel
from training import Injected, equal, step

import solvemut as sm
from solvemut.interrupts import Interrupts, deferred

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread() or os.name == "nt", reason="signals reach the main thread"
)


@pytest.fixture(autouse=True)
def pythons_handler() -> Iterator[None]:
    """A process that a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# -- deferring ---------------------------------------------------------------------------------------------------------


def test_a_signal_waits_for_a_poll():
    seen = []
    with pytest.raises(KeyboardInterrupt), deferred() as interrupts:
        interrupts.poll()
        interrupt()
        seen.append("the next line runs")
        interrupts.poll()
        seen.append("this one does not")
    assert seen == ["the next line runs"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_no_poll_heard_comes_at_the_end():
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with deferred():
            interrupt()
            seen.append(1)
        seen.append(2)
    assert seen == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_stretch_inside_another_is_part_of_it():
    seen = []
    with pytest.raises(KeyboardInterrupt), deferred() as outer:
        with deferred() as inner:
            assert inner is outer
            interrupt()
        seen.append("still waiting")
    assert seen and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_code_of_the_caller_is_interrupted_at_once():
    seen = []
    with pytest.raises(KeyboardInterrupt), deferred() as interrupts:
        try:
            with interrupts.allowed():
                interrupt()
                seen.append("not reached")
        finally:
            assert signal.getsignal(signal.SIGINT) is interrupts
            interrupt()
            seen.append("deferred again")
    assert seen == ["deferred again"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_user_is_asked():
    """One that only notes the signal interrupts nothing."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, frame is None)))
    try:
        with deferred() as interrupts:
            interrupt()
            assert not seen
            interrupts.poll()
            assert seen == [(signal.SIGINT, False)]
            interrupt()
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIG_IGN, signal.SIG_DFL])
def test_without_a_handler_in_python_nothing_is_installed(kind):
    before = signal.signal(signal.SIGINT, kind)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGINT) is kind
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone():
    found: list[Any] = []

    def work() -> None:
        with deferred() as interrupts, interrupts.allowed():
            interrupts.poll()
            found.append(signal.getsignal(signal.SIGINT))

    with deferred() as outer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [outer]


def test_an_error_and_a_signal():
    with pytest.raises(KeyboardInterrupt) as e, deferred():
        interrupt()
        raise ZeroDivisionError
    assert isinstance(e.value.__context__, ZeroDivisionError)
    assert not isinstance(signal.getsignal(signal.SIGINT), Interrupts)


# -- a model with all that hangs on it ---------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.qkv, self.heads, self.head = nn.Linear(8, 24), 4, nn.Linear(8, 3)

    def forward(self, x):
        y = self.bn(self.a(x)).relu()
        y = (y + self.b(y)).mean((2, 3))
        q, k, v = self.qkv(y).view(len(x), 3, self.heads, -1).unbind(1)
        return self.head((q * k.softmax(-1) * v).flatten(1))


class World:
    """A model in training: optimizer, average, gradients, modes that differ from module to module."""

    def __init__(self) -> None:
        self.model, self.args = randomise(Net()), (torch.linspace(-1, 1, 64).reshape(2, 2, 4, 4),)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.average = AveragedModel(self.model)
        step(self.model, self.args, self.optimizer)
        self.model.b.eval()
        self.model.b.weight.requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        """Every number, layout, flag and attribute, by name."""
        found: dict[str, Any] = {}
        for who, model in (("model", self.model), ("average", self.average)):
            for n, t in tensors(model).items():
                grad = None if t.grad is None else t.grad.clone()
                found[f"{who} {n}"] = (t.detach().clone(), grad, t.requires_grad, t.stride(), t.is_inference())
            for n, m in model.named_modules():
                found[f"{who} module {n}"] = {k: copy.copy(v) for k, v in vars(m).items() if k[0] != "_"}
                found[f"{who} hooks {n}"] = (len(m._forward_hooks), len(m._backward_hooks))
        names = {id(p): n for n, p in self.model.named_parameters()}
        for p, s in self.optimizer.state.items():
            found[f"state {names[id(p)]}"] = copy.deepcopy(s)
        return found

    def ids(self) -> list[int]:
        return [id(t) for m in (self.model, self.average) for t in tensors(m).values()]

    def check(self, unchanged: dict[str, Any], changed: dict[str, Any], ids: list[int]) -> bool:
        """All is as before or as after; training goes on. Returns whether it changed."""
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        now = self.facts()
        same = [equal(now, unchanged), equal(now, changed)]
        assert sum(same) == 1, [k for k in now if not equal(now[k], unchanged[k])]
        assert self.ids() == ids
        assert np.isfinite(step(self.model, self.args, self.optimizer))
        self.average.update_parameters(self.model)
        self.average(*self.args).sum().backward()
        return same[1]


def requests(graph: Any) -> list[Any]:
    return [graph["a"].out == 5, graph["qkv"].out == 12]


def make_apply(world: World) -> Callable[[], Any]:
    plan = sm.Mutator(world.model, world.args).prune(constraints=requests, dry_run=True)
    return lambda: plan.apply(world.model, world.optimizer, [world.average])


def make_prune(world: World) -> Callable[[], Any]:
    mut = sm.Mutator(world.model, world.args, optimizer=world.optimizer, followers=[world.average])

    def work() -> None:
        try:
            mut.prune(constraints=requests)
        finally:
            assert mut.graph["a"].nout == world.model.a.weight.shape[0]

    return work


def make_valued(world: World) -> Callable[[], Any]:
    """A prune whose values run the model."""
    mut = sm.Mutator(world.model, world.args, optimizer=world.optimizer, followers=[world.average])
    metric = sm.values.taylor if random.random() < 0.5 else sm.values.activation
    values = metric([world.args[0]] * 3, lambda m, b: m(b).square().mean())
    return lambda: mut.prune(constraints=lambda g: [*requests(g), g["qkv"].out == 12], values=values)


def outcomes(make: Any) -> tuple[World, dict[str, Any], float]:
    """A world before, the facts after, and how long the way takes."""
    world, other = World(), World()
    work = make(other)
    start = time.perf_counter()
    work()
    return world, other.facts(), time.perf_counter() - start


# -- signals at random moments -----------------------------------------------------------------------------------------


def run_interrupted(work: Callable[[], Any], delay: float) -> bool:
    """Run it while another thread sends SIGINT; whether the signal cut it short."""

    def send() -> None:
        time.sleep(delay)
        interrupt()

    thread = threading.Thread(target=send)
    finished = False
    try:
        thread.start()
        work()
        finished = True
        thread.join()
        time.sleep(2)  # the signal is on its way, or Python dropped it while an object was collected
    except KeyboardInterrupt:
        thread.join()
    return not finished


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make", [make_apply, make_prune, make_valued])
def test_signals_at_random_moments(make):
    """After each, the model and what hangs on it are bit by bit as before, or as after a prune without signals."""
    draw = random.Random(None if NIGHTLY else 7)
    world, changed, seconds = outcomes(make)
    unchanged = world.facts()
    cut, done = 0, 0
    for _ in range(400 if NIGHTLY else 20):
        other = World()
        work, ids = make(other), other.ids()
        cut += run_interrupted(work, draw.uniform(0, 1.1 * seconds))
        if make is make_valued and not equal(other.facts(), unchanged):
            assert other.model.a.weight.shape[0] == 5  # which units stay is the metric's choice
            changed = other.facts()
        done += other.check(unchanged, changed, ids)
    assert cut >= 5


# -- an exception at every line ----------------------------------------------------------------------------------------

ROOMS = {
    str(path) for path in (Path(sm.__file__).parent / "apply").glob("*.py") if path.stem not in ("verify", "checks")
}
ROOMS.add(torch.autograd.grad_mode.__file__)


def run_until_line(work: Callable[[], Any], k: int) -> int:
    """Run it and raise before the k-th line of the rooms that change a model or the mode; how many lines have run."""
    count = 0

    def line(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == k:
                raise Injected
        return line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in ROOMS else None)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_an_exception_at_any_line_changes_nothing_or_all():
    """As an asynchronous exception may come, from a timeout say: between any two lines."""
    world = World()
    plan = sm.Mutator(world.model, world.args).prune(constraints=requests, dry_run=True)

    def apply(w: World) -> Callable[[], Any]:
        return lambda: plan.apply(w.model, w.optimizer, [w.average], verify=None)

    other = World()
    lines = run_until_line(apply(other), 0)
    unchanged, changed = world.facts(), other.facts()
    assert lines > 500
    for k in range(1, lines + 1, 1 if NIGHTLY else 11):
        if k == 1 or k > lines - 12:  # what was put back serves for the next exception
            other = World()
        ids = other.ids()
        with pytest.raises(Injected):
            run_until_line(apply(other), k)
        assert torch.is_grad_enabled()
        now = other.facts()
        assert other.ids() == ids
        assert equal(now, unchanged) or (k > lines - 12 and equal(now, changed)), k
    other.check(unchanged, changed, other.ids())
