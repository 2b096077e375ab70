"""Edits in a model, and the sizes that torch's own layers repeat."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..building import Bypassed, factored
from ..edits import AROUND, GIVEN, ZEROS, Bypass, Edit, Placed, Rewire, SetAttribute, SetKernel, Substitute, unpacked
from ..errors import PlanMismatchError, RequestError
from ..plan import PlanRecord
from ..tracing import repeats
from .followers import about_follower
from .tensors import Undo


def put_modules(plan: PlanRecord, models: Sequence[nn.Module], undo: Undo) -> None:
    """The plan's edits that replace modules: what else the plan says is of the model with these."""
    _make(models, [e for e in plan.edits if isinstance(e, Placed)], undo)


def make_edits(plan: PlanRecord, models: Sequence[nn.Module], undo: Undo) -> None:
    """The plan's other edits, in order."""
    _make(models, [e for e in plan.edits if not isinstance(e, Placed)], undo)


def _make(models: Sequence[nn.Module], edits: Sequence[Edit], undo: Undo) -> None:
    done: Done = set()
    for k, model in enumerate(models):
        with about_follower(k - 1):
            for edit in edits:
                make_edit(model, edit, undo, done)


def make_edit(model: nn.Module, edit: Edit, undo: Undo, done: Done | None = None) -> None:
    """One edit in one model; `undo` gets what takes it back."""
    EDITORS[edit.kind](model, edit, undo, set() if done is None else done)


def _module(model: nn.Module, change: SetAttribute | SetKernel | Placed) -> nn.Module:
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


def _set_kernel(model: nn.Module, change: SetKernel, undo: Undo, done: Done) -> None:
    module = _module(model, change)
    if (key := (id(module), change.kind)) in done:
        return
    done.add(key)
    if not isinstance(module, nn.modules.conv._ConvNd):
        raise PlanMismatchError(f"the plan sets the kernel of {change.module}, here a {type(module).__name__}")
    old, new = change.before, change.after
    for name, found, before, after in (
        ("kernel_size", module.kernel_size, old.size, new.size),
        ("padding", module.padding, old.padding, new.padding),
        (AROUND, getattr(module, AROUND), old.around, new.around),
    ):
        if (found if isinstance(found, str) else tuple(found)) != before:
            raise PlanMismatchError(f"{change.module}.{name} is {found}, the plan expects {before}")
        if after != before:
            _assign(module, name, list(after) if name == AROUND else after, undo)


def _rewire(model: nn.Module, change: Rewire, undo: Undo, done: Done) -> None:
    raise PlanMismatchError(change.refusal)


def _bypass(model: nn.Module, change: Bypass, undo: Undo, done: Done) -> None:
    _put(model, change, lambda old: Bypassed(change.gives == ZEROS, change.results).train(old.training), undo, done)


def _substitute(model: nn.Module, change: Substitute, undo: Undo, done: Done) -> None:
    if change.how == GIVEN and change.given is None:
        raise PlanMismatchError(
            f"the plan puts the module {change.option!r} in the place of {change.module}, and a file holds no modules: "
            f"load it with Plan.load(path, modules={{{change.module!r}: {{{change.option!r}: module}}}})"
        )

    def made(old: nn.Module) -> nn.Module:
        if change.given is not None:
            return copy.deepcopy(change.given).train(old.training)
        basis = torch.from_numpy(unpacked(change.basis, change.rank).copy()) if change.basis else None
        try:
            return factored(old, change.rank, basis)
        except RequestError as e:
            raise PlanMismatchError(f"{change.module}: {e}") from e

    if change.replaces:
        _put(model, change, made, undo, done)


def _put(model: nn.Module, change: Placed, made: Callable[[nn.Module], nn.Module], undo: Undo, done: Done) -> None:
    """Another module in the place of one."""
    path, _, name = change.module.rpartition(".")
    old = _module(model, change)
    parent = model.get_submodule(path)
    if (key := (id(parent), name, change.kind)) in done:
        return
    done.add(key)
    new = made(old)
    undo.append(lambda: parent._modules.__setitem__(name, old))
    parent._modules[name] = new


def _assign(module: nn.Module, name: str, value: Any, undo: Undo) -> None:
    old = getattr(module, name)
    undo.append(lambda: setattr(module, name, old))
    setattr(module, name, value)


Done = set[tuple[Any, ...]]  # what was edited already: a follower may share a module with the model


# By kind of edit what makes it in a model; each step it takes is undone by what it adds to the undo.
EDITORS: dict[str, Callable[[nn.Module, Any, Undo, Done], None]] = {
    SetAttribute.kind: _set_attribute,
    SetKernel.kind: _set_kernel,
    Bypass.kind: _bypass,
    Substitute.kind: _substitute,
    Rewire.kind: _rewire,
}

_NO_STEP = {"do_power_iteration": False}


def repeat_sizes(models: Sequence[nn.Module], undo: Undo) -> None:
    """Attributes of torch's own layers follow the shapes of the parameters."""
    for model in models:
        for module in model.modules():
            _compute_weights(module, undo)
            found = {repeat.attribute: size for repeat, _, size in repeats(module)}
            if isinstance(module, nn.MultiheadAttention):
                found |= _attention(module)
            for name, size in found.items():
                if getattr(module, name, size) != size:
                    _assign(module, name, size, undo)


def _compute_weights(module: nn.Module, undo: Undo) -> None:
    """A weight that a hook computes before every forward is an attribute that keeps its old shape until then."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            with torch.no_grad():
                new = hook.compute_weight(module, **({} if isinstance(hook, WeightNorm) else _NO_STEP))
            _assign(module, hook.name, new, undo)


def _attention(m: nn.MultiheadAttention) -> dict[str, int]:
    """What it derives from its width, which is an attribute of its own, and from the weights of key and value."""
    sizes = {"head_dim": m.embed_dim // m.num_heads}
    if m._qkv_same_embed_dim:
        return {**sizes, "kdim": m.embed_dim, "vdim": m.embed_dim}
    return {**sizes, "kdim": m.k_proj_weight.shape[1], "vdim": m.v_proj_weight.shape[1]}
