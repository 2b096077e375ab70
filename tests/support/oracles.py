"""Oracles: what a pruned network must equal, written without looking at how solvemut gets there.

* `masked`: the original network with every parameter slice that a plan removes set to zero, and with LayerNorm, RMSNorm
  and GroupNorm taking their statistics over the channels that stay.
* `count_params`, `count_flops`: a recount on the changed model.
* `kept_positions`, `kept_value`: which outputs of a layer stay, and what they are worth.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

# -- running and comparing ---------------------------------------------------------------------------------------------


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers in every parameter and statistic, so that no two slices are alike and none is zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((torch.randn(p.shape, generator=g) * 0.5 + 0.1).to(p.dtype))
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.copy_((torch.rand(b.shape, generator=g) + 0.5).to(b.dtype))
            elif name.endswith("running_mean"):
                b.copy_((torch.randn(b.shape, generator=g) * 0.3).to(b.dtype))
    return model


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[torch.Tensor]:
    """All tensors that a forward returns, without randomness. With gradients on, no fused path is taken."""
    torch.manual_seed(0)
    with torch.enable_grad():
        leaves = pytree.tree_leaves(model(*args, **dict(kwargs or {})))
    return [t.detach() for t in leaves if isinstance(t, torch.Tensor)]


def assert_same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], atol: float = 1e-9) -> None:
    """Equal shapes, and equal numbers to rounding relative to the size of the numbers."""
    assert [tuple(t.shape) for t in found] == [tuple(t.shape) for t in wanted]
    for a, b in zip(found, wanted, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        assert torch.isfinite(b).all()
        assert float((a - b).abs().max()) <= atol * scale, float((a - b).abs().max())


# -- the masked network ------------------------------------------------------------------------------------------------


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name they have."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def mask_of(shape: Sequence[int], dims: Mapping[int, Any]) -> torch.Tensor:
    """1 where a tensor stays. The input dim of a grouped convolution has one list per group that stays."""
    mask = torch.ones(tuple(shape))
    for d, index in dims.items():
        keep = torch.zeros(shape[d])
        if index and isinstance(index[0], list):
            continue
        keep[index] = 1
        mask = mask * keep.reshape([-1 if k == d else 1 for k in range(len(shape))])
    for d, index in dims.items():
        if index and isinstance(index[0], list):
            rows = list(dims.get(0, range(shape[0])))
            per_group = len(rows) // len(index)
            keep = torch.zeros(shape[0], shape[d])
            for r, row in enumerate(rows):
                keep[row, index[r // per_group]] = 1
            mask = mask * keep.reshape([shape[k] if k in (0, d) else 1 for k in range(len(shape))])
    return mask


class _MaskedLayerNorm(nn.Module):
    """Layer norm (or RMS norm) whose statistics are those of the positions that stay."""

    def __init__(self, norm: Any, mask: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.mask = norm, mask
        self.eps, self.weight, self.bias = norm.eps, norm.weight, getattr(norm, "bias", None)  # read by torch's layers
        self.normalized_shape = norm.normalized_shape
        self.shape, self.rms = tuple(norm.normalized_shape), isinstance(norm, nn.RMSNorm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dims, n = tuple(range(-len(self.shape), 0)), self.mask.sum()
        mean = 0.0 if self.rms else (x * self.mask).sum(dims, keepdim=True) / n
        var = (((x - mean) ** 2) * self.mask).sum(dims, keepdim=True) / n
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        y = (x - mean) / torch.sqrt(var + eps) * self.mask * self.weight
        return y if self.bias is None else y + self.bias


class _MaskedGroupNorm(nn.Module):
    """Group norm whose statistics are those of the channels that stay in each group."""

    def __init__(self, norm: nn.GroupNorm, mask: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.mask = norm, mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, *s = x.shape
        g = self.norm.num_groups
        y, m = x.reshape(b, g, c // g, -1), self.mask.reshape(1, g, c // g, 1)
        n = (m.sum(2, keepdim=True) * y.shape[-1]).clamp(min=1)
        mean = (y * m).sum((2, 3), keepdim=True) / n
        var = (((y - mean) ** 2) * m).sum((2, 3), keepdim=True) / n
        y = ((y - mean) / torch.sqrt(var + self.norm.eps) * m).reshape(b, c, *s)
        return y * self.norm.weight.reshape(1, -1, *[1] * len(s)) + self.norm.bias.reshape(1, -1, *[1] * len(s))


def masked(model: nn.Module, plan: Any) -> nn.Module:
    """A copy of the original model that computes what the pruned one must."""
    other = copy.deepcopy(model)
    named = tensors(other)
    with torch.no_grad():
        for name, dims in plan.indices.items():
            if not name.endswith("running_var"):  # a variance of zero would blow up what is zero already
                t = named[name]
                t.mul_(mask_of(t.shape, _with_a_length(named, name, dims)).to(t.dtype))
    for path, module in list(other.named_modules()):
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) and module.weight is not None:
            mask = mask_of(module.weight.shape, plan.indices.get(f"{path}.weight", {})).to(module.weight.dtype)
            swap = _MaskedGroupNorm if isinstance(module, nn.GroupNorm) else _MaskedLayerNorm
            parent, _, leaf = path.rpartition(".")
            setattr(other.get_submodule(parent), leaf, swap(module, mask))
    return other


def _with_a_length(named: Mapping[str, torch.Tensor], name: str, dims: Mapping[int, Any]) -> Mapping[int, Any]:
    """Of a weight under weight norm a slice goes by its length, which is zero then: zeros have no direction."""
    head, dot, leaf = name.rpartition(".")
    length = "original0" if leaf == "original1" else f"{leaf[:-2]}_g" if leaf.endswith("_v") else leaf
    lengths = named.get(f"{head}{dot}{length}")
    if lengths is None or length == leaf:
        return dims
    return {d: index for d, index in dims.items() if lengths.dim() <= d or lengths.shape[d] == 1}


# -- recounts ----------------------------------------------------------------------------------------------------------


def count_params(model: nn.Module) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> int:
    """torch's own count; the unfused attention, as the counter does not see the fused kernel of the CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.enable_grad():
        model(*args, **dict(kwargs or {}))
    return int(counter.get_total_flops())


def kept_positions(module: nn.Module, name: str, plan: Any) -> list[int] | None:
    """Old output channels of a layer that stay; None if it is no layer with channels of its own."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
        return None
    before = plan.shapes.get(f"{name}.weight", (tuple(weight.shape), None))[0]
    dims = plan.indices.get(f"{name}.weight", {})
    if isinstance(module, nn.Embedding):
        return list(dims.get(1, range(before[1])))
    if not getattr(module, "transposed", False):
        return list(dims.get(0, range(before[0])))
    inner = dims.get(1, list(range(before[1])))
    if not (inner and isinstance(inner[0], list)):
        return list(inner)
    rows = list(dims.get(0, range(before[0])))
    per_kept = len(rows) // len(inner)
    old_groups = int(plan_groups(module, plan, name))
    per_old = before[0] // old_groups
    return [rows[k * per_kept] // per_old * before[1] + i for k, row in enumerate(inner) for i in row]


def plan_groups(module: nn.Module, plan: Any, name: str) -> int:
    """The number of groups of a convolution before the plan."""
    for a in plan.attributes:
        if (a.module, a.name) == (name, "groups"):
            return int(a.before)
    return int(module.groups)  # type: ignore[arg-type]
