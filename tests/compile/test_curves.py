"""Curves over units with rows, beside numbers, of layers that grow, and over what is frozen: against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_sets import every_kept
from torch import nn

import solvemut as sm
from solvemut.compile import Curve, Question, Worth, compile_program
from solvemut.errors import InfeasibleError


def grouped() -> Any:
    """Two groups of two channels in, two channels out."""
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 1, 1))
    return sm.capture(model, torch.ones(1, 2, 3, 3))


class Attention(nn.Module):
    """Four heads of size two, which stay or go as a whole, on three units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.heads = nn.Linear(2, 3), 4
        self.q, self.k, self.v, self.out = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.up(x)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def group_norm() -> Any:
    """Two groups that one norm counts."""
    return sm.capture(nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 1, 1)), torch.ones(1, 2, 3, 3))


class Chain(nn.Module):
    """Four and three units, and what reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(7, 2)

    def forward(self, x):
        h = self.a(x)
        return self.o(torch.cat([h, self.b(h)], 1))


GRAPHS = {
    "grouped": grouped(),
    "heads": sm.capture(Attention(), torch.ones(1, 3, 2)),
    "norm": group_norm(),
    "chain": sm.capture(Chain(), torch.ones(1, 2)),
}
CHAIN = GRAPHS["chain"]
A, B = CHAIN["a"].units, CHAIN["b"].units


KEPT = {name: list(every_kept(graph)) for name, graph in GRAPHS.items()}


def best(graph: Any, worth: Worth, question: Question) -> tuple[float, np.ndarray]:
    """The optimum of the program, and how often it has each unit; `Worth.of` says the same of that."""
    compiled = compile_program(graph.coupling, worth, question)
    solution = compiled.program.solve()
    times = compiled.decoder.times(solution)
    assert compiled.objective(times) == pytest.approx(float(solution.objective), abs=1e-9)
    for budget, name in compiled.counted:
        assert budget.cost.count(graph.coupling, times) == solution.costs[name]
    return float(solution.objective), times


def options(name: str, worth: Worth, limit: int) -> list[float]:
    graph = GRAPHS[name]
    fitting = [k for k in KEPT[name] if graph.params.count(graph.coupling, k) <= limit]
    return [worth.of(k, graph.coupling.frozen) for k in fitting]


def assert_best(name: str, worth: Worth, limit: int) -> None:
    graph, wanted = GRAPHS[name], options(name, worth, limit)
    if wanted:
        assert best(graph, worth, Question([graph.params <= limit]))[0] == pytest.approx(max(wanted))
    else:
        with pytest.raises(InfeasibleError):
            best(graph, worth, Question([graph.params <= limit]))


def test_there_is_something_to_choose_from():
    sizes = {name: {int(k.sum()) for k in kept} for name, kept in KEPT.items()}
    assert all(len(found) > 3 for found in sizes.values())
    shapes = {name: [rows.units.shape for rows in graph.coupling.rows] for name, graph in GRAPHS.items()}
    assert (2, 2) in shapes["grouped"] and (2, 3) in shapes["norm"]
    assert len(np.unique(GRAPHS["heads"]["q"].units)) == 4 < GRAPHS["heads"]["q"].nout


@pytest.mark.parametrize(("name", "least", "most"), [("grouped", 8, 35), ("heads", 20, 150), ("norm", 5, 45)])
@given(st.data(), st.floats(0, 1))
@settings(max_examples=30)
def test_a_curve_over_all_that_has_rows(name, least, most, data, share):
    free = np.flatnonzero(~GRAPHS[name].coupling.frozen)
    order = data.draw(st.permutations(free.tolist()))
    worth = np.array(data.draw(st.lists(st.integers(-9, 20), min_size=len(free) + 1, max_size=len(free) + 1)), float)
    given = Worth(np.zeros(GRAPHS[name].coupling.n_units), (Curve(np.array(order), worth),))
    assert_best(name, given, least + round(share * (most - least)))


@pytest.mark.parametrize(("name", "one", "other"), [("grouped", "0", "2"), ("heads", "up", "q")])
@given(st.data(), st.integers(10, 150))
@settings(max_examples=30)
def test_a_curve_for_each_family_of_rows(name, one, other, data, limit):
    """Not concave, so what one family wants the other pays for."""
    graph, curves = GRAPHS[name], []
    for vertex in (one, other):
        units = np.unique(graph[vertex].units)
        worth = data.draw(st.lists(st.integers(-9, 20), min_size=len(units) + 1, max_size=len(units) + 1))
        curves.append(Curve(np.array(data.draw(st.permutations(units.tolist()))), np.array(worth, float)))
    assert_best(name, Worth(np.zeros(graph.coupling.n_units), tuple(curves)), limit)


@given(st.data(), st.integers(8, 50))
@settings(max_examples=40)
def test_a_curve_over_part_of_a_group_and_numbers_for_the_rest(data, limit):
    numbers = st.integers(-9, 20)
    value = np.zeros(CHAIN.coupling.n_units)
    value[A], value[B] = (data.draw(st.lists(numbers, min_size=n, max_size=n)) for n in (4, 3))
    chosen = np.array(data.draw(st.lists(st.sampled_from([*A, *B]), min_size=1, max_size=6, unique=True)))
    curve = data.draw(st.lists(numbers, min_size=len(chosen) + 1, max_size=len(chosen) + 1))
    assert_best("chain", Worth(value, (Curve(chosen, np.array(curve, float)),)), limit)


@given(st.data(), st.integers(0, 3), st.sampled_from([None, 2]))
@settings(max_examples=30)
def test_worth_of_what_is_left_is_the_objective_whatever_is_kept(data, n_keep, round_to):
    """With units that stay, sizes in steps, and floats for numbers."""
    numbers = st.floats(-5, 5).map(lambda x: round(x, 3))
    n, keep = CHAIN.coupling.n_units, np.zeros(CHAIN.coupling.n_units, dtype=bool)
    keep[A[:n_keep]] = True
    curve = Curve(np.concatenate([B, A[1:3]]), np.array(data.draw(st.lists(numbers, min_size=6, max_size=6))))
    worth = Worth(np.array(data.draw(st.lists(numbers, min_size=n, max_size=n))), (curve,))
    _, times = best(CHAIN, worth, Question([CHAIN.params <= 40], round_to, keep))
    assert (times[A[:n_keep]] > 0).all() and CHAIN.params.count(CHAIN.coupling, times) <= 40


@pytest.mark.parametrize("name", GRAPHS)
def test_a_curve_in_which_all_is_frozen_is_a_constant(name):
    graph = GRAPHS[name]
    last = graph[{"grouped": "4", "heads": "out", "norm": "2", "chain": "o"}[name]].units
    assert graph.coupling.frozen[last].all()
    worth = Worth(np.ones(graph.coupling.n_units), (Curve(last, np.arange(len(last) + 1) * 2.5 - 1),))
    found, _ = best(graph, worth, Question())
    free = int((~graph.coupling.frozen).sum())
    assert found == pytest.approx(free + 2.5 * len(last) - 1)


def test_a_curve_of_which_some_must_stay_counts_them():
    keep = np.zeros(CHAIN.coupling.n_units, dtype=bool)
    keep[A[2:]] = True
    worth = Worth(np.zeros(CHAIN.coupling.n_units), (Curve(A, np.array([90.0, 80, 5, 4, 3])),))
    found, times = best(CHAIN, worth, Question(keep=keep))
    assert found == 5 and times[A].tolist() == [0, 0, 1, 1]


# -- growth ------------------------------------------------------------------------------------------------------------


def grown(limit: int, slots: np.ndarray, new: np.ndarray, worth: Worth) -> list[float]:
    """What every change of the chain within a budget is worth, new units come where all of a layer stay."""
    coupling, found = CHAIN.coupling, []
    for kept in KEPT["chain"]:
        more = [range(int(slots[u].min()) + 1 if kept[u].all() else 1) for u in (A, B)]
        for a, b in itertools.product(*more):
            times = kept.astype(int)
            times[A[-1]] += a
            times[B[-1]] += b
            if CHAIN.params.count(coupling, times) <= limit:
                found.append(Worth(worth.value, worth.curves, new).of(times, coupling.frozen))
    return found


@pytest.mark.parametrize("joint", [False, True])
@given(st.lists(st.integers(-9, 20), min_size=9, max_size=9), st.integers(0, 3), st.integers(0, 2), st.integers(20, 90))
@settings(max_examples=30)
def test_curves_where_layers_grow(joint, numbers, more_a, more_b, limit):
    """A new unit is worth what the last one of its curve adds, and never stands in for one that goes."""
    slots = np.zeros(CHAIN.coupling.n_units, dtype=int)
    slots[A], slots[B] = more_a, more_b
    if joint:
        curves = (Curve(np.concatenate([B, A]), np.array(numbers[:8], float)),)
        last = {0: max(0, numbers[7] - numbers[6]), 1: max(0, numbers[7] - numbers[6])}
    else:
        curves = (Curve(A, np.array(numbers[:5], float)), Curve(B, np.array(numbers[5:], float)))
        last = {0: max(0, numbers[4] - numbers[3]), 1: max(0, numbers[8] - numbers[7])}
    new = np.zeros(CHAIN.coupling.n_units)
    new[A], new[B] = last[0], last[1]
    worth = Worth(np.zeros(CHAIN.coupling.n_units), curves)
    wanted = grown(limit, slots, new, worth)
    found, _ = best(CHAIN, worth, Question([CHAIN.params <= limit], slots=slots))
    assert found == pytest.approx(max(wanted))


@pytest.mark.parametrize(("name", "vertex"), [("grouped", "0"), ("grouped", "2"), ("heads", "q"), ("norm", "0")])
@given(st.lists(st.integers(-9, 20), min_size=7, max_size=7), st.integers(10, 80))
@settings(max_examples=20)
def test_curves_over_rows_that_grow_count_what_stays(name, vertex, numbers, limit):
    """A group less and units more in the others is not as if all had stayed."""
    graph = GRAPHS[name]
    units = np.unique(graph[vertex].units)
    slots = np.zeros(graph.coupling.n_units, dtype=int)
    slots[units] = 2
    worth = Worth(np.zeros(graph.coupling.n_units), (Curve(units, np.array(numbers[: len(units) + 1], float)),))
    question = Question([graph.params <= limit], slots=slots)
    wanted = options(name, worth, limit)
    if wanted:
        assert best(graph, worth, question)[0] >= max(wanted) - 1e-9
