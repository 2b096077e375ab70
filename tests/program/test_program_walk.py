"""A feasible start: found at once wherever keeping everything, less the budgets, is feasible."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_program import build
from strategies_program import SHAPES, examples, specs

from solvemut.program import Program, RankOne
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


def options(layers: int, ranks: tuple[int, ...] = (2, 4, 8, 16, 24), size: int = 64) -> Program:
    """Layers between widths, each dense or of a rank: a width over its options, with a switch tied to each level."""
    rng, p, sizes = np.random.default_rng(0), Program(), np.arange(1, size + 1)
    widths = [p.width(f"width{k}", sizes.tolist()) for k in range(layers + 1)]
    for k, width in enumerate(widths):
        p.value(np.log(sizes / size) * rng.uniform(0.5, 2), width)
        p.hint({width: size})
        if k == layers:
            break
        which, after = p.width(f"option{k}", range(len(ranks) + 1)), widths[k + 1]
        p.hint({which: 0})
        for j, rank in enumerate((None, *ranks)):
            switch, tie = p.switch(f"option{k} is {rank}"), f"tie {k} {j}"
            p.cost(tie, np.arange(len(ranks) + 1) == j, which)
            p.cost(tie, -1, switch)
            p.budget(tie, 0, lower=0)
            p.hint({switch: int(rank is None)})
            if rank is None:
                p.cost("params", RankOne(sizes, sizes), width, after, when=switch)
                continue
            p.value(rng.uniform(-2, 0) / rank, switch)
            for w in (width, after):
                p.cost("params", rank * sizes, w, when=switch)
    p.budget("params", int(0.4 * layers * size**2))
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


def test_options_whose_switches_are_tied_to_a_width_are_walked_too():
    p = options(12)
    found = walked(p)
    best = max(p.statement().model().objective.at(choice) for choice in found)
    solution = p.solve(time_limit=60, gap=0.02)
    assert best >= solution.objective - 0.2 * abs(solution.objective)


def test_a_walk_hears_that_time_is_up():
    p, asked, found = options(40), [], []
    statement = p.statement()
    start = time.perf_counter()

    def over() -> bool:
        asked.append(time.perf_counter() - start)
        return len(asked) > 5

    walk(statement.model(), statement.hint, found.append, over)
    late = time.perf_counter() - start - asked[5]
    assert late < max(0.5, 0.1 * asked[5])  # it goes on for no more than some widths


@given(st.sampled_from(sorted(SHAPES)).flatmap(lambda shape: specs(shape=shape)))
@examples(60)
def test_whatever_the_program_is_a_walk_ends(spec):
    walked(build(spec))
