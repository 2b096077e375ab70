"""Memos: dicts of tensors that a forward fills when it finds them empty, such as biases of attention by device.

What they hold was computed of weights that a plan may change. Whether a dict is one is observed: emptied, a run on fake
tensors fills it again with the same keys. Anything else that modules hold is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .recording import Recorder


class Filled(Recorder):
    """Looks at dicts when the forward is done, before they are put back."""

    def __init__(self, dicts: Sequence[dict[Any, Any]]) -> None:
        super().__init__(tracked=False)
        self.dicts, self.keys = dicts, list[set[Any]]()

    def _end(self, out: Any) -> None:
        super()._end(out)
        self.keys = [set(d) for d in self.dicts]


def candidates(model: nn.Module) -> list[dict[Any, Any]]:
    """Dicts of modules that hold plain tensors and nothing else."""
    own = ("_parameters", "_buffers")
    found = [d for m in model.modules() for k, d in vars(m).items() if type(d) is dict and k not in own]
    return [d for d in found if d and all(type(t) is torch.Tensor for t in d.values())]


@contextlib.contextmanager
def emptied(held: Sequence[dict[Any, Any]]) -> Iterator[None]:
    """Within it the dicts begin empty; afterwards they hold what they held."""
    contents = [dict(d) for d in held]
    for d in held:
        d.clear()
    try:
        yield
    finally:
        for d, content in zip(held, contents, strict=True):
            d.clear()
            d.update(content)
