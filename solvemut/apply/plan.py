"""Apply: a plan changes modules and optimizer state in place, all or nothing.

Every new tensor is built and checked first; then the plan's edits are made, one by one; then its selection: tensors are
swapped inside the parameters the model and the optimizer already share, so that ties, hooks and parameter groups stay;
then the changed model is held against the plan. Whatever fails on the way, Ctrl-C included, the old tensors, attributes
and state are put back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..interrupts import deferred
from ..plan import PlanRecord
from ..tracing import forget_compiled, unwrapped
from .attributes import make_edits, put_modules, repeat_sizes
from .checks import changes_of
from .followers import about_follower, followed
from .initialise import Init, check_init
from .optimizer import (
    Optimizers,
    adopt_parameters,
    check_optimizers,
    forget_parameters,
    optimizers_of,
    reset_notice,
    state_steps,
)
from .swap import swap_of
from .tensors import Change, Undo
from .verify import check_how, forget_memos, verify_program


class Plan(PlanRecord):
    """A solved mutation, printable, saved as JSON, and applied in place."""

    def apply(
        self,
        model: nn.Module,
        optimizer: Optimizers = None,
        followers: Sequence[nn.Module] = (),
        verify: str | None = "program",
        init: Init | None = None,
    ) -> nn.Module:
        """Change `model` and the state of `optimizer` in place, all or nothing; returns the model.

        `optimizer` is one or a list of them; each of `followers` is a copy of the model that changes with it, such as a
        torch.optim.swa_utils.AveragedModel. New units are read with zeros and made with small random values, as their
        layer draws them at first; `init` draws them otherwise: from a parameter's name and new shape. Copies (`copies`)
        hold what their source does. Raises PlanMismatchError, with nothing changed, if the plan was made for another
        model, or an optimizer or a follower belongs to another.
        """
        check_how(verify)
        check_init(init)
        given, model = model, unwrapped(model)
        models = [model, *followed(self, model, followers)]
        optimizers = optimizers_of(optimizer)
        grad = torch.is_grad_enabled()
        try:  # inference tensors could not be trained any more, so what is built is built outside inference mode
            with deferred() as interrupts, torch.inference_mode(False), torch.no_grad():
                _change(self, models, optimizers, verify, interrupts.poll, init)
        finally:
            torch.set_grad_enabled(grad)
        forget_compiled(given)
        return given


def _change(
    plan: PlanRecord,
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    verify: str | None,
    poll: Callable[[], None],
    init: Init | None,
) -> None:
    """All steps, or none; an interrupt is heard at each `poll`."""
    undo: Undo = []
    parameters = [p for m in models for p in m.parameters()]
    try:
        put_modules(plan, models, undo)
        changes = changes_of(plan, models)
        check_optimizers(optimizers, changes, parameters, plan.root)
        notices = [n for optimizer in optimizers if (n := reset_notice(optimizer, changes))]
        steps = [swap_of(change, _owner(models[0], change), init) for change in changes]
        steps += [step for optimizer in optimizers for step in state_steps(optimizer, changes)]
        make_edits(plan, models, undo)
        known = {id(p) for p in parameters}
        forget_parameters(models, known, optimizers, undo)
        notices += adopt_parameters(models[0], known, optimizers, undo)
        for step in steps:
            poll()
            step(undo)
        repeat_sizes(models, undo)
        for k, model in enumerate(models):
            poll()
            with about_follower(k - 1):
                verify_program(plan, model, verify)
                forget_memos(plan, model, undo)
        for notice in notices:
            warnings.warn(notice, stacklevel=4)
        poll()
    except BaseException:
        _put_back(undo)
        raise


def _owner(model: nn.Module, change: Change) -> nn.Module:
    return model.get_submodule(change.name.rpartition(".")[0])


def _put_back(undo: Undo) -> None:
    """Every step back, the last first; an exception that comes from outside is raised when all is done."""
    late: BaseException | None = None
    for back in reversed(undo):
        try:
            back()
        except BaseException as e:
            late = e
            back()
    if late is not None:
        raise late
