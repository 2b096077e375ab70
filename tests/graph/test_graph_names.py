"""Every layer whose size changes is in `plan.sizes`, under a name that users know and that `graph[...]` takes."""

from __future__ import annotations

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from oracles import assert_same, masked, outputs, randomise
from torch import nn
from training import planned, training_set

import solvemut as sm

Seq = nn.Sequential


def model_of(forward, **shapes):
    """A module with these parameters and this forward."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in shapes.items():
                setattr(self, name, nn.Parameter(torch.ones(shape, dtype=torch.float64)))

        def forward(self, x):
            return forward(self, x)

    return randomise(Functional())


def halved(model, x, name):
    """Sizes of a plan that leaves half of a vertex; the plan is applied and held against the masked network."""
    model = randomise(model.double())
    x = x.double()
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.add(graph[name].out == graph[name].nout // 2)
    plan = problem.solve()
    assert all(k in graph and graph[k].nout == size for k, (size, _) in plan.sizes.items())
    wanted = outputs(masked(model, plan), (x,))
    plan.apply(model)
    assert_same(outputs(model, (x,)), wanted)
    return plan.sizes


# -- inputs without a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_with_and_without_a_batch(n, batch, transposed):
    conv = getattr(nn, f"ConvTranspose{n}d" if transposed else f"Conv{n}d")
    pool = getattr(nn, f"MaxPool{n}d")
    model = Seq(conv(3, 16, 3, padding=1), nn.ReLU(), pool(2), conv(16, 4, 1))
    x = torch.randn(*batch, 3, *[6] * n)
    assert halved(model, x, "0") == {"0": (16, 8), "3": (4, 4)}
    graph = sm.capture(model, x.double())
    assert [(v.nin, v.nout) for v in graph.vertices] == [([], 3), ([3], 8), ([8], 8), ([8], 8), ([8], 4)]
    assert graph["0"].dim == len(batch)


def test_pools_and_pixel_shuffle_without_a_batch():
    layers = (nn.Conv2d(3, 16, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1))
    assert halved(Seq(*layers), torch.randn(3, 8, 8), "0") == {"0": (16, 8), "4": (2, 2)}
    assert [v.nout for v in sm.capture(Seq(*layers), torch.randn(3, 8, 8).double()).vertices] == [3, 8, 8, 8, 2, 2]


def test_linear_without_a_batch():
    model = Seq(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert halved(model, torch.randn(8), "0") == {"0": (16, 8), "2": (4, 4)}


# -- weights that no layer holds ---------------------------------------------------------------------------------------

MLP = {"w": (16, 8), "b": (16,), "v": (3, 16)}
FUNCTIONAL = {
    "linear": (lambda m, x: F.linear(F.linear(x, m.w, m.b).relu(), m.v), MLP),
    "matmul": (lambda m, x: (x @ m.w + m.b).relu() @ m.v, {"w": (8, 16), "b": (16,), "v": (16, 3)}),
    "transposed": (lambda m, x: (x @ m.w.t() + m.b).relu() @ m.v.t(), MLP),
    "transpose": (lambda m, x: (x @ m.w.transpose(0, 1) + m.b).relu() @ m.v.transpose(0, 1), MLP),
    "einsum": (lambda m, x: torch.einsum("bh,oh->bo", torch.einsum("bi,hi->bh", x, m.w) + m.b, m.v), MLP),
    "computed": (lambda m, x: F.linear(F.linear(x, m.w * 2 + 1, m.b).relu(), m.v), MLP),
}


@pytest.mark.parametrize("kind", FUNCTIONAL)
def test_a_functional_weight_is_called_by_its_path(kind):
    forward, shapes = FUNCTIONAL[kind]
    assert halved(model_of(forward, **shapes), torch.randn(2, 8), "w") == {"w": (16, 8), "v": (3, 3)}


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_functional_convolution_is_called_by_its_weight(batch):
    model = model_of(lambda m, x: F.conv2d(F.conv2d(x, m.w).relu(), m.v), w=(16, 3, 3, 3), v=(5, 16, 1, 1))
    assert halved(model, torch.randn(*batch, 3, 6, 6), "w") == {"w": (16, 8), "v": (5, 5)}


def test_two_weights_that_meet_both_have_their_name():
    model = model_of(lambda m, x: F.linear(F.linear(x, m.w) + x @ m.u.t(), m.v), u=(16, 8), w=(16, 8), v=(3, 16))
    assert halved(model, torch.randn(2, 8), "w") == {"w": (16, 8), "u": (16, 8), "v": (3, 3)}


def test_a_weight_used_twice_counts_its_calls():
    model = model_of(lambda m, x: F.linear(F.linear(F.linear(x, m.w).relu(), m.u), m.u), w=(16, 8), u=(16, 16))
    sizes = sm.Problem(sm.capture(model, torch.randn(2, 8).double())).solve().sizes
    assert sizes == {"w": (16, 16), "u": (16, 16), "u#2": (16, 16)}


def test_the_old_names_still_find_their_operation():
    forward, shapes = FUNCTIONAL["linear"]
    graph = sm.capture(model_of(forward, **shapes), torch.randn(2, 8).double())
    assert graph["linear"].nout == graph["w"].nout == 16 and graph["w"].op == "linear"


def test_lists_of_parameters():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ws = nn.ParameterList([torch.ones(16, 8), torch.ones(2, 16)])

        def forward(self, x):
            return F.linear(F.linear(x, self.ws[0]).relu(), self.ws[1])

    assert halved(Listed(), torch.randn(2, 8), "ws.0") == {"ws.0": (16, 8), "ws.1": (2, 2)}


class Block(nn.Module):
    """A module of two weights, that returns the units of the second only."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.ones(16, 8)), nn.Parameter(torch.ones(8, 16))

    def forward(self, x):
        return F.linear(F.linear(x, self.w).relu(), self.v)


def test_a_weight_inside_a_module_has_a_size_of_its_own():
    model = Seq(Block(), nn.Linear(8, 2))
    assert halved(model, torch.randn(2, 8), "0.w") == {"0": (8, 8), "1": (2, 2), "0.w": (16, 8)}
    graph = sm.capture(model, torch.randn(2, 8).double())
    assert (graph["0.w"].op, graph["0.w"].nout, graph["0.w"].dim) == ("parameter", 8, 0)
    assert graph.frozen_because(graph["0.w"]) == "" and "0.w" in str(graph)
    problem = sm.Problem(graph)
    problem.keep("0.w")
    problem.maximize({"0.w": np.arange(8.0)})
    problem.add(graph["0"].out == 4)
    assert problem.solve().sizes["0.w"] == (8, 8)


# -- every network of the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NETS if not NETS[n].kw()])
def test_sizes_tell_of_every_parameter_that_shrinks(name):
    """A parameter dim that shrinks holds units of a vertex in `sizes` that loses as many, or takes them in."""
    model, args = training_set(name)
    try:
        plan = planned(model, args, 0.85)
    except sm.errors.InfeasibleError:
        pytest.skip("it cannot go that far")
    graph = sm.capture(model, args)
    assert all(vertex in graph for vertex in plan.sizes)
    told = np.zeros(graph.coupling.n_units, dtype=bool)
    for vertex, (before, after) in plan.sizes.items():
        assert graph[vertex].nout == before >= after
        told[graph[vertex].units] |= before > after
    for value, p in graph.trace.params.items():
        for d, index in plan.indices.get(p.name, {}).items():
            units = graph.coupling.units(graph.coupling.sources[value, d].labels)
            if not isinstance(index[0], list):
                assert told[np.delete(units.reshape(-1), index)].all(), (p.name, d)
