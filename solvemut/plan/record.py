"""Plan: what will be changed, with its certificate. Printable, saved as JSON, checked before it is applied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..edits import GIVEN, Copies, Edit, Index, Selection, SetAttribute, Substitute, edit_of
from ..errors import RequestError
from ..graph import Graph
from ..pictures import drawn_plan
from ..report import Part, Table, html, one_line, share, short, text
from . import file as planfile
from .copies import told

P = TypeVar("P", bound="PlanRecord")


@dataclass(frozen=True)
class PlanCost:
    """A resource before and after the plan, and the budget it was given (None: no budget); a latency is in ms."""

    before: float  # an int where it is counted: parameters, FLOPs
    after: float
    budget: float | None = None


@dataclass(frozen=True)
class PlanBack:
    """What leads back from a plan: first the selection, whose -1 stand for what was dropped, then the edits."""

    selection: Selection
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class PlanRecord:
    """A solved mutation as data; `apply.Plan` can be applied.

    It is a list of `edits`, and a `selection` of what then stays. `shapes` maps every parameter and buffer it touches
    to its shape before and after. `units` says for each index list of the selection which unit stands where, so that
    the lists can be held against each other: see `planfile`.
    """

    status: str
    objective: float
    bound: float
    gap: float
    seconds: float
    solver: str
    sizes: Mapping[str, tuple[int, int]]
    selection: Selection
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    costs: Mapping[str, PlanCost]
    edits: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()
    root: str = "model"
    values: str = ""
    example: str = ""
    outputs: tuple[tuple[int, ...], ...] = ()
    program: tuple[str, ...] = ()  # the forward of the changed model, one line per operation, as `verify` compares it
    graph: Graph | None = field(default=None, compare=False, repr=False)  # of the changed model
    solved: Any = field(default=None, compare=False, repr=False)  # what explains it, while it is in memory
    units: Mapping[str, Mapping[int, list[list[list[int]]]]] = field(default_factory=dict)
    fills: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)  # what new slices hold: see `fill`
    copies: Mapping[str, Mapping[int, Copies]] = field(default_factory=dict)  # the new slices that copy old ones
    alters: tuple[str, ...] = ()  # why outputs may not be what they were; nothing: they are
    trials: tuple[tuple[str, float], ...] = ()  # plans that were tried and the loss measured of each, this one first

    @property
    def indices(self) -> Mapping[str, Mapping[int, Index]]:
        """For a parameter or buffer and one of its dims the old positions that stay: see `Selection`."""
        return self.selection.indices

    @property
    def attributes(self) -> tuple[SetAttribute, ...]:
        """The attributes of modules that get a new value."""
        return tuple(e for e in self.edits if isinstance(e, SetAttribute))

    @property
    def chosen(self) -> dict[str, str]:
        """By layer the option that was chosen for it (`Problem.choose`); none where it stays as it is."""
        return {e.module: e.option for e in self.edits if isinstance(e, Substitute)}

    @property
    def back(self) -> PlanBack:
        """The way back as data: which positions stayed, what the edits replaced. Weights that went are not in it."""
        before = {name: old for name, (old, _) in self.shapes.items()}
        return PlanBack(self.selection.back(before), tuple(e.back() for e in reversed(self.edits)))

    # -- text --------------------------------------------------------------------------------------------------------

    def _report(self) -> list[Part]:
        rows = [[name, a, b, f"{b / a:.0%}" if a else ""] for name, (a, b) in self.sizes.items()]
        costs = [
            [
                name,
                short(c.before),
                short(c.after),
                share(c.after, c.before),
                "" if c.budget is None else short(c.budget),
            ]
            for name, c in self.costs.items()
        ]
        attributes = [[a.place, a.before, a.after] for a in self.attributes]
        edits = [e.describe() for e in self.edits if not isinstance(e, SetAttribute)]
        parts: list[Part] = [
            f"{self.root}: {self.status}, value {self.objective:.6g} (bound {self.bound:.6g}, gap {self.gap:.2e}), "
            f"{self.seconds:.2f} s with {self.solver}" + (f"; values: {self.values}" if self.values else ""),
            Table(["resource", "before", "after", "kept", "budget"], costs, right=[1, 2, 3, 4]),
            Table(["layer", "before", "after", "kept"], rows, right=[1, 2, 3]),
        ]
        if self.trials:
            tried = [[title, f"{loss:.6g}"] for title, loss in self.trials]
            parts.append(Table(["measured plan", "loss"], tried, right=[1]))
        if attributes:
            parts.append(Table(["attribute", "before", "after"], attributes, right=[1, 2]))
        if self.copies:
            parts.append("\n".join(["new units that are copies:", *told(self.copies, self.indices)]))
        if edits:
            parts.append("\n".join(["edits:", *(f"- {e}" for e in edits)]))
        if self.notes:
            parts.append("\n".join(["notes:", *(f"- {n}" for n in self.notes)]))
        return parts

    def __str__(self) -> str:
        return text(self._report())

    def _repr_html_(self) -> str:
        """The tables of `print(plan)`, for notebooks."""
        return html(self._report())

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the sizes of the layers before and after, and what is used of each budget, as bars.

        Writes a file, of the kind that its name ends in, or returns matplotlib's figure if no path is given. Raises
        RequestError where matplotlib is missing (`pip install solvemut[plot]`). A plan from a file can be drawn, too.

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = sm.prune(model, torch.ones(1, 4), params=0.5)
        >>> [axes.get_title() for axes in plan.plot().axes]
        ['sizes', 'kept']
        """
        used = {name: (c.before, c.after, c.budget) for name, c in self.costs.items()}
        return drawn_plan(self.root, self.sizes, used, path)

    def explain(self, layer: str) -> Any:
        """Why a layer has the size that it has: an `Explanation`, which prints.

        What one step more or less would be worth and cost, other sizes as they are, and what it would break; what
        each budget has left, and its shadow price; what is coupled, and by what; why nothing can change, where that is
        so. `layer` is the name of a vertex of the graph that the plan was made for. The first call finds the prices,
        which takes at most 10 seconds. Only the plan that `solve` or `prune` returns knows all this: files, pickles,
        `Mutator.history` and plans put together of several do not, and raise RequestError.

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = sm.prune(model, torch.ones(1, 4), values={"0": list(range(8, 0, -1))}, params=0.5)
        >>> why = plan.explain("0")
        >>> (why.before, why.after, why.larger.value, why.larger.costs["params"], why.larger.breaks)
        (8, 3, 5.0, 7, ('params <= 29',))
        """
        if self.solved is None:
            raise RequestError(
                "this plan does not know the program that it solves, which is only kept in memory, with the plan that "
                "solve or prune returns: not in files and pickles, not in Mutator.history, not in plans put together "
                "of several or chosen by another rule; solve again, and explain what that returns"
            )
        return self.solved.explain(layer)

    def __repr__(self) -> str:
        costs = [f"{name} {short(c.before)} -> {short(c.after)}" for name, c in self.costs.items()]
        smaller = sum(a != b for a, b in self.sizes.values())
        return one_line(f"<Plan of {self.root}: {self.status}, {smaller} layers change, {', '.join(costs)}>")

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
            "edits": [e.to_data() for e in self.edits],
            "selection": self.selection.to_data(),
            "units": {k: {str(d): i for d, i in v.items()} for k, v in self.units.items()},
            "fills": {k: {str(d): i for d, i in v.items()} for k, v in self.fills.items()},
            "copies": {k: {str(d): c.to_data() for d, c in v.items()} for k, v in self.copies.items()},
            "alters": list(self.alters),
            "trials": [list(t) for t in self.trials],
            "shapes": {k: [list(a), list(b)] for k, (a, b) in self.shapes.items()},
            "costs": {k: [c.before, c.after, c.budget] for k, c in self.costs.items()},
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
    def load(cls: type[P], path: str | Path, modules: Mapping[str, Mapping[str, Any]] | None = None) -> P:
        """Read a plan from a file. Raises PlanMismatchError if it is no plan, damaged, or of a later version.

        A file holds no modules: those that the plan puts in the place of layers are given by layer and option, as
        `Problem.choose` was given them.
        """
        return cls.from_json(Path(path).read_bytes(), modules)

    @classmethod
    def from_json(cls: type[P], source: str | bytes, modules: Mapping[str, Mapping[str, Any]] | None = None) -> P:
        """The plan that `to_json` wrote. Raises PlanMismatchError, with the place, if anything in it is not right."""
        data = planfile.parse(source)
        return cls(
            **{k: data["certificate"][k] for k in _CERTIFICATE},
            sizes={k: (a, b) for k, (a, b) in data["sizes"].items()},
            edits=tuple(_with_module(edit_of(e), modules or {}) for e in data["edits"]),
            selection=Selection.from_data(data["selection"]),
            units={k: {int(d): i for d, i in v.items()} for k, v in data["units"].items()},
            fills={k: {int(d): i for d, i in v.items()} for k, v in data["fills"].items()},
            copies={k: {int(d): Copies(**c) for d, c in v.items()} for k, v in data["copies"].items()},
            alters=tuple(data["alters"]),
            trials=tuple((title, loss) for title, loss in data["trials"]),
            shapes={k: (tuple(a), tuple(b)) for k, (a, b) in data["shapes"].items()},
            costs={k: PlanCost(*v) for k, v in data["costs"].items()},
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


def _with_module(edit: Edit, modules: Mapping[str, Mapping[str, Any]]) -> Edit:
    """An edit that puts a module in the place of a layer, with that module."""
    if not isinstance(edit, Substitute) or edit.how != GIVEN:
        return edit
    given = modules.get(edit.module, {}).get(edit.option)
    return replace(edit, given=getattr(given, "module", given))
