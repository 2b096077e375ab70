"""Wrappers: what stands around a module. Some are looked through to the module itself, the others refused in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import RequestError

_AFTERWARDS = "prune the plain module first and wrap what comes out, as its memory was laid out for the old sizes"


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, below torch.compile and DataParallel. Raises RequestError where there is none to change.

    >>> model = nn.Linear(4, 2)
    >>> unwrapped(nn.DataParallel(model)) is model
    True
    """
    while (inner := _inside(model)) is not None:
        model = inner
    name = type(model).__name__
    for path, module in model.named_modules():
        if reason := _refusal(module):
            where = f" in {path}" if path else ""
            raise RequestError(f"{name} cannot be changed{where}: {reason}")
    for path, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise RequestError(f"{path} has no size yet, as its layer is lazy: run {name} once on an input first")
    return model


def forget_compiled(model: nn.Module) -> None:
    """Code that torch.compile made for the old sizes is made anew when it is next run."""
    if any(is_compiled(m) for m in model.modules()):
        torch.compiler.reset()


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel):
        return model.module
    return model._orig_mod if isinstance(model, torch._dynamo.OptimizedModule) else None  # type: ignore[return-value]


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile stands around a module or in it."""
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None


def _refusal(module: nn.Module) -> str:
    """Why a module cannot be changed in place; empty if it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript has fixed its code and shapes; prune the module it was made from and script that again"
    if isinstance(module, torch.fx.GraphModule) and "range_constraints" in vars(module):
        return "torch.export has written its sizes into the graph; prune the module it was exported from"
    if isinstance(module, _distributed("torch.nn.parallel", "DistributedDataParallel")):
        return f"DistributedDataParallel: {_AFTERWARDS}"
    if isinstance(module, _distributed("torch.distributed.fsdp", "FullyShardedDataParallel", "FSDPModule")):
        return f"its parameters are sharded by FSDP: {_AFTERWARDS}"
    return ""


def _distributed(module: str, *names: str) -> tuple[Any, ...]:
    """Classes that torch has where it was built with torch.distributed."""
    if not torch.distributed.is_available():
        return ()
    home = __import__(module, fromlist=names)
    return tuple(getattr(home, n) for n in names if hasattr(home, n))
