"""Compile: coupled units, their values and requests become an integer program over block sizes, with its decoder.

The program has one width per *choice*: mostly one block, or several that equations tie to each other in pairs, listed
by what they can be together. Costs are sums of products of sizes: constants, vectors and rank-one tables over choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from .blocks import MOST_LEVELS, Block, Equation, Partition, Term, best_units, block_value
from .constraints import Affine, Budget, Cost, Monomial, Multiple, Relation, Request
from .coupling import Coupling, Divides, Link
from .errors import RequestError
from .flow import Extent
from .labels import FIXED
from .program import Program, RankOne, Solution, Width


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


class TooManySizes(RequestError):
    """A cost is a product of more than two sizes that change apart; `extent` is one that might stay."""

    def __init__(self, extent: Extent, vertex: str) -> None:
        super().__init__(f"the cost of {vertex} is a product of more than two sizes that change apart")
        self.extent, self.vertex = extent, vertex


class Compiler:
    """Builds the program for one coupling, one set of unit values and requests.

    `value` has one finite number per unit class. With `join_requests` equations that the caller asked for may become
    part of the choices, which is faster; without, they stay constraints that a conflict can name.
    """

    def __init__(
        self,
        coupling: Coupling,
        value: np.ndarray,
        requests: Sequence[Request],
        round_to: int | None = None,
        keep: np.ndarray | None = None,
        join_requests: bool = True,
    ) -> None:
        self.coupling, self.value = coupling, value
        self.frozen = coupling.frozen | (keep if keep is not None else False)
        self.requests = list(requests)
        self.relations = [r for r in requests if isinstance(r, Relation)]
        self.multiples = [(r.size, r.divisor, r.remainder, str(r)) for r in requests if isinstance(r, Multiple)]
        self.multiples += [_divides(d) for d in coupling.divides]
        self.budgets = [r for r in requests if isinstance(r, Budget)]
        self.round_to, self.join_requests = round_to, join_requests
        self.equations = [_equation(link) for link in coupling.links]
        self.partition = Partition(coupling, self.frozen, self._features())
        self.equations += self.partition.ties
        self.notes = list(self.partition.notes)
        self.floors: list[tuple[list[tuple[Extent, int]], str]] = []
        self.counted: list[tuple[Budget, str]] = []  # budgets, and their names in the program
        self.program = Program()

    def compile(self) -> Program:
        """The program; `decode` reads its solutions."""
        self.choices = [Choice([b], np.arange(len(b.levels))[:, None]) for b in self.partition.blocks]
        self.choice_of = {id(b): k for k, b in enumerate(self.partition.blocks)}
        self._round()
        self._never_empty()
        self._join_choices()
        self._state()
        return self.program

    def _features(self) -> Iterable[np.ndarray]:
        """Whatever anything counts; what the model's own costs count is in its sources and works already."""
        for e in self.coupling.sources.values():
            yield e.labels
        works = self.coupling.facts.works
        for work in works:
            for e in work.extents:
                yield e.labels
        yield from self.coupling.facts.nonempty
        for affine in self._affines():
            for e, _, _ in affine.terms:
                yield e.labels
        for equation in self.equations:
            for e, _ in equation.parts:
                yield e.labels
        known = {id(e) for e in (*self.coupling.sources.values(), *(e for w in works for e in w.extents))}
        for m in (m for b in self.budgets for m in b.cost.monomials):
            yield from (e.labels for e in m.extents if id(e) not in known)

    def _affines(self) -> Iterable[Affine]:
        for r in self.relations:
            yield r.left
            yield r.right
        for size, _, _, _ in self.multiples:
            yield size

    def linear(self, parts: Sequence[tuple[Extent, int]]) -> tuple[Fraction, dict[int, np.ndarray]]:
        """sum of coefficient * extent as a constant and, by choice number, a vector over its levels."""
        constant = Fraction(0)
        vectors: dict[int, Any] = {}
        for e, c in parts:
            fixed, terms = self.partition.extent(e)
            constant += fixed * c
            for t in terms:
                k, vector = self._vector(t)
                vectors[k] = vectors.get(k, 0) + _whole(c * t.times) * vector
        return constant, {k: v for k, v in vectors.items() if (v != v[0]).any() or v[0] != 0}

    def _vector(self, t: Term) -> tuple[int, np.ndarray]:
        """A term over the levels of the choice that holds its block."""
        k = self.choice_of[id(t.block)]
        choice = self.choices[k]
        j = next(i for i, b in enumerate(choice.blocks) if b is t.block)
        return k, t.counts()[choice.picks[:, j]].astype(object)

    # -- choices ---------------------------------------------------------------------------------------------------

    def _join_choices(self) -> None:
        """Equations over one choice filter its levels; equations over two join them, while the list stays short."""
        if self.join_requests:
            for r in (r for r in self.relations if r.sense == "=="):
                total = r.right.constant - r.left.constant
                self.equations.append(Equation(_parts(r), total, total, str(r)))
            self.relations = [r for r in self.relations if r.sense != "=="]
        settled = True
        while settled:
            left = [e for e in self.equations if not self._settle(e)]
            settled, self.equations = len(left) < len(self.equations), left

    def _settle(self, e: Equation) -> bool:
        """Take an equation over one choice or two into the choices; it stays if nothing or too much would be left."""
        if e.asked and not self.join_requests:
            return False
        constant, vectors = self.linear(e.parts)
        low, high = e.low - constant, e.high - constant
        if len(vectors) > 2 or (not vectors and not low <= 0 <= high):
            return False
        if len(vectors) == 2 and not self._join(vectors, low, high):
            return False
        if len(vectors) == 1:
            ((k, v),) = vectors.items()
            fits = np.array([low <= x <= high for x in v.tolist()])
            if not fits.any():
                return False
            self.choices[k].keep(fits)
        return True

    def _join(self, vectors: dict[int, np.ndarray], low: Fraction, high: Fraction) -> bool:
        (a, va), (b, vb) = vectors.items()
        order = np.argsort(vb, kind="stable")
        ranked = vb[order]
        pairs: list[tuple[int, int]] = []
        for i, v in enumerate(va.tolist()):
            start, stop = np.searchsorted(ranked, low - v), np.searchsorted(ranked, high - v, side="right")
            pairs += [(i, j) for j in sorted(order[start:stop].tolist())]
            if len(pairs) > MOST_LEVELS:
                return False
        if not pairs:
            return False
        first, second = self.choices[a], self.choices[b]
        index = np.array(pairs)
        merged = Choice(
            first.blocks + second.blocks,
            np.concatenate([first.picks[index[:, 0]], second.picks[index[:, 1]]], axis=1),
        )
        self.choices = [c for k, c in enumerate(self.choices) if k not in (a, b)] + [merged]
        self.choice_of = {id(block): k for k, c in enumerate(self.choices) for block in c.blocks}
        return True

    def _never_empty(self) -> None:
        """No dim of a parameter may vanish."""
        several: list[tuple[tuple[str, Any], Extent]] = []
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
                several.append((key, e))
        named = [(self.extent_name(key), e) for key, e in several]
        named += [(f"part {i} of a split", Extent(labels)) for i, labels in enumerate(self.coupling.facts.nonempty)]
        for name, e in named:  # most of these have a part that cannot vanish on its own
            constant, vectors = self.linear([(e, 1)])
            if vectors and constant + sum(min(v) for v in vectors.values()) < 1:
                self.floors.append(([(e, 1)], f"{name} keeps a unit"))

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
                    self.notes.append(f"{name} stays at {whole.now}: no multiple of {self.round_to} fits")
                else:
                    self.choices[k].keep(fits)
            elif whole.now >= self.round_to:
                size = Affine(((whole, 1, name),))
                self.multiples.append((size, self.round_to, 0, f"{name} % {self.round_to} == 0"))
            else:
                self.notes.append(f"{name} is not rounded: it has only {whole.now} units")

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
        stuck = [c.name for c in self.choices if len(c.picks) == 1 and len(c.blocks) > 1]
        self.notes += [f"{name} and what is tied to it can only stay as it is" for name in stuck]
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
        for equation in self.equations:
            self._linear_budget(equation.name, equation.parts, equation.low, equation.high)
        for parts, name in self.floors:
            self._linear_budget(name, parts, 1, None)
        for r in self.relations:
            total = r.right.constant - r.left.constant
            self._linear_budget(
                str(r), _parts(r), None if r.sense == "<=" else total, None if r.sense == ">=" else total
            )
        for size, divisor, remainder, name in self.multiples:
            self._multiple(size, divisor, remainder, name)
        for budget in self.budgets:
            name = self._free_name(str(budget))
            self.counted.append((budget, name))
            self._cost(budget.cost, name)
            if budget.sense == "<=":
                self.program.budget(name, budget.limit)
            else:
                self.program.budget(name, lower=budget.limit)

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
        self.program.budget(self._resource(name, *self.linear(parts)), upper, lower=lower)

    def _resource(self, name: str, constant: Fraction, vectors: dict[int, np.ndarray]) -> str:
        """A resource of that linear cost, under the name or the first free one after it."""
        name = self._free_name(name)
        self.program.cost(name, constant)
        for k, v in vectors.items():
            self.program.cost(name, v, self.choices[k].width)
        return name

    def _free_name(self, name: str) -> str:
        """The name, or the first free one after it: a budget given twice is not one of twice the size."""
        while name in self.program._budgets:
            name += " "
        return name

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
        resource = self._resource(name, constant - remainder, vectors)
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

    def _reduced(self, factors: list[Any], m: Monomial) -> list[Any]:
        """Products of more than two sizes are fine where all but two are of one choice."""
        while len(factors) > 2:
            merged = None
            for i, j in itertools.combinations(range(len(factors)), 2):
                (ci, vi), (cj, vj) = factors[i], factors[j]
                if (set(vi) | set(vj) == set(vi) and len(vi) <= 1) or len(set(vi) | set(vj)) <= 1:
                    merged = (i, j, self._times(ci, vi, cj, vj))
                    break
            if merged is None:
                raise TooManySizes(min(m.extents, key=lambda e: e.now), m.vertex)
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

    def nearest(self, name: str) -> str | None:
        """For a request on sizes that one choice decides: the nearest feasible sizes, in words."""
        request = next((r for r in self.requests if str(r) == name), None)
        if request is None or isinstance(request, Budget):
            return None
        left, right = (request.left, request.right) if isinstance(request, Relation) else (request.size, Affine(()))
        parts = [(e, c) for e, c, _ in left.terms] + [(e, -c) for e, c, _ in right.terms]
        constant, vectors = self.linear(parts)
        constant += left.constant
        found = {constant + v for x in vectors.values() for v in x.tolist()} if vectors else {constant}
        if len(vectors) > 1:
            return None
        wanted = right.constant
        below, above = [v for v in found if v <= wanted], [v for v in found if v >= wanted]
        near = list(dict.fromkeys(str(v) for v in [*sorted(below)[-1:], *sorted(above)[:1]]))
        if isinstance(request, Multiple):
            return f"{left} can be {', '.join(str(v) for v in sorted(found)[:8])}{', …' if len(found) > 8 else ''}"
        return f"the nearest feasible values of {left} are {' and '.join(near)}"

    # -- back ------------------------------------------------------------------------------------------------------

    def decode(self, solution: Solution) -> np.ndarray:
        """The units that a solution keeps, bool per class."""
        kept = self.frozen.copy()
        kept[FIXED] = True
        for choice in self.choices:
            pick = choice.picks[choice.width.levels.index(solution[choice.width])]
            for block, level in zip(choice.blocks, pick.tolist(), strict=True):
                kept[best_units(block, block.levels[level], self.value)] = True
        return kept


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


def _parts(r: Relation) -> list[tuple[Extent, int]]:
    """left - right of a relation, without its constants."""
    return [(e, c) for e, c, _ in r.left.terms] + [(e, -c) for e, c, _ in r.right.terms]


def _divides(d: Divides) -> tuple[Affine, int, int, str]:
    """A remainder that the forward asks for, as one that is requested."""
    terms = tuple((Extent(labels), c, "size") for labels, c in d.parts)
    return Affine(terms, d.constant), d.divisor, d.remainder, d.why


def _equation(link: Link) -> Equation:
    parts = [(Extent(labels.reshape(-1)), c) for labels, c in link.parts]
    name = f"{link.why}: {link.node.name if link.asked else link.node.at()}"
    return Equation(parts, link.constant, link.constant + link.slack, name, link.asked)
