"""Progress of whatever takes longer: a bar on a terminal after a few seconds (with tqdm), log lines otherwise."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

from .program import Progress

T = TypeVar("T")
log = logging.getLogger("solvemut")
PATIENCE = 3.0  # seconds before anything is shown


class Reporter:
    """Says how far something is; as a callback for `Program.solve`: incumbent, bound and gap."""

    def __init__(self, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() if show is None else show
        self.start = self.last = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, progress: Progress) -> None:
        if self.is_due():
            found = {"incumbent": progress.incumbent, "bound": progress.bound, "gap": progress.gap}
            self.tell(", ".join(f"{k} {_number(x)}" for k, x in found.items()))

    def is_due(self) -> bool:
        """Whether it is time to say something."""
        now = time.monotonic()
        due = now - self.start >= PATIENCE and now - self.last >= 0.5
        self.last = now if due else self.last
        return due

    def tell(self, text: str) -> None:
        """Say it, on the bar or in the log."""
        if not self.show:
            log.info("%s after %.1f s", text, time.monotonic() - self.start)
            return
        if self.bar is None:  # a bar without an end has no truth value
            self.bar = _bar()
        if self.bar is not None:
            self.bar.set_description_str(text)
            self.bar.update()


def counted(items: Iterable[T], what: str, show: bool | None = None) -> Iterator[T]:
    """The items one by one; where they take longer, a bar on a terminal, or log lines, say how far it is."""
    total = len(items) if isinstance(items, Sized) else None
    with Reporter(show) as reporter:
        for k, item in enumerate(items, 1):
            yield item
            if reporter.is_due():
                left = (time.monotonic() - reporter.start) * (total / k - 1) if total else 0.0
                reporter.tell(f"{what}: {k}" + (f" of {total}, {left:.0f} s left" if total else ""))


def _bar() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(bar_format="{desc} [{elapsed}]", file=sys.stderr, leave=False)


def _number(x: Any) -> str:
    return "none" if x is None else f"{float(x):.6g}"
