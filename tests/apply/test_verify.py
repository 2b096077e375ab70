"""The changed model against the program foretold: what is refused, what passes, and that both ways of looking agree."""

from __future__ import annotations

import copy
import functools
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import pytest
import torch
from nets import NETS
from oracles import assert_same, masked, outputs, randomise
from torch import nn

import solvemut as sm
import solvemut.apply.verify as room

X = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Module):
    def __init__(self, factor: float = 0.5, relu: bool = False, extra: bool = False) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 16), nn.Linear(16, 3)
        self.factor, self.relu, self.extra = factor, relu, extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x) * self.factor
        h = h.relu() if self.relu else h.tanh()
        y = self.o(h)
        return y.exp() if self.extra else y


def made(**arguments: Any) -> nn.Module:
    return randomise(Scaled(**arguments).double())


@functools.cache
def planned() -> Any:
    return sm.prune(made(), X, params=0.5, dry_run=True)


def from_file() -> Any:
    return sm.Plan.from_json(planned().to_json())


@pytest.mark.parametrize("plan", [planned, from_file])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"factor": 0.75}, r"at mul \(mul\) at test_verify.py.*\n  foretold: .*other=0.5.*\n  found: .*other=0.75"),
        ({"relu": True}, r"foretold: .*tanh.*\n  found: .*relu"),
        ({"extra": True}, r"foretold: return .*\n  found: .*exp"),
    ],
)
def test_another_program_is_refused_and_put_back(plan, other, words):
    model = made(**other)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sm.errors.ProgramMismatchError, match=words):
        plan().apply(model)
    assert model.a.out_features == 16
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for how in ("shapes", None):  # which look at less
        again = copy.deepcopy(model)
        plan().apply(again, verify=how)
        assert again.a.out_features < 16


def test_the_program_foretold_has_more_lines_than_the_one_found():
    plan = sm.prune(made(extra=True), X, params=0.5, dry_run=True)
    with pytest.raises(sm.errors.ProgramMismatchError, match=r"foretold: .*exp.*\n  found: +return"):
        plan.apply(made())


@pytest.mark.parametrize("how", ["all", "", 5, True, ["program"]])
def test_ways_to_verify_are_three(how):
    model = made()
    with pytest.raises(sm.errors.RequestError, match=r"verify=.*'program', 'shapes', None"):
        planned().apply(model, verify=how)
    with pytest.raises(sm.errors.RequestError, match="verify="):
        sm.prune(model, X, params=0.5, verify=how)
    assert model.a.out_features == 16


def test_the_mutator_passes_the_way_on(monkeypatch):
    seen = []
    monkeypatch.setattr("solvemut.apply.plan.verify_program", lambda plan, model, how: seen.append(how))
    mut = sm.Mutator(made(), X)
    mut.prune(params=0.9, verify="shapes")
    mut.prune(params=0.9, verify=None)
    mut.apply(mut.prune(params=0.9, dry_run=True))
    assert seen == ["shapes", None, "program"]


@pytest.mark.parametrize("name", NETS)
def test_both_ways_of_looking_find_the_program_foretold(name):
    """The calls of a run on fake tensors and the operations of a new capture: neither refuses what is right."""
    n = NETS[name]
    model = randomise(n.model())
    graph = sm.capture(model, n.args(), n.kw())
    problem = sm.Problem(graph)
    problem.maximize(sm.values.random(4))
    problem.add(graph.params <= max(0.8 * graph.params.now, 0.2))
    try:
        plan = problem.solve(gap=0.1)
    except sm.errors.InfeasibleError:
        plan = sm.Problem(graph).solve()
    plan.apply(model, verify=None)
    assert room._calls_agree(plan, model, graph.examples)
    room.verify_program(sm.Plan.from_json(plan.to_json()), model)


def test_a_hole_in_the_list_of_calls_leads_to_a_new_capture(monkeypatch):
    taken = []
    real = room.trace_example
    monkeypatch.setattr(room, "trace_example", lambda *a, **k: taken.append(1) or real(*a, **k))
    planned().apply(made())
    assert not taken
    monkeypatch.setattr(room, "_calls_agree", lambda *a: False)
    planned().apply(made())
    assert taken


class Masks(nn.Module):
    """A number that is a limit of the dtype: in half precision it is another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.o(h.masked_fill(h > 1, torch.finfo(h.dtype).min).clamp(min=-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_was_cast_since_is_still_the_model(dtype):
    plan = sm.prune(Masks(), X.float(), params=0.5, dry_run=True)
    for p in (plan, sm.Plan.from_json(plan.to_json())):
        model = p.apply(Masks().to(dtype))
        assert model.a.weight.dtype == dtype and model.a.out_features < 16


class Options:
    """An input that JSON cannot hold."""

    factor = 0.5

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options)

    def __hash__(self) -> int:
        return 0


def test_inputs_that_json_cannot_hold_are_verified_in_memory_and_told(tmp_path):
    class Takes(Scaled):
        def forward(self, x: torch.Tensor, options: Any = None) -> torch.Tensor:
            return super().forward(x) * options.factor

    torch.utils._pytree.register_constant(Options)
    model = randomise(Takes().double())
    original = copy.deepcopy(model)
    plan = sm.prune(model, (X, Options()), params=0.5)
    assert_same(outputs(model, (X, Options())), outputs(masked(original, plan), (X, Options())))
    assert any("cannot be verified" in note for note in plan.notes)
    with pytest.raises(sm.errors.ProgramMismatchError):
        sm.prune(copy.deepcopy(original), (X, Options()), params=0.5, dry_run=True).apply(
            randomise(type(model)(factor=3.0).double())
        )
    sm.Plan.from_json(plan.to_json()).apply(original)
    assert original.a.out_features == model.a.out_features
