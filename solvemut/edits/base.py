"""A structural change is a value: `Edit.apply(trace) -> (trace, back)`, where `back` is the edit that undoes it.

An edit holds what it takes away, so that its inverse follows from itself: a plan knows the way back without a trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from ..errors import PlanMismatchError
from ..trace import Trace
from .forms import fail, shown, text

E = TypeVar("E", bound="Edit")


@dataclass(frozen=True)
class Edit(ABC):
    """One change of a model's structure. Its fields are plain JSON, or it writes and reads its data itself."""

    kind: ClassVar[str]

    @staticmethod
    @abstractmethod
    def form(where: str, x: Any) -> None:
        """The form of its data, the kind left out: see `forms`."""

    @abstractmethod
    def apply(self, trace: Trace) -> tuple[Trace, Edit]:
        """The changed trace, and the edit that leads from there to the trace given. Raises PlanMismatchError."""

    @abstractmethod
    def back(self) -> Edit:
        """The inverse edit."""

    @abstractmethod
    def describe(self) -> str:
        """One line for printed plans."""

    @property
    def sets(self) -> tuple[Any, ...] | None:
        """The one thing that it sets, so that it commutes with edits that set others; None: it may do more."""
        return None

    def then(self, other: Edit) -> Edit | None:
        """This edit, then another of the same thing, as one; None: they stay two."""
        return None

    def to_data(self) -> dict[str, Any]:
        """As a plan file has it."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_data(cls: type[E], data: Mapping[str, Any]) -> E:
        """The edit of this kind that `to_data` wrote; `edit_of` reads any kind, and checks."""
        return cls(**{k: v for k, v in data.items() if k != "kind"})


EDITS: dict[str, type[Edit]] = {}


def register(edit: type[E]) -> type[E]:
    """Enter a kind of edit in the table. Raises ValueError if the kind is taken."""
    if edit.kind in EDITS:
        raise ValueError(f"{edit.__name__}: the kind {edit.kind!r} is that of {EDITS[edit.kind].__name__}")
    EDITS[edit.kind] = edit
    return edit


def edit_form(where: str, x: Any) -> None:
    """An edit of a kind in the table, in the form of its kind."""
    if not isinstance(x, dict):
        fail(where, "an object", x)
    if "kind" not in x:
        fail(where, "an entry 'kind'", list(x))
    text(f"{where}.kind", x["kind"])
    if x["kind"] not in EDITS:
        raise PlanMismatchError(
            f"{where}.kind: this solvemut knows no edit of kind {shown(x['kind'])}, only {', '.join(EDITS)}; the plan "
            "is of a later version, or it was edited"
        )
    EDITS[x["kind"]].form(where, {k: v for k, v in x.items() if k != "kind"})


def edit_of(data: Any) -> Edit:
    """The edit, of whatever kind, that `to_data` wrote.

    >>> from solvemut.edits import SetAttribute
    >>> edit = SetAttribute("attn", "heads", None, 8, 6)
    >>> edit_of(edit.to_data()) == edit
    True
    """
    edit_form("edit", data)
    return EDITS[data["kind"]].from_data(data)
