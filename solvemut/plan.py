"""Plan: what will be changed, with its certificate. Printable, saved as JSON, checked before it is applied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import planfile
from .graph import Graph
from .report import short, table

Index = list[int] | list[list[int]]
P = TypeVar("P", bound="PlanRecord")


@dataclass(frozen=True)
class PlanCost:
    """A resource before and after the plan, and the budget it was given (None: no budget)."""

    before: int
    after: int
    budget: float | None = None


@dataclass(frozen=True)
class AttributeChange:
    """A new value for an attribute of a module; `index` where the attribute is a list or tuple."""

    module: str
    name: str
    index: int | None
    before: int
    after: int


@dataclass(frozen=True)
class PlanRecord:
    """A solved mutation as data; `apply.Plan` can be applied.

    `indices` maps a parameter or buffer and one of its dims to the old positions that stay, in their new order (-1: a
    new slice); the input dim of a grouped convolution has one such list per group that stays. `shapes` maps every
    parameter and buffer it touches to its shape before and after. `units` says for each index list which unit stands
    where, so that the lists can be held against each other: see `planfile`.
    """

    status: str
    objective: float
    bound: float
    gap: float
    seconds: float
    solver: str
    sizes: Mapping[str, tuple[int, int]]
    indices: Mapping[str, Mapping[int, Index]]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    costs: Mapping[str, PlanCost]
    attributes: tuple[AttributeChange, ...] = ()
    notes: tuple[str, ...] = ()
    root: str = "model"
    values: str = ""
    example: str = ""
    outputs: tuple[tuple[int, ...], ...] = ()
    program: tuple[str, ...] = ()  # the forward of the changed model, one line per operation, as `verify` compares it
    graph: Graph | None = field(default=None, compare=False, repr=False)  # of the changed model
    units: Mapping[str, Mapping[int, list[list[list[int]]]]] = field(default_factory=dict)

    # -- text --------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        rows = [[name, a, b, f"{b / a:.0%}" if a else ""] for name, (a, b) in self.sizes.items()]
        costs = [
            [name, short(c.before), short(c.after), f"{c.after / c.before:.2%}" if c.before else "",
             "" if c.budget is None else short(c.budget)]
            for name, c in self.costs.items()
        ]  # fmt: skip
        attributes = [
            [f"{a.module}.{a.name}".lstrip(".") + ("" if a.index is None else f"[{a.index}]"), a.before, a.after]
            for a in self.attributes
        ]
        parts = [
            f"{self.root}: {self.status}, value {self.objective:.6g} (bound {self.bound:.6g}, gap {self.gap:.2e}), "
            f"{self.seconds:.2f} s with {self.solver}" + (f"; values: {self.values}" if self.values else ""),
            table(["resource", "before", "after", "kept", "budget"], costs, right=[1, 2, 3, 4]),
            table(["layer", "before", "after", "kept"], rows, right=[1, 2, 3]),
        ]
        if attributes:
            parts.append(table(["attribute", "before", "after"], attributes, right=[1, 2]))
        if self.notes:
            parts.append("\n".join(["notes:", *(f"- {n}" for n in self.notes)]))
        return "\n\n".join(parts)

    # -- JSON --------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise PlanMismatchError, with the place, if the plan does not agree with itself."""
        planfile.check(self._data())

    def _data(self) -> dict[str, Any]:
        """The plan as a file has it."""
        data: dict[str, Any] = {
            "format": planfile.FORMAT,
            "version": planfile.VERSION,
            "certificate": {k: getattr(self, k) for k in _CERTIFICATE},
            "sizes": {k: list(v) for k, v in self.sizes.items()},
            "indices": {k: {str(d): i for d, i in v.items()} for k, v in self.indices.items()},
            "units": {k: {str(d): i for d, i in v.items()} for k, v in self.units.items()},
            "shapes": {k: [list(a), list(b)] for k, (a, b) in self.shapes.items()},
            "costs": {k: [c.before, c.after, c.budget] for k, c in self.costs.items()},
            "attributes": [[a.module, a.name, a.index, a.before, a.after] for a in self.attributes],
            "notes": list(self.notes),
            "root": self.root,
            "values": self.values,
            "example": self.example,
            "outputs": [list(s) for s in self.outputs],
            "program": list(self.program),
        }
        return {**data, "checksum": ""}

    def to_json(self) -> str:
        """The plan as JSON text."""
        data = self._data()
        return json.dumps({**data, "checksum": planfile.checksum(data)})

    def save(self, path: str | Path) -> None:
        """Write the plan to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls: type[P], path: str | Path) -> P:
        """Read a plan from a file. Raises PlanMismatchError if it is no plan, damaged, or of a later version."""
        return cls.from_json(Path(path).read_bytes())

    @classmethod
    def from_json(cls: type[P], text: str | bytes) -> P:
        """The plan that `to_json` wrote. Raises PlanMismatchError, with the place, if anything in it is not right."""
        data = planfile.parse(text)
        return cls(
            **{k: data["certificate"][k] for k in _CERTIFICATE},
            sizes={k: (a, b) for k, (a, b) in data["sizes"].items()},
            indices={k: {int(d): i for d, i in v.items()} for k, v in data["indices"].items()},
            units={k: {int(d): i for d, i in v.items()} for k, v in data["units"].items()},
            shapes={k: (tuple(a), tuple(b)) for k, (a, b) in data["shapes"].items()},
            costs={k: PlanCost(*v) for k, v in data["costs"].items()},
            attributes=tuple(AttributeChange(*a) for a in data["attributes"]),
            notes=tuple(data["notes"]),
            root=data["root"],
            values=data["values"],
            example=data["example"],
            outputs=tuple(tuple(s) for s in data["outputs"]),
            program=tuple(data["program"]),
        )


_CERTIFICATE = ("status", "objective", "bound", "gap", "seconds", "solver")


def as_lists(index: np.ndarray) -> Index:
    """An index array as plain lists."""
    found: Index = index.tolist()
    return found
