"""The benchmark of prunability: its masked reference, its criteria, its files and its report, on small networks."""

from __future__ import annotations

import copy

import benchmarks_path  # noqa: F401  (lets tests import what lies in benchmarks/)
import prunability as bench
import prunability_models as models
import pytest
import torch
from torch import nn

import solvemut as sm


class Gain(nn.Module):
    """A norm written in Python, that no list of classes knows."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(n) + 0.5)

    def forward(self, x):
        return self.scale * x / x.pow(2).mean(-1, keepdim=True).add(1e-3).sqrt()


def network() -> nn.Module:
    torch.manual_seed(0)
    norms = Gain(12), nn.LayerNorm(12)
    return nn.Sequential(nn.Linear(6, 12), norms[0], nn.Tanh(), norms[1], nn.Linear(12, 3)).eval()


INPUTS = ((torch.randn(4, 6),), {})


def test_norms_written_in_python_count_the_channels_that_stay():
    model = network()
    original, plan = copy.deepcopy(model), sm.prune(model, *INPUTS, flops=0.5, progress=False)
    found = bench.compare(model, copy.deepcopy(original), plan.indices, INPUTS)
    assert found["dtype"] == "float64" and found["difference"] < 1e-12 and found["moves"] > 0.01
    bench.mask(original, plan.indices)
    assert not torch.allclose(original(*INPUTS[0]), model.float()(*INPUTS[0]), atol=1e-3)  # without telling the norms
    assert bench.follow_norms(original, model, plan.indices) == ["1", "3"]
    assert torch.allclose(original(*INPUTS[0]), model(*INPUTS[0]), atol=1e-5)


def test_a_wrong_index_shows():
    model = network()
    original, plan = copy.deepcopy(model), sm.prune(model, *INPUTS, flops=0.5, progress=False)
    with torch.no_grad():
        model[4].weight.copy_(model[4].weight.roll(1, 1))
    assert bench.compare(model, original, plan.indices, INPUTS)["difference"] > 1e-3


@pytest.mark.parametrize(
    ("row", "stage"),
    [
        ({"share": 0.5, "dtype": "float64", "difference": 1e-15, "moves": 0.1}, None),
        ({"share": 0.51, "dtype": "float64", "difference": 1e-15, "moves": 0.1}, "budget"),
        ({"share": 0.4, "dtype": "float64", "difference": 1e-3, "moves": 0.1}, "outputs"),
        ({"share": 0.4, "dtype": "float64", "difference": float("nan"), "moves": 0.1}, "outputs"),
        ({"share": 0.4, "dtype": "float64", "difference": 0.0, "moves": 0.0}, "outputs"),
        ({"stage": "solve", "failure": "InfeasibleError: none"}, "solve"),
    ],
)
def test_every_criterion_must_hold(row, stage):
    found = bench.judged(row)
    assert found["ok"] == (stage is None) and found.get("stage") == stage


def test_both_sides_on_a_small_network(monkeypatch):
    pytest.importorskip("torch_pruning", reason="the peer is not installed")
    monkeypatch.setattr(bench, "build", lambda zoo, name: (network(), INPUTS))
    rows = [bench.Stages().through(side("tv", "tiny")) for side in (bench.ours, bench.peer)]
    assert rows[0]["ok"] and rows[0]["share"] <= 0.5 and rows[0]["capture_s"] >= 0
    assert not rows[0]["frozen"] and rows[1]["share"] < 1


def test_what_is_raised_is_the_failure_of_its_stage(monkeypatch):
    def fails(zoo, name):
        raise MemoryError("too large")

    monkeypatch.setattr(bench, "build", fails)
    row = bench.Stages().through(bench.ours("tv", "tiny"))
    assert row == {"ok": False, "stage": "build", "failure": "MemoryError: too large"}


def test_output_layers_are_those_whose_result_is_returned():
    model = network()
    assert bench.output_layers(model, INPUTS) == [model[4]]


def test_files_go_on_where_they_were(tmp_path):
    path, key = tmp_path / "rows.csv", {"zoo": "hf", "model": "a"}
    bench.append(path, [{**key, "side": "solvemut", "ok": False, "stage": "solve", "failure": 'x, y"z'}])
    bench.append(path, [{**key, "side": "torch-pruning", "ok": True, "share": 0.25}])
    bench.append(path, [{**key, "side": "solvemut", "ok": True, "share": 0.4999, "difference": 1.5e-15}])
    mine, peers = sorted(bench.read(path), key=lambda r: r["side"])
    assert (mine["ok"], mine["share"], mine["difference"], mine["stage"]) == (True, 0.4999, 1.5e-15, "")
    assert (peers["ok"], peers["share"], peers["gap"]) == (True, 0.25, None)
    told = bench.report([mine, peers])
    assert "| hf      | 1      | 1        | 1             |" in told and "no failures" in told


def test_a_process_that_dies_leaves_a_row():
    rows = bench.completed(("hf", "a"), bench.SIDES, [{"side": "solvemut", "ok": True}], "the process ended with -9")
    assert rows[1]["side"] == "torch-pruning" and rows[1]["failure"] == "the process ended with -9"
    assert bench.completed(("hf", "a"), bench.SIDES, [], "late") == [
        {"zoo": "hf", "model": "a", "side": "solvemut", "ok": False, "stage": "process", "failure": "late"}
    ]


def test_failures_of_one_cause_count_together():
    rows = [
        {
            "zoo": "hf",
            "model": m,
            "side": "solvemut",
            "ok": False,
            "stage": "solve",
            "failure": f"no plan: {n} of 'x{n}'",
        }
        for m, n in (("a", 7), ("b", 8))
    ]
    assert "| solvemut | 2      | solve: no plan: … of … | a, b  |" in bench.report(rows)


def test_models_are_picked_by_name_and_by_library():
    assert bench.wanted("hf", ["llama*"]) == [("hf", "llama"), ("hf", "llama+mask")]
    assert bench.wanted("all", ["tv/resnet18", "hf/t5"]) == [("hf", "t5"), ("tv", "resnet18")]
    assert {z for z, _ in bench.wanted("all", ["resnet50"])} == {"tv", "timm"}


def test_numbers_that_would_hide_a_mistake_are_varied():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    model.gain = nn.Parameter(torch.zeros(1))
    model.gain.requires_grad_(True)
    models.vary(model)
    models.settle(model, (torch.randn(2, 3, 8, 8) + 3,), {})
    assert model[1].weight.std() > 0.05 and model[2].bias.std() > 0.05 and model.gain.item() == 0.5
    assert not model[1].training and model[1].momentum == 0.1 and model[1].running_mean.abs().max() > 0.1


def test_a_side_that_does_not_end_is_stopped():
    with pytest.raises(TimeoutError, match="after 1 s"), bench.alarm(1):
        while True:
            pass
