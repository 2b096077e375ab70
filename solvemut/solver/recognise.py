"""A model in its simplest terms: tables over pairs become products and vectors where that is what they are, exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from .exact import Number, RankOne, array, entry, max_abs, primitive
from .model import Model, Row, Term
from .structure import SAFE, in_64_bits

Key = tuple[int, tuple[int, ...]]  # a variable, and a vector over its levels up to a shift and a factor


def simplest(model: Model) -> Model:
    """The same model, every row the same at every choice: one term a pair where that is possible, few tables."""
    rows = [_Sum(row) for row in (model.objective, *model.rows)]
    anchors = _Anchors(product for row in rows for product in row.products)
    made = [row.row(anchors) for row in rows]
    return replace(model, objective=made[0], rows=tuple(made[1:]))


@dataclass
class _Sum:
    """A row taken apart: what stays as it is, products as they are stated, and products of shifted vectors."""

    source: Row
    kept: list[Term] = field(default_factory=list)
    products: list[Term] = field(default_factory=list)
    rests: list[Term] = field(default_factory=list)

    def __post_init__(self) -> None:
        for term in _one_a_pair(self.source.terms):
            if isinstance(term.table, RankOne):
                (self.products if term.when is None else self.kept).append(term)
            else:
                self._take(term)

    def _take(self, term: Term) -> None:
        """A table: its parts, or itself where it has none; under a switch a product is a table anyway."""
        parts = term.structure
        if parts is None or (term.when is not None and parts.products):
            self.kept.append(term)
            return
        vectors = zip(term.scope, (parts.first, parts.second), strict=True)
        self.kept += [Term((v,), vector, term.when) for v, vector in vectors if vector is not None]
        pure = parts.first is None and parts.second is None and len(parts.products) == 1
        (self.products if pure else self.rests).extend(Term(term.scope, product) for product in parts.products)

    def row(self, anchors: _Anchors) -> Row:
        """The row made of its parts."""
        kept, products = list(self.kept), list(self.products)
        for term in self.rests:
            product, vectors = anchors.fitted(term)
            products.append(product)
            kept += vectors
        return replace(self.source, terms=(*kept, *_joined(products)))


def _one_a_pair(terms: Sequence[Term]) -> list[Term]:
    """Tables over the same pair, counted under the same switch, added up."""
    found: list[Term] = []
    places: dict[tuple[tuple[int, ...], int | None], int] = {}
    for term in terms:
        if len(term.scope) < 2 or isinstance(term.table, RankOne):
            found.append(term)
            continue
        key = tuple(sorted(term.scope)), term.when
        total = None if key not in places else _total(found[places[key]], term)
        if total is None:
            places[key] = len(found)
            found.append(term)
        else:
            found[places[key]] = total
    return found


def _total(one: Term, other: Term) -> Term | None:
    """The sum of two tables over one pair; None where 64 bits do not hold it."""
    table = other.table if one.scope == other.scope else other.table.T  # type: ignore[union-attr]
    left, right = in_64_bits(one.table), in_64_bits(table)  # type: ignore[arg-type]
    if left is None or right is None:
        return None
    scale = max(left[1], right[1])  # both are powers of two
    factors = scale // left[1], scale // right[1]
    if max_abs(left[0]) * factors[0] + max_abs(right[0]) * factors[1] >= (SAFE if scale == 1 else 1 << 53):
        return None
    total = left[0] * factors[0] + right[0] * factors[1]
    return replace(one, table=total if scale == 1 else np.ldexp(total.astype(float), 1 - scale.bit_length()))


def _joined(products: Sequence[Term]) -> list[Term]:
    """Products over one pair that have one factor in common, as one."""
    found: list[Term] = []
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for term in products:
        if term.scope[::-1] in places:
            assert isinstance(term.table, RankOne)
            term = Term(term.scope[::-1], term.table.transpose())
        for at in places[term.scope]:
            both = _join(found[at].table, term.table)
            if both is not None:
                found[at] = replace(found[at], table=both)
                break
        else:
            places[term.scope].append(len(found))
            found.append(term)
    return found


def _join(one: object, other: object) -> RankOne | None:
    """The sum of two products as a product: their first factors, or their second ones, are multiples of each other."""
    assert isinstance(one, RankOne) and isinstance(other, RankOne)
    times = _ratio(other.first, one.first)
    if times is not None:
        return RankOne(one.first, _plus(one.second, other.second, times))
    times = _ratio(other.second, one.second)
    return None if times is None else RankOne(_plus(one.first, other.first, times), one.second)


def _plus(vector: np.ndarray, other: np.ndarray, times: Number) -> np.ndarray:
    """``vector + times * other``, exact."""
    return array([entry(vector, i) + times * entry(other, i) for i in range(len(vector))])


def _ratio(vector: np.ndarray, other: np.ndarray) -> Number | None:
    """``vector / other``, where that is one number."""
    one, left = primitive(vector)
    two, right = primitive(other)
    return left / right if one == two and right else None


class _Anchors:
    """The factors that products have as they are stated: a shifted product is brought to them, at the cost of vectors.

    ``(a - a0) * b`` beside some ``a * c`` is ``a * b - a0 * b``: all products of a width then share one factor.
    """

    def __init__(self, products: Iterable[Term]) -> None:
        self.products = list(products)

    def fitted(self, term: Term) -> tuple[Term, list[Term]]:
        """A product as one of anchored factors, and the vectors that make up for it."""
        assert isinstance(term.table, RankOne)
        factors, vectors = [term.table.first, term.table.second], []
        for axis in (0, 1):
            key, times = primitive(factors[axis])
            anchor = self._known.get((term.scope[axis], key))
            if anchor is None or not times:
                continue
            # u = times / unit * (anchor - anchor[0]), so u x w is a product with the anchor, and a vector over w's side
            vector, unit = anchor
            by = times / unit
            other = factors[1 - axis]
            shift = -by * entry(vector, 0)
            vectors.append(Term((term.scope[1 - axis],), array([shift * entry(other, i) for i in range(len(other))])))
            factors[axis] = vector
            factors[1 - axis] = array([by * entry(other, i) for i in range(len(other))])
        return replace(term, table=RankOne(*factors)), vectors

    @cached_property
    def _known(self) -> dict[Key, tuple[np.ndarray, Fraction]]:
        found: dict[Key, tuple[np.ndarray, Fraction]] = {}
        for term in self.products:
            assert isinstance(term.table, RankOne)
            for v, factor in zip(term.scope, (term.table.first, term.table.second), strict=True):
                key, unit = primitive(factor, shift=True)
                if unit:
                    found.setdefault((v, key), (factor, unit))
        return found
