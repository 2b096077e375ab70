"""Vertices of functions and nodes of torch.fx have names of their own: an edit finds the one that is meant."""

from __future__ import annotations

import torch
from torch import nn

import solvemut as sm


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x))
        x = torch.relu(self.b(x)).view(x.shape[0], -1)
        return self.d(torch.relu(self.c(x)))


def mixed() -> sm.Mutator:
    torch.manual_seed(0)
    return sm.Mutator(sm.editable(Mixed(), torch.ones(2, 3)), torch.ones(2, 3))


def test_a_function_is_found_beside_a_layer_that_runs_the_same():
    mut = mixed()
    assert [v.name for v in mut.graph if v.op == "relu"] == ["act", "relu_1", "relu_2"]
    x, m = torch.randn(5, 3), mut.model
    y = m.d(torch.relu(m.c(m.b(torch.relu(m.a(x))))))
    mut.remove("relu_1")
    assert torch.allclose(mut.model(x), y, atol=1e-6) and not torch.allclose(mixed().model(x), y, atol=1e-6)


def test_a_function_is_found_after_another_one_went():
    mut = mixed()
    x, m = torch.randn(5, 3), mut.model
    mut.remove("relu_1")
    assert [mut.graph.inputs(v)[0].name for v in mut.graph if v.op == "relu"] == ["a", "c"]
    mut.remove("relu_1")
    assert torch.allclose(mut.model(x), m.d(m.c(m.b(torch.relu(m.a(x))))), atol=1e-6)
    mut.insert(after="c", module=nn.Identity(), name="same")
    mut.connect("c", "d", merge="add")
    assert mut.model(x).shape == (5, 2)


def test_parameters_that_the_graph_reads_go_with_what_read_them():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scale, self.b = nn.Linear(3, 4), nn.Parameter(torch.rand(4)), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.b(h + torch.relu(h * self.scale))

    mut = sm.Mutator(sm.editable(Scaled()), torch.ones(2, 3))
    mut.remove("relu", reconnect="none")
    assert set(dict(mut.model.named_parameters())) == {"a.weight", "a.bias", "b.weight", "b.bias"}
