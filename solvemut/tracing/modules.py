"""torch's modules: run one without leaving a trace in it, and the sizes that torch's own layers repeat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..rules import OPS, Repeat


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; afterwards every attribute of every module is what it was.

    A forward may fill caches (a dict of attention biases, a mask by shape); under fake tensors they would stay behind.
    """
    saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        attributes = dict(vars(module))
        contents = {k: v.copy() for k, v in attributes.items() if type(v) in (dict, list)}
        saved.append((module, attributes, contents))
    try:
        model.eval()
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                held = attributes[name]
                held.clear()
                held.extend(content) if isinstance(held, list) else held.update(content)


def held_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in lists and dicts that modules have as attributes, each with the name of the attribute."""
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            if isinstance(held, (list, tuple, dict)) and name not in ("_parameters", "_buffers"):
                own = (t for t in pytree.tree_leaves(held) if type(t) is torch.Tensor)
                yield from ((f"{path}.{name}".lstrip("."), t) for t in own)


def like(model: nn.Module) -> torch.Tensor | None:
    """A tensor on the device and in the dtype in which a model calculates: its first parameter of floats, if any."""
    return next((p for p in model.parameters() if p.is_floating_point()), None)


def zeros(model: nn.Module, shapes: Iterable[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """Inputs of some shapes for a layer of the model, on its device and in its dtype."""
    tensor = like(model)
    device, dtype = (None, None) if tensor is None else (tensor.device, tensor.dtype)
    return tuple(torch.zeros(tuple(s), dtype=dtype, device=device) for s in shapes)


# -- sizes that torch's own layers repeat ------------------------------------------------------------------------------


def _layer(path: str) -> type[nn.Module]:
    found: Any = nn
    for name in path.split("."):
        found = getattr(found, name)
    return found


REPEATS = [(_layer(repeat.layer), repeat) for repeat in dict.fromkeys(r for op in OPS.values() for r in op.repeats)]


def repeats(module: nn.Module) -> Iterator[tuple[Repeat, int, int]]:
    """The attributes in which a layer repeats a size of its tensors, with the dim and the value that gives."""
    for kind, repeat in REPEATS:
        tensor = getattr(module, repeat.tensor, None) if isinstance(module, kind) else None
        if tensor is not None and getattr(module, repeat.unless or "-", None) is None:
            transposed = repeat.transposed_dim is not None and getattr(module, "transposed", False)
            dim = repeat.transposed_dim if transposed and repeat.transposed_dim is not None else repeat.dim
            times = int(module.groups) if repeat.per_group and dim == 1 else 1  # type: ignore[arg-type]
            yield repeat, dim, int(tensor.shape[dim]) * times
