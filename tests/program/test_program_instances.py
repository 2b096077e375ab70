"""The benchmark's instances are the networks they claim to be, and the benchmark runs."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks_path import instances

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "solve.py"


def test_parameters_and_flops_are_those_of_the_published_networks():
    """The doctests hold the totals that torchvision's models have (less the classifier's bias)."""
    results = doctest.testmod(instances)
    assert results.attempted >= 10 and results.failed == 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "unet", "vit_b", "densenet121"])
def test_networks_solve_under_both_budgets(name):
    budgets = {"flops": 0.5, "params": 0.6}
    program = instances.INSTANCES[name](step=32 if name != "densenet121" else 16, budgets=budgets)
    solution = program.solve(time_limit=60, gap=0.01)
    solution.check()
    assert solution.status == "optimal" and set(solution.costs) == set(budgets)


def test_the_same_arguments_give_the_same_instance():
    assert instances.latency(50, 0.5, seed=3).to_json() == instances.latency(50, 0.5, seed=3).to_json()
    assert instances.variants(seed=1).to_json() != instances.variants(seed=2).to_json()


def test_the_benchmark_reports_a_row(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARK), "--quick", "--only", "mobilenet", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "mobilenet_v2/8" in done.stdout, done.stderr
    (row,) = json.loads(out.read_text())["cases"]
    assert row["gap"] <= row["target_gap"] and row["bound"] >= row["objective"] and row["memory_mib"] < 2048
