"""A compact model in floats, scaled: what the pricing bound and the searches around it work on.

The objective and every row are divided by powers of two, so that their entries are near 1 and the scaling itself
rounds nothing. Each finite limit of a row is one *coordinate*: ``sign * row <= sign * limit``, priced by a multiplier.
Rows over at most two variables become tables of forbidden pairs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import frexp

import numpy as np

from .exact import Number, RankOne, floats, nearest
from .integral import integral
from .model import Model, Row
from .structure import nearly
from .ties import FORBIDDEN, Tie, tie_of

HARD_CELLS = 1 << 18  # a row over a pair becomes a table of forbidden pairs up to this many
NEARLY_FROM = 1 << 10  # cells from which a table that is a product but for rounding becomes one
HARD_TRIPLE = 1 << 20  # so does an equality over three


class TooExtreme(Exception):
    """Floats cannot hold a row's numbers: an engine that calculates in integers must do."""


@dataclass(frozen=True, eq=False)
class Dense:
    """Tables over one scope (sorted, its switch included), one layer per row that has one."""

    scope: tuple[int, ...]
    rows: np.ndarray  # [R]
    stack: np.ndarray  # [R, *sizes of scope]


@dataclass(frozen=True, eq=False)
class Rank:
    """``first[i] * second[j]`` of one row, over a pair and no switch."""

    scope: tuple[int, int]
    row: int
    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True, eq=False)
class Coordinate:
    """One side of a row's limits: ``sign * row <= limit`` (scaled, constant taken off); ``free``: an equality."""

    row: int
    sign: float
    limit: float
    free: bool
    source: int  # the row's position among the model's
    unit: float  # a multiplier times this is in the user's units


@dataclass(frozen=True, eq=False)
class View:
    """Row 0 is the objective, rows 1.. the limited ones."""

    sizes: tuple[int, ...]
    dense: tuple[Dense, ...]
    ranks: tuple[Rank, ...]
    hard: tuple[tuple[tuple[int, ...], np.ndarray], ...]  # scope, 0 or FORBIDDEN
    ties: tuple[Tie, ...]
    coordinates: tuple[Coordinate, ...]
    magnitude: np.ndarray  # [rows]: no sum of a row's entries exceeds this
    blur: np.ndarray  # [rows]: no sum is further off, for tables that are nearly products
    terms: int
    scale: Fraction  # objective = scale * (row 0) + constant
    constant: Number

    def weights(self, multipliers: np.ndarray, objective: float = 1.0) -> np.ndarray:
        """Each row's weight in the priced sum."""
        found = np.zeros(len(self.magnitude))
        found[0] = objective
        for coordinate, multiplier in zip(self.coordinates, multipliers, strict=True):
            found[coordinate.row] -= coordinate.sign * multiplier
        return found

    def offset(self, multipliers: np.ndarray) -> float:
        """What the limits add to the priced sum."""
        return float(sum(c.limit * m for c, m in zip(self.coordinates, multipliers, strict=True)))

    def margin(self, weights: np.ndarray, multipliers: np.ndarray, copies: int = 0) -> float:
        """No rounding error of a priced bound exceeds this; ``copies`` of variables add theirs."""
        size = float(np.abs(weights) @ self.magnitude)
        size += float(sum(abs(c.limit * m) for c, m in zip(self.coordinates, multipliers, strict=True)))
        rounding = size * 2.0**-52 * (2 * self.terms + 4 * len(self.sizes) + 8 * copies + 20)
        return rounding + float(np.abs(weights) @ self.blur) * (1 + 1e-9) + 1e-290

    def totals(self, choices: np.ndarray) -> np.ndarray:
        """Each row's sum for many choices at once: [N, rows]; choices: [N, variables]."""
        found = np.zeros((len(choices), len(self.magnitude)))
        for dense in self.dense:
            at = tuple(choices[:, v] for v in dense.scope)
            for layer, row in enumerate(dense.rows):
                found[:, row] += dense.stack[layer][at]
        for rank in self.ranks:
            found[:, rank.row] += rank.first[choices[:, rank.scope[0]]] * rank.second[choices[:, rank.scope[1]]]
        return found

    def slacks(self, totals: np.ndarray) -> np.ndarray:
        """How far each coordinate is within its limit: [N, coordinates]."""
        found = np.empty((len(totals), len(self.coordinates)))
        for d, c in enumerate(self.coordinates):
            found[:, d] = c.limit - c.sign * totals[:, c.row]
        return found

    def outside(self, bound: float) -> Number:
        """A scaled objective value in the user's unit, exact."""
        return self.scale * Fraction(bound) + self.constant

    def inside(self, value: Number) -> float:
        """A user's objective value, scaled (to the nearest float)."""
        return nearest((Fraction(value) - self.constant) / self.scale)

    def threshold(self, value: Number | None) -> float:
        """A user's objective value, scaled and rounded down; -inf where there is none."""
        if value is None:
            return -np.inf
        found = self.inside(value)
        return found - abs(found) * 2.0**-50 - 1e-300

    @property
    def lowest(self) -> float:
        """No choice is worth less (scaled)."""
        return -float(self.magnitude[0]) * (1 + 1e-9)

    def offer_best(
        self, choices: np.ndarray, offer: Callable[[np.ndarray], object], incumbent: Callable[[], Number | None]
    ) -> None:
        """Offer complete choices, best first, until none left can be better than the incumbent."""
        values = self.totals(choices)[:, 0]
        margin = float(self.magnitude[0]) * 2.0**-51 * (self.terms + 4) + 2 * float(self.blur[0])
        for i in np.argsort(-values, kind="stable"):
            value = incumbent()
            if value is not None and values[i] + margin <= self.inside(value):
                break
            offer(choices[i])


def view(model: Model, priced: Collection[str] = ()) -> View:
    """The float view of a compact model; rows named in `priced` get a price, whatever they are over."""
    sizes = tuple(len(domain) for domain in model.domains)
    hard, soft, ties = [], [], []
    for source, row in enumerate(model.rows):
        tie = None if row.name in priced else tie_of(row)
        if tie is not None:
            ties.append(tie)
            continue
        forbidden = None if row.name in priced else _forbidden(row, sizes)
        if forbidden is None:
            soft.append((source, row))
        else:
            hard.append(forbidden)
    stacks: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    ranks: list[Rank] = []
    magnitude, scales, blur = [], [], []
    for number_, row in enumerate([model.objective, *(row for _, row in soft)]):
        parts, scale, total, off = _scaled_parts(row, sizes)
        magnitude.append(total)
        blur.append(off)
        scales.append(scale)
        for scope, table in parts:
            if isinstance(table, tuple):
                ranks.append(Rank((scope[0], scope[1]), number_, *table))
            else:
                stacks.setdefault(scope, []).append((number_, table))
    coordinates = []
    for i, (source, row) in enumerate(soft, 1):
        coordinates += _coordinates(i, row, scales[i], source, nearest(scales[0] / scales[i]))
    dense = tuple(_stacked(scope, layers) for scope, layers in stacks.items())
    return View(
        sizes,
        dense,
        tuple(ranks),
        tuple(hard),
        tuple(ties),
        tuple(coordinates),
        np.array(magnitude),
        np.array(blur),
        len(dense) + len(ranks) + len(hard) + len(ties),
        scales[0],
        model.objective.constant,
    )


def _stacked(scope: tuple[int, ...], layers: list[tuple[int, np.ndarray]]) -> Dense:
    merged: dict[int, np.ndarray] = {}
    for row, table in layers:
        merged[row] = merged[row] + table if row in merged else table
    return Dense(scope, np.array(list(merged)), np.stack(list(merged.values())))


def _coordinates(index: int, row: Row, scale: Fraction, source: int, unit: float) -> list[Coordinate]:
    def limit(value: Number, sign: int) -> float:
        return nearest(sign * (Fraction(value) - row.constant) / scale)

    if row.upper is not None and row.upper == row.lower:
        return [Coordinate(index, 1.0, limit(row.upper, 1), True, source, unit)]
    found = []
    if row.upper is not None:
        found.append(Coordinate(index, 1.0, limit(row.upper, 1), False, source, unit))
    if row.lower is not None:
        found.append(Coordinate(index, -1.0, limit(row.lower, -1), False, source, unit))
    return found


Part = tuple[tuple[int, ...], "np.ndarray | tuple[np.ndarray, np.ndarray]"]


def _scaled_parts(row: Row, sizes: Sequence[int]) -> tuple[list[Part], Fraction, float, float]:
    """A row's tables over sorted scopes, divided by a power of two; that power; the largest possible sum; the blur."""
    raw: list[tuple[tuple[int, ...], np.ndarray | tuple[np.ndarray, np.ndarray]]] = []
    peak = off = 0.0
    for term in row.terms:
        if isinstance(term.table, RankOne):
            first, second = floats(term.table.first), floats(term.table.second)
            with np.errstate(over="ignore"):
                largest = float(np.abs(first).max() * np.abs(second).max())
            peak += largest
            if term.when is None or not largest < 1e250:
                raw.append((term.scope, (first, second)))
                continue
            table = np.multiply.outer(first, second)
        else:
            table = floats(term.table)
            close = nearly(table) if len(term.scope) == 2 and term.when is None and table.size >= NEARLY_FROM else None
            if close is not None:
                raw += close.parts(term.scope)
                peak += close.peak
                off += close.error
                continue
        raw.append(_with_switch(term.scope, table, term.when))
        peak += float(np.abs(table).max())
    if not peak < 1e250 or 0 < peak < 1e-250:
        raise TooExtreme(f"row {row.name!r} sums up to {peak:g}")
    power = frexp(peak)[1] if peak > 0 else 0
    factor, scale = 2.0**-power, Fraction(2) ** power
    parts: list[Part] = []
    for scope, found in raw:
        parts.append((scope, (found[0] * factor, found[1]) if isinstance(found, tuple) else found * factor))
    return parts, scale, peak * factor, off * factor


def _with_switch(scope: tuple[int, ...], table: np.ndarray, when: int | None) -> tuple[tuple[int, ...], np.ndarray]:
    """The table over its sorted scope, the switch as one more axis."""
    if when is not None:
        table = np.stack([np.zeros_like(table), table], axis=-1)
        scope = (*scope, when)
    order = np.argsort(scope)
    return tuple(scope[i] for i in order), np.ascontiguousarray(table.transpose(order))


def _forbidden(row: Row, sizes: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray] | None:
    """A row over at most two variables as a table of what it forbids; None for a row over more."""
    variables = sorted({v for term in row.terms for v in term.variables})
    cells = int(np.prod([sizes[v] for v in variables])) if variables else 1
    tie = row.lower is not None and row.lower == row.upper and len(variables) == 3 and cells <= HARD_TRIPLE
    if not tie and (not 1 <= len(variables) <= 2 or cells > HARD_CELLS):
        return None
    shape = [sizes[v] for v in variables]
    codes = np.zeros((len(sizes), cells), dtype=np.int64)
    codes[variables] = np.indices(shape).reshape(len(variables), -1)
    kept = integral(row, cells).kept(codes)
    return tuple(variables), np.where(kept, 0.0, FORBIDDEN).reshape(shape)
