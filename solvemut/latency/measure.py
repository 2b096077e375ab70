"""measure_latency: the layers of a model timed over grids of their sizes, and held against whole models."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arguments import flag, one_of, real, shown, whole
from ..errors import RequestError, SolvemutError
from ..graph import Graph
from ..progress import Reporter
from .clock import Clock, clock_of
from .compiled import CompiledSamples
from .grid import BETWEEN, first_sizes, refined
from .groups import timed_sites
from .rounds import Kind, Point, run_passes, surfaces
from .samples import Call, Samples
from .sites import Site, by_key
from .table import Entry, Fit, LatencyTable
from .whole import Run, drawn_plans, fitted, site_seconds, timed_models

TIMES_REFINED = 1
ROUNDS = 5  # of whole models, at least
SAVE_SECONDS = 5.0  # between two states on disk


@dataclass(frozen=True)
class Options:
    """How `measure_latency` measures."""

    rounds: int
    points: int
    multiple: int
    tolerance: float
    check: int
    seed: int


def measure_latency(
    graph: Graph,
    device: Any = None,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    *,
    table: LatencyTable | None = None,
    cache: str | Path | None = None,
    rounds: int = 3,
    points: int = 64,
    multiple: int = 8,
    tolerance: float = 0.03,
    check: int = 8,
    between: str = "line",
    seed: int = 0,
    progress: bool | None = None,
) -> LatencyTable:
    """A table of how long each kind of layer of a graph takes by its sizes, on this device; milliseconds by sizes.

    Every node is timed alone, on random numbers, over a grid of sizes: multiples of `multiple`, more of them where a
    surface bends by more than `tolerance` (of a node's largest time), at most `points` for each kind. Each point is
    measured in `rounds` passes through the model, so that caches are as in a forward, and is their median. Then `check`
    pruned copies of the model are run whole: a correction is fitted to them, and `table.error` says how well the table
    foretells each that is left out of the fit. `between` says what holds between the measured sizes: straight lines, or
    the "step" up to the next one.

    `device` is the model's, unless one is given; on a processor as many threads run as torch has now. `dtype` is that
    of the model; `batch` must be that of the captured example. With a `table` of the same device just what it lacks is
    measured. `cache` names a folder where the state is kept by device and versions, so that what was interrupted goes
    on from there.

    With `compile` the table is of the model under `torch.compile` in eval and inference mode: nodes that multiply are
    timed as they are, all others in the groups that are fused, compiled for each size; so are the `check` models, which
    takes most of the time. RequestError for what cannot be measured: another batch, no compiler, a table of the other
    mode.

    >>> import torch, solvemut as sm
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> table = sm.measure_latency(sm.capture(model, torch.ones(16, 8)), rounds=1, check=0)
    >>> table.entries["relu(self=<16,a>) -> <16,a>"].grid
    ((8, 16, 24, 32),)
    """
    _refused(graph, batch)
    options = Options(
        whole(rounds, f"rounds={shown(rounds)}", least=1),
        whole(points, f"points={shown(points)}", least=1),
        whole(multiple, f"multiple={shown(multiple)}", least=1),
        real(tolerance, f"tolerance={shown(tolerance)}", "give a share, such as 0.03"),
        whole(check, f"check={shown(check)}", least=0),
        whole(seed, f"seed={shown(seed)}", least=0),
    )
    one_of(between, "between", BETWEEN)
    clock: Clock = device if callable(getattr(device, "laps", None)) else clock_of(_device(graph, device))
    progress = None if progress is None else flag(progress, "progress")
    with torch.inference_mode(), Reporter(progress) as reporter:
        folder = None if cache is None else Path(cache)
        work = Work(graph, clock, dtype, options, reporter, folder, between, flag(compile, "compile"))
        return work.table(table)


def _refused(graph: Any, batch: Any) -> None:
    if not isinstance(graph, Graph):
        raise RequestError(f"measure_latency takes the graph of a model, as capture gives it, not {shown(graph)}")
    shapes = [s for k, s in graph.trace.inputs.items() if ":" not in k and s]
    if batch is not None and (not shapes or batch != shapes[0][0]):
        now = shapes[0][0] if shapes else "none"
        raise RequestError(
            f"batch={shown(batch)}: this graph was captured with {now}; capture the model with an example of that batch"
        )


def _device(graph: Graph, device: Any) -> torch.device:
    if device is not None:
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as e:
            raise RequestError(f"device={shown(device)}: {e}") from None
    tensors = [] if graph.model is None else [*graph.model.parameters(), *graph.model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@dataclass(eq=False)
class Work:
    """One measurement: what is known by now, and what is to be done next."""

    graph: Graph
    clock: Clock
    dtype: torch.dtype | None
    options: Options
    reporter: Reporter
    folder: Path | None
    between: str
    compiled: bool
    kinds: list[Kind] = field(default_factory=list)
    passes: int = 0
    saved: float = field(default_factory=time.monotonic)

    def table(self, known: LatencyTable | None) -> LatencyTable:
        """The table; entries of `known` that serve are taken as they are."""
        self.sites = timed_sites(self.graph, self.compiled)
        self.samples = self._samples()
        dtype = self.dtype or torch.get_default_dtype() if self.samples is None else self.samples.dtype
        self.label = {
            "device": self.clock.name,
            "dtype": str(dtype).removeprefix("torch."),
            "versions": f"torch {torch.__version__}",
        }
        old = self._known(known)
        self._begin(old)
        self._load()
        with self._saving():
            self._measure()
        entries = {**old, **{k: self._entry(kind, v) for k, (kind, v) in self._found().items()}}
        notes = tuple(f"{k.sites[0].node.at()}: {k.sites[0].note}" for k in self.kinds if k.sites[0].note)
        found = LatencyTable(
            self.label["device"],
            entries,
            between=self.between,
            dtype=self.label["dtype"],
            versions=self.label["versions"],
            compiled=self.compiled,
            notes=notes[:20],
        )
        return replace(found, fit=self._fit(found, dtype, known))

    def _samples(self) -> Samples | None:
        if self.clock.device is None:
            return None
        if not self.compiled:
            return Samples(self.graph, self.clock.device, self.dtype)
        found = CompiledSamples(self.graph, self.clock.device, self.dtype)
        found.begin(self.clock.laps)
        return found

    def _known(self, table: LatencyTable | None) -> dict[str, Entry]:
        if table is None:
            return {}
        if table.compiled != self.compiled:
            modes = [f"of {'compiled' if c else 'eager'} models" for c in (table.compiled, self.compiled)]
            raise RequestError(
                f"table= is {modes[0]}, compile={self.compiled} is {modes[1]}: they cannot be put together"
            )
        mine = {k: getattr(table, k) for k in self.label}
        if mine != self.label:
            raise RequestError(f"table= is of {mine}, this is {self.label}: their times cannot be put together")
        return dict(table.entries)

    def _begin(self, old: dict[str, Entry]) -> None:
        """The kinds to be measured, with their first grids; what cannot be run alone has no grid, and takes nothing."""
        kinds = by_key(self.sites)
        for key, found in kinds.items():
            most = tuple(max(s.now[k] for s in found) for k in range(len(found[0].axes)))
            if key in old and all(a <= b for a, b in zip(most, old[key].most, strict=True)):
                continue
            grid = tuple(
                first_sizes(n, a.step, self.options.multiple) for n, a in zip(most, found[0].axes, strict=True)
            )
            if self.reporter.is_due():
                self.reporter.tell(f"latency: trying kind {len(self.kinds) + 1} of {len(kinds)}")
            kind = Kind(key, found, grid)
            self._try(kind)
            self.kinds.append(kind)

    def _try(self, kind: Kind) -> None:
        """Run each point once: a kind whose points cannot all be run keeps the sizes that it has."""
        site = max(kind.sites, key=lambda s: s.now)
        try:
            for point in kind.points:
                self._call(site, point)()
        except Exception as e:  # whatever torch raises
            why = f"{type(e).__name__}: {e}".splitlines()[0][:80]
            kind.grid, kind.samples = tuple((n,) for n in site.now), {}
            try:
                self._call(site, site.now)()
                kind.note = f"measured at its present sizes only: {why}"
            except Exception:
                kind.note = f"cannot be run alone, so that it counts as nothing: {why}"
        if isinstance(self.samples, CompiledSamples):
            kind.note = kind.note or self.samples.notes.get(kind.key, "")

    def _call(self, site: Site, sizes: Point) -> Call:
        if self.samples is None:
            site.at(sizes)  # raises where the units left make no rectangle
            return Call(site.key, sizes)
        return self.samples.call(site, sizes)

    # -- passes --------------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        rng = np.random.default_rng(self.options.seed)
        runnable = [k for k in self.kinds if not k.note.startswith("cannot")]
        self._passes(runnable, rng)
        for _ in range(TIMES_REFINED):
            if not self._refine(runnable):
                break
            self._passes(runnable, rng)

    def _passes(self, kinds: list[Kind], rng: np.random.Generator) -> None:
        start, first = time.monotonic(), self.passes

        def after(number: int, left: int) -> None:
            self.passes = number
            if self.reporter.is_due():
                each = (time.monotonic() - start) / max(1, number - first)
                self.reporter.tell(f"latency: pass {number} of {number + left}, {each * left:.0f} s left")
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()

        self.passes = run_passes(kinds, self.clock, self._call, self.options.rounds, rng, first, after)

    def _refine(self, kinds: list[Kind]) -> bool:
        """Put sizes where surfaces bend, of kinds whose time matters; False if none do."""
        found = surfaces(kinds)
        total = sum(float(found[k.key].reshape(-1)[-1]) * len(k.sites) for k in kinds)
        grew = False
        for k in kinds:
            values = found[k.key]
            share = float(values.reshape(-1)[-1]) * len(k.sites) / total if total else 0.0
            if not k.grid or share < self.options.tolerance / 10:
                continue
            steps = [a.step for a in k.sites[0].axes]
            bend = self.options.tolerance * float(values.max())
            grid = refined(k.grid, values, steps, self.options.multiple, bend, self.options.points)
            if grid != k.grid:
                before = (k.grid, k.note, k.samples)
                k.grid, k.queue, grew = grid, [], True
                self._try(k)
                if k.note != before[1]:  # one of the new points cannot be run
                    k.grid, k.note, k.samples = before
        return grew

    def _found(self) -> dict[str, tuple[Kind, np.ndarray]]:
        values = surfaces([k for k in self.kinds if not k.note.startswith("cannot")])
        none = {k.key: np.zeros([1] * len(k.grid)) for k in self.kinds if k.note.startswith("cannot")}
        return {k.key: (k, {**values, **none}[k.key]) for k in self.kinds}

    @staticmethod
    def _entry(kind: Kind, seconds: np.ndarray) -> Entry:
        return Entry(kind.grid, np.round(seconds * 1e9, 1), kind.sites[0].works, len(kind.sites), kind.note)

    # -- whole models --------------------------------------------------------------------------------------------------

    def _fit(self, table: LatencyTable, dtype: torch.dtype, known: LatencyTable | None) -> Fit:
        """The correction by whole models; of a table that was given, where there is nothing to run."""
        graph, clock = self.graph, self.clock
        if self.options.check == 0 or clock.device is None or graph.model is None or not graph.examples:
            return Fit() if known is None else known.fit
        self._after("plans for them")
        with torch.inference_mode(False):
            drawn = list(drawn_plans(graph, self.options.check, self.options.multiple, self.options.seed))
        models, rounds = [m for m, _ in drawn], max(ROUNDS, self.options.rounds)
        seconds = timed_models(graph, models, clock, dtype, rounds, self._after, self.compiled)
        most = {s.key: s.now for s in self.sites}
        plain: dict[tuple[str, Point], np.ndarray] = {}

        def at(key: str, sizes: Point) -> float:
            entry = table.entries[key]
            limit = tuple(map(max, zip(entry.most, most[key], strict=True)))
            if (key, limit) not in plain:
                plain[key, limit] = table.surface(entry, limit)
            return float(plain[key, limit][sizes]) * 1e-9

        works = np.array([s.works for s in self.sites])
        times = [site_seconds(self.sites, at, kept) for _, kept in drawn]
        return fitted([Run(s, t, works) for s, t in zip(seconds, times, strict=True)])

    def _after(self, what: str) -> None:
        if self.reporter.is_due():
            self.reporter.tell(f"latency: whole models, {what}")

    # -- the state on disk ---------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path | None:
        if self.folder is None:
            return None
        asked = [*self.label.values(), *sorted(k.key for k in self.kinds), str(self.options)]
        asked += ["compiled"] * self.compiled
        return self.folder / f"latency-{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}.json"

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """What is known is written down at the end, however that comes."""
        try:
            yield
        finally:
            self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        if (file := self._file) is None:
            return
        kinds = {
            k.key: [[list(map(list, k.grid)), [[list(p), s] for p, s in k.samples.items()]], k.note] for k in self.kinds
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({**self.label, "passes": self.passes, "kinds": kinds}), encoding="utf-8")
        part.replace(file)

    def _load(self) -> None:
        file = self._file
        if file is None or not file.exists():
            return
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            for k in self.kinds:
                (grid, samples), note = data["kinds"][k.key]
                k.grid, k.note = tuple(tuple(a) for a in grid), note
                k.samples = {tuple(p): [(int(n), float(s)) for n, s in found] for p, found in samples}
            self.passes = int(data["passes"])
        except (KeyError, TypeError, ValueError, SolvemutError) as e:
            raise RequestError(
                f"the state in {file} is damaged ({type(e).__name__}): remove it to begin anew"
            ) from None
