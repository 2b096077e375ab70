"""Swapping a tensor inside the parameter that model and optimizer share."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import SolvemutError
from .copies import copy_slices
from .initialise import Init, fill
from .tensors import Change, Step, Undo, select


def swap_of(change: Change, owner: nn.Module | None = None, init: Init | None = None) -> Step:
    """The step that swaps a tensor and its gradient; the new ones exist before it runs. `owner` is its module."""
    new = select(change.tensor, change.dims, change.before)
    if change.fills:
        fill(new, change, owner, init)
    copy_slices(new, change)
    if tuple(new.shape) != tuple(change.after):
        raise SolvemutError(f"{change.name} would become {tuple(new.shape)}, the plan says {tuple(change.after)}")
    grad = None if change.tensor.grad is None else select(change.tensor.grad, change.dims, change.before)
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

    A gradient accumulator that an old autograd graph still holds remembers the old shape, also where the parameter
    needs no gradient by now; setting .data to another dtype on the way makes autograd drop it.
    """
    tensor.grad = None
    if tensor.requires_grad or isinstance(tensor, nn.Parameter):
        other = torch.float32 if data.dtype != torch.float32 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data
    tensor.grad = grad
