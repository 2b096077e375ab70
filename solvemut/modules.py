"""Run a user's module without leaving a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


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
