"""The small examples run as a newcomer would run them, and what they print and return is so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_quick_tour(capsys):
    found = loaded("quick_tour").main()
    told = capsys.readouterr().out
    steps = [line.split()[0] for line in told[told.index("\nresize") :].splitlines() if line]  # after the graph
    first = ["resize", "remove", "insert", "connect", "disconnect", "grow", "prune"]
    assert steps == [*first, "the", "the"]
    small = found["resize"]
    assert small["add"] == small["residual"] == small["cat"] == small["conv"] + small["named"] == 9
    assert "norm" in small and "norm" not in found["remove"] and found["insert"]["residual_norm"] == 9
    assert (found["connect"]["cat"], found["disconnect"]) == (12, found["insert"])
    assert found["grow"]["named"] == small["named"] + 3
    assert found["drift"] <= 1e-5
    before, after = found["params"]
    assert 0 < after <= before / 2
    assert found["end"] == found["prune"] and found["end"]["add"] < found["grow"]["add"]
    assert found["copy"]["cat"] == 12 and "norm" in found["copy"]


def test_the_most_valuable_units_of_xor_are_missed_most(capsys):
    found = loaded("xor_pruning").main(["--seeds", "10"])
    told, means, shares = capsys.readouterr().out, found["means"], found["shares"]
    assert means["most"] > means["random"] > means["least"] >= means["original"]
    assert means["original"] < 1e-3 and means["least"] < 0.1 * means["random"]
    assert list(shares) == ["most > random", "random > least", "least >= original"]
    assert all(share >= 0.8 for share in shares.values())
    assert all(f"{inequality} " in told for inequality in shares)


def test_a_latency_budget(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    example = loaded("latency_budget")
    monkeypatch.setattr(example, "EPOCHS", 2)
    monkeypatch.setattr(example, "ROUNDS", 3)
    found = example.main()
    told = capsys.readouterr().out
    foretold = found["foretold"]
    assert foretold["half the ms"] <= 0.5 * foretold["trained"] < foretold["trained"]
    assert all(ms > 0 for ms in found["measured"].values()) and "half the FLOPs" in told
    costs, worth = zip(*found["frontier"], strict=True)
    assert list(costs) == sorted(costs) and list(worth) == sorted(worth) and "value per unit" in told


def test_a_deeper_network_goes_on_from_where_it_was(capsys):
    pytest.importorskip("sklearn")
    found = loaded("grow_depth").main([])
    told = capsys.readouterr().out
    assert found["moved"] <= 1e-5 and found["inserted"] == pytest.approx(found["trained"], abs=1e-5)
    loss = {name: found[name][0] for name in ("trained", "grown", "fresh", "original")}
    assert loss["grown"] < loss["original"] < loss["trained"]
    assert loss["grown"] < 2 * loss["fresh"]  # as good as from the start, give or take what seeds do
    assert found["grown"][1] > 90 and all(name in told for name in loss)
