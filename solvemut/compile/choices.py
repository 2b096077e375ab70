"""Choices: what one width of the program decides, one level of each of its blocks, together.

Mostly a choice is one block. Equations over one choice filter its levels; blocks that an equation ties in pairs become
one choice that lists what they can be together, while that list stays short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..coupling import Coupling, Divides, Link
from ..flow import Extent
from ..program import Width
from ..requests import Affine, Multiple, Relation
from .blocks import MOST_LEVELS, Block, Equation, Partition, Term
from .question import Question, Worth
from .vectors import Number, divisible, plus, span, times, whole, within

Parts = Sequence[tuple[Extent, int]]
Linear = tuple[Number, dict[int, np.ndarray]]  # a constant and, by choice number, a vector over its levels


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

    def counts(self) -> np.ndarray:
        """How many units are left at each level."""
        return np.asarray(sum(b.counts()[self.picks[:, j]] for j, b in enumerate(self.blocks)))

    def is_whole(self) -> np.ndarray:
        """Bool by level: whether all units stay, and none are new."""
        full = [[b.families[0].shape[0], *(f.shape[1] for f in b.families)] for b in self.blocks]
        at = [
            (b.levels == np.array(f)).all(axis=1)[self.picks[:, j]]
            for j, (b, f) in enumerate(zip(self.blocks, full, strict=True))
        ]
        return np.asarray(np.all(at, axis=0))

    def units(self) -> np.ndarray:
        """The classes of its units."""
        return np.concatenate([f.reshape(-1) for b in self.blocks for f in b.families])

    @property
    def now(self) -> int:
        """How many units there are."""
        return sum(b.now for b in self.blocks)


class Choices:
    """The choices of one question, with the equations, multiples and floors that are left for the program to state.

    `frozen` is what must stay; `notes` say what freedom was left out.
    """

    def __init__(self, coupling: Coupling, question: Question, worth: Worth, frozen: np.ndarray) -> None:
        self.coupling, self.question, self.worth, self.frozen = coupling, question, worth, frozen
        self.relations = [r for r in question.requests if isinstance(r, Relation)]
        asked = [(r.size, r.divisor, r.remainder, str(r)) for r in question.requests if isinstance(r, Multiple)]
        needed = [_divides(d) for d in coupling.divides]
        self.multiples = [*asked, *needed]
        self.equations = [_equation(link) for link in coupling.links]
        self.partition = Partition(coupling, frozen, self._features(), question.slots)
        self.equations += self.partition.ties
        self.notes = list(self.partition.notes)
        self.floors: list[tuple[list[tuple[Extent, int]], str]] = []
        self.choices = [Choice([b], np.arange(len(b.levels))[:, None]) for b in self.partition.blocks]
        self.choice_of = {id(b): k for k, b in enumerate(self.partition.blocks)}
        self.multiples = [*asked, *(m for m in needed if not self._divided(*m))]
        self._round()
        self._never_empty()
        self._join_choices()
        self._name()

    def _features(self) -> Iterable[np.ndarray]:
        """Whatever anything counts; what the model's own costs count is in its sources and works already."""
        known: set[int] = set()
        works = self.coupling.facts.works
        for e in (*self.coupling.sources.values(), *(e for w in works for e in w.extents)):
            known.add(id(e))
            yield e.labels
        yield from self.coupling.facts.nonempty
        sides = [x for r in self.relations for x in (r.left, r.right)] + [size for size, _, _, _ in self.multiples]
        for affine in sides:
            yield from (e.labels for e, _, _ in affine.terms)
        for equation in self.equations:
            yield from (e.labels for e, _ in equation.parts)
        yield from (self.coupling.label_of[curve.units] for curve in self.worth.curves)
        for cost in self.question.costs:
            yield from (e.labels for m in cost.monomials for e in m.extents if id(e) not in known)

    def linear(self, parts: Parts, new: bool = True) -> Linear:
        """sum of coefficient * extent as a constant and, by choice number, a vector over its levels.

        Without `new` just the units that stay are counted.
        """
        constant: Number = 0
        vectors: dict[int, Any] = {}
        for e, c in parts:
            fixed, terms = self.partition.extent(e)
            constant += fixed * c
            for t in terms:
                k, vector = self._vector(t, new)
                vectors[k] = plus(vectors.get(k, 0), times(vector, whole(c * t.times)))
        return constant, {k: v for k, v in vectors.items() if (v != v[0]).any() or v[0] != 0}

    def _vector(self, t: Term, new: bool = True) -> tuple[int, np.ndarray]:
        """A term over the levels of the choice that holds its block."""
        k = self.choice_of[id(t.block)]
        choice = self.choices[k]
        j = next(i for i, b in enumerate(choice.blocks) if b is t.block)
        return k, t.counts(new)[choice.picks[:, j]]

    # -- what settles choices --------------------------------------------------------------------------------------

    def _join_choices(self) -> None:
        """Equations over one choice filter its levels; equations over two join them, while the list stays short."""
        if self.question.join_requests:
            for r in (r for r in self.relations if r.sense == "=="):
                total = r.right.constant - r.left.constant
                self.equations.append(Equation(parts_of(r), total, total, str(r)))
            self.relations = [r for r in self.relations if r.sense != "=="]
        settled = True
        while settled:
            left = [e for e in self.equations if not self._settle(e)]
            settled, self.equations = len(left) < len(self.equations), left

    def _settle(self, e: Equation) -> bool:
        """Take an equation over one choice or two into the choices; it stays if nothing or too much would be left."""
        if e.asked and not self.question.join_requests:
            return False
        constant, vectors = self.linear(e.parts)
        low, high = e.low - constant, e.high - constant
        if len(vectors) > 2 or (not vectors and not low <= 0 <= high):
            return False
        if len(vectors) == 2 and not self._join(vectors, low, high):
            return False
        if len(vectors) == 1:
            ((k, v),) = vectors.items()
            fits = within(v, low, high)
            if not fits.any():
                return False
            self.choices[k].keep(fits)
        return True

    def _join(self, vectors: dict[int, np.ndarray], low: Number, high: Number) -> bool:
        (a, va), (b, vb) = vectors.items()
        order = np.argsort(vb, kind="stable")
        ranked = vb[order]
        starts, stops = np.searchsorted(ranked, low - va), np.searchsorted(ranked, high - va, side="right")
        if not 0 < np.maximum(stops - starts, 0).sum() <= MOST_LEVELS:
            return False
        at = np.flatnonzero(stops > starts).tolist()
        index = np.array([(i, j) for i in at for j in sorted(order[starts[i] : stops[i]].tolist())])
        first, second = self.choices[a], self.choices[b]
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
        seen: set[int] = set()
        for key, e in self.coupling.sources.items():
            known = id(self.partition.extent(e))
            if e.per_row or known in seen:
                continue
            seen.add(known)
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
            if vectors and span(constant, vectors)[0] < 1:
                self.floors.append(([(e, 1)], f"{name} keeps a unit"))

    def _filter(self, k: int, mask: np.ndarray) -> None:
        """Drop levels of a choice unless none would be left."""
        if mask.any():
            self.choices[k].keep(mask)

    def _divided(self, size: Affine, divisor: int, remainder: int, name: str) -> bool:
        """Take a remainder that a size must have into the choice that makes the size, if one does, and can."""
        constant, vectors = self.linear([(e, c) for e, c, _ in size.terms])
        if len(vectors) != 1:
            return False
        ((k, v),) = vectors.items()
        fits = np.array((v + (constant + size.constant - remainder)) % divisor == 0, dtype=bool)
        self._filter(k, fits)
        return bool(fits.any())

    def _round(self) -> None:
        """`round_to` asks a multiple of every size that a layer makes, where there is one that fits."""
        multiple = self.question.round_to
        if multiple is None:
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
                fits = divisible(v + constant, multiple)
                if not fits.any():
                    self.choices[k].keep(np.array(v + constant == whole.now, dtype=bool))
                    self.notes.append(f"{name} stays at {whole.now}: no multiple of {multiple} fits")
                else:
                    self.choices[k].keep(fits)
            elif whole.now >= multiple:
                size = Affine(((whole, 1, name),))
                self.multiples.append((size, multiple, 0, f"{name} % {multiple} == 0"))
            else:
                self.notes.append(f"{name} is not rounded: it has only {whole.now} units")

    def extent_name(self, key: tuple[str, Any]) -> str:
        """A parameter dim as users call it."""
        p = self.coupling.trace.params.get(key[0])
        if p is None:
            return f"{key[0]}{list(key[1])}"
        module, _, leaf = p.name.rpartition(".")
        return f"{module}.out" if key in self.coupling.produced and leaf == "weight" else f"{p.name}[dim {key[1]}]"

    def _name(self) -> None:
        """A choice is called after the first layer that makes its units."""
        makers = [key for key in self.coupling.sources if key in self.coupling.produced]
        made = np.full(self.coupling.n_units, -1)
        for i, key in reversed(list(enumerate(makers))):
            made[self.coupling.units(self.coupling.sources[key])] = i
        seen: dict[str, int] = {}
        for choice in self.choices:
            maker = int(made[choice.blocks[0].families[0].reshape(-1)[0]])
            name = self.extent_name(makers[maker]) if maker >= 0 else "units"
            seen[name] = seen.get(name, 0) + 1
            choice.name = name if seen[name] == 1 else f"{name} #{seen[name]}"
        stuck = [c.name for c in self.choices if len(c.picks) == 1 and len(c.blocks) > 1]
        self.notes += [f"{name} and what is tied to it can only stay as it is" for name in stuck]


def parts_of(r: Relation) -> list[tuple[Extent, int]]:
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
