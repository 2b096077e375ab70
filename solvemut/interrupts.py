"""Interrupts: Ctrl-C waits while something is half done, and comes at the places that can bear it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A handler of SIGINT that notes the signal for the handler whose place it takes."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any] | None) -> None:
        self.previous = previous
        self._noted: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._noted = number, frame

    def poll(self) -> None:
        """A safe point: a signal that was noted takes effect here, as a rule by raising KeyboardInterrupt."""
        noted, self._noted = self._noted, None
        if noted is not None and self.previous is not None:
            self.previous(*noted)

    def allowed(self) -> Allowed:
        """Within it signals take effect at once, for the caller's own code inside a deferred stretch."""
        return Allowed(self)


class Allowed:
    """See `Interrupts.allowed`. A class, as a generator that is left half way ends only when it is collected."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts

    def __enter__(self) -> None:
        if self.interrupts.previous is not None:
            signal.signal(signal.SIGINT, self.interrupts.previous)
        self.interrupts.poll()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        if self.interrupts.previous is not None:
            signal.signal(signal.SIGINT, self.interrupts)


@contextlib.contextmanager
def deferred() -> Iterator[Interrupts]:
    """Within it SIGINT is noted and takes effect at `poll()`, or at the end, with the handler of before in place again.

    Signals reach the main thread alone, and only where Python handles them; elsewhere nothing is installed. One
    deferred stretch inside another is part of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts(None)
        return
    now = signal.getsignal(signal.SIGINT)
    if isinstance(now, Interrupts) or not callable(now):
        yield now if isinstance(now, Interrupts) else Interrupts(None)
        return
    interrupts = Interrupts(now)
    try:
        signal.signal(signal.SIGINT, interrupts)
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, now)
        interrupts.poll()


class Heard:
    """Within it Ctrl-C raises as ever, and is remembered: Python drops what is raised while an object is collected."""

    def __init__(self) -> None:
        self.heard = False
        self.previous: Any = None

    def __enter__(self) -> Heard:
        now = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(now):
            self.previous = now
            signal.signal(signal.SIGINT, self)
        return self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.previous(number, frame)
        except KeyboardInterrupt:
            self.heard = True
            raise

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
