"""Clocks: a device, and how calls on it are timed. A clock of your own needs `name`, `device` and `laps`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from .samples import Call


class Clock(Protocol):
    """What times calls: `name` is the device in words, by which tables are told apart; None as device: nothing runs."""

    name: str
    device: torch.device | None

    def laps(self, calls: Sequence[Call]) -> list[float]:
        """Seconds that each of these calls takes, one after the other, as in one forward."""
        ...

    def run(self, forward: Callable[[], object]) -> float:
        """Seconds of one run of a whole model."""
        ...


class CpuClock:
    """The processor, with as many threads as torch has now.

    One thread is timed by the time that it has had the processor, so that what others take from it does not count: on
    a machine with nothing else to do that is the time that passes. Several threads are timed by the time that passes.
    """

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        self.device: torch.device | None = torch.device("cpu")
        self.name = f"{_processor()}, {threads} thread{'s' * (threads != 1)}"
        self.now = time.thread_time_ns if threads == 1 else time.perf_counter_ns

    def laps(self, calls: Sequence[Call]) -> list[float]:
        now = self.now
        found, out = [], None
        for call in calls:
            call.touch()
            start = now()
            out = call()
            found.append((now() - start) * 1e-9)
        del out
        return found

    def run(self, forward: Callable[[], object]) -> float:
        now = self.now
        start = now()
        forward()
        return (now() - start) * 1e-9


class CudaClock:
    """A CUDA device, timed by its own events, so that what the processor does meanwhile counts only where it waits."""

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device | None = device
        self.name = torch.cuda.get_device_name(device)

    def laps(self, calls: Sequence[Call]) -> list[float]:
        marks = []
        with torch.cuda.device(self.device):
            for call in calls:
                call.touch()
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                pair[0].record()
                call()
                pair[1].record()
                marks.append(pair)
            torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e-3 for a, b in marks]

    def run(self, forward: Callable[[], object]) -> float:
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            forward()
            end.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


def clock_of(device: torch.device) -> Clock:
    """The clock of a device of torch's."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _processor() -> str:
    """The processor in words, with what tells two of one name apart in speed."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name
    told = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines)) if v}
    if "model name" not in told:
        return name
    return f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
