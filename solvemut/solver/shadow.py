"""Shadow prices: multipliers on the limits at which the Lagrangian bound is lowest, and that bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from .clock import Clock, CutShort
from .compact import compact
from .exact import Number
from .multipliers import Prices
from .order import order_of
from .statement import Statement, total
from .view import TooExtreme, view

ROUNDS = 100  # of the multipliers, at most


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
    model = compact(statement.model(stage, rows=before)).model
    sign = signs[stage]
    try:
        seen = view(model, statement.budgets)
        prices = Prices(order_of(seen), lambda choice: None, lambda: clock.over)
        best = prices.minimise(np.zeros(len(seen.coordinates)), ROUNDS, 1e-8, seen.lowest)
    except (TooExtreme, CutShort):
        return ShadowPrices(sign * inf, {})
    found = dict.fromkeys(statement.budgets, 0.0)
    for c, multiplier in zip(seen.coordinates, best.multipliers, strict=True):
        if (name := model.rows[c.source].name) in found:
            found[name] += sign * c.sign * float(multiplier) * c.unit
    return ShadowPrices(sign * total(seen.outside(best.bound)), found)
