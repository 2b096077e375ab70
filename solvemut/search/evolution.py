"""Evolution: a population of networks that a fitness selects, on any executor, with a log to resume from."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..apply import Plan
from ..arguments import flag, items, scalar, shown, whole
from ..edits import Rewire
from ..errors import RequestError
from ..mutator import Mutator
from .mutations import LOG, TORCH, Mutation, drawing_from, share


@dataclass(frozen=True)
class Candidate:
    """A network of a population, with its fitness and where it comes from; -inf where there is no fitness."""

    number: int
    generation: int
    parents: tuple[int, ...]
    seed: int
    mutations: tuple[str, ...]
    fitness: float
    mutator: Mutator = field(repr=False)
    error: str = ""

    @property
    def rank(self) -> tuple[float, int]:
        """What populations are sorted by: the best first, the older first among equals."""
        return -self.fitness, self.number

    def line(self) -> str:
        """Its line in a log."""
        told = {k: getattr(self, k) for k in ("generation", "number", "parents", "mutations")}
        told["fitness"] = self.fitness if math.isfinite(self.fitness) else None
        costs = {"params": self.mutator.graph.params.now, "flops": self.mutator.graph.flops.now}
        return json.dumps({**told, **costs, "seed": self.seed, **({"error": self.error} if self.error else {})})


def evolve(
    population: Sequence[Mutator],
    fitness: Callable[[Mutator], Any],
    generations: int,
    *,
    mutate: Mutation,
    crossover: Callable[[Mutator, Mutator, random.Random], Mutator | None] | None = None,
    p_crossover: float = 0.3,
    elites: int = 1,
    tournament: int = 2,
    executor: Executor | None = None,
    seed: int = 0,
    log: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[int, list[Candidate]], Any] | None = None,
) -> list[Candidate]:
    """Evolve copies of networks for some generations; gives the last population, the best first.

    `fitness` takes a mutator, of which it may train the model, and gives a number, the larger the better; NaN and
    exceptions count as the worst. In each generation the `elites` best stay, and the others are offspring of winners of
    tournaments: copies, or with `p_crossover` what `crossover` makes of two of them, that `mutate` then changes.
    Candidates are made and evaluated by `executor`; what comes out depends on `seed` alone. `log` gets a line of JSON
    for each evaluation; beside it a pickle holds the last complete generation, from which `resume` goes on.
    `progress(generation, population)` is called after each generation.

    >>> from torch import nn
    >>> from solvemut.search import Resize
    >>> net = Mutator(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 2))
    >>> found = evolve([net] * 4, lambda mut: -mut.graph.params.now, 3, mutate=Resize(-0.5, 0.2))
    >>> found[0].fitness > -net.graph.params.now, net.graph["0"].nout
    (True, 8)
    """
    start = items(population) or []
    if not all(isinstance(m, Mutator) for m in start) or not start:
        raise RequestError(f"evolve: give a population of mutators, at least one, not {shown(population)}")
    plan: dict[str, Any] = {"seed": whole(seed, "seed"), "size": len(start)}
    plan |= {"elites": whole(elites, "elites", least=0), "tournament": whole(tournament, "tournament", least=1)}
    plan["p_crossover"] = share(p_crossover, "p_crossover") * (crossover is not None)
    if plan["elites"] >= len(start):
        raise RequestError(f"elites={elites}: give fewer than the population has ({len(start)}), or nothing is new")
    generations, journal = whole(generations, "generations", least=0), Journal(log, flag(resume, "resume"), plan)
    done, found = journal.state
    work = partial(_candidate, fitness, mutate, crossover)
    for generation in range(done + 1, generations + 1):
        new = []
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            for candidate in _results(executor, work, _jobs(start, found, generation, plan)):
                journal.write(candidate)
                new.append(candidate)
        found = sorted([*found[: plan["elites"]], *new], key=lambda c: c.rank)
        journal.complete(generation, found)
        LOG.info("generation %d: the best has fitness %g", generation, found[0].fitness)
        if progress is not None:
            progress(generation, found)
    return found


@dataclass(frozen=True)
class Job:
    """A candidate to be made: of which mutators, and the seed of all that is drawn on the way."""

    number: int
    generation: int
    parents: tuple[int, ...]
    mutators: tuple[Mutator, ...]
    run: int  # the seed of the evolution

    @property
    def seed(self) -> int:
        return random.Random(f"{self.run}/{self.number}").getrandbits(53)


def _jobs(start: list[Mutator], found: list[Candidate], generation: int, plan: dict[str, Any]) -> list[Job]:
    """What is to be made and evaluated in a generation: at first the networks given, later offspring."""
    if generation == 0:
        return [Job(k, 0, (), (m,), plan["seed"]) for k, m in enumerate(start)]
    new = plan["size"] - plan["elites"]
    first = plan["size"] + (generation - 1) * new
    return [_job(found, k, generation, plan) for k in range(first, first + new)]


def _job(found: list[Candidate], number: int, generation: int, plan: dict[str, Any]) -> Job:
    """An offspring: of the winner of a tournament, or of two."""
    rng = random.Random(f"{plan['seed']}/{number}/parents")
    cross, n = rng.random() < plan["p_crossover"], min(plan["tournament"], len(found))
    winners = [min(rng.sample(found, n), key=lambda c: c.rank) for _ in range(2)]
    parents = winners if cross and winners[0] is not winners[1] else winners[:1]
    return Job(number, generation, tuple(c.number for c in parents), tuple(c.mutator for c in parents), plan["seed"])


def _results(executor: Executor | None, work: Callable[[Job], Candidate], jobs: Sequence[Job]) -> Iterator[Candidate]:
    """Candidates in the order of the jobs, whatever the order in which they were done."""
    if executor is None:
        yield from map(work, jobs)
        return
    futures = [executor.submit(work, job) for job in jobs]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _candidate(fitness: Callable[[Mutator], Any], mutate: Any, cross: Any, job: Job) -> Candidate:
    """Make a candidate and evaluate it, wherever this runs."""
    rng, error, found = random.Random(job.seed), "", -math.inf
    with TORCH:
        child = job.mutators[0].copy()
        child.history = ()
    try:
        if job.generation:
            child = _offspring(job.mutators, mutate, cross, rng)
        with TORCH:
            torch.manual_seed(rng.getrandbits(63))
        told = tuple(map(_title, child.history))
        found = float(scalar(fitness(child)))
    except Exception as e:  # of one candidate, which then counts as the worst
        error = f"{type(e).__name__}: {e}"
        LOG.warning("candidate %d has no fitness: %s", job.number, error)
        told = tuple(map(_title, child.history))
    child.history = ()  # else it would grow with the generations
    child.model.zero_grad(set_to_none=True)
    found = -math.inf if math.isnan(found) else found
    return Candidate(job.number, job.generation, job.parents, job.seed, told, found, child, error)


def _offspring(parents: Sequence[Mutator], mutate: Mutation, cross: Any, rng: random.Random) -> Mutator:
    with drawing_from(rng):
        child = cross(*parents, rng) if len(parents) > 1 else None
        if child is None:
            child = parents[0].copy()
            child.history = ()
        mutate(child, rng)
    made: Mutator = child
    return made


def _title(plan: Plan) -> str:
    """What a plan did, in a line."""
    title = next((edit.what for edit in plan.edits if isinstance(edit, Rewire)), "")
    return title or "resize " + ", ".join(f"{k} {a} -> {b}" for k, (a, b) in plan.sizes.items() if a != b)


class Journal:
    """The log of an evolution, and beside it the last complete generation as a pickle."""

    def __init__(self, path: Any, resume: bool, plan: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.plan = plan
        self.state: tuple[int, list[Candidate]] = (-1, [])
        if self.path is None:
            if resume:
                raise RequestError("resume=True: give the log of what is to be resumed")
            return
        self.pickle = self.path.with_name(self.path.name + ".pickle")
        if resume and self.pickle.exists():
            self._load(self.path)
        elif not resume and self.path.exists():
            raise RequestError(f"log={str(path)!r} exists: give resume=True to go on with it, or another name")
        else:
            self.pickle.unlink(missing_ok=True)
            self.path.write_text("", encoding="utf-8")

    def _load(self, path: Path) -> None:
        with open(self.pickle, "rb") as f:
            plan, done, population = pickle.load(f)
        if plan != self.plan:
            unlike = ", ".join(f"{k} was {plan.get(k)}, is {v}" for k, v in self.plan.items() if plan.get(k) != v)
            raise RequestError(f"resume=True: {path} is the log of another evolution: {unlike}")
        self.state = done, population
        evaluated = plan["size"] + done * (plan["size"] - plan["elites"])
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if len(lines) < evaluated:
            raise RequestError(
                f"resume=True: {path} has {len(lines)} lines, {self.pickle} is of {evaluated} evaluations"
            )
        path.write_text("".join(lines[:evaluated]), encoding="utf-8")  # without a generation that was cut off

    def write(self, candidate: Candidate) -> None:
        """A line of the log."""
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(candidate.line() + "\n")

    def complete(self, generation: int, population: list[Candidate]) -> None:
        """The population after a generation, in place of the one before: the old one or the new one, never half."""
        if self.path is not None:
            new = self.pickle.with_name(self.pickle.name + ".new")
            with open(new, "wb") as f:
                pickle.dump((self.plan, generation, population), f)
            os.replace(new, self.pickle)
