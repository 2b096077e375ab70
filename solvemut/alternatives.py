"""Alternatives: what may stand in the place of a layer, what each is worth, and what it costs at every size.

An alternative is put in the place of the layer in a copy of the model, and that is captured: so its costs are those of
the operations that then run there, over the sizes of the units around it. Where it couples units that the layer does
not (a depthwise convolution, say), these all stay where it is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from .arguments import near, number, shown, whole
from .building import factored, matrix_of
from .compile import Option, Pick
from .costs import monomial
from .depth import Removable, only_in
from .edits import COSTS, GIVEN, LOW_RANK, Edit, Substitute, packed
from .errors import CaptureError, RequestError
from .flow import FIXED, Extent
from .graph import Graph, Vertex, inside
from .remodel import Pairs, matched, remodelled, why_not
from .requests import Budget, Cost, Monomial, Switch, Table
from .values import Metric, Values, principal, sees_data, stand_in_worth

COUNTED = ("flops", "params", "weight_bytes", "latency")  # costs that can be told where a layer has alternatives
FINEST = 10**6  # of the shares that a caller gives, the largest denominator


@dataclass(frozen=True, eq=False)
class Alternative:
    """A layer's alternative: a module in its place, or with `costs` alone the layer itself at other costs.

    `value` is what is gained or, below zero, lost with it, on the scale of the values; None: they see data, and measure
    it. `costs` are shares of what the layer costs as it is, at every size, by resource: {"weight_bytes": 0.25}.
    """

    module: nn.Module | None = None
    value: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.module is not None and not isinstance(self.module, nn.Module):
            raise RequestError(f"Alternative({shown(self.module)}): give a torch.nn.Module, or value= and costs=")
        _check(self.value, self.costs)
        if self.module is None and (self.value is None or not self.costs):
            raise RequestError("Alternative: without a module it needs value= and costs=; None is the layer as it is")


@dataclass(frozen=True, eq=False)
class LowRank:
    """A linear layer or ungrouped convolution as two with `rank` channels between, by singular value decomposition.

    Where the values see data, the outputs on that data are kept as well as that rank can; else the weights are. `value`
    and `costs` are those of an `Alternative`; without a value it is measured, or where the values are `retention` it is
    the logarithm of the share of the weight's energy that stays.
    """

    rank: int
    value: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole(self.rank, f"LowRank({shown(self.rank)})", least=1)
        _check(self.value, self.costs)


def _check(value: Any, costs: Any) -> None:
    if value is not None:
        number(value, f"value={shown(value)}", "what is gained, or below zero what is lost")
    if not isinstance(costs, Mapping) or not all(isinstance(k, str) for k in costs):
        raise RequestError(f"costs={shown(costs)}: give shares of the layer's costs by resource")
    for name, share in costs.items():
        if name not in COUNTED:
            raise RequestError(f"costs={{{name!r}: ...}}: there are {', '.join(COUNTED)}")
        if number(share, f"costs={{{name!r}: {shown(share)}}}", "give a share of what the layer costs") < 0:
            raise RequestError(f"costs={{{name!r}: {shown(share)}}}: a share is at least 0")


Given = None | nn.Module | Alternative | LowRank


@dataclass(frozen=True, eq=False)
class Choice:
    """A layer, the options that it has, and what runs in it now: nodes and parameters by value name."""

    path: str
    options: Mapping[str, Given]
    values: frozenset[str]

    def switch(self, option: str) -> Switch:
        """On where that option is taken."""
        return Switch(f"{self.path}: {option}", now=self.options[option] is None)

    @property
    def own(self) -> Switch:
        """On where the layer is as it is."""
        name = next((k for k, v in self.options.items() if v is None), None)
        return self.switch(name) if name is not None else Switch(f"{self.path}: as it is", now=False)


def choice_of(graph: Graph, target: Any, options: Any, shapes: list[tuple[int, ...]]) -> Choice:
    """What `Problem.choose` is told, checked: each module is tried in its place, for outputs of these shapes.

    Of several that are of low rank one is tried: they run the same.
    """
    path = target.name if isinstance(target, Vertex) else target
    modules = dict(graph.model.named_modules())
    if not isinstance(path, str) or path not in modules or not path:
        hint = near(path, list(modules)) if isinstance(path, str) else []
        meant = f"; did you mean {' or '.join(map(repr, hint))}?" if hint else ""
        raise RequestError(f"choose({shown(target)}): this model has no module of that name{meant}")
    if not isinstance(options, Mapping) or not options or not all(isinstance(k, str) and k for k in options):
        raise RequestError(f"choose({path!r}): give a dict of options by name, not {shown(options)}")
    if sum(v is None for v in options.values()) > 1:
        raise RequestError(f"choose({path!r}): just one option is the layer as it is (None)")
    names = [k for k, m in graph.model.named_modules(remove_duplicate=False) if m is modules[path]]
    if len(names) > 1:
        raise RequestError(f"choose({path!r}): the module is there under other names too: {', '.join(names[:4])}")
    if not inside(graph.trace, [path])[0]:
        raise RequestError(f"choose({path!r}): the captured forward does not run it")
    found = Choice(path, dict(options), values_in(graph, [path]))
    tried = False
    for name, given in options.items():
        if not isinstance(given, Given):
            raise RequestError(
                f"choose({path!r}): {name!r} is {shown(given)}; give None, a module, an Alternative or a LowRank"
            )
        module = _tried(found, modules[path], name) if isinstance(given, LowRank) else _module(given)
        if module is None or (tried and isinstance(given, LowRank)):
            continue
        tried = tried or isinstance(given, LowRank)
        if why := why_not(graph, [Substitute(path, name, GIVEN, given=module)], shapes):
            raise RequestError(f"choose({path!r}): with {name!r} in its place the model does not run: {why}")
    return found


def values_in(graph: Graph, paths: Sequence[str]) -> frozenset[str]:
    """What counts for modules: the nodes that they run, their own parameters, their tensors that no forward reads."""
    nodes, params = inside(graph.trace, paths)
    names = [k for p in paths for k in graph.model.get_submodule(p).state_dict(prefix=f"{p}.")]
    return nodes | params | frozenset(names)


def _module(given: Given) -> nn.Module | None:
    return given.module if isinstance(given, Alternative) else given if isinstance(given, nn.Module) else None


def _tried(choice: Choice, layer: nn.Module, name: str) -> nn.Module:
    """A layer of low rank with no numbers in it that mean something."""
    rank: int = choice.options[name].rank  # type: ignore[union-attr, assignment]
    try:
        return factored(layer, rank, torch.zeros(matrix_of(layer).shape[0], rank))
    except RequestError as e:
        raise RequestError(f"choose({choice.path!r}): {name!r}: {e}") from None


# -- worth and modules -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Offer:
    """An option with what it is worth, and the edit that takes it; None: the layer stays as it is."""

    name: str
    given: Given
    worth: float
    edit: Substitute | None

    @property
    def shares(self) -> Mapping[str, float]:
        """By resource, shares of what the layer costs."""
        return self.given.costs if isinstance(self.given, (Alternative, LowRank)) else {}

    @property
    def replaces(self) -> bool:
        return self.edit is not None and self.edit.how != COSTS


def offers_of(graph: Graph, choices: Sequence[Choice], values: Values) -> dict[str, list[Offer]]:
    """By path the options of each layer, with what they are worth. RequestError where no values tell it."""
    directions = _directions(graph, choices, values)
    edits = _edits(graph, choices, directions)
    asked = {
        (c.path, k): e
        for c in choices
        for k, e in edits[c.path].items()
        if e is not None and getattr(c.options[k], "value", None) is None
    }
    worth = _measured(graph, asked, values, directions)
    return {
        c.path: [
            Offer(k, c.options[k], float(getattr(c.options[k], "value", None) or worth.get((c.path, k), 0.0)), e)
            for k, e in edits[c.path].items()
        ]
        for c in choices
    }


def _edits(
    graph: Graph, choices: Sequence[Choice], directions: Mapping[str, Directions]
) -> dict[str, dict[str, Substitute | None]]:
    return {c.path: {k: _edit(graph, c, k, directions.get(c.path)) for k in c.options} for c in choices}


@dataclass(frozen=True, eq=False)
class Directions:
    """The orthonormal directions [outputs, ranks] in which layers of low rank put out, the most important first.

    `kept` are by rank the shares of the weight's energy that stay; None: the directions are those of outputs on data.
    """

    basis: torch.Tensor
    kept: np.ndarray | None


def _directions(graph: Graph, choices: Sequence[Choice], values: Values) -> dict[str, Directions]:
    """By path those of the layers that have options of low rank, and weights."""
    low = [c.path for c in choices if any(isinstance(g, LowRank) for g in c.options.values())]
    if low and sees_data(values):
        found = principal(graph.model, low, _batches(values))
        return {path: Directions(basis, None) for path, basis in found.items()}
    by_weight = {}
    for path in low:
        if not (weight := matrix_of(graph.model.get_submodule(path))).is_meta:
            u, sizes, _ = torch.linalg.svd(weight, full_matrices=False)
            energy = sizes.square().cumsum(0).cpu().numpy()
            by_weight[path] = Directions(u, energy / energy[-1] if energy[-1] > 0 else np.ones(len(energy)))
    return by_weight


def _batches(values: Any) -> Any:
    return values.data[0]


def _edit(graph: Graph, choice: Choice, name: str, directions: Directions | None) -> Substitute | None:
    given = choice.options[name]
    if given is None:
        return None
    if isinstance(given, LowRank):
        basis = None if directions is None else directions.basis[:, : given.rank]
        by_data = basis is not None and directions is not None and directions.kept is None
        text = packed(basis.cpu().numpy()) if by_data and basis is not None else ""
        made = factored(graph.model.get_submodule(choice.path), given.rank, basis)
        return Substitute(choice.path, name, LOW_RANK, given.rank, text, made)
    module = _module(given)
    return Substitute(choice.path, name, COSTS if module is None else GIVEN, given=module)


def _measured(
    graph: Graph,
    asked: Mapping[tuple[str, str], Substitute],
    values: Values,
    directions: Mapping[str, Directions],
) -> dict[tuple[str, str], float]:
    """What is gained with options whose worth nobody said."""
    if not asked:
        return {}
    if sees_data(values):
        others = {f"{path}: {name}": (path, e.given) for (path, name), e in asked.items()}
        lost = stand_in_worth(values, graph, others)  # type: ignore[arg-type]
        return {(path, name): -lost[f"{path}: {name}"] for path, name in asked}
    found = {}
    for (path, name), edit in asked.items():
        by_shares = values is None or (isinstance(values, Metric) and values.name.startswith("retention"))
        if edit.how != LOW_RANK or not by_shares or path not in directions:
            raise RequestError(
                f"choose({path!r}): what {name!r} is worth is not known: give Alternative(module, value=...), or "
                "values that see data, such as sm.values.fisher(batches, loss)"
            )
        kept = directions[path].kept
        assert kept is not None, "values that see no data have no data to find directions by"
        found[path, name] = math.log(kept[edit.rank - 1])
    return found


# -- costs and units ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Variant:
    """The graph with modules in the place of layers, by path, and how its units are those of the graph as it is."""

    graph: Graph
    after: Graph
    paths: Mapping[str, str]  # with the option that each has

    @cached_property
    def _pairs(self) -> list[tuple[str, Pairs]]:
        return list(matched(self.graph, self.after, list(self.paths)))

    @cached_property
    def _old(self) -> np.ndarray:
        """By class the class before; FIXED for what only the modules have, whose number stays."""
        found = np.full(self.after.coupling.n_units, FIXED)
        for _, (old, new) in self._pairs:
            found[new] = old
        return found

    @cached_property
    def stays(self) -> np.ndarray:
        """Bool per class before: whether it is coupled, or bound, as it was not."""
        before, after = self.graph.coupling, self.after.coupling
        found = np.zeros(before.n_units, dtype=bool)
        for _, (old, new) in self._pairs:
            apart = (self._old[new] != old) & (new != FIXED)
            found[old[apart]] = found[self._old[new[apart]]] = True  # several become one
            found[old[after.frozen[new]]] = True
        known = {_content(before, x, None) for x in _bonds(before)}
        for x in _bonds(after):
            if _content(after, x, self._old) not in known:
                for units in _units(after, x):
                    found[self._old[units]] = True
        found[FIXED] = False
        return found & ~before.frozen

    def terms(self, cost: Cost, path: str) -> Iterator[Monomial | Table]:
        """What the module at a path costs, over the sizes of the graph as it is; `cost` is of the graph after."""
        mine = values_in(self.after, [path])
        for m in (m for m in cost.monomials if m.of in mine):
            extents = tuple(self._translated(e) for e in m.extents)
            if isinstance(m, Table):
                yield Table(m.values, extents, m.vertex, of=m.of)
            else:
                yield monomial(self.graph.coupling, m.coefficient, extents, m.vertex, m.of)

    def _translated(self, e: Extent) -> Extent:
        label_of = self.graph.coupling.label_of
        return replace(e, labels=label_of[self._old[self.after.coupling.units(e)]], owner=self.graph.coupling)


def _bonds(coupling: Any) -> list[Any]:
    """All that binds sizes to each other."""
    return [*coupling.rows, *coupling.links, *coupling.divides, *coupling.facts.nonempty]


def _units(coupling: Any, bond: Any) -> list[np.ndarray]:
    if isinstance(bond, np.ndarray):
        return [coupling.units(bond)]
    return [bond.units] if hasattr(bond, "units") else [coupling.units(labels) for labels, _ in bond.parts]


def _content(coupling: Any, bond: Any, into: np.ndarray | None) -> tuple[Any, ...]:
    """What tells two bonds apart, by the classes that `into` has for those of its coupling."""
    units = [u if into is None else into[u] for u in _units(coupling, bond)]
    if isinstance(bond, np.ndarray):
        return ("nonempty", np.sort(units[0], axis=None).tobytes())
    if hasattr(bond, "units"):
        rows = sorted(np.sort(row).tobytes() for row in units[0])
        return ("rows", *rows, bond.removable, bond.grouped, bond.stays)
    parts = sorted((np.sort(u, axis=None).tobytes(), c) for u, (_, c) in zip(units, bond.parts, strict=True))
    numbers = [getattr(bond, k) for k in ("constant", "slack", "divisor", "remainder") if hasattr(bond, k)]
    return (type(bond).__name__, *parts, *numbers)


class Alternatives:
    """The choices of a problem, with their options' worth, units and costs."""

    def __init__(self, graph: Graph, choices: Sequence[Choice], values: Values) -> None:
        self.graph, self.choices = graph, {c.path: c for c in choices}
        self.offers = offers_of(graph, choices, values)

    @cached_property
    def variants(self) -> list[Variant]:
        """The k-th has the k-th module of every layer that has so many, so that there are as few as can be."""
        queues = {path: [o for o in offers if o.replaces] for path, offers in self.offers.items()}
        found = []
        for k in range(max((len(q) for q in queues.values()), default=0)):
            chosen = {path: q[k] for path, q in queues.items() if k < len(q)}
            try:
                after = remodelled(self.graph, [o.edit for o in chosen.values() if o.edit is not None])
            except CaptureError as e:
                what = ", ".join(f"{o.name!r} for {path}" for path, o in chosen.items())
                raise RequestError(f"choose: the model cannot be captured with {what}: {e}") from e
            found.append(Variant(self.graph, after, {path: o.name for path, o in chosen.items()}))
        return found

    def _variant(self, path: str, option: str) -> Variant:
        return next(v for v in self.variants if v.paths.get(path) == option)

    def picks(self, removable: Sequence[Removable]) -> list[Pick]:
        """As a program takes them; `removable` are the branches that may go, layers in them included."""
        found = []
        for path, choice in self.choices.items():
            around = self._boundary(path)
            options = []
            for o in self.offers[path]:
                stays = self._variant(path, o.name).stays & around if o.replaces else np.zeros_like(around)
                options.append(Option(choice.switch(o.name), o.worth, stays))
            inside_of = [r for r in removable if choice.values & r.branch.nodes]
            inmost = min(inside_of, key=lambda r: len(r.branch.nodes), default=None)
            within = None if inmost is None else inmost.switch
            own = only_in(self.graph, choice.values)
            own[self.graph[path].units] = False
            found.append(Pick(path, tuple(options), choice.own, own, within))
        return found

    def _boundary(self, path: str) -> np.ndarray:
        """Bool per class: whether it stands in what the layer reads or makes, or in its parameters."""
        coupling, nodes = self.graph.coupling, self.choices[path].values
        found = np.zeros(coupling.n_units, dtype=bool)
        for node in (n for n in coupling.trace.nodes if n.name in nodes):
            for value in (node.name, *node.refs()):
                labels = coupling.values.get(value)
                for one in labels if isinstance(labels, list) else [] if labels is None else [labels]:
                    for f in one.factors:
                        found[coupling.unit_of[f.labels.reshape(-1)]] = True
        for (value, _), extent in coupling.sources.items():
            if value in nodes:
                found[coupling.units(extent)] = True
        found[FIXED] = False
        return found

    def edits(self, on: Mapping[str, bool]) -> list[Substitute]:
        """What was chosen, given which switches are on."""
        taken = [(c, o) for path, c in self.choices.items() for o in self.offers[path] if on[c.switch(o.name).name]]
        return [o.edit for _, o in taken if o.edit is not None]

    def captured(self, edits: Sequence[Edit]) -> Graph | None:
        """The graph of the model with just these edits, if one was captured for costs already."""
        paths = {e.module: e.option for e in edits if isinstance(e, Substitute)}
        return next((v.after for v in self.variants if v.paths == paths and len(paths) == len(edits)), None)

    def terms(self, cost: Cost) -> Iterator[tuple[Switch, Fraction, Monomial | Table]]:
        """What options cost in the place of what is counted as it is: a term, a factor on it, and when it counts."""
        after: dict[int, Cost] = {}
        for path, choice in self.choices.items():
            for o in (o for o in self.offers[path] if o.edit is not None):
                switch, share = choice.switch(o.name), o.shares.get(cost.name)
                if share is not None or not o.replaces:
                    factor = Fraction(1 if share is None else share).limit_denominator(FINEST)
                    yield from ((switch, factor, m) for m in cost.monomials if m.of in choice.values)
                    continue
                v = self._variant(path, o.name)
                if id(v) not in after:
                    regions = [values_in(v.after, [p]) for p in v.paths]
                    after[id(v)] = v.after.cost(cost.name) if cost.again is None else cost.again(v.after, regions)
                yield from ((switch, Fraction(1), m) for m in v.terms(after[id(v)], path))


# -- costs where branches may go and layers have alternatives ----------------------------------------------------------


def switched(graph: Graph, cost: Cost, removable: Sequence[Removable], alternatives: Alternatives | None) -> Cost:
    """A cost whose terms in branches count only where these stay, and those in layers only where these are as they are.

    What stands in the place of a layer counts where it is chosen. RequestError for a cost that cannot be counted so.
    """
    choices = [] if alternatives is None else list(alternatives.choices.values())
    if cost.name not in COUNTED:
        what = "branches may go" if removable else "layers have alternatives"
        raise RequestError(f"a budget on {cost.name}: where {what}, budgets are on {', '.join(COUNTED)}")
    larger = sorted(removable, key=lambda r: -len(r.branch.nodes))  # what lies in another counts as its own
    within = {x: r.switch for r in larger for x in values_in(graph, r.branch.modules)}
    within |= {x: c.own for c in choices for x in c.values}
    regions = [c.values for c in choices] + [r.branch.nodes for r in reversed(larger)]
    own = graph.cost(cost.name) if cost.again is None else cost.again(graph, regions)
    terms: list[Any] = [(within.get(m.of), Fraction(1), m) for m in own.monomials]
    terms += [] if alternatives is None else alternatives.terms(own)
    unit = math.lcm(1, *(factor.denominator for _, factor, _ in terms))
    found = tuple(_scaled(m, int(factor * unit), when) for when, factor, m in terms)
    return replace(cost, monomials=found, scale=cost.scale * unit, again=None)


def _scaled(m: Monomial | Table, factor: int, when: Switch | None) -> Monomial | Table:
    if isinstance(m, Table):
        fits = m.values.dtype != object and int(np.abs(m.values).max(initial=0)) * factor < 2**62
        return replace(m, values=(m.values if fits else m.values.astype(object)) * factor, when=when)
    return replace(m, coefficient=m.coefficient * factor, when=when)


def budgets_of(
    graph: Graph, requests: Sequence[Any], removable: Sequence[Removable], alternatives: Alternatives | None
) -> list[Any]:
    """Requests, with budgets counted by what is there."""
    out = []
    for r in requests:
        if isinstance(r, Budget):
            cost = switched(graph, r.cost, removable, alternatives)
            r = Budget(cost, r.limit * (cost.scale // r.cost.scale), r.sense, r)
        out.append(r)
    return out
