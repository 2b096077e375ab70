"""Facts: what rules say of the labels of one trace, each with the node that stated it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..trace import Node

Path = tuple[Any, ...]  # where an int stands in the arguments of a node: ("size", 2)


@dataclass(frozen=True, eq=False)
class Extent:
    """A size that a plan may change: the number of `labels` that stay, per row that stays if there are several rows.

    Every group of a grouped convolution reads its own input channels: `labels` is then [groups, inputs].
    """

    labels: np.ndarray
    per_row: bool = False
    owner: Any = None  # the coupling whose labels these are, in requests

    @property
    def now(self) -> int:
        return self.labels.shape[-1] if self.per_row else self.labels.size


@dataclass(frozen=True, eq=False)
class Merge:
    """Labels that must be equal, position by position."""

    a: np.ndarray
    b: np.ndarray
    node: Node
    takes_over: bool = False  # the units of a parameter that the node is the first to read are those that come in


@dataclass(frozen=True, eq=False)
class Freeze:
    """Labels that must stay, with the reason."""

    labels: np.ndarray
    node: Node | None
    why: str


@dataclass(frozen=True, eq=False)
class Literal:
    """An int in a node's arguments that says how many of `labels` there are; with sign -1, as `x[:, -n:]` does."""

    labels: np.ndarray
    node: Node
    path: Path
    sign: int = 1


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Labels that stand over several dims of one dense tensor; `paths` tells which int gives each axis its size.

    Rectangles with the same `key` are cut into the same rows: the groups of one grouped convolution.
    """

    labels: np.ndarray
    node: Node
    paths: tuple[Path | None, ...]
    key: str
    grouped: bool = False  # one side of a grouped convolution, [groups, channels]
    stays: bool = False  # none of its units can go; it matters only that others may come


@dataclass(frozen=True, eq=False)
class Equal:
    """Sets of labels of which equally many must stay."""

    parts: tuple[np.ndarray, ...]
    node: Node
    why: str


@dataclass(frozen=True, eq=False)
class Floor:
    """Of these labels at least `least` stay."""

    labels: np.ndarray
    least: int
    node: Node
    why: str


@dataclass(frozen=True, eq=False)
class Multiple:
    """Of these labels a multiple of `divisor` stays."""

    labels: np.ndarray
    divisor: int
    node: Node
    why: str


@dataclass(frozen=True, eq=False)
class Sum:
    """Units of a weight along which a node sums products; `value` is the weight, "" where it meets another weight."""

    labels: np.ndarray
    node: Node
    value: str


@dataclass(frozen=True, eq=False)
class Held:
    """Labels over several dims of which one, `axis`, keeps its size: its positions are picked by number."""

    labels: np.ndarray
    axis: int
    node: Node


@dataclass(frozen=True, eq=False)
class Work:
    """Multiply-accumulates of a node: `coefficient` times the product of the extents."""

    node: Node
    coefficient: int
    extents: tuple[Extent, ...]


@dataclass
class Facts:
    """All that the rules have said about the labels of one trace."""

    merges: list[Merge] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    rectangles: list[Rectangle] = field(default_factory=list)
    equals: list[Equal] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    nonempty: list[np.ndarray] = field(default_factory=list)  # of each at least one unit stays
    floors: list[Floor] = field(default_factory=list)
    multiples: list[Multiple] = field(default_factory=list)
    summed: list[Sum] = field(default_factory=list)
    mixed: list[Freeze] = field(default_factory=list)  # units of two activations along which their product is summed
    held: list[Held] = field(default_factory=list)
    notes: list[Freeze] = field(default_factory=list)
    unsupported: list[Node] = field(default_factory=list)
