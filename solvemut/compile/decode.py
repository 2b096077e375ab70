"""Decode: chosen levels become kept units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..flow import FIXED
from ..program import Solution
from .blocks import best_units
from .choices import Choice
from .question import Worth


@dataclass(frozen=True, eq=False)
class Decoder:
    """Reads solutions of one program: which units stay, and which switches are on."""

    choices: tuple[Choice, ...]
    frozen: np.ndarray
    worth: Worth
    switches: tuple[str, ...] = ()

    def kept(self, solution: Solution) -> np.ndarray:
        """The units that a solution keeps, bool per class."""
        kept, order = self.frozen.copy(), self.worth.order
        kept[FIXED] = True
        for choice in self.choices:
            pick = choice.picks[choice.width.levels.index(solution[choice.width])]
            for block, level in zip(choice.blocks, pick.tolist(), strict=True):
                kept[best_units(block, block.levels[level], order)] = True
        return kept

    def on(self, solution: Solution) -> dict[str, bool]:
        """By name whether each switch is on."""
        return {name: bool(solution[name]) for name in self.switches}
