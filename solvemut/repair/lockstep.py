"""Lockstep: several forwards under way at once, each in a thread of its own, of which only one runs at a time.

A forward cannot be left half way and taken up again, but the thread that it runs in can wait: it stops where it is
told to, and goes on when it is asked.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..interrupts import deferred

Pause = Callable[[Any], None]
Body = Callable[[Pause], Any]
Enter = Callable[[], contextlib.AbstractContextManager[Any]]


class Ended(BaseException):
    """Raised inside a forward that is not to go on; a model that catches Exception lets it through."""


class Walk:
    """A function in a thread of its own that stops at each `pause(value)`.

    >>> walk = Walk(lambda pause: [pause(k) for k in range(2)], contextlib.nullcontext)
    >>> walk.step(), walk.step(), walk.step()
    (0, 1, None)
    """

    def __init__(self, body: Body, enter: Enter) -> None:
        self._body, self._enter = body, enter
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._ended = False
        # a context of the caller's own, as variables in it would otherwise be at their defaults
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._run,), daemon=True)

    def step(self) -> Any:
        """Go on to the next stop: what it stops with; None at the end. Raises what the function raises."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._told.put(None)
        value, error = self._said.get()
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """Let it not go on from where it waits, or from its next stop if it is running."""
        self._ended = True
        self._told.put(None)

    def join(self) -> None:
        """Wait until its thread is over."""
        if self._thread.ident is not None:
            self._thread.join()

    def _pause(self, value: Any) -> None:
        if not self._ended:  # a model may have caught the exception that ends it
            self._said.put((value, None))
            del value
            self._told.get()
        if self._ended:
            raise Ended

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self._enter():
                self._body(self._pause)
        except Ended:
            pass
        except BaseException as e:
            error = e
        self._said.put((None, error))


@contextlib.contextmanager
def walking(bodies: Sequence[Body], enter: Enter) -> Iterator[list[Walk]]:
    """Functions to step through, within `enter` each; however this is left, their threads are over afterwards."""
    walks = [Walk(body, enter) for body in bodies]
    with deferred() as interrupts:
        try:
            with interrupts.allowed():
                yield walks
        finally:
            for walk in walks:
                walk.end()
            for walk in walks:
                walk.join()


def torch_settings(devices: Sequence[torch.device]) -> Enter:
    """What torch is set to in this thread, to be entered in others: autocast, default device, stream; no gradients.

    Casts of weights are not cached, since weights are about to change.
    """
    kinds = [k for k in dict.fromkeys(["cpu", *(d.type for d in devices)]) if torch.amp.is_autocast_available(k)]
    casts = [(k, torch.get_autocast_dtype(k)) for k in kinds if torch.is_autocast_enabled(k)]
    stream = torch.cuda.current_stream() if any(d.type == "cuda" for d in devices) else None
    default = torch.get_default_device()

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            if torch.get_default_device() != default:
                stack.enter_context(default)
            for kind, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
            yield

    return entered
