"""Kernel sizes: which taps of a convolution stay, and the padding that keeps its output.

Along each dim a kernel grows by new taps on both sides, half of them (rounded down) before; they hold zeros, so that
what a convolution computes stays where its padding follows. It shrinks to the taps near its centre that weigh most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..edits import Kernel, Selection, SetKernel, is_convolution
from ..errors import RequestError
from ..graph import Graph
from ..trace import Node, listing
from .file import runs
from .record import PlanCost

Padding = tuple[int, ...] | str


@dataclass(frozen=True)
class Convolution:
    """What a convolution has along its spatial dims."""

    name: str
    size: tuple[int, ...]
    padding: Padding
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False

    def sides(self, size: Sequence[int], padding: Padding) -> list[tuple[int, int]]:
        """By dim the padding before and after, as torch understands it; of a transposed one what it cuts off."""
        if isinstance(padding, str):
            totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(self.dilation, size, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        return [(p, p) for p in padding]

    def kernel(self, size: tuple[int, ...], padding: Padding) -> Kernel:
        """As the module has it."""
        sides = self.sides(size, padding)
        return Kernel(size, padding, tuple(p for both in reversed(sides) for p in both))

    @property
    def now(self) -> Kernel:
        return self.kernel(self.size, self.padding)

    def following(self, size: tuple[int, ...]) -> Padding:
        """The padding with which outputs keep their sizes, whatever the inputs. Raises RequestError if there is none.

        >>> conv = Convolution("stem", (3, 3), (1, 1), (2, 2), (1, 2))
        >>> conv.following((5, 5)), conv.following((1, 3))
        ((2, 3), (0, 1))
        """
        if size == self.size or self.padding == "same":
            return self.padding
        found = []
        for k, (old, new, d, (p, _)) in enumerate(
            zip(self.size, size, self.dilation, self.sides(self.size, self.padding), strict=True)
        ):
            more = d * (new - old)
            if more % 2:
                raise RequestError(
                    f"resize_kernel of {self.name!r}: from {old} to {new} in dim {k} the output keeps its size only "
                    f"with {more:+} padding on both sides together, and torch's layers pad both sides alike; change it "
                    "by an even number, or give padding= (ints, or 'same' where the stride is 1)"
                )
            if p + more // 2 < 0:
                raise RequestError(
                    f"resize_kernel of {self.name!r}: from {old} to {new} in dim {k} the output keeps its size only "
                    f"with a padding of {p + more // 2}, now {p}; give padding= (0 or more), so that the output grows"
                )
            found.append(p + more // 2)
        return tuple(found)

    def keeps(self, size: tuple[int, ...], padding: Padding) -> bool:
        """Whether old taps meet what they met, with zeros in new ones, and every output is still there."""
        before, after = self.sides(self.size, self.padding), self.sides(size, padding)
        for old, new, d, a, b in zip(self.size, size, self.dilation, before, after, strict=True):
            lead = (new - old) // 2
            if new < old or b != (a[0] + d * lead, a[1] + d * (new - old - lead)):
                return False
        return True


def taps(weights: Sequence[float], size: int) -> list[int]:
    """The taps of a kernel of another size along one dim: old positions, -1 for a new tap.

    `weights` are mean absolute weights by slice. What stays has the smallest distance to the centre over 1 + weight; of
    equals the first.

    >>> taps([1, 1, 1, 1, 1], 7), taps([1, 1, 1, 2], 3), taps([1, 1, 1, 1], 3)
    ([-1, 0, 1, 2, 3, 4, -1], [1, 2, 3], [0, 1, 2])
    """
    now = len(weights)
    if size >= now:
        lead = (size - now) // 2
        return [-1] * lead + list(range(now)) + [-1] * (size - now - lead)
    far = [abs(k - (now - 1) / 2) / (1 + weight) for k, weight in enumerate(weights)]
    return sorted(sorted(range(now), key=far.__getitem__)[:size])


def kernel_parts(
    graph: Graph,
    after: Graph,
    edits: Sequence[SetKernel],
    names: Sequence[str],
    maps: Mapping[int, list[int]],
    fill: Any,
) -> dict[str, Any]:
    """The parts of a `PlanRecord` that resizes a kernel: `names` are those of the weight, `maps` its taps by dim."""
    trace = after.trace
    params = [(p, q) for v, p in graph.trace.params.items() if p.kind != "constant" and (q := trace.params[v])]
    shapes = {name: (p.shape, q.shape) for p, q in params for name in (p.name, *p.aliases)}
    shapes |= {p.name: (p.shape, p.shape) for p in graph.trace.unused}
    grown = {d: fill for d, index in maps.items() if -1 in index}
    return {
        "sizes": {v.name: (v.nout, v.nout) for v in graph.vertices if v.makes_units},
        "edits": tuple(e for e in edits if e.before != e.after),
        "selection": Selection({name: dict(maps) for name in names}),
        "shapes": shapes,
        "costs": {name: PlanCost(c.now, after.costs[name].now) for name, c in graph.costs.items()},
        "root": trace.root,
        "example": graph.example,
        "outputs": tuple(trace.shape(o) for o in trace.outputs),
        "program": listing(trace),
        "units": {name: _units(shapes[name][0], maps) for name in names},
        "fills": {name: dict(grown) for name in names} if grown else {},
    }


def _units(shape: Sequence[int], maps: Mapping[int, list[int]]) -> dict[int, list[list[list[int]]]]:
    """A unit for each slice along each dim of a kernel, and for each new one."""
    found, first = {}, 1
    for d, index in maps.items():
        old = np.arange(first, first + shape[d])
        first += shape[d] + len(index)
        found[d] = [runs(old)]
        if -1 in index:
            found[d].append(runs(np.array([old[i] if i >= 0 else first - 1 - k for k, i in enumerate(index)])))
    return found


def seen_by(before: Sequence[Node], after: Sequence[Node], modules: Sequence[str], weight: str) -> str:
    """What sees that kernels change, beside the convolutions of these modules; empty: nothing.

    Their outputs keep their shapes, every other operation is what it was, and none of them reads the weight.
    """
    if len(before) != len(after):
        return "the forward runs other operations"
    for a, b in zip(before, after, strict=True):
        own = a.module in modules and (a.op == "pad" or is_convolution(a))
        if (a.op, a.module) != (b.op, b.module) or (a.shapes != b.shapes and not (own and a.op == "pad")):
            return f"{b.at()} is another operation, or of another shape"
        if not own and (a.args != b.args or weight in b.refs()):
            return f"{b.at()} takes its arguments from the kernel"
    return ""
