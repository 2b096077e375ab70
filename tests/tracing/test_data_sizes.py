"""Sizes that depend on data: rows that a mask picks, positions that are not zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import assert_same, masked, outputs, randomise
from torch import nn

import solvemut as sm
import solvemut.apply.verify as room

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[True, False, True, False, True], [False] * 4 + [True]])
ALL = torch.ones(2, 5, dtype=torch.bool)


class Net(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.o, self.call = nn.Linear(6, 16), nn.Linear(16, 3), call

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.call(self, self.a(x).relu(), mask)


def written(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    h = h.clone()
    h[mask] = 0.5
    return h


CALLS: dict[str, Callable[..., Any]] = {
    "picked": lambda m, h, mask: m.o(h[mask]),
    "picked beside": lambda m, h, mask: (m.o(h), m.o(h[mask]).sum()),
    "positions": lambda m, h, mask: (m.o(h), mask.nonzero().sum()),
    "written": lambda m, h, mask: m.o(written(h, mask)),
    "the size is read": lambda m, h, mask: m.o(h[mask].reshape(-1, h.shape[2])) * h[mask].shape[0],
    "rows of both": lambda m, h, mask: m.o(torch.cat([h[mask], h[~mask]])),
}


@pytest.mark.parametrize("verify", ["program", "shapes"])
@pytest.mark.parametrize("name", CALLS)
def test_what_data_picks_is_pruned_and_verified(name, verify):
    original = randomise(Net(CALLS[name]).double())
    model = copy.deepcopy(original)
    plan = sm.prune(model, (X, MASK), params=0.5, verify=verify)
    assert model.a.out_features < 16
    for mask in (MASK, ALL):
        assert_same(outputs(model, (X, mask)), outputs(masked(original, plan), (X, mask)))
    again = sm.Plan.from_json(plan.to_json()).apply(copy.deepcopy(original))
    assert again.a.out_features == model.a.out_features


def test_costs_count_the_most_rows_and_the_plan_says_so():
    plan = sm.prune(Net(CALLS["picked"]), (X.float(), MASK), params=0.5, dry_run=True)
    assert plan.costs["flops"].before == 2 * 10 * (6 * 16 + 16 * 3)
    assert any("depend on data" in note for note in plan.notes)


def test_a_size_that_nothing_bounds_is_refused_in_words():
    model = Net(lambda m, h, mask: m.o(h).sum() + torch.ones(mask.sum().item()).sum())
    with pytest.raises(sm.errors.CaptureError, match="a size depends on data, and nothing bounds it"):
        sm.capture(model, (X.float(), MASK))


def test_where_fake_tensors_cannot_run_real_ones_verify(monkeypatch):
    """verify="shapes" runs on zeros of the model's own device then; another shape is refused."""
    plan = sm.prune(Net(CALLS["written"]), (X.float(), MASK), params=0.5, dry_run=True)

    def fails(*_: Any) -> Any:
        raise sm.errors.SolvemutError("DynamicOutputShapeException")

    monkeypatch.setattr(room, "fake_run", fails)
    model = plan.apply(Net(CALLS["written"]), verify="shapes")
    assert model.a.out_features < 16
    with pytest.raises(sm.errors.ProgramMismatchError, match="would return shapes"):
        plan.apply(Net(lambda m, h, mask: m.o(h).sum()), verify="shapes")
    with pytest.raises(sm.errors.SolvemutError, match="would not run"):
        plan.apply(Net(lambda m, h, mask: m.o(h @ torch.eye(16))), verify="shapes")
