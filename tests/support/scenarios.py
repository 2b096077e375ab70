"""Scenarios: a small graph, requests one after another, and the numbers that must come out of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError

N = -1  # a new unit, in lists of those that are left


def up(v: Any) -> np.ndarray:
    """1, 2, ... for the units of a vertex, or for so many."""
    return np.arange(1, (v if isinstance(v, int) else v.nout) + 1)


def down(v: Any) -> np.ndarray:
    return up(v)[::-1].copy()


class Net:
    """A builder whose vertices go by name: `Net(x=3).dense("a", "x", 5).mutator("a")`."""

    def __init__(self, **inputs: int) -> None:
        self.net = sm.Builder()
        self.at: dict[str, Any] = {k: self.net.input(k, n) for k, n in inputs.items()}
        self.sizes = list(inputs.values())
        self.space: tuple[int, ...] = ()  # of images

    def layer(self, name: str, source: str, module: nn.Module) -> Net:
        self.at[name] = self.net.layer(module, self.at[source], name=name)
        return self

    def dense(self, name: str, source: str, size: int, width: int | None = None, bias: bool = True) -> Net:
        """`width` is that of the source, where the builder does not know it."""
        return self.layer(name, source, nn.Linear(width or self.at[source].size, size, bias=bias))

    def conv(self, name: str, source: str, size: int, kernel: int = 1, **options: Any) -> Net:
        self.space = (7, 7)
        module = nn.Conv2d(self.at[source].size, size, kernel, padding=kernel // 2, **options)
        return self.layer(name, source, module)

    def cat(self, name: str, *sources: str) -> Net:
        self.at[name] = self.net.concat(*(self.at[s] for s in sources), name=name)
        return self

    def same(self, name: str, source: str) -> Net:
        """A vertex that keeps the units of its source."""
        return self.apply(name, torch.relu, source)

    def add(self, name: str, a: str, b: str) -> Net:
        return self.apply(name, torch.add, a, b)

    def apply(self, name: str, function: Callable[..., Any], *args: Any) -> Net:
        """Strings among the arguments are names of vertices."""
        given = [self.at[a] if isinstance(a, str) else a for a in args]
        self.at[name] = self.net.apply(function, *given, name=name)
        return self

    def mutator(self, *outputs: str, **options: Any) -> sm.Mutator:
        torch.manual_seed(0)
        model = self.net.build(*(self.at[o] for o in outputs)).eval()
        return sm.Mutator(model, tuple(torch.ones(2, n, *self.space) for n in self.sizes), **options)


def sizes(mut: sm.Mutator) -> dict[str, int]:
    return {v.name: v.nout for v in mut.graph if v.op != "input"}


def feeds(mut: sm.Mutator, name: str) -> list[str]:
    return [v.name for v in mut.graph.inputs(name)]


def runs(mut: sm.Mutator) -> None:
    """The model runs on other numbers, and its graph is what a fresh look at it gives."""
    x = tuple(torch.randn(3, *e.shape[1:]) for e in mut.graph.examples[0].leaves)
    mut.model(*x)
    fresh = sm.capture(mut.model, x)
    assert [(v.name, v.nin, v.nout) for v in fresh] == [(v.name, v.nin, v.nout) for v in mut.graph]
    assert fresh.params.now == mut.graph.params.now


def seen(mut: sm.Mutator, name: str) -> list[float]:
    """What a vertex puts out for an example of ones."""
    found: list[torch.Tensor] = []
    handle = mut.model.get_submodule(name).register_forward_hook(lambda m, args, out: found.append(out))
    mut.model(*(torch.ones(1, *e.shape[1:]) for e in mut.graph.examples[0].leaves))
    handle.remove()
    return [round(x, 4) for x in found[0][0].flatten(1)[:, 0].tolist()] if found[0].dim() > 2 else found[0][0].tolist()


@dataclass(frozen=True)
class Step:
    """A request, and all that is said of what comes of it."""

    do: Callable[[sm.Mutator], Any]
    sizes: Mapping[str, int] = field(default_factory=dict)  # by vertex
    nin: Mapping[str, Sequence[int]] = field(default_factory=dict)
    feeds: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what a vertex reads
    kept: Mapping[tuple[str, int], Sequence[int]] = field(default_factory=dict)  # by parameter and dim; N: new
    seen: Mapping[str, Sequence[float]] = field(default_factory=dict)  # what vertices put out for ones
    changed: Sequence[str] | None = None  # the vertices whose sizes changed: these and no others
    warns: int = 0
    refused: str = ""  # the words of the error; then everything is as it was
    same: bool = False  # whether the outputs of the model are what they were


@dataclass(frozen=True)
class Scenario:
    """`why` says whether the numbers are the unique optimum, or forced, and what is better here than elsewhere."""

    net: Callable[[], Net]
    outputs: Sequence[str]
    steps: Sequence[Step]
    why: str = ""
    begin: Callable[[nn.Module], Any] = lambda model: None  # sets the weights


def play(scenario: Scenario) -> None:
    """Run the steps of a scenario, and hold each against its numbers."""
    mut = scenario.net().mutator(*scenario.outputs)
    with torch.no_grad():
        scenario.begin(mut.model)
    for step in scenario.steps:
        if step.refused:
            _refused(mut, step)
        else:
            _taken(mut, step)
    runs(mut)


def _refused(mut: sm.Mutator, step: Step) -> None:
    before, graph, history = snapshot(mut.model), mut.graph, mut.history
    told = ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            step.do(mut)
        except (InfeasibleError, RequestError) as e:
            told = str(e)
    assert step.refused in told and told, told or "the request was met"
    assert len(warned) == step.warns
    assert_untouched(before, snapshot(mut.model))
    assert mut.graph is graph and mut.history == history


def _taken(mut: sm.Mutator, step: Step) -> None:
    old = {v.name: (v.nin, v.nout) for v in mut.graph}
    x = tuple(torch.randn(3, *e.shape[1:]) for e in mut.graph.examples[0].leaves)
    before = mut.model(*x)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        plan = step.do(mut)
    assert len(warned) == step.warns, [str(w.message) for w in warned]
    graph = mut.graph
    assert {k: graph[k].nout for k in step.sizes} == dict(step.sizes)
    assert {k: graph[k].nin for k in step.nin} == dict(step.nin)
    assert {k: feeds(mut, k) for k in step.feeds} == dict(step.feeds)
    tensors = dict(mut.model.named_parameters())
    found = {(k, d): plan.indices.get(k, {}).get(d, list(range(tensors[k].shape[d]))) for k, d in step.kept}
    assert found == {key: list(index) for key, index in step.kept.items()}
    assert {k: seen(mut, k) for k in step.seen} == dict(step.seen)
    if step.changed is not None:
        assert [v.name for v in graph if (v.nin, v.nout) != old[v.name]] == list(step.changed)
    if step.same:
        torch.testing.assert_close(mut.model(*x), before, atol=1e-5, rtol=1e-5)
