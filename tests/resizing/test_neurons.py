"""Resizing by blocks against trying every set of neurons that may stay and every number that may come."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError

MOST = 2  # new neurons that may come in a layer


class Joined(nn.Module):
    """cat(A, B) + C, read by the end."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.A, self.B, self.C, self.end = nn.Linear(2, a), nn.Linear(2, b), nn.Linear(2, a + b), nn.Linear(a + b, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(torch.cat([self.A(x), self.B(x)], 1) + self.C(x))


def states(values: np.ndarray) -> list[tuple[float, int]]:
    """Every set of neurons that stay, with every number of new ones: value, and size."""
    found = []
    for kept in itertools.product((0, 1), repeat=len(values)):
        for new in range(MOST + 1):
            if new and not all(kept):  # none is replaced by a new one
                continue
            if (size := sum(kept) + new) >= 1:
                found.append((float(np.dot(kept, values)), size))
    return found


def loss(sizes: list[int], now: list[int], values: list[np.ndarray]) -> float:
    """0.1 times the sum and 0.8 times the largest of the relative changes, each by the largest value in its layer."""
    found = []
    for size, n, v in zip(sizes, now, values, strict=True):
        target = max(1, n - int((v < 0).sum()))
        found.append(float(np.abs(v).max()) * abs(size - target) / target)
    return 0.1 * sum(found) + 0.8 * max(found)


numbers = st.integers(-2, 6)


@settings(max_examples=30)
@given(st.lists(numbers, min_size=1, max_size=3), st.lists(numbers, min_size=1, max_size=3), st.data())
def test_a_concat_that_is_added_to(a: list[int], b: list[int], data: Any) -> None:
    c = data.draw(st.lists(numbers, min_size=len(a) + len(b), max_size=len(a) + len(b)))
    values = [np.array(v, dtype=float) for v in (a, b, c)]
    wanted = data.draw(st.integers(1, len(c) + 3))
    both = [values[0] + values[2][: len(a)], values[1] + values[2][len(a) :]]
    best = max(
        (
            va + vb - loss([na, nb, na + nb], [len(a), len(b), len(c)], values)
            for (va, na), (vb, nb) in itertools.product(states(both[0]), states(both[1]))
            if na + nb == wanted
        ),
        default=None,
    )
    mut = sm.Mutator(Joined(len(a), len(b)), torch.ones(1, 2))
    given_values = {"A": a, "B": b, "C": c}
    request = {"C": sm.exactly(wanted)}
    if min(len(a), len(b)) == 1:
        return  # a dim of one position has no units of its own
    if best is None:
        with pytest.raises(InfeasibleError):
            mut.resize(request, values=given_values, grow=MOST)
        return
    plan = mut.resize(request, values=given_values, grow=MOST)
    assert plan.objective == pytest.approx(best, abs=1e-6)
    assert plan.sizes["A"][1] + plan.sizes["B"][1] == wanted == mut.graph["C"].nout


@settings(max_examples=20)
@given(st.lists(numbers, min_size=2, max_size=4), st.lists(numbers, min_size=2, max_size=4), st.data())
def test_two_layers_in_a_row(a: list[int], b: list[int], data: Any) -> None:
    """Layers in a row do not touch each other: each is settled alone, but for the largest change of both."""
    wanted = [data.draw(st.integers(1, len(v) + MOST)) for v in (a, b)]
    values = [np.array(a, dtype=float), np.array(b, dtype=float)]
    best = max(
        va + vb - loss([na, nb], [len(a), len(b)], values)
        for (va, na), (vb, nb) in itertools.product(states(values[0]), states(values[1]))
        if [na, nb] == wanted
    )
    model = nn.Sequential(nn.Linear(3, len(a)), nn.Linear(len(a), len(b)), nn.Linear(len(b), 1))
    mut = sm.Mutator(model, torch.ones(1, 3))
    request = {"0": wanted[0] - len(a), "1": wanted[1] - len(b)}
    plan = mut.resize(request, values={"0": a, "1": b}, grow=MOST)
    assert plan.objective == pytest.approx(best, abs=1e-6)
