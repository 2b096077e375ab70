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
    """A callback for `Program.solve` that shows incumbent, bound and gap."""

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
        now = time.monotonic()
        if now - self.start < PATIENCE or now - self.last < 0.5:
            return
        self.last = now
        text = f"incumbent {_number(progress.incumbent)}, bound {_number(progress.bound)}, gap {_number(progress.gap)}"
        if not self.show:
            log.info("%s after %.1f s", text, progress.seconds)
            return
        if self.bar is None:
            self.bar = _bar()
        if self.bar is not None:
            self.bar.set_description_str(text)
            self.bar.update()


def counted(items: Iterable[T], what: str, show: bool | None = None) -> Iterator[T]:
    """The items one by one; where they take longer, a bar on a terminal, or log lines, say how far it is."""
    show = sys.stderr.isatty() if show is None else show
    total = len(items) if isinstance(items, Sized) else None
    start = last = time.monotonic()
    bar: Any = None
    try:
        for k, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - start < PATIENCE or now - last < 0.5:
                continue
            last = now
            text = f"{what}: {k}" + (f" of {total}, {(now - start) * (total / k - 1):.0f} s left" if total else "")
            bar = bar or (_bar() if show else None)
            if bar is None:
                log.info("%s", text)
            else:
                bar.set_description_str(text)
                bar.update()
    finally:
        if bar is not None:
            bar.close()


def _bar() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(bar_format="{desc} [{elapsed}]", file=sys.stderr, leave=False)


def _number(x: Any) -> str:
    return "none" if x is None else f"{float(x):.6g}"
