"""torch's modules: run one without leaving a trace in it, and the sizes that torch's own layers repeat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

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
