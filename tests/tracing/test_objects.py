"""Objects among inputs and outputs: caches, dataclasses, named tuples, containers of a class of their own."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from oracles import assert_same, masked, randomise
from torch import nn
from torch.utils import _pytree as pytree

import solvemut as sm

X = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Layer:
    __slots__ = ("dtype", "keys")

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys, self.dtype = keys, keys.dtype


class Cache:
    """As key-value caches are: a list of layers, each with tensors, that the forward writes to."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def update(self, keys: torch.Tensor) -> torch.Tensor:
        self.layers.append(Layer(keys))
        return torch.stack([x.keys for x in self.layers]).sum(0)


@dataclass(frozen=True)
class Output:
    logits: torch.Tensor
    cache: Cache | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Pair(NamedTuple):
    logits: torch.Tensor
    cache: Cache


class Named(dict):
    def __getattr__(self, name: str) -> Any:
        return self[name]


class Net(nn.Module):
    def __init__(self, give: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.k, self.o, self.give = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(20, 3), give

    def forward(self, x: torch.Tensor, cache: Cache | None = None) -> Any:
        cache = Cache() if cache is None else cache
        h = self.a(x).relu()
        return self.give(self.o(torch.cat([h, cache.update(self.k(h))], 1)), cache)


GIVEN: dict[str, Callable[..., Any]] = {
    "dataclass": Output,
    "named tuple": Pair,
    "tuple": lambda y, c: (y, c),
    "nested dicts": lambda y, c: {"a": {"b": [y, (c,)], "n": None}},
    "dict of a class": lambda y, c: Named(logits=y, cache=c),
    "user dict": lambda y, c: UserDict(logits=y, cache=c),
    "nested": lambda y, c: Output(y, c, {"pair": Pair(y * 2, c), "note": "text", "kind": type(c)}),
}


def leaves(x: Any) -> list[torch.Tensor]:
    """The tensors of an output, found by hand."""
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, (dict, UserDict)):
        return [t for v in x.values() for t in leaves(v)]
    if isinstance(x, (list, tuple)):
        return [t for v in x for t in leaves(v)]
    if isinstance(x, Layer):
        return [x.keys]
    return [t for v in vars(x).values() for t in leaves(v)] if isinstance(x, (Output, Cache)) else []


@pytest.mark.parametrize("verify", ["program", "shapes"])
@pytest.mark.parametrize("name", GIVEN)
def test_outputs_that_are_objects(name, verify):
    original = randomise(Net(GIVEN[name]).double())
    model = copy.deepcopy(original)
    plan = sm.prune(model, X, params=0.5, verify=verify)
    assert not {Layer, Cache, Output, Named, UserDict} & set(pytree.SUPPORTED_NODES), "nothing is registered for them"
    assert model.a.out_features < 16 and model.k.out_features == 4, "what is returned stays"
    with torch.no_grad():
        assert_same(leaves(model(X)), leaves(masked(original, plan)(X)))
    sm.Plan.from_json(plan.to_json()).apply(original)


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_that_are_objects(by_name):
    original, cache = randomise(Net(Output).double()), Cache()
    cache.update(torch.randn(2, 4, dtype=torch.float64))
    args, kwargs = ((X,), {"cache": cache}) if by_name else ((X, cache), {})
    model = copy.deepcopy(original)
    mut = sm.Mutator(model, args, kwargs)
    assert len(cache.layers) == 1, "the user's object is only read"
    plan = mut.prune(params=0.5)
    assert len(cache.layers) == 1 and model.a.out_features < 16
    with torch.no_grad():
        found, wanted = model(X, copy.deepcopy(cache)), masked(original, plan)(X, copy.deepcopy(cache))
    assert len(leaves(found)) == 3
    assert_same(leaves(found), leaves(wanted))
    assert any("a plan read from a file cannot be verified" in note for note in plan.notes)
    mut.resize({"a": +2})
    assert len(leaves(model(X, cache))) == 3


def test_what_an_object_returns_is_output_and_the_notes_say_how_to_free_it():
    graph = sm.capture(Net(Output), X.float())
    assert "output" in graph.frozen_because(graph["k"])
    assert any("Output that the call returns" in note for note in graph.notes)
    plain = sm.capture(Net(lambda y, c: y), X.float())
    assert plain.frozen_because(plain["k"]) == "" and not any("call returns" in note for note in plain.notes)


def test_a_form_that_differs_is_another_program():
    plan = sm.prune(Net(Output), X.float(), params=0.5, dry_run=True)
    with pytest.raises(sm.errors.ProgramMismatchError, match="Output"):
        plan.apply(Net(Pair))
