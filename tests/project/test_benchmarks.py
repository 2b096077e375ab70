"""The benchmark of mutations in a row measures what it says it does, on a small network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from solvemut.errors import RequestError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", BENCHMARKS / "mutations.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


def test_the_network_has_as_many_convolutions_as_it_says(mutations):
    model, x = mutations.network(50)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 50 and {m.out_channels for m in convs} >= {16, 32, 64}
    assert x.shape == (1, 3, 32, 32) and torch.isfinite(model(x)).all()


def test_one_mutation_of_each_kind(mutations):
    run = mutations.Run(seed=0, layers=18, image=8, check=True)
    for kind in mutations.KINDS:
        run.step(kind)
    assert [o.bug for o in run.outcomes if o.bug] == []
    made = [o for o in run.outcomes if o.plan]
    assert len(made) == len(run.mut.history) >= 6 and all(o.wall > 0 for o in made)
    kept = [o.drift for o in made if o.keeps]
    assert kept and max(kept) < mutations.DRIFT
    assert any(o.drift > mutations.DRIFT for o in made)  # so that the drift can tell
    told = mutations.report(run.outcomes)
    assert all(f"| {kind} " in told for kind in (*mutations.KINDS, "all")) and "8 mutations" in told


def test_what_is_refused_and_what_is_a_bug_are_counted_apart(mutations, monkeypatch, capsys):
    run = mutations.Run(seed=2, layers=18, image=8)

    def raising(error):
        def call():
            raise error

        return lambda draw: call

    monkeypatch.setattr(mutations.Draw, "remove", raising(RequestError("'a.b' of 7 channels stays")))
    monkeypatch.setattr(mutations.Draw, "insert", raising(KeyError("nowhere")))

    def spoilt(draw):
        def call():
            with torch.no_grad():
                run.model.head.bias += 1
            raise RequestError("changed all the same")

        return call

    monkeypatch.setattr(mutations.Draw, "connect", spoilt)
    refused, bug, worse = (run.step(kind) for kind in ("remove", "insert", "connect"))
    assert refused.refused == "RequestError: … of … channels stays" and not refused.bug
    assert "KeyError: 'nowhere'" in bug.bug and not bug.refused
    assert "the outputs are others" in worse.bug
    out = capsys.readouterr().out
    assert "--seed 2 --layers 18, mutation 1 (insert)" in out and "Traceback" in out
    told = mutations.report(run.outcomes)
    assert "2 bugs" in told and "1 x remove: RequestError" in told
