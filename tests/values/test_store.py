"""Values in a file: the same numbers and curves for the same model, refused for another; and metrics that are kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import ValuesError
from solvemut.values import Curve, Metric, Worth, worth_of

LOSS = nn.functional.cross_entropy


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def x(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Batches:
    """A loader that counts what is drawn from it."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[Any]:
        for k in range(2):
            self.drawn += 1
            yield x() + k, torch.arange(6) % 3


def same(a: Worth, b: Worth) -> bool:
    def equal(p: Any, q: Any) -> bool:
        return (p is None and q is None) or (p is not None and q is not None and np.array_equal(p, q))

    curves = len(a.curves) == len(b.curves) and all(
        equal(c.units, d.units) and equal(c.worth, d.worth) for c, d in zip(a.curves, b.curves, strict=True)
    )
    return curves and equal(a.value, b.value) and equal(a.new, b.new) and equal(a.second, b.second)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sm.values.magnitude(),
        lambda: sm.values.retention(),
        lambda: sm.values.fisher(Batches(), LOSS),
        lambda: sm.values.reconstruction(Batches(), LOSS),
        lambda: {"0": np.arange(8.0)},
        lambda: None,
    ],
)
def test_what_was_saved_is_loaded_to_the_last_digit(tmp_path, make):
    model, values = net(), make()
    graph = sm.capture(model, x())
    sm.values.save(values, graph, tmp_path / "found")
    assert [p.name for p in tmp_path.iterdir()] == ["found"]  # no ending is added
    loaded = sm.values.load(tmp_path / "found")
    assert loaded.name == (values.name if isinstance(values, Metric) else "given by the caller")
    assert same(worth_of(loaded, model, graph), worth_of(values, model, graph))
    twin = copy.deepcopy(model)
    assert same(worth_of(loaded, twin, sm.capture(twin, x())), loaded.score(model, graph))


def test_worth_of_every_kind_is_kept(tmp_path):
    model = net()
    graph = sm.capture(model, x())
    n, units = graph.coupling.n_units, graph["0"].units
    worth = Worth(
        np.arange(n) / 7, (Curve(units[::-1].copy(), np.r_[-np.inf, np.arange(8) / 3]),), np.full(n, 0.1), np.ones(n)
    )
    sm.values.save(worth, graph, tmp_path / "w.npz")
    assert same(worth_of(sm.values.load(tmp_path / "w.npz"), model, graph), worth)


def test_plans_by_loaded_values_are_those_by_the_metric(tmp_path):
    model = net()
    mut = sm.Mutator(model, x())
    metric = sm.values.reconstruction(Batches(), LOSS)
    sm.values.save(metric, mut.graph, tmp_path / "v.npz")
    plans = [mut.prune(params=0.6, values=v, dry_run=True) for v in (metric, sm.values.load(str(tmp_path / "v.npz")))]
    assert plans[0].indices == plans[1].indices and plans[0].objective == plans[1].objective


@pytest.mark.parametrize("what", ["weight", "buffer", "units", "frozen"])
def test_of_another_model_the_loaded_metric_says_so(tmp_path, what):
    model = net()
    mut = sm.Mutator(model, x())
    sm.values.save(sm.values.magnitude(), mut.graph, tmp_path / "v.npz")
    loaded = sm.values.load(tmp_path / "v.npz")
    worth_of(loaded, model, mut.graph)
    with torch.no_grad():
        if what == "weight":
            model[3].weight[0, 0] += 1e-12
        elif what == "buffer":
            model[1].running_mean[0] += 1
    if what == "units":
        mut.prune(params=0.7, values=loaded)
    elif what == "frozen":
        mut.graph.coupling.frozen[mut.graph["0"].units[0]] = True
    with pytest.raises(ValuesError, match="weights of this Sequential, or its units"):
        mut.prune(params=0.9, values=loaded)


def test_damage_anywhere_in_a_file_is_seen_or_does_no_harm(tmp_path):
    """Whichever byte is flipped, and wherever the file ends: ValuesError, or the very same values."""
    graph = sm.capture(net(), x())
    sm.values.save(sm.values.retention(), graph, tmp_path / "v")
    whole, model = (tmp_path / "v").read_bytes(), graph.model
    wanted = worth_of(sm.values.retention(), model, graph)
    refused = 0
    cut = [whole[:n] for n in range(0, len(whole), 37)]
    flipped = [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in range(0, len(whole), 5)]
    for data in (*cut, *flipped):
        (tmp_path / "d").write_bytes(data)
        try:
            assert same(worth_of(sm.values.load(tmp_path / "d"), model, graph), wanted)
        except ValuesError:
            refused += 1
    assert refused > 0.5 * len(cut + flipped)


def rewritten(path: Path, header: dict[str, Any], arrays: dict[str, Any]) -> Path:
    """The file with other things in it; None takes an array out."""
    with np.load(path, allow_pickle=False) as found:
        now = {k: found[k] for k in found.files}
    told = np.array(json.dumps({**json.loads(str(now["header"])), **header}))
    with open(path, "wb") as file:
        np.savez(file, **{k: a for k, a in {**now, "header": told, **arrays}.items() if a is not None})
    return path


@pytest.mark.parametrize(
    ("header", "arrays", "told"),
    [
        ({"format": "other"}, {}, "format"),
        ({"version": 2}, {}, "version 2"),
        ({"checksum": None}, {}, "whose"),
        ({"curves": -1}, {}, "-1 curves"),
        ({"curves": 3}, {}, "missing"),
        ({}, {"value": None}, "'value' is missing"),
        ({}, {"value": np.ones((2, 2))}, "shape"),
        ({}, {"units 0": np.ones(8)}, "float64"),
        ({}, {"worth 0": np.ones(2)}, "a curve over 8"),
        ({}, {"worth 0": np.full(9, np.nan)}, "a curve"),
        ({}, {"new": np.ones(3)}, "'new' has 3"),
        ({}, {"header": np.array("no json")}, "JSONDecodeError"),
        ({}, {"header": np.array("[1]")}, "format"),
        ({}, {"value": np.array([{}], dtype=object)}, "pickle"),
    ],
)
def test_what_is_no_file_of_values_is_refused(tmp_path, header, arrays, told):
    graph = sm.capture(net(), x())
    sm.values.save(sm.values.retention(), graph, tmp_path / "v")
    with pytest.raises(ValuesError, match=told):
        sm.values.load(rewritten(tmp_path / "v", header, arrays))


def test_files_of_other_kinds_are_refused_and_none_is_no_file(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    torch.save({"a": torch.ones(2)}, tmp_path / "b.pt")
    (tmp_path / "c").write_text("values")
    (tmp_path / "d").write_bytes(b"")
    for name in ("a.npy", "b.pt", "c", "d"):
        with pytest.raises(ValuesError, match="holds no values"):
            sm.values.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        sm.values.load(tmp_path / "e")


# -- kept while the weights stay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda data: sm.values.fisher(data, LOSS),
        lambda data: sm.values.reconstruction(data, LOSS),
        lambda data: sm.values.measured(data, LOSS, order=sm.values.magnitude(), points=2),
    ],
)
def test_several_budgets_cost_one_evaluation_and_other_weights_another(make):
    model, data = net(), Batches()
    mut, metric = sm.Mutator(model, x()), make(data)
    first = mut.prune(params=0.8, values=metric, dry_run=True)
    once = data.drawn
    for budget in (0.6, 0.4, 0.8):
        again = mut.prune(params=budget, values=metric, dry_run=True)
    assert once > 0 and data.drawn == once and again.indices == first.indices
    kept = model[3].weight.detach().clone()
    with torch.no_grad():
        model[3].weight[1, 2] += 0.5
    mut.prune(params=0.8, values=metric, dry_run=True)
    assert data.drawn == 2 * once
    with torch.no_grad():
        model[3].weight.copy_(kept)  # as they were: what was found then holds again
    mut.prune(params=0.8, values=metric, dry_run=True)
    assert data.drawn == 2 * once
    mut.prune(params=0.8, values=metric)
    mut.prune(params=1.0, values=metric, dry_run=True)
    assert data.drawn > 2 * once  # of a pruned model anew


def test_a_metric_that_does_not_keep_looks_each_time():
    data = Batches()
    mut, metric = sm.Mutator(net(), x()), sm.values.taylor(data, lambda m, b: LOSS(m(b[0]), b[1]))
    for _ in range(2):
        mut.prune(params=0.8, values=metric, dry_run=True)
    assert data.drawn == 4


def test_a_metric_writes_what_it_keeps(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    x = torch.randn(12, 4, dtype=torch.float64)
    graph, metric = sm.capture(model, x), sm.values.reconstruction([x])
    with pytest.raises(ValuesError, match="nothing is kept"):
        metric.save(tmp_path / "values.npz")
    worth = sm.values.worth_of(metric, model, graph)
    metric.save(tmp_path / "values.npz")
    again = sm.values.worth_of(sm.values.load(tmp_path / "values.npz"), model, graph)
    assert [c.units.tolist() for c in again.curves] == [c.units.tolist() for c in worth.curves]
    assert [c.worth.tolist() for c in again.curves] == [c.worth.tolist() for c in worth.curves]
