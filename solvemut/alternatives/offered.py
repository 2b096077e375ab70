"""Offered: the options of a problem's layers, with their worth, what they hold, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property

import numpy as np

from ..compile import Option, Pick
from ..depth import Removable, only_in
from ..edits import Edit, Substitute
from ..errors import CaptureError, RequestError
from ..flow import FIXED
from ..graph import Graph
from ..remodel import remodelled
from ..requests import Cost, Monomial, Switch, Table
from ..values import Values
from .options import Choice
from .variants import Variant
from .worth import offers_of

FINEST = 10**6  # of the shares that a caller gives, the largest denominator


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
                for labels in coupling.labels_in(value):
                    found[coupling.units(labels)] = True
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
                    again = cost.again
                    after[id(v)] = again(v.after, [*v.values.values()]) if again else v.after.cost(cost.name)
                yield from ((switch, Fraction(1), m) for m in v.terms(after[id(v)], path))
