"""Sizes that a forward computes with: a plan leaves the function alone, or the size stays, or the plan is refused.

Half the units of layer `a` are dead (all their weights are zero): where nothing else is in the way they are the ones to
go, and the output must not move.
"""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import numpy as np
import pytest
import torch
from oracles import assert_same, masked, outputs
from torch import nn
from torch.nn import functional as F

import solvemut as sm

WIDTH, KEPT = 16, 8
FORWARDS: dict[str, Any] = {}


def forward(f: Any) -> Any:
    FORWARDS[f.__name__] = f
    return f


class Net(nn.Module):
    """Linear a, then what the case says, then Linear o. `use(self, x, h)` returns the input of o, or the output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.use = FORWARDS[name]
        self.a, self.b, self.o = nn.Linear(6, WIDTH), nn.Linear(6, KEPT), nn.Linear(WIDTH, 3)
        self.emb, self.heads, self.table = nn.Embedding(10, WIDTH), 4, {WIDTH: 0.5, KEPT: 3.0}
        self.layer16, self.layer8 = nn.Identity(), nn.Tanh()

    def forward(self, x: torch.Tensor) -> Any:
        found = self.use(self, x, self.a(x))
        return self.o(found)


@forward
def out_features_to_a_power(m, x, h):
    return h * m.a.out_features**-0.5


@forward
def divided_by_out_features(m, x, h):
    return h / m.a.out_features


@forward
def in_features_of_the_next(m, x, h):
    return h * (m.o.in_features / 4)


@forward
def math_sqrt(m, x, h):
    return h * math.sqrt(m.a.out_features)


@forward
def numel_of_a_row(m, x, h):
    return h * h[0].numel()


@forward
def numel_of_all(m, x, h):
    return h / h.numel()


@forward
def length_of_a_weight(m, x, h):
    return h * len(m.a.weight)


@forward
def int_of_a_size(m, x, h):
    return h * int(h.shape[1])


@forward
def minus_a_size(m, x, h):
    return h * -h.shape[1]


@forward
def sum_over_minus_a_size(m, x, h):
    return h + (-h.shape[1])


@forward
def abs_of_a_size(m, x, h):
    return h * abs(h.shape[1])


@forward
def divmod_of_a_size(m, x, h):
    return h * divmod(h.shape[1], 5)[1]


@forward
def shifted_size(m, x, h):
    return h * (h.shape[1] << 1) + (h.shape[1] >> 1)


@forward
def bits_of_a_size(m, x, h):
    return h * (h.shape[1] & 12) + (h.shape[1] | 1) + (h.shape[1] ^ 3) + (~h.shape[1])


@forward
def bit_length_of_a_size(m, x, h):
    return h * h.shape[1].bit_length()


@forward
def rounded_size(m, x, h):
    return h * round(h.shape[1]) + math.floor(h.shape[1]) + math.ceil(h.shape[1]) + math.trunc(h.shape[1])


@forward
def log2_of_a_size(m, x, h):
    return h * math.log2(h.shape[1])


@forward
def logarithms_of_a_size(m, x, h):
    return h * math.log(h.shape[1]) + math.log10(h.shape[1]) + math.gcd(h.shape[1], 48) + math.isqrt(h.shape[1])


@forward
def numpy_of_a_size(m, x, h):
    return h * float(np.sqrt(h.shape[1]))


@forward
def numpy_of_a_shape(m, x, h):
    return h * float(np.prod(h.shape))


@forward
def tensor_of_a_size(m, x, h):
    return h * torch.tensor(h.shape[1])


@forward
def full_of_a_size(m, x, h):
    return h + torch.full((1,), h.shape[1])


@forward
def arange_of_a_size(m, x, h):
    return h + torch.arange(h.shape[1]).float().flip(0)


@forward
def numel_of_a_shape(m, x, h):
    return h * h.shape[1:].numel()


@forward
def product_of_a_shape(m, x, h):
    return h * math.prod(h.shape[1:])


@forward
def sum_of_a_shape(m, x, h):
    return h * sum(h.shape)


@forward
def maximum_of_a_shape(m, x, h):
    return h * max(h.shape)


@forward
def repeated_by_range(m, x, h):
    for k in range(h.shape[1]):
        h = h + k
    return h


@forward
def text_of_a_size(m, x, h):
    return h * getattr(m, f"layer{h.shape[1]}")(torch.ones(1)).sum()


@forward
def plain_text_of_a_size(m, x, h):
    return getattr(m, "layer" + str(h.shape[1]))(h)


@forward
def looked_up_by_size(m, x, h):
    return h * m.table[h.shape[1]]


@forward
def looked_up_with_a_default(m, x, h):
    return h * {8: 2.0}.get(h.shape[1], 1.0)


@forward
def list_of_that_length(m, x, h):
    return h * len([0] * h.shape[1])


@forward
def index_of_a_list(m, x, h):
    return h * list(range(40))[h.shape[1]]


@forward
def operator_index(m, x, h):
    return h * operator.index(h.shape[1])


@forward
def skip_when_shapes_agree(m, x, h):
    b = m.b(x)
    if h.shape == b.shape:
        h = h + b
    return h


@forward
def skip_when_sizes_agree(m, x, h):
    return h + m.b(x) if h.shape[1] == m.b.out_features else h


@forward
def branch_above(m, x, h):
    return torch.relu(h) if h.shape[1] > 10 else h


@forward
def branch_below(m, x, h):
    return torch.relu(h) if h.shape[1] < 10 else h


@forward
def branch_on_a_remainder(m, x, h):
    return torch.relu(h) if h.shape[1] % 16 == 0 else h


@forward
def branch_on_truth(m, x, h):
    return torch.relu(h) if h.shape[1] - 8 else h


@forward
def branch_on_membership(m, x, h):
    return torch.relu(h) if h.shape[1] in (16, 32) else h


@forward
def sizes_that_cancel(m, x, h):
    n = m.o.in_features
    return h + torch.ones(1, n * 0 + 1) + torch.ones(1, n - n + 1) + torch.ones(1, 2 * n // n - 1)


@forward
def branch_on_identity(m, x, h):
    return torch.relu(h) if h.shape[1] is WIDTH else h  # true of small ints, and not of one that is followed


@forward
def branch_on_identity_of_the_size_to_come(m, x, h):
    return torch.relu(h) if h.shape[1] is KEPT else h


@forward
def branch_on_type(m, x, h):
    return torch.relu(h) if type(h.shape[1]) is int else h


@forward
def size_of_a_layer_that_is_not_called(m, x, h):
    return h * (1 + (m.b.weight.shape[0] == 8)) + m.b.weight.shape[1]


@forward
def branch_on_size_against_batch(m, x, h):
    return torch.relu(h) if h.shape[1] > 2 * h.shape[0] else h


@forward
def branch_on_heads(m, x, h):
    y = h.view(h.shape[0], m.heads, 4)
    return (torch.relu(y) if m.heads > 2 else y).flatten(1)


@forward
def heads_as_a_number(m, x, h):
    return (h.view(h.shape[0], m.heads, 4) * m.heads).flatten(1)


@forward
def narrow_by_numbers(m, x, h):
    return torch.cat([h.narrow(1, 0, 4), h.narrow(1, 4, 12)], 1)


@forward
def narrow_in_the_middle(m, x, h):
    return torch.cat([h.narrow(1, 2, 6), h.narrow(1, 6, 10)], 1)


@forward
def tensor_split_by_indices(m, x, h):
    a, b = h.tensor_split([4], 1)
    return torch.cat([b, a], 1)


@forward
def tensor_split_in_the_middle(m, x, h):
    a, b = h.tensor_split([8], 1)
    return torch.cat([b, a], 1)


@forward
def slices_from_the_end(m, x, h):
    half = h.shape[1] // 2
    return torch.cat([h[:, -half:], h[:, :-half]], 1)


@forward
def slices_by_an_attribute_from_the_end(m, x, h):
    return torch.cat([h[:, -m.heads :], h[:, : -m.heads]], 1)


@forward
def tensor_split_by_sections(m, x, h):
    a, b = h.tensor_split(2, 1)
    return torch.cat([b, a], 1)


@forward
def winner_by_max(m, x, h):
    return h + F.one_hot(h.max(dim=1)[1] % 5, 16).to(h.dtype)


@forward
def winner_by_min(m, x, h):
    return h + h.min(dim=1, keepdim=True).indices.to(h.dtype)


@forward
def winner_by_cummax(m, x, h):
    return h + h.cummax(1).indices.to(h.dtype)


@forward
def winner_by_kthvalue(m, x, h):
    return h + h.kthvalue(2, 1, keepdim=True).indices.to(h.dtype)


@forward
def largest_value(m, x, h):
    return h + h.relu().max(dim=1, keepdim=True).values


@forward
def scaled_like_an_embedding(m, x, h):
    return h + (m.emb((x[:, 0] > 0).long()) * math.sqrt(m.emb.embedding_dim)).tanh()


@forward
def eye_of_a_size(m, x, h):
    return h + torch.eye(h.shape[1], dtype=h.dtype)[0]


@forward
def linspace_of_a_size(m, x, h):
    return h + torch.linspace(0, 1, h.shape[1], dtype=h.dtype)


@forward
def rolled_by_half(m, x, h):
    return h.roll(h.shape[1] // 2, 1)


@forward
def stride_of_a_value(m, x, h):
    return h * h.stride(0)


@forward
def bytes_of_a_value(m, x, h):
    return h * h.nbytes


@forward
def normalized_over_its_size(m, x, h):
    return F.layer_norm(h, h.shape[1:]) * h.shape[1]


@forward
def split_with_a_number(m, x, h):
    return torch.cat(h.split(4, 1)[::-1], 1)


@forward
def chunk_by_a_size(m, x, h):
    return torch.cat(h.chunk(h.shape[1] // 4, 1)[::-1], 1)


@forward
def diagonal_of_an_outer_product(m, x, h):
    return torch.diagonal(h.unsqueeze(1) * h.unsqueeze(2), 0, 1, 2)


@forward
def lower_triangle(m, x, h):
    return (h.unsqueeze(1) * h.unsqueeze(2)).tril(1).sum(1)


def dead_units(model: Net) -> Net:
    """Every other unit of layer a is zero from end to end, as are its columns in o and the embedding."""
    torch.manual_seed(3)
    gone = torch.arange(0, WIDTH, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.5 + 0.1)
        model.a.weight[gone] = 0
        model.a.bias[gone] = 0
        model.o.weight[:, gone] = 0
        model.emb.weight[:, gone] = 0
    return model.double()


def magnitudes(v: Any) -> Any:
    return 1.0 if v.nout != WIDTH else np.arange(WIDTH) % 2 + 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORWARDS)
def test_the_function_stays_or_the_size_does(name):
    model = dead_units(Net(name))
    x = torch.randn(3, 6, dtype=torch.float64)
    original = copy.deepcopy(model)
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.maximize(magnitudes)
    try:
        problem.add(graph["a"].out == KEPT)
        plan = problem.solve()
        plan.apply(model)
    except sm.errors.SolvemutError as e:
        assert len(str(e)) > 20
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
        assert model.a.out_features == WIDTH
    else:
        assert model.a.out_features == KEPT
        assert_same(outputs(model, (x,)), outputs(masked(original, plan), (x,)))
