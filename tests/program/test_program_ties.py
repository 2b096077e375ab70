"""Sums as variables, tables never kept, and both under splitting: the bound is brute force's, or above it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from solvemut.program import Program
from solvemut.solver import order
from solvemut.solver.certificate import Request
from solvemut.solver.clock import Clock
from solvemut.solver.compact import compact
from solvemut.solver.elimination import sweep
from solvemut.solver.engines import price
from solvemut.solver.engines.price.aggregate import extend
from solvemut.solver.exact import RankOne, array
from solvemut.solver.model import Model, Row, Term
from solvemut.solver.multipliers import priced
from solvemut.solver.order import order_of
from solvemut.solver.view import FORBIDDEN, view


def dense_block(seed: int, layers: int = 3, limit: float = 0.5) -> Model:
    """A small dense block: every neck reads the sum of all widths before it; values concave or not."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(2, 5)) for _ in range(2 * layers + 1)]
    levels = [sorted(rng.choice(np.arange(1, 9), size=n, replace=False).tolist()) for n in sizes]
    terms = [Term((v,), array([int(x) for x in rng.integers(0, 60, n)])) for v, n in enumerate(sizes)]
    costs, most, stream = [], 0, [0]
    for layer in range(layers):
        neck, new = 1 + 2 * layer, 2 + 2 * layer
        c = int(rng.integers(1, 4))
        for before in [*stream, new]:
            k = c if before != new else int(rng.integers(1, 9))
            costs.append(Term((before, neck), RankOne(array([k * x for x in levels[before]]), array(levels[neck]))))
            most += k * max(levels[before]) * max(levels[neck])
        stream.append(new)
    row = Row("flops", tuple(costs), 0, None, int(limit * most))
    return Model(tuple(np.arange(n) for n in sizes), Row("value", tuple(terms)), (row,))


def every(model: Model) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(d)) for d in model.domains)))


def tables(rng: np.random.Generator) -> Model:
    """Random pair tables and products over five variables, two of them sums of others."""
    levels = [[1, 2, 3], [0, 2, 5], [1, 4], [], []]
    levels[3] = sorted({a + b for a in levels[0] for b in levels[1]})
    levels[4] = sorted({a + b for a in levels[3] for b in levels[2]} | {1})[: int(rng.integers(4, 12))]
    sizes = [len(x) for x in levels]
    terms = [
        Term((a, b), array(rng.integers(-20, 20, (sizes[a], sizes[b]))))
        for a, b in itertools.combinations(range(5), 2)
        if rng.random() < 0.5
    ]
    terms += [Term((v,), array(rng.integers(-20, 20, sizes[v]))) for v in range(5)]
    terms.append(Term((1, 4), RankOne(array(levels[1]), array([-x for x in levels[4]]))))

    def tie(a: int, b: int, c: int) -> Row:
        parts = [(a, levels[a]), (b, levels[b]), (c, [-x for x in levels[c]])]
        return Row("sum", tuple(Term((v,), array(list(x))) for v, x in parts), 0, 0, 0)

    return Model(tuple(np.arange(n) for n in sizes), Row("value", tuple(terms)), (tie(0, 1, 3), tie(3, 2, 4)))


CASES = {"kept": {}, "streamed": {"CELLS": 60}, "split": {"CELLS": 30, "STREAMED": 0}}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("seed", range(25))
def test_maximum_and_forced_maxima_of_tied_tables(case, seed, monkeypatch):
    for name, value in CASES[case].items():
        monkeypatch.setattr(order, name, value)
    model = tables(np.random.default_rng(seed))
    found = order_of(view(model))
    assert len(found.view.ties) == 2 and not found.view.hard and not found.view.coordinates
    run = sweep(found, found.view.weights(np.zeros(0)))
    feasible = [c for c in every(model) if all(row.holds(c) for row in model.rows)]
    scale = float(found.view.scale)
    best = max(model.objective.at(c) for c in feasible)
    assert run.maximum * scale >= best - 1e-9
    if found.exact:
        assert run.maximum * scale == pytest.approx(best)
        assert model.objective.at([int(k) for k in run.maximiser()]) == best
    for v, marginal in enumerate(run.max_marginals()):
        for k, bound in enumerate(marginal):
            with_level = [model.objective.at(c) for c in feasible if c[v] == k]
            if with_level:
                assert bound * scale >= max(with_level) - 1e-9
                if found.exact:
                    assert bound * scale == pytest.approx(max(with_level))
            elif found.exact:
                assert bound < FORBIDDEN / 1e3


def test_streaming_happens(monkeypatch):
    monkeypatch.setattr(order, "CELLS", 60)
    orders = [order_of(view(tables(np.random.default_rng(seed)))) for seed in range(25)]
    assert any(bucket.streamed for found in orders for bucket in found.buckets)
    assert any(bucket.ties for found in orders for bucket in found.buckets)


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(12))
def test_priced_bound_of_a_dense_block_with_sums_is_valid_and_exact(seed, limit):
    model = dense_block(seed, layers=3, limit=limit)
    extended = extend(model, lambda m: 0)
    assert extended is not None
    found = order_of(view(compact(extended.model).model))
    assert found.exact and found.view.ties
    for multiplier in (0.0, 0.01, 0.3):
        bound = priced(found, np.array([multiplier]))
        weights = found.view.weights(np.array([multiplier]))
        plain = view(model)
        exact = (plain.totals(np.array(every(model))) @ weights).max()
        assert bound.sweep.maximum == pytest.approx(exact)


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("seed", range(10))
def test_dense_blocks_against_brute_force(case, seed, monkeypatch):
    for name, value in CASES[case].items():
        monkeypatch.setattr(order, name, value)
    monkeypatch.setattr("solvemut.solver.engines.enumeration.fits", lambda combinations: False)
    model = dense_block(seed, layers=2 if seed % 2 else 3)
    good = [model.objective.at(c) for c in every(model) if model.rows[0].holds(c)]
    answer = price.solve(Request(model, Clock(30)))
    if not good:
        assert answer.infeasible
    else:
        assert answer.finished and answer.value == answer.bound == max(good)
        assert answer.choice is not None and model.feasible(answer.choice)


def test_a_stated_sum_is_a_tie():
    p = Program()
    a, b, c = p.width("a", levels=range(1, 40)), p.width("b", levels=range(1, 40)), p.width("c", levels=range(2, 60))
    for width, worth in ((a, 3), (b, 2), (c, 1)):
        p.value([worth * n for n in width.levels], width)
    p.add(a + b == c)
    p.product("flops", 1, a, c)
    p.budget("flops", 900)
    truth = max(
        3 * i + 2 * j + (i + j) for i in range(1, 40) for j in range(1, 40) if i + j < 60 and i * (i + j) <= 900
    )
    solution = p.solve()
    assert solution.status == "optimal" and solution.objective == solution.bound == truth
