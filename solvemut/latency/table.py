"""LatencyTable: what each distinct node takes by its sizes, as a value that is saved, shared and applied to graphs."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import one_of, shown
from ..errors import RequestError
from ..graph import Graph
from ..report import one_line
from ..requests import Cost
from .cost import cost_of
from .grid import BETWEEN, array_of, surface

VERSION = 1
TICKS = 1_000_000  # a latency is counted in whole nanoseconds, so many of which make a millisecond


@dataclass(frozen=True, eq=False)
class Entry:
    """What one kind of node takes: the sizes measured along each axis, and nanoseconds at each point of that grid."""

    grid: tuple[tuple[int, ...], ...]
    values: np.ndarray
    works: bool = True
    count: int = 1  # nodes of this kind in the model that it was measured in
    note: str = ""

    @property
    def most(self) -> tuple[int, ...]:
        return tuple(a[-1] for a in self.grid)


@dataclass(frozen=True)
class Fit:
    """What corrects the sum over nodes: factors for nodes that multiply and for others, and nanoseconds for each node.

    It is fitted to runs of whole models: `measured` are those in ms, `held_out` what the table says of each when it is
    left out of the fit, `plain` the sums without any correction.
    """

    work: float = 1.0
    other: float = 1.0
    each: float = 0.0
    measured: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    plain: tuple[float, ...] = ()

    @property
    def errors(self) -> tuple[float, ...]:
        """By run, how far the held-out prediction is from the measurement, as a share of it."""
        return tuple(abs(p / m - 1) for p, m in zip(self.held_out, self.measured, strict=True))


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """How long each layer takes by its sizes, on one device. `measure_latency` and `roofline` make it.

    `graph.latency(table)` is what a model takes, in milliseconds. A table is text, too: it can be sent to somebody
    else, and serves any model whose layers it knows. `error` is the median relative error on whole models held out
    from the fit, `worst` the largest; both are None where nothing was held against it.

    >>> import torch, solvemut as sm
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> graph = sm.capture(model, torch.ones(16, 8))
    >>> table = sm.measure_latency(graph, rounds=1, check=0)
    >>> graph.latency(table).now > 0, sm.LatencyTable.from_json(table.to_json()) == table
    (True, True)
    """

    device: str
    entries: Mapping[str, Entry] = field(default_factory=dict, repr=False)
    fit: Fit = Fit()
    between: str = "line"
    dtype: str = "float32"
    versions: str = ""
    compiled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        return float(np.median(self.fit.errors)) if self.fit.measured else None

    @property
    def worst(self) -> float | None:
        return max(self.fit.errors) if self.fit.measured else None

    def cost(self, graph: Graph, apart: Sequence[Container[str]] = ()) -> Cost:
        """The latency of a graph as a cost, in ms; RequestError names what this table does not know.

        Nodes in each set of `apart` are terms of their own.
        """
        return cost_of(graph, self._ticks, TICKS, apart, self.cost, self.compiled)

    def _ticks(self, site: Any) -> np.ndarray:
        """Nanoseconds at every size that a node can have."""
        entry = self.entries.get(site.key)
        missing = entry is None or any(s > m for s, m in zip(site.now, entry.most, strict=True))
        if entry is None or missing:
            what = "no such layer" if entry is None else f"it up to {entry.most} only"
            raise RequestError(
                f"the table of {self.device} has {what}: {site.node.at()}, {site.now}: {site.key}; measure the model "
                f"with measure_latency(graph, {'compile=True, ' * self.compiled}table=...), which adds what is missing"
            )
        return self.surface(entry, site.now)

    def surface(self, entry: Entry, sizes: tuple[int, ...]) -> np.ndarray:
        """Whole nanoseconds at all sizes from 0 to these, corrected by the fit; never below 0."""
        found = surface(entry.grid, entry.values, sizes, self.between)
        factor = self.fit.work if entry.works else self.fit.other
        return np.maximum(0, np.rint(found * factor + self.fit.each)).astype(np.int64)

    def with_steps(self, between: str) -> LatencyTable:
        """The same with other values between the measured sizes: "line", or "step" for those of the next size up."""
        return replace(self, between=one_of(between, "between", BETWEEN))

    # -- text ----------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        head = f"latencies on {self.device}, {self.dtype}{', compiled' * self.compiled}: "
        head += f"{len(self.entries)} kinds of nodes, {sum(e.values.size for e in self.entries.values())} points"
        lines = [head]
        if self.fit.measured:
            lines.append(
                f"error on {len(self.fit.measured)} whole models, each held out: "
                f"median {self.error:.1%}, worst {self.worst:.1%}"
            )
        noted = [f"{k}: {e.note}" for k, e in self.entries.items() if e.note]
        return "\n".join([*lines, *self.notes, *noted])

    def __repr__(self) -> str:
        return one_line(f"<LatencyTable of {self.device}: {len(self.entries)} kinds of nodes>")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyTable) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> str:
        """The table as text: numbers and names, no code, so that it can be shared."""
        entries = {
            k: [list(map(list, e.grid)), e.values.tolist(), e.works, e.count, e.note] for k, e in self.entries.items()
        }
        fit = [getattr(self.fit, k) for k in Fit.__dataclass_fields__]
        data = {
            "latency": VERSION,
            **{k: getattr(self, k) for k in ("device", "between", "dtype", "versions", "compiled", "notes")},
            "fit": fit,
            "entries": entries,
        }
        return json.dumps(data, indent=None, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """The table that `to_json` wrote. RequestError for anything else."""
        data = _parsed(text)
        try:
            work, other, each, *runs = data["fit"]
            fit = Fit(_real(work), _real(other), float(each), *(tuple(_real(x) for x in r) for r in runs))
            entries = {str(k): _entry(*e) for k, e in data["entries"].items()}
            words = {k: data[k] for k in ("device", "dtype", "versions")}
            if not all(isinstance(w, str) for w in words.values()) or not math.isfinite(fit.each):
                raise ValueError("a name that is no text, or a number that is none")
            between = one_of(data["between"], "between", BETWEEN)
            notes = tuple(str(n) for n in data["notes"])
            return cls(entries=entries, fit=fit, between=between, compiled=bool(data["compiled"]), notes=notes, **words)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise RequestError(f"this latency table is damaged: {type(e).__name__}: {shown(str(e))}") from None

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all."""
        target = Path(path)
        part = target.with_name(target.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        part.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """The table in a file. RequestError if it holds none."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _parsed(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (TypeError, ValueError) as e:
        raise RequestError(f"this is no latency table: {shown(str(e))}") from None
    if not isinstance(data, dict) or "latency" not in data:
        raise RequestError("this is no latency table")
    if data["latency"] != VERSION:
        raise RequestError(f"this latency table has version {shown(data['latency'])}; this solvemut reads {VERSION}")
    return data


def _real(x: Any) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x) or x < 0:
        raise ValueError(f"{shown(x)} is no number of at least 0")
    return float(x)


def _entry(grid: Any, values: Any, works: Any, count: Any, note: Any) -> Entry:
    sizes = tuple(tuple(int(n) for n in a) for a in grid)
    found = np.array(values, dtype=float)
    if any(not a or a[0] < 1 or any(x >= y for x, y in pairwise(a)) for a in sizes) or len(sizes) > 2:
        raise ValueError(f"the sizes {shown(grid)} do not rise from 1")
    if found.shape != tuple(len(a) for a in sizes) or not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"{found.shape} numbers of at least 0 for sizes {shown(grid)}")
    return Entry(sizes, found, bool(works), int(count), str(note))


def entry_of(
    grid: tuple[tuple[int, ...], ...], by_point: Mapping[tuple[int, ...], float], works: bool, count: int, note: str
) -> Entry:
    """An entry from values by point."""
    return Entry(grid, array_of(grid, by_point), works, count, note)
