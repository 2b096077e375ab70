"""Honest numbers: nothing is rounded in anybody's favour, bounds hold when a search is cut short, limits are kept."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from benchmarks_path import instances
from hypothesis import given
from hypothesis import strategies as st
from oracle_program import WAYS, Budget, Spec, Term, assert_optimal, best, never_below, solve
from strategies_program import Stopwatch, examples

from solvemut.errors import InfeasibleError, TimeLimitError
from solvemut.program import Program

TENTH = 0.1  # as a float it is a little more than 1/10, so ten of them are a little more than 1


def additive(values, costs, limit) -> Spec:
    """Independent widths, one value vector, one cost vector each, one budget."""
    names = [f"w{i}" for i in range(len(values))]
    return Spec(
        levels={name: tuple(range(len(vector))) for name, vector in zip(names, values, strict=True)},
        values=tuple(Term("vector", tuple(v), (n,), None, 0) for n, v in zip(names, values, strict=True)),
        costs=tuple(Term("vector", tuple(c), (n,), None, "x") for n, c in zip(names, costs, strict=True)),
        budgets=(Budget("x", limit),),
    )


ADVERSARIAL = {
    "ten tenths exceed one": additive([[0, 1]] * 10, [[0.0, TENTH]] * 10, 1.0),
    "ten tenths and room for the excess": additive([[0, 1]] * 10, [[0.0, TENTH]] * 10, 1.0000000000000002),
    "huge next to tiny, hit exactly": additive([[0, 1, 2]] * 3, [[0, 2.0**30, 2.0**30 + 2.0**-20]] * 3, 3 * 2.0**30),
    "huge next to tiny, one tiny step to spare": additive(
        [[0, 1, 2]] * 3, [[0, 2.0**30, 2.0**30 + 2.0**-20]] * 3, 3 * 2.0**30 + 2.0**-20
    ),
    "one unit in 10**18": additive([[0, 1, 2]] * 2, [[0, 10**18, 10**18 + 1]] * 2, 2 * 10**18 + 1),
    "one unit in 10**30": additive([[0, 1, 2]] * 2, [[0, 10**30, 10**30 + 1]] * 2, 2 * 10**30 + 1),
    "1e9 and 1e-3": additive([[0, 5, 6]] * 4, [[0, 1e9, 1e9 + 1e-3]] * 4, 4e9 + 2e-3),
    "values that differ in the last bit": additive([[0.0, 1.0, 1.0 + 2.0**-52]] * 3, [[0, 1, 2]] * 3, 5),
    "values that differ in 10**-18 of themselves": additive([[0, 10**18, 10**18 + 1]] * 3, [[0, 1, 2]] * 3, 5),
    "a huge value beside small ones": additive([[0, 10**20], [0, 1], [0, 2], [0, 3]], [[0, 1]] * 4, 3),
    "subnormal values": additive([[0.0, 5e-324], [0.0, 1e-323]], [[0, 1]] * 2, 1),
    "values from 1e-300 to 1e300": additive([[0.0, 1e300], [0.0, 1e-300], [0.0, 1.0]], [[0, 1]] * 3, 2),
    "negative huge costs cancel": additive([[0, 3], [0, -1], [0, 2]], [[0, 10**17], [0, -(10**17)], [0, 1]], 0),
    "all values zero": additive([[0, 0]] * 3, [[1, 0]] * 3, 1),
    "all values equal": additive([[7, 7, 7]] * 3, [[3, 2, 1]] * 3, 5),
    "thirds": additive([[0.0, 1 / 3]] * 6, [[0.0, 1 / 3]] * 6, 1.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_numbers(name, way):
    spec = ADVERSARIAL[name]
    assert_optimal(spec, solve(spec, way), best(spec))


@pytest.mark.parametrize("way", WAYS)
def test_a_presolve_rule_that_cuts_off_the_optimum(way):
    """CP-SAT 9.15 answers 0, "optimal", with its default presolve (google/or-tools#5293)."""
    ten, zero = 10**17, (0, 0, 0)
    spec = Spec(
        levels={"a": (-5, 1), "b": (8, 16, 24), "c": (1, 2, 3, 4), "d": (2, 5, 6)},
        values=(Term("vector", (0, 0, 32), ("d",), None, 0),),
        costs=(
            Term("table", ((0, 0, 11596000000), zero, zero), ("b", "d"), None, "x"),
            Term("table", ((0, 216053712, 1838081016), (-13499836, 24064488, 204729084)), ("a", "b"), None, "y"),
            Term("table", (zero, (-306804432301, 0, 0), (-230179133, 0, 0), (0, 0, -ten)), ("c", "d"), None, "y"),
            Term("vector", (18235998, -9401), ("a",), None, "y"),
            Term("scalar", -139995583162, (), None, "y"),
        ),
        budgets=(Budget("x", 47063269), Budget("y", -139991482581)),
    )
    assert_optimal(spec, solve(spec, way), (32,))


NEAR = st.sampled_from(
    [0, 1, 10**9, 10**9 + 1, 10**18, 10**18 - 1, 1e-3, 1e-9, 0.1, 0.2, 0.3, 1e9, 1e9 + 1e-6, 2.0**-40]
)


@examples(50)
@given(st.data())
def test_budgets_at_the_exact_cost_of_some_choice(data):
    """The budget is what some choice costs, one unit in the last place less, or one more; the answer is exact."""
    count = data.draw(st.integers(1, 5))
    sizes = [data.draw(st.integers(2, 4)) for _ in range(count)]
    values, costs = ([[data.draw(NEAR) for _ in range(size)] for size in sizes] for _ in range(2))
    some = [data.draw(st.integers(0, size - 1)) for size in sizes]
    at = sum((Fraction(row[k]) for row, k in zip(costs, some, strict=True)), Fraction(0))
    limit = int(at) if at.denominator == 1 else float(at)
    unit = 1 if isinstance(limit, int) else limit * 2.0**-52
    spec = additive(values, costs, limit + data.draw(st.sampled_from([0, 0, -unit, unit])))
    truth = best(spec)
    for way in WAYS:
        if truth is None:
            with pytest.raises(InfeasibleError):
                solve(spec, way)
        else:
            assert_optimal(spec, solve(spec, way), truth)


# -- bounds of searches that are cut short ---------------------------------------------------------------------------


def chain_program(seed: int, layers: int, levels: int) -> tuple[Program, int]:
    """A chain with one product budget, and its optimum by dynamic programming over (level, cost spent)."""
    rng = random.Random(seed)
    units = [sorted((rng.randint(1, 99) for _ in range(levels)), reverse=True) for _ in range(layers)]
    values = [list(itertools.accumulate(row)) for row in units]
    coefficients = [rng.randint(1, 5) for _ in range(layers - 1)]
    limit = sum(coefficients) * levels**2 * 2 // 5
    p = Program()
    widths = [p.width(f"w{i}", levels=range(1, levels + 1)) for i in range(layers)]
    for width, vector in zip(widths, values, strict=True):
        p.value(vector, width)
    for a, b, c in zip(widths[:-1], widths[1:], coefficients, strict=True):
        p.product("flops", c, a, b)
    p.budget("flops", limit)
    reach = {(n, 0): values[0][n - 1] for n in range(1, levels + 1)}
    for vector, c in zip(values[1:], coefficients, strict=True):
        after: dict[tuple[int, int], int] = {}
        for (n, spent), worth in reach.items():
            for m in range(1, levels + 1):
                key = (m, spent + c * n * m)
                if key[1] <= limit and after.get(key, -1) < worth + vector[m - 1]:
                    after[key] = worth + vector[m - 1]
        reach = after
    return p, max(reach.values())


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_holds_at_every_moment_of_a_search(seed):
    program, truth = chain_program(seed, layers=9, levels=9)
    seen = []
    solution = program.solve(time_limit=60, callback=lambda progress: seen.append(progress) and None)
    assert (solution.status, solution.objective, solution.bound, solution.gap) == ("optimal", truth, truth, 0)
    for progress in seen:
        assert progress.bound is None or progress.bound >= truth
        assert progress.incumbent is None or progress.incumbent <= truth


@pytest.mark.parametrize("gap", [0.3, 0.03, 0.003])
@pytest.mark.parametrize("seed", range(2))
def test_the_bound_of_a_wide_gap_holds(seed, gap):
    program, truth = chain_program(seed, layers=9, levels=9)
    solution = program.solve(time_limit=60, gap=gap)
    assert solution.status == "optimal"
    assert solution.objective <= truth <= solution.bound
    assert solution.gap <= gap


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_the_bound_of_an_interrupted_search_holds(stop_at):
    program, truth = chain_program(7, layers=9, levels=9)
    seen = []

    def callback(progress):
        if progress.incumbent is not None:
            seen.append(progress)
        return len(seen) >= stop_at

    solution = program.solve(time_limit=60, callback=callback)
    assert solution.objective <= truth and never_below(solution.bound, truth, "max")
    assert solution.status == ("optimal" if solution.gap == 0 else "feasible")
    solution.check()


# -- limits ----------------------------------------------------------------------------------------------------------


def hard() -> Program:
    """Single channels, two budgets, gap 0: not provable in seconds."""
    return instances.resnet50(step=1, budgets={"flops": 0.5, "params": 0.4})


HARD = {
    "single channels, two budgets": hard,
    "dense block, single channels": lambda: instances.densenet121(step=1, budgets={"flops": 0.5, "params": 0.5}),
    "staircase tables": lambda: instances.latency(101, 0.37),
}


@pytest.mark.parametrize("name", HARD)
def test_the_time_limit_is_kept_within_a_tenth(name):
    program, limit = HARD[name](), 5.0
    start, watch = time.monotonic(), Stopwatch()
    solution = program.solve(time_limit=limit)
    assert watch.seconds <= 1.1 * limit
    assert abs(solution.seconds - (time.monotonic() - start)) <= 0.5
    assert solution.status == "feasible" or solution.gap == 0
    assert solution.bound >= solution.objective
    solution.check()


def market_split(rows: int = 5, columns: int = 40) -> Program:
    """Equations that no search solves in a second: is there a half that splits every market evenly?"""
    rng = random.Random(1)
    p = Program()
    x = [p.switch(f"x{i}") for i in range(columns)]
    for row in range(rows):
        shares = [rng.randrange(100) for _ in x]
        p.add(sum(c * one for c, one in zip(shares, x, strict=True)) == sum(shares) // 2, name=f"market {row}")
    return p


def test_no_choice_in_time_is_an_error_that_names_the_limit():
    watch = Stopwatch()
    with pytest.raises(TimeLimitError) as caught:
        market_split().solve(time_limit=2.0)
    assert watch.seconds <= 2.2
    assert "2" in str(caught.value)


# -- interruption ----------------------------------------------------------------------------------------------------


def stop_by_return(progress) -> bool:
    return progress.incumbent is not None


def stop_by_raising(progress) -> None:
    if progress.incumbent is not None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("callback", [stop_by_return, stop_by_raising])
def test_a_callback_stops_the_search_and_the_incumbent_is_returned(callback):
    watch = Stopwatch()
    solution = hard().solve(time_limit=60, callback=callback)
    assert watch.seconds < 20
    assert solution.status == "feasible"
    assert solution.bound >= solution.objective > 0
    solution.check()


def test_an_error_in_a_callback_is_the_callers():
    def callback(progress):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        hard().solve(time_limit=10, callback=callback)


INTERRUPTED = """
import signal, time
from benchmarks_path import instances
before = signal.getsignal(signal.SIGINT)
said = []
def callback(progress):
    if progress.incumbent is not None and not said:
        said.append(1)
        print("ready", flush=True)
program = instances.resnet50(step=1, budgets={"flops": 0.5, "params": 0.4})
solution = program.solve(time_limit=60, callback=callback)
solution.check()
assert signal.getsignal(signal.SIGINT) is before
print(solution.status, solution.objective > 0, solution.bound >= solution.objective, flush=True)
"""


def python(code: str, **environment: str) -> subprocess.Popen:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(
        [str(tests / "support"), str(tests / "program"), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


@pytest.mark.parametrize("wait", [0.1, 2.0])
def test_ctrl_c_returns_the_incumbent(wait):
    process = python(INTERRUPTED)
    try:
        assert process.stdout.readline().strip() == "ready"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)  # of the 60 s that the search would take
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out.split() == ["feasible", "True", "True"]


# -- determinism -----------------------------------------------------------------------------------------------------

DETERMINISM = {
    "resnet18": lambda: instances.resnet18(step=16),
    "switches": lambda: instances.latency(50, 0.6, seed=3),
    "ties": lambda: tied(),
}


def tied() -> Program:
    """Many optima: only a deterministic search returns the same one."""
    p = Program()
    widths = [p.width(f"w{i}", levels=range(1, 6)) for i in range(10)]
    for a, b in itertools.pairwise(widths):
        p.value(range(5), a)
        p.product("x", 1, a, b)
    p.budget("x", 90)
    return p


@pytest.mark.parametrize("name", DETERMINISM)
def test_the_same_seed_gives_the_same_choices(name):
    first, second = (DETERMINISM[name]().solve(time_limit=120, gap=1e-3, seed=5) for _ in range(2))
    assert first.status == second.status == "optimal"
    assert first.choices == second.choices
    assert (first.objectives, first.bounds, first.solver) == (second.objectives, second.bounds, second.solver)


def test_the_same_seed_gives_the_same_choices_in_another_process():
    code = (
        "from test_program_honest import tied, instances\n"
        "print(sorted(tied().solve(seed=1).choices.items()), instances.resnet18(step=32).solve(gap=1e-3).choices)"
    )
    runs = [python(code, PYTHONHASHSEED=seed).communicate(timeout=120) for seed in ("1", "2")]
    assert runs[0][0].strip(), runs[0][1]
    assert runs[0][0] == runs[1][0]


def test_nothing_is_printed(capfd):
    instances.resnet18(step=32).solve(time_limit=20, gap=1e-3)
    instances.latency(50, 0.6).solve(time_limit=5)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
