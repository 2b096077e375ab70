"""Links: what is left to decide about unit classes are counts, and these are the relations between them.

Sizes that the forward computes come as affine forms; what it asks of sizes as bounds on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..flow import Path
from ..trace import Guard, Node, Size


@dataclass(frozen=True, eq=False)
class Link:
    """sum of coefficient * (number of kept labels) over `parts` is `constant`, or at most `slack` above it."""

    parts: tuple[tuple[np.ndarray, int], ...]
    constant: int
    node: Node
    why: str
    slack: int = 0
    asked: bool = False  # by a branch of the forward, which a conflict can name


@dataclass(frozen=True, eq=False)
class Rows:
    """Every row that stays keeps equally many units; whole rows may go if `removable`. Same `key`: the same rows.

    Rows that are `grouped` are no dim of their own: an op just counts them, as a grouped convolution does. Where the
    units of rows stay (`stays`), they are nothing to decide on, unless new ones may come.
    """

    units: np.ndarray  # [rows, units per row], classes
    removable: bool
    key: str
    node: Node
    grouped: bool = False
    stays: bool = False


@dataclass(frozen=True, eq=False)
class AttributeUse:
    """factor * attribute + constant is the number of kept `labels`."""

    attribute: Size
    factor: int
    constant: int
    labels: np.ndarray
    node: Node


@dataclass(frozen=True, eq=False)
class Divides:
    """(constant + sum of coefficient * number of kept labels) % divisor is `remainder`."""

    parts: tuple[tuple[np.ndarray, int], ...]
    constant: int
    divisor: int
    remainder: int
    why: str


def components(n: int, edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The smallest member of the connected component of each of n labels.

    >>> components(5, [(np.array([1, 4]), np.array([2, 2]))]).tolist()
    [0, 1, 1, 3, 1]
    """
    root = np.arange(n)
    if not edges:
        return root
    a = np.concatenate([e[0].reshape(-1) for e in edges])
    b = np.concatenate([e[1].reshape(-1) for e in edges])
    while True:
        ra, rb = root[a], root[b]
        if (ra == rb).all():
            return root
        np.minimum.at(root, np.maximum(ra, rb), np.minimum(ra, rb))
        while (root != root[root]).any():
            root = root[root]


def row_of_units(rows: Rows, n: int) -> np.ndarray:
    """The row of each of n classes, -1 outside."""
    row_of = np.full(n, -1)
    for k, row in enumerate(rows.units):
        row_of[row] = k
    return row_of


def same_attribute(uses: Sequence[AttributeUse]) -> list[Link]:
    """One attribute gives one number, wherever it is used."""
    links = []
    first: dict[Size, AttributeUse] = {}
    for use in uses:
        a = first.setdefault(use.attribute, use)
        if a is not use:
            parts = ((a.labels, use.factor), (use.labels, -a.factor))
            constant = a.constant * use.factor - use.constant * a.factor
            links.append(Link(parts, constant, use.node, f"{use.attribute} gives both sizes"))
    return links


def trivial(link: Link, unit_of: np.ndarray) -> bool:
    """A link that holds whatever is kept."""
    total = np.zeros(int(unit_of.max()) + 1, dtype=np.int64)
    for labels, c in link.parts:
        total += c * np.bincount(unit_of[labels.reshape(-1)], minlength=len(total))
    return not total[1:].any() and link.constant <= int(total[0]) <= link.constant + link.slack


def answer(guard: Guard, now: int) -> tuple[int | None, int | None]:
    """The bounds on left - right within which the answer stays what it was; `now` is its present value."""
    match guard.sense if guard.holds else _OPPOSITE[guard.sense]:
        case "==":
            return 0, 0
        case "!=":
            return (1, None) if now > 0 else (None, -1)
        case "<":
            return None, -1
        case "<=":
            return None, 0
        case ">":
            return 1, None
        case _:
            return 0, None


_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}


def within(
    parts: Sequence[tuple[np.ndarray, int]], constant: int, low: int | None, high: int | None, node: Node, why: str
) -> Link | None:
    """low <= constant + sum of coefficient * kept labels <= high; None if it cannot fail."""
    least = constant + sum(c * labels.size for labels, c in parts if c < 0)
    most = constant + sum(c * labels.size for labels, c in parts if c > 0)
    low, high = least if low is None else low, most if high is None else high
    if low <= least and most <= high:
        return None
    return Link(tuple(parts), low - constant, node, why, high - low, asked=True)


def number_at(node: Node, path: Path) -> Any:
    """The value that the program holds at a place among an operator's arguments."""
    value: Any = node.args.get(path[0])
    for k in path[1:]:
        value = value[k]
    return value
