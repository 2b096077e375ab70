"""Report: what a repair did, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..report import one_line, table


@dataclass(frozen=True)
class Repaired:
    """One layer that was looked at; `name` is that of its weight.

    `before` and `after` say how far its outputs are from the teacher's: squared distance as a share of the square of
    the teacher's own, on the rows it was solved for (None: not measured). `kept` says whether its new values stand, and
    `note` why not.
    """

    name: str
    before: float | None
    after: float | None
    kept: bool
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a repair did. `before` and `after` are the calibration loss, `left` says why other layers were left."""

    name: str
    before: float
    after: float
    layers: tuple[Repaired, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the layers whose new values stand."""
        return tuple(layer.name for layer in self.layers if layer.kept)

    def __str__(self) -> str:
        rows = [
            [layer.name, _share(layer.before), _share(layer.after), "yes" if layer.kept else layer.note or "no"]
            for layer in self.layers
        ]
        parts = [f"{self.name}: loss {self.before:.6g} -> {self.after:.6g}, {self.seconds:.2f} s"]
        if rows:
            parts.append(table(["layer", "error before", "after", "kept"], rows, right=[1, 2]))
        if self.left:
            parts.append("\n".join(["left as they are:", *(f"- {name}: {why}" for name, why in self.left.items())]))
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return one_line(f"<Report of {self.name}: {len(self.kept)} layers, loss {self.before:.6g} -> {self.after:.6g}>")


def _share(x: float | None) -> str:
    return "" if x is None else f"{x:.2%}" if x >= 1e-4 or x == 0 else f"{x:.1e}"
