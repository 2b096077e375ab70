"""Measure: how good a model is on the calibration batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .. import batches as runs
from ..errors import PlanMismatchError, ValuesError
from ..plan import PlanRecord
from ..precision import wide
from ..tracing import unwrapped

Around = Callable[[int], contextlib.AbstractContextManager[Any]]


def modules_of(model: nn.Module, teacher: nn.Module, plan: PlanRecord) -> tuple[nn.Module, nn.Module]:
    """The model and its teacher below their wrappers. Raises where they cannot be what they are said to be."""
    if not isinstance(plan, PlanRecord):
        raise PlanMismatchError("repair: the plan that was applied comes third")
    model, teacher = unwrapped(model), unwrapped(teacher)
    own = {id(p) for p in model.parameters()}
    if any(id(p) in own for p in teacher.parameters()):
        raise ValuesError("repair: the teacher shares parameters with the model; give a copy made before the cut")
    return model, teacher


def bytes_in(tree: Any) -> int:
    """How many bytes the tensors in nested containers hold."""
    return sum(x.numel() * x.element_size() for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor))


def held(batches: Iterable[Any], memory: int) -> Iterable[Any]:
    """The batches as a list, so that each run sees the same ones; a loader of more than a quarter of `memory` stays."""
    batches, found, total = runs.again(batches), [], 0
    for batch in batches:
        found.append(batch)
        total += bytes_in(batch)
        if 4 * total > memory and not isinstance(batches, list):
            return batches
    if not found:
        raise ValuesError(runs.NO_BATCH)
    return found


class Measure:
    """A loss, or without one the mean squared distance of a model's outputs to the teacher's."""

    def __init__(self, batches: Iterable[Any], loss: runs.Loss | None, teacher: nn.Module, memory: int) -> None:
        self.batches, self.loss, self.teacher = batches, loss, teacher
        self.room = memory // 4 if isinstance(batches, list) else 0
        self.known: dict[int, list[torch.Tensor]] = {}  # the teacher's outputs, as far as there is room

    def of(self, model: nn.Module, around: Around | None = None) -> float:
        """The number for a model in eval mode; the forward of batch k runs within `around(k)`."""
        total, n, self.examples = 0.0, 0, 0
        for k, batch in enumerate(self.batches):
            self.examples += runs.examples_in(batch)
            with contextlib.nullcontext() if around is None else around(k):
                if self.loss is None:
                    out = runs.forward(model, batch)
                else:
                    size = runs.examples_in(batch)
                    total += size * float(runs.value_of(self.loss, model, batch))
            if self.loss is None:
                distance, size = _distance(_floats(out), self.wanted(k, batch))
                total += distance
            n += size
        if n == 0:
            raise ValuesError(runs.NO_BATCH)
        return total / n

    def wanted(self, k: int, batch: Any) -> list[torch.Tensor]:
        """What the teacher makes of a batch."""
        if k in self.known:
            return self.known[k]
        found = _floats(runs.forward(self.teacher, batch))
        self.room -= bytes_in(found)
        if self.room >= 0:
            self.known[k] = found
        return found


def _floats(out: Any) -> list[torch.Tensor]:
    found = [x.detach() for x in runs.floats(out)]
    if not found:
        raise ValuesError("the model puts out no tensors of floats to be compared with the teacher's; give a loss")
    return found


def _distance(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> tuple[float, int]:
    """The sum of squares, and of how many."""
    if [x.shape for x in found] != [x.shape for x in wanted]:
        raise ValuesError("the model puts out other shapes than the teacher; give a loss")
    total = sum(float((wide(a) - wide(b)).square().sum()) for a, b in zip(found, wanted, strict=True))
    return total, sum(x.numel() for x in found)


def better(after: float, before: float) -> bool:
    """Whether a number is no worse than before; one that is not finite is worse."""
    return after <= before and after - after == 0
