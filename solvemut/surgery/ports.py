"""Ports: layers that stand, while sizes are settled, where what comes in and what is expected may differ.

A port is a linear layer, or a convolution of kernel size 1, of zeros: its input and its output are units of their own,
so that the program can change either. When both have come to the same size the port is taken out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..compile import Unless
from ..errors import RequestError
from ..flow import Extent
from ..graph import Graph, Vertex
from ..requests import Affine
from ..resizing import Alignment

_CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class Port:
    """A port in a model, by name; `cut` and `new` say what becomes of the positions that come out of it.

    Without them input and output just become one size. With them the input stays: of what comes out the positions from
    `cut[0]` to `cut[1]` go, and `new` others come before position `at`.
    """

    name: str
    vertex: str = ""  # the vertex in whose place it stands: it is worth what that was
    cut: tuple[int, int] | None = None
    new: int = 0
    at: int = 0

    @property
    def holds_input(self) -> bool:
        """Whether what comes in stays as it is."""
        return self.cut is not None or self.new > 0


def layer(shape: Sequence[int], dim: int, size: int, like: torch.Tensor | None, where: str) -> nn.Module:
    """The layer of a port for a value of this shape, whose units lie in `dim`, to another size."""
    n, dim = len(shape), dim % len(shape)
    if dim == n - 1:
        port: nn.Module = nn.Linear(shape[dim], size, bias=False)
    elif dim == 1 and n in _CONV:
        port = _CONV[n](shape[dim], size, 1, bias=False)
    else:
        raise RequestError(
            f"{where} has its units in dim {dim} of the shape {tuple(shape)}; layers and edges come and go where they "
            "lie in the last dim, or in dim 1 of a sequence, an image or a volume"
        )
    nn.init.zeros_(port.weight)  # type: ignore[arg-type]
    return port if like is None else port.to(like.device, like.dtype)


def requests(graph: Graph, ports: Sequence[Port]) -> Alignment:
    """What ports ask of the program."""
    asked = Alignment(held=[p.name for p in ports if p.holds_input])
    found = asked.conditions
    for port in ports:
        vertex = graph[port.name]
        if not port.holds_input:
            sides = (vertex.ins[0], vertex.out)
            found.append(sides[0] == sides[1])
            sizes = frozenset(side.now for side in sides)
            free = [extent for side in sides for extent, _, _ in side.terms]
            asked.gaps += [Unless(extent, sizes, f"a side of {port.name} keeps its size") for extent in free[:1]]
            continue
        (extent, _, _) = vertex.out.terms[0] if vertex.out.terms else (None, 0, "")
        if extent is None:
            raise RequestError(f"the size of {port.name} is fixed: {graph.frozen_because(vertex)}")
        labels = extent.labels
        start, stop = port.cut or (0, 0)
        if port.cut:
            found.append(_size(graph, labels[start:stop], f"what {port.name} loses") == 0)
            for a, b in ((0, start), (stop, len(labels))):
                if a < b:
                    found.append(_size(graph, labels[a:b], f"what {port.name} keeps") == b - a)
        if port.new:
            k = max(0, port.at - 1)
            beside = _size(graph, labels[k : k + 1], f"{port.name} at {port.at}")
            found.append(beside == 1 + port.new)
            for a, b in ((0, k), (k + 1, len(labels))):
                if a < b:
                    found.append(_size(graph, labels[a:b], f"what {port.name} keeps") == b - a)
            unit = int(graph.coupling.unit_of[labels[k]])
            asked.allowed[unit] = port.new
            asked.before |= {unit} if port.at == 0 else set()
    return asked


def shape_of(graph: Graph, vertex: Vertex) -> tuple[int, ...]:
    """The shape of what a vertex puts out."""
    return graph.trace.shape(vertex.nodes[-1] if vertex.nodes else vertex.name)


def with_size(shape: Sequence[int], dim: int | None, size: int | None) -> tuple[int, ...]:
    """A shape with another size in one dim; as it is, where that is not known."""
    return tuple(n if size is None or dim is None or d != dim % len(shape) else size for d, n in enumerate(shape))


def _size(graph: Graph, labels: Any, name: str) -> Affine:
    return Affine.of(Extent(labels, owner=graph.coupling), name)
