"""Copies: which new slices of a parameter hold what old ones do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .selection import Index


@dataclass(frozen=True)
class Copies:
    """For the slices of a selection's index the old position that each is a copy of, -1 where it is none.

    Where they are `divided`, a slice and its copies share what it holds: they add up to it.
    """

    of: Index
    divided: bool

    def to_data(self) -> dict[str, Any]:
        """As a plan file has it."""
        return {"of": self.of, "divided": self.divided}
