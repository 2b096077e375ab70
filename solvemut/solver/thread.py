"""A solve beside the main thread: signals and callbacks go on while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import Any

from .certificate import Request
from .clock import Clock

LOOK = 0.05  # seconds between two looks at a running solve


def in_thread(
    work: Callable[[], Any], request: Request, stop: Callable[[], None] | None = None, patience: float = inf
) -> Any:
    """What ``work`` returns, or raises. Where there is no way to ``stop`` it, it may be left behind: None.

    That is when somebody asks to stop, or when ``patience`` (seconds) is over. A solve that can be stopped is waited
    for, and told so again and again, as it may not have begun yet. It is waited for by an event: a Thread.join that
    Ctrl-C breaks off takes a running thread for ended (CPython 3.11).
    """
    result: list[Any] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    end = Clock(patience)
    while not done.is_set():
        try:
            if done.wait(LOOK):
                break
            request.tick()
        except KeyboardInterrupt:
            request.clock.interrupt()
        if stop is None and (request.clock.stopped or end.over):
            return None
        if stop is not None and request.clock.stopped:
            stop()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]
