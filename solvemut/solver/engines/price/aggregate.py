"""Sums as variables: where many readers multiply the same growing sum of widths, give each partial sum a name.

In a dense block every layer multiplies its width with the sum of all widths before it, and where each width multiplies
each, with coefficients ``c_i * c_j``, any order of them is such a block. Stated pair by pair it has no small separator.
Stated over running sums, ``sum_1 = w_0 + w_1``, ``sum_2 = sum_1 + w_2``, ..., it is a chain.
A running sum is one more variable whose levels are the sums that can occur, tied to its parts exactly; the new model
has the same choices, objective and rows, and its first variables are the ones given.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from ...exact import RankOne, array, primitive
from ...model import Choice, Model, Row, Term

MOST_SUMS = 3000  # levels of a running sum
MOST_SPREAD = 1 << 20  # between the least and the largest sum
LEAST_ALIKE = 4  # fewer widths than this that all multiply one another need no sum
MISFITS = Fraction(1, 4)  # of the pairs of such a width, that may be otherwise
SMALLEST = 2  # fewer widths than this need no sum
LEAST_PRODUCTS = 4  # that a sum is made for
MOST_TRIED = 40  # families, one by one

Part = tuple[int, tuple[int, ...]]  # a width and its factor, as primitive integers
Coefficients = tuple[tuple[int, Fraction], ...]  # row, coefficient
TermKey = tuple[int, int]  # a row (0: the objective), and a position among its terms


@dataclass(frozen=True)
class Pair:
    """What two widths make of each other: a factor of each, a coefficient in each row."""

    own: tuple[int, ...]
    other: tuple[int, ...]
    coefficients: Coefficients
    terms: set[TermKey]


Pairs = dict[tuple[int, int], Pair]


@dataclass
class Reader:
    """A width and a set of others that it multiplies with equal coefficients in every row."""

    variable: int
    own: tuple[int, ...]
    coefficients: Coefficients
    parts: frozenset[Part] = frozenset()
    terms: set[TermKey] = field(default_factory=set)
    misfits: tuple[tuple[Part, Coefficients], ...] = ()  # products with single widths that are to be added


@dataclass(frozen=True, eq=False)
class Extended:
    """A model with running sums, and how to come and go."""

    model: Model
    count: int  # the variables given
    sums: tuple[tuple[tuple[Part, ...], tuple[int, ...]], ...]  # for each new variable: its parts, its levels

    def encode(self, choice: Choice) -> Choice:
        """A choice of the model given, with its sums."""
        found = list(choice)
        for parts, levels in self.sums:
            found.append(levels.index(sum(factor[choice[v]] for v, factor in parts)))
        return tuple(found)

    def decode(self, choice: Sequence[int]) -> Choice:
        """The choice without its sums."""
        return tuple(choice[: self.count])


def extend(model: Model, splits: Callable[[Model], float]) -> Extended | None:
    """The model with running sums where readers share them; None where there is nothing to gain.

    ``splits`` tells how many separators of a model are too large, 0 being what is wanted: where the sums that promise
    most do not lead there, sums are taken in one family at a time, those alone that leave fewer.
    """
    pairs = _pairs(model)
    families = _ranked(_cliques(pairs), _families(_readers(pairs)))
    chosen = _disjoint(families)
    if not chosen:
        return None
    found = _Builder(model).build(chosen)
    return found if splits(found.model) == 0 else _one_by_one(model, families, splits)


def _one_by_one(model: Model, families: Sequence[list[Reader]], splits: Callable[[Model], float]) -> Extended | None:
    """Sums family by family, as long as each of them leaves fewer separators that are too large."""
    chosen: list[list[Reader]] = []
    found, least = None, splits(model)
    for family in families[:MOST_TRIED]:
        if len(trial := _disjoint([*chosen, family])) == len(chosen):
            continue
        extended = _Builder(model).build(trial)
        if (left := splits(extended.model)) < least:
            chosen, found, least = trial, extended, left
        if least == 0:
            break
    return found


def _pairs(model: Model) -> Pairs:
    """The products of each pair of widths, in both directions, that have one factor on either side in all rows."""
    pairs: dict[tuple[int, int], list[tuple[TermKey, tuple[int, ...], tuple[int, ...], Fraction]]] = defaultdict(list)
    for r, row in enumerate((model.objective, *model.rows)):
        for t, term in enumerate(row.terms):
            if isinstance(term.table, RankOne) and term.when is None:
                (a, b), (f, fs), (g, gs) = term.scope, primitive(term.table.first), primitive(term.table.second)
                pairs[a, b].append(((r, t), f, g, fs * gs))
                pairs[b, a].append(((r, t), g, f, fs * gs))
    found: Pairs = {}
    for pair, entries in pairs.items():
        owns, others = {entry[1] for entry in entries}, {entry[2] for entry in entries}
        if len(owns) > 1 or len(others) > 1:
            continue
        coefficients: dict[int, Fraction] = defaultdict(Fraction)
        for (r, _), _, _, c in entries:
            coefficients[r] += c
        found[pair] = Pair(owns.pop(), others.pop(), tuple(sorted(coefficients.items())), {e[0] for e in entries})
    return found


def _readers(pairs: Pairs) -> list[Reader]:
    """Every width with each set of others that it multiplies alike, in both directions."""
    groups: dict[tuple[object, ...], Reader] = {}
    for (v, other), pair in pairs.items():
        reader = groups.setdefault((v, pair.own, pair.coefficients), Reader(v, pair.own, pair.coefficients))
        reader.parts |= {(other, pair.other)}
        reader.terms |= pair.terms
    return [reader for reader in groups.values() if len(reader.parts) >= SMALLEST]


def _cliques(pairs: Pairs) -> list[list[Reader]]:
    """Sets of widths that all multiply one another with coefficients ``c_i * c_j``: each one reads those before it."""
    left, found = sorted({v for v, _ in pairs}), []
    while len(left) >= LEAST_ALIKE:
        clique = _Clique(pairs, left[0])
        for v in left[1:] * 2:  # who does not fit a few may fit many, but for a pair or two
            if v not in clique.weights:
                clique.take(v)
        if len(clique.members) >= LEAST_ALIKE:
            found.append(clique.readers())
            left = [v for v in left if v not in clique.members]
        else:
            left = left[1:]
    return found


class _Clique:
    """Widths that multiply one another, but for a few pairs that do not, or otherwise.

    ``weights``: what each counts in the sum that the next one reads, and how many times ``unit`` it multiplies it with.
    """

    def __init__(self, pairs: Pairs, first: int) -> None:
        self.pairs, self.members, self.weights = pairs, [first], {first: Fraction(1)}
        self.factors: dict[int, tuple[int, ...]] = {}
        self.unit: Coefficients = ()  # two widths make of each other their weights times this

    def take(self, v: int) -> None:
        """Take a width in, if what it makes with the others is in proportion to their weights."""
        edges = {m: self.pairs[v, m] for m in self.members if (v, m) in self.pairs}
        if len(edges) < len(self.members) * (1 - MISFITS) or len(edges) < min(2, len(self.members)):
            return
        own = next(iter(edges.values())).own
        if any(edge.own != own or edge.other != self.factors.get(m, edge.other) for m, edge in edges.items()):
            return
        if len(self.members) == 1:
            self._second(v, edges[self.members[0]])
            return
        if len(self.members) == 2:  # the third one tells how the first two count
            first, second = (edges[m].coefficients for m in self.members)
            ratio = _times(second, first)
            if not ratio:
                return
            pair = self.pairs[self.members[0], self.members[1]]
            self.weights[self.members[1]], self.unit = ratio, _scaled(pair.coefficients, 1 / ratio)
        seen = Counter(_scaled(edge.coefficients, 1 / self.weights[m]) for m, edge in edges.items())
        slope, count = seen.most_common(1)[0]
        weight = _times(slope, self.unit)
        if weight and len(self.members) - count <= MISFITS * len(self.members):
            self._add(v, weight, own)

    def _second(self, v: int, edge: Pair) -> None:
        self.factors[self.members[0]], self.unit = edge.other, edge.coefficients
        self._add(v, Fraction(1), edge.own)

    def _add(self, v: int, weight: Fraction, factor: tuple[int, ...]) -> None:
        self.members.append(v)
        self.weights[v], self.factors[v] = weight, factor

    def readers(self) -> list[Reader]:
        """Each member from the third on with all those before it, these as primitive integers."""
        scale = lcm(*(self.weights[m].denominator for m in self.members))
        whole = {m: int(self.weights[m] * scale) for m in self.members}
        divisor = gcd(*whole.values())
        found, order = [], self._ordered()
        for at in range(SMALLEST, len(order)):
            v, before = order[at], order[:at]
            parts = frozenset((m, tuple(whole[m] // divisor * x for x in self.factors[m])) for m in before)
            slope = _scaled(self.unit, self.weights[v] * Fraction(divisor, scale))
            terms = {key for m in before if (v, m) in self.pairs for key in self.pairs[v, m].terms}
            misfits = tuple(((m, self.factors[m]), c) for m in before if (c := self._misfit(v, m)))
            found.append(Reader(v, self.factors[v], slope, parts, terms, misfits))
        return found

    def _ordered(self) -> list[int]:
        """The members, those that are misfits for each other side by side: both stay open between them."""
        found: list[int] = []
        stack = sorted(self.members, reverse=True)
        while stack:
            v = stack.pop()
            if v not in found:
                found.append(v)
                stack += [m for m in self.members if m not in found and self._misfit(v, m)]
        return found

    def _misfit(self, v: int, m: int) -> Coefficients:
        """What a pair makes beyond what its weights say."""
        rest = dict(self.pairs[v, m].coefficients) if (v, m) in self.pairs else {}
        for r, c in _scaled(self.unit, self.weights[v] * self.weights[m]):
            rest[r] = rest.get(r, Fraction(0)) - c
        return tuple((r, c) for r, c in rest.items() if c)


def _scaled(coefficients: Coefficients, factor: Fraction) -> Coefficients:
    return tuple((r, c * factor) for r, c in coefficients)


def _times(one: Coefficients, other: Coefficients) -> Fraction | None:
    """How many times another's coefficients one's are, where that is one number in all rows."""
    if [r for r, _ in one] != [r for r, _ in other]:
        return None
    ratios = {c / d for (_, c), (_, d) in zip(one, other, strict=True) if d}
    return ratios.pop() if len(ratios) == 1 and all(d for _, d in other) else None


def _families(readers: list[Reader]) -> list[list[Reader]]:
    """Readers whose sets contain one another, each family a chain from the smallest set to the largest."""
    families: list[list[Reader]] = []
    for reader in sorted(readers, key=lambda x: (len(x.parts), x.variable)):
        fitting = [family for family in families if family[-1].parts <= reader.parts]
        if fitting:
            max(fitting, key=lambda family: len(family[-1].parts)).append(reader)
        else:
            families.append([reader])
    return families


def _ranked(cliques: list[list[Reader]], families: list[list[Reader]]) -> list[list[Reader]]:
    """The families that are worth a sum: cliques, then those with the fewest sums for their products first."""
    found = []
    for at, family in enumerate([*cliques, *families]):
        sums = _count_sums(family[-1].parts)
        products = sum(len(reader.parts) for reader in family)
        if sums <= MOST_SUMS and products >= LEAST_PRODUCTS:
            found.append((at >= len(cliques), sums / products, family[0].variable, family))
    return [family for *_, family in sorted(found, key=lambda entry: entry[:3])]


def _disjoint(families: Sequence[list[Reader]]) -> list[list[Reader]]:
    """The families in turn, each without the products that one before it has; none that has too few left."""
    used: set[TermKey] = set()
    found = []
    for family in families:
        left = [reader for reader in family if not reader.terms & used]
        if sum(len(reader.parts) for reader in left) >= LEAST_PRODUCTS:
            found.append(left)
            used |= {key for reader in left for key in reader.terms}
    return found


def _count_sums(parts: frozenset[Part]) -> int:
    reach: Sequence[int] = (0,)
    for _, factor in sorted(parts):
        reach = _sums(reach, factor)
        if len(reach) > MOST_SUMS:
            break
    return len(reach)


def _sums(before: Sequence[int], factor: Sequence[int]) -> tuple[int, ...]:
    """The sums that can occur after one more part, sorted; far too many to be of use where they spread too far."""
    low, other = min(before), min(factor)
    if max(before) - low + max(factor) - other > MOST_SPREAD:
        return tuple(range(MOST_SUMS + 1))
    bits = sum(1 << x - low for x in set(before))
    reach = 0
    for x in set(factor):
        reach |= bits << x - other
    text = bin(reach)[:1:-1]
    return tuple(low + other + i for i, bit in enumerate(text) if bit == "1")


class _Builder:
    """Adds the running sums of the chosen families to a model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.domains = list(model.domains)
        self.sums: list[tuple[tuple[Part, ...], tuple[int, ...]]] = []
        self.known: dict[tuple[Part, ...], int] = {}
        self.rows: list[Row] = []
        self.extra: dict[int, list[Term]] = defaultdict(list)
        self.gone: set[TermKey] = set()

    def build(self, families: list[list[Reader]]) -> Extended:
        """A sum for each reader, on top of those before it in its family."""
        for family in families:
            order: list[Part] = []
            for reader in family:
                order += sorted(part for part in reader.parts if part not in order)
                total = self._sum(tuple(order))
                self._read(reader, total)
        rows = [self._without(r, row) for r, row in enumerate((self.model.objective, *self.model.rows))]
        model = Model(tuple(self.domains), rows[0], (*rows[1:], *self.rows))
        return Extended(model, len(self.model.domains), tuple(self.sums))

    def _sum(self, parts: tuple[Part, ...]) -> int:
        """The variable of a running sum, made with all those before it."""
        if parts in self.known:
            return self.known[parts]
        if len(parts) == 2:
            before, first = parts[0][0], parts[0][1]
        else:
            before = self._sum(parts[:-1])
            first = self.sums[before - len(self.model.domains)][1]
        last, factor = parts[-1]
        levels = _sums(first, factor)
        variable = len(self.domains)
        self.domains.append(np.arange(len(levels)))
        self.sums.append((parts, levels))
        self.known[parts] = variable
        terms = (
            Term((before,), array(list(first))),
            Term((last,), array(list(factor))),
            Term((variable,), array([-x for x in levels])),
        )
        self.rows.append(Row(f"sum of {len(parts)}", terms, 0, 0, 0))
        return variable

    def _read(self, reader: Reader, total: int) -> None:
        levels = array(list(self.sums[total - len(self.model.domains)][1]))
        for r, coefficient in reader.coefficients:
            own = array([coefficient * x for x in reader.own])
            self.extra[r].append(Term((reader.variable, total), RankOne(own, levels)))
        for (other, factor), coefficients in reader.misfits:
            for r, coefficient in coefficients:
                own = array([coefficient * x for x in reader.own])
                self.extra[r].append(Term((reader.variable, other), RankOne(own, array(list(factor)))))
        self.gone |= reader.terms

    def _without(self, r: int, row: Row) -> Row:
        kept = tuple(term for t, term in enumerate(row.terms) if (r, t) not in self.gone)
        return replace(row, terms=(*kept, *self.extra[r]))
