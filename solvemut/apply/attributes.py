"""Edits in a model, and the sizes that torch's own layers repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..edits import SetAttribute
from ..errors import PlanMismatchError
from ..plan import PlanRecord
from .followers import about_follower
from .tensors import Undo


def make_edits(plan: PlanRecord, models: Sequence[nn.Module], undo: Undo) -> None:
    """The plan's edits, in order."""
    done: Done = set()
    for k, model in enumerate(models):
        with about_follower(k - 1):
            for edit in plan.edits:
                EDITORS[edit.kind](model, edit, undo, done)


def _module(model: nn.Module, change: SetAttribute) -> nn.Module:
    try:
        return model.get_submodule(change.module)
    except AttributeError as e:
        raise PlanMismatchError(f"the plan changes the module {change.module}, which this model does not have") from e


def _set_attribute(model: nn.Module, change: SetAttribute, undo: Undo, done: Done) -> None:
    module = _module(model, change)
    key = (id(module), change.name, change.index)
    if key in done:
        return
    done.add(key)
    try:
        old = getattr(module, change.name)
        now = old if change.index is None else old[change.index]
    except (AttributeError, IndexError, TypeError) as e:
        raise PlanMismatchError(f"the plan sets {change.module}.{change.name}, which this model does not have") from e
    if now != change.before:
        raise PlanMismatchError(f"{change.module}.{change.name} is {now}, the plan expects {change.before}")
    if change.index is None:
        _assign(module, change.name, change.after, undo)
    else:
        items = list(old)
        items[change.index] = change.after
        _assign(module, change.name, type(old)(items), undo)


def _assign(module: nn.Module, name: str, value: Any, undo: Undo) -> None:
    old = getattr(module, name)
    undo.append(lambda: setattr(module, name, old))
    setattr(module, name, value)


Done = set[tuple[Any, ...]]  # what was edited already: a follower may share a module with the model


# By kind of edit what makes it in a model; each step it takes is undone by what it adds to the undo.
EDITORS: dict[str, Callable[[nn.Module, Any, Undo, Done], None]] = {SetAttribute.kind: _set_attribute}


def repeat_sizes(models: Sequence[nn.Module], undo: Undo) -> None:
    """Attributes of torch's own layers follow the shapes of the parameters."""
    for model in models:
        for module in model.modules():
            for kind, follow in ATTRIBUTES:
                if isinstance(module, kind):
                    for name, value in follow(module).items():
                        if value is not None and getattr(module, name, value) != value:
                            _assign(module, name, value, undo)


def _conv(m: Any) -> dict[str, Any]:
    a, b = m.weight.shape[:2]
    return {"in_channels": a, "out_channels": b * m.groups} if m.transposed else {
        "in_channels": b * m.groups, "out_channels": a}  # fmt: skip


def _norm(m: Any) -> dict[str, Any]:
    tensors = [t for t in (m.weight, m.running_mean) if t is not None]
    return {"num_features": tensors[0].shape[0]} if tensors else {}


def _attention(m: Any) -> dict[str, Any]:
    return {"head_dim": m.embed_dim // m.num_heads, **_key_value(m, m.embed_dim)}


def _key_value(m: Any, embed: int) -> dict[str, Any]:
    if m._qkv_same_embed_dim:
        return {"kdim": embed, "vdim": embed}
    return {"kdim": m.k_proj_weight.shape[1], "vdim": m.v_proj_weight.shape[1]}


# What they repeat, from the shapes of their parameters.
ATTRIBUTES: list[tuple[Any, Callable[[Any], dict[str, Any]]]] = [
    (nn.Linear, lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (nn.modules.conv._ConvNd, _conv),
    (nn.modules.batchnorm._NormBase, _norm),
    (nn.GroupNorm, lambda m: {"num_channels": None if m.weight is None else m.weight.shape[0]}),
    (nn.Embedding, lambda m: {"embedding_dim": m.weight.shape[1]}),
    (nn.PReLU, lambda m: {"num_parameters": m.weight.shape[0]}),
    (nn.MultiheadAttention, _attention),
]
