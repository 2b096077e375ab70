"""Sizes that nobody sees: forwards that hide an operation, a choice or a number from whoever follows their calls.

All units are alive and values are random. A pruned network equals the masked one, or the size stays, or the plan is
refused with the model as it was. `hidden` is a size that no tracked int knows.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from oracles import assert_same, masked, outputs, randomise
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import solvemut as sm

FORWARDS: dict[str, Any] = {}
HOOKS: dict[str, Any] = {}


def forward(f: Any) -> Any:
    FORWARDS[f.__name__] = f
    return f


def hook(f: Any) -> Any:
    HOOKS[f.__name__] = f
    return f


def hidden(h: torch.Tensor) -> int:
    return len([0] * h.shape[1])


def sum_times_size(h: torch.Tensor) -> torch.Tensor:
    return h.sum(1, keepdim=True) * h.size(1)


def times_size_in_place(h: torch.Tensor) -> torch.Tensor:
    return h.mul_(h.size(1))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, and in use
    scripted, scripted_in_place = torch.jit.script(sum_times_size), torch.jit.script(times_size_in_place)


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.sum(1, keepdim=True) * hidden(h)

    @staticmethod
    def backward(ctx, g):
        return g


@torch.library.custom_op("solvemut_tests::times_its_size", mutates_args=())
def times_its_size(h: torch.Tensor) -> torch.Tensor:
    return h.sum(1, keepdim=True) * h.shape[1]


@times_its_size.register_fake
def _(h):
    return h.new_empty(h.shape[0], 1)


@torch.library.custom_op("solvemut_tests::times", mutates_args=())
def times(h: torch.Tensor, k: int) -> torch.Tensor:
    return h * k


@times.register_fake
def _(h, k):
    return torch.empty_like(h)


# -- operations that run unseen ----------------------------------------------------------------------------------------


@forward
def in_a_scripted_function(m, h):
    return m.o(h) * scripted(h)


@forward
def in_place_in_a_scripted_function(m, h):
    y = h * 1
    scripted_in_place(y)
    return m.o(y)


@forward
def in_place_with_functions_disabled(m, h):
    y = h * 1
    with torch._C.DisableTorchFunction():
        y.mul_(y.shape[1])
    return m.o(y)


@forward
def with_functions_disabled(m, h):
    with torch._C.DisableTorchFunction():
        y = h.sum(1, keepdim=True) * h.shape[1]
    return m.o(h) * y


@forward
def now_and_then_with_functions_disabled(m, h):
    y = h * 1
    if hidden(h) > 10:
        with torch._C.DisableTorchFunction():
            y.mul_(2)
    return m.o(y)


@forward
def in_an_autograd_function(m, h):
    return m.o(h) * Times.apply(h)


@forward
def in_an_operation_of_ones_own(m, h):
    return m.o(h) * times_its_size(h)


@forward
def given_to_an_operation_of_ones_own(m, h):
    return times(m.o(h), hidden(h))


@forward
def in_a_vmap(m, h):
    return m.o(h) * torch.vmap(lambda row: row.sum() * row.shape[0])(h)[:, None]


@forward
def in_a_checkpoint(m, h):
    return m.o(checkpoint(lambda v: v * hidden(v), h, use_reentrant=False))


@forward
def by_its_name_in_aten(m, h):
    return m.o(h) * torch.ops.aten.mul.Scalar(h.sum(1, keepdim=True), hidden(h))


# -- numbers that no argument tells ------------------------------------------------------------------------------------


@forward
def in_an_array(m, h):
    return m.o(h) * torch.from_numpy(np.array([hidden(h)]))


@forward
def in_an_array_of_a_tracked_size(m, h):
    return m.o(h) * torch.from_numpy(np.array([h.shape[1]]))


@forward
def in_a_buffer_of_bytes(m, h):
    return m.o(h) * torch.frombuffer(bytearray([hidden(h)]), dtype=torch.uint8)


@forward
def in_a_tensor_of_old(m, h):
    return m.o(h) * torch.FloatTensor([h.shape[1]])


@forward
def in_a_list(m, h):
    return m.o(h) * torch.tensor([hidden(h)])


@forward
def written_into_a_constant(m, h):
    return m.o(h) * torch.zeros(1).fill_(hidden(h))


@forward
def where_something_is_written(m, h):
    y = torch.zeros(3)
    y[hidden(h) // 8] = 1
    return m.o(h) * y


@forward
def kept_in_a_dict(m, h):
    m.state["n"] = h.shape[1]
    return m.o(h) * m.state["n"]


# -- choices that no call tells ----------------------------------------------------------------------------------------


@forward
def which_output(m, h):
    p, q = m.o(h), m.q(h)
    return p if hidden(h) > 10 else q


@forward
def which_output_first(m, h):
    p, q = m.o(h), m.q(h)
    return (p, q) if hidden(h) > 10 else (q, p)


@forward
def which_output_twice(m, h):
    p, q = m.o(h), m.q(h)
    return (p, q, p) if hidden(h) > 10 else (p, q, q)


@forward
def the_name_of_an_output(m, h):
    return {"y" if hidden(h) > 10 else "z": m.o(h)}


@forward
def how_outputs_are_nested(m, h):
    p, q = m.o(h), m.q(h)
    return ((p, q), []) if hidden(h) > 10 else (p, (q,))


@forward
def a_size_is_returned(m, h):
    return m.o(h), h.shape[1]


@forward
def a_hidden_size_is_returned(m, h):
    return m.o(h), hidden(h)


@forward
def which_tensor_attribute(m, h):
    return m.o(h) * (m.two if hidden(h) > 10 else m.three)


@forward
def which_tensor_of_a_list(m, h):
    return m.o(h) * m.several[hidden(h) > 10]


@forward
def which_global_tensor(m, h):
    return m.o(h) * (TWO if hidden(h) > 10 else THREE)


@forward
def which_buffer(m, h):
    return m.o(h) * (m.b if hidden(h) > 10 else m.c)


@forward
def which_layer(m, h):
    return (m.o if hidden(h) > 10 else m.q)(h)


@forward
def plain(m, h):
    return m.o(h) * m.two * m.several[0] * TWO


# -- hooks -------------------------------------------------------------------------------------------------------------


@hook
def after_the_model(m):
    m.register_forward_hook(lambda mod, args, y: y * mod.a.out_features)


@hook
def after_the_model_by_a_hidden_size(m):
    m.register_forward_hook(lambda mod, args, y: y * len([0] * mod.a.out_features))


@hook
def before_the_model(m):
    m.register_forward_pre_hook(lambda mod, args: (args[0] * mod.a.out_features,))


@hook
def after_a_layer(m):
    m.o.register_forward_hook(lambda mod, args, y: y * mod.in_features)


@hook
def another_output(m):
    m.register_forward_hook(lambda mod, args, y: y if mod.a.out_features > 10 else args[0][:, :3])


TWO, THREE = torch.full((3,), 2.0, dtype=torch.float64), torch.full((3,), 3.0, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, use: Any) -> None:
        super().__init__()
        self.use, self.state = use, {}
        self.a, self.o, self.q = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.two, self.three, self.several = TWO + 1, THREE + 1, [TWO + 2, THREE + 2]
        self.register_buffer("b", TWO.clone())
        self.register_buffer("c", THREE.clone())

    def forward(self, x: torch.Tensor) -> Any:
        return self.use(self, self.a(x))


def network(name: str) -> Net:
    torch.manual_seed(1)
    model = randomise(Net(FORWARDS.get(name, FORWARDS["plain"])).double())
    HOOKS.get(name, lambda m: None)(model)
    return model


def what_else(model: nn.Module, x: torch.Tensor) -> tuple[Any, list[Any]]:
    """The structure of an output, and what is no tensor in it."""
    leaves, form = pytree.tree_flatten(model(x))
    return form, [y for y in leaves if not isinstance(y, torch.Tensor)]


PRUNES = ("plain",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*FORWARDS, *HOOKS])
def test_what_nobody_sees_is_not_pruned_away(name):
    model, x = network(name), torch.randn(3, 6, dtype=torch.float64)
    original = copy.deepcopy(model)
    try:
        graph = sm.capture(model, x)
        problem = sm.Problem(graph)
        problem.maximize(sm.values.random(0))
        problem.add(graph["a"].out == 8)
        plan = problem.solve()
        plan.apply(model)
    except sm.errors.SolvemutError as e:
        assert name not in PRUNES
        assert "report this model" not in str(e)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
        assert model.a.out_features == 16
    else:
        assert_same(outputs(model, (x,)), outputs(masked(original, plan), (x,)))
        assert what_else(model, x) == what_else(original, x)
