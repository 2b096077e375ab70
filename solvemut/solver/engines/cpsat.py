"""The CP-SAT engine: one-hot levels, pair tables as cells, everything in integers and so exact.

Tables whose integers exceed what CP-SAT's 64 bits hold are split into limbs: a budget over numbers of any size becomes
one row per limb with a carry between them, an objective one solve per limb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ortools.sat.python import cp_model

from ..certificate import Answer, Certificate, Request, settled
from ..compact import Compact, compact
from ..exact import max_abs, outer
from ..integral import IntegerRow, integral
from ..model import Choice
from ..thread import in_thread

PAIR_CELLS = 4096  # a pair table up to this size becomes one boolean per cell
TOTAL_CELLS = 120_000
ROW_BITS = 58  # partial sums of a row stay below 2**58
OBJECTIVE_BITS = 51  # the objective passes through a double
LIMB_BITS = 40
SEEDS = 1 << 31

Linear = Any  # a CP-SAT linear expression


def solve(request: Request) -> Answer:
    """Solve a model with CP-SAT, exactly."""
    request.on_engine("cp-sat")
    reduced = compact(request.model)
    answer = settled(reduced)
    return answer if answer is not None else _Run(request, reduced).solve()


@dataclass(frozen=True)
class _Summand:
    """Part of a row as integers against literals or a linear expression."""

    coefficients: np.ndarray
    literals: list[Any]


class _Run:
    """One solve of one compact model."""

    def __init__(self, request: Request, reduced: Compact) -> None:
        self.request, self.reduced = request, reduced
        self.model = cp_model.CpModel()
        self.sizes = [len(domain) for domain in reduced.model.domains]
        self.levels = [self._one_hot(size) for size in self.sizes]
        self.cells: dict[tuple[tuple[int, ...], int | None], list[Any]] = {}
        self.cell_count = 0
        self.certificate = Certificate(request)
        self.floor_best = 0
        self.floor_bound: int | None = None

    # -- variables ---------------------------------------------------------------------------------------------------

    def _one_hot(self, size: int) -> list[Any]:
        if size == 2:
            on = self.model.new_bool_var("")
            return [on.negated(), on]
        found = [self.model.new_bool_var("") for _ in range(size)]
        self.model.add_exactly_one(found)
        return found

    def _cells(self, scope: tuple[int, ...], when: int | None) -> list[Any]:
        """One literal per cell of a table (row-major); with a switch, all are false where it is off."""
        key = (scope, when)
        if key not in self.cells:
            self.cells[key] = self._new_cells(scope, when)
        return self.cells[key]

    def _new_cells(self, scope: tuple[int, ...], when: int | None) -> list[Any]:
        if len(scope) == 1 and when is None:
            return self.levels[scope[0]]
        if len(scope) == 1:
            assert when is not None
            on, literals = self.levels[when][1], []
            for level in self.levels[scope[0]]:
                cell = self.model.new_bool_var("")
                self.model.add_implication(cell, level)
                literals.append(cell)
            self.model.add(cp_model.LinearExpr.sum(literals) == on)
            return literals
        first, second = self._cells(scope[:1], when), self._cells(scope[1:], when)
        grid = [[self.model.new_bool_var("") for _ in second] for _ in first]
        self.cell_count += len(first) * len(second)
        for literal, line in zip(first, grid, strict=True):
            self.model.add(cp_model.LinearExpr.sum(line) == literal)
        for literal, column in zip(second, zip(*grid, strict=True), strict=True):
            self.model.add(cp_model.LinearExpr.sum(list(column)) == literal)
        return [cell for line in grid for cell in line]

    # -- rows --------------------------------------------------------------------------------------------------------

    def _summands(self, row: IntegerRow) -> list[_Summand]:
        """The row as sums of coefficient times literal; products and large tables through an integer variable."""
        found = []
        for (scope, when), table in row.tables.items():
            big = len(scope) == 2 and table.size > PAIR_CELLS and (scope, when) not in self.cells
            if big or (len(scope) == 2 and self.cell_count + table.size > TOTAL_CELLS):
                found.append(self._through_variable(scope, when, [table[j] for j in range(len(table))], table))
            else:
                found.append(_Summand(table.reshape(-1), self._cells(scope, when)))
        for product in row.products:
            lines = [int(factor) * product.second.astype(object) for factor in product.first]
            table = outer(product.first, product.second)
            found.append(self._through_variable(product.scope, product.when, lines, table))
        return found

    def _through_variable(
        self, scope: tuple[int, ...], when: int | None, lines: Sequence[np.ndarray], table: np.ndarray
    ) -> _Summand:
        """A table as an integer variable, tied to one line of the table at a time."""
        if max_abs(table) >= 1 << ROW_BITS - 8:
            return _Summand(table.reshape(-1), self._cells(scope, when))  # too large for one variable: limbs need cells
        low, high = int(table.min()), int(table.max())
        if when is not None:
            low, high = min(0, low), max(0, high)
        value = self.model.new_int_var(low, high, "")
        other = self.levels[scope[1]]
        on = [] if when is None else [self.levels[when][1]]
        for literal, line in zip(self.levels[scope[0]], lines, strict=True):
            total = cp_model.LinearExpr.weighted_sum(other, [int(c) for c in line])
            self.model.add(value == total).only_enforce_if([literal, *on])
        if when is not None:
            self.model.add(value == 0).only_enforce_if(self.levels[when][0])
        return _Summand(np.array([1]), [value])

    def add_row(self, row: IntegerRow) -> None:
        """Keep a row within its limits."""
        if row.upper is not None and row.high() > row.upper:
            self._at_most(self._summands(row), row.upper)
        if row.lower is not None and row.low() < row.lower:
            self._at_most([_Summand(-s.coefficients, s.literals) for s in self._summands(row)], -row.lower)

    def _at_most(self, summands: list[_Summand], limit: int) -> None:
        """``sum <= limit``, limb by limb where the numbers are large."""
        peak = sum(max_abs(s.coefficients) for s in summands)
        if max(peak, abs(limit)) < 1 << ROW_BITS:
            if limit < -peak:
                self.model.add_bool_or([])
            else:
                self.model.add(self._linear(summands) <= limit)
            return
        # sum(high) * 2**b + sum(low) <= H * 2**b + L  iff  some carry c: sum(low) <= c * 2**b + L, sum(high) + c <= H
        low = [_Summand(s.coefficients.astype(object) & ((1 << LIMB_BITS) - 1), s.literals) for s in summands]
        high = [_Summand(s.coefficients.astype(object) >> LIMB_BITS, s.literals) for s in summands]
        carry = self.model.new_int_var(-1, len(summands), "")
        self.model.add(self._linear(low) - carry * (1 << LIMB_BITS) <= limit & ((1 << LIMB_BITS) - 1))
        self._at_most([*high, _Summand(np.array([1]), [carry])], limit >> LIMB_BITS)

    @staticmethod
    def _linear(summands: list[_Summand]) -> Linear:
        literals = [literal for s in summands for literal in s.literals]
        return cp_model.LinearExpr.weighted_sum(literals, [int(c) for s in summands for c in s.coefficients])

    # -- solving -----------------------------------------------------------------------------------------------------

    def solve(self) -> Answer:
        """State the rows, and maximise; or find any feasible choice where that will do."""
        model = self.reduced.model
        for row in model.rows:
            self.add_row(integral(row, PAIR_CELLS))
        self._hint(self.request.hint)
        objective = integral(model.objective, PAIR_CELLS)
        if self.request.feasibility or not (objective.tables or objective.products):
            status = self._one_solve(None)
            if self.certificate.answer.choice is not None:
                if not self.request.feasibility:
                    self.certificate.bound(objective.constant)
                self.certificate.answer.finished = True
            return self._close(status)
        return self._maximise(objective)

    def _maximise(self, objective: IntegerRow) -> Answer:
        """One solve where the objective fits; otherwise its high limb first, then finer and finer remainders."""
        summands = self._summands(objective)
        shift = max(0, objective.peak.bit_length() - OBJECTIVE_BITS)
        base = 0  # the objective is (base + remainder) with the remainder expressed at the current shift
        coefficients = [s.coefficients.astype(object) for s in summands]
        while True:
            parts = [_Summand(c >> shift, s.literals) for c, s in zip(coefficients, summands, strict=True)]
            expression = self._linear(parts)
            status = self._one_solve(expression)
            if status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN) and self.floor_bound is not None:
                # flooring loses less than one unit of 2**shift in each summand
                lost = len(parts) * ((1 << shift) - 1)
                self.certificate.bound(objective.outside(base + (self.floor_bound << shift) + lost))
            if status != cp_model.OPTIMAL or shift == 0 or self.certificate.proven:
                return self._close(status)
            # a true optimum's floor sum is within `slack` of the best one: keep to that band, and look closer there
            best, slack = self.floor_best, len(parts)
            band = self.model.new_int_var(-slack, max(0, (self.floor_bound or 0) - best), "")
            self.model.add(expression == band + best)
            self.model.clear_hints()
            self._hint(self.certificate.answer.choice)
            self.model.add_hint(band, 0)
            base += best << shift
            coefficients = [c & ((1 << shift) - 1) for c in coefficients] + [np.array([1 << shift], dtype=object)]
            summands = [*summands, _Summand(np.array([1]), [band])]
            shift = max(0, ((2 * slack + 2) << shift).bit_length() - OBJECTIVE_BITS)

    def _one_solve(self, expression: Linear | None) -> Any:
        if expression is not None:
            self.model.maximize(expression)
        watcher = _Watcher(self)
        solver = cp_model.CpSolver()
        self._set(solver.parameters)
        status = in_thread(lambda: solver.solve(self.model, watcher), self.request, stop=solver.stop_search)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            self.found([solver.value(v) for v in self._literal_list()])
            self.floor_best = round(solver.objective_value) if expression is not None else 0
        if expression is not None:
            self.floor_bound = floor_of(solver.best_objective_bound)
        return status

    def _set(self, parameters: Any) -> None:
        parameters.num_workers = self.request.workers
        parameters.random_seed = self.request.seed % SEEDS
        parameters.max_time_in_seconds = max(0.001, self.request.clock.left)
        parameters.relative_gap_limit = float(self.request.gap) * 0.5
        if self.request.effort is not None:
            parameters.max_deterministic_time = self.request.effort
        parameters.catch_sigint_signal = False
        parameters.presolve_inclusion_work_limit = 0  # that rule cuts off optima in 9.15: google/or-tools#5293
        if self.request.workers > 1:
            parameters.interleave_search = True

    def _hint(self, choice: Choice | None) -> None:
        start = None if choice is None else self.reduced.encode(choice)
        if start is not None:
            for literals, k in zip(self.levels, start, strict=True):
                if len(literals) == 2:
                    self.model.add_hint(literals[1], k == 1)
                else:
                    for j, literal in enumerate(literals):
                        self.model.add_hint(literal, j == k)

    def _literal_list(self) -> list[Any]:
        return [literal for literals in self.levels for literal in literals]

    def found(self, values: Sequence[int]) -> None:
        """Take a solution from the solver."""
        choice, start = [], 0
        for size in self.sizes:
            choice.append(int(np.argmax(values[start : start + size])))
            start += size
        self.certificate.offer(self.reduced.decode(choice))

    def _close(self, status: Any) -> Answer:
        if status == cp_model.MODEL_INVALID:
            raise RuntimeError("CP-SAT rejected a model: " + self.model.validate())
        answer = self.certificate.answer
        answer.infeasible = status == cp_model.INFEASIBLE and answer.choice is None
        answer.finished |= status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
        return answer


class _Watcher(cp_model.CpSolverSolutionCallback):
    """Hands each solution over as it is found."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run, self.literals = run, run._literal_list()

    def on_solution_callback(self) -> None:
        """Called by CP-SAT, from its own thread."""
        self.run.found([self.boolean_value(v) for v in self.literals])


def floor_of(value: float) -> int | None:
    """An integer bound out of a double that stands for an integer; None for an infinity."""
    return int(np.floor(value + 1e-6)) if abs(value) < 2.0**60 else None
