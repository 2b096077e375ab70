"""Examples: the calls a model is captured by, as data: which method, in which mode, on inputs of which shapes.

Tensors are kept as shapes and dtypes. As text (JSON) an example goes into a plan's file; what JSON cannot hold stays in
memory only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import RequestError
from .objects import opened

MODES = ("eval", "train")


@dataclass(frozen=True)
class Tensor:
    """A tensor among the inputs."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Example:
    """One call of a model: `leaves` and `tree` are its (args, kwargs) as torch's pytree takes them apart.

    Objects among them that hold tensors are `Opened`.
    """

    leaves: tuple[Any, ...]
    tree: Any
    method: str = "forward"
    training: bool = False

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, method: str = "forward") -> Example:
        """The example of a call with these arguments."""
        leaves, tree = pytree.tree_flatten(opened((args, dict(kwargs or {}))))
        return Example(tuple(_kept(x) for x in leaves), tree, method)

    @property
    def tag(self) -> str:
        """What tells it from a forward in eval mode; empty for that one."""
        return "" if (self.method, self.training) == ("forward", False) else "train" if self.training else self.method

    def in_training(self) -> Example:
        """The same call in train mode."""
        return replace(self, training=True)

    def inputs(self, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Zeros of those shapes; floats come in the dtype of the model, which may have been cast since."""
        tensors = (*model.parameters(), *model.buffers())
        return self.like(next((t for t in tensors if t.is_floating_point()), torch.empty(0)))

    def like(self, like: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Zeros of those shapes on the device of a tensor, floats in its dtype."""
        leaves = [_zeros(x, like) if isinstance(x, Tensor) else x for x in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        return args, kwargs


def _kept(x: Any) -> Any:
    return Tensor(tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x


def _zeros(x: Tensor, like: torch.Tensor) -> torch.Tensor:
    dtype = like.dtype if x.dtype.is_floating_point else x.dtype
    return torch.zeros(x.shape, dtype=dtype, device=like.device)


def examples_of(args: Any, kwargs: Mapping[str, Any] | None, methods: Mapping[str, Any] | None) -> list[Example]:
    """The calls that a capture is asked for: the forward first, then methods, each with one call or a list of them.

    A call is one input, or a tuple of them.
    """
    found = [Example.of(args if isinstance(args, tuple) else (args,), kwargs)]
    if methods is not None and not isinstance(methods, Mapping):
        raise RequestError(f"methods={methods!r}: give a dict from names of methods to example inputs")
    for name, calls in (methods or {}).items():
        for call in calls if isinstance(calls, list) else [calls]:
            found.append(Example.of(call if isinstance(call, tuple) else (call,), None, name))
    return found


def check_methods(model: nn.Module, examples: Iterable[Example]) -> None:
    """Raises RequestError for a method that the model does not have of its own; those of nn.Module change models."""
    for e in examples:
        own = e.method == "forward" or not hasattr(nn.Module, e.method)
        if not own or not callable(getattr(model, e.method, None)):
            raise RequestError(f"methods: {type(model).__name__} has no method {e.method!r} of its own")


def check_modes(modes: Any) -> tuple[str, ...]:
    """The modes asked for. Raises RequestError unless they are eval, or eval and train."""
    found = (modes,) if isinstance(modes, str) else tuple(modes) if isinstance(modes, (tuple, list)) else ()
    if "eval" not in found or any(m not in MODES for m in found):
        raise RequestError(f"modes={modes!r}: give ('eval',) or ('eval', 'train'); shapes and costs are those of eval")
    return found


# -- as text -----------------------------------------------------------------------------------------------------------


def to_text(examples: Sequence[Example]) -> str:
    """Examples as JSON; empty if they hold something JSON cannot."""
    try:
        first, *more = [_record(e, further=k > 0) for k, e in enumerate(examples)]
    except (NotImplementedError, TypeError, ValueError):
        return ""
    return json.dumps({**first, "more": more} if more else first)


def _record(e: Example, further: bool) -> dict[str, Any]:
    leaves: list[Any] = []
    for x in e.leaves:
        if isinstance(x, Tensor):
            leaves.append({"shape": list(x.shape), "dtype": str(x.dtype).split(".")[-1]})
        elif x is None or isinstance(x, (bool, int, float, str)):
            leaves.append(x)
        else:
            raise TypeError(type(x))
    call = {"leaves": leaves, "tree": pytree.treespec_dumps(e.tree)}
    return call if not further else {**call, "method": e.method, "training": e.training}


def from_text(text: str) -> list[Example]:
    """The examples that `to_text` wrote; none if it is empty."""
    if not text:
        return []
    spec = json.loads(text)
    return [_read(x) for x in (spec, *spec.get("more", ()))]


def _read(x: Mapping[str, Any]) -> Example:
    leaves = [Tensor(tuple(a["shape"]), getattr(torch, a["dtype"])) if isinstance(a, dict) else a for a in x["leaves"]]
    tree = pytree.treespec_loads(x["tree"])
    return Example(tuple(leaves), tree, x.get("method", "forward"), x.get("training", False))
