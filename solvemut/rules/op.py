"""OPS: one record per ATen operation, with all that solvemut knows of it. Adding an operation is adding its record.

A record without one of its parts fails when it is entered, that is when the package is loaded; a rule that says that an
int counts units, where its record does not say how that int follows, fails at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..flow import Flow, Labels, Output
from ..trace import Node, Ref

Rule = Callable[[Flow, Node], Output]


class After(Protocol):
    """What is left of the values around one operation after a change."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what the operation makes."""

    def labels(self, arg: Ref) -> Labels:
        """The labels that an argument had before."""

    def count(self, labels: np.ndarray) -> int:
        """How many of these labels are left."""

    def rows(self, labels: np.ndarray | None, rows: int) -> int:
        """How many of so many equal parts of them are not empty."""

    def shape(self, x: Labels) -> tuple[int, ...]:
        """The shape of a value that had these labels."""


Follow = Callable[[After, Node, dict[str, Any]], None]


@dataclass(frozen=True)
class Repeat:
    """An attribute in which one of torch's own layers repeats the size of one of its tensors."""

    layer: str  # its class, below torch.nn
    attribute: str
    tensor: str
    dim: int
    per_group: bool = False  # the size counts once for each group
    transposed_dim: int | None = None  # the dim in a transposed convolution, where it is another
    unless: str = ""  # a tensor of the layer that tells this size instead, where there is one


@dataclass(frozen=True)
class Op:
    """What solvemut knows of one ATen operation.

    `labels` passes unit labels from its arguments to its results, and states the facts about them, the work that a FLOP
    count counts included. `sizes` names the int arguments that count units, and `follow` gives them their values after
    a change; `ints` those that the rule heeds or knows to leave sizes alone ("*": all). Arguments that name dims need
    no word. `feature` is the dim that it calls its channels or features, None where the labels tell; `shown` is False
    for bookkeeping that users did not write. `repeats` are the attributes of layers that go with its tensors, `width`
    the one in which even a layer without tensors says how wide its input is. `fill` says by argument what new slices
    of a parameter hold, unless products are summed along them: then it is 0. An argument that is not named gets values
    as its layer draws them at first.
    """

    name: str
    labels: Rule
    sizes: frozenset[str]
    follow: Follow | None
    ints: frozenset[str]
    feature: int | None
    shown: bool
    repeats: tuple[Repeat, ...]
    width: str
    fill: Mapping[str, float]

    def __post_init__(self) -> None:
        if bool(self.sizes) != (self.follow is not None):
            given, lacks = ("sizes=", "follow=") if self.sizes else ("follow=", "sizes=")
            raise ValueError(f"{self.name}: {given} without {lacks}; a size that counts units must follow them")


OPS: dict[str, Op] = {}
# Arguments that name dims: every rule heeds them.
DIMS = frozenset(("dim", "dims", "dim0", "dim1", "axis0", "axis1", "source", "destination", "start_dim", "end_dim"))


def op(
    names: str,
    *,
    ints: str,
    sizes: str = "",
    follow: Follow | None = None,
    feature: int | None = None,
    shown: bool = True,
    repeats: tuple[Repeat, ...] = (),
    width: str = "",
    fill: Mapping[str, float] | None = None,
) -> Callable[[Rule], Rule]:
    """Enter the record of one or several operations; a second record for the same operation is an error."""

    def enter(rule: Rule) -> Rule:
        for name in names.split():
            if name in OPS:
                raise ValueError(f"two records for {name}")
            counted, harmless = frozenset(sizes.split()), frozenset(ints.split())
            OPS[name] = Op(name, rule, counted, follow, harmless, feature, shown, repeats, width, fill or {})
        return rule

    if not names.split():
        raise ValueError("a record needs the name of its operation")
    return enter


def dims_of(node: Node, name: str, ndim: int) -> list[int]:
    """A dim argument as a list of non-negative ints; all dims if it is None or empty."""
    dim = node.args.get(name)
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in (dim if isinstance(dim, (list, tuple)) else [dim])] if ndim else []
