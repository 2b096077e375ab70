"""Checks before anything changes: the plan against the model and its followers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..edits import SetAttribute
from ..errors import PlanMismatchError, RequestError
from ..plan import PlanRecord
from ..tracing import check_methods, from_text
from .attributes import EDITORS
from .followers import about_follower, tensors_of
from .tensors import Change


def _check_model(plan: PlanRecord, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The plan agrees with itself, and with the tensors and attributes of a model."""
    plan.check()
    if other := [edit.kind for edit in plan.edits if edit.kind not in EDITORS]:
        raise PlanMismatchError(f"this solvemut makes no edit of kind {other[0]!r} in a model")
    _check_example(plan, model)
    wrong = []
    for name, (before, _) in plan.shapes.items():
        found = tensors.get(name)
        if found is None:
            wrong.append(f"{name} is missing")
        elif tuple(found.shape) != tuple(before):
            wrong.append(f"{name} has shape {tuple(found.shape)}, the plan expects {tuple(before)}")
    wrong += [
        f"{change.module}.{change.name} is no int of this model"
        for change in plan.attributes
        if not _is_int_attribute(model, change)
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise PlanMismatchError(f"this plan was made for another {plan.root}: {'; '.join(wrong[:4])}{more}")


def _check_example(plan: PlanRecord, model: nn.Module) -> None:
    """The types and dtypes of the example inputs are known to this torch, and the methods to the model."""
    try:
        examples = from_text(plan.example)
        for call in examples:
            call.like(torch.empty(0, device="meta"))  # no memory is spent on them
        check_methods(model, examples)
    except RequestError as e:
        raise PlanMismatchError(f"example: {e}") from e
    except Exception as e:
        raise PlanMismatchError(
            f"example: torch cannot build the inputs of this plan ({type(e).__name__}: {e}); if they hold a type of "
            "your own, register it with torch.utils._pytree first, as where the plan was made"
        ) from e


def _is_int_attribute(model: nn.Module, change: SetAttribute) -> bool:
    """What a plan sets must be an int: a tensor, a flag or a function under that name is something else."""
    try:
        found = getattr(model.get_submodule(change.module), change.name)
        found = found if change.index is None else found[change.index]
    except (AttributeError, LookupError, TypeError):
        return False
    return isinstance(found, int) and not isinstance(found, bool)


def _check_trainable(tensors: Mapping[str, torch.Tensor]) -> None:
    wrong = [name for name, t in tensors.items() if t.is_inference()]
    if wrong:
        raise PlanMismatchError(
            f"{len(wrong)} tensors ({wrong[0]}, ...) were built under torch.inference_mode: torch can neither change "
            "nor train them; build the model outside of it"
        )


def changes_of(plan: PlanRecord, models: Sequence[nn.Module]) -> list[Change]:
    """What becomes of the tensors of the model and its followers, each tensor once."""
    found: dict[int, Change] = {}
    for k, model in enumerate(models):
        tensors = tensors_of(model)
        with about_follower(k - 1):
            _check_trainable(tensors)
            _check_model(plan, model, tensors)
            for name, (before, after) in plan.shapes.items():
                fills, copies = plan.fills.get(name, {}), plan.copies.get(name, {})
                new = Change(name, tensors[name], plan.indices.get(name, {}), before, after, fills, copies)
                same = found.setdefault(id(new.tensor), new)
                if same is not new and same.moving != new.moving:
                    raise PlanMismatchError(
                        f"{same.name} and {name} are one tensor here, but were two where the plan was made"
                    )
    return [change for change in found.values() if change.moving]
