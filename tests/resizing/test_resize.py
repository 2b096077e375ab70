"""Requests on sizes with the plans that must come out: sizes that are the unique optimum, or forced."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError, TimeLimitError


def up(v: Any) -> np.ndarray:
    return np.arange(1, v.nout + 1)


def down(v: Any) -> np.ndarray:
    return np.arange(v.nout, 0, -1)


class Fork(nn.Module):
    """in6 -> S; S -> P; S + cat(2 P, 3 P, 5 P), all weights 1."""

    def __init__(self) -> None:
        super().__init__()
        self.S, self.P = nn.Linear(6, 6, bias=False), nn.Linear(6, 2, bias=False)
        self.end = nn.Linear(6, 1, bias=False)
        for layer in (self.S, self.P):
            nn.init.ones_(layer.weight)

    def stream(self, x: torch.Tensor) -> torch.Tensor:
        s = self.S(x)
        p = self.P(s)
        return s + torch.cat([2 * p, 3 * p, 5 * p], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.stream(x))


class TwoInputs(nn.Module):
    """cat(V1, V2) is added to V3 and read by V4."""

    def __init__(self) -> None:
        super().__init__()
        self.V1, self.V2, self.V3 = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 7)
        self.V4, self.end = nn.Linear(7, 2), nn.Linear(7, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        m = torch.cat([self.V1(a), self.V2(b)], 1)
        return self.V4(m), self.end(self.V3(a) + m)


class Thrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Linear(3, 4), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.A(x)
        return self.B(torch.cat([a, a, a], 1))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.L = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.L(x)


class WithInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.end = nn.Linear(3, 5), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(torch.cat([x, self.A(x)], 1))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.B, self.C, self.D = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b = self.B(self.A(x))
        return self.C(b), self.D(b)


class Steps(nn.Module):
    """X = cat(A, B), Y = cat(C, B, A, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B, self.C = nn.Linear(3, 6), nn.Linear(3, 7), nn.Linear(3, 8)
        self.x, self.y = nn.Linear(13, 2), nn.Linear(28, 2)

    def forward(self, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b, c = self.A(i), self.B(i), self.C(i)
        x = torch.cat([a, b], 1)
        return self.x(x), self.y(torch.cat([c, b, a, b], 1))


def chain(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)))


def mutator(model: nn.Module, *inputs: int) -> sm.Mutator:
    return sm.Mutator(model, tuple(torch.ones(1, n) for n in inputs))


def test_the_most_valuable_stay_and_new_ones_come_at_the_end():
    mut = mutator(chain(3, 5, 4, 2), 3)
    plan = mut.resize({"0": -2}, values=up)
    assert plan.indices["0.weight"][0] == plan.indices["1.weight"][1] == [2, 3, 4]
    assert mut.resize({"0": +3}, values=up).indices["0.weight"][0] == [0, 1, 2, -1, -1, -1]
    plan = mut.resize({mut.graph["1"].ins[0]: -2}, values=up)
    assert plan.indices["1.weight"][1] == [2, 3, 4, 5] and plan.indices["1.weight"][0] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        lambda g: {"1": +3, "2": sm.relaxed(+2)},
        lambda g: {"1": sm.relaxed(3), "2": 2},
        lambda g: {g["1"]: sm.exactly(8), g["2"].out: sm.relaxed(sm.exactly(6))},
        lambda g: {g["2"].ins[0]: +3, g["3"].ins[0]: sm.between(6, 6)},
        lambda g: {"1": sm.ratio(1.6), "2": sm.ratio(1.5), "3": None},
    ],
)
def test_every_form_of_a_request_agrees(changes):
    mut = mutator(chain(3, 3, 5, 4, 2), 3)
    plan = mut.resize(changes(mut.graph))
    assert {k: b for k, (_, b) in plan.sizes.items()} == {"0": 3, "1": 8, "2": 6, "3": 2}
    assert (mut.graph["2"].nin, mut.graph["3"].nin) == ([8], [6])


def test_growth_by_way_of_a_sum_of_concats():
    model, x = Fork(), torch.ones(1, 6)
    mut = sm.Mutator(model, x)
    assert model.stream(x).tolist() == [[78, 78, 114, 114, 186, 186]]
    with pytest.raises(InfeasibleError, match=r"add\.out == 8: the nearest feasible values of add\.out are 6 and 9"):
        mut.resize({"add": +2})
    with pytest.warns(UserWarning, match="relaxed") as told:
        plan = mut.resize({"add": +2}, on_infeasible="relax", dry_run=True)
    assert len(told) == 1
    plan.apply(model, init=lambda name, shape: torch.zeros(shape))
    assert {k: b for k, (_, b) in plan.sizes.items() if k != "end"} == {"S": 9, "P": 3}
    assert model.stream(x).tolist() == [[78, 78, 0, 114, 114, 0, 186, 186, 0]]
    mut = sm.Mutator(model, x)
    for values, seen in ((up, [42, 0, 60, 0, 96, 0]), (down, [78, 78, 114, 114, 186, 186]), (None, None)):
        plan = mut.resize({"add": -3}, values=values, dry_run=True)
        assert {k: b for k, (_, b) in plan.sizes.items() if k != "end"} == {"S": 6, "P": 2}
        if values is up:
            assert (plan.indices["P.weight"][0], plan.indices["S.weight"][0]) == ([1, 2], [1, 2, 4, 5, 7, 8])
        twin = Fork()
        twin.S, twin.P, twin.end = nn.Linear(6, 9, bias=False), nn.Linear(9, 3, bias=False), nn.Linear(9, 1, bias=False)
        twin.load_state_dict(model.state_dict())
        plan.apply(twin)
        assert seen is None or twin.stream(x).tolist() == [seen]
    assert plan.indices["P.weight"][0] == [0, 1]  # the new unit has the least weight


def test_one_branch_shrinks_and_another_grows():
    mut = mutator(TwoInputs(), 3, 4)
    plan = mut.resize({"V2": -1, "cat": 0}, values={"V2": [10, 1, 10]})
    assert plan.indices["V1.weight"][0] == [0, 1, 2, 3, -1]
    assert plan.indices["V2.weight"][0] == [0, 2]
    assert plan.indices["V3.weight"][0] == plan.indices["V4.weight"][1] == [0, 1, 2, 3, -1, 4, 6]
    assert mut.model.V4.weight[:, 4].tolist() == [0, 0]


def test_the_nearest_size_is_taken_with_one_warning():
    mut = mutator(Thrice(), 3)
    with pytest.warns(UserWarning, match="12 and 15") as told:
        plan = mut.resize({"cat": +2}, on_infeasible="relax")
    assert len(told) == 1 and plan.sizes["A"] == (4, 5) and mut.graph["cat"].nout == 15


@pytest.mark.parametrize("changes", [{"add": +1}, {"L": +1}, {"x": 1}, {"add": sm.relaxed(1)}])
def test_what_cannot_be_leaves_everything_as_it_is(changes):
    mut = mutator(Shortcut(), 3)
    before = {k: v.clone() for k, v in mut.model.state_dict().items()}
    graph = mut.graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for how in ("raise", "relax"):
            with pytest.raises(InfeasibleError):
                mut.resize(changes, on_infeasible=how)
    assert mut.graph is graph and not mut.history
    assert all(torch.equal(v, before[k]) for k, v in mut.model.state_dict().items())


def test_a_value_on_units_that_must_stay_does_not_tempt():
    plan = mutator(WithInput(), 3).resize({"A": -3}, values={"cat": np.arange(-3, 5)})
    assert plan.sizes["A"] == (5, 2) and plan.indices["end.weight"][1] == [0, 1, 2, 6, 7]


def test_what_a_request_cannot_reach_stays():
    plan = mutator(TwoHeads(), 3).resize({"A": +2}, values={"B": np.arange(-2, 3)})
    assert (plan.sizes["A"], plan.sizes["B"]) == ((4, 6), (5, 5))


@pytest.mark.parametrize("low", [-1.0, np.full(4, -1.0)])
def test_what_is_worth_less_than_nothing_goes(low):
    mut = mutator(chain(3, 4, 5, 2), 3)
    plan = mut.resize(values={"0": low, "1": -1.0})
    assert (plan.sizes["0"], plan.sizes["1"]) == ((4, 1), (5, 1))
    plan = mutator(chain(3, 6, 2), 3).resize({}, values={"0": [-1, 1, -1, 1, -1, 1]})
    assert plan.indices["0.weight"][0] == [1, 3, 5]
    same = mutator(chain(3, 6, 2), 3).resize({})
    assert all(a == b for a, b in same.sizes.values())


def test_sizes_in_steps():
    def steps(g: Any) -> list[Any]:
        return [g["A"].out % 3 == 0, g["B"].out % 2 == 1, g["C"].out % 2 == 0]

    mut = mutator(Steps(), 3)
    for target, change, sizes in (("cat", -3, (3, 7, 8)), ("cat_1", -6, (3, 5, 6)), ("cat_1", +9, (6, 7, 8))):
        plan = mut.resize({target: change}, constraints=steps)
        assert tuple(plan.sizes[k][1] for k in "ABC") == sizes


def test_limits_on_new_units():
    mut = mutator(chain(3, 5, 4, 2), 3)
    with pytest.raises(InfeasibleError):
        mut.resize({"0": +2}, grow=0)
    assert mut.resize({"0": +2}, grow={"0": 2}, dry_run=True).sizes["0"] == (5, 7)
    with pytest.raises(InfeasibleError):
        mut.resize({"0": +3}, grow={"0": 2})
    mut = mutator(TwoInputs(), 3, 4)
    plan = mut.resize({"V4": 0, "cat": +2}, grow={"V2": 0}, dry_run=True)
    assert (plan.sizes["V1"], plan.sizes["V2"]) == ((4, 6), (3, 3))


def test_the_time_limit_can_be_refused(monkeypatch):
    from dataclasses import replace

    from solvemut.resizing import Resizing

    solve = Resizing.solve
    monkeypatch.setattr(Resizing, "solve", lambda self, *a, **k: replace(solve(self, *a, **k), status="feasible"))
    asked = []
    for refuse in ("raise", lambda plan: asked.append(plan.sizes["0"])):
        mut = mutator(chain(3, 5, 2), 3)
        with pytest.raises(TimeLimitError):
            mut.resize({"0": -1}, on_time_limit=refuse)
        assert not mut.history
    assert asked == [(5, 4)]
    assert mutator(chain(3, 5, 2), 3).resize({"0": -1}, on_time_limit=lambda plan: True).sizes["0"] == (5, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"0": "wide"}, "resize 0.out: 'wide'"),
        ({"0": 1.5}, "1.5"),
        ({"0": True}, "True"),
        ({"nowhere": 1}, "nowhere"),
        ([("0", 1)], "takes a dict"),
        ({"0": -9}, "0.out == -4"),
    ],
)
def test_bad_requests_are_named(changes, told):
    with pytest.raises((RequestError, InfeasibleError)) as e:
        mutator(chain(3, 5, 4, 2), 3).resize(changes)
    assert told in str(e.value)


def test_two_wishes_for_one_size_are_a_conflict():
    mut = mutator(chain(3, 5, 4, 2), 3)
    with pytest.raises(InfeasibleError) as e:
        mut.resize({"0": +1, mut.graph["1"].ins[0]: +2})
    assert len(e.value.conflict) == 2


def test_globs_and_constraints_together():
    mut = mutator(chain(3, 8, 8, 8, 2), 3)
    plan = mut.resize({"[01]": sm.ratio(0.5)}, constraints=lambda g: g["2"].out <= 6)
    assert [plan.sizes[k][1] for k in "0123"] == [4, 4, 6, 2]


def test_what_changed_is_logged_and_told(caplog):
    told: list[Any] = []
    model = chain(3, 5, 4, 2)
    mut = sm.Mutator(model, torch.ones(1, 3), after_change=lambda v, plan: told.append((v.name, v.nin, v.nout, plan)))
    with caplog.at_level("INFO", logger="solvemut"):
        plan = mut.resize({"0": -2})
        mut.resize({"0": 0})
    assert [t[:3] for t in told] == [("0", [3], 3), ("1", [3], 4)]
    assert all(t[3].sizes == plan.sizes for t in told)
    lines = [r.getMessage() for r in caplog.records if r.name == "solvemut"]
    assert lines == ["0: [3] -> 5, now [3] -> 3", "1: [5] -> 4, now [3] -> 4"]
