"""Explain: why a layer has its size: what a step more or less is worth and costs, what binds, what is coupled.

A plan that was just solved keeps its program and its solution, and answers from these; nothing is solved again but the
Lagrangian dual, for the shadow prices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from .compile import Compiled, parts_of
from .coupling import Group
from .flow import FIXED
from .graph import Graph, Vertex
from .program import ShadowPrices, Solution
from .report import Part, Table, html, one_line, short, text
from .requests import Affine, Budget, Cost, Multiple, Relation

MOST = 6  # dims of a group that are printed


@dataclass(frozen=True)
class Move:
    """The next size that the program allows, others as they are.

    `value` and `costs` are what it adds (less than 0: takes away); `net` is the value less the costs at their shadow
    prices, None where there are none: at the best size it is 0 or less both ways, as far as one price can tell.
    `breaks` names the limits that would no longer hold.
    """

    size: int
    value: float
    costs: Mapping[str, float]
    net: float | None
    breaks: tuple[str, ...]

    @property
    def value_per_cost(self) -> dict[str, float]:
        """Value added per unit of each cost that changes."""
        return {name: self.value / cost for name, cost in self.costs.items() if cost}


@dataclass(frozen=True)
class Use:
    """A budget: its limit, what the plan uses, what is left, and its shadow price in value per unit of the resource.

    It binds where the next larger size (the next smaller, for a lower limit) does not fit. The price is a multiplier at
    which the Lagrangian bound is lowest: with the limit moved by d, up or down, and all else as asked, no plan is worth
    more than `Explanation.bound` + price * d. None: the numbers are beyond floats.
    """

    name: str
    limit: int | float
    used: float
    left: int | float
    binds: bool
    price: float | None


@dataclass(frozen=True)
class Explanation:
    """Why a layer has the size that it has; prints as tables.

    `larger` and `smaller` are the next sizes that there are (None: there is none); `groups` lists what changes with it,
    `requests` what was asked of it, and `frozen` says why it cannot change, where that is so. `options` are the others
    that a layer with alternatives has, and whether its branch goes or stays, each at the sizes that there are. `bound`
    is the Lagrangian bound that belongs to the prices; it may lie above that of the plan.
    """

    name: str
    op: str
    before: int
    after: int
    frozen: str
    groups: tuple[Group, ...]
    larger: Move | None
    smaller: Move | None
    budgets: tuple[Use, ...]
    requests: tuple[str, ...]
    bound: float = field(repr=False)
    options: Mapping[str, Move] = field(default_factory=dict)

    @property
    def binding(self) -> tuple[str, ...]:
        """The budgets that keep it from its next size."""
        return tuple(b.name for b in self.budgets if b.binds)

    def _report(self) -> list[Part]:
        moved = f"{self.before} -> {self.after}" if self.before != self.after else f"stays at {self.after}"
        parts: list[Part] = [f"{self.name} ({self.op}): {moved}"]
        if self.frozen:
            parts.append(f"frozen: {self.frozen}")
        parts += [_told(g) for g in self.groups]
        moves = [(way, m) for way, m in (("larger", self.larger), ("smaller", self.smaller)) if m is not None]
        if moves:
            names = list(moves[0][1].costs)
            rows = [[way, m.size, f"{m.value:+.4g}", *_costs(m, names), _net(m), _list(m.breaks)] for way, m in moves]
            header = ["next", "size", "value", *names, "value - prices", "breaks"]
            parts.append(Table(header, rows, right=range(1, 4 + len(names))))
        if self.options:
            names = list(next(iter(self.options.values())).costs)
            rows = [
                [k, f"{m.value:+.4g}", *_costs(m, names), _net(m), _list(m.breaks)] for k, m in self.options.items()
            ]
            parts.append(
                Table(["instead", "value", *names, "value - prices", "breaks"], rows, right=range(1, 3 + len(names)))
            )
        if self.budgets:
            rows = [[b.name, short(b.used), short(b.left), "yes" if b.binds else "no", _price(b)] for b in self.budgets]
            parts.append(Table(["budget", "used", "left", "binds", "value per unit"], rows, right=[1, 2, 4]))
        if self.requests:
            parts.append("\n".join(["asked of it:", *(f"- {r}" for r in self.requests)]))
        return parts

    def __str__(self) -> str:
        return text(self._report())

    def _repr_html_(self) -> str:
        return html(self._report())

    def __repr__(self) -> str:
        return one_line(f"<Explanation of {self.name}: {self.before} -> {self.after}, binding: {_list(self.binding)}>")


@dataclass(frozen=True, eq=False)
class Solved:
    """What a plan was decoded from, kept in memory alone: a pickle holds None in its place, a copy shares it."""

    graph: Graph
    compiled: Compiled
    solution: Solution
    costs: Mapping[str, Cost]
    kept: tuple[str, ...] = ()  # patterns of what was asked to stay

    def __reduce__(self) -> Any:
        return _nothing, ()

    def __copy__(self) -> Solved:
        return self

    def __deepcopy__(self, memo: Any) -> Solved:
        return self

    def explain(self, name: str) -> Explanation:
        """See `PlanRecord.explain`."""
        vertex = self.graph[name]
        larger, smaller = self._next(vertex, 1), self._next(vertex, -1)
        used = tuple(self._use(b, larger, smaller) for b in self._budgets)
        here = np.unique(self.graph.coupling.group_of[self._coupled(vertex)])
        return Explanation(
            vertex.name,
            vertex.op,
            vertex.nout,
            self._sizes(vertex)[0],
            self._frozen(vertex) if larger is None and smaller is None else "",
            tuple(self.graph.groups[g] for g in here.tolist() if g >= 0),
            larger,
            smaller,
            used,
            tuple(self._asked_of(vertex)),
            float(self.prices.bound),
            {name: self._move(vertex.nout, self._picks, on) for name, on in self._instead(vertex)},
        )

    @cached_property
    def prices(self) -> ShadowPrices:
        """The shadow prices of everything that is limited."""
        return self.solution.prices(self.compiled.choices.question.stage)

    # -- sizes and steps -----------------------------------------------------------------------------------------------

    @cached_property
    def _picks(self) -> list[int]:
        return self.compiled.decoder.picks(self.solution)

    @cached_property
    def _times(self) -> np.ndarray:
        return self.compiled.decoder.times_at(self._picks)

    @cached_property
    def _on(self) -> dict[str, bool]:
        return self.compiled.decoder.on(self.solution)

    @cached_property
    def _budgets(self) -> list[Budget]:
        return list({id(b): b for b in self.compiled.choices.question.budgets}.values())

    def _deciding(self, vertex: Vertex) -> list[int]:
        """The choices that decide some unit of a vertex."""
        return [
            k
            for k, choice in enumerate(self.compiled.decoder.choices)
            if any(np.isin(f, vertex.units).any() for b in choice.blocks for f in b.families)
        ]

    def _coupled(self, vertex: Vertex) -> np.ndarray:
        """The units of a vertex, and all that are decided with them."""
        choices = self.compiled.decoder.choices
        more = [f.reshape(-1) for k in self._deciding(vertex) for b in choices[k].blocks for f in b.families]
        found = np.concatenate([vertex.units, *more])
        return found[found != FIXED]

    def _sizes(self, vertex: Vertex) -> tuple[int, dict[int, np.ndarray]]:
        """The size of a vertex, and by choice what it is at each level of that one, others as they are."""
        constant, vectors = self.compiled.choices.linear([(e, c) for e, c, _ in vertex.out.terms])
        now = vertex.out.constant + constant + sum(v[self._picks[k]] for k, v in vectors.items())
        return int(now), {k: np.asarray(now - v[self._picks[k]] + v, dtype=float) for k, v in vectors.items()}

    def _next(self, vertex: Vertex, sign: int) -> Move | None:
        """The nearest size on one side that one choice makes alone; of several ways, what breaks least, then most net.

        Which units stay is decided by their worth, at any size.
        """
        now, sizes = self._sizes(vertex)
        beyond = [found[sign * found > sign * now] for found in sizes.values()]
        if not any(map(len, beyond)):
            return None
        nearest = sign * min((sign * found).min() for found in beyond if len(found))
        levels = [(k, level) for k, found in sizes.items() for level in np.flatnonzero(found == nearest).tolist()]
        moves = [self._move(int(nearest), [*self._picks[:k], n, *self._picks[k + 1 :]]) for k, n in levels]
        return min(moves, key=lambda m: (len(m.breaks), -(m.value if m.net is None else m.net)))

    def _move(self, size: int, picks: list[int], switches: Mapping[str, bool] | None = None) -> Move:
        times, on = self.compiled.decoder.times_at(picks), self._on if switches is None else switches
        value = self.compiled.objective(times, on) - self.compiled.objective(self._times, self._on)
        costs = {name: after - self._counts[name] for name, after in self._counted(times, on).items()}
        net: float | None = value
        for b in self._budgets:
            price, by = self._price(b), self._count(b.cost, times, on) - self._count(b.cost, self._times, self._on)
            net = None if net is None or price is None else net - price * by
        return Move(size, value, costs, net, tuple(dict.fromkeys(self._broken(picks, times, on))))

    def _instead(self, vertex: Vertex) -> Iterator[tuple[str, dict[str, bool]]]:
        """Other options for the layer, and its branch without it or with it: by name the switches that are on then."""
        question = self.compiled.choices.question
        for pick in question.picks:
            if f"{vertex.name}.".startswith(f"{pick.name}."):
                off = {o.switch.name: False for o in pick.options}
                yield from (
                    (o.switch.name, {**self._on, **off, o.switch.name: True})
                    for o in pick.options
                    if not self._on[o.switch.name] and any(self._on[name] for name in off)
                )
        around = {p.within for p in question.parts} | {p.within for p in question.picks}
        for part in question.parts:
            name, stays = part.switch.name, self._on[part.switch.name]
            alone = part.within is None or self._on[part.within.name]
            if part.units[vertex.units].any() and alone and part.switch not in around:
                yield f"not: {name}" if stays else name, {**self._on, name: not stays}

    # -- costs and limits ----------------------------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> dict[str, float]:
        return self._counted(self._times, self._on)

    def _counted(self, times: np.ndarray, on: Mapping[str, bool]) -> dict[str, float]:
        """By name, in the units that users see."""
        costs = {**self.costs, **{b.cost.name: b.cost for b in self._budgets}}
        return {name: cost.told(self._count(cost, times, on)) for name, cost in costs.items()}

    def _count(self, cost: Any, times: np.ndarray, on: Mapping[str, bool]) -> int:
        found: int = cost.count(self.graph.coupling, times, on) if on else cost.count(self.graph.coupling, times)
        return found

    def _price(self, budget: Budget) -> float | None:
        """Value per count of a budget; where several resources count for it, it limits all of them."""
        names = [name for b, name in self.compiled.counted if b is budget]
        prices = self.prices.prices
        return sum(prices[n] for n in names) if all(n in prices for n in names) else None

    def _use(self, budget: Budget, larger: Move | None, smaller: Move | None) -> Use:
        used, name = budget.cost.told(self._count(budget.cost, self._times, self._on)), str(budget)
        price = self._price(budget)
        limit = budget.told
        blocked = larger if budget.sense == "<=" else smaller
        binds = blocked is not None and name in blocked.breaks
        left = limit - used if budget.sense == "<=" else used - limit
        return Use(name, limit, used, left, binds, None if price is None else price * budget.cost.scale)

    def _broken(self, picks: list[int], times: np.ndarray, on: Mapping[str, bool]) -> Iterator[str]:
        """Everything that would not hold."""
        choices = self.compiled.choices
        for name, units in choices.question.held(on):
            if (times[units] != 1).any():
                yield f"{name}: sizes that stay then"
        for b in self._budgets:
            used = self._count(b.cost, times, on)
            if used > b.limit if b.sense == "<=" else used < b.limit:
                yield str(b)
        for r in choices.relations:
            left = self._at(parts_of(r), picks) + r.left.constant - r.right.constant
            if (r.sense != ">=" and left > 0) or (r.sense != "<=" and left < 0):
                yield str(r)
        for e in choices.equations:
            if not e.low <= self._at(e.parts, picks) <= e.high:
                yield e.name
        for parts, name in choices.floors:
            if self._at(parts, picks) < 1:
                yield name
        for size, divisor, remainder, name in choices.multiples:
            if (self._at([(e, c) for e, c, _ in size.terms], picks) + size.constant - remainder) % divisor:
                yield name

    def _at(self, parts: Any, picks: list[int]) -> Fraction:
        constant, vectors = self.compiled.choices.linear(parts)
        return Fraction(constant) + sum((Fraction(v[picks[k]]) for k, v in vectors.items()), Fraction(0))

    # -- words ---------------------------------------------------------------------------------------------------------

    def _asked_of(self, vertex: Vertex) -> Iterator[str]:
        """The requests that speak of units which are decided together with a vertex's."""
        question, units = self.compiled.choices.question, self._coupled(vertex)
        for r in question.requests:
            if isinstance(r, (Relation, Multiple)) and any(self._speaks(side, units) for side in _sides(r)):
                yield str(r)
        if question.round_to is not None:
            yield f"round_to({question.round_to})"
        yield from (f"keep {p!r}" for p in self.kept if vertex.name in {v.name for v in self.graph.match(p)})

    def _speaks(self, size: Affine, units: np.ndarray) -> bool:
        return any(np.isin(self.graph.coupling.units(e), units).any() for e, _, _ in size.terms)

    def _frozen(self, vertex: Vertex) -> str:
        """Why a size is the only one."""
        units = np.unique(vertex.units[vertex.units != FIXED])
        if why := self.graph.frozen_because(vertex):
            return why
        keep = self.compiled.choices.question.keep
        if keep is not None and len(units) and (keep | self.graph.coupling.frozen)[units].all():
            return "it was asked to stay"
        notes = [n for n in self.compiled.notes if vertex.name in n or n.startswith("the cost of")]
        return "; ".join(["what is asked leaves it one size", *notes])


def _nothing() -> None:
    """What a pickle has in the place of a program."""


def _sides(r: Relation | Multiple) -> list[Affine]:
    return [r.left, r.right] if isinstance(r, Relation) else [r.size]


def _told(g: Group) -> str:
    """A coupled group in a line or two."""
    dims = ", ".join(f"{name}[{dim}]" for name, dim in g.dims[:MOST])
    more = f" and {len(g.dims) - MOST} more" if len(g.dims) > MOST else ""
    by = f"\ncoupled by {'; '.join(map(str, g.origins[:MOST]))}" if g.origins else ""
    return f"changes together: {dims}{more}{by}"


def _costs(move: Move, names: list[str]) -> list[str]:
    return [("+" if move.costs[n] > 0 else "") + short(move.costs[n]) for n in names]


def _net(move: Move) -> str:
    if move.net is None:
        return ""
    return "0" if abs(move.net) < 1e-9 * abs(move.value) else f"{move.net:+.4g}"  # what is left is rounding


def _price(use: Use) -> str:
    return "" if use.price is None else f"{use.price:.4g}"


def _list(found: tuple[str, ...]) -> str:
    return ", ".join(found) or "nothing"
