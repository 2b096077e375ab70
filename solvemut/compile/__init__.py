"""Compile: coupled units, their worth and requests become an integer program over block sizes, with its decoder.

A function without memory: `compile_program(coupling, worth, question)` gives the program, the decoder of its solutions,
and notes on what freedom was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..coupling import Coupling
from ..flow import Extent
from ..program import Program
from ..requests import Budget, Monomial, Switch
from .choices import Choice, Choices, parts_of
from .decode import Decoder
from .explain import explained
from .question import Curve, Option, Part, Pick, Question, Worth
from .spread import Deviation, Spread, Unless
from .state import Statement, reduced

__all__ = [
    "Choice",
    "Compiled",
    "Curve",
    "Decoder",
    "Deviation",
    "Option",
    "Part",
    "Pick",
    "Question",
    "Spread",
    "Unless",
    "Worth",
    "compile_program",
    "explained",
    "parts_of",
]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program with what reads its solutions; `counted` pairs each budget with the resource that counts it."""

    program: Program
    decoder: Decoder
    choices: Choices
    counted: tuple[tuple[Budget, str], ...]
    notes: tuple[str, ...]

    def objective(self, times: np.ndarray, on: Mapping[str, bool] | None = None) -> float:
        """What the stage of worth has to come to, counted from a change; switches as `on` says, or as they are."""
        question, decoder = self.choices.question, self.decoder

        def is_on(switch: Switch | None) -> bool:
            return switch is None or (on or {}).get(switch.name, switch.now)

        lost = sum(s.of(self.choices.coupling, times) for s in question.spreads if s.stage == question.stage)
        lost += sum(p.worth for p in question.parts if not is_on(p.switch) and is_on(p.within))
        lost -= sum(o.worth for p in question.picks for o in p.options if is_on(o.switch))
        gone = [units for units, switch in question.switched if not is_on(switch)]
        worth = decoder.worth.without(np.any(gone, axis=0)) if gone else decoder.worth
        return worth.of(times, decoder.frozen) - lost


def compile_program(coupling: Coupling, worth: Worth | np.ndarray, question: Question | None = None) -> Compiled:
    """The program for one coupling, what its units are worth, and a question.

    Where a cost is a product of more than two sizes that change apart, the smallest of them stays, and a note says so.
    """
    worth = worth if isinstance(worth, Worth) else Worth(np.asarray(worth))
    question = question or Question()
    frozen = coupling.frozen | (question.keep if question.keep is not None else False)
    for rows in coupling.rows:
        if rows.stays and (question.slots is None or not question.slots[rows.units].any()):
            frozen[rows.units] = True
    notes: list[str] = []
    while True:
        choices = Choices(coupling, question, worth, frozen)
        found = _too_many(choices)
        if found is None:
            break
        extent, vertex = found
        frozen = frozen.copy()
        frozen[coupling.units(extent)] = True
        notes.append(
            f"the cost of {vertex} is a product of more than two sizes that change apart: "
            f"the smallest of them, {extent.now}, stays"
        )
    worth = _with_new(worth, choices)
    stated = Statement(choices, worth)
    switches = tuple(s.name for s in stated.switches)
    decoder = Decoder(tuple(choices.choices), frozen, worth, switches)
    return Compiled(stated.program, decoder, choices, tuple(stated.counted), (*choices.notes, *notes))


def _with_new(worth: Worth, choices: Choices) -> Worth:
    """What a new unit is worth, where nothing else is said: as much as the least of its block."""
    if worth.new is not None or choices.question.slots is None:
        return worth
    new = np.zeros(len(worth.value))
    for block in choices.partition.blocks:
        for units in block.families:
            new[units] = np.asarray(worth.value, dtype=float)[units].min()
    for curve in worth.curves:
        new[curve.units] = max(0.0, float(curve.steps()[-1])) if len(curve.units) else 0.0
    return replace(worth, new=new)


def _too_many(choices: Choices) -> tuple[Extent, str] | None:
    """A size that might stay, of a product of more than two that change apart."""
    for cost in choices.question.costs:
        for m in cost.monomials:
            several = isinstance(m, Monomial) and len(m.extents) > 2
            if several and reduced([choices.linear([(e, 1)]) for e in m.extents]) is None:
                return min(m.extents, key=lambda e: e.now), m.vertex
    return None
