"""The compile step as a function: worth as curves, costs as tables, switches, against trying everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from caller_costs import cost_of, graph_of, part
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_sets import every_kept

from solvemut.compile import Curve, Question, Worth, compile_program
from solvemut.errors import InfeasibleError, RequestError, ValuesError
from solvemut.flow import Extent
from solvemut.requests import Cost, Monomial, Switch, Table


def free_units(graph: Any, name: str) -> np.ndarray:
    return np.unique(graph[name].units)


def best(graph: Any, worth: Worth, question: Question) -> tuple[float, np.ndarray]:
    """The optimum of the program, and the units that it keeps."""
    compiled = compile_program(graph.coupling, worth, question)
    solution = compiled.program.solve()
    kept = compiled.decoder.kept(solution)
    assert worth.of(kept, compiled.decoder.frozen) == pytest.approx(float(solution.objective))
    for budget, name in compiled.counted:
        assert budget.cost.count(graph.coupling, kept, compiled.decoder.on(solution)) == solution.costs[name]
    return float(solution.objective), kept


def net() -> Any:
    """Two layers of four and three units, and a third that reads both: small enough to try everything."""
    import torch
    from torch import nn

    import solvemut as sm

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(7, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.o(torch.cat([h, self.b(h)], 1))

    return sm.capture(Net(), torch.ones(1, 2))


NET = net()
A, B = free_units(NET, "a"), free_units(NET, "b")


@given(st.lists(st.integers(-9, 20), min_size=5, max_size=5), st.permutations(range(4)), st.integers(8, 50))
@settings(max_examples=40, deadline=None)
def test_a_curve_over_one_block_against_brute_force(worth, order, limit):
    """Concave or not: the table counts as it is."""
    value = np.zeros(NET.coupling.n_units)
    value[B] = [3, 1, 2]
    given = Worth(value, (Curve(A[list(order)], np.array(worth, dtype=float)),))
    budget = NET.params <= limit
    options = [given.of(k, NET.coupling.frozen) for k in every_kept(NET) if NET.params.count(NET.coupling, k) <= limit]
    if not options:
        with pytest.raises(InfeasibleError):
            best(NET, given, Question([budget]))
        return
    found, kept = best(NET, given, Question([budget]))
    assert found == pytest.approx(max(options))
    n = int(kept[A].sum())
    assert kept[A[list(order)]].tolist() == [True] * n + [False] * (4 - n)


@given(st.lists(st.integers(-9, 20), min_size=8, max_size=8), st.permutations(range(7)), st.integers(8, 50))
@settings(max_examples=30, deadline=None)
def test_a_curve_over_several_blocks_counts_what_stays_of_all(worth, order, limit):
    units = np.concatenate([A, B])[list(order)]
    given = Worth(np.zeros(NET.coupling.n_units), (Curve(units, np.array(worth, dtype=float)),))
    options = [given.of(k, NET.coupling.frozen) for k in every_kept(NET) if NET.params.count(NET.coupling, k) <= limit]
    if options:
        found, kept = best(NET, given, Question([NET.params <= limit]))
        assert found == pytest.approx(max(options))
        for block in (A, B):  # within a block, by the order of the curve
            ranked = [u for u in units.tolist() if u in block.tolist()]
            n = int(kept[block].sum())
            assert [bool(kept[u]) for u in ranked] == [True] * n + [False] * (len(ranked) - n)


def test_minus_infinity_forbids_a_size():
    curve = Curve(A, np.array([-np.inf, -np.inf, -np.inf, 1.0, 2.0]))
    value = np.zeros(NET.coupling.n_units)
    value[B] = 5
    found, kept = best(NET, Worth(value, (curve,)), Question([NET.params <= 36]))
    assert (kept[A].sum(), kept[B].sum(), found) == (3, 3, 16.0)
    with pytest.raises(InfeasibleError):
        best(NET, Worth(np.zeros(NET.coupling.n_units), (curve,)), Question([NET.params <= 20]))


def test_curves_that_make_no_sense_are_refused():
    for units, worth in ((A, np.zeros(4)), (A[[0, 0, 1]], np.zeros(4)), (A, np.array([0, 1, np.nan, 2, 3]))):
        with pytest.raises(ValuesError):
            Curve(units, worth)
    with pytest.raises(ValuesError):
        Curve(A, np.array([0, 1, 2, 3, -np.inf]))
    with pytest.raises(ValuesError):
        Worth(np.zeros(9), (Curve(A, np.zeros(5)), Curve(A[:2], np.zeros(3))))


def extent(name: str) -> Extent:
    return part(NET, name, slice(None))


@given(st.data(), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_tables_over_one_size_and_two_against_brute_force(data, limit):
    numbers = st.integers(0, 12)
    one = np.array(data.draw(st.lists(numbers, min_size=4, max_size=4)))
    two = np.array(data.draw(st.lists(numbers, min_size=20, max_size=20))).reshape(5, 4)
    cost = Cost(
        "mine",
        (
            Table(one, (extent("b"),)),
            Table(two, (extent("a"), extent("b")), "pair"),
            Monomial(1, (extent("a"), extent("b"))),
        ),
        NET.coupling,
    )
    value = np.zeros(NET.coupling.n_units)
    value[A], value[B] = [4, 3, 2, 1], [5, 1, 2]
    given = Worth(value)
    options = [given.of(k, NET.coupling.frozen) for k in every_kept(NET) if cost.count(NET.coupling, k) <= limit]
    if not options:
        with pytest.raises(InfeasibleError):
            best(NET, given, Question([cost <= limit]))
        return
    assert best(NET, given, Question([cost <= limit]))[0] == pytest.approx(max(options))


@given(st.data(), st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_a_table_over_a_size_that_two_blocks_make(data, limit):
    both = Extent(np.concatenate([extent("a").labels.reshape(-1), extent("b").labels.reshape(-1)]))
    table = np.array(data.draw(st.lists(st.integers(0, 12), min_size=8, max_size=8)))
    cost = Cost("mine", (Table(table, (both,)), Monomial(2, (extent("a"),))), NET.coupling)
    value = np.zeros(NET.coupling.n_units)
    value[A], value[B] = [4, 3, 2, 1], [5, 1, 2]
    options = [Worth(value).of(k, NET.coupling.frozen) for k in every_kept(NET) if cost.count(NET.coupling, k) <= limit]
    if options:
        assert best(NET, Worth(value), Question([cost <= limit]))[0] == pytest.approx(max(options))


def test_what_has_a_switch_counts_where_it_is_on():
    off = Switch("left out")
    cost = Cost(
        "mine",
        (
            Monomial(10, (extent("a"),), when=off),
            Table(np.arange(4), (extent("b"),), when=off),
            Monomial(1, (extent("b"),)),
        ),
        NET.coupling,
    )
    assert cost.now == 10 * 4 + 3 + 3
    compiled = compile_program(NET.coupling, np.ones(NET.coupling.n_units), Question([cost <= 3]))
    solution = compiled.program.solve()
    kept = compiled.decoder.kept(solution)
    assert compiled.decoder.on(solution) == {"left out": False}
    assert kept[A].all() and kept[B].all()
    assert cost.count(NET.coupling, kept, {"left out": False}) == 3 == solution.costs[compiled.counted[0][1]]


def test_tables_of_the_wrong_shape_are_refused():
    with pytest.raises(RequestError, match="has shape"):
        Table(np.zeros(3), (extent("a"),))
    with pytest.raises(RequestError):
        Table(np.zeros((5, 4, 5)), (extent("a"), extent("b"), extent("a")))


def test_compile_has_no_memory():
    """The same question gives the same program, and nothing that goes in is changed."""
    graph = graph_of("Depthwise")
    value = np.random.default_rng(0).uniform(size=graph.coupling.n_units)
    before, frozen = value.copy(), graph.coupling.frozen.copy()
    keep = np.zeros(graph.coupling.n_units, dtype=bool)
    question = Question([graph.params <= 0.7 * graph.params.now], 2, keep)
    texts = {str(compile_program(graph.coupling, value, question).program) for _ in range(3)}
    assert len(texts) == 1
    assert (value == before).all() and (graph.coupling.frozen == frozen).all() and not keep.any()


def test_a_product_of_three_sizes_leaves_the_smallest_and_says_so():
    import torch
    from torch import nn

    import solvemut as sm

    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 1))
    graph = sm.capture(model, torch.ones(1, 2))
    cost = cost_of(graph, *(part(graph, name, slice(None)) for name in ("0", "1", "2")))
    compiled = compile_program(graph.coupling, np.ones(graph.coupling.n_units), Question([cost <= 30]))
    kept = compiled.decoder.kept(compiled.program.solve())
    assert kept[free_units(graph, "1")].all() and cost.count(graph.coupling, kept) <= 30
    assert any("more than two sizes" in note and "3, stays" in note for note in compiled.notes)
