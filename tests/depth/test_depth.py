"""Branches that may go: each by itself on every network, and as switches of a program against brute force."""

from __future__ import annotations

import copy
import itertools

import families_attention  # noqa: F401  (enters its families in the table)
import families_vision  # noqa: F401
import nets_attention  # noqa: F401
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from brute import Block, assert_best, top
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Net
from oracles import assert_same, count_flops, count_params, outputs, randomise
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError

ZOO: dict[str, Net] = {**NETS, **{f"family {k}": f.net for k, f in FAMILIES.items()}}


def residual(inner: tuple[int, ...] = (5, 3, 4)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *(Block(4, n) for n in inner), nn.Linear(4, 2)).double().eval()


def bypassed(model: nn.Module, module: str, gives: str, args: tuple, kwargs: dict) -> object:
    """What a model gives with zeros, or its input, for what one module gives."""

    def other(_module: nn.Module, given: tuple, named: dict, out: object) -> object:
        first = out[0] if isinstance(out, tuple) else out
        new = torch.zeros_like(first) if gives == "zeros" else (*given, *named.values())[0]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = model.get_submodule(module).register_forward_hook(other, with_kwargs=True)
    try:
        return outputs(model, args, kwargs)
    finally:
        handle.remove()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ZOO)
def test_a_network_without_a_branch_is_that_with_zeros_for_it(name: str) -> None:
    net = ZOO[name]
    model, args, kwargs = randomise(net.model()), net.args(), net.kw()
    graph = sm.capture(model, args, kwargs)
    found = graph.removable
    for r in found[:2] + found[2:][-1:]:  # branches come first, layers last
        other = copy.deepcopy(model)
        problem = sm.Problem(graph)
        problem.drop([r], {r.name: -1.0})  # better without it, and nothing else is asked
        plan = problem.solve()
        assert {e.module for e in plan.edits if e.kind == "bypass"} == set(r.branch.modules)
        sm.Plan.from_json(plan.to_json()).apply(other)
        assert_same(outputs(other, args, kwargs), bypassed(model, r.edits[-1].module, r.edits[-1].gives, args, kwargs))
        assert plan.costs["params"].after == count_params(other) <= plan.costs["params"].before
        if net.flops:
            assert plan.costs["flops"].after == count_flops(other, args, kwargs) < plan.costs["flops"].before


def test_which_branches_are_found() -> None:
    found = {name: [r.name for r in sm.capture(n.model(), n.args(), n.kw()).removable] for name, n in SOME.items()}
    assert found == {
        "residual": ["1", "2", "3"],
        "MLP": [],
        "two sides": ["main", "short"],  # a side of the sum, and a layer on the other
        "plain": ["1", "3", "3.0", "3.2"],  # a block, and the layers in it
        "experts": ["experts.0", "experts.1", "experts.2"],
    }


class TwoSides(nn.Module):
    """Both sides of the sum have layers of their own; the stem is on both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.main, self.short = (
            nn.Linear(3, 4),
            nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)),
            nn.Linear(4, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.main(x) + self.short(x)


class Experts(nn.Module):
    """A mixture: each expert is run, and added up by what its gate says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gates = self.gate(x).softmax(-1)
        found = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            found = found + gates[:, k : k + 1] * expert(x)
        return self.head(x + found)


SOME = {
    "residual": Net("residual", residual, ((2, 3),), ()),
    "MLP": Net("MLP", lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ((2, 3),), ()),
    "two sides": Net("two sides", TwoSides, ((2, 3),), ()),
    "plain": Net("plain", lambda: plain(), ((2, 3),), ()),
    "experts": Net("experts", Experts, ((2, 3),), ()),
}


def assert_best_within(
    problem: sm.Problem, limit: float, lost: dict[str, float], most: int | None, best: float
) -> None:
    """With whatever may go and so many parameters, what brute force found."""
    graph, model = problem.graph, problem.graph.model
    problem.add(graph.params <= limit)
    problem.drop(graph.removable, lost, most)
    if plan := assert_best(problem, best, model):
        assert plan.costs["params"].after == count_params(model) <= limit


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    wrapped = nn.Sequential(nn.Linear(4, 4))  # runs what its one layer runs
    return nn.Sequential(nn.Linear(3, 4), wrapped, nn.ReLU(), block, nn.Linear(4, 2)).double().eval()


@settings(max_examples=15)
@given(st.floats(0.1, 1.0), st.integers(0, 99), st.sampled_from([None, 1, 2]))
def test_layers_of_matching_shape_against_brute_force(share: float, seed: int, most: int | None) -> None:
    model, x = plain(), torch.ones(2, 3, dtype=torch.float64)
    draw = np.random.default_rng(seed)
    lost = {n: float(draw.normal()) for n in ("1", "3", "3.0", "3.2")}
    values = {n: draw.normal(size=4) for n in ("0", "1.0", "3.0", "3.2")}

    limit, best = share * 86, -np.inf
    for gone in itertools.product((0, 1), repeat=4):
        one, block, first, second = gone
        if (block and (first or second)) or (most is not None and sum(gone) > most):
            continue
        missed = sum(lost[n] for n, g in zip(("1", "3", "3.0", "3.2"), gone, strict=True) if g)
        # the units of what becomes one all stay
        free = [range(1, 5)] * 4
        for left, right, g in ((0, 1, one), (1, 3, block), (1, 2, first), (2, 3, second)):
            if g:
                free[left] = free[right] = [4]
        if block:
            free[2] = [4]  # nothing of it is left: counted once
        for a, b, c, d in itertools.product(*free):
            used = 3 * a + a + (not one) * (a * b + b) + 2 * d + 2
            used += (not block) * ((not first) * (b * c + c) + (not second) * (c * d + d))
            if used <= limit:
                worth = sum(top(values[n], k) for n, k in (("0", a), ("1.0", b), ("3.2", d)))
                worth += 0.0 if block else top(values["3.0"], c)
                best = max(best, worth - missed)
    problem = sm.Problem(sm.capture(model, x))
    problem.maximize(values)
    assert_best_within(problem, limit, lost, most, best)


@settings(max_examples=25)
@given(st.floats(0.15, 1.0), st.integers(0, 99), st.sampled_from([None, 1, 2]))
def test_switches_and_widths_against_brute_force(share: float, seed: int, most: int | None) -> None:
    inner = (5, 3, 4)
    model, x = residual(inner), torch.ones(2, 3, dtype=torch.float64)
    draw = np.random.default_rng(seed)
    values = {f"{k + 1}.up": -draw.random(n) * draw.choice([1, -1]) for k, n in enumerate(inner)}
    values |= {"0": np.ones(4), **{f"{k + 1}.down": np.zeros(4) for k in range(3)}}
    lost = {str(k + 1): float(draw.normal()) for k in range(3)}

    def params(width: int, inside: list[int | None]) -> int:
        blocks = sum((width + 1) * n + (n + 1) * width for n in inside if n is not None)
        return 4 * width + blocks + 2 * (width + 1)

    limit = share * params(4, list(inner))
    best = -np.inf
    for width in range(1, 5):
        for inside in itertools.product(*([None, *range(1, n + 1)] for n in inner)):
            gone = sum(n is None for n in inside)
            if params(width, list(inside)) <= limit and (most is None or gone <= most):
                kept = [(str(k + 1), n) for k, n in enumerate(inside) if n is not None]
                missed = sum(lost[str(k + 1)] for k, n in enumerate(inside) if n is None)
                best = max(best, width + sum(top(values[f"{k}.up"], n) for k, n in kept) - missed)
    problem = sm.Problem(sm.capture(model, x))
    problem.maximize(values)
    assert_best_within(problem, limit, lost, most, best)


class Nested(nn.Module):
    """A block whose branch has blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.into, self.a, self.b, self.out = nn.Linear(4, 4), Block(4, 3), Block(4, 2), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.out(self.b(self.a(self.into(x)))))


@settings(max_examples=12)
@given(st.floats(0.1, 1.0), st.integers(0, 99), st.sampled_from([None, 1, 2]))
def test_branches_in_branches_go_with_them(share: float, seed: int, most: int | None) -> None:
    torch.manual_seed(0)
    model, x = Nested().double().eval(), torch.ones(2, 3, dtype=torch.float64)
    graph = sm.capture(model, x)
    draw = np.random.default_rng(seed)
    lost, outer = {n: float(draw.normal()) for n in ("a", "b", "out")}, "out"
    assert [r.name for r in graph.removable] == list(lost)
    own = {"a": 4 * 3 + 3 + 3 * 4 + 4, "b": 4 * 2 + 2 + 2 * 4 + 4}
    limit, best = share * 123, -np.inf
    for a, b, out in itertools.product((0, 1), repeat=3):
        if not out and (a or b):
            continue
        used = 16 + 10 + out * 40 + a * own["a"] + b * own["b"]
        gone = (not out) + (out and not a) + (out and not b)
        if used <= limit and (most is None or gone <= most):
            missed = lost[outer] * (not out) + out * (lost["a"] * (not a) + lost["b"] * (not b))
            best = max(best, -missed)
    problem = sm.Problem(graph)
    problem.maximize({v.name: 0.0 for v in graph.vertices if v.makes_units})
    problem.keep("*")
    assert_best_within(problem, limit, lost, most, best)


@pytest.mark.parametrize("share", [0.55, 0.7])
def test_latency_and_bytes_count_what_is_left(share: float) -> None:
    table = sm.roofline(flops_per_s=1e6, bytes_per_s=1e6, overhead_s=1e-3)
    model, x = residual((5, 3, 4)), torch.ones(2, 3, dtype=torch.float64)
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.add(graph.latency(table) <= share * graph.latency(table).now)
    problem.add(graph.weight_bytes <= share * graph.weight_bytes.now)
    problem.drop(graph.removable, {"1": 0.1, "2": 0.2, "3": 0.3})
    plan = problem.solve()
    plan.apply(model)
    assert plan.costs["weight_bytes"].after == sum(t.numel() * 8 for t in model.state_dict().values())
    left = sm.capture(model, x).latency(table).now
    zeros = sum(e.gives == "zeros" for e in plan.edits if e.kind == "bypass")
    assert zeros and plan.costs["latency"].after <= left  # zeros are made and added, too


def test_explain_tells_what_a_branch_is_worth() -> None:
    model, x = residual((5, 3, 4)), torch.ones(2, 3, dtype=torch.float64)
    graph = sm.capture(model, x)
    problem = sm.Problem(graph)
    problem.add(graph.params <= 0.5 * graph.params.now)
    problem.drop(graph.removable, {"1": 0.5, "2": 0.5, "3": 0.5})
    plan = problem.solve()
    gone = {e.module.split(".")[0] for e in plan.edits if e.kind == "bypass"}
    for k, inner in enumerate((5, 3, 4)):
        name, width = str(k + 1), plan.sizes["0"][1]
        (key,) = plan.explain(f"{name}.up").options
        move = plan.explain(f"{name}.up").options[key]
        assert key == (f"{name} stays" if name in gone else f"not: {name} stays")
        size = plan.explain(f"{name}.up").after
        assert size <= inner and abs(move.costs["params"]) == (width + 1) * size + (size + 1) * width
        assert (move.costs["params"] > 0) == (name in gone)


def test_prune_takes_depth_in_every_form() -> None:
    x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batches = [(x, torch.zeros(16, 2, dtype=torch.float64))]
    for depth, values in (
        (True, sm.values.fisher(batches, nn.functional.mse_loss)),
        (1, sm.values.reconstruction(batches)),
        (["2", "3"], sm.values.measured(batches, nn.functional.mse_loss, points=3)),
        ({"1": 1e-3, "3": 1e-3}, None),
    ):
        model = residual()
        optimizer = torch.optim.Adam(model.parameters())
        nn.functional.mse_loss(model(x), batches[0][1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        plan = sm.prune(model, x, params=0.5, values=values, depth=depth, optimizer=optimizer)
        assert plan.costs["params"].after == count_params(model) <= 0.5 * plan.costs["params"].before
        assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
        assert set(optimizer.state) == set(model.parameters())
        nn.functional.mse_loss(model(x), batches[0][1]).backward()
        optimizer.step()
        gone = {e.module.split(".")[0] for e in plan.edits if e.kind == "bypass"}
        assert gone <= set(depth) if isinstance(depth, (list, dict)) else len(gone) <= (1 if depth is not True else 3)


def test_a_mutator_goes_on_without_its_branches() -> None:
    model, x = residual(), torch.ones(2, 3, dtype=torch.float64)
    mut = sm.Mutator(model, x)
    plan = mut.prune(depth={"2": -1.0})
    assert "2.down: gone, zeros in its place" in str(plan) and "branches go" in plan.alters
    assert [r.name for r in mut.graph.removable] == ["1", "3"]
    assert mut.graph.params.now == count_params(model)
    plan = mut.prune(params=0.6)
    assert plan.costs["params"].after == count_params(model)
    assert mut.resize({"0": +2}).sizes["0"][1] == mut.graph["0"].nout


def test_all_or_nothing() -> None:
    model, x = residual(), torch.ones(2, 3, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    state = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    plan = sm.Mutator(model, x).prune(depth={"2": -1.0}, params=0.8, dry_run=True)
    assert dict(model.named_modules()) == modules
    model.register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(sm.errors.SolvemutError):
        plan.apply(model, optimizer)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert {id(p) for p in optimizer.state} == set(state)
    assert all(torch.equal(s[k], state[id(p)][k]) for p, s in optimizer.state.items() for k in s)


def test_what_is_refused() -> None:
    model, x = residual(), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(RequestError, match="weights do not tell what a whole branch is worth"):
        sm.prune(model, x, params=0.5, depth=True)
    with pytest.raises(RequestError, match="there is '1', '2', '3'"):
        sm.prune(model, x, params=0.5, depth={"4": 1.0})
    graph = sm.capture(model, x)
    with pytest.raises(RequestError, match="worth says nothing of '2', '3'"):
        sm.Problem(graph).drop(graph.removable, {"1": 1.0})
    with pytest.raises(RequestError, match="without repair"):
        sm.prune(model, x, params=0.5, depth={"1": 1.0}, rounds=2)
    with pytest.raises(RequestError, match="budgets are on flops, params, weight_bytes, latency"):
        sm.prune(model, x, memory=0.5, depth={"1": 1.0})
