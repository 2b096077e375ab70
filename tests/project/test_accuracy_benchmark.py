"""The benchmark of accuracy: its data, rows that are not run twice, its report, and what Torch-Pruning kept."""

from __future__ import annotations

import importlib
import json

import benchmarks_path  # noqa: F401  # lets benchmarks be imported
import pytest
import torch

accuracy = importlib.import_module("accuracy")
nets = importlib.import_module("accuracy_nets")

FEW = {"optimal": {"retention": 3.0, "fisher": 4.0}, "uniform": {"magnitude": 1.0, "random": 0.5}}


@pytest.fixture(scope="module")
def digits():
    return nets.digits()


def made_up(seed: int, selection: str, values: str, gain: float, **more) -> dict:
    """A row in which every stage is a point better than the one before."""
    key = {"data": "fashion", "model": "resnet", "seed": seed, "budget": "0.5"}
    stages = {s: {"accuracy": 85 + gain + k + 0.1 * seed, "loss": 0.5} for k, s in enumerate(accuracy.STAGES)}
    row = key | {"selection": selection, "values": values, "stages": stages, "flops": 0.5, "params": 0.4}
    dense = {"accuracy": 91.5 + 0.1 * seed, "loss": 0.2, "epoch_s": 40.0}
    return row | {"seconds": {"values": 10.0, "solve": 1.0, "bn": 0.5, "ls": 2.0}, "dense": dense} | more


def test_digits_are_split_once_and_for_all(digits):
    assert digits.train_x.shape == (1200, 1, 8, 8) and digits.test_x.shape == (597, 1, 8, 8)
    assert digits.train_x.min() == 0 and digits.train_x.max() == 1
    assert digits.train_y.unique().tolist() == list(range(10)) == digits.test_y.unique().tolist()
    again = nets.digits()
    assert torch.equal(again.test_x, digits.test_x)
    first, same = digits.sample(100, size=64), again.sample(100, size=64)
    assert [len(x) for x, _ in first] == [64, 36] and all(map(torch.equal, first[1], same[1]))
    assert sum(y.numel() for _, y in digits.test()) == 597
    assert len({id(x) for x, _ in digits.held()}) == len(digits.held()) > 0


def test_characters_are_told_from_those_before():
    data = nets.text()
    assert data.train_x.shape[1] == nets.CONTEXT and len(data.test_x) > 100
    assert torch.equal(data.train_x[:, 1:], data.train_y[:, :-1]) and data.train_x.max() < data.classes
    net, x = nets.build("gpt", data).eval(), data.test_x[:2]
    later = x.clone()
    later[:, 40:] = 0
    assert torch.allclose(net(x)[:, :40], net(later)[:, :40], atol=1e-5)  # no look ahead
    assert net(x).shape == (2, nets.CONTEXT, data.classes) and nets.loss(net(x), data.test_y[:2]).ndim == 0


@pytest.mark.parametrize("name", [n for n in nets.NETWORKS if n != "gpt"])
def test_networks_read_images(name, digits):
    assert nets.build(name, digits).eval()(digits.test_x[:3]).shape == (3, 10)


def test_a_trained_network_is_kept(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(nets.DIGITS, "resnet", nets.Recipe(1, 0.1, 5e-4, batch=100))
    said = []
    first = nets.trained(digits, "resnet", 0, tmp_path, said.append)
    again = nets.trained(digits, "resnet", 0, tmp_path, said.append)
    assert len(said) == 2 and first.accuracy == again.accuracy > 0 and again.epoch_s > 0
    assert nets.measure(again.model, digits) == pytest.approx({"accuracy": first.accuracy, "loss": first.loss})
    other = nets.trained(digits, "resnet", 1, tmp_path, said.append)
    assert len(said) == 4 and not torch.equal(other.model.head.weight, first.model.head.weight)


def options(tmp_path, *more: str):
    return accuracy.parsed(
        ["--cache", str(tmp_path), "--seeds", "2", "--budgets", "0.5", "--only", "*/uniform/*", *more]
    )


def test_rows_that_are_there_are_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "Case", lambda name, *rest: type("Case", (), {"name": name}))
    monkeypatch.setattr(accuracy, "trained", lambda *args: None)
    monkeypatch.setitem(accuracy.DATA, "fashion", lambda: None)
    ran: list[str] = []

    def row_of(case, key, tuned):
        ran.append(f"{key.seed} {key.values}" + " tuned" * tuned)
        if key.values == "random":
            raise ValueError("went wrong")
        if key.values == "fisher" and not tuned:
            raise accuracy.Missing("fisher is not in this version")
        row = made_up(key.seed, key.selection, key.values, 0.0)
        row["stages"] = {s: v for s, v in row["stages"].items() if tuned or "tune" not in s}
        return row

    def runs(*more: str) -> list[str]:
        ran.clear()
        accuracy.run(options(tmp_path, *more), row_of)
        return list(ran)

    all_of_them = [f"{s} {v}" for s in (0, 1) for v in ("magnitude", "fisher", "outputs", "reconstruction", "random")]
    assert runs("--deadline", "-1") == [] and "deadline" in capsys.readouterr().out
    assert runs() == all_of_them
    assert runs() == ["0 fisher", "1 fisher"]  # what could not be done is tried again, what failed is a result
    assert "fisher is not in this version" in capsys.readouterr().out
    assert runs("--retry") == ["0 fisher", "0 random", "1 fisher", "1 random"]
    with (tmp_path / "results.jsonl").open("a") as f:
        f.write('{"data": "fashion", "mod')  # as after a crash
    tuned = [f"{r} tuned" for r in all_of_them if "random" not in r]
    assert runs("--tune") == tuned and runs("--tune") == []
    rows = accuracy.read(tmp_path / "results.jsonl")
    assert len(rows) == 10 and sum("error" in r for r in rows.values()) == 2
    assert runs("--again", "--only", "*/1/*/uniform/*") == [*tuned[4:], "1 random"]
    assert all(set(r["stages"]) == set(accuracy.STAGES) for r in rows.values() if "error" not in r)


def test_the_report_tells_what_is_hit(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    kinds = [(s, v, gain) for s, values in FEW.items() for v, gain in values.items()]
    rows = [made_up(seed, *kind) for kind in kinds for seed in (0, 1)]
    rows.append(made_up(0, "torch-pruning", "magnitude", 0.0) | {"stages": {}, "error": "ValueError: no"})
    out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    accuracy.main(["--report", "--out", str(out)])
    told = " ".join(capsys.readouterr().out.split())
    assert "as trained: 91.55 ± 0.07 %" in told and "| 89.05 ± 0.07 | 90.05 ± 0.07 |" in told
    assert "ValueError: no" in told and out.with_suffix(".png").stat().st_size > 1000
    assert "(a) without data, 0.5, batch norm: HIT: optimal retention 89.05 ± 0.07; +2.00 on uniform magnitude" in told
    assert "(b) at most 0.8 points lost, 0.5, least squares: HIT: optimal fisher loses 0.50 points" in told
    assert "(b) ahead, 0.5, least squares: HIT: optimal fisher 91.05 ± 0.07; +3.00 on uniform magnitude" in told
    assert "(d) values and repair within an epoch, fisher: HIT: 12.0 s, an epoch 40.0 s" in told
    assert "(a) without data, 0.3, batch norm: no rows" in told
    rows.append(made_up(1, "global", "fisher", 4.5))  # of one seed: compared on that seed
    told = accuracy.report({accuracy.Key.of(r): r for r in rows})
    assert "(b) ahead, 0.5, least squares: MISSED: optimal fisher 91.05 ± 0.07; -0.50 on global fisher" in told


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize("name, importance", [("resnet", "magnitude"), ("resnet", "taylor"), ("vit", "hessian")])
def test_what_torch_pruning_kept(name, importance, digits, monkeypatch):
    pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
    monkeypatch.setattr(accuracy, "SAMPLES", 16)
    monkeypatch.setattr(accuracy, "STEPS", 10)
    torch.manual_seed(0)
    model = nets.build(name, digits).eval()
    case = accuracy.Case("", nets.Trained(model, digits, 0, 0.0, 0.0, 0.0), ["0.7", "0.5"])
    case.batches = digits.sample(24, size=8)
    pruned, plan, _ = case.peer(importance).at("0.5")
    assert case.peer(importance).at("0.7")[0].head.in_features >= pruned.head.in_features
    assert accuracy.size(pruned, case.x)["flops"] <= 0.5 * case.size["flops"]
    old, cut = model.state_dict(), 0
    for k, new in pruned.state_dict().items():
        want = old[k]
        for dim, positions in plan.indices.get(k, {}).items():
            want, cut = want.index_select(dim, torch.tensor(positions)), cut + 1
        assert torch.equal(new, want), k
    assert cut > 10
    seen = [sum(len(x) for x, _ in case.peer(importance).examples()), case.peer(importance).pruner.current_step]
    assert seen[0] == 16 and seen[1] > 1
