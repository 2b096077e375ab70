"""Low rank: a linear map as two, with few channels between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import RequestError
from ..precision import wide

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def factored(layer: nn.Module, rank: int, basis: torch.Tensor | None = None) -> nn.Sequential:
    """An nn.Linear or an ungrouped convolution as one to `rank` channels, and one from these to its outputs.

    With an orthonormal `basis` U, [outputs, rank], the weights are U^T W and U: the map nearest to W of all whose
    outputs lie in the span of U. Without one U is the first left singular vectors of W, so that no map of that rank is
    nearer (Eckart and Young, Psychometrika 1936). Kernel, stride and padding are those of the first map, the bias is
    that of the second. RequestError for another layer, or a rank that is none.

    >>> layer = nn.Conv2d(8, 16, 3, padding=1)
    >>> factored(layer, 4)
    Sequential(
      (0): Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (1): Conv2d(4, 16, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    weight = matrix_of(layer)
    outputs, inputs = weight.shape
    if not 1 <= rank < min(outputs, inputs):
        most = min(outputs, inputs) - 1
        raise RequestError(f"rank {rank}: a map of {inputs} inputs and {outputs} outputs takes a rank from 1 to {most}")
    first, second = _two(layer, rank)
    if not weight.is_meta:
        u = torch.linalg.svd(weight, full_matrices=False)[0][:, :rank] if basis is None else basis.to(weight)
        if u.shape != (outputs, rank):
            raise RequestError(f"a basis of shape {tuple(u.shape)} is none of rank {rank} for {outputs} outputs")
        with torch.no_grad():
            first.weight.copy_((u.T @ weight).reshape(first.weight.shape))
            second.weight.copy_(u.reshape(second.weight.shape))
            if second.bias is not None:
                second.bias.copy_(layer.bias)
    for new, old in ((first.weight, layer.weight), (second.weight, layer.weight), (second.bias, layer.bias)):
        if new is not None:
            new.requires_grad_(bool(old.requires_grad))  # type: ignore[union-attr]
    return nn.Sequential(first, second).train(layer.training)


def matrix_of(layer: nn.Module) -> torch.Tensor:
    """The weight as a matrix [outputs, inputs], in double precision. RequestError where it cannot be two maps."""
    if type(layer) not in (nn.Linear, *CONVS) or getattr(layer, "groups", 1) != 1:
        raise RequestError(f"low rank is for an nn.Linear and ungrouped convolutions, not for {type(layer).__name__}")
    if layer._parameters.get("weight") is None or layer._forward_hooks or layer._forward_pre_hooks:
        raise RequestError("low rank: this layer computes its weight or has hooks, which another would not have")
    weight = layer._parameters["weight"].detach()  # type: ignore[union-attr]
    return (weight if weight.is_meta else wide(weight)).reshape(weight.shape[0], -1)


def _two(layer: Any, rank: int) -> tuple[Any, Any]:
    """The two maps, on the layer's device and of its dtype, with nothing in them yet."""
    of, like = type(layer), {"device": layer.weight.device, "dtype": layer.weight.dtype}
    outputs, inputs = layer.weight.shape[:2]
    first: tuple[Any, ...]
    second: tuple[Any, ...]
    if isinstance(layer, nn.Linear):
        first, second, how = (), (), {}
    else:
        first, second = (layer.kernel_size,), ((1,) * len(layer.kernel_size),)
        how = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    return (
        nn.utils.skip_init(of, inputs, rank, *first, bias=False, **how, **like),
        nn.utils.skip_init(of, rank, outputs, *second, bias=layer.bias is not None, **like),
    )
