"""What new slices hold at first: numbers, or values as the layer draws them.

Drawn values depend on the name of the parameter alone, so that a plan gives the same network each time, and the random
state of the caller is left alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..arguments import shown
from ..edits import is_grouped
from ..errors import RequestError
from .tensors import Change, new_slices

Init = Callable[[str, tuple[int, ...]], torch.Tensor]  # of a parameter's name and its new shape

SPLIT = "split"  # in place of it: new units are copies of old ones


def check_init(init: Any) -> None:
    """Raises RequestError unless `init` can draw new values."""
    if init is None or callable(init):
        return
    also = "; that new units are copies is settled when a plan is made: prune or resize with init='split'"
    raise RequestError(
        f"init={shown(init)}: give a function of a parameter's name and its new shape{also if init == SPLIT else ''}"
    )


def drawing(init: Init | str | None, dry_run: bool) -> Init | None:
    """What draws new values when a plan is applied; that new units are copies the plan says itself."""
    if isinstance(init, str) and init == SPLIT:
        return None
    check_init(init)
    if init is not None and dry_run:
        raise RequestError("init= with dry_run=True would draw nothing: give it to plan.apply(model, init=...)")
    return init  # type: ignore[return-value]


def fill(out: torch.Tensor, change: Change, owner: nn.Module | None, init: Init | None = None) -> None:
    """Write into the new slices of a tensor what they hold: numbers first, drawn values over them."""
    new = {d: new_slices(index) for d, index in change.dims.items() if not is_grouped(index)}
    for d, at in new.items():
        value = change.fills.get(d)
        if at and isinstance(value, (int, float)) and value != 0:
            out.index_fill_(d, torch.tensor(at, device=out.device), value)
    drawn = {d: at for d, at in new.items() if at and change.fills.get(d) == "drawn"}
    if drawn:
        found = (init or _drawn(change, owner))(change.name, tuple(out.shape)).to(out.device, out.dtype)
        for d, at in drawn.items():
            index = torch.tensor(at, device=out.device)
            out.index_copy_(d, index, found.index_select(d, index))


def _drawn(change: Change, owner: nn.Module | None) -> Init:
    """As torch's layers draw their weights at first; a tensor of another kind gets values like those it has."""

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        out = torch.empty(shape)
        if isinstance(owner, nn.Embedding):
            return nn.init.normal_(out, generator=generator)
        if isinstance(owner, nn.MultiheadAttention) and len(shape) > 1:
            return nn.init.xavier_uniform_(out, generator=generator)
        if isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) and len(shape) > 1:
            return nn.init.kaiming_uniform_(out, a=math.sqrt(5), generator=generator)
        if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
            bound = owner.hidden_size**-0.5
            return nn.init.uniform_(out, -bound, bound, generator=generator)
        old = change.tensor.detach().float() if change.tensor.is_floating_point() else torch.zeros(1)
        if old.device.type == "meta":
            return out
        spread = float(old.std(correction=0))
        return nn.init.normal_(out, float(old.mean()), max(spread, 1e-3), generator=generator)

    return draw
