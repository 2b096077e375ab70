"""An oracle for memory: a real forward watched from operation to operation, and what autograd keeps of it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Live(TorchDispatchMode):
    """Bytes of the storages that are alive, after each operation."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.peak = known, 0, 0
        self.tensors: dict[int, int] = {}

    def add(self, t: torch.Tensor) -> None:
        storage = t.untyped_storage()
        if storage._cdata not in self.known:
            self.now += 0 if self.tensors.get(storage._cdata) else storage.nbytes()
            self.tensors[storage._cdata] = self.tensors.get(storage._cdata, 0) + 1
            weakref.finalize(t, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, address: int, size: int) -> None:
        self.tensors[address] -= 1
        self.now -= 0 if self.tensors[address] else size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.add(t)
        self.peak = max(self.peak, self.now)
        return out


def _weights(model: nn.Module) -> set[int]:
    held = [*model.parameters(), *model.buffers()]
    held += [t for m in model.modules() for t in vars(m).values() if isinstance(t, torch.Tensor)]
    return {t.untyped_storage()._cdata for t in held}


def peak_bytes(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """The most that a forward in eval mode holds after any of its operations, without the weights."""
    live = _Live(_weights(model.eval()))
    for t in pytree.tree_leaves((args, dict(kwargs or {}))):
        if isinstance(t, torch.Tensor):
            live.add(t)
    live.peak = live.now
    with torch.no_grad(), live:
        model(*args, **(kwargs or {}))
    return live.peak


def kept_bytes(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """What autograd keeps of a forward in train mode, without the weights."""
    known, found = _weights(model.train()), dict[int, torch.Tensor]()

    def pack(t: torch.Tensor) -> torch.Tensor:
        if (address := t.untyped_storage()._cdata) not in known:
            found[address] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(*args, **(kwargs or {}))
    total = sum(t.untyped_storage().nbytes() for t in found.values())
    del out
    return total
