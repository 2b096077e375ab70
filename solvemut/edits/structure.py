"""Layers and edges that came or went, which only the operation can make that a plan tells of; modules in the place of
others, which a plan makes itself.
"""

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


@dataclass(frozen=True)
class Placed(Edit):
    """Another module in the place of one: what the network then does is for a capture to tell, not for a trace."""

    module: str

    @property
    def replaces(self) -> bool:
        """Whether another module comes to stand there at all."""
        return True

    def apply(self, trace: Trace) -> tuple[Trace, Edit]:
        raise PlanMismatchError(f"what a network does with another {self.module}, or none, is for a capture to tell")

    @property
    def sets(self) -> tuple[Any, ...]:
        return (self.module, self.kind)

    def back(self) -> Edit:
        return Rewire(f"put back {self.module}")
