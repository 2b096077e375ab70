"""Retention starves no layer of the models of benchmarks/budget.py, whatever their random weights are."""

from __future__ import annotations

from importlib.util import find_spec

import benchmarks_path  # noqa: F401  (lets the next line find it)
import budget
import numpy as np
import pytest
import torch

import solvemut as sm
from solvemut.plan import kept_units

WHY = "the models are torchvision's; benchmarks/README.md says how to install it"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason=WHY)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", budget.MODELS)
def test_no_group_of_eight_keeps_a_single_unit(name, seed):
    torch.manual_seed(seed)
    model = budget.torchvision_models().get_model(name, weights=None).eval()
    graph = sm.capture(model, torch.zeros(1, 3, 224, 224))
    for share in (0.5, 0.3):
        problem = sm.Problem(graph)
        problem.add(graph.flops <= share * graph.flops.now)
        kept = kept_units(graph, problem.solve(gap=5e-3))
        fewest = [int(kept[graph.coupling.group_of == g.index].sum()) for g in graph.groups if g.units >= 8]
        assert np.min(fewest) > 1, (share, min(fewest))
