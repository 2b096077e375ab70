"""Compile: coupled units, their values and requests become an integer program over block sizes, with its decoder.

Units that stand in the same dims, constraints and costs are exchangeable, so an optimum keeps the most valuable n of
such a *block*: the program chooses n. A block may have rows (the groups of a grouped convolution) and families (its
input and its output channels): it then chooses how many rows stay and how many units each keeps. Blocks that a linear
equation ties in pairs become one *choice* that lists what they can be together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from .constraints import Affine, Budget, Cost, Multiple, Relation, Request
from .coupling import Coupling, Rows
from .errors import RequestError
from .flow import Extent
from .labels import FIXED
from .program import Program, RankOne, Solution, Width

MOST_LEVELS = 4096  # what one choice may offer


@dataclass(frozen=True, eq=False)
class Block:
    """Exchangeable units: `families[f]` is [rows, units] (classes). Most blocks have one row and one family."""

    families: tuple[np.ndarray, ...]
    levels: np.ndarray  # [levels, 1 + families]: rows kept, units kept per row of each family

    @property
    def rows(self) -> int:
        return self.families[0].shape[0]


@dataclass(eq=False)
class Choice:
    """What one width of the program chooses: one level of each of its blocks, together."""

    blocks: list[Block]
    picks: np.ndarray  # [levels, blocks]: index into each block's levels
    name: str = ""
    width: Width = field(default=None)  # type: ignore[assignment]  # set when the program is stated

    def keep(self, mask: np.ndarray) -> None:
        """Leave only some levels."""
        self.picks = self.picks[mask]


@dataclass(frozen=True, eq=False)
class Term:
    """Occurrences of a block's family in an extent: `times` per unit, of the total or per row."""

    block: Block
    family: int
    times: Fraction
    per_row: bool

    def counts(self) -> np.ndarray:
        """Its size at each level of the block."""
        n = self.block.levels[:, 1 + self.family]
        return n if self.per_row else n * self.block.levels[:, 0]


@dataclass
class Notes:
    """What compiling did that the user should see."""

    lines: list[str] = field(default_factory=list)


class Compiler:
    """Builds the program for one coupling, one set of unit values and requests.

    `value` has one finite number per unit class.
    """

    def __init__(
        self, coupling: Coupling, value: np.ndarray, requests: Sequence[Request], round_to: int | None = None,
        keep: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.coupling, self.value = coupling, value
        self.frozen = coupling.frozen | (keep if keep is not None else False)
        self.relations = [r for r in requests if isinstance(r, Relation)]
        self.multiples = [(r.size, r.divisor, r.remainder, str(r)) for r in requests if isinstance(r, Multiple)]
        self.budgets = [r for r in requests if isinstance(r, Budget)]
        self.round_to = round_to
        self.notes = Notes()
        self.blocks: list[Block] = []
        self.home: dict[int, tuple[Block, int]] = {}  # class -> its block and family
        self.equations: list[tuple[list[tuple[Extent, int]], int, str]] = []
        self.program = Program()
        self._extents: dict[int, tuple[Extent, int, list[Term]]] = {}

    # -- blocks ----------------------------------------------------------------------------------------------------

    def compile(self) -> Program:
        """The program; `decode` reads its solutions."""
        self._equations()
        self._make_blocks()
        self._make_choices()
        self._round()
        self._join_choices()
        self._never_empty()
        self._state()
        return self.program

    def _equations(self) -> None:
        for link in self.coupling.links:
            parts = [(Extent(labels.reshape(-1)), c) for labels, c in link.parts]
            self.equations.append((parts, link.constant, f"{link.why}: {link.node.at()}"))

    def _make_blocks(self) -> None:
        """Refine the free units by every extent they stand in, then give rows their own blocks."""
        block_of = np.where(self.frozen, -1, 0)
        for labels in self._features():
            block_of = self._refine(block_of, labels.reshape(-1))
        clusters, loose = self._clusters(block_of)
        for rows in loose:
            self._tie_rows(rows)
            for row in rows.units:
                block_of = self._refine(block_of, row, classes=True)
        taken = np.zeros(len(block_of), dtype=bool)
        for families, removable in clusters:
            self._row_blocks(families, removable)
            for family in families:
                taken[family] = True
        for b in np.unique(block_of[(block_of >= 0) & ~taken & self._real()]):
            units = np.flatnonzero((block_of == b) & ~taken)
            levels = np.stack([np.ones(len(units) + 1, dtype=np.int64), np.arange(len(units) + 1)], axis=1)
            self._add(Block((units[None, :],), levels))

    def _real(self) -> np.ndarray:
        real = np.ones(self.coupling.n_units, dtype=bool)
        real[FIXED] = False
        return real

    def _add(self, block: Block) -> None:
        self.blocks.append(block)
        for f, units in enumerate(block.families):
            for c in units.reshape(-1):
                self.home[int(c)] = (block, f)

    def _features(self) -> Iterable[np.ndarray]:
        for e in self.coupling.sources.values():
            yield e.labels
        for work in self.coupling.facts.works:
            for e in work.extents:
                yield e.labels
        for affine in self._affines():
            for e, _, _ in affine.terms:
                yield e.labels
        for parts, _, _ in self.equations:
            for e, _ in parts:
                yield e.labels

    def _affines(self) -> Iterable[Affine]:
        for r in self.relations:
            yield r.left
            yield r.right
        for size, _, _, _ in self.multiples:
            yield size

    def _refine(self, block_of: np.ndarray, labels: np.ndarray, classes: bool = False) -> np.ndarray:
        """Split blocks by how often their units occur in `labels`."""
        units = labels if classes else self.coupling.unit_of[labels]
        units, counts = np.unique(units, return_counts=True)
        free = block_of[units] >= 0
        units, counts = units[free], counts[free]
        if not len(units):
            return block_of
        pairs = np.stack([block_of[units], counts], axis=1)
        _, group = np.unique(pairs, axis=0, return_inverse=True)
        out = block_of.copy()
        out[units] = block_of.max() + 1 + group.reshape(-1)
        return out

    # -- rows ------------------------------------------------------------------------------------------------------

    def _clusters(self, block_of: np.ndarray) -> tuple[list[tuple[list[np.ndarray], bool]], list[Rows]]:
        """Row structures that form blocks of their own, and those that only tie the sizes of others."""
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
                good.append(([u for u, _ in free], whole and all(r.removable for _, same in free for r in same)))
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
            self.equations.append(
                ([(_ClassExtent(first), 1), (_ClassExtent(row), -1)], 0, f"rows of equal size: {rows.node.at()}")
            )

    def _row_blocks(self, families: list[np.ndarray], removable: bool) -> None:
        """Blocks for a cluster of rows: all sizes together while the list is short, else fewer freedoms, and a note."""
        rows, sizes = families[0].shape[0], [u.shape[1] for u in families]
        per_row = [np.arange(1, n + 1) for n in sizes]
        kept = np.arange(1, rows + 1) if removable else np.array([rows])
        if len(kept) * np.prod(sizes) <= MOST_LEVELS:
            levels = _grid([kept, *per_row])
        elif removable and np.prod(sizes) + rows <= MOST_LEVELS:
            levels = np.unique(np.concatenate([
                _grid([kept, *[np.array([n]) for n in sizes]]), _grid([np.array([rows]), *per_row])
            ]), axis=0)  # fmt: skip
            self.notes.lines.append(
                f"{rows} groups of {sizes}: either whole groups go, or units of each group, not both"
            )
        else:
            for units, n in zip(families, per_row, strict=True):
                self._add(Block((units,), _grid([np.array([rows]), n])))
            if removable:
                self.notes.lines.append(f"{rows} groups of {sizes}: too many combinations, so no whole group goes")
            return
        self._add(Block(tuple(families), levels))

    # -- sizes of extents ------------------------------------------------------------------------------------------

    def extent(self, e: Extent) -> tuple[int, list[Term]]:
        """An extent as a fixed number and terms over blocks."""
        found = self._extents.get(id(e))
        if found is None:
            found = (e, *self._extent(e))
            self._extents[id(e)] = found
        return found[1], found[2]

    def _extent(self, e: Extent) -> tuple[int, list[Term]]:
        units = e.labels if isinstance(e, _ClassExtent) else self.coupling.units(e)
        rows = units.shape[0] if e.per_row else 1
        classes, counts = np.unique(units, return_counts=True)
        constant = int(counts[self.frozen[classes]].sum())
        if e.per_row and constant % rows:
            raise RequestError("a grouped convolution has groups with unlike fixed channels")
        terms: dict[tuple[int, int], list[Any]] = {}
        for c, k in zip(classes.tolist(), counts.tolist(), strict=True):
            if not self.frozen[c]:
                block, f = self.home[c]
                terms.setdefault((id(block), f), [block, f, 0])[2] += k
        out = []
        for block, f, occurrences in terms.values():
            times = Fraction(occurrences, block.families[f].size)
            if e.per_row and block.rows == 1:
                times /= rows  # rows tied to equal size one by one
            out.append(Term(block, f, times, e.per_row and block.rows > 1))
        return constant // rows, out

    def linear(self, parts: Sequence[tuple[Extent, int]]) -> tuple[Fraction, dict[int, np.ndarray]]:
        """sum of coefficient * extent as a constant and, by choice number, a vector over its levels."""
        constant = Fraction(0)
        vectors: dict[int, Any] = {}
        for e, c in parts:
            fixed, terms = self.extent(e)
            constant += fixed * c
            for t in terms:
                k, vector = self._vector(t)
                vectors[k] = vectors.get(k, 0) + c * t.times * vector
        return constant, {k: v for k, v in vectors.items() if (v != v[0]).any() or v[0] != 0}

    def _vector(self, t: Term) -> tuple[int, np.ndarray]:
        """A term over the levels of the choice that holds its block."""
        k = self.choice_of[id(t.block)]
        choice = self.choices[k]
        j = next(i for i, b in enumerate(choice.blocks) if b is t.block)
        return k, t.counts()[choice.picks[:, j]].astype(object)

    # -- choices ---------------------------------------------------------------------------------------------------

    def _make_choices(self) -> None:
        self.choices = [Choice([b], np.arange(len(b.levels))[:, None]) for b in self.blocks]
        self.choice_of = {id(b): k for k, b in enumerate(self.blocks)}

    def _join_choices(self) -> None:
        """Equations over one choice filter its levels; equations over two join them, while the list stays short."""
        for r in self.relations:
            if r.sense == "==":
                parts = [(e, c) for e, c, _ in r.left.terms] + [(e, -c) for e, c, _ in r.right.terms]
                self.equations.append((parts, r.right.constant - r.left.constant, str(r)))
        self.relations = [r for r in self.relations if r.sense != "=="]
        waiting = self.equations
        progress = True
        while progress:
            progress, left = False, []
            for parts, total, name in waiting:
                constant, vectors = self.linear(parts)
                if len(vectors) == 2 and self._join(vectors, total - constant, name):
                    progress = True
                else:
                    left.append((parts, total, name))
            waiting = left
        self.equations = waiting

    def _join(self, vectors: dict[int, np.ndarray], total: Fraction, name: str) -> bool:
        (a, va), (b, vb) = vectors.items()
        wanted: dict[Any, list[int]] = {}
        for j, v in enumerate(vb.tolist()):
            wanted.setdefault(total - v, []).append(j)
        pairs = [(i, j) for i, v in enumerate(va.tolist()) for j in wanted.get(v, ())]
        if not pairs or len(pairs) > MOST_LEVELS:
            return False
        first, second = self.choices[a], self.choices[b]
        index = np.array(pairs)
        merged = Choice(
            first.blocks + second.blocks, np.concatenate([first.picks[index[:, 0]], second.picks[index[:, 1]]], axis=1)
        )
        self.choices = [c for k, c in enumerate(self.choices) if k not in (a, b)] + [merged]
        self.choice_of = {id(block): k for k, c in enumerate(self.choices) for block in c.blocks}
        return True

    def _never_empty(self) -> None:
        """No dim of a parameter may vanish."""
        self.floors: list[tuple[list[tuple[Extent, int]], str]] = []
        for key, e in self.coupling.sources.items():
            if e.per_row:
                continue
            constant, vectors = self.linear([(e, 1)])
            if constant > 0 or not vectors:
                continue
            if len(vectors) == 1:
                ((k, v),) = vectors.items()
                self._filter(k, np.array(v > 0, dtype=bool))
            else:
                self.floors.append(([(e, 1)], f"{self.extent_name(key)} >= 1"))

    def _filter(self, k: int, mask: np.ndarray) -> None:
        """Drop levels of a choice unless none would be left."""
        if mask.any():
            self.choices[k].keep(mask)

    def _round(self) -> None:
        """`round_to` asks a multiple of every size that a layer makes, where there is one that fits."""
        if self.round_to is None:
            return
        for key in self.coupling.sources:
            if key not in self.coupling.produced:
                continue
            e = self.coupling.sources[key]
            units = self.coupling.units(e)
            if self.frozen[units].all():
                continue
            name = self.extent_name(key)
            whole = Extent(e.labels.reshape(-1))
            constant, vectors = self.linear([(whole, 1)])
            if len(vectors) == 1:
                ((k, v),) = vectors.items()
                fits = np.array([x > 0 and x % self.round_to == 0 for x in (v + constant).tolist()], dtype=bool)
                if not fits.any():
                    full = np.array(v == v.max(), dtype=bool)
                    self.choices[k].keep(full)
                    self.notes.lines.append(f"{name} stays at {whole.now}: no multiple of {self.round_to} fits")
                else:
                    self.choices[k].keep(fits)
            elif whole.now >= self.round_to:
                size = Affine(((whole, 1, name),))
                self.multiples.append((size, self.round_to, 0, f"{name} % {self.round_to} == 0"))
            else:
                self.notes.lines.append(f"{name} is not rounded: it has only {whole.now} units")

    def extent_name(self, key: tuple[str, Any]) -> str:
        """A parameter dim as users call it."""
        p = self.coupling.trace.params.get(key[0])
        if p is None:
            return f"{key[0]}{list(key[1])}"
        module, _, leaf = p.name.rpartition(".")
        return f"{module}.out" if key in self.coupling.produced and leaf == "weight" else f"{p.name}[dim {key[1]}]"

    # -- the program -----------------------------------------------------------------------------------------------

    def _state(self) -> None:
        self._name_choices()
        flat_value = False
        for choice in self.choices:
            plain = len(choice.blocks) == 1 and choice.blocks[0].rows == 1
            levels = choice.blocks[0].levels[choice.picks[:, 0], 1].tolist() if plain else range(len(choice.picks))
            choice.width = self.program.width(choice.name, levels)
            worth = sum((block_value(b, self.value)[choice.picks[:, j]] for j, b in enumerate(choice.blocks)))
            self.program.value(worth, choice.width)
            flat_value |= len(np.unique(worth)) < len(worth)
        if flat_value:  # among equals, change as little as possible
            for choice in self.choices:
                self.program.value(self._units_kept(choice), choice.width, stage=1)
        for i, (parts, total, name) in enumerate(self.equations):
            self._linear_budget(f"{name}" or f"equation {i}", parts, total, total)
        for parts, name in self.floors:
            self._linear_budget(name, parts, 1, None)
        for r in self.relations:
            parts = [(e, c) for e, c, _ in r.left.terms] + [(e, -c) for e, c, _ in r.right.terms]
            total = r.right.constant - r.left.constant
            upper, lower = (total, None) if r.sense == "<=" else (None, total)
            self._linear_budget(str(r), parts, lower, upper)
        for size, divisor, remainder, name in self.multiples:
            self._multiple(size, divisor, remainder, name)
        for budget in self.budgets:
            self._cost(budget.cost, str(budget))
            self.program.budget(str(budget), budget.limit)

    def _units_kept(self, choice: Choice) -> np.ndarray:
        kept: Any = 0
        for j, b in enumerate(choice.blocks):
            levels = b.levels[choice.picks[:, j]]
            kept = kept + levels[:, 0] * levels[:, 1:].sum(axis=1)
        return np.asarray(kept)

    def _name_choices(self) -> None:
        """A choice is called after the first layer that makes its units."""
        made: dict[int, str] = {}
        for key, e in self.coupling.sources.items():
            if key in self.coupling.produced:
                for c in np.unique(self.coupling.units(e)).tolist():
                    made.setdefault(c, self.extent_name(key))
        seen: dict[str, int] = {}
        for choice in self.choices:
            name = made.get(int(choice.blocks[0].families[0].reshape(-1)[0]), "units")
            seen[name] = seen.get(name, 0) + 1
            choice.name = name if seen[name] == 1 else f"{name} #{seen[name]}"

    def _linear_budget(
        self, name: str, parts: Sequence[tuple[Extent, int]], lower: Any = None, upper: Any = None
    ) -> None:
        """lower <= sum of coefficient * extent <= upper."""
        constant, vectors = self.linear(parts)
        resource = name
        while resource in self.program._budgets:
            resource += " "
        self.program.cost(resource, constant)
        for k, v in vectors.items():
            self.program.cost(resource, v, self.choices[k].width)
        self.program.budget(resource, upper, lower=lower)

    def _multiple(self, size: Affine, divisor: int, remainder: int, name: str) -> None:
        """size == divisor * t + remainder for some t."""
        parts = [(e, c) for e, c, _ in size.terms]
        constant, vectors = self.linear(parts)
        constant += size.constant
        if not vectors:
            low = high = constant
        else:
            low = constant + sum(min(v) for v in vectors.values())
            high = constant + sum(max(v) for v in vectors.values())
        start, stop = -((remainder - low) // divisor), (high - remainder) // divisor
        if stop < start:
            start = stop = (low - remainder) // divisor
        t = self.program.width(f"({name}) quotient", range(int(start), int(stop) + 1))
        resource = name
        while resource in self.program._budgets:
            resource += " "
        self.program.cost(resource, constant - remainder)
        for k, v in vectors.items():
            self.program.cost(resource, v, self.choices[k].width)
        self.program.cost(resource, np.array([-divisor * x for x in t.levels], dtype=object), t)
        self.program.budget(resource, 0, lower=0)

    def _cost(self, cost: Cost, resource: str) -> None:
        """A cost as tables over choices: products of sizes multiply out to constants, vectors and rank-one tables."""
        constant = Fraction(0)
        unary: dict[int, Any] = {}
        pairs: dict[tuple[int, int], list[RankOne]] = {}
        for m in cost.monomials:
            factors = [self.linear([(e, 1)]) for e in m.extents]
            if len(factors) > 2:
                factors = self._reduced(factors, m)
            if not factors:
                constant += m.coefficient
                continue
            (c0, v0), (c1, v1) = factors if len(factors) == 2 else (factors[0], (Fraction(1), {}))
            constant += m.coefficient * c0 * c1
            for k, v in v0.items():
                unary[k] = unary.get(k, 0) + m.coefficient * c1 * v
            for k, v in v1.items():
                unary[k] = unary.get(k, 0) + m.coefficient * c0 * v
            for (i, a), (j, b) in itertools.product(v0.items(), v1.items()):
                if i == j:
                    unary[i] = unary.get(i, 0) + m.coefficient * a * b
                elif i < j:
                    _add_product(pairs.setdefault((i, j), []), m.coefficient * a, b)
                else:
                    _add_product(pairs.setdefault((j, i), []), b, m.coefficient * a)
        self.program.cost(resource, _whole(constant))
        for k, v in unary.items():
            self.program.cost(resource, _whole_array(v), self.choices[k].width)
        for (i, j), tables in pairs.items():
            for table in tables:
                self.program.cost(resource, table, self.choices[i].width, self.choices[j].width)

    def _reduced(self, factors: list[Any], m: Any) -> list[Any]:
        """Products of more than two sizes are fine where all but two are of one choice."""
        while len(factors) > 2:
            merged = None
            for i, j in itertools.combinations(range(len(factors)), 2):
                (ci, vi), (cj, vj) = factors[i], factors[j]
                if (set(vi) | set(vj) == set(vi) and len(vi) <= 1) or len(set(vi) | set(vj)) <= 1:
                    merged = (i, j, self._times(ci, vi, cj, vj))
                    break
            if merged is None:
                raise RequestError(
                    f"the cost of {m.vertex} is a product of {len(factors)} sizes that change apart; keep one"
                )
            i, j, product = merged
            factors = [f for k, f in enumerate(factors) if k not in (i, j)] + [product]
        return factors

    @staticmethod
    def _times(ci: Fraction, vi: dict[int, Any], cj: Fraction, vj: dict[int, Any]) -> tuple[Fraction, dict[int, Any]]:
        keys = set(vi) | set(vj)
        if not keys:
            return ci * cj, {}
        (k,) = keys
        return Fraction(0), {k: (ci + vi.get(k, 0)) * (cj + vj.get(k, 0))}

    # -- back ------------------------------------------------------------------------------------------------------

    def decode(self, solution: Solution) -> np.ndarray:
        """The units that a solution keeps, bool per class."""
        kept = self.frozen.copy()
        kept[FIXED] = True
        for choice in self.choices:
            pick = choice.picks[choice.width.levels.index(solution[choice.width])]
            for block, level in zip(choice.blocks, pick.tolist(), strict=True):
                kept[_best(block, block.levels[level], self.value)] = True
        return kept


class _ClassExtent(Extent):
    """An extent whose labels are unit classes already."""


def _grid(axes: Sequence[np.ndarray]) -> np.ndarray:
    """All combinations, one per row."""
    return np.stack([g.reshape(-1) for g in np.meshgrid(*axes, indexing="ij")], axis=1)


def _ranked(units: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Units of each row by falling value; ties go to the lowest index."""
    order = np.argsort(-value[units], axis=1, kind="stable")
    return np.take_along_axis(units, order, axis=1)


def block_value(block: Block, value: np.ndarray) -> np.ndarray:
    """The largest value that a block can keep at each of its levels.

    >>> b = Block((np.array([[1, 2, 3]]),), np.array([[1, 0], [1, 1], [1, 2], [1, 3]]))
    >>> block_value(b, np.array([0.0, 1.0, 5.0, 2.0])).tolist()
    [0.0, 5.0, 7.0, 8.0]
    """
    sums = []
    for units in block.families:
        prefix = np.cumsum(value[_ranked(units, value)], axis=1)
        sums.append(np.concatenate([np.zeros((len(units), 1)), prefix], axis=1))
    per_row = sum(s[:, block.levels[:, 1 + f]] for f, s in enumerate(sums))  # [rows, levels]
    ranked = -np.sort(-np.asarray(per_row), axis=0)
    total = np.cumsum(ranked, axis=0)
    return total[block.levels[:, 0] - 1, np.arange(len(block.levels))]


def _best(block: Block, level: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The units that stay at a level."""
    chosen = [_ranked(units, value)[:, : level[1 + f]] for f, units in enumerate(block.families)]
    worth = sum(value[c].sum(axis=1) for c in chosen)
    rows = np.argsort(-np.asarray(worth), kind="stable")[: level[0]]
    return np.concatenate([c[rows].reshape(-1) for c in chosen])


def _add_product(tables: list[RankOne], a: np.ndarray, b: np.ndarray) -> None:
    """Collect rank-one tables of one pair; those with a factor in common become one."""
    for k, t in enumerate(tables):
        if (t.second == b).all():
            tables[k] = RankOne(t.first + a, t.second)
            return
        if (t.first == a).all():
            tables[k] = RankOne(t.first, t.second + b)
            return
    tables.append(RankOne(a, b))


def _whole(x: Fraction) -> int | Fraction:
    return int(x) if x.denominator == 1 else x


def _whole_array(v: np.ndarray) -> np.ndarray:
    return np.array([_whole(Fraction(x)) for x in v.tolist()], dtype=object)
