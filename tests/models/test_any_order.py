"""A model that is changed again and again: every mutation there is, in any order, feasible or not.

After each step the model runs, a fresh look at it finds what the Mutator says, parameters and optimizer state agree in
shape, units that stay keep their weights and state, outputs are what they were unless the plan says why not, and what
cannot be done has changed nothing.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError

NIGHTLY = os.environ.get("SOLVEMUT_NIGHTLY") == "1"
DONE: dict[str, int] = {}


def images(draw: Any) -> tuple[sm.Builder, list[Any], tuple[torch.Tensor, ...]]:
    """Convolutions with norms, joined by sums and concats."""
    net = sm.Builder()
    made = [net.input("x", 3)]
    for k in range(draw(st.integers(2, 5))):
        source = draw(st.sampled_from(made[-3:]))
        size = draw(st.integers(2, 6))
        groups = draw(st.sampled_from([1, 1, 2])) if source.size % 2 == 0 and size % 2 == 0 else 1
        v = net.layer(nn.Conv2d(source.size, size, 3, padding=1, groups=groups), source, name=f"conv{k}")
        if draw(st.booleans()):
            v = net.layer(nn.BatchNorm2d(size), v, name=f"bn{k}")
        if draw(st.booleans()):
            v = net.apply(torch.relu, v, name=f"relu{k}")
        same = [m for m in made[1:] if m.size == size]
        if same and draw(st.booleans()):
            v = v + draw(st.sampled_from(same))
        elif len(made) > 1 and draw(st.booleans()):
            v = net.concat(v, draw(st.sampled_from(made)), name=f"cat{k}")
        made.append(v)
    head = net.layer(nn.Conv2d(made[-1].size, 2, 1), made[-1], name="head")
    return net, [head], (torch.randn(4, 3, 6, 6),)


def features(draw: Any) -> tuple[sm.Builder, list[Any], tuple[torch.Tensor, ...]]:
    """Linear layers of two inputs."""
    net = sm.Builder()
    made = [net.input("x", 3), net.input("y", 2)]
    for k in range(draw(st.integers(2, 6))):
        source = draw(st.sampled_from(made[-3:]))
        v = net.layer(nn.Linear(source.size, draw(st.integers(2, 6))), source, name=f"fc{k}")
        same = [m for m in made[2:] if m.size == v.size]
        if same and draw(st.booleans()):
            v = draw(st.sampled_from(same)) + v
        elif draw(st.booleans()):
            v = net.concat(draw(st.sampled_from(made)), v, draw(st.sampled_from(made)), name=f"cat{k}")
        made.append(v)
    head = net.layer(nn.Linear(made[-1].size, 2), made[-1], name="head")
    return net, [head], (torch.randn(5, 3), torch.randn(5, 2))


class Mutated(RuleBasedStateMachine):
    mut: sm.Mutator | None = None

    @initialize(data=st.data(), of_images=st.booleans())
    def start(self, data: Any, of_images: bool) -> None:
        torch.manual_seed(data.draw(st.integers(0, 99)))
        net, outputs, self.inputs = (images if of_images else features)(data.draw)
        model = net.build(*outputs).eval()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.mut = sm.Mutator(model, self.inputs, optimizer=self.optimizer)
        self.count = 0
        self.train()

    def train(self) -> None:
        self.mut.model.train()
        self.optimizer.zero_grad()
        self.mut.model(*self.inputs).square().mean().backward()
        self.optimizer.step()
        self.mut.model.eval()

    def layers(self) -> list[str]:
        return [v.name for v in self.mut.graph if v.makes_units]

    def inner(self) -> list[str]:
        return [v.name for v in self.mut.graph if v.op != "input"]

    def step(self, name: str, call: Any) -> None:
        """One mutation, with all that must hold after it."""
        model, graph = self.mut.model, self.mut.graph
        before, y, code = snapshot(model, self.optimizer), model(*self.inputs), model.code
        old = {k: p.detach().clone() for k, p in model.named_parameters()}
        moments = {
            k: self.optimizer.state[p]["exp_avg"].clone()
            for k, p in model.named_parameters()
            if p in self.optimizer.state
        }
        try:
            plan = call()
        except (InfeasibleError, RequestError):
            DONE[f"{name}, refused"] = DONE.get(f"{name}, refused", 0) + 1
            assert_untouched(before, snapshot(model, self.optimizer))
            assert model.code == code and self.mut.graph is graph
            return
        DONE[name] = DONE.get(name, 0) + 1
        if not plan.alters:
            scale = max(1.0, float(y.detach().abs().max()))
            assert torch.allclose(model(*self.inputs), y, atol=1e-5 * scale), plan
        params = dict(model.named_parameters())
        for key in old.keys() & params.keys():
            self.kept(plan.indices.get(key, {}), old[key], params[key])
            if key in moments:
                self.kept(plan.indices.get(key, {}), moments[key], self.optimizer.state[params[key]]["exp_avg"])

    def kept(self, dims: Any, old: torch.Tensor, new: torch.Tensor) -> None:
        """Slices that stay hold what they held."""
        if any(index and isinstance(index[0], list) for index in dims.values()):
            return
        for d, index in dims.items():
            new = new.index_select(d, torch.tensor([k for k, i in enumerate(index) if i >= 0], dtype=torch.long))
            old = old.index_select(d, torch.tensor([i for i in index if i >= 0], dtype=torch.long))
        assert torch.equal(old, new)

    @precondition(lambda self: self.mut and self.layers())
    @rule(data=st.data())
    def resize(self, data: Any) -> None:
        names = data.draw(st.lists(st.sampled_from(self.layers()), min_size=1, max_size=2, unique=True))
        wish = st.one_of(st.integers(-3, 3), st.integers(-3, 3).map(sm.relaxed), st.integers(1, 7).map(sm.exactly))
        changes = {n: data.draw(wish) for n in names}
        self.step("resize", lambda: self.mut.resize(changes))

    @precondition(lambda self: self.mut)
    @rule(share=st.sampled_from([0.4, 0.7, 0.9]), grow=st.sampled_from([None, None, 2]))
    def prune(self, share: float, grow: Any) -> None:
        self.step("prune", lambda: self.mut.prune(params=share, grow=grow, gap=0.0))

    @precondition(lambda self: self.mut and self.mut.graph.params.now < 2500)
    @rule(most=st.integers(1, 3))
    def grow(self, most: int) -> None:
        self.step("grow", lambda: self.mut.prune(grow=most, values=sm.values.constant()))

    @precondition(lambda self: self.mut and len(self.mut.graph) < 14)
    @rule(data=st.data(), same=st.booleans())
    def insert(self, data: Any, same: bool) -> None:
        name = data.draw(st.sampled_from(self.inner()))
        v, self.count = self.mut.graph[name], self.count + 1
        size = v.nout if same else data.draw(st.integers(1, 6))
        is_image = len(self.inputs[0].shape) == 4
        module = nn.Conv2d(size, size, 1) if is_image else nn.Linear(size, size)
        self.step("insert", lambda: self.mut.insert(name, sm.identity_init(module), f"new{self.count}"))

    @precondition(lambda self: self.mut and len(self.mut.graph) > 4)
    @rule(data=st.data(), reconnect=st.sampled_from(["all", "all", "none"]))
    def remove(self, data: Any, reconnect: str) -> None:
        name = data.draw(st.sampled_from(self.inner()))
        self.step("remove", lambda: self.mut.remove(name, reconnect))

    @precondition(lambda self: self.mut and len(self.mut.graph) < 14)
    @rule(data=st.data(), merge=st.sampled_from(["concat", "add"]))
    def connect(self, data: Any, merge: str) -> None:
        a = data.draw(st.sampled_from([v.name for v in self.mut.graph]))
        b = data.draw(st.sampled_from(self.inner()))
        position = data.draw(st.sampled_from([None, 0, 1]))
        self.step("connect", lambda: self.mut.connect(a, b, position, merge))

    @precondition(lambda self: self.mut)
    @rule(data=st.data())
    def disconnect(self, data: Any) -> None:
        several = [v for v in self.mut.graph if len(v.ins) > 1]
        if several:
            v = data.draw(st.sampled_from(several))
            source = data.draw(st.sampled_from(self.mut.graph.inputs(v)))
            self.step("disconnect", lambda: self.mut.disconnect(source, v))

    @precondition(lambda self: self.mut)
    @rule()
    def train_on(self) -> None:
        self.train()

    @invariant()
    def a_fresh_look_finds_the_same(self) -> None:
        if self.mut is None:
            return
        x = tuple(torch.randn(3, *t.shape[1:]) for t in self.inputs)
        assert self.mut.model(*x).isfinite().all()
        fresh = sm.capture(self.mut.model, self.inputs)
        assert [(v.name, v.nin, v.nout) for v in fresh] == [(v.name, v.nin, v.nout) for v in self.mut.graph]
        assert (fresh.params.now, fresh.flops.now) == (self.mut.graph.params.now, self.mut.graph.flops.now)
        held = {id(p) for g in self.optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in self.mut.model.parameters()}
        for p in self.mut.model.parameters():
            state = self.optimizer.state.get(p, {})
            assert all(t.shape in ((), p.shape) for t in state.values() if isinstance(t, torch.Tensor))


Mutated.TestCase.settings = settings(max_examples=400 if NIGHTLY else 14, stateful_step_count=12, deadline=None)
TestMutated = Mutated.TestCase


def test_every_mutation_was_made_and_some_were_refused() -> None:
    if not DONE:
        pytest.skip("run the whole file")
    assert {"resize", "prune", "grow", "insert", "remove", "connect", "disconnect"} <= set(DONE)
    assert any("refused" in name for name in DONE)
