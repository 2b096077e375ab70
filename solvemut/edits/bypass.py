"""A module that is no longer run: it passes its input on, or gives zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import register
from .forms import one_of, record, text, whole
from .structure import Placed

INPUT, ZEROS = "input", "zeros"
_FORM = record(module=text, gives=one_of(INPUT, ZEROS), results=whole(0, 64))


@register
@dataclass(frozen=True)
class Bypass(Placed):
    """In place of a module stands one that gives its input, or zeros of that shape, at once.

    `results`: 0, it gives a tensor; else a tuple of so many entries, all but the first None.

    >>> Bypass("blocks.3.attn", "zeros", 2).describe()
    'blocks.3.attn: gone, zeros in its place'
    """

    kind: ClassVar[str] = "bypass"

    gives: str
    results: int = 0

    @staticmethod
    def form(where: str, x: Any) -> None:
        _FORM(where, x)

    def describe(self) -> str:
        return f"{self.module}: gone, {'its input' if self.gives == INPUT else 'zeros'} in its place"
