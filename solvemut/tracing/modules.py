"""torch's modules: run one without leaving a trace in it, and the sizes that torch's own layers repeat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Width:
    """An attribute in which a layer repeats the size of one of its tensors."""

    kind: type[nn.Module]
    attribute: str
    tensor: str
    dim: int
    per_group: bool = False  # the size counts once for each group
    transposed_dim: int | None = None  # the dim in a transposed convolution, where it is another

    def axis(self, module: nn.Module) -> int:
        """The dim of the tensor."""
        transposed = self.transposed_dim is not None and getattr(module, "transposed", False)
        return self.transposed_dim if transposed and self.transposed_dim is not None else self.dim

    def size(self, module: nn.Module) -> int | None:
        """The value that the tensor gives; None without the tensor."""
        tensor = getattr(module, self.tensor, None)
        if tensor is None:
            return None
        counts = self.per_group and self.axis(module) == 1
        return int(tensor.shape[self.axis(module)]) * (int(module.groups) if counts else 1)  # type: ignore[arg-type]


_CONV, _NORM = nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase
WIDTHS = (
    Width(nn.Linear, "out_features", "weight", 0),
    Width(nn.Linear, "in_features", "weight", 1),
    Width(_CONV, "out_channels", "weight", 0, per_group=True, transposed_dim=1),
    Width(_CONV, "in_channels", "weight", 1, per_group=True, transposed_dim=0),
    Width(_NORM, "num_features", "weight", 0),
    Width(_NORM, "num_features", "running_mean", 0),
    Width(nn.GroupNorm, "num_channels", "weight", 0),
    Width(nn.Embedding, "embedding_dim", "weight", 1),
    Width(nn.Embedding, "num_embeddings", "weight", 0),
    Width(nn.PReLU, "num_parameters", "weight", 0),
)
