"""Batch norm: the running statistics of a changed model, estimated anew."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import batches as runs
from ..interrupts import deferred
from ..plan import PlanRecord
from .lockstep import torch_settings
from .measure import Measure, better, held, modules_of
from .report import Repaired, Report

MEMORY = 2**31  # bytes: of more than a quarter of it, batches and the teacher's outputs are not kept


@dataclass(frozen=True)
class BatchNorm:
    """See `batch_norm`."""

    batches: Iterable[Any] = field(repr=False)
    loss: runs.Loss | None = None
    name: str = field(default="batch norm", init=False)

    def __call__(self, model: nn.Module, teacher: nn.Module, plan: PlanRecord) -> Report:
        """Change the model in place, all or nothing; the teacher is the model before `plan` was applied."""
        start = time.monotonic()
        model, teacher = modules_of(model, teacher, plan)
        norms = {
            name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        }
        enter = torch_settings([p.device for p in model.parameters()])
        with deferred() as interrupts, enter():
            with runs.evaluated(model), runs.evaluated(teacher):
                before, after, found = self._measured(model, teacher, norms)
            interrupts.poll()  # evaluated has put the old statistics back
            note = "" if better(after, before) else "undone: with it the model was worse than before"
            rows = [Repaired(name, None, None, not note, note) for name in found]
            for name, statistics in found.items() if not note else ():
                for old, new in zip(_statistics(norms[name]), statistics, strict=True):
                    old.copy_(new)
        left = {name: "it is never called" for name in norms if name not in found}
        return Report(self.name, before, after if not note else before, tuple(rows), left, time.monotonic() - start)

    def _measured(
        self, model: nn.Module, teacher: nn.Module, norms: dict[str, _BatchNorm]
    ) -> tuple[float, float, dict[str, list[torch.Tensor]]]:
        """The number before and after, and the statistics of the norms that are called."""
        batches = held(self.batches, MEMORY)
        measure = Measure(batches, self.loss, teacher, MEMORY)
        before = measure.of(model)
        saved = {name: [t.clone() for t in _statistics(norm)] for name, norm in norms.items()}
        momenta = {name: norm.momentum for name, norm in norms.items()}
        called: set[str] = set()
        handles = [norm.register_forward_hook(lambda *_, k=name: called.add(k)) for name, norm in norms.items()]
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # type: ignore[assignment]  # a cumulative average
                norm.train()
            for batch in batches:
                runs.run(model, batch, self.loss)
        finally:
            for name, norm in norms.items():
                norm.momentum = momenta[name]
                norm.eval()
            for handle in handles:
                handle.remove()
        for name in norms.keys() - called:
            for t, old in zip(_statistics(norms[name]), saved[name], strict=True):
                t.copy_(old)
        found = {name: [t.clone() for t in _statistics(norm)] for name, norm in norms.items() if name in called}
        return before, measure.of(model) if found else before, found


def _statistics(norm: _BatchNorm) -> list[torch.Tensor]:
    """The running mean and variance; how many batches were tracked in training stays."""
    assert norm.running_mean is not None and norm.running_var is not None
    return [norm.running_mean, norm.running_var]


def batch_norm(batches: Iterable[Any], loss: runs.Loss | None = None) -> BatchNorm:
    """A repair without training: running means and variances of all batch norms become those of the changed model.

    They are averages over the batches of what each norm gets, in train mode, while all other layers are in eval mode.
    `loss` is as in `least_squares`: if the model is worse by it, all statistics stay as they were.

    >>> import copy
    >>> import solvemut as sm
    >>> teacher = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    >>> x = torch.randn(256, 8)
    >>> batch_norm([x], loss=lambda out: out.square().mean())  # doctest: +ELLIPSIS
    BatchNorm(loss=<function ...>, name='batch norm')

    Raises ValuesError for batches that cannot be run through. Whatever is raised, the model is as it was.
    """
    runs.check("batch_norm", batches, loss)
    return BatchNorm(batches, loss)
