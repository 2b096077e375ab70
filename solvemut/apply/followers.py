"""Followers: copies of a model, such as an AveragedModel, that change with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import RequestError, SolvemutError
from ..plan import PlanRecord


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters and buffers by name; a tensor that is shared stands under each of its names."""
    out: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    out.update(model.named_buffers(remove_duplicate=False))
    return out


def followed(plan: PlanRecord, model: nn.Module, followers: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules among `followers`, or inside wrappers such as AveragedModel, that hold the plan's tensors."""
    found = []
    for k, follower in enumerate([followers] if isinstance(followers, nn.Module) else followers):
        if not isinstance(follower, nn.Module):
            raise RequestError(
                f"followers[{k}] is a {type(follower).__name__}: give modules with the tensors of the model, such as "
                "an AveragedModel of it"
            )
        inner = follower
        while not tensors_of(inner).keys() >= plan.shapes.keys() and isinstance(inside := _inside(inner), nn.Module):
            inner = inside
        if inner is model:
            raise RequestError(f"followers[{k}] is the model itself, which changes anyway; leave it out")
        found.append(inner)
    return list(dict.fromkeys(found))


def _inside(wrapper: nn.Module) -> Any:
    return getattr(wrapper, "module", None)


@contextlib.contextmanager
def about_follower(k: int) -> Iterator[None]:
    """Errors within are about followers[k]; a negative k stands for the model."""
    try:
        yield
    except SolvemutError as e:
        if k < 0:
            raise
        raise type(e)(f"followers[{k}]: {e}") from e
