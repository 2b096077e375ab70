"""Least squares: what is left of a model is fitted, layer by layer, to what the unpruned model does."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .. import batches as runs
from ..arguments import real, whole
from ..errors import ValuesError
from ..interrupts import deferred
from ..plan import PlanRecord
from .lockstep import Enter, torch_settings
from .measure import Measure, better, held, modules_of
from .passes import OutOfStep, in_lockstep, streamed
from .report import Report
from .rows import Sample
from .solving import Ledger, Solving
from .survey import Survey, tasks_of

THREADS = 4096  # at most, as each forward under way has the threads of its operations besides its own
UNDONE = "undone: with it the model was worse than before"


@dataclass(frozen=True)
class LeastSquares:
    """See `least_squares`."""

    batches: Iterable[Any] = field(repr=False)
    loss: runs.Loss | None = None
    ridge: float = 1e-4
    positions: int | None = 64
    seed: int = 0
    memory: int = 2**31
    name: str = field(default="least squares", init=False)

    def __call__(self, model: nn.Module, teacher: nn.Module, plan: PlanRecord) -> Report:
        """Change the model in place, all or nothing; the teacher is the model before `plan` was applied."""
        start = time.monotonic()
        model, teacher = modules_of(model, teacher, plan)
        enter = torch_settings([p.device for p in model.parameters()])
        ledger = Ledger()
        with deferred() as interrupts, enter():
            try:
                with runs.evaluated(model), runs.evaluated(teacher):
                    found = _Run(self, model, teacher, plan, enter, ledger).run()
                interrupts.poll()
            except BaseException:
                ledger.keep(0)
                raise
            finally:
                torch.clear_autocast_cache()
        return replace(found, seconds=time.monotonic() - start)


class _Run:
    """One repair of one model."""

    def __init__(
        self,
        how: LeastSquares,
        model: nn.Module,
        teacher: nn.Module,
        plan: PlanRecord,
        enter: Enter,
        ledger: Ledger,
    ) -> None:
        self.how, self.model, self.teacher, self.plan = how, model, teacher, plan
        self.enter, self.ledger = enter, ledger
        self.batches = held(how.batches, how.memory)
        self.measure = Measure(self.batches, how.loss, teacher, how.memory)
        self.survey, self.of_teacher = Survey(), Survey()

    def run(self) -> Report:
        before = self.measure.of(self.model, lambda k: self.survey.watch(self.model))
        with self.of_teacher.watch(self.teacher):
            runs.run(self.teacher, next(iter(self.batches)), self.how.loss)
        solving = self._solved()
        after = self.measure.of(self.model) if self.ledger.layers else before
        count = len(self.ledger.layers) if better(after, before) else self._undo(before)
        if count < len(self.ledger.layers):
            after = self.measure.of(self.model) if count else before
        stand = {name for name, _ in self.ledger.layers[:count]}
        rows = [r if not r.kept or r.name in stand else replace(r, kept=False, note=UNDONE) for r in solving.rows]
        return Report(self.how.name, before, after, tuple(rows), {**self.left, **solving.left})

    def _solved(self) -> Solving:
        """The layers, solved in lockstep where that can be done."""
        tasks, self.left = tasks_of(self.model, self.survey, self.of_teacher)
        sample = Sample(self.how.positions, self.how.seed, self.measure.examples)

        def solving() -> Solving:
            indices = self.plan.indices
            return Solving(
                self.model, self.teacher, indices, tasks, sample, self.how.ridge, self.how.memory, self.ledger
            )

        if isinstance(self.batches, list) and self._lockstep(len(self.batches)):
            try:
                found = solving()
                in_lockstep(found, self.model, self.teacher, self.batches, self.how.loss, self.enter)
                return found
            except OutOfStep:
                self.ledger.clear()
        found = solving()
        streamed(found, self.model, self.teacher, self.batches, self.how.loss)
        return found

    def _lockstep(self, n: int) -> bool:
        """Whether all batches may be under way at once: what is alive of each is some three times its largest layer."""
        surveys = (self.survey, self.of_teacher)
        alive = 3 * n * sum(survey.largest for survey in surveys)
        few = 2 * n * torch.get_num_threads() <= THREADS
        return few and self.survey.alike and not any(s.stateful for s in surveys) and alive <= self.how.memory

    def _undo(self, before: float) -> int:
        """How many of the repaired layers stand: by bisection, the last ones go first."""
        good, bad = 0, len(self.ledger.layers)
        while bad - good > 1:
            middle = (good + bad) // 2
            self.ledger.keep(middle)
            if better(self.measure.of(self.model), before):
                good = middle
            else:
                bad = middle
        self.ledger.keep(good)
        return good


def least_squares(
    batches: Iterable[Any],
    loss: runs.Loss | None = None,
    ridge: float = 1e-4,
    positions: int | None = 64,
    seed: int = 0,
    memory: int = 2**31,
) -> LeastSquares:
    """A repair without training: each layer's weights and bias are those that best give what the unpruned model gives.

    Called with the pruned model, the unpruned one (the teacher) and the plan, it goes through the linear maps
    (`nn.Linear`, convolutions, transposed ones, projections of attention, also where functions are called) in the order
    in which they run. Inputs are those of the pruned model, repaired up to there; targets are the teacher's outputs
    that stay. Norms, and units that are new, stay as they are.

    `batches` are run as `values.taylor` runs them. `loss` says how good the model is on them, as there; without one it
    is the mean squared distance of the outputs to the teacher's. The repaired model is no worse by it: else layers are
    undone, the last ones first. `ridge`: how much the weights that stand count, as a share of the mean square of the
    inputs, summed over rows. `positions`: of each example at most so many positions count, drawn with `seed`, and no
    more than give 32 rows for each column; None: all. `memory`: bytes; where it does not suffice to have all batches
    under way at once, each layer takes a run of its own.

    Raises ValuesError for arguments that make no sense, and PlanMismatchError for a plan of another model. Whatever is
    raised, Ctrl-C included, the model is as it was.

    >>> import copy
    >>> import solvemut as sm
    >>> teacher = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> model, x = copy.deepcopy(teacher), torch.randn(64, 8)
    >>> plan = sm.prune(model, x, params=0.7)
    >>> report = least_squares([x])(model, teacher, plan)
    >>> report.after < report.before, report.kept
    (True, ('2.weight',))

    He et al., Channel Pruning for Accelerating Very Deep Neural Networks, arXiv 1707.06168; Frantar and Alistarh,
    Optimal Brain Compression, arXiv 2208.11580, for the second-order view of the same problem.
    """
    runs.check("least_squares", batches, loss)
    if real(ridge, "ridge", "give a number of at least 0", ValuesError) < 0:
        raise ValuesError(f"ridge: give a number of at least 0, not {ridge}")
    if positions is not None:
        positions = whole(positions, "positions", least=1, error=ValuesError)
    seed, memory = whole(seed, "seed", error=ValuesError), whole(memory, "memory", least=0, error=ValuesError)
    return LeastSquares(batches, loss, float(ridge), positions, seed, memory)
