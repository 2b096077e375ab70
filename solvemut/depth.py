"""Depth: branches that a network runs without, and the network that is left when some of them are gone.

A branch is one side of a sum (see `graph.branches`). Without it the sum is its other side: the last module of the
branch gives zeros, those before it pass on what they are given. Each removal is tried on fake tensors before it counts.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .apply import make_edit
from .arguments import names, near, number, shown, whole
from .compile import Part
from .coupling import couple
from .edits import INPUT, ZEROS, Bypass
from .errors import RequestError, SolvemutError
from .flow import FIXED
from .graph import Branch, Graph, branches_of
from .requests import Budget, Cost, Switch
from .tracing import fake_run, seen, trace_examples


@dataclass(frozen=True, eq=False)
class Removable:
    """A branch that may go, and the edits that take it out."""

    branch: Branch
    edits: tuple[Bypass, ...]

    @property
    def name(self) -> str:
        return self.branch.name

    @property
    def switch(self) -> Switch:
        """On where it stays."""
        return Switch(f"{self.name} stays")

    def __str__(self) -> str:
        return str(self.branch)


def removable(graph: Graph) -> tuple[Removable, ...]:
    """The branches of a captured model without which it runs, in the order in which they run."""
    model = graph.model
    if model is None or not graph.examples:
        raise RequestError("removable: this graph has no model, or no example inputs to try it on; capture the model")
    callable_ = {k for k, m in model.named_modules() if k and type(m).forward is not nn.Module.forward}
    found = branches_of(graph.coupling, callable_)
    results, before = _results(model, graph, [m for b in found for m in b.modules])
    out = []
    for b in found:
        if (several := results.get(b.modules[-1])) is None:
            continue
        edits = (
            *(Bypass(m, INPUT, results.get(m, 0) or 0) for m in b.modules[:-1]),
            Bypass(b.modules[-1], ZEROS, several),
        )
        if _runs(model, graph, edits, before):
            out.append(Removable(b, edits))
    return tuple(out)


def _results(model: nn.Module, graph: Graph, paths: Sequence[str]) -> tuple[dict[str, int], Any]:
    """By module how many results it gives, 0 for a tensor by itself; and the shapes that the model returns."""
    found: dict[str, int] = {}

    def look(path: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            first = out[0] if type(out) is tuple and out else out
            if isinstance(first, torch.Tensor):
                found[path] = len(out) if type(out) is tuple else 0

        return hook

    handles = [model.get_submodule(p).register_forward_hook(look(p)) for p in dict.fromkeys(paths)]
    try:
        shapes = fake_run(model, graph.examples[0])
    finally:
        for h in handles:
            h.remove()
    return found, shapes


def _runs(model: nn.Module, graph: Graph, edits: Sequence[Bypass], shapes: Any) -> bool:
    """Whether the model gives results of the same shapes without some modules, which stand in it again afterwards."""
    undo: list[Callable[[], None]] = []
    try:
        for edit in edits:
            make_edit(model, edit, undo)
        return fake_run(model, graph.examples[0]) == shapes
    except SolvemutError:
        return False
    finally:
        for back in reversed(undo):
            back()


# -- as prune takes them -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Depth:
    """Which branches may go, at most how many, and what each is worth where the caller said so."""

    found: tuple[Removable, ...]
    most: int | None = None
    worth: Mapping[str, float] | None = None


def depth_of(graph: Graph, asked: Any) -> Depth:
    """What `depth=` says: True, names or globs, at most how many (an int), or by name what is lost with each."""
    found: tuple[Removable, ...] = graph.removable
    if asked is True:
        return Depth(found)
    if isinstance(asked, int):
        return Depth(found, whole(asked, f"depth={shown(asked)}", least=1))
    given = names(list(asked) if isinstance(asked, Mapping) else asked, "depth")
    chosen = []
    for pattern in given:
        some = [r for r in found if fnmatch.fnmatchcase(r.name, pattern)]
        if not some:
            meant = near(pattern, [r.name for r in found]) or [r.name for r in found][:5]
            hint = f"; there is {', '.join(map(repr, meant))}" if meant else ""
            raise RequestError(f"depth={shown(pattern)}: no branch of that name may go, see graph.removable{hint}")
        chosen += [r for r in some if r not in chosen]
    worth = None
    if isinstance(asked, Mapping):
        worth = {r.name: float(number(asked[r.name], f"depth={{{r.name!r}: ...}}", "what is lost")) for r in chosen}
    return Depth(tuple(chosen), None, worth)


# -- as part of a program ----------------------------------------------------------------------------------------------


def parts_of(graph: Graph, found: Sequence[Removable], worth: Mapping[str, float]) -> list[Part]:
    """Removable branches with the units that only they have, and what each is worth as a whole."""
    return [Part(r.switch, _own(graph, r), float(worth[r.name])) for r in found]


def _own(graph: Graph, r: Removable) -> np.ndarray:
    """Bool per unit class: whether it stands in nothing but a branch."""
    coupling = graph.coupling
    inside, outside = np.zeros(coupling.n_units, dtype=bool), np.zeros(coupling.n_units, dtype=bool)
    for (name, _), extent in coupling.sources.items():
        (inside if name in r.branch.params or name in r.branch.nodes else outside)[coupling.units(extent)] = True
    inside[FIXED] = False
    return inside & ~outside & ~coupling.frozen


def switched(cost: Cost, found: Sequence[Removable]) -> Cost:
    """One of the model's own costs, whose terms in branches count only where these stay."""
    of = {x: r.switch for r in found for x in (*r.branch.nodes, *r.branch.params)}
    return replace(cost, monomials=tuple(replace(m, when=of.get(m.of)) for m in cost.monomials))


def budgets_of(graph: Graph, requests: Sequence[Any], found: Sequence[Removable]) -> list[Any]:
    """Requests, with budgets on FLOPs and parameters counted without the branches that go."""
    out = []
    for r in requests:
        if isinstance(r, Budget):
            if r.cost.name not in ("flops", "params"):
                raise RequestError(f"{r}: where branches may go, budgets are on flops and params")
            r = replace(r, cost=switched(graph.cost(r.cost.name), found), whole=r)
        out.append(r)
    return out


def without(graph: Graph, gone: Sequence[Removable], times: np.ndarray) -> tuple[Graph, np.ndarray]:
    """The graph of the model without some branches, and which of its units are left: `times`, of its own classes."""
    student = copy.deepcopy(graph.model)
    for r in gone:
        for edit in r.edits:
            make_edit(student, edit, [])
    modes = ("eval", "train") if any(e.training for e in graph.examples) else ("eval",)
    first = [e for e in graph.examples if not e.training]
    trace, examples = trace_examples(student, first, modes)
    left = Graph(
        trace, couple(trace), graph.example, student, tuple(examples), seen(student, trace), graph.observe.again()
    )
    return left, _carried(graph, left, times)


def _carried(graph: Graph, left: Graph, times: np.ndarray) -> np.ndarray:
    """How often each unit of a smaller network is there, as its parameters say that have the same names in both."""
    value_of = {a: v for v, p in graph.trace.params.items() for a in (p.name, *p.aliases)}
    found = np.ones(left.coupling.n_units, dtype=np.int64)
    told = np.zeros(left.coupling.n_units, dtype=bool)
    for (value, dim), extent in left.coupling.sources.items():
        p = left.trace.params.get(value)
        if p is None or (old := graph.coupling.sources.get((value_of[p.name], dim))) is None:
            continue
        units = left.coupling.units(extent).reshape(-1)
        wanted = times[graph.coupling.units(old).reshape(-1)]
        clash = told[units] & (found[units] != wanted)
        if clash.any():
            raise SolvemutError(f"without these branches, units of {p.name} meet that differ; please report this model")
        found[units], told[units] = wanted, True
    return np.where(left.coupling.frozen, 1, found)
