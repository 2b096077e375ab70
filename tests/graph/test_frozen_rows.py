"""`graph.frozen`: a row per reason and line, with shares that a count by hand gives."""

from __future__ import annotations

import inspect

import pytest
import torch
from nets import NETS
from torch import nn

import solvemut as sm
from solvemut.graph import Frozen


class Cut(nn.Module):
    """a is frozen by an operation without a rule, b by a size in numbers, c is free, d makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = torch.cummax(self.a(x), 1)[0]
        h = self.b(h).view(-1, 4, 4).flatten(1)
        return self.d(self.c(h))


@pytest.fixture(scope="module")
def graph():
    with pytest.warns(UserWarning, match="cummax"):
        return sm.capture(Cut(), torch.ones(2, 4))


def line_of(text: str) -> str:
    lines, first = inspect.getsourcelines(Cut)
    return f"test_frozen_rows.py:{first + next(k for k, line in enumerate(lines) if text in line)}"


def test_rows_name_reason_operation_line_and_layers(graph):
    found = {row.vertices: (row.reason, row.op, row.where) for row in graph.frozen}
    assert found == {
        ("a",): ("no rule for cummax", "cummax", line_of("cummax")),
        ("b",): ("its sizes are written as numbers", "view", line_of("view(")),
        ("d",): ("model output", "", ""),
    }


def test_shares_are_those_of_a_count_by_hand(graph):
    """What is left of a layer when all that may go goes: all of a and b, of d the three biases."""
    flops = 2 * (4 * 16 + 16 * 16 + 16 * 16 + 16 * 3)
    params = 5 * 16 + 17 * 16 + 17 * 16 + 17 * 3
    rows = {row.vertices: row for row in graph.frozen}
    for layer, work, size in (("a", 2 * 64, 80), ("b", 2 * 256, 272), ("d", 0, 3)):
        assert rows[layer,].flops == pytest.approx(work / flops)
        assert rows[layer,].params == pytest.approx(size / params)
    assert graph.frozen.flops == pytest.approx(2 * (64 + 256) / flops)
    assert graph.frozen.params == pytest.approx((80 + 272 + 3) / params)
    assert [row.vertices for row in graph.frozen] == [("b",), ("a",), ("d",)]  # most FLOPs first


def test_a_sequence_that_prints(graph):
    frozen = graph.frozen
    assert isinstance(frozen, Frozen) and frozen is graph.frozen
    assert (len(frozen), frozen[0], frozen[-1:]) == (3, next(iter(frozen)), frozen.rows[-1:])
    assert str(frozen[0]).startswith("its sizes are written as numbers (view, test_frozen_rows.py:")
    assert "b; 41.0 % of FLOPs" in str(frozen[0])
    assert repr(frozen) == "<Frozen: 3 reasons, 51.3 % of FLOPs, 52.6 % of params>"
    assert str(frozen) in str(graph) and all(row.reason in str(frozen) for row in frozen)


def test_a_long_table_says_what_it_leaves_out(graph):
    assert graph.frozen.table(1).endswith("and 2 more in graph.frozen")
    assert "cummax" not in graph.frozen.table(1)


def test_a_size_used_as_a_number_names_its_line():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(h) * h.shape[1] ** -0.5

    row = next(r for r in sm.capture(Scaled(), torch.ones(2, 4)).frozen if r.vertices == ("a",))
    assert row.reason == "its size is used as a number in the forward"
    assert row.where.startswith("test_frozen_rows.py:") and row.flops == pytest.approx(1.0)  # b: 16 fixed by 2


def test_what_no_call_reads_and_what_no_unit_is_in_count_as_frozen():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.spare = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.a(x) + (x @ x.T).sum()

    with pytest.warns(UserWarning, match="no captured call reads"):
        frozen = sm.capture(Spare(), torch.ones(2, 4)).frozen
    assert {r.reason: (r.flops > 0, r.params > 0) for r in frozen} == {
        "fixed sizes": (True, False),
        "model output": (True, True),
        "not read by any captured call": (False, True),
    }
    assert frozen.flops == frozen.params == pytest.approx(1.0)


def kept(graph: sm.Graph, cost: str) -> float:
    costs = graph.costs[cost]
    return costs.count(graph.coupling, graph.coupling.frozen) / max(1, costs.now)


@pytest.mark.parametrize("name", NETS)
def test_the_total_is_what_is_left_when_all_goes_that_may(name):
    graph = sm.capture(NETS[name].model(), NETS[name].args(), NETS[name].kw())
    frozen = graph.frozen
    for cost in ("flops", "params"):
        rows = [getattr(row, cost) for row in frozen]
        assert getattr(frozen, cost) == pytest.approx(kept(graph, cost))
        assert getattr(frozen, cost) <= sum(rows) + 1e-12 and max(rows, default=0) <= getattr(frozen, cost) + 1e-12
    held = {v for row in frozen for v in row.vertices}
    assert held == {v.name for v in graph.vertices if v.makes_units and graph.coupling.frozen[v.units].all()}
