"""Latency as a cost: tables by a clock that is known, plans that are optimal for them, files, and what is refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from clocks import FakeClock, linear, saw
from torch import nn

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError
from solvemut.latency.rounds import Kind, settled
from solvemut.latency.sites import by_key, sites
from solvemut.latency.whole import Run, fitted


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def graph_of(model: nn.Module | None = None) -> sm.Graph:
    return sm.capture(model or net(), torch.ones(2, 4))


def every_point(graph: sm.Graph, clock: FakeClock, **how: Any) -> sm.LatencyTable:
    """A table that measures every size: each is a multiple of 1, and nothing is a straight line."""
    return sm.measure_latency(graph, clock, multiple=1, tolerance=0.0, points=10_000, progress=False, **how)


def total(clock: FakeClock, widths: tuple[int, int]) -> float:
    """What the net takes by the clock, node by node, when its hidden layers have these widths."""
    a, b = widths
    keys = [s.key for s in sites(graph_of())]
    at = [(a,), (a,), (a, b), (b,), (b,)]
    return sum(round(clock.nanoseconds(k, s)) for k, s in zip(keys, at, strict=True)) * 1e-6


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_cost_is_the_sum_over_nodes_at_every_size():
    graph, clock = graph_of(), FakeClock(linear)
    cost = graph.latency(sm.measure_latency(graph, clock, progress=False))
    assert cost.now == pytest.approx(total(clock, (6, 5)), abs=1e-9) and str(cost <= 0.5) == "latency <= 0.5 ms"
    for a, b in itertools.product(range(1, 7), range(1, 6)):
        problem = sm.Problem(graph)
        problem.add(graph["0"].out == a, graph["2"].out == b, cost <= 100.0)
        found = problem.solve().costs["latency"]
        assert found.after == pytest.approx(total(clock, (a, b)), abs=1e-9)
        assert (found.before, found.budget) == (cost.now, 100.0)


@pytest.mark.parametrize("nanoseconds", [linear, saw])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_plan_within_a_latency_is_the_best_there_is(nanoseconds, share):
    """Against brute force over all widths, also where a smaller layer takes longer."""
    graph, clock = graph_of(), FakeClock(nanoseconds)
    table = every_point(graph, clock, rounds=1)
    rng = np.random.default_rng(3)
    first, second = rng.uniform(1, 2, 6), rng.uniform(1, 2, 5)
    cost = graph.latency(table)
    costs = {w: total(clock, w) for w in itertools.product(range(1, 7), range(1, 6))}
    limit = min(costs.values()) + share * (cost.now - min(costs.values()))
    worth = {
        w: float(np.sort(first)[::-1][: w[0]].sum() + np.sort(second)[::-1][: w[1]].sum())
        for w, c in costs.items()
        if c <= limit + 1e-9
    }
    problem = sm.Problem(graph)
    problem.maximize({"0": first, "2": second})
    problem.add(cost <= limit)
    plan = problem.solve(gap=0)
    assert plan.objective == pytest.approx(max(worth.values())) and plan.status == "optimal"
    assert plan.costs["latency"].after <= limit + 1e-9
    assert graph_of(plan.apply(net())).latency(table).now == pytest.approx(plan.costs["latency"].after)


def test_what_stands_between_grid_points_is_never_below_zero():
    rng = np.random.default_rng(0)
    times: dict[Any, float] = {}

    def any_time(key: str, sizes: tuple[int, ...]) -> float:
        return times.setdefault((key, sizes), float(rng.choice([0.0, 1.0, 1e6])))

    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 24), nn.Linear(24, 2))
    graph = graph_of(model)
    for between in ("line", "step"):
        table = sm.measure_latency(graph, FakeClock(any_time), between=between, progress=False)
        for entry in table.entries.values():
            for each in (0.0, -500.0):
                fit = type(table.fit)(each=each)
                found = sm.LatencyTable("x", {}, fit, between).surface(entry, entry.most)
                assert found.min() >= 0 and found.dtype == np.int64
                assert found.max() <= max(0, np.rint(entry.values.max() + each))


def test_steps_are_those_that_were_measured():
    graph = graph_of(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)))
    table = sm.measure_latency(graph, FakeClock(lambda k, s: 1000.0 * sum(s)), between="step", progress=False)
    (entry,) = [e for k, e in table.entries.items() if k.startswith("relu")]
    assert entry.grid == ((8, 16, 32, 48, 64),)
    found = table.surface(entry, (64,))
    assert [int(found[n]) for n in (0, 8, 9, 16, 17, 64)] == [8000, 8000, 16000, 16000, 32000, 64000]
    lines = table.with_steps("line").surface(entry, (64,))
    assert [int(lines[n]) for n in (0, 8, 9, 16, 17, 64)] == [8000, 8000, 9000, 16000, 17000, 64000]


def test_a_grid_is_finer_where_the_surface_bends():
    def bent(key: str, sizes: tuple[int, ...]) -> float:
        return 1000.0 + max(0, sizes[0] - 32) * 1000 if sizes else 0.0

    graph = graph_of(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)))
    table = sm.measure_latency(graph, FakeClock(bent), progress=False)
    (entry,) = [e for k, e in table.entries.items() if k.startswith("relu")]
    assert {24, 40} <= set(entry.grid[0]) and 12 not in entry.grid[0]


def test_nodes_that_do_the_same_are_measured_once():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5)], nn.Linear(8, 2))
    graph = sm.capture(model, torch.ones(2, 8))
    kinds = by_key(sites(graph))
    assert sorted(len(v) for v in kinds.values()) == [1, 1, 4, 5]
    assert "linear(input=<2,a>, weight=<b,a>, bias=<b>) -> <2,b>" in kinds
    table = sm.measure_latency(graph, FakeClock(linear), progress=False)
    assert {k: e.count for k, e in table.entries.items()} == {k: len(v) for k, v in kinds.items()}


def test_a_pass_that_was_slow_does_not_count():
    """One pass of four took three times as long: medians over passes, without their factors, would not all see it."""
    graph = graph_of()
    kinds = [Kind(k, v, tuple((1, a.now) for a in v[0].axes)) for k, v in by_key(sites(graph)).items()]
    rng = np.random.default_rng(0)
    for k in kinds:
        for n in range(4):
            for p in k.points:
                if rng.random() < 0.7 or p not in k.samples:
                    k.samples.setdefault(p, []).append((n, linear(k.key, p) * (3.0 if n == 1 else 1.0)))
    for key, found in settled(kinds).items():
        assert all(s == pytest.approx(linear(key, p)) for p, s in found.items())


# -- the correction ----------------------------------------------------------------------------------------------------


def test_the_correction_finds_the_factors_and_each_run_is_held_out():
    rng = np.random.default_rng(1)
    works = np.arange(20) % 3 == 0
    runs = []
    for _ in range(30):
        nodes = rng.uniform(1e-4, 1e-3, 20)
        runs.append(Run(float((nodes * np.where(works, 1.2, 0.9)).sum() + 20 * 2e-5), nodes, works))
    fit = fitted(runs)
    assert max(fit.errors) < 0.03 < max(abs(p / m - 1) for p, m in zip(fit.plain, fit.measured, strict=True))
    assert len(fit.measured) == len(fit.held_out) == 30
    off = fitted([*runs[:-1], Run(10 * runs[-1].seconds, runs[-1].nodes, works)])
    assert off.errors[-1] > 0.8  # it had no part in its own prediction


def test_a_real_clock_says_how_far_it_is_off():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 3)
        ).eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        graph = sm.capture(model, torch.ones(1, 3, 16, 16))
        table = sm.measure_latency(graph, rounds=1, check=3, points=9, progress=False)
    finally:
        torch.set_num_threads(threads)
    assert 2 <= len(table.fit.measured) <= 4 and table.error <= table.worst and "each held out" in str(table)
    assert table.notes == () and "1 thread" in table.device and 0 < graph.latency(table).now < 1e4
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    plan = sm.prune(model, torch.ones(1, 3, 16, 16), latency=(table, 0.97))
    assert plan.costs["latency"].after <= 0.97 * plan.costs["latency"].before + 1e-9


class Odd(nn.Module):
    """Indices, masks, concats, lists, chunks and reductions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(8, 6)
        self.norm, self.head = nn.LayerNorm(14), nn.Linear(14, 2)
        self.rnn = nn.GRU(2, 4, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        gate, value = self.a(x).chunk(2, -1)
        x = torch.cat([torch.sigmoid(gate) * value, self.b(x).masked_fill(ids[..., None] > 3, 0.0)], -1)
        return self.rnn(self.head(self.norm(x)))[0].mean(1)


def test_every_node_of_an_odd_model_can_be_run():
    graph = sm.capture(Odd(), torch.zeros(2, 5, dtype=torch.long))
    table = sm.measure_latency(graph, rounds=1, check=0, points=9, progress=False)
    assert not [e.note for e in table.entries.values() if "cannot be run" in e.note]
    table = sm.measure_latency(graph, FakeClock(linear), progress=False)  # what is feasible is no matter of the machine
    plan = sm.select.optimal(graph, latency=0.95, table=table)
    assert plan.costs["latency"].after <= 0.95 * plan.costs["latency"].before


# -- asking for it -----------------------------------------------------------------------------------------------------


def test_prune_takes_a_share_or_milliseconds():
    graph, slow = graph_of(), FakeClock(lambda k, s: 1e6 * linear(k, s))
    table = sm.measure_latency(graph, slow, progress=False)
    now = graph.latency(table).now
    x = torch.ones(2, 4)
    shares = [
        sm.prune(net(), x, **ask).costs["latency"]
        for ask in ({"latency": (table, 0.7)}, {"latency": 0.7, "table": table})
    ]
    assert shares[0] == shares[1] and shares[0].budget == pytest.approx(0.7 * now)
    ms = sm.prune(net(), x, latency=0.7 * now, table=table)
    assert ms.costs["latency"] == shares[0] and "latency" in str(ms)
    twice = sm.prune(net(), x, latency=(table, 0.7), rounds=2, values=sm.values.magnitude())
    assert twice.costs["params"].after < twice.costs["params"].before
    again = sm.Plan.from_json(ms.to_json())
    assert again.costs == ms.costs


def test_what_asks_for_too_little_says_what_would_do_in_milliseconds():
    graph = graph_of()
    table = sm.measure_latency(graph, FakeClock(linear), progress=False)
    problem = sm.Problem(graph)
    problem.add(graph.latency(table) <= 1e-4)
    with pytest.raises(InfeasibleError, match=r"latency <= 0\.0001 ms") as told:
        problem.solve()
    least = total(FakeClock(linear), (1, 1))
    assert list(told.value.smallest.values()) == [pytest.approx(least)] and str(least)[:5] in str(told.value)


def test_a_limit_that_is_a_float_misses_nothing_by_rounding():
    graph = graph_of()
    cost = graph.latency(sm.measure_latency(graph, FakeClock(linear), progress=False))
    for k in range(1, 40):
        limit = (cost.now / k) * k
        assert (cost <= limit).limit == cost.counted
    assert (cost <= 0.001).limit == 1000 and 1000 < (cost <= 0.0010005).limit < 1001


def test_growth_beyond_a_table_is_refused():
    graph = graph_of()
    table = sm.measure_latency(graph, FakeClock(linear), progress=False)
    with pytest.raises(RequestError, match="known up to size"):
        sm.prune(net(), torch.ones(2, 4), latency=(table, 0.9), grow=True)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        ({"latency": 0.5}, "give \\(table, limit\\)"),
        ({"latency": ("table", 0.5)}, "give a table"),
        ({"latency": (sm.roofline(1e9, 1e9), -1)}, "a budget is a fraction"),
        ({"latency": (sm.roofline(1e9, 1e9), 0.5), "table": sm.roofline(1e8, 1e9)}, "once"),
    ],
)
def test_budgets_that_make_no_sense(ask, told):
    with pytest.raises(RequestError, match=told):
        sm.prune(net(), torch.ones(2, 4), **ask)


def test_what_cannot_be_measured():
    graph = graph_of()
    for how, told in (
        ({"compile": "yes"}, "compile"),
        ({"batch": 8}, "batch=8.*captured with 2"),
        ({"rounds": 0}, "rounds"),
        ({"device": "nowhere"}, "device"),
        ({"between": "curve"}, "between"),
    ):
        with pytest.raises(RequestError, match=told):
            sm.measure_latency(graph, **how)
    with pytest.raises(RequestError, match="graph of a model"):
        sm.measure_latency(net())  # type: ignore[arg-type]


def test_a_layer_that_a_table_does_not_know_is_named():
    table = sm.measure_latency(graph_of(), FakeClock(linear), progress=False)
    other = sm.capture(nn.Sequential(nn.Linear(4, 6), nn.GELU()), torch.ones(2, 4))
    with pytest.raises(RequestError, match=r"no such layer: .*measure_latency\(graph, table=\.\.\.\)"):
        other.latency(table)
    wide = sm.capture(nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 3)), torch.ones(2, 4))
    with pytest.raises(RequestError, match="up to"):
        wide.latency(table)
    more = sm.measure_latency(wide, FakeClock(linear), table=table, progress=False)
    assert set(table.entries) <= set(more.entries)
    assert wide.latency(more).now > 0 and graph_of().latency(more).now > 0
    with pytest.raises(RequestError, match="cannot be put together"):
        sm.measure_latency(wide, "cpu", table=table)


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_was_interrupted_goes_on_to_the_same_table(tmp_path):
    graph = graph_of()
    whole = every_point(graph, FakeClock(saw), rounds=2)
    clock = FakeClock(saw, stop_after=9)
    with pytest.raises(KeyboardInterrupt):
        every_point(graph, clock, rounds=2, cache=tmp_path)
    rest = FakeClock(saw)
    again = every_point(graph, rest, rounds=2, cache=tmp_path)
    assert again == whole and rest.passes > 0
    nothing = FakeClock(saw)
    assert every_point(graph, nothing, rounds=2, cache=tmp_path) == whole and nothing.passes == 0
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    with pytest.raises(RequestError, match="damaged"):
        every_point(graph, FakeClock(saw), rounds=2, cache=tmp_path)


def test_a_table_as_text(tmp_path):
    graph = graph_of()
    table = sm.measure_latency(graph, FakeClock(saw), progress=False)
    table.save(tmp_path / "t.json")
    found = sm.LatencyTable.load(tmp_path / "t.json")
    assert found == table and graph.latency(found).now == graph.latency(table).now and found != "x"
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]
    text = json.loads(table.to_json())
    key = next(iter(text["entries"]))

    def damaged(**changed: Any) -> str:
        return json.dumps({**text, **changed})

    bad = [
        "",
        "{}",
        "[]",
        table.to_json()[:-5],
        damaged(latency=99),
        damaged(device=None),
        damaged(fit=[1, 1]),
        damaged(fit=[1, -1, 0, [], [], []]),
        damaged(entries={key: [[[2, 1]], [1.0, 2.0], True, 1, ""]}),
        damaged(entries={key: [[[1, 2]], [1.0], True, 1, ""]}),
        damaged(entries={key: [[[1, 2]], [1.0, -2.0], True, 1, ""]}),
        damaged(entries={key: [[[1, 2]], [1.0, float("nan")], True, 1, ""]}),
        damaged(between="curve"),
    ]
    for text_of in bad:
        with pytest.raises(RequestError):
            sm.LatencyTable.from_json(text_of)


# -- computed tables ---------------------------------------------------------------------------------------------------


def test_a_roofline_counts_what_the_changed_model_computes_and_moves():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten())
    x = torch.ones(2, 3, 8, 8)
    graph = sm.capture(model.eval(), x)
    for table in (sm.roofline(1e9, 1e15), sm.roofline(1e15, 1e9), sm.roofline(1e9, 1e9, 1e-6)):
        cost = graph.latency(table)
        plan = sm.select.optimal(graph, constraints=[cost <= 0.7 * cost.now])
        small = plan.apply(sm.Mutator(model, x).copy().model)
        assert sm.capture(small, x).latency(table).now == pytest.approx(plan.costs["latency"].after, abs=1e-5)
    only_flops = graph.latency(sm.roofline(1e9, 1e15)).now
    assert only_flops == pytest.approx(graph.flops.now / 1e9 * 1e3, rel=1e-3)
    for rates in ((0, 1), (1, -1), ("a", 1), (1, 1, -1)):
        with pytest.raises(RequestError):
            sm.roofline(*rates)
