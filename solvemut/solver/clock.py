"""When to stop: a deadline, or somebody asking to."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic


class CutShort(Exception):
    """A computation was stopped before it came through."""


@dataclass
class Asked:
    """Whether somebody asked to stop, and whether by Ctrl-C."""

    stopped: bool = False
    interrupted: bool = False


class Clock:
    """When to stop: a deadline, or somebody asking to. Parts of a clock share the asking."""

    def __init__(self, limit: float, asked: Asked | None = None) -> None:
        self.limit, self.start = limit, monotonic()
        self._asked = Asked() if asked is None else asked

    def stop(self) -> None:
        """Stop this clock and all it is part of."""
        self._asked.stopped = True

    def interrupt(self) -> None:
        """Stop, and remember that it was for Ctrl-C: whoever catches a KeyboardInterrupt says so here."""
        self._asked.interrupted = self._asked.stopped = True

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self._asked.stopped

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._asked.interrupted

    @property
    def seconds(self) -> float:
        """Time spent."""
        return monotonic() - self.start

    @property
    def left(self) -> float:
        """Time left, never below 0."""
        return 0.0 if self.stopped else max(0.0, self.limit - self.seconds)

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self.left <= 0.0

    def part(self, seconds: float) -> Clock:
        """A clock for a step that may take at most so long."""
        return Clock(min(self.left, seconds), self._asked)
