"""A feasible choice at once: from a choice to start at, down along prices until all limits are kept, and up again.

At given prices on the limits every width in turn takes the level that is best for it while the others stay, until none
moves. Prices go up until the limits are kept, and are then bisected; at the end what is left of the budgets is spent
step by step. A width in linear equations moves with the others in them: each equation that a move breaks is mended by
one more width, the one with most levels first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .compact import compact
from .exact import RankOne
from .integral import integral
from .model import Choice, Model, Row
from .view import TooExtreme, View, view

Adder = Callable[[np.ndarray, np.ndarray], None]  # adds to [rows, levels] what a term comes to at a choice

PASSES = 6  # over all widths, at given prices
DOUBLINGS, BISECTIONS = 40, 14  # of the prices
TRIED = 24  # levels of a width in equations, that others must move with
STEPS = 400  # up again, at the end


def walk(
    model: Model,
    start: Mapping[int, int],
    offer: Callable[[Choice], object],
    over: Callable[[], bool],
) -> bool:
    """Offer choices on the way from ``start`` to where every limit is kept, the last ones good; whether it came there.

    ``start``: level indices by variable; what it leaves out takes the level that equations give it, else the first.
    """
    if any(len(domain) == 0 for domain in model.domains):
        return False
    near = [int(domain[np.abs(domain - start.get(v, 0)).argmin()]) for v, domain in enumerate(model.domains)]
    reduced = compact(model)
    inside = reduced.encode(near)
    if inside is None or not reduced.model.domains:
        return False
    loose = {i for i, v in enumerate(reduced.kept) if v not in start}
    try:
        found = _Walk(reduced.model, view(reduced.model), np.array(inside), loose, over).run()
    except TooExtreme:
        return False
    for choice in found:
        offer(reduced.decode(choice))
    return bool(found)


@dataclass(frozen=True, eq=False)
class _Equation:
    """``sum of amounts[v][level of v] == total``."""

    amounts: dict[int, np.ndarray]
    total: int

    def lacks(self, choice: np.ndarray) -> int:
        return self.total - sum(int(amounts[choice[v]]) for v, amounts in self.amounts.items())


def _equations(rows: Sequence[Row]) -> list[_Equation]:
    """The rows that are linear equations over single widths."""
    found = []
    for row in rows:
        plain = all(len(t.scope) == 1 and t.when is None and not isinstance(t.table, RankOne) for t in row.terms)
        if plain and row.lower is not None and row.lower == row.upper and row.terms:
            whole = integral(row)
            if whole.upper is not None and whole.lower == whole.upper:
                found.append(_Equation({key[0][0]: table for key, table in whole.tables.items()}, whole.upper))
    return found


@dataclass(eq=False)
class _Walk:
    """A choice on its way."""

    model: Model
    view: View
    choice: np.ndarray
    loose: set[int]  # what the start says nothing of
    over: Callable[[], bool]
    equations: list[_Equation] = field(init=False)

    def __post_init__(self) -> None:
        self.equations = _equations(self.model.rows)
        self.within: dict[int, list[_Equation]] = defaultdict(list)
        for equation in self.equations:
            for v in equation.amounts:
                self.within[v].append(equation)
        self.touching: dict[int, list[Adder]] = defaultdict(list)
        self.forbidding: dict[int, list[Adder]] = defaultdict(list)
        self.hard: dict[int, list[int]] = defaultdict(list)  # the tables of forbidden pairs that a width is in
        self._index()
        self.sides = [c for c in self.view.coordinates if not c.free]
        self.rows = np.array([c.row for c in self.sides], dtype=int)
        self.signs = np.array([c.sign for c in self.sides])

    # -- what a width's levels come to, the others as they are -------------------------------------------------------

    def _index(self) -> None:
        """For each width, what adds its terms to an array [rows, levels]."""
        for dense in self.view.dense:
            for axis, v in enumerate(dense.scope):
                self.touching[v].append(_slicer(dense.rows, np.moveaxis(dense.stack, axis + 1, -1), dense.scope, v))
        for k, (scope, table) in enumerate(self.view.hard):
            for axis, v in enumerate(scope):
                self.forbidding[v].append(_slicer(np.array([0]), np.moveaxis(table, axis, -1)[None], scope, v))
                self.hard[v].append(k)
        for rank in self.view.ranks:
            (a, b), row = rank.scope, rank.row
            self.touching[a].append(_scaler(row, rank.first, b, rank.second))
            self.touching[b].append(_scaler(row, rank.second, a, rank.first))

    def lines(self, v: int, choice: np.ndarray, hard: bool = True) -> np.ndarray:
        """What the terms of ``v`` come to at each of its levels, [rows, levels]: what is forbidden as well, or not."""
        found = np.zeros((len(self.view.magnitude), self.view.sizes[v]))
        for add in (*self.touching[v], *(self.forbidding[v] if hard else ())):
            add(found, choice)
        return found

    def priced(self, lines: np.ndarray, prices: np.ndarray) -> np.ndarray:
        """Value less what the limited rows cost, for each level."""
        return lines[0] - (prices * self.signs) @ lines[self.rows]

    def slacks(self, choice: np.ndarray) -> np.ndarray:
        """How far each limit is from being reached."""
        found = self.view.slacks(self.view.totals(choice[None]))[0]
        return found[[not c.free for c in self.view.coordinates]]

    # -- moves -------------------------------------------------------------------------------------------------------

    def moved(self, choice: np.ndarray, v: int, level: int) -> np.ndarray | None:
        """The choice with ``v`` at a level, and with what must move along; None where that leads nowhere."""
        found, gone, broken = choice.copy(), {v}, list(self.within[v])
        found[v] = level
        while broken:
            equation = broken.pop()
            lacks = equation.lacks(found)
            if not lacks:
                continue
            for u in sorted(equation.amounts.keys() - gone, key=lambda u: -self.view.sizes[u]):
                at = np.flatnonzero(equation.amounts[u] == int(equation.amounts[u][found[u]]) + lacks)
                if len(at):
                    found[u] = at[0]
                    gone.add(u)
                    broken += [other for other in self.within[u] if other is not equation]
                    break
            else:
                return None
        return found if all(not e.lacks(found) for u in gone for e in self.within[u]) else None

    def mended(self) -> None:
        """Equations that the start does not keep, mended where one more width can."""
        for equation in self.equations:
            if equation.lacks(self.choice):
                for v in sorted(equation.amounts, key=lambda u: (u not in self.loose, -self.view.sizes[u])):
                    wanted = int(equation.amounts[v][self.choice[v]]) + equation.lacks(self.choice)
                    at = np.flatnonzero(equation.amounts[v] == wanted)
                    moved = self.moved(self.choice, v, int(at[0])) if len(at) else None
                    if moved is not None:
                        self.choice = moved
                        break

    def settle(self, choice: np.ndarray, prices: np.ndarray) -> np.ndarray:
        """Each width in turn at its best level, until none moves."""
        choice = choice.copy()
        for _ in range(PASSES):
            before = choice.copy()
            for v in range(len(choice)):
                if v % 16 == 0 and self.over():
                    return choice
                if self.within[v]:
                    choice = self._best_along(choice, v, prices)
                else:
                    score = self.priced(self.lines(v, choice), prices)
                    best = int(score.argmax())
                    if score[best] > score[choice[v]]:
                        choice[v] = best
            if (choice == before).all() or self.over():
                break
        return choice

    def _best_along(self, choice: np.ndarray, v: int, prices: np.ndarray) -> np.ndarray:
        """The best of some moves of ``v`` that others follow."""
        size, at = self.view.sizes[v], int(choice[v])
        near = {at + step for power in range(12) for step in (-(2**power), 2**power)}
        levels = sorted(k for k in near | {0, size - 1} if 0 <= k < size and k != at)[:TRIED]
        found = [m for m in (self.moved(choice, v, k) for k in levels) if m is not None]
        gains = [self._gain(choice, m, prices) for m in found]
        best = int(np.argmax(gains)) if gains else -1
        return found[best] if best >= 0 and gains[best] > 0 else choice

    def _gain(self, choice: np.ndarray, moved: np.ndarray, prices: np.ndarray) -> float:
        """What another choice is worth more at these prices, from the terms of the widths that differ."""
        at, total = choice.copy(), 0.0
        differ = np.flatnonzero(moved != choice).tolist()
        for u in differ:
            score = self.priced(self.lines(u, at, hard=False), prices)
            total += float(score[moved[u]] - score[at[u]])
            at[u] = moved[u]
        for k in {k for u in differ for k in self.hard[u]}:  # of the two choices alone: what lies between is no matter
            scope, table = self.view.hard[k]
            total += float(table[tuple(moved[list(scope)])] - table[tuple(choice[list(scope)])])
        return total

    # -- the way -----------------------------------------------------------------------------------------------------

    def run(self) -> list[np.ndarray]:
        """Choices that keep the limits, as far as floats can tell, the last one best."""
        self.mended()
        weights = np.ones(len(self.sides))
        scale = max(self.view.magnitude[0], 1e-12)
        high, low, choice = 1e-6 * scale, 0.0, self.choice
        found: list[np.ndarray] = []
        for _ in range(DOUBLINGS):
            slack = self.slacks(choice)
            if (slack >= 0).all():
                break
            weights = np.where(slack < 0, weights * 2, weights)  # limits that are not kept yet cost more and more
            low, high = high, high * 2
            choice = self.settle(choice, high * weights / weights.max())
            if self.over():
                return found
        else:
            return found
        found.append(choice)
        for _ in range(BISECTIONS if low else 0):
            if self.over():
                return found
            middle = (low + high) / 2
            tried = self.settle(choice, middle * weights / weights.max())
            if (self.slacks(tried) >= 0).all():
                high, choice = middle, tried
                found.append(choice)
            else:
                low = middle
        found.append(self._up(max(found, key=lambda c: float(self.view.totals(c[None])[0, 0]))))
        return found

    def _up(self, choice: np.ndarray) -> np.ndarray:
        """Spend what is left: again and again the move of most value for what it takes of the scarcest limit."""
        choice = choice.copy()
        for _ in range(STEPS):
            slack = np.maximum(self.slacks(choice), 0.0)
            best: tuple[float, int, int] | None = None
            for v in range(len(choice)):
                if self.within[v]:
                    continue
                lines = self.lines(v, choice)
                more = lines - lines[:, choice[v]][:, None]
                spent = self.signs[:, None] * more[self.rows]
                allowed = (spent <= slack[:, None]).all(axis=0) & (more[0] > 0)
                if allowed.any():
                    share = (np.maximum(spent, 0) / np.maximum(slack, 1e-300)[:, None]).max(axis=0, initial=1e-12)
                    rate = np.where(allowed, more[0] / np.maximum(share, 1e-12), -np.inf)
                    k = int(rate.argmax())
                    if best is None or rate[k] > best[0]:
                        best = float(rate[k]), v, k
            if best is None or self.over():
                break
            choice[best[1]] = best[2]
        return choice


def _slicer(rows: np.ndarray, stack: np.ndarray, scope: tuple[int, ...], v: int) -> Adder:
    """Adds a table's line at the levels of the other widths; ``stack``: [rows, *others, levels of v]."""
    others, whole = [u for u in scope if u != v], (slice(None),)

    def add(found: np.ndarray, choice: np.ndarray) -> None:
        found[rows] += stack[whole + tuple(choice[others])]

    return add


def _scaler(row: int, own: np.ndarray, other: int, factor: np.ndarray) -> Adder:
    """Adds a product at the other width's level."""

    def add(found: np.ndarray, choice: np.ndarray) -> None:
        found[row] += own * factor[choice[other]]

    return add
