"""Mutations: random changes of a network, and crossover between two of them."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..apply import Plan
from ..arguments import items, one_of, real, shown, whole
from ..building import identity_init
from ..errors import InfeasibleError, RequestError, TimeLimitError
from ..mutator import Mutator
from ..requests import exactly, relaxed
from ..surgery import Settling, cuts, graft, perform
from ..tracing import like

LOG = logging.getLogger("solvemut")
TRIES = 3  # places that a mutation tries before it gives up
DEVIATION = 0.25  # how far apart two cuts may lie, as shares of their models
IMPOSSIBLE = (InfeasibleError, RequestError, TimeLimitError)
Mutation = Callable[[Mutator, random.Random], Any]
TORCH = threading.RLock()  # torch draws from one stream, whatever the thread


@contextmanager
def drawing_from(rng: random.Random) -> Iterator[None]:
    """What torch draws in here follows from `rng`; afterwards its own stream goes on where it was."""
    with TORCH, torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(rng.getrandbits(63))
        yield


def share(x: Any, what: str) -> float:
    """A probability that was given; RequestError, naming `what`, for anything outside 0 to 1."""
    found = real(x, what, give := "give a probability, from 0 to 1")
    if not 0 <= found <= 1:
        raise RequestError(f"{what}: {give}, not {shown(x)}")
    return found


def _first(rng: random.Random, edits: Sequence[Callable[[], Plan]]) -> Plan | None:
    """The first of a few edits, in random order, that is possible; one that is not leaves everything as it was."""
    for edit in rng.sample(edits, min(TRIES, len(edits))):
        try:
            with drawing_from(rng):
                return edit()
        except IMPOSSIBLE as e:
            LOG.info("a mutation was not possible: %s", e)
    return None


def _step(size: int, x: float) -> int:
    """The change of a size by a share of it, away from 0; 0 for 0."""
    if not x:
        return 0
    n = max(1, math.ceil(round(abs(x) * size, 9)))  # rounded, as 0.7 * 10 is more than 7
    return n if x > 0 else -n


@dataclass(frozen=True)
class Resize:
    """Each layer gets, with probability `p`, a change by a share of its size drawn from `low` to `high`.

    All of them are asked for at once, and come as near as they can. No size leaves the bounds `least` and `most`.

    >>> mut = Mutator(nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 2)), torch.ones(1, 2))
    >>> Resize(0.4, 0.4)(mut, random.Random(0)).sizes["0"]
    (10, 14)
    """

    low: float = -0.2
    high: float = 0.2
    p: float = 1.0
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        low, high = (real(x, f"Resize: {n}", "give a share") for n, x in (("low", self.low), ("high", self.high)))
        least, _ = whole(self.least, "Resize: least", least=1), share(self.p, "Resize: p")
        if low > high or (self.most is not None and whole(self.most, "Resize: most") < least):
            raise RequestError(f"{self}: give low <= high and least <= most")

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        graph, changes = mutator.graph, {}
        for v in graph.vertices:
            if not v.makes_units or graph.frozen_because(v) or rng.random() >= self.p:
                continue
            size = self._bounded(v.nout, v.nout + _step(v.nout, rng.uniform(self.low, self.high)))
            if size != v.nout:
                changes[v.name] = relaxed(exactly(size))
        return _first(rng, [partial(self._made, mutator, changes)] if changes else [])

    def _bounded(self, now: int, size: int) -> int:
        """The nearest size within the bounds; a size that is outside already may come nearer to them."""
        least, most = min(self.least, now), math.inf if self.most is None else max(self.most, now)
        return int(min(max(size, least), most))

    def _made(self, mutator: Mutator, changes: dict[str, Any]) -> Plan:
        plan = mutator.resize(changes, dry_run=True)
        for v in mutator.graph.vertices:
            before, after = plan.sizes.get(v.name, (v.nout, v.nout))
            if v.makes_units and self._bounded(before, after) != after:
                raise RequestError(f"{v.name} would get the size {after}, outside of {self.least} to {self.most}")
        return mutator.apply(plan)


def _value(mutator: Mutator, v: Any) -> tuple[tuple[int, ...], int | None]:
    """The shape of what a vertex puts out, and the dim of its units."""
    shape = mutator.graph.trace.shape(v.nodes[-1] if v.nodes else v.name)
    return shape, None if v.dim is None else v.dim % len(shape)


def _alike(mutator: Mutator, a: Any, b: Any) -> bool:
    """Whether the values of two vertices differ in nothing but the number of units."""
    (x, d), (y, e) = _value(mutator, a), _value(mutator, b)
    return d is not None and d == e and len(x) == len(y) and (*x[:d], *x[d + 1 :]) == (*y[:d], *y[d + 1 :])


def _layers(mutator: Mutator, v: Any) -> list[nn.Module]:
    """A layer for a place, with an activation, that passes on what is not negative."""
    shape, dim = _value(mutator, v)
    if dim == 1 and len(shape) == 4:
        conv = nn.Conv2d(v.nout, v.nout, 3, padding=1)
        return [identity_init(conv), identity_init(nn.BatchNorm2d(v.nout)), nn.ReLU()]
    if dim != len(shape) - 1:
        raise RequestError(f"{v.name}: there is no layer at hand for values of shape {shape} with units in dim {dim}")
    return [identity_init(nn.Linear(v.nout, v.nout)), nn.ReLU()]


@dataclass(frozen=True)
class Insert:
    """A new layer behind a random vertex, with probability `p`.

    `make(vertex, rng)` gives a module or a list of them. Without it they are a linear layer or a 3x3 convolution with
    its batch norm, and a ReLU: at first they pass on whatever is not negative.

    >>> import solvemut as sm
    >>> mut = Mutator(sm.editable(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))), torch.ones(1, 2))
    >>> Insert()(mut, random.Random(0)).edits[0].describe()
    'insert linear_1, relu_1 after 0'
    """

    make: Callable[[Any, random.Random], Any] | None = None
    p: float = 1.0

    def __post_init__(self) -> None:
        share(self.p, "Insert: p")

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        if rng.random() >= self.p:
            return None
        places = [v for v in mutator.graph.vertices if mutator.graph.outputs(v)]
        return _first(rng, [partial(self._made, mutator, v, rng) for v in places])

    def _made(self, mutator: Mutator, v: Any, rng: random.Random) -> Plan:
        made = _layers(mutator, v) if self.make is None else self.make(v, rng)
        modules = [made] if isinstance(made, nn.Module) else items(made) or []
        tensor = like(mutator.model)
        for m in modules:
            m.train(mutator.model.training)
            if tensor is not None:
                m.to(tensor.device, tensor.dtype)
        return mutator.insert(after=v.name, module=modules)


@dataclass(frozen=True)
class Remove:
    """A random vertex goes, with probability `p`: one that reads one value and puts out a value of the same shape."""

    p: float = 1.0

    def __post_init__(self) -> None:
        share(self.p, "Remove: p")

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        if rng.random() >= self.p:
            return None
        graph = mutator.graph
        places = [v for v in graph.vertices if len(graph.inputs(v)) == 1 and graph.outputs(v)]
        places = [v for v in places if _alike(mutator, graph.inputs(v)[0], v)]
        return _first(rng, [partial(mutator.remove, v.name) for v in places])


@dataclass(frozen=True)
class Connect:
    """A new edge between two random vertices whose values are alike but for their units, with probability `p`.

    What comes before a layer that reads one value is joined by `merge`: "concat", "add", or "either" of them.
    """

    p: float = 1.0
    merge: str = "concat"

    def __post_init__(self) -> None:
        share(self.p, "Connect: p")
        one_of(self.merge, "Connect: merge", ("concat", "add", "either"))

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        if rng.random() >= self.p:
            return None
        merge, graph = rng.choice(("concat", "add")) if self.merge == "either" else self.merge, mutator.graph
        edits = []
        for b in graph.vertices:
            before = graph.inputs(b)
            if not before or b.op == "parameter":
                continue
            later = {v.name for v in (b, *graph.descendants(b), *before)}
            place = before[0] if len(before) == 1 else b
            sources = [a for a in graph.vertices if a.name not in later and _alike(mutator, a, place)]
            edits += [partial(mutator.connect, a.name, b.name, merge=merge) for a in sources]
        return _first(rng, edits)


@dataclass(frozen=True)
class Disconnect:
    """A random edge goes, with probability `p`: one whose source others read, and whose target reads others, too."""

    p: float = 1.0

    def __post_init__(self) -> None:
        share(self.p, "Disconnect: p")

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        if rng.random() >= self.p:
            return None
        graph, edits = mutator.graph, []
        for b in graph.vertices:
            before = graph.inputs(b)
            for k, a in enumerate(before if len(before) > 1 else []):
                if len(graph.outputs(a)) > 1:
                    nr = sum(v is a for v in before[:k])
                    edits.append(partial(mutator.disconnect, a.name, b.name, nr))
        return _first(rng, edits)


@dataclass(frozen=True, init=False)
class Chain:
    """Mutations one after another; gives the last plan."""

    mutations: tuple[Mutation, ...]

    def __init__(self, *mutations: Mutation) -> None:
        object.__setattr__(self, "mutations", mutations)

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        plans = [mutation(mutator, rng) for mutation in self.mutations]
        return next((p for p in reversed(plans) if p is not None), None)


@dataclass(frozen=True)
class Choose:
    """One of several mutations, by weight; all weigh the same if no weights are given."""

    mutations: Sequence[Mutation]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        weights = [1.0] * len(self.mutations) if self.weights is None else list(self.weights)
        if len(weights) != len(self.mutations) or not all(w >= 0 for w in weights) or not sum(weights) > 0:
            raise RequestError("Choose: give mutations, and a weight of at least 0 for each, not all of them 0")

    def __call__(self, mutator: Mutator, rng: random.Random) -> Plan | None:
        (mutation,) = rng.choices(list(self.mutations), self.weights)
        plan: Plan | None = mutation(mutator, rng)
        return plan


def crossover(a: Mutator, b: Mutator, rng: random.Random, deviation: float = DEVIATION) -> Mutator | None:
    """A new mutator: the front of one model and a copy of the back of the other, cut where their values are alike.

    A cut is a vertex that everything passes through; the two lie at most `deviation` of their models apart. The program
    settles the size where they meet. None, if there are no such cuts. Parents stay as they are.

    >>> import copy, solvemut as sm
    >>> model = sm.editable(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> a, b = Mutator(model, torch.ones(1, 2)), Mutator(sm.editable(copy.deepcopy(model)), torch.ones(1, 2))
    >>> _ = b.resize({"0": +3})
    >>> crossover(a, b, random.Random(0)).graph["2"].nin
    [7]
    """
    pairs = [
        (front, back)
        for front in cuts(a.model, a.graph)
        for back in cuts(b.model, b.graph)
        if front.fits(back) and abs(front.position - back.position) <= deviation
    ]
    for front, back in rng.sample(pairs, min(TRIES, len(pairs))):
        child = a.copy()
        operation = graft(front.vertex, b.model, b.graph, back.vertex)
        try:
            with drawing_from(rng):
                plan, graph = perform(operation, child.model, child.graph, (), False, Settling())
        except IMPOSSIBLE as e:
            LOG.info("a crossover was not possible: %s", e)
            continue
        child.graph, child.history = graph, (*child.history, plan)
        return child
    return None
