"""Solving: the layers that are still to be repaired, one by one, and how to take it all back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..calls import LayerCall, from_matrix, matrix
from ..precision import wide
from .normal import Normal
from .report import Repaired
from .rows import Block, Sample, blocks_of, outputs_kept
from .survey import Task

Pair = tuple[LayerCall, LayerCall]  # a call of the teacher and the same one of the model


class Ledger:
    """What was written into which parameters, layer by layer, so that any number of layers can be taken back."""

    def __init__(self) -> None:
        self.layers: list[tuple[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]] = []

    def write(self, name: str, changes: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Parameters get new values in place."""
        self.layers.append((name, [(p, p.detach().clone(), new) for p, new in changes]))  # first, in case it is cut off
        self._copy(len(self.layers) - 1, 2)

    def keep(self, count: int) -> None:
        """Have the first `count` layers at their new values, all others as they were."""
        for k in range(len(self.layers)):
            self._copy(k, 2 if k < count else 1)

    def clear(self) -> None:
        """Take all back, and forget it."""
        self.keep(0)
        self.layers.clear()

    def _copy(self, k: int, which: int) -> None:
        with torch.no_grad():
            for entry in self.layers[k][1]:
                entry[0].copy_(entry[which])


class Solving:
    """The layers that are open, by weight; each is solved once its rows are there, and closed."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        indices: Mapping[str, Mapping[int, Any]],
        tasks: Sequence[Task],
        sample: Sample,
        ridge: float,
        memory: int,
        ledger: Ledger,
    ) -> None:
        self.named = dict(model.named_parameters())
        self.old = {name: tuple(p.shape) for name, p in teacher.named_parameters()}
        self.indices, self.sample, self.ridge, self.memory = indices, sample, ridge, memory
        self.ledger = ledger
        self.open = {task.weight: task for task in tasks}
        self.rows: list[Repaired] = []
        self.left: dict[str, str] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the rows of the layers that are open: they are run anew."""
        self.normal: dict[str, Normal] = {}
        self.energy: dict[str, float] = {}
        self.call: dict[str, LayerCall] = {}
        self.eps: dict[str, float] = {}

    def leave(self, name: str, why: str) -> None:
        """Close a layer as it is."""
        del self.open[name]
        self.left[name] = why

    def take(self, pairs: Sequence[Pair]) -> bool:
        """The same call in all batches. Whether what was run so far is not as it would be now, for a layer has changed
        that was called before."""
        name, nr = pairs[0][1].key
        task = self.open[name]
        blocks = self.lacking(name, list(enumerate(pairs)))
        if name not in self.open:
            return False
        if task.calls == 1 and self.exact(name, sum(float(b.lacking.square().sum()) for b in blocks)):
            return self.close(name, 0.0)
        self.add(name, blocks)
        return name in self.open and nr + 1 == task.calls and self.solve(name) and task.calls > 1

    def lacking(self, name: str, pairs: Sequence[tuple[int, Pair]]) -> list[Block]:
        """What outputs lack, for pairs of calls with the numbers of their batches."""
        found: list[Block] = []
        dims = self.indices.get(name, {})
        for k, (teacher, call) in pairs:
            kept = outputs_kept(dims, teacher, call, self.old[name], self.named[name].shape)
            if max(kept, default=-1) < 0:
                self.leave(name, "all its outputs are new")
                return []
            columns = matrix(call, self.named[name]).shape[2] + 1
            try:
                found += blocks_of(self.sample, k, teacher, call, kept, columns)
            except ValueError as e:
                self.leave(name, str(e))
                return []
            assert call.y is not None
            self.eps[name] = torch.finfo(call.y.dtype).eps
            self.call[name] = call
        self.energy[name] = self.energy.get(name, 0.0) + sum(b.wanted for b in found)
        return found

    def add(self, name: str, blocks: Sequence[Block]) -> None:
        """Add rows to those of a layer; one that takes too much room is left."""
        normal = self.normal.setdefault(name, Normal())
        for block in blocks:
            x = block.inputs(bool(self.open[name].bias))
            if 4 * normal.size(x) > self.memory:
                self.leave(name, f"too large: {x.shape[2]} inputs, and as many rows or more")
                return
            normal.add(x, block.lacking)

    def exact(self, name: str, square: float) -> bool:
        """Whether no more is lacking than the rounding of the outputs."""
        return square <= (2 * self.eps[name]) ** 2 * self.energy[name]

    def close(self, name: str, square: float, after: float | None = None, note: str = "nothing is lacking") -> bool:
        """Close a layer, with its errors; whether it has new values."""
        total = self.energy[name] or 1.0
        kept = after is not None and not note
        self.rows.append(Repaired(name, square / total, (square if after is None else after) / total, kept, note))
        del self.open[name]
        self.normal.pop(name, None)
        return kept

    def solve(self, name: str) -> bool:
        """Solve a layer for the rows it has, and write it if that makes its error smaller; whether it has changed."""
        normal = self.normal[name]
        before = normal.square
        if self.exact(name, before):
            return self.close(name, before)
        d = normal.solve(self.ridge)
        changes, actual = self._changes(name, d)
        if not all(bool(torch.isfinite(new).all()) for _, new in changes):
            self.leave(name, "its inputs or outputs, or what solves them, are not finite")
            return False
        after = normal.error(actual)
        if not after < before:
            return self.close(name, before, after, "its own error would not fall")
        self.ledger.write(name, changes)
        return self.close(name, before, after, "")

    def _changes(self, name: str, d: torch.Tensor) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """The parameters with their new values, and the difference that these make as rounded."""
        weight, call, bias = self.named[name].detach(), self.call[name], self.open[name].bias
        columns = d.shape[1] - bool(bias)
        w = wide(weight)
        new = (w + from_matrix(call, d[:, :columns].transpose(1, 2), weight.shape)).to(weight.dtype)
        changes: list[tuple[torch.Tensor, torch.Tensor]] = [(self.named[name], new)]
        actual = [matrix(call, wide(new) - w).transpose(1, 2)]
        if bias:
            b = wide(self.named[bias].detach())
            shift = (b + d[:, columns].reshape(b.shape)).to(self.named[bias].dtype)
            changes.append((self.named[bias], shift))
            actual.append((wide(shift) - b).reshape(d.shape[0], 1, -1))
        return changes, torch.cat(actual, 1)
