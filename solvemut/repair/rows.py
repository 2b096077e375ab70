"""Rows: what a layer gets and what its outputs lack, position by position."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..calls import TRANSPOSED, LayerCall, columns, outputs
from ..errors import PlanMismatchError
from ..precision import wide

BLOCK = 2048  # rows
ROWS = 32  # for each column: what is left then is larger by 1/32 than with all rows, on data not seen
TOGETHER, DRAWS = 8, 64  # at least so many examples share the positions drawn for them; about so many draws suffice


@dataclass(frozen=True)
class Sample:
    """Which positions of each example count: at most `positions` (None: all), drawn anew for every few examples.

    There are `examples` in all batches; where they give many more rows than there are columns, fewer positions do.
    """

    positions: int | None
    seed: int
    examples: int

    def blocks(
        self, call: LayerCall, batch: int, examples: int, places: int, width: int
    ) -> Iterator[tuple[slice, Any]]:
        """Slices of the examples, with the positions that count there (None: all). The same whenever it is asked."""
        each = places
        if self.positions is not None:
            each = min(places, self.positions, -(-ROWS * width // self.examples))
        together = max(TOGETHER, self.examples // DRAWS)
        size = max(1, min(BLOCK // max(1, each), examples if each == places else together))
        name = f"{self.seed}/{call.weight}/{call.nr}/{batch}"
        g = torch.Generator(device="cpu").manual_seed(zlib.crc32(name.encode()))
        for start in range(0, examples, size):
            at = None if each == places else torch.randperm(places, generator=g, device="cpu")[:each].sort().values
            yield slice(start, min(start + size, examples)), at


@dataclass(frozen=True)
class Block:
    """Rows of one call of the model: where they are, and what their outputs lack, [groups, rows, outputs]."""

    call: LayerCall
    examples: slice
    at: torch.Tensor | None
    lacking: torch.Tensor
    wanted: float  # sum of squares of the teacher's outputs there

    def inputs(self, ones: bool) -> torch.Tensor:
        """[groups, rows, columns], with a column of ones if the layer has a bias."""
        call, x = self.call, self.call.x
        batched = x.ndim == len(call.taps) + 2 if call.taps else x.ndim > 1
        rows = columns(call, x[self.examples] if batched else x, self.at).flatten(0, 1).transpose(0, 1)
        rows = wide(rows)
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2) if ones else rows


def blocks_of(
    sample: Sample, batch: int, teacher: LayerCall, call: LayerCall, kept: Sequence[int], width: int
) -> list[Block]:
    """The rows of a call: what the teacher puts out at the outputs `kept`, -1 for those that it does not have.

    `width`: how many columns the inputs have.
    """
    assert teacher.y is not None and call.y is not None
    wanted, found = outputs(teacher, teacher.y), outputs(call, call.y)
    if wanted.shape[:2] != found.shape[:2]:
        raise ValueError("it has other positions than in the teacher")
    examples, places = found.shape[:2]
    index = torch.tensor(kept, device=wanted.device)
    new = index < 0
    blocks = []
    for part, at in sample.blocks(call, batch, examples, places, width):
        y, t = (rows[part] if at is None else rows[part][:, at.to(rows.device)] for rows in (found, wanted))
        t = wide(t[..., index.clamp(min=0)])
        lacking = t - wide(y)
        if bool(new.any()):
            t, lacking = t.masked_fill(new, 0.0), lacking.masked_fill(new, 0.0)
        r = lacking.reshape(-1, call.groups, lacking.shape[-1] // call.groups).transpose(0, 1)
        blocks.append(Block(call, part, at, r, float(t.square().sum())))
    return blocks


def outputs_kept(
    dims: Mapping[int, Any], teacher: LayerCall, call: LayerCall, old: Sequence[int], new: Sequence[int]
) -> list[int]:
    """For each output of a layer which of the teacher's it was, -1 for a new one.

    `dims` are the index lists of its weight, of shapes `old` and `new`. Raises PlanMismatchError where they disagree.
    """
    dim = call.out_dim
    if call.kind == TRANSPOSED and max(call.groups, teacher.groups) > 1:
        found, n = _of_groups(dims, teacher.groups, call.groups, old), old[1] * teacher.groups
        size = new[1] * call.groups
    else:
        index = dims.get(dim, range(old[dim]))
        found = [int(i) for row in index for i in (row if isinstance(row, (list, tuple)) else [row])]
        n, size = old[dim], new[dim]
    if len(found) != size or max(found, default=-1) >= n:
        raise PlanMismatchError(
            f"{call.weight}: the plan leaves {len(found)} outputs of {n}, the model has {size}; was it applied to it?"
        )
    return found


def _of_groups(dims: Mapping[int, Any], before: int, after: int, old: Sequence[int]) -> list[int]:
    """A transposed convolution lists its outputs group by group; which groups these are, its inputs tell."""
    inputs = list(dims.get(0, range(old[0])))
    lists = dims.get(1, list(range(old[1])))
    size, each = len(inputs) // after, old[0] // before
    found: list[int] = []
    for k in range(after):
        group = next((i // each for i in inputs[k * size : (k + 1) * size] if i >= 0), -1)
        row = lists[k] if lists and isinstance(lists[0], (list, tuple)) else lists
        found += [-1 if i < 0 or group < 0 else group * old[1] + i for i in row]
    return found
