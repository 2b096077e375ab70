"""What else than the forward in eval mode must go on working: train mode, other methods, further examples."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch
from oracles import assert_same, masked, randomise
from torch import nn

import solvemut as sm


class Branches(nn.Module):
    """An auxiliary head in train mode, and a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.o = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.aux, self.head = nn.Linear(16, 5), nn.Linear(16, 7)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.a(x)))

    def forward(self, x: torch.Tensor) -> Any:
        h = self.body(x)
        return (self.o(h), self.aux(h)) if self.training else self.o(h)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Plain(nn.Module):
    """Train mode makes no other calls, flags aside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.drop, self.o = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.dropout(self.drop(self.bn(self.a(x))), 0.3, self.training)
        return self.o(h)


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(model: nn.Module) -> nn.Module:
    return randomise(model.double())


def in_mode(model: nn.Module, training: bool) -> nn.Module:
    """The branches of train mode, with the statistics of eval mode."""
    model.train(training)
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.Dropout)):
            m.eval()
    return model


def test_train_mode_and_methods_equal_the_masked_network():
    model = made(Branches())
    original = copy.deepcopy(model)
    plan = sm.prune(model, X, methods={"project": X}, params=0.5)
    assert plan.sizes["a"][1] < 16
    reference = masked(original, plan)
    for training in (False, True):
        found, wanted = in_mode(model, training)(X), in_mode(reference, training)(X)
        assert_same(found if training else [found], wanted if training else [wanted])
    assert_same([model.eval().project(X)], [reference.eval().project(X)])


def test_layers_of_another_call_are_vertices_and_count_once():
    model = Branches()
    graph = sm.capture(model, torch.randn(4, 6), methods={"project": torch.randn(2, 6)})
    assert {"a", "o", "aux", "head"} <= {v.name for v in graph.vertices}
    assert graph.params.now == sum(p.numel() for p in model.parameters())
    assert graph.flops.now == sm.capture(model, torch.randn(4, 6), modes="eval").flops.now
    assert not any("not read" in note for note in graph.notes)
    aux = next(g for g in graph.groups if ("a.weight", 0) in g.sources)
    assert {("aux.weight", 1), ("head.weight", 1), ("o.weight", 1)} <= set(aux.dims)


def test_a_parameter_that_no_call_reads_is_warned_about():
    with pytest.warns(UserWarning, match=r"no captured call reads head\.weight, head\.bias"):
        sm.capture(Branches(), X.float())
    with pytest.warns(UserWarning, match=r"aux\.weight.*and 1 more"):
        sm.capture(Branches(), X.float(), modes=("eval",))


def test_what_nobody_reads_stays_and_is_told():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Branches()
        plan = sm.prune(model, X.float(), params=0.6)
    assert model.head.weight.shape == (7, 16)
    assert any(note.startswith("head.weight: not read") for note in plan.notes)


def test_train_mode_that_makes_the_same_calls_is_not_captured_again():
    graph = sm.capture(Plain(), X.float())
    assert [e.training for e in graph.examples] == [False]
    assert [e.training for e in sm.capture(Branches(), X.float(), methods={"project": X.float()}).examples] == [
        False,
        False,
        True,
    ]


def test_train_mode_that_cannot_run_is_told():
    class Drops(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and torch.rand(()) < 0.5:
                return self.o(self.a(x))
            return super().forward(x)

    graph = sm.capture(Drops(), X.float())
    assert any(note.startswith("train mode was not looked at") for note in graph.notes)
    assert "train mode was not looked at" in str(graph)


def test_a_second_example_of_the_forward():
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o, self.long = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.long if x.shape[0] > 8 else self.o)(self.a(x))

    model = made(Either())
    many = torch.randn(9, 6, dtype=torch.float64)
    original = copy.deepcopy(model)
    plan = sm.prune(model, X, methods={"forward": [many]}, params=0.5)
    reference = masked(original, plan)
    assert_same([model(X), model(many)], [reference(X), reference(many)])


def test_plans_of_several_calls_pass_through_files(tmp_path):
    model = made(Branches())
    fresh = copy.deepcopy(model)
    plan = sm.prune(model, X, methods={"project": X}, params=0.5, dry_run=True)
    plan.save(tmp_path / "plan.json")
    assert len(json.loads(plan.example)["more"]) == 2
    loaded = sm.Plan.load(tmp_path / "plan.json")
    loaded.apply(fresh)
    plan.apply(model)
    assert_same([fresh.eval().project(X)], [model.eval().project(X)])


def test_a_method_that_breaks_is_refused_with_nothing_changed():
    class Asks(Branches):
        def project(self, x: torch.Tensor) -> torch.Tensor:
            h = self.body(x)
            return self.head(h) * sum(1 for _ in range(h.shape[1]))

    model = made(Asks())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sm.errors.ProgramMismatchError, match="found:"):
        sm.prune(model, X, methods={"project": X}, params=0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_second_prune_goes_on():
    model = made(Branches())
    mut = sm.Mutator(model, X, methods={"project": X})
    mut.prune(params=0.7)
    between = copy.deepcopy(model)
    plan = mut.prune(params=0.7)
    reference = masked(between, plan)
    assert_same([*in_mode(model, True)(X), model.project(X)], [*in_mode(reference, True)(X), reference.project(X)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modes": "train"}, "modes"),
        ({"modes": ("eval", "test")}, "modes"),
        ({"modes": 5}, "modes"),
        ({"methods": {"nothing": X}}, "no method 'nothing'"),
        ({"methods": [X]}, "methods"),
        ({"methods": {"half": ()}}, "no method 'half' of its own"),  # it would change the model itself
    ],
)
def test_odd_modes_and_methods(arguments, words):
    with pytest.raises(sm.errors.RequestError, match=words):
        sm.capture(Branches(), X.float(), **arguments)
