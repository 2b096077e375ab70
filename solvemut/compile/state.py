"""State: choices, worth and requests written down as an integer program.

Costs are sums of products of sizes, and tables over one size or two: they become constants, vectors and pair tables
over choices, the products as rank-one tables, kept as their two factors. What has a switch counts where it is on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import RequestError
from ..flow import Extent
from ..program import Program, RankOne, Width
from ..requests import Affine, Budget, Cost, Monomial, Switch, Table
from .blocks import ClassExtent, best_units, block_value
from .choices import Choice, Choices, Linear, Parts, parts_of
from .question import Curve, Worth
from .spread import state_spread
from .vectors import FITS, Number, largest, plus, span, times

Place = tuple[Switch | None, tuple[int, ...]]  # a term: its switch, and the choices it is over


class Statement:
    """The program of some choices; `counted` pairs each budget with the resource that counts it."""

    def __init__(self, choices: Choices, worth: Worth) -> None:
        self.layout, self.worth, self.stage = choices, worth, choices.question.stage
        self.program = Program()
        self.counted: list[tuple[Budget, str]] = []
        self.switches: dict[Switch, Width] = {}
        self._sizes: dict[int, tuple[Extent, Width]] = {}  # sizes that several choices make, as widths of their own
        self._numbers = 0
        self._values()
        self._limits()
        for budget in choices.question.budgets:
            self._budget(budget)
        for extent, name in choices.question.moves:
            self._move(extent, name)
        for spread in choices.question.spreads:
            state_spread(self, spread)
        self._parts()
        self._picks()

    # -- what it is worth ------------------------------------------------------------------------------------------

    def _values(self) -> None:
        value = np.array(self.worth.value, dtype=float)
        for curve in self.worth.curves:
            value[curve.units] = 0  # its table counts them
        tables, beyond = self._curves()
        flat = False
        for k, choice in enumerate(self.layout.choices):
            found = tables.get(k, {})
            for j, block in enumerate(choice.blocks):
                under = self.layout.question.under(np.concatenate([f.reshape(-1) for f in block.families]))
                found[under] = found.get(under, 0.0) + self._block_worth(choice, j, value)
            finite = self._allowed(choice, np.asarray(sum(found.values())))
            choice.width = self.program.width(choice.name, self._levels(choice))
            for under, part in found.items():
                self.program.value(part[finite], choice.width, when=self._switch(under), stage=self.stage)
            worth = np.asarray(sum(found.values()))[finite]
            same = int(np.abs(choice.counts() - choice.now).argmin())  # the search begins with what there is
            self.program.hint({choice.width: choice.width.levels[same]})
            flat |= len(np.unique(worth)) < len(worth)
        for curve in beyond:
            self._curve(curve)
        stage = self.stage
        if self.worth.second is not None:
            stage += 1
            for choice in self.layout.choices:
                self.program.value(self._second_worth(choice), choice.width, stage=stage)
        if flat or self.worth.second is not None:  # among equals, change as little as possible
            for choice in self.layout.choices:
                self.program.value(-np.abs(choice.counts() - choice.now), choice.width, stage=stage + 1)

    def _curves(self) -> tuple[dict[int, dict[Switch | None, Any]], list[Curve]]:
        """By choice the worth of its levels in curves over units of that choice alone, by the switch they count under.

        And the curves over several choices.
        """
        tables: dict[int, dict[Switch | None, Any]] = {}
        beyond = []
        for curve in self.worth.curves:
            constant, vectors = self.layout.linear([(ClassExtent(curve.units), 1)], new=False)
            if len(vectors) > 1:
                beyond.append(curve)
            elif vectors:
                ((k, v),) = vectors.items()
                left = (v + constant).astype(np.int64)
                of, under = tables.setdefault(k, {}), self.layout.question.under(curve.units)
                of[under] = of.get(under, 0.0) + np.asarray(curve.worth, dtype=float)[left]
            else:
                left = float(curve.worth[int(constant)])
                if (when := self._switch(self.layout.question.under(curve.units))) is None:
                    self.program.value(left, stage=self.stage)
                else:
                    self.program.value(left, when, stage=self.stage)
        return tables, beyond

    def _second_worth(self, choice: Choice) -> np.ndarray:
        """By level what `second` says of the units that stay."""
        order, second = self.worth.order, np.asarray(self.worth.second, dtype=float)
        of_block = [
            np.array([second[best_units(b, level, order)[0]].sum() for level in b.levels]) for b in choice.blocks
        ]
        return np.asarray(sum(found[choice.picks[:, j]] for j, found in enumerate(of_block)))

    def _block_worth(self, choice: Choice, j: int, value: np.ndarray) -> np.ndarray:
        block = choice.blocks[j]
        units = np.concatenate([f.reshape(-1) for f in block.families])
        if not np.isin(units, self._in_curves).any() or not value[units].any():
            return block_value(block, value, self.worth.new)[choice.picks[:, j]]
        order, found = self.worth.order, []  # a curve says which of them stay, whatever the others are worth
        for level in block.levels:
            kept, new = best_units(block, level, order)
            more = 0.0 if self.worth.new is None else sum(len(c) * self.worth.new[u] for u, c in new.items())
            found.append(float(value[kept].sum()) + more)
        return np.array(found)[choice.picks[:, j]]

    @cached_property
    def _in_curves(self) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype=int), *(c.units for c in self.worth.curves)])

    def _allowed(self, choice: Choice, worth: np.ndarray) -> np.ndarray:
        """Which levels there are: those of worth -inf are none."""
        finite = np.isfinite(worth)
        if not finite.all():
            choice.keep(finite)
        return finite

    @staticmethod
    def _levels(choice: Choice) -> np.ndarray:
        plain = len(choice.blocks) == 1 and choice.blocks[0].rows == 1
        return choice.blocks[0].levels[choice.picks[:, 0], 1] if plain else np.arange(len(choice.picks))

    def _curve(self, curve: Curve) -> None:
        """A curve over several blocks: the number of its units that stay is a width of its own."""
        left = self.layout.linear([(ClassExtent(curve.units), 1)], new=False)
        worth = np.asarray(curve.worth, dtype=float)
        width = self._number(left, f"kept of {len(curve.units)} units", np.isfinite(worth))
        under = self._switch(self.layout.question.under(curve.units))
        self.program.value(worth[list(width.levels)], width, when=under, stage=self.stage)

    def _parts(self) -> None:
        """What is lost with parts that go, and how many of them may."""
        question = self.layout.question
        for part in question.parts:
            width = self._width_of(part.switch)
            self.program.value(part.worth, width, stage=self.stage)
            self.program.hint({width: 1})
            outer = self._switch(part.within)
            if outer is None or part.within is None:
                self.program.value(-part.worth, stage=self.stage)
            else:
                self.program.value(-part.worth, outer, stage=self.stage)
                self.program.add(width <= outer, name=f"{part.switch.name} where {part.within.name}")
            if part.stays is not None and part.stays.any():
                self._hold(part.switch.name, width, part.stays, at=0, when=outer)
        if question.parts and question.most_removed is not None:
            name = self.free_name(f"at most {question.most_removed} parts go")
            for part in question.parts:
                self.program.cost(name, 1, self.switches[part.switch])
                if part.within is not None:  # what goes with another is not counted by itself
                    self.program.cost(name, -1, self.switches[part.within])
            by_themselves = sum(part.within is None for part in question.parts)
            self.program.budget(name, lower=by_themselves - question.most_removed)

    def _picks(self) -> None:
        """One option of each: a width over them, to whose levels their switches are tied in pairs."""
        for pick in self.layout.question.picks:
            inside = self._switch(pick.within)
            levels = range(len(pick.options) + (inside is not None))  # the last is that of a part that goes
            which = self.program.width(f"option for {pick.name}", levels)
            for k, option in enumerate(pick.options):
                width = self._width_of(option.switch)
                self.program.value(option.worth, width, stage=self.stage)
                self._tie(which, [int(level == k) for level in levels], width)
                self._hold(option.switch.name, width, option.stays, at=1)
                self.program.hint({width: int(option.switch == pick.own)})
                if option.switch == pick.own:
                    self.program.hint({which: k})
            if inside is not None:
                self._tie(which, [int(level < len(pick.options)) for level in levels], inside)
            if pick.own in self.switches and all(o.switch != pick.own for o in pick.options):
                self.program.fix({self.switches[pick.own]: 0})

    def _tie(self, which: Width, on: Sequence[int], switch: Width) -> None:
        """A switch is on just at some levels of a width."""
        name = self.free_name(f"{switch.name}, or not: {which.name}")
        self.program.cost(name, np.array(on), which)
        self.program.cost(name, -1, switch)
        self.program.budget(name, 0, lower=0)

    def _hold(self, title: str, switch: Width, stays: np.ndarray, at: int, when: Width | None = None) -> None:
        """Where a switch is 0 or 1 (`at`), and another is on, sizes of some units stay."""
        for choice in self.layout.choices:
            if stays[choice.units()].any():
                name = self.free_name(f"{title}{'' if at else ' not'}: {choice.name} stays")
                cut = (~choice.is_whole()).astype(int)
                table = np.stack([cut, 0 * cut] if at == 0 else [0 * cut, cut])
                self.program.cost(name, table, switch, choice.width, when=when)
                self.program.budget(name, 0)

    # -- sizes and limits ------------------------------------------------------------------------------------------

    def _limits(self) -> None:
        for equation in self.layout.equations:
            self._linear_budget(equation.name, equation.parts, equation.low, equation.high)
        for parts, name in self.layout.floors:
            self._linear_budget(name, parts, 1, None)
        for r in self.layout.relations:
            total = r.right.constant - r.left.constant
            low, high = None if r.sense == "<=" else total, None if r.sense == ">=" else total
            self._linear_budget(str(r), parts_of(r), low, high)
        for size, divisor, remainder, name in self.layout.multiples:
            self._multiple(size, divisor, remainder, name)

    def _move(self, extent: Extent, name: str) -> None:
        """A size that is not what it was."""
        constant, vectors = self.layout.linear([(extent, 1)])
        if len(vectors) == 1:
            ((k, v),) = vectors.items()
            self.program.cost(name, np.array(v + constant == extent.now, dtype=int), self._width(k))
            self.program.budget(name, 0)
        elif vectors:
            most = int(span(constant, vectors)[1])
            self.size_width(Extent(extent.labels, extent.per_row), name, np.arange(most + 1) != extent.now)
        else:  # it cannot change at all
            self.program.cost(name, 1)
            self.program.budget(name, 0)

    def _linear_budget(self, name: str, parts: Parts, lower: Any = None, upper: Any = None) -> None:
        """lower <= sum of coefficient * extent <= upper."""
        self.program.budget(self._resource(name, *self.layout.linear(parts)), upper, lower=lower)

    def _resource(self, name: str, constant: Number, vectors: dict[int, np.ndarray]) -> str:
        """A resource of that linear cost, under the name or the first free one after it."""
        name = self.free_name(name)
        self.program.cost(name, constant)
        for k, v in vectors.items():
            self.program.cost(name, v, self.layout.choices[k].width)
        return name

    def free_name(self, name: str) -> str:
        """The name, or the first free one after it: a budget given twice is not one of twice the size."""
        while name in self.program._budgets:
            name += " "
        return name

    def _multiple(self, size: Affine, divisor: int, remainder: int, name: str) -> None:
        """size == divisor * t + remainder for some t."""
        constant, vectors = self.layout.linear([(e, c) for e, c, _ in size.terms])
        constant += size.constant
        low, high = span(constant, vectors)
        start, stop = -((remainder - low) // divisor), (high - remainder) // divisor
        if stop < start:
            start = stop = (low - remainder) // divisor
        t = self.program.width(f"({name}) quotient ({self._numbers})", range(int(start), int(stop) + 1))
        self._numbers += 1
        resource = self._resource(name, constant - remainder, vectors)
        self.program.cost(resource, np.array([-divisor * x for x in t.levels], dtype=object), t)
        self.program.budget(resource, 0, lower=0)

    def size_width(self, e: Extent, name: str, allowed: np.ndarray | None = None) -> Width:
        """A size that several choices make, as a width; `allowed` says which sizes may be (bool per size)."""
        if id(e) not in self._sizes:
            self._sizes[id(e)] = (e, self._number(self.layout.linear([(e, 1)]), name, allowed))
        return self._sizes[id(e)][1]

    def _number(self, counted: Linear, name: str, allowed: np.ndarray | None) -> Width:
        """A number that several choices make, as a width of its own."""
        constant, vectors = counted
        low, high = map(int, span(constant, vectors))
        levels = [n for n in range(low, high + 1) if allowed is None or allowed[n]] or [high]
        width = self.program.width(f"{name} ({self._numbers})", levels)
        resource = self._resource(f"{name} counted ({self._numbers})", constant, vectors)
        self.program.cost(resource, np.array([-x for x in width.levels], dtype=object), width)
        self.program.budget(resource, 0, lower=0)
        self._numbers += 1
        return width

    # -- costs -----------------------------------------------------------------------------------------------------

    def _budget(self, budget: Budget) -> None:
        name = self.free_name(str(budget))
        self.counted.append((budget, name))
        self._cost(budget.cost, name)
        if budget.sense == "<=":
            self.program.budget(name, budget.limit)
        else:
            self.program.budget(name, lower=budget.limit)

    def _cost(self, cost: Cost, resource: str) -> None:
        constants: dict[Switch | None, Number] = {None: 0}
        vectors: dict[tuple[Switch | None, int], Any] = {}
        pairs: dict[tuple[Switch | None, int, int], list[RankOne]] = {}
        tables = [m for m in cost.monomials if isinstance(m, Table)]
        for m in (m for m in cost.monomials if isinstance(m, Monomial)):
            self._product(m, constants, vectors, pairs)
        for switch, constant in constants.items():
            self.program.cost(resource, constant, when=self._switch(switch))
        for (switch, k), v in vectors.items():
            self.program.cost(resource, v, self._width(k), when=self._switch(switch))
        for (switch, i, j), found in pairs.items():
            for table in found:
                self.program.cost(resource, table, self._width(i), self._width(j), when=self._switch(switch))
        for t in tables:
            self._table(t, resource)

    def _product(self, m: Monomial, constants: Any, vectors: Any, pairs: Any) -> None:
        """A product of sizes multiplied out over the choices that make them."""
        on, c = m.when, m.coefficient
        factors = reduced([self.layout.linear([(e, 1)]) for e in m.extents])
        assert factors is not None, "a product of more than two sizes: one of them should stay"
        factors += [(1, {})] * (2 - len(factors))
        (c0, v0), (c1, v1) = factors
        constants[on] = constants.get(on, 0) + c * c0 * c1
        for k, v in v0.items():
            vectors[on, k] = plus(vectors.get((on, k), 0), times(v, c * c1))
        for k, v in v1.items():
            vectors[on, k] = plus(vectors.get((on, k), 0), times(v, c * c0))
        for (i, a), (j, b) in itertools.product(v0.items(), v1.items()):
            if i == j:
                vectors[on, i] = plus(vectors.get((on, i), 0), times(times(a, b), c))
            elif i < j:
                _add_product(pairs.setdefault((on, i, j), []), times(a, c), b)
            else:
                _add_product(pairs.setdefault((on, j, i), []), b, times(a, c))

    def _table(self, t: Table, resource: str) -> None:
        """A table over one size or two, each made by one choice, or a width of its own."""
        entries = np.asarray(t.values)
        if entries.dtype.kind not in "iu" or (entries.size and largest(entries) >= FITS):
            entries = entries.astype(object)
        over: list[tuple[Width, list[int]]] = []
        for axis, e in enumerate(t.extents):
            constant, vectors = self.layout.linear([(e, 1)])
            if len(vectors) > 1:
                width = self.size_width(e, f"size at {t.vertex or 'a table'}")
                self._holds(t, axis, max(width.levels))
                over.append((width, list(width.levels)))
            elif vectors:
                ((k, v),) = vectors.items()
                sizes = (v + constant).astype(np.int64).tolist()
                self._holds(t, axis, max(sizes))
                over.append((self._width(k), sizes))
            else:
                entries = entries.take(int(constant), axis=len(over))
        switch = self._switch(t.when)
        if len(over) == 2 and over[0][0] is over[1][0]:
            entries, over = entries[over[0][1], over[1][1]], over[:1]
        else:
            entries = entries[np.ix_(*(sizes for _, sizes in over))] if over else entries
        self.program.cost(resource, entries, *(w for w, _ in over), when=switch)

    def _holds(self, t: Table, axis: int, most: int) -> None:
        """A table has no entries for sizes that only growth can reach."""
        end = np.shape(t.values)[axis] - 1
        if most > end:
            raise RequestError(
                f"the cost of {t.vertex or 'a table'} is known up to size {end}, not up to {most}: leave grow= out"
            )

    def _width(self, k: int) -> Width:
        return self.layout.choices[k].width

    def _switch(self, switch: Switch | None) -> Width | None:
        return None if switch is None else self._width_of(switch)

    def _width_of(self, switch: Switch) -> Width:
        if switch not in self.switches:
            self.switches[switch] = self.program.switch(switch.name)
        return self.switches[switch]


def reduced(factors: list[Linear]) -> list[Linear] | None:
    """A product as one of at most two sizes, which is possible where all but two are of one choice; else None."""
    while len(factors) > 2:
        pairs = itertools.combinations(range(len(factors)), 2)
        merged = next(((i, j) for i, j in pairs if _one_choice(factors, i, j)), None)
        if merged is None:
            return None
        rest = [f for k, f in enumerate(factors) if k not in merged]
        factors = [*rest, _times(*factors[merged[0]], *factors[merged[1]])]
    return factors


def _one_choice(factors: Sequence[Linear], i: int, j: int) -> bool:
    return len(factors[i][1].keys() | factors[j][1].keys()) <= 1


def _times(ci: Number, vi: dict[int, Any], cj: Number, vj: dict[int, Any]) -> Linear:
    keys = set(vi) | set(vj)
    if not keys:
        return ci * cj, {}
    (k,) = keys
    return 0, {k: times(plus(vi.get(k, 0), ci), plus(vj.get(k, 0), cj))}


def _add_product(tables: list[RankOne], a: np.ndarray, b: np.ndarray) -> None:
    """Collect rank-one tables of one pair; those with a factor in common become one."""
    for k, t in enumerate(tables):
        if (t.second == b).all():
            tables[k] = RankOne(plus(t.first, a), t.second)
            return
        if (t.first == a).all():
            tables[k] = RankOne(t.first, plus(t.second, b))
            return
    tables.append(RankOne(a, b))
