"""The example runs as a newcomer would run it, and each of its plans keeps both budgets by an independent count."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

EXAMPLE = Path(__file__).parents[2] / "examples" / "prune_digits.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("prune_digits", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(example, tmp_path_factory) -> tuple[list, Path]:
    figure = tmp_path_factory.mktemp("example") / "figures" / "digits.png"
    return example.main(["--seeds", "1", "--epochs", "4", "--tune", "1", "--figure", str(figure)]), figure


def counts(model: torch.nn.Module) -> dict[str, int]:
    """What torch itself says: FLOPs of one image, and parameters."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 1, 8, 8))
    return {"flops": counter.get_total_flops(), "params": sum(p.numel() for p in model.parameters())}


def test_every_method_is_there_and_within_both_budgets(example, run):
    outcomes, _ = run
    assert [outcome.method for outcome in outcomes] == list(example.METHODS)
    for outcome in outcomes:
        assert outcome.share("flops") <= example.FLOPS
        assert outcome.share("params") <= example.PARAMS


def test_the_optimal_plans_are_proven(run):
    for outcome in run[0][:4]:
        assert outcome.method.startswith("optimal")
        assert outcome.plan.status == "optimal"
        assert outcome.plan.gap == 0
        assert outcome.plan.bound == outcome.plan.objective


def test_figure_is_a_picture(run):
    assert run[1].read_bytes().startswith(b"\x89PNG")


def test_network_learns(run):
    assert run[0][0].dense > 80


def test_counts_agree_with_torch_and_the_optimizer_follows(example, run):
    """The plan of each method, applied to a fresh network: torch counts what the plan says, and training goes on."""
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    for outcome in run[0]:
        model = example.DigitsNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        assert counts(model) == {name: outcome.plan.costs[name].before for name in ("flops", "params")}
        example.loss(model.train()(images), labels).backward()
        optimizer.step()
        outcome.plan.apply(model, optimizer)
        assert counts(model) == {name: outcome.plan.costs[name].after for name in ("flops", "params")}
        optimizer.zero_grad()
        example.loss(model.train()(images), labels).backward()
        optimizer.step()
        shapes = {p: p.shape for group in optimizer.param_groups for p in group["params"]}
        assert set(shapes) == set(model.parameters())
        assert all(state["momentum_buffer"].shape == shapes[p] for p, state in optimizer.state.items())


def test_report_names_every_method_and_the_budgets_used(example, run):
    text = example.report(run[0])
    for name in example.METHODS:
        assert sum(line.startswith(name) for line in text.splitlines()) >= 1
