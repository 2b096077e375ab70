"""A feasible start: found at once wherever keeping everything, less the budgets, is feasible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_program import build
from strategies_program import SHAPES, examples, specs

from solvemut.program import Program
from solvemut.solver import driver
from solvemut.solver.walk import walk


def heads(blocks: int = 4, budget: float = 0.5) -> Program:
    """Streams tied to the heads of their blocks by equations, and to a quotient: no uniform choice keeps them."""
    rng, p, before, spent = np.random.default_rng(0), Program(), None, 0
    for b in range(blocks):
        size = 16 << b
        stream = p.width(f"stream{b}", levels=range(1, 4 * size + 1))
        first, second = (p.width(f"heads{b}.{k}", levels=[size, 2 * size]) for k in range(2))
        thirds = p.width(f"quotient{b}", levels=range(size + 1))
        hidden = p.width(f"hidden{b}", levels=range(1, 8 * size + 1))
        p.add(first + second == stream, stream == 4 * thirds)
        for width in (stream, hidden):
            units = np.sort(rng.lognormal(0.0, 1.0, max(width.levels)))[::-1]
            p.value(np.cumsum(units)[np.array(width.levels) - 1], width)
        p.product("flops", 3, stream, hidden)
        spent += 3 * 4 * size * 8 * size
        if before is not None:
            p.product("flops", 5, before, stream)
            spent += 5 * 2 * size * 4 * size
        before = stream
    p.hint({width: max(width.levels) for width in p._widths if not width.name.startswith("quotient")})
    p.budget("flops", int(budget * spent))
    return p


def walked(p: Program) -> list[tuple[int, ...]]:
    """The choices on the way, those that are feasible."""
    statement, found = p.statement(), []
    model = statement.model()
    walk(model, statement.hint, found.append, lambda: False)
    return [choice for choice in found if model.feasible(choice)]


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.3])
def test_widths_in_equations_move_together_down_to_the_budget(budget):
    p = heads(budget=budget)
    found = walked(p)
    best = max(p.statement().model().objective.at(choice) for choice in found)
    solution = p.solve(time_limit=60, gap=1e-3)
    assert solution.gap <= 1e-3 and best >= 0.98 * solution.objective


def test_the_first_incumbent_is_there_before_any_engine_runs(monkeypatch):
    def nothing(request: object) -> driver.Answer:
        return driver.Answer()

    monkeypatch.setattr(driver.engines, "named", lambda name: nothing)
    solution = heads().solve(time_limit=20)
    solution.check()
    assert solution.status == "feasible" and solution.seconds < 10


@given(st.sampled_from(sorted(SHAPES)).flatmap(lambda shape: specs(shape=shape)))
@examples(60)
def test_whatever_the_program_is_a_walk_ends(spec):
    walked(build(spec))
