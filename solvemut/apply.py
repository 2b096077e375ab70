"""Apply: a plan changes modules and optimizer state in place, all or nothing.

Every new tensor is built and checked first; then the plan's edits are made, one by one; then its selection: tensors are
swapped inside the parameters the model and the optimizer already share, so that ties, hooks and parameter groups stay;
then the changed model is held against the plan. Whatever fails on the way, Ctrl-C included, the old tensors, attributes
and state are put back.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .edits import SetAttribute
from .errors import PlanMismatchError, RequestError, SolvemutError
from .examples import check_methods, from_text
from .interrupts import deferred
from .optimizers import Optimizers, check_optimizers, optimizers_of, reset_notice, state_steps
from .plan import PlanRecord
from .slices import Change, Step, Undo, select
from .verify import check_how, verify_program
from .wrappers import forget_compiled, unwrapped


class Plan(PlanRecord):
    """A solved mutation, printable, saved as JSON, and applied in place."""

    def apply(
        self,
        model: nn.Module,
        optimizer: Optimizers = None,
        followers: Sequence[nn.Module] = (),
        verify: str | None = "program",
    ) -> nn.Module:
        """Change `model` and the state of `optimizer` in place, all or nothing; returns the model.

        `optimizer` is one or a list of them; each of `followers` is a copy of the model that changes with it, such as a
        torch.optim.swa_utils.AveragedModel. Raises PlanMismatchError, with nothing changed, if the plan was made for
        another model, or an optimizer or a follower belongs to another.
        """
        return apply_plan(self, model, optimizer, followers, verify)


def apply_plan(
    plan: PlanRecord,
    model: nn.Module,
    optimizer: Optimizers = None,
    followers: Sequence[nn.Module] = (),
    verify: str | None = "program",
) -> nn.Module:
    """See `Plan.apply`."""
    check_how(verify)
    given, model = model, unwrapped(model)
    models = [model, *_followed(plan, model, followers)]
    optimizers = optimizers_of(optimizer)
    changes = _changes(plan, models)
    check_optimizers(optimizers, changes, [p for m in models for p in m.parameters()], plan.root)
    grad = torch.is_grad_enabled()
    try:  # inference tensors could not be trained any more, so what is built is built outside inference mode
        with deferred() as interrupts, torch.inference_mode(False), torch.no_grad():
            _change(plan, models, optimizers, changes, verify, interrupts.poll)
    finally:
        torch.set_grad_enabled(grad)
    forget_compiled(given)
    return given


def _change(
    plan: PlanRecord, models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer],
    changes: Sequence[Change], verify: str | None, poll: Callable[[], None],
) -> None:  # fmt: skip
    """All steps, or none; an interrupt is heard at each `poll`."""
    undo: Undo = []
    notices = [n for optimizer in optimizers if (n := reset_notice(optimizer, changes))]
    try:
        steps = [_swap_of(change) for change in changes]
        steps += [step for optimizer in optimizers for step in state_steps(optimizer, changes)]
        _make_edits(plan, models, undo)
        for step in steps:
            poll()
            step(undo)
        _repeat_sizes(models, undo)
        for k, model in enumerate(models):
            poll()
            with _about_follower(k - 1):
                verify_program(plan, model, verify)
        for notice in notices:
            warnings.warn(notice, stacklevel=4)
        poll()
    except BaseException:
        _put_back(undo)
        raise


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


# -- checks before anything changes ------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    out.update(model.named_buffers(remove_duplicate=False))
    return out


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


def _changes(plan: PlanRecord, models: Sequence[nn.Module]) -> list[Change]:
    """What becomes of the tensors of the model and its followers, each tensor once."""
    found: dict[int, Change] = {}
    for k, model in enumerate(models):
        tensors = _tensors(model)
        with _about_follower(k - 1):
            _check_trainable(tensors)
            _check_model(plan, model, tensors)
            for name, (before, after) in plan.shapes.items():
                new = Change(name, tensors[name], plan.indices.get(name, {}), before, after)
                same = found.setdefault(id(new.tensor), new)
                if same is not new and same.moving != new.moving:
                    raise PlanMismatchError(
                        f"{same.name} and {name} are one tensor here, but were two where the plan was made"
                    )
    return [change for change in found.values() if change.moving]


# -- followers ---------------------------------------------------------------------------------------------------------


def _followed(plan: PlanRecord, model: nn.Module, followers: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules among `followers`, or inside wrappers such as AveragedModel, that hold the plan's tensors."""
    found = []
    for k, follower in enumerate([followers] if isinstance(followers, nn.Module) else followers):
        if not isinstance(follower, nn.Module):
            raise RequestError(
                f"followers[{k}] is a {type(follower).__name__}: give modules with the tensors of the model, such as "
                "an AveragedModel of it"
            )
        inner = follower
        while not _tensors(inner).keys() >= plan.shapes.keys() and isinstance(inside := _inside(inner), nn.Module):
            inner = inside
        if inner is model:
            raise RequestError(f"followers[{k}] is the model itself, which changes anyway; leave it out")
        found.append(inner)
    return list(dict.fromkeys(found))


def _inside(wrapper: nn.Module) -> Any:
    return getattr(wrapper, "module", None)


@contextlib.contextmanager
def _about_follower(k: int) -> Iterator[None]:
    """Errors within are about followers[k]; a negative k stands for the model."""
    try:
        yield
    except SolvemutError as e:
        if k < 0:
            raise
        raise type(e)(f"followers[{k}]: {e}") from e


# -- building and swapping ---------------------------------------------------------------------------------------------


def _swap_of(change: Change) -> Step:
    """The step that swaps a tensor and its gradient; the new ones exist before it runs."""
    new = select(change.tensor, change.dims)
    if tuple(new.shape) != tuple(change.after):
        raise SolvemutError(f"{change.name} would become {tuple(new.shape)}, the plan says {tuple(change.after)}")
    grad = None if change.tensor.grad is None else select(change.tensor.grad, change.dims)
    return _swap(change.tensor, new, grad)


def _swap(tensor: torch.Tensor, new: torch.Tensor, grad: torch.Tensor | None) -> Step:
    def step(undo: Undo) -> None:
        old, old_grad = tensor.data, tensor.grad

        def back() -> None:
            _set(tensor, old, old_grad)

        undo.append(back)
        _set(tensor, new, grad)

    return step


def _set(tensor: torch.Tensor, data: torch.Tensor, grad: torch.Tensor | None) -> None:
    """Give a parameter another tensor.

    A gradient accumulator that an old autograd graph still holds remembers the old shape; setting .data to another
    dtype on the way makes autograd drop it.
    """
    tensor.grad = None
    if tensor.requires_grad:
        other = torch.float32 if data.dtype != torch.float32 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data
    tensor.grad = grad


# -- edits -------------------------------------------------------------------------------------------------------------


def _make_edits(plan: PlanRecord, models: Sequence[nn.Module], undo: Undo) -> None:
    """The plan's edits, in order."""
    done: Done = set()
    for k, model in enumerate(models):
        with _about_follower(k - 1):
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


# -- sizes that torch's own layers repeat ------------------------------------------------------------------------------


def _repeat_sizes(models: Sequence[nn.Module], undo: Undo) -> None:
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
