"""What a solve must find, given the best value that brute force found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import solvemut as sm
from solvemut.errors import InfeasibleError


def top(values: np.ndarray, n: int) -> float:
    """The sum of the n largest."""
    return float(np.sort(values)[::-1][:n].sum())


def assert_best(problem: sm.Problem, best: float, model: torch.nn.Module) -> sm.Plan | None:
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
