"""Elimination against least squares: what a layer loses when it does without some inputs and makes up with the rest."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import randomise
from torch import nn

import solvemut as sm
from solvemut.errors import ValuesError
from solvemut.values import Curve, reconstruction, worth_of
from solvemut.values.elimination import Reader, eliminate


def reader(h: torch.Tensor, w: torch.Tensor, columns: list[list[int]], units: list[int] | None = None) -> Reader:
    """A consumer of second moments h and weights w [outputs, columns]."""
    which = list(range(len(columns))) if units is None else units
    return Reader(w.clone(), torch.linalg.inv(h), torch.tensor(columns), torch.tensor(which))


def loss_without(h: torch.Tensor, w: torch.Tensor, gone: list[int]) -> float:
    """What is lost, at least, without some columns: min over v of (w - v) h (w - v)' / 2, v zero on them."""
    kept = [c for c in range(w.shape[1]) if c not in gone]
    if not kept:
        return 0.5 * float(torch.einsum("oi,ij,oj->", w, h, w))
    best = torch.zeros_like(w)
    best[:, kept] = torch.linalg.solve(h[kept][:, kept], h[kept] @ w.t()).t()
    d = w - best
    return 0.5 * float(torch.einsum("oi,ij,oj->", d, h, d))


def problem(seed: int, units: int, taps: int, outputs: int, alike: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated second moments, and weights."""
    g = torch.Generator().manual_seed(seed)
    n = units * taps
    x = torch.randn(4 * n + 4, n, generator=g, dtype=torch.float64)
    x = x + alike * x @ torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5
    return x.t() @ x / len(x), torch.randn(outputs, n, generator=g, dtype=torch.float64)


def cells(units: int, taps: int) -> list[list[int]]:
    return [list(range(u * taps, (u + 1) * taps)) for u in range(units)]


# -- the elimination itself --------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.booleans())
@settings(max_examples=40)
def test_costs_are_what_least_squares_loses(seed, units, taps, outputs, several):
    """Step by step along the order found, of one consumer or of two that read different units."""
    problems = [problem(seed, units, taps, outputs)]
    which = [list(range(units))]
    if several and units > 1:
        problems.append(problem(seed + 1, units - 1, 1, 2))
        which.append(list(range(1, units)))
    sizes = [taps, 1]
    order, lost = eliminate(
        [reader(h, w, cells(len(of), t), of) for (h, w), of, t in zip(problems, which, sizes, strict=False)], units
    )
    assert sorted(order.tolist()) == list(range(units)) and lost[0] == 0
    for n in range(units + 1):
        wanted = 0.0
        for (h, w), of, t in zip(problems, which, sizes, strict=False):
            gone = [c for k, u in enumerate(of) if u in order[:n] for c in cells(len(of), t)[k]]
            wanted += loss_without(h, w, gone)
        assert lost[n] == pytest.approx(wanted, rel=1e-7, abs=1e-9)


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=40)
def test_each_step_is_the_best_one_and_never_below_the_best_subset(seed, units, taps, outputs):
    h, w = problem(seed, units, taps, outputs)
    order, lost = eliminate([reader(h, w, cells(units, taps))], units)

    def without(some: Any) -> float:
        return loss_without(h, w, [c for u in some for c in cells(units, taps)[u]])

    for n in range(units):
        before = order[:n].tolist()
        least = min(without([*before, u]) for u in range(units) if u not in before)
        assert lost[n + 1] == pytest.approx(least, rel=1e-7, abs=1e-9)
        assert lost[n] >= min(without(some) for some in itertools.combinations(range(units), n)) - 1e-9


def test_of_orthogonal_inputs_the_order_is_optimal():
    g = torch.Generator().manual_seed(0)
    h = torch.diag(torch.rand(6, generator=g, dtype=torch.float64) + 0.1)
    w = torch.randn(3, 6, generator=g, dtype=torch.float64)
    order, lost = eliminate([reader(h, w, cells(6, 1))], 6)
    for n in range(7):
        best = min(loss_without(h, w, list(some)) for some in itertools.combinations(range(6), n))
        assert lost[n] == pytest.approx(best, rel=1e-9)
    assert order.tolist() == np.argsort((h.diagonal() * w.square().sum(0)).numpy()).tolist()


@pytest.mark.parametrize("units", [18, 40])
def test_with_smaller_matrices_the_numbers_are_the_same(units, monkeypatch):
    """Half-way the columns that are gone are left out."""
    h, w = problem(3, units, 2, 4)
    packs = []
    packed = Reader.packed

    def counted(self: Reader, gone: torch.Tensor) -> Reader:
        packs.append(int(gone.sum()))
        return packed(self, gone)

    monkeypatch.setattr(Reader, "packed", counted)
    order, lost = eliminate([reader(h, w, cells(units, 2))], units)
    assert packs
    monkeypatch.setattr(Reader, "packed", lambda self, gone: self)
    plain_order, plain_lost = eliminate([reader(h, w, cells(units, 2))], units)
    assert order.tolist() == plain_order.tolist()
    np.testing.assert_allclose(lost, plain_lost, rtol=1e-8)


def test_what_must_stay_goes_last():
    h, w = problem(1, 6, 1, 2)
    w[:, [1, 4]] = 1e-6  # they would go first
    last = torch.tensor([False, True, False, False, True, False])
    order, lost = eliminate([reader(h, w, cells(6, 1))], 6, last)
    assert set(order[-2:].tolist()) == {1, 4} and set(eliminate([reader(h, w, cells(6, 1))], 6)[0][:2]) == {1, 4}
    assert lost[-1] == pytest.approx(loss_without(h, w, list(range(6))))


def test_of_two_units_that_are_alike_one_goes_first_at_no_cost():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(60, 5, generator=g, dtype=torch.float64)
    x[:, 3] = -2 * x[:, 1]
    h = x.t() @ x / 60 + 1e-10 * torch.eye(5, dtype=torch.float64)
    order, lost = eliminate([reader(h, torch.randn(2, 5, generator=g, dtype=torch.float64), cells(5, 1))], 5)
    assert order[0] in (1, 3) and lost[1] < 1e-8 < 1e-3 < lost[2]


# -- on networks -------------------------------------------------------------------------------------------------------


class Both(nn.Module):
    """Two layers read the same units, one of them twice as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.o(torch.relu(self.b(h)) * self.c(h))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))


def nets(name: str) -> tuple[nn.Module, torch.Tensor, str, list[str]]:
    """A network, its input, a layer, and those that read its units."""
    image, row = (4, 2, 6, 6), (12, 3)
    found: dict[str, tuple[Any, tuple[int, ...], str, list[str]]] = {
        "linear": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), row, "0", ["2"]),
        "no bias": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)), row, "0", ["2"]),
        "several": (Both, row, "a", ["b", "c"]),
        "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3)), image, "0", ["2"]),
        "padded": (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2, padding=1)),
            image,
            "0",
            ["2"],
        ),
        "flatten": (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
            (40, 2, 6, 6),
            "0",
            ["3"],
        ),
        "grouped": (grouped, image, "0", ["2"]),
        "transposed": (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2, padding=1)),
            image,
            "0",
            ["2"],
        ),
    }
    build, shape, layer, readers = found[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return randomise(build().double(), 1).eval(), x, layer, readers


NAMES = ["linear", "no bias", "several", "conv", "padded", "flatten", "grouped", "transposed"]


def loss_of(out: torch.Tensor) -> torch.Tensor:
    """A mean over examples of something that is not alike for all outputs."""
    scale = torch.arange(1, out.shape[1] + 1, dtype=out.dtype).reshape(1, -1, *[1] * (out.ndim - 2))
    return (scale * out).sin().square().flatten(1).sum(1).mean()


def seen(model: nn.Module, x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into a layer, and the square of the gradient at its output: [outputs], a mean over all places."""
    kept: dict[str, torch.Tensor] = {}

    def hook(m: nn.Module, i: Any, o: torch.Tensor) -> None:
        kept["x"], kept["y"] = i[0].detach(), o

    handle = model.get_submodule(name).register_forward_hook(hook)
    (g,) = torch.autograd.grad(loss_of(model(x)), kept["y"])
    handle.remove()
    g = (g * len(x)).square()
    return kept["x"], g.movedim(1, -1).reshape(-1, g.shape[1]).mean(0)


def design(layer: Any, x: torch.Tensor) -> list[tuple[torch.Tensor, list[int]]]:
    """For each output the rows [places, inputs of the layer that it reads times taps] by pushing unit inputs through.

    The output is linear in the layer's weights, so the columns are outputs for weights of one 1.
    """
    found = []
    twin = copy.deepcopy(layer)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    for o in range(layer(x[:1]).shape[1]):
        columns, channels = [], []
        size = layer.weight.shape[0] if transposed else layer.weight.shape[1]
        taps = list(np.ndindex(*layer.weight.shape[2:]))
        for i in range(size):
            for tap in taps:
                with torch.no_grad():
                    twin.weight.zero_()
                    twin.weight[(i, o, *tap) if transposed else (o, i, *tap)] = 1
                    if twin.bias is not None:
                        twin.bias.zero_()
                    columns.append(twin(x)[:, o].reshape(-1))
                group = 0 if transposed else o // (layer.weight.shape[0] // getattr(layer, "groups", 1))
                channels.append(group * size + i)
        found.append((torch.stack(columns, 1), channels))
    return found


def residual(
    model: nn.Module, x: torch.Tensor, readers: list[str], gone: Any, repeat: int, even: bool = False
) -> float:
    """By least squares: what is lost at the outputs of the readers without some units, the bias fitted anew."""
    total = 0.0
    for name in readers:
        layer: Any = model.get_submodule(name)
        inputs, energy = seen(model, x, name)
        energy = torch.ones_like(energy) if even else energy
        for o, (columns, channels) in enumerate(design(layer, inputs)):
            y = layer(inputs)[:, o].reshape(-1).detach()
            y = y - (layer.bias[o].detach() if layer.bias is not None else 0)
            left = [k for k, c in enumerate(channels) if c // repeat not in gone]
            a = columns[:, left]
            if layer.bias is not None:
                a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
            rest = y - a @ torch.linalg.lstsq(a, y[:, None], driver="gelsd").solution[:, 0] if a.shape[1] else y
            total += 0.5 * float(energy[o] * rest.square().sum()) / len(x)
    return total


def curve_of(worth: Any, units: np.ndarray) -> Curve:
    return next(c for c in worth.curves if np.isin(units, c.units).any())


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_of_a_layer_is_what_least_squares_leaves(name):
    model, x, layer, readers = nets(name)
    graph = sm.capture(model, x)
    worth = worth_of(reconstruction([x], loss_of, ridge=1e-11, positions=10**6), model, graph)
    units = graph[layer].units
    curve = curve_of(worth, units)
    assert sorted(curve.units.tolist()) == sorted(units.tolist()) and curve.worth[-1] == 0
    repeat = 4 if name == "flatten" else 1
    position = {int(u): k for k, u in enumerate(units)}
    ranked = [position[int(u)] for u in curve.units]
    lost = [residual(model, x, readers, set(ranked[n:]), repeat) for n in range(len(units) + 1)]
    np.testing.assert_allclose(-curve.worth, lost, rtol=1e-4, atol=1e-6 * max(lost))
    assert max(lost) > 1e-4 and (np.diff(curve.worth) >= 0).all()


@pytest.mark.parametrize("name", ["linear", "conv", "several"])
def test_batches_of_unlike_sizes_are_as_one(name):
    model, x, _, _ = nets(name)
    graph = sm.capture(model, x)
    one = worth_of(reconstruction([x], loss_of, positions=10**6), model, graph)
    parts = worth_of(reconstruction(list(x.split([1, len(x) - 1])), loss_of, positions=10**6), model, graph)
    for a, b in zip(one.curves, parts.curves, strict=True):
        assert a.units.tolist() == b.units.tolist()
        np.testing.assert_allclose(a.worth, b.worth, rtol=1e-9)


def same(a: Any, b: Any, rtol: float = 0.0) -> None:
    assert len(a.curves) == len(b.curves) > 0
    for c, d in zip(a.curves, b.curves, strict=True):
        assert c.units.tolist() == d.units.tolist()
        np.testing.assert_allclose(c.worth, d.worth, rtol=rtol)


def deep() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    x = torch.randn(6, 2, 9, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return randomise(model.double(), 6).eval(), x


@pytest.mark.parametrize("loss", [loss_of, None])
def test_several_passes_find_what_one_does(loss):
    model, x = deep()
    graph = sm.capture(model, x)
    drawn = []

    class Data:
        def __iter__(self) -> Any:
            drawn.append(1)
            return iter([x[:2], x[2:]])

    one = worth_of(reconstruction(Data(), loss), model, graph)
    assert len(drawn) == 2  # an iterator is asked for once to see whether it is one
    same(worth_of(reconstruction(Data(), loss, memory=1), model, graph), one)
    assert len(drawn) == 2 + 3


def test_two_runs_find_the_same_and_other_seeds_look_elsewhere():
    model, x = deep()
    graph = sm.capture(model, x)
    found = [worth_of(reconstruction([x], loss_of, positions=5, seed=s), model, graph) for s in (0, 0, 1)]
    same(found[0], found[1])
    assert not np.allclose(found[0].curves[0].worth, found[2].curves[0].worth)
    every = worth_of(reconstruction([x], loss_of, positions=10**6), model, graph)
    assert found[0].curves[0].worth[0] == pytest.approx(every.curves[0].worth[0], rel=0.5)


def test_without_a_loss_it_is_half_the_squared_distance_of_the_outputs():
    """At the last layer exactly, whatever signs are drawn."""
    model, x = deep()
    graph = sm.capture(model, x)
    units = graph["3"].units
    curve = curve_of(worth_of(reconstruction([x], ridge=1e-11, positions=10**6), model, graph), units)
    position = {int(u): k for k, u in enumerate(units)}
    ranked = [position[int(u)] for u in curve.units]
    lost = [residual(model, x, ["5"], set(ranked[n:]), 1, even=True) for n in range(len(units) + 1)]
    np.testing.assert_allclose(-curve.worth, lost, rtol=1e-4, atol=1e-6 * max(lost))


def test_labels_are_not_looked_at_without_a_loss():
    model, x = deep()
    graph = sm.capture(model, x)
    bare = worth_of(reconstruction([x]), model, graph)
    same(worth_of(reconstruction([(x, torch.zeros(len(x)))]), model, graph), bare)


def test_units_that_are_duplicates_go_first():
    model, x = deep()
    with torch.no_grad():
        for t in (model[0].weight, model[0].bias, *model[1].parameters(), *model[1].buffers()):
            if t.ndim:
                t[4] = t[1]
    graph = sm.capture(model, x)
    curve = curve_of(worth_of(reconstruction([x], loss_of, ridge=1e-9), model, graph), graph["0"].units)
    assert curve.units[-1] in graph["0"].units[[1, 4]]
    assert -curve.worth[-2] < 1e-5 * -curve.worth[-3]


def test_a_dead_unit_goes_first_and_costs_nothing():
    model, x = deep()
    with torch.no_grad():
        model[3].weight[2] = 0
        model[3].bias[2] = -1
    graph = sm.capture(model, x)
    curve = curve_of(worth_of(reconstruction([x], loss_of, ridge=1e-9), model, graph), graph["3"].units)
    assert curve.units[-1] == graph["3"].units[2] and 0 <= -curve.worth[-2] < 1e-6 * -curve.worth[-3]


def test_frozen_units_stay_to_the_end():
    class Tied(nn.Module):
        """What is added to the input stays as wide; a concat puts it beside what is free."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(7, 2)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.o(torch.cat([h, x + self.b(h)], 1))

    model = randomise(Tied().double())
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = sm.capture(model, x)
    worth = worth_of(reconstruction([x], lambda out: out.square().sum(1).mean()), model, graph)
    units = np.concatenate([c.units for c in worth.curves])
    assert set(graph["a"].units) == set(units.tolist())
    frozen = graph.coupling.frozen.copy()
    graph.coupling.frozen[graph["a"].units[:2]] = True
    with torch.no_grad():
        model.o.weight[:, :2] = 0
        model.b.weight[:, :2] = 0
    late = worth_of(reconstruction([x], lambda out: out.square().sum(1).mean()), model, graph).curves[0]
    assert set(late.units[:2]) == set(graph["a"].units[:2]) and not frozen[late.units].any()


def test_singular_moments_without_a_ridge_are_told():
    model, x, _, _ = nets("linear")
    graph = sm.capture(model, x)
    for few in (x[:1], x[:1].expand(3, -1).clone(), x[:4]):
        with pytest.raises(ValuesError, match="larger ridge"):
            worth_of(reconstruction([few], loss_of, ridge=0), model, graph)
        assert worth_of(reconstruction([few], loss_of, ridge=1e-3), model, graph).curves
    curve = curve_of(worth_of(reconstruction([x], loss_of, ridge=0), model, graph), graph["0"].units)
    close = curve_of(worth_of(reconstruction([x], loss_of, ridge=1e-12), model, graph), graph["0"].units)
    np.testing.assert_allclose(curve.worth, close.worth, rtol=1e-6)


def test_inputs_that_are_all_zero_make_no_infinities():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    x = torch.rand(9, 3, dtype=torch.float64)
    graph = sm.capture(model, x)
    curve = worth_of(reconstruction([x], loss_of), model, graph).curves[0]
    assert len(curve.units) == 4 and np.isfinite(curve.worth).all()


def test_no_batch_no_positions_no_ridge():
    model, x, _, _ = nets("linear")
    with pytest.raises(ValuesError, match="no batch"):
        worth_of(reconstruction([], loss_of), model, sm.capture(model, x))
    for wrong in ({"ridge": -1}, {"ridge": "a"}, {"positions": 0}, {"memory": 0}, {"seed": "a"}):
        with pytest.raises(ValuesError, match=next(iter(wrong))):
            reconstruction([x], loss_of, **wrong)  # type: ignore[arg-type]


class Unread(nn.Module):
    """The units of `a` are read by no linear map: the product is summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(3, 5), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(torch.relu(self.b(x))) + torch.tanh(self.a(x)).sum(1, keepdim=True)


@pytest.mark.parametrize("loss", [loss_of, None])
def test_units_that_no_linear_map_reads_are_warned_about_and_stand_in(loss):
    model = randomise(Unread().double())
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = sm.capture(model, x)
    with pytest.warns(UserWarning, match="no linear map is seen to read the units of a"):
        worth = worth_of(reconstruction([x], loss), model, graph)
    assert [set(c.units) for c in worth.curves] == [set(graph["b"].units)]
    value = worth.value[graph["a"].units]
    if loss is None:
        h = model.a(
            x
        ).detach()  # both outputs move by it: with signs that agree or not, (1 + 1) ** 2 or 0, 2 in the mean
        slope = ((1 - torch.tanh(h).square()) * h).square().mean(0).numpy()
        assert (value > 0).all() and value == pytest.approx(slope, rel=1.0)
    else:
        wanted = sm.values.unit_values(sm.values.fisher([x], loss), model, graph)[graph["a"].units]
        np.testing.assert_allclose(value, wanted)


def test_more_columns_than_can_be_looked_at_are_told(monkeypatch):
    monkeypatch.setattr("solvemut.values.elimination.MOST_COLUMNS", 4)
    model, x, _, _ = nets("linear")
    graph = sm.capture(model, x)
    with pytest.warns(UserWarning, match="5 columns: too many"):
        worth = worth_of(reconstruction([x], loss_of), model, graph)
    assert not worth.curves and (worth.value[graph["0"].units] > 0).all()


def test_pruning_by_reconstruction_and_mending_beats_pruning_by_magnitude():
    """What the curve foretells is what the loss of the mended layer comes to."""
    model, x, _, _ = nets("linear")
    mut = sm.Mutator(model, x)
    wanted = F.linear(model[1](model[0](x)), model[2].weight, model[2].bias).detach()
    plan = mut.prune(params=0.65, values=reconstruction([x], ridge=1e-9), dry_run=True)
    kept = plan.indices["0.weight"][0]
    h = model[1](model[0](x)).detach()

    def left(units: Any) -> float:
        a = torch.cat([h[:, list(units)], torch.ones(len(x), 1, dtype=h.dtype)], 1)
        return float((wanted - a @ torch.linalg.lstsq(a, wanted).solution).square().sum())

    every = [left(u) for u in itertools.combinations(range(5), len(kept))]
    assert plan.objective == pytest.approx(-left(kept) / (2 * len(x)), rel=1e-3)
    assert 0 < len(kept) < 5 and left(kept) <= np.median(every)
