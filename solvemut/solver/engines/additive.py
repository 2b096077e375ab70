"""The engine for programs without pair tables (one choice per layer, additive budgets): a knapsack with classes.

At any multipliers each level gives away a known part of the bound, its *loss*. One price vector alone leaves too many
choices whose losses fit into the gap; but the bound holds at every price vector, so a bank of them around the best one
is kept for each partial choice, and the lowest counts: it adapts to what the choice has spent of each limit so far.
Partial choices are extended class by class, those with the coarsest steps first, and dropped below the incumbent. If
none was dropped for lack of room, the incumbent is optimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..certificate import Answer, Certificate, Request, settled
from ..clock import CutShort
from ..compact import Compact, compact
from ..exact import RankOne
from ..model import Model
from ..multipliers import Prices
from ..order import order_of
from ..view import FORBIDDEN, TooExtreme, View, view
from . import price

KEPT = ((100, 20), (2_000, 60), (100_000, 100))  # partial choices kept, price vectors
SPREADS = (0.01, 0.03, 0.06, 0.1, 0.2)  # of the price vectors around the best one, relative
MOST_LIMITS = 24
MOST_LEVELS = 256  # of a class
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
        return price.solve(request)
    if max(seen.sizes) > MOST_LEVELS:  # too many partial choices would have nearly the same bounds
        return price.solve(request)
    request.on_engine("additive")
    return _Run(request, reduced, seen).solve()


@dataclass(eq=False)
class _Bank:
    """Price vectors, and what they make of each level: bounds are at ``start`` before anything is chosen."""

    losses: list[np.ndarray]  # per class: [levels, vectors], never above 0
    start: np.ndarray  # [vectors]: the bound, all rounding included


@dataclass(eq=False)
class _Run:
    """One knapsack: its levels left, what each is worth and spends."""

    request: Request
    reduced: Compact
    view: View
    certificate: Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = Certificate(self.request, self.reduced.model.objective)
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
        sides = [(c.row, c.sign, c.limit) for c in self.view.coordinates]
        sides += [(c.row, -c.sign, -c.limit) for c in self.view.coordinates if c.free]
        rows = np.array([row for row, _, _ in sides], dtype=np.int64)
        signs = np.array([sign for _, sign, _ in sides])
        rounding = 2.0**-52 * (2 * self.view.terms + 4 * len(self.view.sizes) + 20)
        limits = np.array([limit for _, _, limit in sides])
        self.limits = limits + (self.view.magnitude[rows] + np.abs(limits)) * rounding - self.constants[rows] * signs
        self.spent = [table[:, rows] * signs for table in self.tables]  # per class: [levels, sides]

    # -- the search --------------------------------------------------------------------------------------------------

    def solve(self) -> Answer:
        """Price, then search wider and wider; what remains undecided goes to the pricing engine."""
        certificate, answer = self.certificate, self.certificate.answer
        certificate.offer_hint()
        try:
            best = self._priced()
        except CutShort:
            return answer
        if best is None:
            return certificate.complete()
        for most, vectors in KEPT:
            if certificate.over():
                return answer
            bank = self._bank(best, vectors)
            if not self._remove(bank):
                return certificate.complete()
            dropped = self._beam(bank, most)
            if dropped == -np.inf:
                return certificate.complete()
            certificate.bound(self.view.outside(dropped))
            if certificate.proven:
                answer.finished = True
                return answer
        return self._rest()

    def _offer(self, choice: np.ndarray) -> None:
        self.certificate.offer(self.reduced.decode(choice))

    def _threshold(self) -> float:
        """In the view's unit, rounded down: only choices worth more are of interest."""
        return self.view.threshold(self.certificate.cutoff())

    def _priced(self) -> np.ndarray | None:
        """The best multipliers; None where nothing keeps the limits."""
        prices = Prices(order_of(self.view), self._offer, self.certificate.over)
        best = prices.minimise(np.zeros(len(self.view.coordinates)), ROUNDS, 1e-8, self.view.lowest)
        if best.bound < self.view.lowest:
            return None
        self.certificate.bound(self.view.outside(best.bound))
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
        threshold = self._threshold()
        for g, loss in enumerate(bank.losses):
            left = self.left[g]
            self.left[g] = left[(bank.start + loss[left] >= threshold).all(axis=1)]
        return all(len(left) > 0 for left in self.left)

    def _beam(self, bank: _Bank, most: int) -> float:
        """Extend partial choices class by class; the highest bound among those dropped for lack of room."""
        spans = [float(np.ptp(self.spent[g][left], axis=0).max(initial=0.0)) for g, left in enumerate(self.left)]
        order = np.argsort([-span for span in spans], kind="stable")
        threshold, dropped = self._threshold(), -np.inf
        least = np.sum([self.spent[g][left].min(axis=0) for g, left in enumerate(self.left)], axis=0)
        choices = np.zeros((1, len(order)), dtype=np.int32)
        spent, bounds = np.zeros((1, len(self.limits))), bank.start[None]
        for g in order:
            if self.certificate.over():
                return max(dropped, float(bounds.min(axis=1).max()))
            left = self.left[g]
            least = least - self.spent[g][left].min(axis=0)
            room = self.limits - least
            parts: list[Sequence[np.ndarray]] = []
            size, found = max(1, BLOCK // len(left)), 0
            for at in range(0, len(choices), size):
                if self.certificate.over():
                    return max(dropped, float(bounds.min(axis=1).max()))
                block = slice(at, at + size)
                parts.append(
                    _extended(
                        bounds[block], spent[block], bank.losses[g][left], self.spent[g][left], threshold, room, at
                    )
                )
                found += len(parts[-1][0])
                if found > 2 * most:  # no more are held at once
                    best, lost = _best(parts, most)
                    parts, found, dropped = [best], most, max(dropped, lost)
            (parents, levels, bounds, spent), lost = _best(parts, most)
            dropped = max(dropped, lost)
            choices = choices[parents]
            choices[:, g] = left[levels]
            if not len(choices):
                return dropped
        self.view.offer_best(choices, self._offer, self.certificate.incumbent)
        return dropped

    def _rest(self) -> Answer:
        """What remains undecided goes to the pricing engine, on the levels left."""
        self.certificate.cutoff()
        model = self.request.model.restricted(self.reduced.decode_domains(self.left))
        return self.certificate.close(price.solve(self.certificate.rest(model, hint=self.certificate.answer.choice)))


def _best(parts: Sequence[Sequence[np.ndarray]], most: int) -> tuple[Sequence[np.ndarray], float]:
    """The partial choices of the highest bounds, in order, and the highest bound of the others."""
    merged = [np.concatenate([part[i] for part in parts]) for i in range(4)]
    score = merged[2].min(axis=1)
    if len(score) <= most:
        return merged, -np.inf
    ranked = np.argsort(-score, kind="stable")
    kept = np.sort(ranked[:most])
    return [x[kept] for x in merged], float(score[ranked[most]])


def _extended(
    bounds: np.ndarray,
    spent: np.ndarray,
    losses: np.ndarray,
    costs: np.ndarray,
    threshold: float,
    room: np.ndarray,
    offset: int,
) -> Sequence[np.ndarray]:
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
