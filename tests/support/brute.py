"""Small networks whose plans can all be tried, and what a solve must find, given the best value of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError


class Block(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def top(values: np.ndarray, n: int) -> float:
    """The sum of the n largest."""
    return float(np.sort(values)[::-1][:n].sum())


def assert_best(problem: sm.Problem, best: float, model: nn.Module) -> sm.Plan | None:
    """The plan of that value, applied to the model from its file; none where nothing is feasible (-inf)."""
    if best == -np.inf:
        with pytest.raises(InfeasibleError):
            problem.solve()
        return None
    plan = problem.solve(gap=0.0)
    assert plan.objective == pytest.approx(best)
    chosen = {e.module: {e.option: e.given} for e in plan.edits if e.kind == "substitute"}
    sm.Plan.from_json(plan.to_json(), modules=chosen).apply(model)
    return plan
