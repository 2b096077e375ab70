"""Layers and edges that came or went: said in a plan, and made only by the operation that the plan tells of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import PlanMismatchError
from ..trace import Trace
from .base import Edit, register
from .forms import record, text

_FORM = record(what=text)


@register
@dataclass(frozen=True)
class Rewire(Edit):
    """A change of structure in words, such as "remove conv1". It holds modules, so a plan can only tell of it.

    >>> Rewire("remove conv1").describe()
    'remove conv1'
    """

    kind: ClassVar[str] = "rewire"

    what: str

    @staticmethod
    def form(where: str, x: Any) -> None:
        _FORM(where, x)

    def apply(self, trace: Trace) -> tuple[Trace, Edit]:
        raise PlanMismatchError(self.refusal)

    @property
    def refusal(self) -> str:
        """Why no plan makes it."""
        return (
            f"this plan tells of a change of structure ({self.what}), which holds modules that a plan does not: ask "
            "the Mutator for it again, without dry_run"
        )

    def back(self) -> Edit:
        return Rewire(f"undo: {self.what}")

    def describe(self) -> str:
        return self.what
