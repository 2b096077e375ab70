"""Prices on the limits: the Lagrangian bound, minimised by cutting planes within a trust region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from ortools.linear_solver import pywraplp

from .clock import CutShort
from .elimination import Sweep, sweep
from .order import Order
from .view import View

TINY = 1e-9


@dataclass(eq=False)
class Priced:
    """The priced sum's maximum at some multipliers: an upper bound on the objective (scaled), rounding included."""

    multipliers: np.ndarray
    sweep: Sweep
    offset: float
    margin: float
    objective: float = 1.0  # the objective's own weight: 0 where only the limits are priced

    @property
    def bound(self) -> float:
        """An upper bound on the priced sum, whatever the rounding."""
        return self.sweep.maximum + self.offset + self.margin


def priced(
    order: Order, multipliers: np.ndarray, objective: float = 1.0, over: Callable[[], bool] = lambda: False
) -> Priced:
    """Sweep at some multipliers."""
    view = order.view
    weights = view.weights(multipliers, objective)
    margin = view.margin(weights, multipliers, order.splits)
    return Priced(multipliers, sweep(order, weights, over), view.offset(multipliers), margin, objective)


@dataclass(eq=False)
class Prices:
    """The search for the multipliers with the lowest bound."""

    order: Order
    offer: Callable[[np.ndarray], object]  # takes a choice that may be feasible
    over: Callable[[], bool]
    enough: Callable[[float], bool] = lambda bound: False  # asked after each sweep whether its bound will do
    best: Priced | None = None
    cuts: list[tuple[float, np.ndarray]] = field(default_factory=list)  # objective and slacks of a choice
    sweeps: int = 0

    @property
    def view(self) -> View:
        """What is priced."""
        return self.order.view

    def evaluate(self, multipliers: np.ndarray) -> Priced:
        """Price, offer the maximiser, and keep its cut."""
        found = priced(self.order, multipliers, over=self.over)
        self.sweeps += 1
        choice = found.sweep.maximiser()
        self.cut(choice)
        self.offer(choice)
        if self.best is None or found.bound < self.best.bound:
            self.best = found
        return found

    def cut(self, choice: np.ndarray) -> None:
        """A choice bounds the dual function from below: its objective plus multipliers times slacks."""
        totals = self.view.totals(choice[None])
        self.cuts.append((float(totals[0, 0]), self.view.slacks(totals)[0]))

    def minimise(self, start: np.ndarray, rounds: int, tolerance: float, floor: float) -> Priced:
        """Lower the bound from ``start`` until the model of the cuts agrees with it; stop below ``floor``."""
        radius = np.where(start != 0, 0.1 * np.abs(start), 1.0)
        centre = self.best = self.evaluate(start)
        for _ in range(rounds):
            if self.over() or not len(start) or centre.bound < floor or self.enough(self.best.bound):
                break
            proposal = self._proposal(centre.multipliers, radius)
            if proposal is None:
                break
            multipliers, value = proposal
            inside = (np.abs(multipliers - centre.multipliers) < radius * (1 - TINY)).all()
            if centre.bound - value <= tolerance * max(1e-6, abs(centre.bound)) + 2 * centre.margin:
                if inside:
                    break
                radius = radius * 4
                continue
            try:
                found = self.evaluate(multipliers)
            except CutShort:
                break  # what is known by now is a bound
            if found.bound < centre.bound - 0.1 * (centre.bound - value):
                if not inside:
                    radius = radius * 2
                centre = found
            else:
                if found.bound < centre.bound:
                    centre = found
                radius = np.maximum(np.abs(multipliers - centre.multipliers) * 0.5, radius * 0.25)
        return self.best

    def _proposal(self, centre: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, float] | None:
        """Where the cuts put the lowest bound within the trust region, and how low."""
        solver = pywraplp.Solver.CreateSolver("GLOP")
        infinity = solver.infinity()
        height = solver.NumVar(-infinity, infinity, "")
        variables = []
        for c, middle, reach in zip(self.view.coordinates, centre, radius, strict=True):
            low = middle - reach if c.free else max(0.0, middle - reach)
            variables.append(solver.NumVar(float(low), float(middle + reach), ""))
        for objective, slacks in self.cuts[-200:]:
            row = solver.Constraint(objective, infinity)
            row.SetCoefficient(height, 1.0)
            for variable, slack in zip(variables, slacks, strict=True):
                row.SetCoefficient(variable, -float(slack))
        solver.Minimize(height)
        if solver.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        return np.array([v.solution_value() for v in variables]), float(height.solution_value())
