"""Blocks: exchangeable units, and what sizes they can have.

Units that stand in the same dims, constraints and costs are exchangeable, so an optimum keeps the most valuable n of
such a block. A block may have rows (the groups of a grouped convolution) and families (its input and its output
channels): then a level says how many rows stay and how many units of each family every row keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from ..coupling import Coupling, Rows
from ..errors import RequestError
from ..flow import FIXED, Extent

MOST_LEVELS = 4096  # what one choice may offer


@dataclass(frozen=True, eq=False)
class Block:
    """Exchangeable units: `families[f]` is [rows, units] (classes). Most blocks have one row and one family.

    A level with more units per row than there are stands for new ones, after the last unit of each row that stays.
    """

    families: tuple[np.ndarray, ...]
    levels: np.ndarray  # [levels, 1 + families]: rows left, units left per row of each family

    @property
    def rows(self) -> int:
        return self.families[0].shape[0]

    @property
    def now(self) -> int:
        """How many units there are."""
        return sum(f.size for f in self.families)

    def counts(self) -> np.ndarray:
        """How many units are left at each level."""
        return np.asarray(self.levels[:, 0] * self.levels[:, 1:].sum(axis=1))


@dataclass(frozen=True, eq=False)
class Term:
    """Occurrences of a block's family in an extent: `times` per unit, of the total or per row."""

    block: Block
    family: int
    times: Fraction
    per_row: bool

    def counts(self, new: bool = True) -> np.ndarray:
        """Its size at each level of the block, with the `new` units or without them."""
        n = self.block.levels[:, 1 + self.family]
        n = n if new else np.minimum(n, self.block.families[self.family].shape[1])
        return n if self.per_row else n * self.block.levels[:, 0]


class ClassExtent(Extent):
    """An extent whose labels are unit classes already."""


@dataclass(frozen=True, eq=False)
class Equation:
    """low <= sum of coefficient * extent over `parts` <= high."""

    parts: list[tuple[Extent, int]]
    low: int
    high: int
    name: str
    asked: bool = False  # by a branch of the forward, which a conflict can name


class Partition:
    """The free units of a coupling in blocks.

    `features` are label arrays that tell units apart by how often they occur; `ties` are the equations that rows
    of unlike units demand; `slots` are how many new units may come after each class; `notes` say what freedom was left
    out.
    """

    def __init__(
        self,
        coupling: Coupling,
        frozen: np.ndarray,
        features: Iterable[np.ndarray],
        slots: np.ndarray | None = None,
    ) -> None:
        self.coupling, self.frozen = coupling, frozen
        self.slots = np.zeros(coupling.n_units, dtype=np.int64) if slots is None else slots
        self.blocks: list[Block] = []
        self._families: list[tuple[Block, int]] = []
        self._family = np.full(coupling.n_units, -1)  # which of these a class is of
        self.ties: list[Equation] = []
        self.notes: list[str] = []
        self._extents: dict[int, tuple[Extent, tuple[int, list[Term]]]] = {}
        self._known: dict[Any, tuple[int, list[Term]]] = {}  # the same, by the classes of an extent
        self._blocks_made = 1
        self._make_blocks(features)

    def _make_blocks(self, features: Iterable[np.ndarray]) -> None:
        """Refine the free units by every extent they stand in, then give rows their own blocks."""
        block_of = np.where(self.frozen, -1, 0)
        for units in _distinct(self.coupling.unit_of[labels.reshape(-1)] for labels in features):
            self._refine(block_of, units)
        clusters, loose = self._clusters(block_of)
        for rows in loose:
            self._tie_rows(rows)
            for row in rows.units:
                self._refine(block_of, row)
        taken = np.zeros(len(block_of), dtype=bool)
        for families, removable, counted in clusters:
            self._row_blocks(families, removable, counted)
            for family in families:
                taken[family] = True
        left = np.flatnonzero((block_of >= 0) & ~taken & self._real())
        left = left[np.argsort(block_of[left], kind="stable")]
        starts = np.flatnonzero(np.diff(block_of[left], prepend=-1))
        for units in np.split(left, starts[1:]) if len(left) else ():
            sizes = np.arange(len(units) + self._most_new(units) + 1)
            levels = np.stack([np.ones(len(sizes), dtype=np.int64), sizes], axis=1)
            self._add(Block((units[None, :],), levels))

    def _most_new(self, units: np.ndarray, counted: bool = False) -> int:
        """How many new units may come among these. A row of one unit comes as a row, which no level stands for.

        Except where rows are just `counted`, and stay, and no weight has them as rows.
        """
        as_row = units.ndim == 2 and units.shape[1] == 1 and not (counted and not self._read_by_group[units].any())
        return 0 if as_row else int(self.slots[units].min(initial=MOST_LEVELS))

    @cached_property
    def _read_by_group(self) -> np.ndarray:
        """Bool per class: whether the groups of a weight have it among channels of their own."""
        found = np.zeros(self.coupling.n_units, dtype=bool)
        for e in self.coupling.sources.values():
            if e.per_row:
                found[self.coupling.units(e)] = True
        return found

    def _real(self) -> np.ndarray:
        real = np.ones(self.coupling.n_units, dtype=bool)
        real[FIXED] = False
        return real

    def _add(self, block: Block) -> None:
        self.blocks.append(block)
        for f, units in enumerate(block.families):
            self._family[units] = len(self._families)
            self._families.append((block, f))

    def _refine(self, block_of: np.ndarray, units: np.ndarray) -> None:
        """Split blocks by how often their classes occur among `units`."""
        units, counts = np.unique(units, return_counts=True)
        free = block_of[units] >= 0
        units, counts = units[free], counts[free]
        if len(units):
            pairs = block_of[units] * (int(counts.max()) + 1) + counts
            _, group = np.unique(pairs, return_inverse=True)
            block_of[units] = self._blocks_made + group
            self._blocks_made += int(group.max()) + 1

    # -- rows ------------------------------------------------------------------------------------------------------

    def _clusters(self, block_of: np.ndarray) -> tuple[list[tuple[list[np.ndarray], bool, bool]], list[Rows]]:
        """Row structures that form blocks of their own, and those that only tie the sizes of others.

        With them whether rows may go, and whether they are just counted, by a number that stays.
        """
        families: dict[tuple[int, ...], list[Rows]] = {}
        for rows in self.coupling.rows:
            key = (rows.units.shape[0], *np.sort(rows.units, axis=1).reshape(-1).tolist())
            families.setdefault(key, []).append(rows)
        found = [(same[0].units, same) for same in families.values()]
        keys = [{r.key for r in same} for _, same in found]
        clusters: list[list[int]] = []
        for i in range(len(found)):
            touching = [c for c in clusters if any(keys[i] & keys[j] for j in c)]
            clusters = [c for c in clusters if c not in touching] + [[i, *itertools.chain(*touching)]]
        uses = np.zeros(len(block_of), dtype=np.int64)
        for units, _ in found:
            np.add.at(uses, units.reshape(-1), 1)
        good, loose = [], []
        for cluster in clusters:
            members = [found[i] for i in sorted(cluster)]
            free = [(u, same) for u, same in members if not self.frozen[u].all()]
            if (
                free
                and all(self._is_uniform(u, block_of, uses) for u, _ in free)
                and len({len(u) for u, _ in free}) == 1
            ):
                whole = len(free) == len(members)
                every = [r for _, same in members for r in same]
                counted = all(r.grouped for r in every) and not all(r.removable for r in every)
                good.append(([u for u, _ in free], whole and all(r.removable for r in every), counted))
            else:
                loose += [same[0] for _, same in members]
        return good, loose

    def _is_uniform(self, units: np.ndarray, block_of: np.ndarray, uses: np.ndarray) -> bool:
        """All rows are alike: one block, every unit once, in no other row structure."""
        blocks = np.unique(block_of[units])
        return len(blocks) == 1 and blocks[0] >= 0 and bool((uses[units] == 1).all())

    def _tie_rows(self, rows: Rows) -> None:
        """Rows of unlike units: every row keeps equally many."""
        first = rows.units[0]
        for row in rows.units[1:]:
            parts: list[tuple[Extent, int]] = [(ClassExtent(first), 1), (ClassExtent(row), -1)]
            self.ties.append(Equation(parts, 0, 0, f"rows of equal size: {rows.node.at()}"))

    def _row_blocks(self, families: list[np.ndarray], removable: bool, counted: bool) -> None:
        """Blocks for a cluster of rows: all sizes together while the list is short, else fewer freedoms, and a note."""
        rows, sizes = families[0].shape[0], [u.shape[1] for u in families]
        per_row = [np.arange(1, u.shape[1] + self._most_new(u, counted) + 1) for u in families]
        kept = np.arange(1, rows + 1) if removable else np.array([rows])
        combinations = int(np.prod([len(n) for n in per_row]))
        if len(kept) * combinations <= MOST_LEVELS:
            levels = _grid([kept, *per_row])
        elif removable and combinations + rows <= MOST_LEVELS:
            levels = np.unique(
                np.concatenate([_grid([kept, *[np.array([n]) for n in sizes]]), _grid([np.array([rows]), *per_row])]),
                axis=0,
            )
            self.notes.append(f"{rows} groups of {sizes}: either whole groups go, or units of each group, not both")
        else:
            for units, n in zip(families, per_row, strict=True):
                self._add(Block((units,), _grid([np.array([rows]), n])))
            if removable:
                self.notes.append(f"{rows} groups of {sizes}: too many combinations, so no whole group goes")
            return
        self._add(Block(tuple(families), levels))

    # -- sizes of extents ------------------------------------------------------------------------------------------

    def extent(self, e: Extent) -> tuple[int, list[Term]]:
        """An extent as a fixed number and terms over blocks; one object for all extents of the same units."""
        if id(e) not in self._extents:
            units = e.labels if isinstance(e, ClassExtent) else self.coupling.units(e)
            content = (e.per_row, units.shape[0] if e.per_row else 1, units.tobytes())
            if content not in self._known:
                self._known[content] = self._counted(e, units)
            self._extents[id(e)] = (e, self._known[content])
        return self._extents[id(e)][1]

    def _counted(self, e: Extent, units: np.ndarray) -> tuple[int, list[Term]]:
        rows = units.shape[0] if e.per_row else 1
        counts = np.bincount(self._family[units.reshape(-1)] + 1, minlength=1)
        constant = int(counts[0])  # of no family is what is frozen
        if e.per_row and constant % rows:
            raise RequestError("a grouped convolution has groups with unlike fixed channels")
        out = []
        for i in np.flatnonzero(counts[1:]).tolist():
            block, f = self._families[i]
            times = Fraction(int(counts[1 + i]), block.families[f].size)
            if e.per_row and block.rows == 1:
                times /= rows  # rows tied to equal size one by one
            out.append(Term(block, f, times, e.per_row and block.rows > 1))
        return constant // rows, out


def _distinct(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Without those that say the same once more: most dims have the units of another."""
    seen: set[bytes] = set()
    for a in arrays:
        if (content := a.tobytes()) not in seen:
            seen.add(content)
            yield a


def _grid(axes: Sequence[np.ndarray]) -> np.ndarray:
    """All combinations, one per row."""
    return np.stack([g.reshape(-1) for g in np.meshgrid(*axes, indexing="ij")], axis=1)


def _ranked(units: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Units of each row by falling order; ties go to the lowest index."""
    found = np.argsort(-order[units], axis=1, kind="stable")
    return np.take_along_axis(units, found, axis=1)


def block_value(block: Block, value: np.ndarray, new: np.ndarray | None = None) -> np.ndarray:
    """The largest value that a block can have at each of its levels; `new` is that of a new unit after each class.

    >>> b = Block((np.array([[1, 2, 3]]),), np.array([[1, 0], [1, 1], [1, 2], [1, 3]]))
    >>> block_value(b, np.array([0.0, 1.0, 5.0, 2.0])).tolist()
    [0.0, 5.0, 7.0, 8.0]
    """
    sums: list[np.ndarray] = []
    for units in block.families:
        prefix = np.cumsum(value[_ranked(units, value)], axis=1)
        most = max(0, int(block.levels[:, 1 + len(sums)].max(initial=0)) - units.shape[1])
        of_new = np.zeros(len(units)) if new is None else new[units[:, -1]]
        more = of_new.reshape(-1, 1) * np.arange(1, most + 1)
        sums.append(np.concatenate([np.zeros((len(units), 1)), prefix, prefix[:, -1:] + more], axis=1))
    per_row = sum(s[:, block.levels[:, 1 + f]] for f, s in enumerate(sums))  # [rows, levels]
    ranked = -np.sort(-np.asarray(per_row), axis=0)
    total = np.cumsum(ranked, axis=0)
    return total[block.levels[:, 0] - 1, np.arange(len(block.levels))]


def best_units(block: Block, level: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, dict[int, list[int]]]:
    """The units that stay at a level, and after which of them new ones come: for each of these the unit to copy.

    Those are the most valuable units of the same row, one after the other, and round again where more come.
    """
    chosen = [_ranked(units, value)[:, : level[1 + f]] for f, units in enumerate(block.families)]
    worth = sum(value[c].sum(axis=1) for c in chosen)
    rows = np.argsort(-np.asarray(worth), kind="stable")[: level[0]]
    new: dict[int, list[int]] = {}
    for f, units in enumerate(block.families):
        if (more := int(level[1 + f]) - units.shape[1]) > 0:
            best = np.resize(np.arange(units.shape[1]), more)
            new |= zip(units[rows, -1].tolist(), chosen[f][rows][:, best].tolist(), strict=True)
    return np.concatenate([c[rows].reshape(-1) for c in chosen]), new
