"""Depth: branches that a network runs without, and the network that is left when some of them are gone.

A branch is one side of a sum (see `graph.branches`). Without it the sum is its other side: the last module of the
branch gives zeros, those before it pass on what they are given. A layer between two tensors of one shape passes on what
it is given; the units of the two are then the same, so they all stay. Each removal is tried on fake tensors before it
counts.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .arguments import names, near, number, shown, whole
from .compile import Part
from .edits import INPUT, ZEROS, Bypass
from .errors import RequestError
from .flow import FIXED, Labels
from .graph import Branch, Graph, branches_of
from .remodel import why_not
from .requests import Switch
from .tracing import fake_run


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
    results, shapes = _results(model, graph, [m for b in found for m in b.modules])
    out = []
    for b in found:
        if (several := results.get(b.modules[-1])) is None:
            continue
        edits = (
            *(Bypass(m, INPUT, results.get(m, 0) or 0) for m in b.modules[:-1]),
            Bypass(b.modules[-1], ZEROS if b.sum else INPUT, several),
        )
        if not why_not(graph, edits, shapes):
            out.append(Removable(b, edits))
    return tuple(out)


def _results(model: nn.Module, graph: Graph, paths: Sequence[str]) -> tuple[dict[str, int], list[tuple[int, ...]]]:
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


def gone_of(found: Sequence[Removable], on: Mapping[str, bool]) -> list[Removable]:
    """The branches that go, given which switches are on; those in a branch that goes are gone with it."""
    return [
        r for r in found if not on[r.switch.name] and ((outer := around(r, found)) is None or on[outer.switch.name])
    ]


def around(r: Removable, found: Sequence[Removable]) -> Removable | None:
    """The smallest branch that another lies in."""
    outer = [o for o in found if r.branch.nodes < o.branch.nodes]
    return min(outer, key=lambda o: len(o.branch.nodes), default=None)


def parts_of(graph: Graph, found: Sequence[Removable], worth: Mapping[str, float]) -> list[Part]:
    """Removable branches with the units that only they have, and what each is worth as a whole."""
    parts = []
    for r in sorted(found, key=lambda r: len(r.branch.nodes)):  # those inside of others first: what they have is theirs
        outer = around(r, found)
        own, stays = only_in(graph, r.branch.nodes | r.branch.params), _met(graph, r.branch.passed)
        within = None if outer is None else outer.switch
        parts.append(Part(r.switch, own & ~stays, float(worth[r.name]), within, stays))
    return parts


def _met(graph: Graph, values: Sequence[str]) -> np.ndarray:
    """Bool per unit class: whether values that become one have another class at one of its positions."""
    coupling = graph.coupling
    found = np.zeros(coupling.n_units, dtype=bool)
    labels = [coupling.values[v] for v in values]
    by_dims = [{f.dims: coupling.unit_of[f.labels] for f in x.factors} for x in labels if isinstance(x, Labels)]
    for units in [u for each in by_dims for u in each.values()]:
        found[units] = True
    if len(by_dims) == 2:
        first, second = by_dims
        for dims in (d for d in first.keys() & second.keys() if (first[d] == second[d]).all()):
            found[first[dims]] = False  # the same units in both
    found[FIXED] = False
    return found & ~coupling.frozen


def only_in(graph: Graph, values: frozenset[str]) -> np.ndarray:
    """Bool per unit class: whether it stands in nothing but these nodes and parameters, and may go."""
    coupling = graph.coupling
    inside, outside = np.zeros(coupling.n_units, dtype=bool), np.zeros(coupling.n_units, dtype=bool)
    for (name, _), extent in coupling.sources.items():
        (inside if name in values else outside)[coupling.units(extent)] = True
    inside[FIXED] = False
    return inside & ~outside & ~coupling.frozen
