"""Requests on sizes with the plans that must come out: sizes that are the unique optimum, or forced."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError, TimeLimitError


def chain(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)))


def mutator(model: nn.Module, *inputs: int) -> sm.Mutator:
    return sm.Mutator(model, tuple(torch.ones(1, n) for n in inputs))


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
