"""Latency of compiled models: how nodes are grouped, tables by a clock that is known, and one that is measured."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from brute import Block as Residual
from clocks import FakeClock, linear, saw
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError
from solvemut.latency import compiled
from solvemut.latency import whole as whole_models
from solvemut.latency.clock import CpuClock
from solvemut.latency.compiled import CompiledSamples
from solvemut.latency.groups import VIEWS, groups
from solvemut.latency.rounds import Kind, run_passes
from solvemut.latency.samples import Call, run_node
from solvemut.latency.sites import by_key, reads_of, sites


class Block(nn.Module):
    """A residual of two branches, a pool and a head, as a ResNet has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.main, self.norm1 = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.down, self.norm2 = nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm0(self.stem(x)))
        x = torch.relu(self.norm1(self.main(x)) + self.norm2(self.down(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One layer of a transformer, its projections packed: views and a copy between what multiplies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Dense(nn.Module):
    """Concats of ever more layers, so that groups of them have many sizes; chunks read late, and a recurrent part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(k, 4) for k in (8, 12, 16, 20))
        self.rnn, self.head = nn.GRU(12, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(torch.tanh(x)))], -1)
        gate, value = x.chunk(2, -1)
        gate = torch.tanh(self.rnn(torch.sigmoid(gate) * value)[0]) * gate[..., :4]
        return self.head(gate * value[..., :4]).softmax(-1)


MODELS = {
    "block": (Block, (2, 3, 8, 8)),
    "attention": (Attention, (2, 5, 8)),
    "dense": (Dense, (2, 5, 8)),
}


def graph_of(name: str) -> sm.Graph:
    make, shape = MODELS[name]
    return sm.capture(make().eval(), torch.ones(shape))


def ops(graph: sm.Graph) -> list[str]:
    return [" ".join(n.op for n in g.nodes) for g in groups(graph)]


def measured(graph: sm.Graph, clock: Any, **how: Any) -> sm.LatencyTable:
    return sm.measure_latency(graph, clock, compile=True, progress=False, **how)


def has_compiler() -> str:
    """Why nothing can be compiled here, "" if it can."""
    graph = sm.capture(nn.Linear(2, 2), torch.ones(1, 2))
    try:
        CompiledSamples(graph, torch.device("cpu"), None).begin(CpuClock().laps)
    except RequestError as e:
        return str(e)
    return ""


@pytest.fixture
def compiler() -> None:
    if why := has_compiler():
        pytest.skip(why)


# -- groups ------------------------------------------------------------------------------------------------------------


def test_a_chain_belongs_to_the_last_layer_before_it():
    """Also the norm of the other branch, which only the sum reads: it is computed there."""
    assert ops(graph_of("block")) == [
        "conv2d",
        "batch_norm relu",
        "conv2d",
        "batch_norm batch_norm add relu mean",
        "conv2d",
        "linear",
    ]
    assert ops(graph_of("attention")) == [
        "layer_norm",
        "linear",
        "scaled_dot_product_attention",
        "linear",
        "add layer_norm",
        "linear",
        "gelu",
        "linear",
        "add",
    ]


def test_channels_lie_last_behind_a_convolution():
    graph = graph_of("block")
    found = {g.node.op + g.node.module: {r for r in reads_of(g.nodes) if r in g.last} for g in groups(graph)}
    of = {n.module: n.name for n in graph.trace.nodes}
    assert found["conv2dstem"] == set() and found["linearhead"] == set()
    assert found["batch_normnorm0"] == {of["stem"]} and found["batch_normnorm1"] == {of["main"], of["down"]}
    assert "| channels last: $0 $5" in groups(graph)[3].key
    assert not any(g.last for g in groups(graph_of("attention")))


@pytest.mark.parametrize("name", MODELS)
def test_each_node_that_runs_is_in_one_group(name):
    graph = graph_of(name)
    found = groups(graph)
    members = [n.name for g in found for n in g.nodes]
    assert len(members) == len(set(members))
    assert {n.name for n in graph.trace.nodes if n.op not in VIEWS} <= set(members)
    assert {g.node.name for g in found if g.works} == {s.node.name for s in sites(graph) if s.works}
    assert all(len(g.nodes) == 1 for g in found if g.works) and all(len(g.axes) <= 2 for g in found)
    for g in found:  # connected by what its nodes read or make
        values = [{n.name, *n.refs()} for n in g.nodes]
        joined = values.pop(0)
        while near := [v for v in values if not joined.isdisjoint(v)]:
            values = [v for v in values if v not in near]
            joined |= set().union(*near)
        assert not values
        outside = {r for o in found if o is not g for r in reads_of(o.nodes)} | set(graph.trace.outputs)
        views = {n.name for n in g.nodes if n.op in VIEWS}
        assert {n.name for n in g.nodes} & outside - views <= set(g.made) <= {n.name for n in g.nodes}


def test_a_key_tells_how_values_go_through_a_group():
    class Other(nn.Module):
        def __init__(self, swap: bool) -> None:
            super().__init__()
            self.a, self.b, self.swap = nn.Linear(4, 6), nn.Linear(6, 2), swap

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            z = torch.relu(y)
            return self.b(z - z if self.swap else z - y)

    keys = [{g.key for g in groups(sm.capture(Other(s), torch.ones(2, 4))) if not g.works} for s in (False, True)]
    assert keys[0].isdisjoint(keys[1]) and all(len(k) == 1 for k in keys)


# -- tables by a clock that is known -----------------------------------------------------------------------------------


def total(nanoseconds: Any, widths: tuple[int, int]) -> float:
    """What the block takes by a clock, group by group, when its stem and its branches have these widths; in ms."""
    a, b = widths
    keys = [g.key for g in groups(graph_of("block"))]
    at = [(a,), (a,), (a, b), (b,), (a, b), (b,)]
    return sum(round(nanoseconds(k, s)) for k, s in zip(keys, at, strict=True)) * 1e-6


def test_the_cost_is_the_sum_over_groups_at_every_size():
    graph = graph_of("block")
    table = measured(graph, FakeClock(linear))
    assert table.compiled and set(table.entries) == set(by_key(groups(graph)))
    cost = graph.latency(table)
    assert cost.now == pytest.approx(total(linear, (6, 5)), abs=1e-9)
    for a, b in itertools.product((1, 3, 6), (1, 4, 5)):
        problem = sm.Problem(graph)
        problem.add(graph["stem"].out == a, graph["main"].out == b, cost <= 100.0)
        assert problem.solve().costs["latency"].after == pytest.approx(total(linear, (a, b)), abs=1e-9)


@pytest.mark.parametrize("name", ["block", "attention"])
def test_a_pruned_model_counts_as_it_was_foretold(name):
    graph = graph_of(name)
    times: dict[Any, float] = {}
    rng = np.random.default_rng(0)
    clock = FakeClock(lambda key, sizes: times.setdefault((key, sizes), 1e4 * rng.uniform(1, 2) + 1e3 * sum(sizes)))
    table = measured(graph, clock, multiple=1, points=10_000)
    make, shape = MODELS[name]
    plan = sm.prune(make().eval(), torch.ones(shape), latency=(table, 0.9))
    cost = plan.costs["latency"]
    assert cost.before == pytest.approx(graph.latency(table).now) and cost.after <= 0.9 * cost.before
    assert sm.capture(plan.apply(make().eval()), torch.ones(shape)).latency(table).now == pytest.approx(cost.after)


def test_what_was_interrupted_goes_on_to_the_same_table(tmp_path):
    graph, how = graph_of("block"), {"multiple": 1, "tolerance": 0.0, "points": 10_000, "rounds": 2}
    whole = measured(graph, FakeClock(saw), **how)
    with pytest.raises(KeyboardInterrupt):
        measured(graph, FakeClock(saw, stop_after=9), cache=tmp_path, **how)
    assert measured(graph, FakeClock(saw), cache=tmp_path, **how) == whole
    sm.measure_latency(graph, FakeClock(saw), cache=tmp_path, progress=False, **how)
    assert len(list(tmp_path.iterdir())) == 2  # a state of its own for each mode


def test_a_table_as_text_stays_one_of_compiled_models():
    graph = graph_of("attention")
    table = measured(graph, FakeClock(saw))
    found = sm.LatencyTable.from_json(table.to_json())
    assert found == table and found.compiled and graph.latency(found).now == graph.latency(table).now
    assert "compiled" in str(found)


def test_tables_of_two_modes_are_not_put_together():
    graph = graph_of("block")
    eager, other = (sm.measure_latency(graph, FakeClock(saw), compile=c, progress=False) for c in (False, True))
    assert not eager.compiled and eager != other
    with pytest.raises(RequestError, match=r"table= is of eager models, compile=True"):
        measured(graph, FakeClock(saw), table=eager)
    with pytest.raises(RequestError, match=r"table= is of compiled models, compile=False"):
        sm.measure_latency(graph, FakeClock(saw), table=other)
    assert measured(graph, FakeClock(saw), table=other).entries.keys() == other.entries.keys()
    with pytest.raises(RequestError, match=r"compile=True"):
        graph_of("attention").latency(other)


@pytest.mark.parametrize(("idle", "left"), [(0.0, 1000e-9), (400e-9, 600e-9), (5000e-9, 0.0)])
def test_what_a_call_takes_beside_its_work_does_not_count(idle, left):
    kinds = [Kind(k, v, tuple((a.now,) for a in v[0].axes)) for k, v in by_key(groups(graph_of("block"))).items()]
    rng = np.random.default_rng(0)
    run_passes(kinds, FakeClock(lambda k, s: 1000.0), lambda s, p: Call(s.key, p, idle=idle), 2, rng, 0, max)
    assert all(s == pytest.approx(left) for k in kinds for found in k.samples.values() for _, s in found)


# -- what is compiled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_groups_make_what_the_model_makes(name, monkeypatch):
    """Each group that is compiled makes of the model's own values what its nodes make one by one."""
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(shape)
    graph, cpu = sm.capture(model, x), torch.device("cpu")
    monkeypatch.setattr(
        compiled, "_inductor", lambda graph, args, options=None: torch.fx.GraphModule(nn.Module(), graph)
    )
    samples, own = CompiledSamples(graph, cpu, None), dict(model.state_dict())
    live: dict[str, Any] = {v: own[p.name] for v, p in graph.trace.params.items() if p.name in own}
    live[next(iter(graph.trace.inputs))] = x
    with torch.no_grad():
        for node in graph.trace.nodes:
            live[node.name] = run_node(node, live, cpu)
        for g in groups(graph):
            tensors = {r: live[r] for r in reads_of(g.nodes)}
            made = () if g.works else samples.fused(g, g.nodes, tensors)[0](*tensors.values())
            for value, found in zip(g.made, made, strict=False):
                torch.testing.assert_close(found, live[value])
    torch.testing.assert_close(live[graph.trace.outputs[0]], model(x))


def test_what_cannot_be_compiled_is_timed_as_it_is_and_named(monkeypatch):
    def broken(graph: Any, args: Any, options: Any = None) -> Any:
        if any("softmax" in str(n.target) for n in graph.nodes):
            raise NotImplementedError("no softmax here")
        return torch.fx.GraphModule(nn.Module(), graph)

    monkeypatch.setattr(compiled, "_inductor", broken)
    table = measured(graph_of("dense"), "cpu", rounds=1, check=0, points=4)
    noted = {k: e.note for k, e in table.entries.items() if "eager" in e.note}
    assert [("softmax" in k) for k in noted] == [True] and "no softmax here" in next(iter(noted.values()))
    assert "timed as in eager mode: NotImplementedError" in str(table) and table.compiled
    assert not any("cannot be run" in e.note for e in table.entries.values())


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(compiled, "_inductor", lambda *args: (_ for _ in ()).throw(OSError("no g++")))
    with pytest.raises(RequestError, match=r"OSError: no g\+\+.*CXX.*compile=False"):
        measured(graph_of("block"), "cpu", check=0)


def test_a_model_that_cannot_be_compiled_whole_says_so(monkeypatch):
    def broken(forward: Any) -> Any:
        return lambda: (_ for _ in ()).throw(NotImplementedError("a graph break"))

    monkeypatch.setattr(compiled, "_inductor", lambda graph, *more: torch.fx.GraphModule(nn.Module(), graph))
    monkeypatch.setattr(whole_models, "compiled_forward", broken)
    with pytest.raises(RequestError, match=r"compiled whole \(NotImplementedError: a graph break\).*check=0"):
        measured(graph_of("block"), "cpu", rounds=1, points=1, check=1)


@pytest.mark.slow
def test_a_real_compiler_says_how_far_it_is_off(compiler):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chain = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
        model = nn.Sequential(*chain, nn.Conv2d(16, 4, 3)).eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        x = torch.ones(1, 3, 16, 16)
        graph = sm.capture(model, x)
        table = measured(graph, None, rounds=1, check=2, points=4)
        assert len(table.fit.measured) >= 2 and table.error <= table.worst and table.notes == ()
        assert "1 thread" in table.device and 0 < graph.latency(table).now < 1e4
        assert set(table.entries) == {g.key for g in groups(graph)}
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
        plan = sm.prune(model, x, latency=(table, 0.97))
        assert plan.costs["latency"].after <= 0.97 * plan.costs["latency"].before + 1e-9
    finally:
        torch.set_num_threads(threads)


# -- branches and options ----------------------------------------------------------------------------------------------


def test_groups_that_lie_in_a_branch_count_where_it_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Residual(8, 8), Residual(8, 8), nn.Linear(8, 2)).eval()
    graph = sm.capture(model, torch.ones(2, 8))
    table = measured(graph, FakeClock(linear), check=0)
    cost = graph.latency(table)
    problem = sm.Problem(graph)
    problem.keep("*")
    problem.add(cost <= 0.8 * cost.now)
    problem.drop(graph.removable[:2], {"1": 0.0, "2": 100.0})
    plan = problem.solve()
    assert {e.module for e in plan.edits if e.kind == "bypass"} == {"1.up", "1.down"}
    inside = {n.name for n in graph.trace.nodes if n.module.startswith(("1.up", "1.down"))}
    left = [g for g in groups(graph) if not {n.name for n in g.nodes} <= inside]  # those partly in it are run still
    assert 0 < len(left) < len(groups(graph))
    assert plan.costs["latency"].after * 1e6 == pytest.approx(sum(linear(g.key, g.now) for g in left))
    problem.choose("3", {"as it is": None, "rank 1": sm.LowRank(1, value=-100.0)})
    with pytest.raises(RequestError, match=r"no such layer.*compile=True"):
        problem.solve()  # the table has no layer of one output
