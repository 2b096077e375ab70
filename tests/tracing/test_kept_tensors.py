"""Tensors that a forward keeps between calls, in a dict or a list, are no parameters: what is stale in them is told."""

from __future__ import annotations

import torch
from torch import nn

import solvemut as sm


class Cached(nn.Module):
    """Adds a bias that it computes once and keeps, except where it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.a, self.inner.kept = nn.Linear(4, 8), {}
        self.b = nn.Linear(8, 2)

    def bias(self) -> torch.Tensor:
        if torch.compiler.is_exporting():
            return self.inner.a.bias * 2
        if "bias" not in self.inner.kept:
            self.inner.kept["bias"] = self.inner.a.bias * 2
        return self.inner.kept["bias"]

    def forward(self, x):
        return self.b(self.inner.a(x) + self.bias())


def test_what_the_capture_did_not_read_is_told():
    model, x = Cached().eval(), torch.ones(1, 4)
    assert not sm.capture(model, x).notes
    with torch.no_grad():
        model(x)
    (note,) = sm.capture(model, x).notes
    assert note.startswith("inner.kept hold")
    plan = sm.prune(model, x, params=0.5)
    assert note in plan.notes
    model.inner.kept.clear()
    model(x)


def test_what_it_read_is_not():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scales = nn.Linear(4, 8), [torch.tensor(2.0)]

        def forward(self, x):
            return self.a(x) * self.scales[0]

    assert not sm.capture(Constant(), torch.ones(1, 4)).notes
