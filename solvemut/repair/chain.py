"""Chain: repairs one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..arguments import shown
from ..errors import ValuesError
from ..interrupts import deferred
from ..plan import PlanRecord
from .report import Report

Repair = Callable[[nn.Module, nn.Module, PlanRecord], Any]


def name_of(repair: Any) -> str:
    """How a repair is called in print."""
    return str(getattr(repair, "name", None) or getattr(repair, "__name__", None) or type(repair).__name__)


@dataclass(frozen=True)
class Chain:
    """Repairs one after the other, all or nothing: if one fails, what those before it did is undone."""

    parts: tuple[Repair, ...] = ()

    @property
    def name(self) -> str:
        """The names of the parts."""
        return ", ".join(map(name_of, self.parts)) or "none"

    def __call__(self, model: nn.Module, teacher: nn.Module, plan: PlanRecord) -> Report:
        start = time.monotonic()
        tensors = [*model.parameters(), *model.buffers()] if len(self.parts) > 1 else []
        reports = []
        with deferred() as interrupts:
            saved = [t.detach().clone() for t in tensors]
            try:
                with interrupts.allowed():
                    for part in self.parts:
                        found = part(model, teacher, plan)
                        if isinstance(found, Report):
                            reports.append(found)
            except BaseException:
                with torch.no_grad():
                    for t, old in zip(tensors, saved, strict=True):
                        t.copy_(old)
                raise
        return _together(self.name, reports, time.monotonic() - start)


def _together(name: str, reports: Sequence[Report], seconds: float) -> Report:
    """From the first loss that was measured to the last one."""
    layers = tuple(layer for r in reports for layer in r.layers)
    left = {k: why for r in reports for k, why in r.left.items()}
    measured = [r for r in reports if r.before == r.before or r.after == r.after]
    before, after = (measured[0].before, measured[-1].after) if measured else (float("nan"), float("nan"))
    return Report(name, before, after, layers, left, seconds)


none = Chain()


def chain(*repairs: Any) -> Chain:
    """Repairs one after the other; None and lists of repairs count too.

    >>> chain(None, none).name
    'none'
    """
    parts: list[Repair] = []
    for repair in repairs:
        found = repair_of(repair)
        parts += found.parts if isinstance(found, Chain) else [found]
    return Chain(tuple(parts))


def repair_of(x: Any) -> Repair:
    """A repair from what a caller gives: a repair, a list of them, or None for none. Raises ValuesError for others."""
    if x is None:
        return none
    if isinstance(x, (list, tuple)):
        return chain(*x)
    if isinstance(x, type) or not callable(x):
        raise ValuesError(f"repair: give a repair such as sm.repair.least_squares(batches), or a list, not {shown(x)}")
    found: Repair = x
    return found
