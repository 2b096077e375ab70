"""Random programs: every shape of program that the solver must not care about is a strategy in ``SHAPES``."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from oracle_program import Budget, Linear, Number, Spec, Term, costs

NIGHTLY = os.environ.get("SOLVEMUT_NIGHTLY") == "1"
MAX_CHOICES = 700  # of the brute force, per example


def examples(count: int, nightly: int = 20) -> settings:
    """Settings with ``count`` examples, ``nightly`` times as many in the nightly profile."""
    return settings(max_examples=count * (nightly if NIGHTLY else 1))


class Stopwatch:
    """Seconds since it was made: by the clock on the wall; on an overloaded machine those that the process had."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        wall, cpu = time.monotonic() - self.wall, time.process_time() - self.cpu
        overloaded = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
        return min(wall, cpu) if overloaded else wall


# -- numbers ---------------------------------------------------------------------------------------------------------

NUMBERS: dict[str, st.SearchStrategy[Number]] = {
    "small": st.integers(-4, 9),
    "ties": st.integers(0, 2),
    "dyadic": st.integers(-20, 60).map(lambda n: n / 8),
    "float": st.floats(-3.0, 8.0, allow_nan=False),
    "huge": st.integers(-(10**17), 10**18),
    "mixed": st.sampled_from([0, 1, 10**9, 10**12 + 1, 1e-6, 0.1, 3, 2.5e8]),
}


def vectors(numbers: st.SearchStrategy[Number], size: int) -> st.SearchStrategy[tuple[Number, ...]]:
    return st.lists(numbers, min_size=size, max_size=size).map(tuple)


@st.composite
def prefix_sums(draw: st.DrawFn, size: int) -> tuple[Number, ...]:
    """What a block's value looks like: concave, from unit values sorted from the best down."""
    units = sorted(draw(vectors(st.integers(0, 12), size)), reverse=True)
    return tuple(itertools.accumulate(units))


# -- programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Who stands beside whom: level counts, the pairs that carry tables, and the switch of each name or pair."""

    sizes: Mapping[str, int]
    pairs: tuple[tuple[str, str], ...]
    switches: tuple[str, ...] = ()
    owner: Mapping[str, str] = ()  # type: ignore[assignment]  # inner width -> the switch that removes it


@st.composite
def sizes_of(draw: st.DrawFn, names: Sequence[str], room: int = MAX_CHOICES) -> dict[str, int]:
    """Level counts from 1 up whose product stays within the brute force's reach."""
    sizes = {}
    for left, name in enumerate(names):
        share = int(room ** (1 / (len(names) - left)) + 1e-9)
        sizes[name] = draw(st.integers(1, max(1, min(6, share + 1))))
        room //= sizes[name]
        room = max(room, 1)
    return sizes


@st.composite
def chains(draw: st.DrawFn) -> Layout:
    names = [f"w{i}" for i in range(draw(st.integers(1, 6)))]
    return Layout(draw(sizes_of(names)), tuple(itertools.pairwise(names)))


@st.composite
def stars(draw: st.DrawFn) -> Layout:
    """A residual stream and its blocks: stream to inner, inner to inner, inner back to the stream."""
    blocks = draw(st.integers(1, 2))
    names, pairs = ["stream"], []
    for block in range(blocks):
        one, two = f"b{block}.1", f"b{block}.2"
        names += [one, two]
        pairs += [("stream", one), (one, two), (two, "stream")]
    return Layout(draw(sizes_of(names)), tuple(pairs))


@st.composite
def dense_blocks(draw: st.DrawFn) -> Layout:
    names = [f"d{i}" for i in range(draw(st.integers(3, 6)))]
    return Layout(draw(sizes_of(names)), tuple(itertools.combinations(names, 2)))


@st.composite
def u_shapes(draw: st.DrawFn) -> Layout:
    names = [f"u{i}" for i in range(2 * draw(st.integers(1, 3)) + 1)]
    skips = [(names[i], names[-1 - i]) for i in range(len(names) // 2)]
    return Layout(draw(sizes_of(names)), tuple(dict.fromkeys([*itertools.pairwise(names), *skips])))


@st.composite
def components(draw: st.DrawFn) -> Layout:
    """Parts that share nothing but the budgets."""
    parts = [[f"c{part}.{i}" for i in range(draw(st.integers(1, 3)))] for part in range(draw(st.integers(2, 3)))]
    pairs = tuple(pair for part in parts for pair in itertools.pairwise(part))
    return Layout(draw(sizes_of([name for part in parts for name in part])), pairs)


@st.composite
def switched(draw: st.DrawFn) -> Layout:
    """Residual blocks that a switch takes away, tables, values and all."""
    names, pairs, switches, owner = ["stream"], [], [], {}
    for block in range(draw(st.integers(1, 3))):
        switch, inner = f"s{block}", f"b{block}"
        switches.append(switch)
        names.append(inner)
        pairs += [("stream", inner), (inner, "stream")]
        owner[inner] = switch
    sizes = draw(sizes_of(names, room=MAX_CHOICES >> len(switches)))
    return Layout(sizes, tuple(pairs), tuple(switches), owner)


@st.composite
def free_graphs(draw: st.DrawFn) -> Layout:
    names = [f"g{i}" for i in range(draw(st.integers(1, 5)))]
    switches = tuple(f"s{i}" for i in range(draw(st.integers(0, 2))))
    every = [(a, b) for a, b in itertools.permutations([*names, *switches], 2)]
    pairs = tuple(draw(st.lists(st.sampled_from(every), max_size=6, unique=True))) if every else ()
    owner = {name: draw(st.sampled_from(switches)) for name in names if switches and draw(st.booleans())}
    return Layout(draw(sizes_of(names, room=MAX_CHOICES >> len(switches))), pairs, switches, owner)


SHAPES: dict[str, Callable[[], st.SearchStrategy[Layout]]] = {
    "chain": chains,
    "star": stars,
    "dense": dense_blocks,
    "u": u_shapes,
    "components": components,
    "switched": switched,
    "free": free_graphs,
}


@st.composite
def level_values(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """Mostly multiples of a step, sometimes anything: negative, zero, in any order."""
    if draw(st.integers(0, 3)):
        step = draw(st.sampled_from([1, 8]))
        return tuple(range(step, step * size + 1, step))
    return tuple(draw(st.lists(st.integers(-5, 9), min_size=size, max_size=size, unique=True)))


def owner_of(layout: Layout, names: Sequence[str]) -> str | None:
    """The switch that takes away a table over these names; never a name the table itself runs over."""
    owner = dict(layout.owner)
    return next((owner[name] for name in names if name in owner and owner[name] not in names), None)


@st.composite
def value_terms(draw: st.DrawFn, layout: Layout, numbers: st.SearchStrategy[Number], stage: int) -> list[Term]:
    terms = []
    for name, size in layout.sizes.items():
        if draw(st.integers(0, 9)) == 0:
            continue
        data = draw(prefix_sums(size) if draw(st.booleans()) else vectors(numbers, size))
        terms.append(Term("vector", data, (name,), owner_of(layout, [name]), stage))
    counts = {**layout.sizes, **dict.fromkeys(layout.switches, 2)}
    for a, b in layout.pairs:
        if draw(st.integers(0, 4)) == 0:  # pair values are rare, but they are there
            table = draw(vectors(vectors(numbers, counts[b]), counts[a]))
            terms.append(Term("table", table, (a, b), owner_of(layout, [a, b]), stage))
    for switch in layout.switches:
        if draw(st.booleans()):
            names, when = ((switch,), None) if draw(st.booleans()) else ((), switch)
            terms.append(Term("scalar", draw(numbers), names, when, stage))
    if draw(st.integers(0, 3)) == 0:
        terms.append(Term("scalar", draw(numbers), (), None, stage))
    return terms


@st.composite
def pair_cost(
    draw: st.DrawFn, layout: Layout, pair: tuple[str, str], numbers: st.SearchStrategy[Number], resource: str
) -> Term:
    counts = {**layout.sizes, **dict.fromkeys(layout.switches, 2)}
    form = draw(st.sampled_from(["product", "table", "rank one"]))
    data: Any = draw(st.integers(1, 5))
    if form == "table":
        data = draw(vectors(vectors(numbers, counts[pair[1]]), counts[pair[0]]))
    elif form == "rank one":
        data = (draw(vectors(numbers, counts[pair[0]])), draw(vectors(numbers, counts[pair[1]])))
    return Term(form, data, pair, owner_of(layout, pair), resource)


@st.composite
def cost_terms(draw: st.DrawFn, layout: Layout, numbers: st.SearchStrategy[Number], resource: str) -> list[Term]:
    terms = [draw(pair_cost(layout, pair, numbers, resource)) for pair in layout.pairs if draw(st.integers(0, 6))]
    for name, size in layout.sizes.items():
        if draw(st.integers(0, 2)) == 0 or not layout.pairs:
            terms.append(Term("vector", draw(vectors(numbers, size)), (name,), owner_of(layout, [name]), resource))
    for switch in layout.switches:
        if draw(st.integers(0, 2)) == 0:
            terms.append(Term("scalar", draw(numbers), (switch,), None, resource))
    if draw(st.integers(0, 4)) == 0:
        terms.append(Term("scalar", draw(numbers), (), None, resource))
    return terms


def nearby(spec: Spec, choice: Mapping[str, int], resource: str, slack: int) -> Number:
    """A limit at what the choice costs (slack 0: hit exactly, if a float can say it), or a little off."""
    at = Fraction(costs(spec, choice)[resource])
    limit = at + slack * abs(at) / 10
    return int(limit) if at.denominator == 1 else float(limit)


@st.composite
def budgets_of(draw: st.DrawFn, spec: Spec, resources: Sequence[str]) -> tuple[Budget, ...]:
    some = {name: draw(st.sampled_from(levels)) for name, levels in spec.levels.items()}
    budgets = []
    for resource in resources:
        slack = draw(st.sampled_from([0, 0, 0, 1, 2, -1]))
        kind = draw(st.sampled_from(["upper"] * 5 + ["lower", "both"]))
        limit = nearby(spec, some, resource, slack)
        if kind == "both":
            low = nearby(spec, some, resource, -abs(slack))
            budgets.append(Budget(resource, max(limit, low), min(limit, low)))
        else:
            budgets.append(Budget(resource, limit, None) if kind == "upper" else Budget(resource, None, limit))
    return tuple(budgets)


@st.composite
def linear_of(draw: st.DrawFn, spec: Spec, most: int = 2) -> tuple[Linear, ...]:
    some = {name: draw(st.sampled_from(levels)) for name, levels in spec.levels.items()}
    rows = []
    for number in range(draw(st.integers(0, most))):
        names = draw(st.lists(st.sampled_from(list(spec.levels)), min_size=1, max_size=3, unique=True))
        terms = tuple((draw(st.sampled_from([1, 1, 2, -1, -2, 3])), name) for name in names)
        sense = draw(st.sampled_from(["<=", ">=", "<=", ">=", "=="]))
        right = sum(c * some[n] for c, n in terms) + draw(st.sampled_from([0, 0, 0, 1, -1]))
        rows.append(Linear(f"row{number}", terms, sense, right))
    return tuple(rows)


@st.composite
def specs(draw: st.DrawFn, shape: str | None = None, numbers: str | None = None, stages: int | None = None) -> Spec:
    """A random program of a shape (or any), with numbers of a kind (or any), and so many stages (or 1 to 3)."""
    shape = shape or draw(st.sampled_from(sorted(SHAPES)))
    layout = draw(SHAPES[shape]())
    kinds = [NUMBERS[numbers or draw(st.sampled_from(sorted(NUMBERS)))] for _ in range(2)]
    count = stages or draw(st.sampled_from([1, 1, 1, 2, 3]))
    senses = tuple(draw(st.sampled_from(["max", "max", "min"])) for _ in range(count))
    levels = {name: draw(level_values(size)) for name, size in layout.sizes.items()}
    levels |= dict.fromkeys(layout.switches, (0, 1))
    values = [term for stage in range(count) for term in draw(value_terms(layout, kinds[0], stage))]
    resources = [f"r{i}" for i in range(draw(st.integers(0, 3)))]
    costs_ = [term for resource in resources for term in draw(cost_terms(layout, kinds[1], resource))]
    spec = Spec(levels, layout.switches, tuple(values), tuple(costs_), senses=senses, shape=shape)
    budgeted = [r for r in resources if any(t.of == r for t in costs_)]
    spec = replace(spec, budgets=draw(budgets_of(spec, budgeted)))
    return replace(spec, linear=draw(linear_of(spec)))
