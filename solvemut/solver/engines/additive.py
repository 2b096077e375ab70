"""The engine for programs without pair tables (one choice per layer, additive budgets): a knapsack with classes.

At any multipliers each level gives away a known part of the bound, its *loss*. One price vector alone leaves too many
choices whose losses fit into the gap; but the bound holds at every price vector, so a bank of them around the best one
is kept for each partial choice, and the lowest counts: it adapts to what the choice has spent of each limit so far.
Partial choices are extended class by class, those with the coarsest steps first, and dropped below the incumbent. If
none was dropped for lack of room, the incumbent is optimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor

import numpy as np

from ..certificate import Answer, Request, settled
from ..compact import Compact, compact
from ..elimination import Interrupted, plan
from ..engines.price import search
from ..exact import Number, RankOne, simplify
from ..integral import integral
from ..model import Model
from ..multipliers import Prices
from ..view import FORBIDDEN, TooExtreme, View, view

WIDTHS = ((100, 20), (2_000, 60), (100_000, 100))  # partial choices kept, price vectors
SPREADS = (0.01, 0.03, 0.06, 0.1, 0.2)  # of the price vectors around the best one, relative
MOST_LIMITS = 24
FIRST = 20  # of the price vectors, looked at before the others
BLOCK = 5_000  # extensions looked at together
ROUNDS = 60


def additive(model: Model) -> bool:
    """Whether no table of a compact model joins two variables."""
    terms = [term for row in (model.objective, *model.rows) for term in row.terms]
    return all(len(set(term.variables)) == 1 and not isinstance(term.table, RankOne) for term in terms)


def solve(request: Request) -> Answer:
    """Solve a program without pair tables; others go to the pricing engine, and so does what remains undecided."""
    reduced = compact(request.model)
    done = settled(reduced)
    if done is not None:
        return done
    try:
        seen = view(reduced.model) if additive(reduced.model) else None
    except TooExtreme:
        seen = None
    if seen is None or len(seen.coordinates) > MOST_LIMITS or any(len(scope) > 1 for scope, _ in seen.hard):
        answer = search.solve(request)
        answer.engine = answer.engine or "price"
        return answer
    return _Run(request, reduced, seen).solve()


@dataclass(eq=False)
class _Bank:
    """Price vectors, and what they make of each level: bounds are at ``start`` before anything is chosen."""

    losses: list[np.ndarray]  # per class: [levels, vectors], never above 0
    start: np.ndarray  # [vectors]: the bound, all rounding included


@dataclass(eq=False)
class _Run:
    request: Request
    reduced: Compact
    view: View
    answer: Answer = field(default_factory=Answer)
    removed: Number | None = None  # no choice dropped so far is worth more

    def __post_init__(self) -> None:
        model = self.reduced.model
        self.tables = [np.zeros((size, len(self.view.magnitude))) for size in self.view.sizes]
        self.constants = np.zeros(len(self.view.magnitude))
        for dense in self.view.dense:
            target = self.tables[dense.scope[0]].T if dense.scope else self.constants
            for layer, row in enumerate(dense.rows):
                target[row] += dense.stack[layer]
        self.left = [np.arange(size) for size in self.view.sizes]
        for scope, table in self.view.hard:
            allowed = np.flatnonzero(table > FORBIDDEN / 2) if scope else np.arange(0)
            if scope:
                self.left[scope[0]] = np.intersect1d(self.left[scope[0]], allowed)
        integer = all(isinstance(t.table, np.ndarray) and t.table.dtype.kind == "i" for t in model.objective.terms)
        self.unit = integral(model.objective, self.view.sizes).scale if integer and model.objective.terms else 0
        sides = [(c.row, c.sign, c.limit) for c in self.view.coordinates]
        sides += [(c.row, -c.sign, -c.limit) for c in self.view.coordinates if c.free]
        rows = np.array([row for row, _, _ in sides], dtype=np.int64)
        signs = np.array([sign for _, sign, _ in sides])
        rounding = 2.0**-52 * (2 * self.view.terms + 4 * len(self.view.sizes) + 20)
        limits = np.array([limit for _, _, limit in sides])
        self.limits = limits + (self.view.magnitude[rows] + np.abs(limits)) * rounding - self.constants[rows] * signs
        self.spent = [table[:, rows] * signs for table in self.tables]  # per class: [levels, sides]

    # -- the certificate ---------------------------------------------------------------------------------------------

    def threshold(self) -> float:
        """In the view's unit, rounded down: only choices worth more than incumbent and gap are of interest."""
        value = self.answer.value
        if value is None:
            return -np.inf
        enough = simplify(value + Fraction(self.request.gap) * abs(Fraction(value)))
        if self.removed is None or enough > self.removed:
            self.removed = enough
        found = self.view.inside(max(enough, value + self.unit * Fraction(999, 1000)))
        return found - abs(found) * 2.0**-50 - 1e-300

    def limit(self, bound: Number) -> None:
        """A bound on what is left bounds everything, together with what was dropped."""
        if self.unit:
            constant = self.reduced.model.objective.constant
            bound = constant + self.unit * floor((bound - constant) / self.unit)
        self.answer.limit(max(b for b in (bound, self.removed, self.answer.value) if b is not None))
        assert self.answer.bound is not None
        self.request.on_bound(self.answer.bound)

    def complete(self) -> Answer:
        """Nothing of interest is left beyond the incumbent."""
        self.answer.finished = True
        self.answer.infeasible = self.answer.value is None
        if self.answer.value is not None:
            self.limit(self.answer.value)
        return self.answer

    def over(self) -> bool:
        """Whether to stop, for lack of time or because any feasible choice would do."""
        self.request.tick()
        return self.request.clock.over or (self.request.feasibility and self.answer.choice is not None)

    def offer(self, choice: np.ndarray) -> None:
        self.answer.offer(self.request, self.reduced.decode([int(k) for k in choice]))

    # -- the search --------------------------------------------------------------------------------------------------

    def solve(self) -> Answer:
        if self.request.hint is not None:
            self.answer.offer(self.request, self.request.hint)
        try:
            best = self._priced()
        except Interrupted:
            return self.answer
        if best is None:
            return self.complete()
        for width, vectors in WIDTHS:
            if self.over():
                return self.answer
            bank = self._bank(best, vectors)
            if not self._remove(bank):
                return self.complete()
            dropped = self._beam(bank, width)
            if dropped == -np.inf:
                return self.complete()
            self.limit(self.view.outside(dropped))
            if self.request.close_enough(self.answer.value, self.answer.bound):
                self.answer.finished = True
                return self.answer
        return self._rest()

    def _priced(self) -> np.ndarray | None:
        """The best multipliers; None where nothing keeps the limits."""
        prices = Prices(plan(self.view), self.offer, self.over)
        lowest = -float(self.view.magnitude[0]) * (1 + 1e-9)  # no choice is worth less
        best = prices.minimise(np.zeros(len(self.view.coordinates)), ROUNDS, 1e-8, lowest)
        if best.bound < lowest:
            return None
        self.limit(self.view.outside(best.bound))
        return best.multipliers

    def _bank(self, best: np.ndarray, count: int) -> _Bank:
        """The best multipliers and others around them, the same on every run."""
        draw = np.random.default_rng(0).normal(size=(count, len(best)))
        vectors = best * (1 + np.resize(SPREADS, count)[:, None] * draw) if len(best) else np.zeros((1, 0))
        free = np.array([c.free for c in self.view.coordinates], dtype=bool)
        vectors = np.vstack([best[None], np.where(free, vectors, np.abs(vectors))])
        weights = np.array([self.view.weights(m) for m in vectors])
        margins = [2 * self.view.margin(w, m) for w, m in zip(weights, vectors, strict=True)]
        start = np.array([self.view.offset(m) for m in vectors]) + margins + weights @ self.constants
        losses = []
        for table, left in zip(self.tables, self.left, strict=True):
            priced = table @ weights.T
            highest = priced[left].max(axis=0) if len(left) else 0.0
            losses.append(priced - highest)
            start = start + highest
        return _Bank(losses, start)

    def _remove(self, bank: _Bank) -> bool:
        """Drop the levels whose forced bound is below the threshold at some price; False if a class has none left."""
        threshold = self.threshold()
        for g, loss in enumerate(bank.losses):
            left = self.left[g]
            self.left[g] = left[(bank.start + loss[left] >= threshold).all(axis=1)]
        return all(len(left) > 0 for left in self.left)

    def _beam(self, bank: _Bank, width: int) -> float:
        """Extend partial choices class by class; the highest bound among those dropped for lack of room."""
        spans = [float(np.ptp(self.spent[g][left], axis=0).max(initial=0.0)) for g, left in enumerate(self.left)]
        order = np.argsort([-span for span in spans], kind="stable")
        threshold, dropped = self.threshold(), -np.inf
        least = np.sum([self.spent[g][left].min(axis=0) for g, left in enumerate(self.left)], axis=0)
        choices = np.zeros((1, len(order)), dtype=np.int32)
        spent, bounds = np.zeros((1, len(self.limits))), bank.start[None]
        for g in order:
            if self.over():
                return max(dropped, float(bounds.min(axis=1).max()))
            left = self.left[g]
            least = least - self.spent[g][left].min(axis=0)
            room = self.limits - least
            parts, size = [], max(1, BLOCK // len(left))
            for at in range(0, len(choices), size):
                block = slice(at, at + size)
                parts.append(_extended(bounds[block], spent[block], bank.losses[g][left], self.spent[g][left],
                                       threshold, room, at))  # fmt: skip
            parents, levels, bounds, spent = (np.concatenate([part[i] for part in parts]) for i in range(4))
            if len(parents) > width:
                score = bounds.min(axis=1)
                ranked = np.argsort(-score, kind="stable")
                dropped = max(dropped, float(score[ranked[width]]))
                kept = np.sort(ranked[:width])
                parents, levels, bounds, spent = parents[kept], levels[kept], bounds[kept], spent[kept]
            choices = choices[parents]
            choices[:, g] = left[levels]
            if not len(choices):
                return dropped
        self._offer_best(choices)
        return dropped

    def _offer_best(self, choices: np.ndarray) -> None:
        """Exact checks of complete choices, best first, until none left can be better."""
        values = self.view.totals(choices)[:, 0]
        margin = float(self.view.magnitude[0]) * 2.0**-51 * (self.view.terms + 4)
        for i in np.argsort(-values, kind="stable"):
            value = self.answer.value
            if value is not None and values[i] + margin <= self.view.inside(value):
                break
            self.offer(choices[i])

    def _rest(self) -> Answer:
        """What remains undecided goes to the pricing engine, on the levels left."""
        self.threshold()
        full = list(self.reduced.domains)
        for variable, left in zip(self.reduced.kept, self.left, strict=True):
            full[variable] = full[variable][left]
        done = search.solve(replace(self.request, model=self.request.model.restricted(full), hint=self.answer.choice))
        if done.choice is not None:
            self.answer.offer(self.request, done.choice)
        self.answer.engine = "additive + " + (done.engine or "price")
        if done.infeasible:
            return self.complete()
        if done.bound is not None:
            self.limit(done.bound)
        self.answer.finished = done.finished
        return self.answer


def _extended(
    bounds: np.ndarray, spent: np.ndarray, losses: np.ndarray, costs: np.ndarray, threshold: float, room: np.ndarray,
    offset: int,
) -> Sequence[np.ndarray]:  # fmt: skip
    """Every level for every partial choice that stays above the threshold and can still keep the limits."""
    parents, levels = np.nonzero(bounds[:, :1] + losses[:, 0] >= threshold)
    total = spent[parents] + costs[levels]
    good = (total <= room).all(axis=1)
    parents, levels, total = parents[good], levels[good], total[good]
    few = (bounds[parents, :FIRST] + losses[levels, :FIRST]).min(axis=1) >= threshold  # most end here already
    parents, levels, total = parents[few], levels[few], total[few]
    lower = bounds[parents] + losses[levels]
    good = lower.min(axis=1) >= threshold
    return parents[good] + offset, levels[good], lower[good], total[good]
