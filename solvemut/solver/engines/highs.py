"""The HiGHS engine, through OR-Tools MathOpt: one-hot levels, pair tables as cells tied to them by marginal sums.

HiGHS calculates in doubles and keeps a limit only to its tolerance. So every limit is moved outward by more than that,
which leaves no feasible choice out: its bounds, and its word that nothing is feasible, hold for the program as it is.
Each choice it finds is checked in exact arithmetic, then cut off, and the rest is solved again, until the bound on the
rest is not above the incumbent. What tolerances cannot tell apart in a few such cuts is left to CP-SAT.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
from ortools.math_opt.python import mathopt

from ..certificate import Answer, Certificate, Request, settled
from ..compact import Compact, compact
from ..integral import IntegerRow, integral
from ..thread import in_thread
from . import cpsat

PAIR_CELLS = 4096  # a pair table up to this size is spelled out
TOTAL_CELLS = 30_000
CUTS = 24  # choices cut off, one after the other, before CP-SAT gets the rest
PEAK = 1 << 20  # rows larger than this are scaled down to it
GRACE = 0.1  # seconds past its time limit before a solve is left behind
TOLERANCE = 1e-6  # what HiGHS may overstep, per unit of a row's largest sum
SEEDS = 1 << 31
LONGEST = 1e9  # seconds, where there is no time limit
# every variable is bounded, so "infeasible or unbounded" can only be the former
NOTHING = (mathopt.TerminationReason.INFEASIBLE, mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED)

_stdout = threading.Lock()


def solve(request: Request) -> Answer:
    """Solve a model with HiGHS; CP-SAT takes what is too large for it, or too fine."""
    answer = alone(request)
    certificate = Certificate(request, answer=answer)
    if answer.finished or request.clock.over or certificate.enough:
        return answer
    hint = request.hint if answer.choice is None else answer.choice
    return certificate.close(cpsat.solve(certificate.rest(request.model, hint=hint)))


def alone(request: Request) -> Answer:
    """What HiGHS makes of a model without help; not finished where it is too large, or tolerances leave it open."""
    request.on_engine("highs")
    reduced = compact(request.model)
    answer = settled(reduced)
    if answer is not None:
        return answer
    rows = [integral(row, PAIR_CELLS) for row in (reduced.model.objective, *reduced.model.rows)]
    run = _Run(request, reduced, rows[0])
    run.certificate.offer_hint()
    keys = {key: table.size for row in rows for key, table in row.tables.items() if len(key[0]) == 2}
    fits = max(keys.values(), default=0) <= PAIR_CELLS and sum(keys.values()) <= TOTAL_CELLS
    if not fits or any(row.products for row in rows):
        return run.certificate.answer
    for row in rows[1:]:
        run.add_row(row)
    return run.solve()


class _Run:
    """One model, solved again after every cut."""

    def __init__(self, request: Request, reduced: Compact, objective: IntegerRow) -> None:
        self.request, self.reduced, self.objective = request, reduced, objective
        self.certificate = Certificate(request)
        self.model = mathopt.Model()
        self.levels = [self._one_hot(len(domain)) for domain in reduced.model.domains]
        self.cells: dict[tuple[tuple[int, ...], int | None], list[Any]] = {}
        self.margin = 0.0
        self.impossible = False  # some limit is beyond the largest sum
        self.factor = Fraction(1)
        if not request.feasibility:
            self.factor, terms = self._scaled(objective)
            self.margin = TOLERANCE * (1 + min(objective.peak, PEAK))
            self.model.maximize(mathopt.fast_sum(terms))

    def _one_hot(self, size: int) -> list[Any]:
        found = [self.model.add_binary_variable() for _ in range(size)]
        self.model.add_linear_constraint(mathopt.fast_sum(found) == 1)
        return found

    def _cells(self, scope: tuple[int, ...], when: int | None) -> list[Any]:
        """One variable per cell of a table (row-major); with a switch, all are 0 where it is off."""
        if len(scope) == 1 and when is None:
            return self.levels[scope[0]]
        key = (scope, when)
        if key not in self.cells:
            self.cells[key] = self._new_cells(scope, when)
        return self.cells[key]

    def _new_cells(self, scope: tuple[int, ...], when: int | None) -> list[Any]:
        if len(scope) == 1:
            assert when is not None
            found = [self.model.add_variable(lb=0, ub=1) for _ in self.levels[scope[0]]]
            for cell, level in zip(found, self.levels[scope[0]], strict=True):
                self.model.add_linear_constraint(cell <= level)
            self.model.add_linear_constraint(mathopt.fast_sum(found) == self.levels[when][1])
            return found
        first, second = self._cells(scope[:1], when), self._cells(scope[1:], when)
        grid = [[self.model.add_variable(lb=0, ub=1) for _ in second] for _ in first]
        for literal, line in zip(first, grid, strict=True):
            self.model.add_linear_constraint(mathopt.fast_sum(line) == literal)
        for literal, column in zip(second, zip(*grid, strict=True), strict=True):
            self.model.add_linear_constraint(mathopt.fast_sum(column) == literal)
        return [cell for line in grid for cell in line]

    def _scaled(self, row: IntegerRow) -> tuple[Fraction, list[Any]]:
        """The factor that brings the row's sums to at most PEAK, and its terms."""
        factor = Fraction(min(PEAK, row.peak) or 1, row.peak or 1)
        terms = []
        for (scope, when), table in row.tables.items():
            coefficients = [float(int(c) * factor) for c in table.reshape(-1)]
            pairs = zip(coefficients, self._cells(scope, when), strict=True)
            terms += [coefficient * cell for coefficient, cell in pairs if coefficient]
        return factor, terms

    def add_row(self, row: IntegerRow) -> None:
        """Keep a row within its limits, moved outward: by half a unit where sums are small integers."""
        above = row.upper is not None and row.high() > row.upper
        below = row.lower is not None and row.low() < row.lower
        if not above and not below:
            return
        if (row.upper or 0) < -2 * row.peak or (row.lower or 0) > 2 * row.peak:
            self.impossible = True
            return
        factor, terms = self._scaled(row)
        slack = 0.5 if factor == 1 else TOLERANCE * PEAK
        total = mathopt.fast_sum(terms)
        if above and row.upper is not None:
            self.model.add_linear_constraint(total <= float(row.upper * factor) + slack)
        if below and row.lower is not None:
            self.model.add_linear_constraint(total >= float(row.lower * factor) - slack)

    # -- solving -----------------------------------------------------------------------------------------------------

    def solve(self) -> Answer:
        """Solve, cut off what was found, and solve again until nothing better can be left."""
        certificate, answer = self.certificate, self.certificate.answer
        if self.impossible:
            return certificate.complete()
        for _ in range(CUTS):
            if self.request.clock.over:
                break
            result = self._once()
            if result is None:
                break
            reason = result.termination.reason
            if reason in NOTHING:
                return certificate.complete()
            optimal = reason == mathopt.TerminationReason.OPTIMAL
            if optimal or reason == mathopt.TerminationReason.FEASIBLE:
                self._take(result)
            self._bound(result)
            answer.finished = certificate.enough or certificate.proven
            if answer.finished or not optimal:
                break
        return answer

    def _once(self) -> Any:
        seconds = timedelta(seconds=min(max(0.001, self.request.clock.left), LONGEST))
        parameters = mathopt.SolveParameters(  # HiGHS refuses "threads" here; one is its default
            time_limit=seconds,
            random_seed=self.request.seed % SEEDS,
            relative_gap_tolerance=float(self.request.gap) * 0.5,
            absolute_gap_tolerance=0.0,
        )
        with kept_quiet():
            return in_thread(lambda: self._tried(parameters), self.request, patience=self.request.clock.left + GRACE)

    def _tried(self, parameters: mathopt.SolveParameters) -> Any:
        """HiGHS's result; None where it failed."""
        # MathOpt's errors may come as an AttributeError: its own handler asks a status for a field it does not have
        with contextlib.suppress(Exception):
            return mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=parameters)

    def _take(self, result: Any) -> None:
        """Offer the choice found, and cut it off."""
        values = result.variable_values()
        choice = [int(np.argmax([values[x] for x in literals])) for literals in self.levels]
        self.certificate.offer(self.reduced.decode(choice))
        chosen = [literals[k] for literals, k in zip(self.levels, choice, strict=True)]
        self.model.add_linear_constraint(mathopt.fast_sum(chosen) <= len(chosen) - 1)

    def _bound(self, result: Any) -> None:
        """HiGHS bounds what it was asked; what was cut off before is worth no more than the incumbent."""
        bound = float(result.termination.objective_bounds.dual_bound)
        if self.request.feasibility or not np.isfinite(bound):
            return
        inside = Fraction(bound + self.margin) / self.factor
        self.certificate.bound(self.objective.outside(inside.numerator // inside.denominator))


@contextlib.contextmanager
def kept_quiet() -> Iterator[None]:
    """Keep the debug lines that HiGHS prints from the user; whatever else is printed meanwhile comes out at the end."""
    with _stdout, contextlib.ExitStack() as stack:
        try:
            _flush()
            saved = os.dup(1)
        except OSError:  # no standard output at all
            yield
            return
        stack.callback(os.close, saved)
        held = stack.enter_context(tempfile.TemporaryFile())
        try:
            os.dup2(held.fileno(), 1)
            yield
        finally:
            _flush()
            os.dup2(saved, 1)
            held.seek(0)
            lines = [line for line in held.read().splitlines(keepends=True) if not line.startswith(b"Highs")]
            if lines:
                os.write(1, b"".join(lines))


def _flush() -> None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sys.stdout.flush()
