"""Plans as JSON, and a pruned checkpoint loaded again: fresh model, plan, state_dict."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from oracles import assert_same, outputs
from torch import nn
from training import planned, training_set

import solvemut as sm

# -- saving and loading ------------------------------------------------------------------------------------------------


RELOADED = ["Residual", "ResNeXt", "FusedQkv", "TiedHead", "GroupNorm", "SplitByAttribute", "Vit"]


@pytest.mark.parametrize("name", RELOADED)
def test_reload_from_fresh_model_plan_and_checkpoint(name, tmp_path):
    model, args = training_set(name)
    plan = planned(model, args, 0.8)
    plan.apply(model)
    plan.save(tmp_path / "plan.json")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = NETS[name].model()
    loaded = sm.Plan.load(tmp_path / "plan.json")
    loaded.apply(fresh)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same(outputs(fresh, args), outputs(model, args))


def test_json_round_trip_keeps_everything():
    model, args = training_set("ResNeXt")
    plan = planned(model, args)
    again = sm.Plan.from_json(plan.to_json())
    for field in (
        "status",
        "objective",
        "bound",
        "gap",
        "sizes",
        "indices",
        "shapes",
        "costs",
        "attributes",
        "notes",
        "edits",
        "selection",
        "units",
        "back",
    ):
        assert getattr(again, field) == getattr(plan, field), field
    assert str(again) == str(plan)
    data = json.loads(plan.to_json())
    assert data["version"] == 5 and data["format"] == "solvemut-plan"


class Saved(nn.Module):
    """The model of data/plan_v1.json, which was written when plan files had version 1."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.parts = 3, [4, 6]
        self.a = nn.Conv2d(3, 8, 3)
        self.g = nn.Conv2d(8, 8, 3, groups=4)
        self.b = nn.Linear(8, 10)
        self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6)
        self.e = nn.Linear(6, 2)

    def forward(self, x):
        h = self.b(self.g(self.a(x).relu()).mean((2, 3)))
        u, v = h.split(self.parts, 1)
        y = self.c(u) + self.d(v)
        return self.e(y.view(y.shape[0], self.heads, -1).softmax(-1).flatten(1))


def test_a_file_of_version_1_loads_prints_and_applies():
    path = Path(__file__).parents[1] / "data" / "plan_v1.json"
    old, plan = json.loads(path.read_text(encoding="utf-8")), sm.Plan.load(path)
    assert old["version"] == 1 and plan.indices["a.bias"] == {0: old["indices"]["a.bias"]["0"]}
    assert [[e.module, e.name, e.index, e.before, e.after] for e in plan.edits] == old["attributes"] != []
    assert {"parts[0] 4 3", "heads 3 2"} <= {" ".join(line.split()) for line in str(plan).splitlines()}
    again = sm.Plan.from_json(plan.to_json())
    assert again == plan and str(again) == str(plan) and json.loads(plan.to_json())["version"] == 5
    models = [Saved(), Saved()]
    models[1].load_state_dict(models[0].state_dict())
    for model, one in zip(models, (plan, again), strict=True):
        one.apply(model)
        assert (model.heads, model.parts, model.g.groups, model.e.in_features) == (2, [3, 4], 4, 4)
        assert {n: p.shape for n, p in model.named_parameters()} == {n: after for n, (_, after) in plan.shapes.items()}
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(models[0](x), models[1](x))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"format": "other"}',
        '{"format": "solvemut-plan", "version": 1}',
        '{"format": "solvemut-plan", "version": "x"}',
    ],
)
def test_corrupt_json(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(sm.errors.PlanMismatchError):
        sm.Plan.load(tmp_path / "plan.json")


def test_json_of_a_later_version_and_with_pieces_missing():
    model, args = training_set("Mlp")
    data = json.loads(planned(model, args).to_json())
    with pytest.raises(sm.errors.PlanMismatchError, match="version"):
        sm.Plan.from_json(json.dumps({**data, "version": 99}))
    for key in data:
        with pytest.raises(sm.errors.PlanMismatchError):
            sm.Plan.from_json(json.dumps({k: v for k, v in data.items() if k != key}))
    for key in ("selection", "edits", "units", "shapes", "sizes", "costs", "certificate"):
        for bad in (None, 3, "x", [[1]], {"0.weight": 7}):
            with pytest.raises(sm.errors.PlanMismatchError):
                sm.Plan.from_json(json.dumps({**data, key: bad})).apply(copy.deepcopy(model))


def test_functional_use_of_weights_after_pruning():
    model, args = training_set("TiedAutoencoder")
    sm.prune(model, args, params=0.6, values=sm.values.random(0))
    y = F.linear(model.enc(args[0]).sigmoid(), model.enc.weight.t(), model.bias)
    assert_same(outputs(model, args), [y.detach()])
