"""Apply: a plan changes modules and optimizer state in place, all or nothing.

Every new tensor is built and checked first; then tensors are swapped inside the parameters the model and the optimizer
already share, so that ties, hooks and parameter groups stay; then the changed model runs once on fake tensors. Whatever
fails on the way, the old tensors, attributes and state are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .errors import PlanMismatchError, SolvemutError
from .plan import AttributeChange, Index, PlanRecord
from .verify import verify_program

Undo = list[Callable[[], None]]
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


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

        Raises PlanMismatchError, with nothing changed, if the plan was made for another model.
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
    tensors = _tensors(model)
    _check_model(plan, model, tensors)
    assert optimizer is None or isinstance(optimizer, torch.optim.Optimizer)
    _check_optimizer(plan, model, tensors, optimizer)
    undo: Undo = []
    try:
        with torch.no_grad():
            steps = _build(plan, tensors, optimizer)
            for step in steps:
                step(undo)
            _set_attributes(plan, model, undo)
            verify_program(plan, model, verify)
    except BaseException:
        for back in reversed(undo):
            back()
        raise
    return model


# -- checks before anything changes ------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    out.update(model.named_buffers(remove_duplicate=False))
    return out


def _check_model(plan: PlanRecord, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The plan agrees with itself, and with the tensors and attributes of a model."""
    plan.check()
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


def _is_int_attribute(model: nn.Module, change: AttributeChange) -> bool:
    """What a plan sets must be an int: a tensor, a flag or a function under that name is something else."""
    try:
        found = getattr(model.get_submodule(change.module), change.name)
        found = found if change.index is None else found[change.index]
    except (AttributeError, LookupError, TypeError):
        return False
    return isinstance(found, int) and not isinstance(found, bool)


def _rows(index: Index) -> list[list[int]]:
    """An index as one list per row; most have one."""
    return index if index and isinstance(index[0], list) else [index]  # type: ignore[list-item, return-value]


def _check_optimizer(
    plan: PlanRecord, model: nn.Module, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> None:
    """Every state tensor must have its parameter's shape (or 1 in some dims), or be a scalar."""
    if optimizer is None:
        return
    for name, (before, after) in plan.shapes.items():
        if before == after and not plan.indices.get(name):
            continue
        for key, state in optimizer.state.get(tensors[name], {}).items():
            if isinstance(state, torch.Tensor) and state.numel() > 1 and not _follows(state, before):
                raise PlanMismatchError(
                    f"the optimizer's {key} of {name} has shape {tuple(state.shape)}, which does not follow "
                    f"{tuple(before)}; remove that state first"
                )


def _follows(state: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return state.dim() == len(shape) and all(s in (1, n) for s, n in zip(state.shape, shape, strict=True))


# -- building and swapping ---------------------------------------------------------------------------------------------


def select(tensor: torch.Tensor, dims: Mapping[int, Index]) -> torch.Tensor:
    """The slices of a tensor that stay: a new tensor of the same dtype, device and memory format.

    A dim of size 1 in a state tensor has nothing to select. For the input dim of a grouped convolution `dims[1]` has a
    list for every group that stays, and `dims[0]` lists the output channels of these groups one after another.
    """
    out = tensor.detach()
    for d in sorted(dims):
        index = dims[d]
        if index and isinstance(index[0], list):
            out = _select_rows(out, d, _rows(index))
        elif out.shape[d] > 1:
            out = out.index_select(d, torch.tensor(index, device=out.device, dtype=torch.long))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return out.clone(memory_format=torch.channels_last)
    return out.clone(memory_format=torch.contiguous_format)


def _select_rows(x: torch.Tensor, d: int, index: list[list[int]]) -> torch.Tensor:
    """Dim 0 holds the rows one after another; each takes its own positions of dim d."""
    if x.shape[d] == 1 and index != [[0]] * len(index):
        return x
    if x.shape[0] == 1:  # a factored state holds one row for all groups
        if any(row != index[0] for row in index):
            raise PlanMismatchError(
                "a factored optimizer state of a grouped convolution cannot follow groups that keep different inputs; "
                "remove that state first"
            )
        return x.index_select(d, torch.tensor(index[0], device=x.device))
    per_row = x.shape[0] // len(index)
    rows = torch.tensor(index, device=x.device).repeat_interleave(per_row, dim=0)  # [dim 0, kept]
    rows = rows.reshape(rows.shape[0], *[1] * (d - 1), rows.shape[1], *[1] * (x.dim() - d - 1))
    return x.gather(d, rows.expand(*[rows.shape[k] if k in (0, d) else x.shape[k] for k in range(x.dim())]))


def _build(
    plan: PlanRecord, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> list[Callable[[Undo], None]]:
    """One step per tensor to swap; all new tensors exist before the first step runs."""
    steps: list[Callable[[Undo], None]] = []
    done: set[int] = set()
    for name, dims in plan.indices.items():
        tensor = tensors[name]
        before, after = plan.shapes[name]
        if id(tensor) in done or _is_identity(dims, before):
            continue
        done.add(id(tensor))
        new = select(tensor, dims)
        if tuple(new.shape) != tuple(after):
            raise SolvemutError(f"{name} would become {tuple(new.shape)}, the plan says {tuple(after)}")
        grad = None if tensor.grad is None else select(tensor.grad, dims)
        steps.append(_swap(tensor, new, grad))
        if optimizer is not None and tensor in optimizer.state:
            state = optimizer.state[tensor]
            moved = {
                k: select(s, dims) for k, s in state.items() if isinstance(s, torch.Tensor) and _has_dims(s, before)
            }
            steps.append(_swap_state(state, moved))
    return steps


def _has_dims(state: torch.Tensor, before: tuple[int, ...]) -> bool:
    return state.numel() > 1 and _follows(state, before)


def _is_identity(dims: Mapping[int, Index], before: tuple[int, ...]) -> bool:
    return all(not any(row != list(range(before[d])) for row in _rows(index)) for d, index in dims.items())


def _swap(tensor: torch.Tensor, new: torch.Tensor, grad: torch.Tensor | None) -> Callable[[Undo], None]:
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


def _swap_state(state: dict[str, Any], moved: dict[str, torch.Tensor]) -> Callable[[Undo], None]:
    def step(undo: Undo) -> None:
        old = {k: state[k] for k in moved}
        undo.append(lambda: state.update(old))
        state.update(moved)

    return step


# -- attributes --------------------------------------------------------------------------------------------------------


def _set_attributes(plan: PlanRecord, model: nn.Module, undo: Undo) -> None:
    for change in plan.attributes:
        _set_attribute(model, change, undo)
    for module in model.modules():
        for kind, follow in ATTRIBUTES:
            if isinstance(module, kind):
                for name, value in follow(module).items():
                    if value is not None and getattr(module, name, value) != value:
                        _assign(module, name, value, undo)


def _set_attribute(model: nn.Module, change: AttributeChange, undo: Undo) -> None:
    try:
        module = model.get_submodule(change.module)
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


# Sizes that torch's own layers repeat in attributes, from the shapes of their parameters.
ATTRIBUTES: list[tuple[Any, Callable[[Any], dict[str, Any]]]] = [
    (nn.Linear, lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (nn.modules.conv._ConvNd, _conv),
    (nn.modules.batchnorm._NormBase, _norm),
    (nn.GroupNorm, lambda m: {"num_channels": None if m.weight is None else m.weight.shape[0]}),
    (nn.Embedding, lambda m: {"embedding_dim": m.weight.shape[1]}),
    (nn.PReLU, lambda m: {"num_parameters": m.weight.shape[0]}),
    (nn.MultiheadAttention, _attention),
]
