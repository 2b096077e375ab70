"""Widths that all multiply one another: their sums become variables, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from benchmarks_path import instances
from hypothesis import given
from hypothesis import strategies as st
from strategies_program import examples

from solvemut.program import Program, Width
from solvemut.solver.clock import Clock
from solvemut.solver.compact import compact
from solvemut.solver.engines import enumeration
from solvemut.solver.engines.price.aggregate import extend
from solvemut.solver.engines.price.search import Request
from solvemut.solver.model import Model
from solvemut.solver.order import order_of
from solvemut.solver.view import view


def splits(model: Model) -> float:
    return order_of(view(compact(model).model)).splits


@st.composite
def cliques(draw: st.DrawFn) -> Program:
    """All pairs of some widths with coefficients ``c_i * c_j``, a few of them changed or left out."""
    count = draw(st.integers(4, 7))
    weights = draw(st.lists(st.sampled_from([-2, 1, 1, 2, 3]), min_size=count, max_size=count))
    odd = draw(st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.integers(-2, 3), max_size=2))
    p, rng = Program(), np.random.default_rng(draw(st.integers(0, 99)))
    resources = draw(st.sampled_from([("flops",), ("flops", "params")]))
    widths = [p.width(f"w{i}", levels=draw(st.sampled_from([(1, 2), (0, 2), (1, 3, 4)]))) for i in range(count)]
    top = dict.fromkeys(resources, 0)
    for width in widths:
        p.value(rng.integers(0, 20, len(width.levels)), width)
    for (i, j), (k, resource) in itertools.product(itertools.combinations(range(count), 2), enumerate(resources, 1)):
        coefficient = k * weights[i] * weights[j] if (i, j) not in odd else odd[i, j]
        if coefficient:
            p.product(resource, coefficient, widths[i], widths[j])
        top[resource] += abs(coefficient) * max(widths[i].levels) * max(widths[j].levels)
    for resource, most in top.items():
        p.budget(resource, draw(st.integers(-most // 4, most)))
    return p


@given(cliques())
@examples(60)
def test_sums_of_widths_that_multiply_one_another_change_nothing(p):
    model = p.statement().model()
    reduced = compact(model).model
    extended = extend(reduced, splits)
    if extended is not None:
        for choice in itertools.product(*(range(len(domain)) for domain in reduced.domains)):
            other = extended.encode(choice)
            assert extended.decode(other) == choice and extended.model.feasible(other) == reduced.feasible(choice)
            assert extended.model.objective.at(other) == reduced.objective.at(choice)
    best = enumeration.solve(Request(model, Clock(10))).value
    if best is not None:
        assert p.solve(engine="price").objective == p.solve(engine="cp-sat").objective == best


@pytest.mark.parametrize("kind", ["all", "rank one", "nearly", "halves", "some", "sums"])
def test_blocks_of_pairs_are_chains_of_sums_and_solved_at_once(kind):
    p = instances.all_pairs(2, 12, kind=kind)
    model = compact(p.statement().model()).model
    extended = extend(model, splits)
    found = [order_of(view(m)) for m in (model, *([] if extended is None else [compact(extended.model).model]))]
    assert any(order.exact and order.work < 3e6 for order in found)
    solution = p.solve(gap=2e-3, time_limit=60)
    solution.check()
    assert solution.gap <= 2e-3


def test_equal_units_and_equal_blocks_leave_no_gap_open():
    """Linear values, many blocks alike: prices alone leave 0.7 % between the two choices on either side of a budget."""
    solution = instances.equal_units(50, step=2).solve(gap=1e-3, time_limit=60)
    solution.check()
    assert solution.gap <= 1e-3


def mixed_kernels(stages: int = 4, parts: int = 4, size: int = 60, seed: int = 0) -> Program:
    """Mixed convolutions: streams in two halves, between them parts that read both and are read by both, and a gate."""
    rng, p = np.random.default_rng(seed), Program()

    def width(name: str, n: int) -> Width:
        w = p.width(name, range(1, n + 1))
        p.value(np.sort(rng.random(n))[::-1].cumsum() / n, w)
        return w

    streams = [[width(f"stream {k}{half}", size) for half in "ab"] for k in range(stages + 1)]
    for k, (before, after) in enumerate(itertools.pairwise(streams)):
        made = [width(f"part {k}.{i}", 2 * size) for i in range(parts)]
        gate = width(f"gate {k}", size)
        for i, part in enumerate(made):
            p.cost("flops", 9 * (i + 1) * np.arange(1, 2 * size + 1), part)
            for half in (*before, *after, gate):
                p.product("flops", 1, half, part)
        for i in range(2):  # and blocks within the stage: parts that read one half and make one, and a gate on all
            squeeze = width(f"squeeze {k}.{i}", size)
            for j, halves in enumerate(itertools.product(after, after)):
                inner = width(f"inner {k}.{i}.{j}", 2 * size)
                for half in (*halves, squeeze):
                    p.product("flops", 1, half, inner)
    p.budget("flops", stages * (parts * 5 + 24) * size * size)
    return p


def test_mixed_kernels_are_solved_at_once():
    solution = mixed_kernels().solve(time_limit=60, gap=1e-3)
    assert solution.gap <= 1e-3
    solution.check()


def test_where_all_sums_do_not_help_they_are_taken_family_by_family():
    """Two families of products over four widths each; only the sum of the second one is of use."""
    p = Program()
    for name in "ab":
        parts, readers = ([p.width(f"{name}{kind}{i}", range(1, 9)) for i in range(4)] for kind in ("part", "reader"))
        for (i, part), (j, reader) in itertools.product(enumerate(parts), enumerate(readers)):
            p.product("flops", 1 + 7 * (i == 3 and j == 3), part, reader)
    p.budget("flops", 900)
    model = compact(p.statement().model()).model
    every = extend(model, lambda m: 0)
    assert every is not None and len({v for sums, _ in every.sums for v, _ in sums}) > 4

    def of_use(m: Model) -> int:
        """Sums of a's widths are in the way; those of b's leave nothing to be split."""
        sums = [{v for v in row.terms[0].scope + row.terms[1].scope if v < 16} for row in m.rows[1:]]
        of_a, of_b = (any(side & s for s in sums) for side in (set(range(8)), set(range(8, 16))))
        return 5 if of_a else 0 if of_b else 3

    found = extend(model, of_use)
    assert found is not None and of_use(found.model) == 0
