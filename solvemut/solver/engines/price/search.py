"""The pricing engine: bound, incumbent, levels removed by bound, a search along the bound, and an exact finish.

Each round works on what is left of the model: price the limits until the bound stands; search along the bound for
better choices; drop every level whose forced bound is below the incumbent; begin again on the smaller model, or, when
the search came through complete, stop: the incumbent is optimal. What remains undecided goes to CP-SAT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import inf, prod

import numpy as np

from ...certificate import Answer, Certificate, Request, settled
from ...clock import CutShort
from ...compact import Compact, compact
from ...elimination import HEAVY
from ...exact import Number, RankOne, denominator
from ...model import Choice, Model, Row, Term
from ...multipliers import Priced, Prices, priced
from ...order import Order, order_of
from ...view import Coordinate, TooExtreme, View, view
from .. import cpsat, enumeration
from . import beam
from .aggregate import Extended, extend
from .branch import Node, branch, halved

KEPT = (300, 3_000, 20_000, 60_000)  # partial choices kept, from try to try
ROUNDS = 60  # of the multipliers, at most
HEAVY_ROUNDS = 4  # where a sweep is long and good prices are known
COARSE_GAP = Fraction(1, 5000)
GUIDE_CELLS = 150_000_000  # kept by all guides of a search together
MOST_GUIDED = 8  # limits that get guides of their own
SMALL_CELLS = 1_500  # of a knapsack, few enough to let CP-SAT try before the search goes wide
SMALL_EFFORT = 4.0
HALF_ROUNDS = 12  # of the multipliers, for each half of what is left
HALF_KEPT = 300  # partial choices, likewise
FINISH_SHARE = 0.4  # of the time left, for CP-SAT
FINISH_CELLS = 2_000_000  # of all tables left, up to which CP-SAT is asked to finish

Key = tuple[int, float]


def solve(request: Request) -> Answer:
    """Solve a model by prices, search and removal."""
    return _Search(request).run()


@dataclass
class _Search:
    """All rounds: the model worked on, and what is known from one round to the next."""

    request: Request
    certificate: Certificate = field(init=False)
    multipliers: dict[Key, float] = field(default_factory=dict)  # in the user's units
    encode: Callable[[Choice], Choice | None] = lambda choice: choice  # to the model worked on
    is_coarse: bool = False
    base: Model = field(init=False)
    tried: int = 0  # beams tried since the model last shrank

    def __post_init__(self) -> None:
        self.certificate = Certificate(self.request, self.request.model.objective)

    def run(self) -> Answer:
        """Round after round on what is left."""
        self.certificate.offer_hint()
        try:
            self.base = self._base()
            return self._rounds(self.base)
        except CutShort:
            return self.certificate.answer

    def _rounds(self, model: Model) -> Answer:
        certificate = self.certificate
        while True:
            if certificate.enough:
                return certificate.answer
            reduced = compact(model)
            done = settled(reduced)
            if done is None and enumeration.fits(reduced.model.combinations):
                done = enumeration.solve(certificate.rest(model))
            if done is not None:
                return certificate.close(done)
            try:
                smaller = _Round(self, reduced).run()
            except TooExtreme:
                return certificate.close(cpsat.solve(certificate.rest(model, hint=self.hint)))
            if smaller is None:
                return certificate.answer
            model = smaller

    def _base(self) -> Model:
        """The model to work on: with running sums where it has no small separators as it is, but has with them."""
        reduced = compact(self.request.model)
        if settled(reduced) is not None or enumeration.fits(reduced.model.combinations):
            return self.request.model
        found, model = _ordered(reduced.model), self.request.model
        if found is None:
            return model
        self.request.on_engine("price")
        if not found.exact:
            extended = extend(reduced.model, self._splits)
            better = None if extended is None else _ordered(compact(extended.model).model)
            if extended is not None and better is not None and better.exact and not _loose_sums(better):
                found, model = better, extended.model
                self._work_on(extended, reduced)
        if found.work > 10 * HEAVY and not self.is_coarse:
            self._coarse()
        return model

    def _splits(self, model: Model) -> float:
        """How many variables of a model have separators that are too large."""
        found = None if self.certificate.over() else _ordered(compact(model).model)
        return inf if found is None else found.splits

    def look(self, model: Model) -> Node | None:
        """What a part of the model is at most worth; None where nothing of interest is in it."""
        reduced = compact(model)
        done = settled(reduced)
        if done is None and enumeration.fits(reduced.model.combinations):
            done = enumeration.solve(self.certificate.rest(model, on_bound=lambda bound: None, hint=None))
        if done is None:
            return _Round(self, reduced).half()
        if not done.finished:
            raise CutShort
        if done.choice is not None:
            self.certificate.take(done.choice)
        return None

    def _work_on(self, extended: Extended, reduced: Compact) -> None:
        """Go on with running sums, on top of the reduced model."""

        def encode(choice: Choice) -> Choice | None:
            inside = reduced.encode(choice)
            return None if inside is None else extended.encode(inside)

        self.encode = encode
        self.certificate.decode = lambda choice: reduced.decode(extended.decode(choice))

    def _coarse(self) -> None:
        """Where a sweep is long, solve the model on every few levels first: for prices and a choice."""
        domains = list(self.request.model.domains)
        for stride in (4, 8, 16, 32, 64):
            coarse_model = self.request.model.restricted([_every(domain, stride) for domain in domains])
            found = _ordered(compact(coarse_model).model)
            if found is None or found.work <= HEAVY or (not found.exact and stride >= 8):
                break  # where no separators are small, running sums will have to do
        coarse = _Search(
            replace(
                self.request,
                model=coarse_model,
                gap=max(self.request.gap, COARSE_GAP),
                on_bound=lambda bound: None,
                on_engine=lambda name: None,
                hint=None,
                clock=self.request.clock.part(0.3 * self.request.clock.left),
            ),
            is_coarse=True,
        )
        choice = coarse.run().choice
        if choice is not None:
            self.certificate.offer(choice)
        self.multipliers = coarse.multipliers

    @property
    def hint(self) -> Choice | None:
        """The incumbent as a choice of the model worked on."""
        choice = self.certificate.answer.choice
        return None if choice is None else self.encode(choice)


def _ordered(model: Model) -> Order | None:
    """The order of elimination for a model; None where floats cannot hold it."""
    try:
        return order_of(view(model))
    except TooExtreme:
        return None


def _cells(model: Model) -> int:
    """How many cells the tables of a compact model have, those of products included."""
    rows = (model.objective, *model.rows)
    return sum(prod(len(model.domains[v]) for v in term.scope) for row in rows for term in row.terms)


def _every(domain: np.ndarray, stride: int) -> np.ndarray:
    """Every few levels, the last one among them, and the first."""
    if len(domain) < 16:
        return domain
    return np.union1d(domain[::-1][::stride], domain[:1]) if len(domain) < 4 * stride else domain[::-1][::stride][::-1]


def _loose_sums(found: Order) -> bool:
    """Whether some sum and its parts are too large for a table, and would only be priced."""
    return any(coordinate.free for coordinate in found.view.coordinates)


class _Round:
    """One round on what is left of the model."""

    def __init__(self, search: _Search, reduced: Compact) -> None:
        self.search, self.reduced = search, reduced
        self.request, self.certificate = search.request, search.certificate
        self.model = reduced.model.with_rows(*idle_rows(reduced.model))
        self.view: View = view(self.model)
        self.order: Order = order_of(self.view)

    def run(self) -> Model | None:
        """The smaller model to go on with; None when the answer stands."""
        best = self._price()
        if best is None:
            return None
        while True:
            domains = self._removed(best)
            if domains is None:
                self.certificate.complete()
                return None
            before, after = sum(self.view.sizes), sum(len(domain) for domain in domains)
            if after < 0.8 * before and after < before - 8:
                self.search.tried = 0
                return self._smaller(domains)
            if self._search(best) or self.certificate.proven or self.certificate.over():
                return None
            if self.search.tried >= self._tries():
                if not self._finish(domains, FINISH_CELLS, None, FINISH_SHARE):
                    self._branch(domains, best)
                return None
            few = SMALL_CELLS * self.search.tried
            if self._separable and self.search.tried in (1, 2) and self._finish(domains, few, SMALL_EFFORT):
                return None

    @property
    def _separable(self) -> bool:
        """Whether no table joins two variables: a knapsack, where CP-SAT does well."""
        return not self.view.ranks and all(len(dense.scope) <= 1 for dense in self.view.dense)

    def _tries(self) -> int:
        """How many beams to try before CP-SAT gets its turn."""
        if self.order.work > 10 * HEAVY:
            return 1
        return 2 if self.certificate.answer.choice is None else len(KEPT)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _price(self) -> Priced | None:
        """Minimise the bound; None where that settles the matter."""
        heavy = self.order.work > 10 * HEAVY
        known = bool(self.search.multipliers) and heavy
        best = self._minimised(HEAVY_ROUNDS if known else ROUNDS, self._bounded if heavy else lambda bound: False)
        if self.certificate.enough:
            return None
        if best.bound < self.view.lowest:  # nothing is left that keeps the limits
            self.certificate.complete()
            return None
        self.certificate.bound(self.view.outside(best.bound))
        if self.certificate.proven or self.certificate.over():
            self.certificate.answer.finished = self.certificate.proven
            return None
        return best

    def _minimised(self, rounds: int, enough: Callable[[float], bool] = lambda bound: False) -> Priced:
        """The lowest bound that is found, from the prices known so far; they are remembered."""
        prices = Prices(self.order, self._offer, self.certificate.over, enough)
        start = np.array([self.search.multipliers.get((c.source, c.sign), 0.0) / c.unit for c in self.view.coordinates])
        best = prices.minimise(start, rounds, 1e-8, self.view.lowest)
        for c, multiplier in zip(self.view.coordinates, best.multipliers, strict=True):
            self.search.multipliers[c.source, c.sign] = float(multiplier) * c.unit
        return best

    def _bounded(self, bound: float) -> bool:
        """Take a bound that took long; whether it will do."""
        if bound >= -float(self.view.magnitude[0]):  # lower ones are a matter of infeasibility
            self.certificate.bound(self.view.outside(bound))
        return self.certificate.proven

    def _offer(self, choice: np.ndarray) -> bool:
        return self.certificate.take(self.reduced.decode(choice))

    def _removed(self, best: Priced) -> list[np.ndarray] | None:
        """The levels whose forced bound is above the threshold; None if some variable has none left."""
        threshold = self.view.threshold(self.certificate.cutoff())
        if threshold == -np.inf:
            return [np.arange(size) for size in self.view.sizes]
        domains = []
        for marginal in best.sweep.max_marginals(self.certificate.over):
            left = np.flatnonzero(marginal + best.offset + 2 * best.margin >= threshold)
            if not len(left):
                return None
            domains.append(left)
        return domains

    def _search(self, best: Priced) -> bool:
        """Search along the bound, wider than the last time; True if it settled the matter."""
        self.search.tried += 1
        found = self._beam(best, KEPT[self.search.tried - 1])
        if found.dropped == -np.inf:
            self.certificate.complete()
            return True
        self.certificate.bound(self.view.outside(found.dropped))
        return False

    def _beam(self, best: Priced, most: int) -> beam.Found:
        guides, compare = self._guides(best)
        threshold = self.view.threshold(self.certificate.cutoff())
        found = beam.search(guides, threshold, most, self.certificate.over, compare)
        self.view.offer_best(found.choices, self._offer, self.certificate.incumbent)
        return found

    def _guides(self, best: Priced) -> tuple[list[Priced], beam.Compare | None]:
        """The bound itself, each limit alone and the bare objective, and the bound at nearby prices."""
        coordinates = self.view.coordinates
        room = int(GUIDE_CELLS / max(1.0, self.order.stored)) - 1
        guided = range(len(coordinates))
        signed = [(d, sign) for d in guided for sign in ((1.0, -1.0) if coordinates[d].free else (1.0,))]
        compared = bool(coordinates) and len(signed) + 1 <= min(room, MOST_GUIDED + 1)
        if not compared:
            signed = signed[: max(0, min(room, MOST_GUIDED))]
        guides = [best]
        for d, sign in signed:
            unit = np.zeros(len(coordinates))
            unit[d] = sign
            guides.append(self._priced(unit, 0.0))
        compare = self._compare(guides, signed) if compared else None
        for d, factor in [(d, factor) for d in guided for factor in (0.97, 1.03)]:
            if len(guides) < min(room, 3 * MOST_GUIDED) and best.multipliers[d]:
                moved = best.multipliers.copy()
                moved[d] *= factor
                guides.append(self._priced(moved))
        return guides, compare

    def _compare(self, guides: list[Priced], signed: list[tuple[int, float]]) -> beam.Compare:
        """Dominance by the bare objective, which is added to the guides, and by the limits alone."""
        coordinates = self.view.coordinates
        alone = [1 + i for i, (_, sign) in enumerate(signed) if sign > 0]
        both = [1 + i for i, (d, sign) in enumerate(signed) if sign > 0 and coordinates[d].free]
        bare = self._priced(np.zeros(len(coordinates)))
        guides.append(bare)
        rows = {g: coordinates[signed[g - 1][0]].row for g in alone}
        margins = [self._rounding(0, bare), *(self._rounding(rows[g], guides[g]) for g in alone + both)]
        return beam.Compare(len(guides) - 1, alone, both, np.array(margins))

    def _priced(self, multipliers: np.ndarray, objective: float = 1.0) -> Priced:
        return priced(self.order, multipliers, objective, self.certificate.over)

    def _rounding(self, row: int, guide: Priced) -> float:
        """How far apart equal sums of a row may come out in floats: 0 where every partial sum is exact."""
        if self.view.blur[row]:
            return 4 * guide.margin
        return 0.0 if self.order.exact and _exact_in_floats(self._row_of(row)) else 4 * guide.margin

    def _row_of(self, row: int) -> Row:
        if row == 0:
            return self.model.objective
        return self.model.rows[self._coordinate(row).source]

    def _coordinate(self, row: int) -> Coordinate:
        return next(c for c in self.view.coordinates if c.row == row)

    def _finish(self, domains: list[np.ndarray], most: int, effort: float | None, share: float = 1.0) -> bool:
        """CP-SAT on what is left if that is not too much, the incumbent as its hint; True if it settled the matter."""
        model, clock = self._smaller(domains), self.request.clock
        cells = _cells(compact(model).model)
        if cells > most:
            if effort is None:
                self.request.on_note(f"cp-sat was not asked: {cells} cells of tables are left, more than {most}")
            return False
        if clock.left < 0.2:
            return False
        rest = self.certificate.rest(model, hint=self.search.hint, effort=effort, clock=clock.part(share * clock.left))
        done = cpsat.solve(rest)
        self.certificate.close(done)
        return done.finished

    def _branch(self, domains: list[np.ndarray], best: Priced) -> None:
        """Halve what is left, and the halves, for as long as there is time."""
        bound = self.certificate.answer.bound
        if bound is None or self.certificate.over():
            return
        self.request.on_engine("branching")
        branch(self.certificate, self._halved(bound, domains, best), self.search.look)

    def _halved(self, bound: Number, domains: list[np.ndarray], best: Priced) -> Node:
        relaxed = self.reduced.decode(best.sweep.maximiser())
        return halved(bound, self._smaller(domains), relaxed, self.search.hint)

    def half(self) -> Node | None:
        """What a half is at most worth, and where to halve it in turn; None where nothing of interest is in it."""
        best = self._minimised(HALF_ROUNDS)
        domains = None if best.bound < self.view.lowest else self._removed(best)
        if domains is None:
            return None
        found = self._beam(best, HALF_KEPT)
        if found.dropped == -np.inf:
            return None
        return self._halved(self.view.outside(min(best.bound, found.dropped)), domains, best)

    def _smaller(self, domains: list[np.ndarray]) -> Model:
        return self.search.base.restricted(self.reduced.decode_domains(domains))


def _exact_in_floats(row: Row) -> bool:
    """Whether every partial sum of a row's entries is a float: multiples of a power of two, fifty bits at most."""
    scale, peak = 1, 0.0
    for term in row.terms:
        vectors = (term.table.first, term.table.second) if isinstance(term.table, RankOne) else (term.table,)
        if any(vector.dtype == object for vector in vectors):
            return False
        scale = max(scale, prod(denominator(vector) for vector in vectors))
        peak += prod(float(np.abs(vector).max()) for vector in vectors)
    return scale.bit_length() <= 50 and peak * scale < 1 << 50


def idle_rows(model: Model) -> list[Row]:
    """Where all that a variable does hangs on one switch, keep it at its first level while the switch is off.

    Its levels are alike there, so nothing is lost, and the search need not tell them apart.
    """
    switches: dict[int, set[int | None]] = {}
    for row in (model.objective, *model.rows):
        for term in row.terms:
            for v in term.scope:
                switches.setdefault(v, set()).add(term.when)
            if term.when is not None:
                switches.setdefault(term.when, set()).add(None)
    found = []
    for v, by in switches.items():
        switch = next(iter(by))
        if len(by) == 1 and switch is not None:
            table = np.zeros((len(model.domains[v]), 2), dtype=np.int64)
            table[1:, 0] = 1
            found.append(Row("idle", (Term((v, switch), table),), 0, None, 0))
    return found
