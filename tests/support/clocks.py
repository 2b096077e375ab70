"""A clock that is known, for tests of latency: nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class FakeClock:
    """A device on which a call takes what a function of its key and sizes says, in nanoseconds."""

    name, device = "a clock of wood", None

    def __init__(self, nanoseconds: Callable[[str, tuple[int, ...]], float], stop_after: int | None = None) -> None:
        self.nanoseconds, self.stop_after, self.passes = nanoseconds, stop_after, 0

    def laps(self, calls: Sequence[Any]) -> list[float]:
        self.passes += 1
        if self.stop_after is not None and self.passes > self.stop_after:
            raise KeyboardInterrupt
        return [self.nanoseconds(c.key, c.sizes) * 1e-9 for c in calls]

    def run(self, forward: Any) -> float:
        raise AssertionError("no device: nothing runs")


def linear(key: str, sizes: tuple[int, ...]) -> float:
    """Bilinear in the sizes, so that a grid of any kind gives it back."""
    return 1000.0 + 10 * sum(sizes) + 100 * float(np.prod(sizes))


def saw(key: str, sizes: tuple[int, ...]) -> float:
    """Up and down: what is smaller may take longer."""
    return 1000.0 + sum((n * 37) % 11 * 50 + n for n in sizes)
