"""Every engine behind the program answers alike: one suite, run for each of them, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies_program import SHAPES, assert_optimal, best, build, examples, specs

from solvemut.errors import InfeasibleError
from solvemut.program import Program
from solvemut.solver import auto, enumeration
from solvemut.solver.aggregate import extend
from solvemut.solver.compact import compact
from solvemut.solver.dominance import dominated
from solvemut.solver.elimination import plan, sweep, upper_envelope
from solvemut.solver.view import view

ENGINES = [name for name in auto.ENGINES if name != "enumeration"]


@pytest.fixture(autouse=True, scope="module")
def _no_shortcut():
    """Small programs would be enumerated: keep every engine to its own means."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enumeration, "MOST", 1)
        yield


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", sorted(SHAPES))
@given(data=st.data())
@examples(12, nightly=50)
def test_engine_agrees_with_brute_force(engine, shape, data):
    spec = data.draw(specs(shape))
    truth = best(spec)
    if truth is None:
        with pytest.raises(InfeasibleError):
            build(spec).solve(engine=engine)
    else:
        assert_optimal(spec, build(spec).solve(engine=engine), truth)


# -- the parts ---------------------------------------------------------------------------------------------------------


def network(layers: int, levels: int, seed: int, dense: bool = False) -> Program:
    """Concave values, product costs: a chain with a shortcut, or a block where every layer reads all before it."""
    rng = np.random.default_rng(seed)
    p = Program()
    widths = [p.width(f"w{i}", levels=range(1, levels + 1)) for i in range(layers)]
    for width in widths:
        p.value(np.cumsum(np.sort(rng.integers(1, 100, levels))[::-1]), width)
    pairs = [(i, j) for j in range(layers) for i in range(j)] if dense else [(i, i + 1) for i in range(layers - 1)]
    pairs = pairs if dense else [*pairs, (0, layers - 1)]
    for i, j in pairs:
        p.product("flops", 3 if dense else int(rng.integers(1, 9)), widths[i], widths[j])
    p.budget("flops", int(0.4 * sum(3 if dense else 4 for _ in pairs) * levels**2))
    return p


@pytest.mark.parametrize("seed", range(5))
def test_max_marginals_are_the_best_total_with_each_level_forced(seed):
    model = compact(network(4, 4, seed).statement().model()).model
    seen = view(model)
    found = sweep(plan(seen), seen.weights(np.array([0.7])))
    codes = np.indices(seen.sizes).reshape(4, -1).T
    totals = seen.totals(codes) @ seen.weights(np.array([0.7]))
    assert found.maximum == pytest.approx(totals.max(), abs=1e-12)
    assert totals[np.ravel_multi_index(tuple(found.maximiser()), seen.sizes)] == pytest.approx(totals.max(), abs=1e-12)
    for v, marginal in enumerate(found.max_marginals()):
        assert marginal == pytest.approx([totals[codes[:, v] == k].max() for k in range(4)], abs=1e-12)


def test_split_buckets_still_bound_from_above(monkeypatch):
    model = compact(network(6, 4, 0, dense=True).statement().model()).model
    seen = view(model)
    exact = plan(seen)
    monkeypatch.setattr("solvemut.solver.elimination.CELLS", 80)
    split = plan(seen)
    assert exact.exact and not split.exact
    weights = seen.weights(np.array([0.5]))
    whole, parts = sweep(exact, weights), sweep(split, weights)
    assert parts.maximum >= whole.maximum - 1e-12
    for bound, truth in zip(parts.max_marginals(), whole.max_marginals(), strict=True):
        assert (bound >= truth - 1e-12).all()


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-50, 50)), min_size=1, max_size=9))
def test_the_envelope_is_the_highest_line(lines):
    slopes, heights = np.array(lines, dtype=float).T
    at = np.linspace(-20, 20, 41)
    assert upper_envelope(slopes, heights, at) == pytest.approx((heights + np.multiply.outer(at, slopes)).max(axis=1))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_dominated_row_has_a_better_one_that_stays(margin, rows):
    group, value, slack = np.array(rows).T
    bad = dominated(group, value.astype(float), slack[:, None].astype(float), np.array([margin, margin]))
    for i, row in enumerate(rows):
        better = [
            j for j, other in enumerate(rows)
            if j != i and other[0] == row[0] and other[1] >= row[1] + margin and other[2] >= row[2] + margin
        ]  # fmt: skip
        if bad[i]:
            assert any(not bad[j] for j in better)
        elif not margin:
            assert all(rows[j] == row for j in better)  # of equal rows one stays
        else:
            assert not better


def test_running_sums_change_no_value_and_no_cost():
    p = network(7, 4, 1, dense=True)
    model = compact(p.statement().model()).model
    found = extend(model)
    assert found is not None and len(found.model.domains) > len(model.domains)
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = tuple(int(k) for k in rng.integers(0, 4, 7))
        extended = found.encode(choice)
        assert found.decode(extended) == choice
        assert found.model.objective.at(extended) == model.objective.at(choice)
        assert found.model.rows[0].at(extended) == model.rows[0].at(choice)
        assert all(row.holds(extended) for row in found.model.rows[1:])


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_engines_agree_on_programs_beyond_brute_force(dense, seed):
    answers = [network(6, 7, seed, dense).solve(engine=engine, time_limit=60) for engine in ENGINES]
    assert all(answer.status == "optimal" for answer in answers)
    assert len({answer.objective for answer in answers}) == 1
    for answer in answers:
        answer.check()


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_beyond_64_bits_are_exact(engine):
    p = Program()
    widths = [p.width(f"w{i}", levels=[0, 1, 2]) for i in range(4)]
    for i, width in enumerate(widths):
        p.value([0, 10**40 + i, 2 * 10**40 + i], width)
        p.cost("x", [0, 10**50 + 1, 2 * 10**50 + 1], width)
    p.budget("x", 6 * 10**50 + 3)
    solution = p.solve(engine=engine)
    assert solution.objective == 6 * 10**40 + 6 and solution.gap == 0
    assert [solution[w] for w in widths] == [0, 2, 2, 2]
