"""Features: the dim of every value that users call its size, and the parameters that make its units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..coupling import Coupling
from ..flow import Factor, Labels
from ..rules import OPS
from ..trace import Node


@dataclass(frozen=True, eq=False)
class Makers:
    """The parameters that make units, in execution order, each with the dims that do."""

    coupling: Coupling

    @cached_property
    def dims(self) -> dict[str, list[int]]:
        """Parameter by parameter."""
        found: dict[str, list[int]] = {}
        for value, dim in self.coupling.sources:
            p = self.coupling.trace.params.get(value)
            if p is not None and p.kind == "parameter" and (value, dim) in self.coupling.produced:
                found.setdefault(value, []).append(dim)
        return found

    def units(self, values: Iterable[str]) -> list[np.ndarray]:
        """The units of each dim of these parameters that makes units."""
        sources = self.coupling.sources
        return [self.coupling.units(sources[v, d]) for v in dict.fromkeys(values) for d in self.dims.get(v, ())]

    @cached_property
    def first(self) -> dict[int, str]:
        """For every unit the parameter that makes it before any other does."""
        found: dict[int, str] = {}
        for value in self.dims:
            for units in self.units([value]):
                for u in units.reshape(-1).tolist():
                    found.setdefault(u, value)
        return found


@dataclass(frozen=True, eq=False)
class Features:
    """The feature dims of the values of a trace: channels, features, heads x head size."""

    coupling: Coupling
    makers: Makers

    @cached_property
    def dims(self) -> dict[str, tuple[int, ...]]:
        """For every value the dims that users call its size: channels, features, heads x head size."""
        found: dict[str, tuple[int, ...]] = {}
        for node in self.coupling.trace.nodes:
            refs = [r for r in node.refs() if r not in self.coupling.trace.params]
            dims = feature_dim(node)
            if dims is not None:
                for r in refs[:1]:
                    found.setdefault(r, (dims % max(1, len(self.coupling.trace.shape(r))),))
            found[node.name] = self._feature_of(node, refs, dims, found)
        for name, shape in self.coupling.trace.inputs.items():
            found.setdefault(name, (1,) if len(shape) > 3 else (len(shape) - 1,) if shape else ())
        return found

    def _feature_of(
        self, node: Node, refs: list[str], dim: int | None, found: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, ...]:
        n = len(node.shape)
        if not n:
            return ()
        if dim is not None:
            return (dim % n,)
        labels = self.coupling.values[node.name]
        factors = labels.factors if isinstance(labels, Labels) else ()
        before = [self._labels_at(r, found) for r in refs if r in found]
        if factors and not refs:
            return self._made_dims(node, factors)
        for f in factors:
            if any(b is not None and np.isin(f.labels, b).any() for b in before):
                return f.dims
        if factors:
            return factors[-1].dims
        same = [found[r] for r in refs if r in found and len(self.coupling.trace.shape(r)) == n]
        return same[0] if same else (1,) if n > 3 else (n - 1,)

    def _made_dims(self, node: Node, factors: Sequence[Factor]) -> tuple[int, ...]:
        """Of a value made of parameters alone: the dims of units that can go and that these make first, or the last."""
        own = set(node.refs())

        def is_made_here(f: Factor) -> bool:
            units = self.coupling.units(f.labels).reshape(-1)
            return any(self.makers.first.get(u) in own for u in units[~self.coupling.frozen[units]].tolist())

        return max(reversed(factors), key=is_made_here).dims

    def _labels_at(self, value: str, found: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
        labels = self.coupling.values.get(value)
        if not isinstance(labels, Labels):
            return None
        return next((f.labels for f in labels.factors if set(f.dims) & set(found[value])), None)

    def labels(self, value: str) -> np.ndarray | None:
        """The labels along them; None where they are fixed."""
        return self._labels_at(value, self.dims) if value in self.dims else None

    def units(self, value: str) -> tuple[np.ndarray, int | None]:
        """The unit classes along them, and the first of these dims."""
        labels = self.labels(value)
        dims = self.dims.get(value, ())
        if labels is not None:
            return self.coupling.units(labels.reshape(-1)), dims[0]
        shape = self.coupling.trace.shape(value)
        n = int(np.prod([shape[d] for d in dims])) if dims else 1
        return np.zeros(n, dtype=int), dims[0] if dims else None


def feature_dim(node: Node) -> int | None:
    """The dim that an operation calls its channels or features, where its record says so."""
    return OPS[node.op].feature if node.op in OPS else None
