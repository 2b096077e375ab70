"""Shadow prices: multipliers on the limits at which the Lagrangian bound is lowest, and that bound."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from .clock import Clock, CutShort
from .compact import compact
from .elimination import HEAVY
from .exact import Number
from .model import Model, Row
from .multipliers import Priced, Prices
from .order import order_of
from .statement import Statement, total
from .view import TooExtreme, View, view

ROUNDS, FEW_ROUNDS = 100, 6  # of the multipliers, at most; where prices of fewer levels are known
STRIDE = 8


@dataclass(frozen=True)
class ShadowPrices:
    """What one unit of each budget is worth, and a bound that holds at whatever budgets there are.

    With every limit moved by some amount, no feasible choice is worth more than ``bound`` plus the sum of price times
    amount (signs turned where the objective is minimised), however far the limits are moved. A price is one of the
    slopes of that bound where the budgets stand.
    """

    bound: int | float
    prices: Mapping[str, float]

    def at(self, moved: Mapping[str, float]) -> float:
        """The bound with limits moved by these amounts."""
        return self.bound + sum(self.prices[name] * by for name, by in moved.items())


def shadow(statement: Statement, stage: int, reached: Sequence[Number], clock: Clock) -> ShadowPrices:
    """The prices of a stage's budgets; earlier stages come to what they ``reached``. No prices where floats overflow.

    Lowest is what the cutting planes end at, to a relative 1e-8, or what they had when time was up; the bound holds
    either way. A budget over one width or two is priced here like any other, while engines would take it as a table.
    """
    signs = [1 if sense == "max" else -1 for sense in statement.senses]
    before = [replace(statement.objective(k), lower=signs[k] * value) for k, value in enumerate(reached[:stage])]
    model = statement.model(stage, rows=before)
    try:
        seen, rows, best = _lowest(model, statement.budgets, clock)
    except (TooExtreme, CutShort):
        return ShadowPrices(signs[stage] * inf, {})
    found = dict.fromkeys(statement.budgets, 0.0)
    for c, multiplier in zip(seen.coordinates, best.multipliers, strict=True):
        if (name := rows[c.source].name) in found:
            found[name] += signs[stage] * c.sign * float(multiplier) * c.unit
    return ShadowPrices(signs[stage] * total(seen.outside(best.bound)), found)


def _lowest(model: Model, names: Collection[str], clock: Clock) -> tuple[View, tuple[Row, ...], Priced]:
    """The lowest bound that is found; where a sweep is long, from the prices on every few levels, in few rounds."""
    reduced = compact(model).model
    seen = view(reduced, names)
    order, start, rounds = order_of(seen), np.zeros(len(seen.coordinates)), ROUNDS
    if order.work > 10 * HEAVY and (coarse := _coarse(model)) is not None:
        found, _, best = _lowest(coarse, names, clock.part(clock.left / 2))
        if best.bound >= found.lowest:  # on these levels something may be feasible
            known = {(c.source, c.sign): m * c.unit for c, m in zip(found.coordinates, best.multipliers, strict=True)}
            start = np.array([known.get((c.source, c.sign), 0.0) / c.unit for c in seen.coordinates])
            rounds = FEW_ROUNDS
    prices = Prices(order, lambda choice: None, lambda: clock.over)
    return seen, reduced.rows, prices.minimise(start, rounds, 1e-8, seen.lowest)


def _coarse(model: Model) -> Model | None:
    """The model on every few levels of long widths, both ends among them; None where that is all of them."""
    domains = [d if len(d) < 4 * STRIDE else np.union1d(d[::STRIDE], d[-1:]) for d in model.domains]
    return model.restricted(domains) if sum(map(len, domains)) < sum(map(len, model.domains)) else None
