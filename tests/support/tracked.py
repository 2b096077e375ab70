"""Small models to track values of, and what they are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles import randomise
from torch import nn

import solvemut as sm
from solvemut.values import unit_values
from solvemut.values.places import units_at

ORACLE = {True: sm.values.activation, False: sm.values.taylor}
MODES = pytest.mark.parametrize("activation", [True, False])


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(*batch) - 1).square().mean()


def backward(model: nn.Module, *batch: torch.Tensor) -> None:
    loss(model, batch).backward()


def mlp(seed: int = 0) -> nn.Sequential:
    return randomise(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double(), seed
    )


def batch_of(seed: int = 0, n: int = 5) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hooks_of(model: nn.Module) -> dict[str, Any]:
    """Every hook of every module and parameter, by kind."""
    found: dict[str, Any] = {}
    for name, m in model.named_modules():
        found[name] = {k: dict(v) for k, v in vars(m).items() if "hooks" in k and v is not None}
    for name, p in model.named_parameters():
        found[f"parameter {name}"] = (p._backward_hooks, p._post_accumulate_grad_hooks)
    return found


def placed(values: np.ndarray, graph: Any, activation: bool) -> np.ndarray:
    """The values of what some place shows; 0 for the rest."""
    shown = np.zeros(len(values))
    for units in units_at(graph.model, graph, activation).values():
        shown[units] = 1
    shown[0] = 0
    return shown * values


def on_batch(activation: bool, model: nn.Module, batch: tuple[Any, ...]) -> np.ndarray:
    return unit_values(ORACLE[activation]([batch], loss), model, sm.capture(model, batch))


def linear_to_mean() -> nn.Module:
    """Of input x, unit k of layer 0 is w_k x, and the gradient 1/3: its value is |w_k x| / 3."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [6.0], [-9.0]]))
        model[1].weight.fill_(1 / 3)
    return model


def feed(model: nn.Module, x: float) -> None:
    model(torch.full((1, 1), x, dtype=torch.float64)).sum().backward()
