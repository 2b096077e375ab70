"""Random small networks against brute force over every kept set that leaves a network that runs.

The generator knows what it builds: it has its own account of which channels are one unit, which sets of channels a
grouped convolution or a norm allows, and what everything costs. solvemut must find the same optimum, and applying it
must give the masked network.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import assert_same, count_flops, count_params, masked, outputs, randomise
from torch import nn

import solvemut as sm

PIXELS = 4
MOST_UNITS = 13


@dataclass(frozen=True)
class Step:
    """One operation: what it does, the earlier values it reads, and a number (width, groups)."""

    kind: str
    a: int
    b: int = 0
    n: int = 1


class Net(nn.Module):
    """Executes steps on (1, c, 2, 2) values; the last value goes to a head of two channels."""

    def __init__(self, steps: list[Step], widths: list[int]) -> None:
        super().__init__()
        self.steps = steps
        for k, s in enumerate(steps):
            c = widths[s.a]
            if s.kind == "conv":
                self.add_module(f"m{k}", nn.Conv2d(c, s.n, 1))
            elif s.kind == "grouped":
                self.add_module(f"m{k}", nn.Conv2d(c, widths[k + 1], 1, groups=s.n, bias=False))
            elif s.kind == "depthwise":
                self.add_module(f"m{k}", nn.Conv2d(c, c * s.n, 1, groups=c))
            elif s.kind == "bn":
                self.add_module(f"m{k}", nn.BatchNorm2d(c))
            elif s.kind == "gn":
                self.add_module(f"m{k}", nn.GroupNorm(s.n, c))
        self.head = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, x):
        values = [x]
        for k, s in enumerate(self.steps):
            a, b = values[s.a], values[s.b]
            if s.kind == "relu":
                y = a.sigmoid()
            elif s.kind == "add":
                y = a + b
            elif s.kind == "cat":
                y = torch.cat([a, b], 1)
            elif s.kind == "swap":
                first, second = a.chunk(2, 1)
                y = torch.cat([second, first], 1)
            else:
                y = self.get_submodule(f"m{k}")(a)
            values.append(y)
        return self.head(values[-1])


@dataclass
class Account:
    """What the generator knows: for each value its units, and what every layer demands and costs."""

    steps: list[Step]
    units: list[list[int]] = field(default_factory=list)  # per value, one unit per channel; 0 is fixed
    parent: list[int] = field(default_factory=lambda: [0])
    makers: dict[str, list[int]] = field(default_factory=dict)
    layers: list[tuple[list[int], list[int], int, int]] = field(default_factory=list)  # in, out, groups, bias
    norms: list[tuple[list[int], int]] = field(default_factory=list)  # units, groups
    halves: list[list[int]] = field(default_factory=list)

    def find(self, x: int) -> int:
        while self.parent[x] != x:
            x = self.parent[x]
        return x

    def unite(self, a: list[int], b: list[int]) -> None:
        for x, y in zip(a, b, strict=True):
            x, y = self.find(x), self.find(y)
            self.parent[max(x, y)] = min(x, y)

    def fresh(self, n: int) -> list[int]:
        self.parent += range(len(self.parent), len(self.parent) + n)
        return list(range(len(self.parent) - n, len(self.parent)))

    def build(self) -> Account:
        self.units = [[0, 0]]
        for k, s in enumerate(self.steps):
            self.units.append(self.after(k, s, self.units[s.a], self.units[s.b]))
        self.layers.append((self.units[-1], [0, 0], 1, 1))
        self.units = [[self.find(u) for u in v] for v in self.units]
        return self

    def unlike(self) -> bool:
        """Whether channels stand in rows of two kinds, say under norms of two and of three groups.

        Sets that fit both are sought only among those that leave every row equally long, and a note says so.
        """
        rows = [(a, g) for a, _, g, _ in self.layers if g > 1] + [(o, g) for _, o, g, _ in self.layers if g > 1]
        rows += [(u, g) for u, g in self.norms if g < len(u)] + [(h, 2) for h in self.halves]
        found: list[set[frozenset[int]]] = []
        for units, g in rows:
            n = len(units) // g
            found.append({frozenset(self.find(u) for u in units[k * n : k * n + n]) for k in range(g)})
        return any(a != b and set().union(*a) & set().union(*b) - {0} for a, b in itertools.combinations(found, 2))

    def after(self, k: int, s: Step, a: list[int], b: list[int]) -> list[int]:
        if s.kind == "conv":
            out = self.makers[f"m{k}"] = self.fresh(s.n)
            self.layers.append((a, out, 1, 1))
        elif s.kind == "grouped":
            out = self.makers[f"m{k}"] = self.fresh(len(a) if len(a) % s.n == 0 else 0)
            self.layers.append((a, out, s.n, 0))
        elif s.kind == "depthwise":
            out = [u for u in a for _ in range(s.n)]
            self.layers.append((a, out, -1, 1))
        elif s.kind == "bn":
            out = a
            self.norms.append((a, len(a)))
        elif s.kind == "gn":
            out = a
            self.norms.append((a, s.n))
        elif s.kind == "add":
            self.unite(a, b)
            out = a
        elif s.kind == "cat":
            out = a + b
        elif s.kind == "swap":
            self.halves.append(a)
            out = a[len(a) // 2 :] + a[: len(a) // 2]
        else:
            out = a
        return out


class Table:
    """Every kept set of an account with its cost, its value and whether it leaves a network."""

    def __init__(self, account: Account) -> None:
        self.account = account
        everywhere = {account.find(u) for v in account.units for u in v} | {
            account.find(u) for us in account.makers.values() for u in us
        }
        self.free = sorted(everywhere - {0})
        n = len(self.free)
        bits = np.array(list(itertools.product((True, False), repeat=n)), dtype=bool).reshape(-1, n)
        self.kept = np.ones((len(bits), max([0, *self.free]) + 1), dtype=bool)
        self.kept[:, self.free] = bits
        self.valid = np.ones(len(bits), dtype=bool)
        self.params = np.full(len(bits), 0)
        self.flops = np.full(len(bits), 0)
        for layer in account.layers:
            self._layer(*layer)
        for units, groups in account.norms:
            c = self.count(units)
            self.params += 2 * c
            if groups < len(units):
                rows = self.rows(units, groups)
                self.valid &= _even(rows)
        for units in account.halves:
            rows = self.rows(units, 2)
            self.valid &= rows[:, 0] == rows[:, 1]

    def mask(self, units: list[int]) -> np.ndarray:
        return self.kept[:, [self.account.find(u) for u in units]]

    def count(self, units: list[int]) -> np.ndarray:
        return self.mask(units).sum(1)

    def rows(self, units: list[int], groups: int) -> np.ndarray:
        return self.mask(units).reshape(len(self.kept), groups, -1).sum(2)

    def _layer(self, a: list[int], out: list[int], groups: int, bias: int) -> None:
        if groups == -1:  # depthwise: a weight and a bias per channel
            n, per = self.count(out), np.ones(len(self.kept), dtype=int)
        elif groups == 1:
            n, per = self.count(out), self.count(a)
        else:
            ins, outs = self.rows(a, groups), self.rows(out, groups)
            self.valid &= _even(ins) & _even(outs) & ((ins > 0) == (outs > 0)).all(1)
            n, per = self.count(out), ins.max(1)
        self.valid &= (n > 0) & (per > 0)
        self.params += n * per + bias * n
        self.flops += 2 * PIXELS * n * per

    def value(self, values: dict[str, np.ndarray]) -> np.ndarray:
        total = np.zeros(len(self.kept))
        for name, units in self.account.makers.items():
            total += self.mask(units) @ values[name]
        return total


def _even(rows: np.ndarray) -> np.ndarray:
    """Whether all rows that are not empty are equally long."""
    top = rows.max(1, keepdims=True)
    return ((rows == 0) | (rows == top)).all(1)


@st.composite
def programs(draw: Any) -> list[Step]:
    """Steps whose widths fit; the number of channels made in all stays small."""
    n = draw(st.sampled_from([3, 4, 4, 6]))
    steps = [Step("conv", 0, n=n)]
    widths, made = [2, n], n
    for _ in range(draw(st.integers(1, 6))):
        a = draw(st.sampled_from(range(max(0, len(widths) - 3), len(widths))))
        c = widths[a]
        same = [k for k, w in enumerate(widths) if w == c and k != a]
        kinds = ["relu", "bn"]
        kinds += ["conv"] * 4 if made < 10 else []
        kinds += ["add"] * 3 if same else []
        kinds += ["cat"] if len(widths) > 2 and c < 7 else []
        kinds += ["depthwise"] if a > 0 else []
        kinds += ["swap"] if c % 2 == 0 and a > 0 else []
        groups = [g for g in (2, 3) if c % g == 0 and c > g and a > 0]
        kinds += ["gn"] if groups else []
        kinds += ["grouped"] * 3 if groups and made + c <= 12 else []
        kind = draw(st.sampled_from(kinds))
        b, n, w = 0, 1, c
        if kind == "conv":
            n = w = draw(st.sampled_from([2, 3, 4, 4, 6]))
            made += n
        elif kind == "add":
            b = draw(st.sampled_from(same))
        elif kind == "cat":
            b = draw(st.sampled_from([k for k, x in enumerate(widths) if x < 7] or [a]))
            w = c + widths[b]
        elif kind in ("gn", "grouped"):
            n = draw(st.sampled_from(groups))
            made += c if kind == "grouped" else 0
        steps.append(Step(kind, a, b, n))
        widths.append(w)
    return steps


def widths_of(steps: list[Step]) -> list[int]:
    widths = [2]
    for s in steps:
        c = widths[s.a]
        widths.append(
            s.n if s.kind == "conv" else c + widths[s.b] if s.kind == "cat" else c * s.n if s.kind == "depthwise" else c
        )
    return widths


def prepared(steps: list[Step], seed: int) -> tuple[nn.Module, torch.Tensor, Table, dict[str, np.ndarray]]:
    account = Account(steps).build()
    assume(not account.unlike())
    assume(len({account.find(u) for us in account.makers.values() for u in us}) <= MOST_UNITS)
    table = Table(account)
    assume(table.free)
    rng = np.random.default_rng(seed)
    values = {
        name: np.where([account.find(u) > 0 for u in units], rng.integers(1, 30, len(units)), 0)
        for name, units in account.makers.items()
    }
    model = randomise(Net(steps, widths_of(steps)).double().eval(), seed)
    return model, torch.randn(1, 2, 2, 2, dtype=torch.float64), table, values


EXAMPLES = [
    [Step("conv", 0, n=6), Step("grouped", 1, n=2), Step("add", 2, 1), Step("conv", 3, n=2)],
    [Step("conv", 0, n=4), Step("conv", 0, n=4), Step("cat", 1, 2), Step("swap", 3), Step("add", 3, 4)],
    [Step("conv", 0, n=6), Step("gn", 1, n=2), Step("grouped", 2, n=2), Step("conv", 3, n=3)],
    [Step("conv", 0, n=4), Step("depthwise", 1, n=1), Step("cat", 2, 0), Step("conv", 3, n=6), Step("gn", 4, n=3)],
    [Step("conv", 0, n=2), Step("add", 1, 0), Step("conv", 2, n=4)],
    [Step("conv", 0, n=3), Step("relu", 0, n=1), Step("depthwise", 2, n=1)],
]


def with_examples(test: Any) -> Any:
    for steps in EXAMPLES:
        test = example(steps, 1, 0.4, "params")(test)
    return test


@with_examples
@settings(max_examples=60)
@given(programs(), st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(["params", "flops"]))
def test_same_optimum_as_brute_force(steps, seed, where, resource):
    model, x, table, values = prepared(steps, seed)
    graph = sm.capture(model, x)
    costs = table.params if resource == "params" else table.flops
    assert (graph.params.now, graph.flops.now) == (table.params[0], table.flops[0])
    reachable = np.unique(costs[table.valid])
    budget = int(reachable[int(where * (len(reachable) - 1))])
    worth = np.where(table.valid & (costs <= budget), table.value(values), -np.inf)
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.add(getattr(graph, resource) <= budget)
    plan = problem.solve(time_limit=20, gap=0.0)
    assert plan.status == "optimal"
    check_plan(model, x, plan, table, values)
    assert plan.objective == worth.max()


def check_plan(model: nn.Module, x: torch.Tensor, plan: Any, table: Table, values: dict[str, np.ndarray]) -> None:
    """The plan is one of the sets of the table, its certificate is right, and it computes the masked network."""
    kept = np.ones(table.kept.shape[1], dtype=bool)
    for name, units in table.account.makers.items():
        stay = plan.indices.get(f"{name}.weight", {}).get(0, range(len(units)))
        for i, u in enumerate(units):
            kept[table.account.find(u)] &= i in stay
    (row,) = np.flatnonzero((table.kept == kept).all(1))
    assert table.valid[row]
    assert plan.objective == table.value(values)[row]
    assert plan.costs["params"].after == table.params[row] and plan.costs["flops"].after == table.flops[row]
    after = copy.deepcopy(model)
    plan.apply(after)
    assert count_params(after) == table.params[row] and count_flops(after, (x,)) == table.flops[row]
    assert_same(outputs(after, (x,)), outputs(masked(model, plan), (x,)))


@settings(max_examples=15)
@given(programs(), st.integers(0, 10**6))
def test_smallest_network_is_the_one_of_brute_force(steps, seed):
    model, x, table, values = prepared(steps, seed)
    graph = sm.capture(model, x)
    smallest = int(table.params[table.valid].min())
    problem = sm.Problem(graph)
    problem.maximize(values)
    problem.add(graph.params <= smallest - 1)
    with pytest.raises(sm.errors.InfeasibleError) as error:
        problem.solve(time_limit=20)
    assert error.value.smallest[f"params <= {smallest - 1}"] == smallest


@settings(max_examples=20)
@given(programs(), st.integers(0, 10**6), st.data())
def test_sizes_asked_for_against_brute_force(steps, seed, data):
    """== and % on the output of a layer, beside a budget."""
    model, x, table, values = prepared(steps, seed)
    graph = sm.capture(model, x)
    name = data.draw(st.sampled_from(sorted(table.account.makers)))
    size = table.count(table.account.makers[name])
    wanted = data.draw(st.sampled_from(["==", "%", "<="]))
    k = data.draw(st.integers(1, 4))
    holds = {"==": size == k, "%": size % k == 0, "<=": size <= k}[wanted]
    out = graph[name].out
    request = {"==": out == k, "%": out % k == 0, "<=": out <= k}[wanted]
    problem = sm.Problem(graph)
    problem.maximize(values)
    budget = int(np.quantile(table.flops[table.valid], 0.6))
    problem.add(request, graph.flops <= budget)
    worth = np.where(table.valid & holds & (table.flops <= budget), table.value(values), -np.inf)
    if np.isinf(worth.max()):
        with pytest.raises(sm.errors.InfeasibleError):
            problem.solve(time_limit=20, gap=0.0)
        return
    plan = problem.solve(time_limit=20, gap=0.0)
    check_plan(model, x, plan, table, values)
    assert plan.objective == worth.max()
