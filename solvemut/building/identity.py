"""identity_init: weights with which a layer passes on its input."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import batchnorm, conv, dropout

from ..arguments import real, shown
from ..errors import RequestError

Module = TypeVar("Module", bound=nn.Module)


def identity_init(module: Module, noise: float = 0.0) -> Module:
    """Give a layer weights that pass its input on, in place; returns the layer.

    Where there are more outputs than inputs, the first ones are the inputs and the weights of the others are random
    with a standard deviation of `noise`; where there are fewer, they are the first inputs. A batch norm passes its
    input on in eval mode, by the statistics that it gets here. RequestError says why, where no weights do so.

    >>> x = torch.randn(2, 3, 5, 5)
    >>> conv = identity_init(nn.Conv2d(3, 4, 3, padding=1))
    >>> torch.equal(conv(x)[:, :3], x), conv(x)[:, 3:].abs().max().item()
    (True, 0.0)
    >>> identity_init(nn.Conv2d(3, 3, 3))
    Traceback (most recent call last):
        ...
    solvemut.errors.RequestError: a Conv2d with kernel_size=(3, 3), padding=(0, 0) is no identity for any weights: ...
    """
    noise = real(noise, "noise", "give the standard deviation of the weights that pass nothing on, 0 or a small number")
    if noise < 0:
        raise RequestError(f"noise: give a standard deviation of at least 0, not {noise}")
    if not isinstance(module, nn.Module):
        raise RequestError(f"identity_init takes a torch.nn.Module, not {shown(module)}")
    kinds: Any = (
        (nn.Linear, _linear),
        (conv._ConvNd, _conv),
        ((batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm), _norm),
        (nn.Sequential, _sequential),
        ((nn.Identity, dropout._DropoutNd), lambda m, noise: None),
        (nn.PReLU, lambda m, noise: nn.init.ones_(m.weight)),
    )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise RequestError(f"this {type(module).__name__} has no size yet: run it once on an input first")
    found = next((f for kind, f in kinds if isinstance(module, kind)), None)
    if found is None:
        raise RequestError(
            f"a {type(module).__name__} is no identity for any weights that are known here; linear layers, "
            "convolutions, batch norms and sequences of these can be"
        )
    with torch.no_grad():
        found(module, noise)
    return module


def _no(module: nn.Module, told: str, why: str) -> RequestError:
    return RequestError(f"a {type(module).__name__} with {told} is no identity for any weights: {why}")


def _linear(module: Any, noise: float) -> None:
    nn.init.normal_(module.weight, std=noise) if noise else nn.init.zeros_(module.weight)
    n = min(module.in_features, module.out_features)
    module.weight[:n] = 0
    module.weight[range(n), range(n)] = 1
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _sequential(module: Any, noise: float) -> None:
    before = {k: t.clone() for k, t in module.state_dict().items()}
    try:
        for inner in module:
            identity_init(inner, noise)
    except RequestError:
        module.load_state_dict(before)  # all of it, or nothing
        raise


def _conv(module: Any, noise: float) -> None:
    taps, n = _taps(module), _passed(module)
    nn.init.normal_(module.weight, std=noise) if noise else nn.init.zeros_(module.weight)
    own = module.in_channels // module.groups
    for k in range(n):
        at = (k, k % own) if not module.transposed else (k, k % (module.out_channels // module.groups))
        row = module.weight[:, at[1]] if module.transposed and module.groups == 1 else module.weight[k]
        row.zero_()
        module.weight[at][tuple(taps)] = 1
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _passed(module: Any) -> int:
    """How many channels pass: the first ones. In groups only where each output sees the input of its number."""
    rows, columns, groups = module.out_channels, module.in_channels, module.groups
    if groups > 1 and rows != columns:
        told = f"in_channels={columns}, out_channels={rows}, groups={groups}"
        why = "an output sees the inputs of its own group only; make in_channels and out_channels equal"
        raise _no(module, told, why)
    return min(rows, columns)


def _taps(module: Any) -> list[int]:
    """In each dim the tap of the kernel that lies over the position itself."""
    told = f"kernel_size={module.kernel_size}, padding={module.padding!r}"
    if any(s != 1 for s in module.stride):
        raise _no(module, f"stride={module.stride}", "it leaves positions out; set the stride to 1")
    if module.transposed and any(module.output_padding):
        raise _no(module, f"output_padding={module.output_padding}", "it adds positions; leave it out")
    taps = []
    for d, (kernel, dilation) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        reach = dilation * (kernel - 1)
        left, right = (reach // 2, reach - reach // 2) if module.padding == "same" else (_padding(module, d),) * 2
        if left + right != reach:
            fits = f"padding={reach // 2}" if reach % 2 == 0 else "an odd kernel, or padding='same',"
            raise _no(module, told, f"its output has another size than its input; {fits} keeps it in dim {d}")
        if left % dilation:
            why = f"no tap of the kernel lies over the position itself in dim {d}; take an odd kernel"
            raise _no(module, f"{told}, dilation={module.dilation}", why)
        taps.append(left // dilation)
    return taps


def _padding(module: Any, d: int) -> int:
    return 0 if module.padding == "valid" else int(module.padding[d])


def _norm(module: Any, noise: float) -> None:
    """A norm passes its input on where it divides by statistics that it has stored."""
    if getattr(module, "running_var", None) is None:
        why = (
            "it divides by the statistics of its input; BatchNorm with its running statistics can be one, in eval mode"
        )
        raise _no(module, f"track_running_stats={getattr(module, 'track_running_stats', False)}", why)
    module.reset_running_stats()
    if module.weight is None:
        module.running_var.fill_(1 - module.eps)
    else:
        module.weight.fill_((1 + module.eps) ** 0.5)
        module.bias.zero_()
