"""Evolution: it improves, forgives what fails, and gives the same whatever it runs on and wherever it was cut off."""

from __future__ import annotations

import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from problems import MUTATE, dense, fragile, near_40, trained

from solvemut.errors import RequestError
from solvemut.search import Candidate, Resize, crossover, evolve

OPTIONS = {"mutate": MUTATE, "crossover": crossover, "p_crossover": 0.5, "seed": 3}


def told(found: list[Candidate]) -> list[tuple]:
    """Everything of a population that can be compared."""
    states = [{k: v.tolist() for k, v in c.mutator.model.state_dict().items()} for c in found]
    return [(c.line(), state) for c, state in zip(found, states, strict=True)]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_toy_fitness_improves_and_the_given_networks_stay():
    start = [dense(), dense(4)]
    before = [m.model.state_dict()["a.weight"].clone() for m in start]
    best = []
    found = evolve(
        start * 3, near_40, 5, mutate=Resize(-0.5, 1.0), seed=1, progress=lambda g, p: best.append((g, p[0].fitness))
    )
    assert [g for g, _ in best] == list(range(6)) and best == sorted(best)  # the elite never gets worse
    assert best[0][1] == -25 and found[0].fitness > -8
    assert found[0].fitness == near_40(found[0].mutator) and len(found) == 6
    assert [c.fitness for c in found] == sorted((c.fitness for c in found), reverse=True)
    assert all(torch.equal(m.model.a.weight, w) and not m.history for m, w in zip(start, before, strict=True))


def test_nan_and_exceptions_are_the_worst(tmp_path, caplog):
    log = tmp_path / "log"
    found = evolve([dense(n) for n in (6, 7, 8, 9)], fragile, 0, mutate=Resize(), log=log)
    assert [c.mutator.graph["a"].nout for c in found] == [9, 6, 7, 8]
    assert [c.fitness for c in found] == [9, 6, -math.inf, -math.inf]
    rows = lines(log)
    assert [r["fitness"] for r in rows] == [6, None, None, 9] and rows[1]["error"] == "ValueError: 7 units"
    assert "candidate 1 has no fitness: ValueError: 7 units" in caplog.text


def test_a_mutation_that_fails_counts_as_the_worst():
    def broken(mutator, rng):
        mutator.resize({"a": 1})
        raise RuntimeError("broken")

    found = evolve([dense(), dense()], near_40, 1, mutate=broken)
    assert found[0].number == 0 and found[1].error == "RuntimeError: broken" and found[1].fitness == -math.inf
    assert found[1].mutator.graph["a"].nout == found[1].mutator.model.a.out_features == 6


def test_the_log_has_a_line_for_each_evaluation(tmp_path):
    log = tmp_path / "log.jsonl"
    evolve([dense(n) for n in (4, 5, 6, 7)], near_40, 2, elites=1, log=log, **OPTIONS)
    rows = lines(log)
    assert [r["number"] for r in rows] == list(range(10)) and [r["generation"] for r in rows] == [0] * 4 + [1] * 3 + [
        2
    ] * 3
    assert all(r["parents"] == [] and r["mutations"] == [] for r in rows[:4])
    assert all(1 <= len(r["parents"]) <= 2 and max(r["parents"]) < r["number"] for r in rows[4:])
    assert any(len(r["parents"]) == 2 and r["mutations"][0].startswith("graft") for r in rows)
    assert any(m.startswith("resize a ") for r in rows for m in r["mutations"])
    assert rows[0]["params"] == dense(4).graph.params.now and rows[0]["flops"] == dense(4).graph.flops.now
    assert len({r["seed"] for r in rows}) == 10


def test_one_seed_gives_one_result_whatever_is_drawn_elsewhere():
    runs = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(noise)
        start = [dense(n) for n in (4, 5, 6)]
        torch.manual_seed(noise)
        runs.append(told(evolve(start, trained, 2, **{**OPTIONS, "seed": seed})))
        assert torch.initial_seed() == noise
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
def test_processes_and_threads_give_what_one_process_gives():
    start = [dense(n) for n in (4, 5, 6)]
    serial = told(evolve(start, trained, 2, **OPTIONS))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert told(evolve(start, trained, 2, executor=pool, **OPTIONS)) == serial
    plain = told(evolve(start, near_40, 2, **OPTIONS))
    with ThreadPoolExecutor(2) as pool:  # with a fitness that draws nothing: threads share torch's stream
        assert told(evolve(start, near_40, 2, executor=pool, **OPTIONS)) == plain


class Stop(BaseException):
    """What ends a run from outside."""


@pytest.mark.parametrize("after", [2, 4, 7])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(after, tmp_path):
    def start():
        return [dense(n) for n in (4, 5, 6)]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = told(evolve(start(), trained, 3, log=whole, **OPTIONS))
    calls = []

    def interrupted(mutator):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return trained(mutator)

    with pytest.raises(Stop):
        evolve(start(), interrupted, 3, log=cut, **OPTIONS)
    assert len(lines(cut)) == after
    found = evolve(start(), trained, 3, log=cut, resume=True, **OPTIONS)
    assert told(found) == expected and cut.read_bytes() == whole.read_bytes()


def test_a_run_can_go_on_for_more_generations(tmp_path):
    start, log = [dense(n) for n in (4, 5, 6)], tmp_path / "log"
    evolve(start, near_40, 1, log=log, **OPTIONS)
    longer = evolve(start, near_40, 3, log=log, resume=True, **OPTIONS)
    assert told(longer) == told(evolve(start, near_40, 3, **OPTIONS))
    assert told(evolve(start, near_40, 3, log=log, resume=True, **OPTIONS)) == told(longer) and len(lines(log)) == 9


def test_a_log_is_not_overwritten_nor_resumed_with_another_seed(tmp_path):
    log = tmp_path / "log"
    evolve([dense(), dense()], near_40, 0, mutate=Resize(), log=log)
    before = log.read_bytes()
    for options, told_why in (({}, "exists"), ({"resume": True, "seed": 1}, "seed was 0, is 1")):
        with pytest.raises(RequestError, match=told_why):
            evolve([dense(), dense()], near_40, 1, mutate=Resize(), log=log, **options)
    assert log.read_bytes() == before
    log.unlink()
    with pytest.raises(RequestError, match="has 0 lines"):
        evolve([dense(), dense()], near_40, 1, mutate=Resize(), log=log, resume=True)
    evolve([dense(), dense()], near_40, 0, mutate=Resize(), log=log, seed=1)  # another evolution, from its beginning
    assert evolve([dense(), dense()], near_40, 1, mutate=Resize(), log=log, seed=1, resume=True)[0].generation <= 1


@pytest.mark.parametrize(
    "options", [{"elites": 2}, {"tournament": 0}, {"p_crossover": 2}, {"resume": True}, {"seed": "x"}, {"elites": -1}]
)
def test_what_makes_no_sense_is_refused(options):
    start = [dense(), dense()]
    with pytest.raises(RequestError):
        evolve(start, near_40, 1, mutate=Resize(), **options)
    for population in ([], dense(), ["a"]):
        with pytest.raises(RequestError, match="population"):
            evolve(population, near_40, 1, mutate=Resize())
