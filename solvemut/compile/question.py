"""The question: what a program is compiled from, besides the coupling: what units are worth, and what is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ValuesError
from ..flow import Extent
from ..requests import Budget, Cost, Request, Switch
from .spread import Spread


@dataclass(frozen=True, eq=False)
class Curve:
    """The worth of keeping n units of a set, for every n from 0 on, whatever its shape; -inf forbids an n.

    `units` are classes in the order in which they are kept: the last of them goes first.
    """

    units: np.ndarray
    worth: np.ndarray

    def __post_init__(self) -> None:
        if len(self.worth) != len(self.units) + 1 or len(np.unique(self.units)) < len(self.units):
            n = len(self.units)
            raise ValuesError(f"a curve over {n} distinct units has {n + 1} entries, not {len(self.worth)}")
        if np.isnan(self.worth).any() or (np.asarray(self.worth, dtype=float) == np.inf).any():
            raise ValuesError("the worth in a curve is a number, or -inf")
        if np.isneginf(np.asarray(self.worth[-1], dtype=float)):
            raise ValuesError("a curve allows keeping all of its units")

    def steps(self) -> np.ndarray:
        """What each unit adds to those before it; where there is no number, as much as all others together.

        >>> Curve(np.array([3, 1, 2]), np.array([-np.inf, 0, 3, 5])).steps().tolist()
        [5.0, 3.0, 2.0]
        """
        worth = np.asarray(self.worth, dtype=float)
        with np.errstate(invalid="ignore"):
            found = np.diff(worth)
        finite = worth[np.isfinite(worth)]
        found[~np.isfinite(found)] = finite.max() - finite.min()
        return found


@dataclass(frozen=True, eq=False)
class Worth:
    """What units are worth: a number for each class, or for the units of a `Curve` what that says.

    `second` tells units of equal worth apart: it says which of them stay, and decides among sizes of equal worth. `new`
    is what a new unit after each class is worth; None: as much as the least that it is exchangeable with.
    """

    value: np.ndarray
    curves: tuple[Curve, ...] = ()
    new: np.ndarray | None = None
    second: np.ndarray | None = None

    def __post_init__(self) -> None:
        units = [u for curve in self.curves for u in curve.units.tolist()]
        if len(set(units)) < len(units):
            raise ValuesError("a unit stands in two curves")

    @property
    def order(self) -> np.ndarray:
        """By which units of a block are kept first: their values, or the order of their curve."""
        found = np.array(self.value, dtype=float)
        if self.second is not None:
            ranked = np.lexsort((self.second, found))
            places = np.empty(len(ranked))
            places[ranked] = np.arange(len(ranked))
            ties = np.unique(np.stack([found, self.second]), axis=1, return_inverse=True)[1].reshape(-1)
            first = np.full(int(ties.max(initial=0)) + 1, np.inf)
            np.minimum.at(first, ties, places)
            found = first[ties]
        for curve in self.curves:
            found[curve.units] = np.arange(len(curve.units), 0, -1)
        return found

    def without(self, units: np.ndarray) -> Worth:
        """The worth of what else there is (`units`: bool per class)."""
        curves = tuple(c for c in self.curves if not units[c.units].all())
        return replace(self, value=np.where(units, 0.0, self.value), curves=curves)

    def of(self, times: np.ndarray, frozen: np.ndarray) -> float:
        """The worth of what is left, given how often each class is (or bools); what stays anyway counts in curves."""
        kept = np.asarray(times) > 0
        loose = kept & ~frozen
        for curve in self.curves:
            loose[curve.units] = False
        found = float(self.value[loose].sum()) + sum(float(c.worth[int(kept[c.units].sum())]) for c in self.curves)
        more = np.maximum(np.asarray(times).astype(np.int64) - 1, 0)
        return found + (float((more * self.new).sum()) if self.new is not None else 0.0)


@dataclass(frozen=True, eq=False)
class Part:
    """What may go as a whole: units that count only where the switch is on (bool per class); what is lost with it.

    It goes with the part that it lies `within`, and is then not lost by itself.
    """

    switch: Switch
    units: np.ndarray
    worth: float
    within: Switch | None = None
    stays: np.ndarray | None = None  # bool per class: those that all stay where it goes


@dataclass(frozen=True, eq=False)
class Option:
    """One of the ways to have a layer: its worth, and the classes that all stay where it is chosen (bool per class)."""

    switch: Switch
    worth: float
    stays: np.ndarray


@dataclass(frozen=True, eq=False)
class Pick:
    """One of several options, just one of which is on; none where the part that they are in (`within`) goes.

    `units` are those of the layer as it is: they count where `own` is on.
    """

    name: str
    options: tuple[Option, ...]
    own: Switch
    units: np.ndarray
    within: Switch | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked: requests, sizes in multiples of `round_to`, and `keep`: classes that must stay.

    Worth is maximised in `stage`, less the `spreads` of that stage; those of an earlier one come first. Sizes in
    `moves` do not stay as they are. `slots` says how many new units may come after each class. With `join_requests`
    equations that the caller asked for may become part of the choices, which is faster; without, they stay constraints
    that a conflict can name. Of the `parts` at most `most_removed` may go; of each of `picks` one option is taken.
    """

    requests: Sequence[Request] = ()
    round_to: int | None = None
    keep: np.ndarray | None = None
    join_requests: bool = True
    stage: int = 0
    spreads: Sequence[Spread] = ()
    moves: Sequence[tuple[Extent, str]] = ()
    slots: np.ndarray | None = None
    parts: Sequence[Part] = ()
    most_removed: int | None = None  # of the parts
    picks: Sequence[Pick] = ()

    @property
    def budgets(self) -> list[Budget]:
        """Limits on sums."""
        asked = [r for r in self.requests if isinstance(r, Budget)]
        return [b for r in asked for b in r.sums(grows=self.slots is not None)]

    def under(self, units: np.ndarray) -> Switch | None:
        """The switch under which all of these units count."""
        return next((switch for mine, switch in self.switched if mine[units].all()), None)

    @property
    def switched(self) -> list[tuple[np.ndarray, Switch]]:
        """Units (bool per class) that count only where a switch is on; those of a layer before those of its branch."""
        return [(p.units, p.own) for p in self.picks] + [(p.units, p.switch) for p in self.parts]

    def held(self, on: Mapping[str, bool]) -> Iterator[tuple[str, np.ndarray]]:
        """By what asks for it the units (bool per class) that all stay, given which switches are on."""
        for option in (o for p in self.picks for o in p.options if on.get(o.switch.name, o.switch.now)):
            yield option.switch.name, option.stays
        for part in (p for p in self.parts if p.within is None or on.get(p.within.name, True)):
            if part.stays is not None and not on.get(part.switch.name, part.switch.now):
                yield f"not: {part.switch.name}", part.stays

    @property
    def costs(self) -> list[Cost]:
        """The costs that budgets are on."""
        return [b.cost for b in self.budgets]
