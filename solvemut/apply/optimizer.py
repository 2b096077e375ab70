"""Optimizers: their state follows the tensors that a plan changes, or is refused or reset in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree as pytree

from ..errors import PlanMismatchError, RequestError
from .tensors import Change, Step, Undo, follows, select

Optimizers = Optimizer | Sequence[Optimizer] | None


def optimizers_of(given: Optimizers) -> list[Optimizer]:
    """What the caller gave as a list. Raises RequestError for what is no optimizer."""
    if given is None:
        return []
    found = [given] if isinstance(given, Optimizer) else given
    if not isinstance(found, Sequence):
        found = [found]  # type: ignore[unreachable]
    for one in found:
        if not isinstance(one, Optimizer):
            what = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            raise RequestError(f"optimizer={what}: give a torch.optim.Optimizer or a list of them")
    return list(dict.fromkeys(found))


def check_optimizers(
    optimizers: Sequence[Optimizer], changes: Sequence[Change], parameters: Collection[torch.Tensor], root: str
) -> None:
    """Raises PlanMismatchError if an optimizer belongs to another model, or has state that cannot follow."""
    ours = {id(p) for p in parameters}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if ours.isdisjoint(id(p) for p in _held(optimizer)):
            raise PlanMismatchError(
                f"this {name} holds none of the parameters of {root}: it was made for another model, or before the "
                "parameters were replaced; give the optimizer that trains this one"
            )
        if not isinstance(optimizer, LBFGS):
            _check_state(optimizer, name, changes)


def state_steps(optimizer: Optimizer, changes: Sequence[Change]) -> Iterator[Step]:
    """The steps that make an optimizer's state follow; all new state exists before the first of them runs."""
    if isinstance(optimizer, LBFGS):
        if _is_flat_over(optimizer, changes):
            yield _reset(optimizer)
        return
    for change in changes:
        if change.tensor in optimizer.state:
            state = optimizer.state[change.tensor]
            moved = {key: _moved(key, value, change) for key, value in state.items() if _large(value, key, change)}
            yield _swap_state(state, moved)


def reset_notice(optimizer: Optimizer, changes: Sequence[Change]) -> str | None:
    """What to tell the user if state is given up."""
    if not (isinstance(optimizer, LBFGS) and optimizer.state and _is_flat_over(optimizer, changes)):
        return None
    return (
        f"{type(optimizer).__name__} keeps one history over all parameters, of gradients of the network before the "
        "change; it was reset, so the next step goes along the gradient"
    )


def _held(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


# -- state by parameter ------------------------------------------------------------------------------------------------


def _check_state(optimizer: Optimizer, name: str, changes: Sequence[Change]) -> None:
    for change in changes:
        state = optimizer.state.get(change.tensor, {})
        for key, value in (state if isinstance(state, dict) else {"state": state}).items():
            for t in _large(value, key, change):
                if not (isinstance(state, dict) and follows(t, change.before)):
                    raise PlanMismatchError(
                        f"the optimizer's {key} of {change.name} ({name}) has shape {tuple(t.shape)}, which does not "
                        f"follow {tuple(change.before)}; remove that state first"
                    )
    for key, value in optimizer.state.items():
        if not isinstance(key, torch.Tensor) and _large(value):
            raise PlanMismatchError(
                f"the optimizer's {key!r} ({name}) belongs to no single parameter, so it cannot follow; remove that "
                "state first"
            )


def _large(value: Any, key: Any = None, change: Change | None = None) -> list[torch.Tensor]:
    """The tensors in a piece of state, also in lists and dicts; scalars stay as they are."""
    return [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor) and _follows(t, key, change)]


def _follows(t: torch.Tensor, key: Any, change: Change | None) -> bool:
    """Whether a tensor is no scalar; a single number of the parameter's own shape may have to grow with it."""
    alike = change is not None and key != "step" and t.dim() > 0 and tuple(t.shape) == tuple(change.before)
    return t.numel() > 1 or alike


# The dim along which Adafactor keeps one number for all.
_FACTORED = {"row_var": -1, "col_var": -2}


def _moved(key: Any, value: Any, change: Change) -> Any:
    before = list(change.before)
    if key in _FACTORED and len(before) > 1:
        before[_FACTORED[key]] = 0

    def follow(t: Any) -> Any:
        moves = isinstance(t, torch.Tensor) and _follows(t, key, change)
        return select(t, change.dims, before) if moves else t

    return pytree.tree_map(follow, value)


def _swap_state(state: dict[Any, Any], moved: dict[Any, Any]) -> Step:
    def step(undo: Undo) -> None:
        old = {k: state[k] for k in moved}
        undo.append(lambda: state.update(old))
        state.update(moved)

    return step


# -- LBFGS: one flat history over all parameters -----------------------------------------------------------------------


def _is_flat_over(optimizer: LBFGS, changes: Sequence[Change]) -> bool:
    held = {id(p) for p in _held(optimizer)}
    return any(id(change.tensor) in held for change in changes)


def _reset(optimizer: LBFGS) -> Step:
    """Gradients of the old network say nothing about the curvature of the new one, so the history is not cut to fit."""

    def step(undo: Undo) -> None:
        state, numel = dict(optimizer.state), optimizer._numel_cache

        def back() -> None:
            optimizer.state.update(state)
            optimizer._numel_cache = numel

        undo.append(back)
        optimizer.state.clear()
        optimizer._numel_cache = None

    return step


def forget_parameters(
    models: Sequence[nn.Module], before: set[int], optimizers: Sequence[torch.optim.Optimizer], undo: Undo
) -> None:
    """Parameters of modules that went are no longer trained; `before` are the ids of what the models had."""
    gone = before - {id(p) for m in models for p in m.parameters()}
    for optimizer in optimizers if gone else ():
        for group in optimizer.param_groups:
            undo.append(partial(group.__setitem__, "params", group["params"]))
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for p in [p for p in optimizer.state if isinstance(p, torch.Tensor) and id(p) in gone]:
            undo.append(partial(optimizer.state.__setitem__, p, optimizer.state[p]))
            del optimizer.state[p]


def adopt_parameters(
    model: nn.Module, before: set[int], optimizers: Sequence[torch.optim.Optimizer], undo: Undo
) -> list[str]:
    """Parameters of modules that came are a group of the one optimizer; what to tell where that is not to be."""
    new = [p for p in model.parameters() if id(p) not in before]
    if not new or not optimizers:
        return []
    if len(optimizers) > 1 or isinstance(optimizers[0], LBFGS):
        return [f"{len(new)} parameters are new, and in no optimizer: add them to the one that is to train them"]
    groups = optimizers[0].param_groups
    undo.append(partial(groups.__delitem__, slice(len(groups), None)))
    optimizers[0].add_param_group({"params": new})
    return []
