"""Decode: chosen levels become units that stay and units that come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..flow import FIXED
from ..program import Solution
from .blocks import best_units
from .choices import Choice
from .question import Worth


@dataclass(frozen=True, eq=False)
class Decoder:
    """Reads solutions of one program: which units stay, where new ones come, and which switches are on."""

    choices: tuple[Choice, ...]
    frozen: np.ndarray
    worth: Worth
    switches: tuple[str, ...] = ()

    def times(self, solution: Solution) -> np.ndarray:
        """How often a solution has each class: 0, it goes; 1, it stays; more, new units come after it."""
        return self.times_at(self.picks(solution))

    def picks(self, solution: Solution) -> list[int]:
        """The level that a solution gives each choice, as an index."""
        return [choice.width.levels.index(solution[choice.width]) for choice in self.choices]

    def times_at(self, picks: Sequence[int]) -> np.ndarray:
        """How often each class is there, given the level of each choice."""
        times = self.frozen.astype(np.int64)
        times[FIXED] = 1
        for units, new in self._best(picks):
            times[units] = 1
            for unit, copied in new.items():
                times[unit] += len(copied)
        return times

    def sources(self, solution: Solution) -> dict[int, list[int]]:
        """By class after which new units come the classes that these are copies of, if they are to be copies."""
        return {unit: copied for _, new in self._best(self.picks(solution)) for unit, copied in new.items()}

    def _best(self, picks: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, list[int]]]]:
        order = self.worth.order
        for choice, at in zip(self.choices, picks, strict=True):
            for block, level in zip(choice.blocks, choice.picks[at].tolist(), strict=True):
                yield best_units(block, block.levels[level], order)

    def kept(self, solution: Solution) -> np.ndarray:
        """The units that a solution keeps, bool per class."""
        return self.times(solution) > 0

    def on(self, solution: Solution) -> dict[str, bool]:
        """By name whether each switch is on."""
        return {name: bool(solution[name]) for name in self.switches}
