"""Sums as variables: where many readers multiply the same growing sum of widths, give each partial sum a name.

In a dense block every layer multiplies its width with the sum of all widths before it. Stated pair by pair the block
has no small separator. Stated over running sums, ``sum_1 = w_0 + w_1``, ``sum_2 = sum_1 + w_2``, ..., it is a chain.
A running sum is one more variable whose levels are the sums that can occur, tied to its parts exactly; the new model
has the same choices, objective and rows, and its first variables are the ones given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from ...exact import RankOne, array, common_divisor, denominator, integers
from ...model import Choice, Model, Row, Term

MOST_SUMS = 3000  # levels of a running sum
MOST_SPREAD = 1 << 20  # between the least and the largest sum
SMALLEST = 2  # fewer widths than this need no sum

Part = tuple[int, tuple[int, ...]]  # a width and its factor, as primitive integers
TermKey = tuple[int, int]  # a row (0: the objective), and a position among its terms


@dataclass
class Reader:
    """A width and a set of others that it multiplies with equal coefficients in every row."""

    variable: int
    own: tuple[int, ...]
    coefficients: tuple[tuple[int, Fraction], ...]  # row, coefficient
    parts: frozenset[Part] = frozenset()
    terms: set[TermKey] = field(default_factory=set)


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


def extend(model: Model) -> Extended | None:
    """The model with running sums where readers share them; None where there is nothing to gain."""
    families = _chosen(_families(_readers(model)), [len(d) for d in model.domains])
    if not families:
        return None
    return _Builder(model).build(families)


def _primitive(vector: np.ndarray) -> tuple[tuple[int, ...], Fraction]:
    """A vector as primitive integers (first nonzero positive) times a fraction."""
    scale = denominator(vector)
    whole = integers(vector, scale)
    divisor = common_divisor([whole]) or 1
    ints = [int(x) // divisor for x in whole]
    if next((x for x in ints if x), 1) < 0:
        ints, divisor = [-x for x in ints], -divisor
    return tuple(ints), Fraction(divisor, scale)


def _readers(model: Model) -> list[Reader]:
    """Every width with each set of others that it multiplies alike, in both directions."""
    pairs: dict[tuple[int, int], list[tuple[TermKey, tuple[int, ...], tuple[int, ...], Fraction]]] = defaultdict(list)
    for r, row in enumerate((model.objective, *model.rows)):
        for t, term in enumerate(row.terms):
            if isinstance(term.table, RankOne) and term.when is None:
                (a, b), (f, fs), (g, gs) = term.scope, _primitive(term.table.first), _primitive(term.table.second)
                pairs[a, b].append(((r, t), f, g, fs * gs))
                pairs[b, a].append(((r, t), g, f, fs * gs))
    groups: dict[tuple[object, ...], Reader] = {}
    for (v, other), found in pairs.items():
        owns, others = {entry[1] for entry in found}, {entry[2] for entry in found}
        if len(owns) > 1 or len(others) > 1:
            continue
        coefficients: dict[int, Fraction] = defaultdict(Fraction)
        for (r, _), _, _, c in found:
            coefficients[r] += c
        own, signature = owns.pop(), tuple(sorted(coefficients.items()))
        reader = groups.setdefault((v, own, signature), Reader(v, own, signature))
        reader.parts |= {(other, others.pop())}
        reader.terms |= {entry[0] for entry in found}
    return [reader for reader in groups.values() if len(reader.parts) >= SMALLEST]


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


def _chosen(families: list[list[Reader]], sizes: Sequence[int]) -> list[list[Reader]]:
    """The families to build: those with the fewest sums first, no product in two of them."""
    ranked = []
    for family in families:
        sums = _count_sums(family[-1].parts)
        products = sum(len(reader.parts) for reader in family)
        if sums <= MOST_SUMS and products >= 4:
            ranked.append((sums / products, family[0].variable, family))
    used: set[TermKey] = set()
    found = []
    for _, _, family in sorted(ranked, key=lambda entry: entry[:2]):
        left = [reader for reader in family if not reader.terms & used]
        if sum(len(reader.parts) for reader in left) >= 4:
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
        self.gone |= reader.terms

    def _without(self, r: int, row: Row) -> Row:
        kept = tuple(term for t, term in enumerate(row.terms) if (r, t) not in self.gone)
        return replace(row, terms=(*kept, *self.extra[r]))
