"""Reduce a model to the levels still allowed: settled variables vanish into constants, terms into smaller tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .exact import Number, RankOne, entry, max_abs, simplify
from .model import Choice, Model, Row, Term


@dataclass(frozen=True, eq=False)
class Compact:
    """A model whose every variable has at least two levels and allows all of them, and the way back."""

    model: Model
    kept: tuple[int, ...]  # the original variable of each one left
    domains: tuple[np.ndarray, ...]  # the original model's

    def decode(self, choice: Sequence[int] | np.ndarray) -> Choice:
        """A choice of the original model."""
        found = [int(domain[0]) for domain in self.domains]
        for variable, k in zip(self.kept, choice, strict=True):
            found[variable] = int(self.domains[variable][k])
        return tuple(found)

    def decode_domains(self, domains: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The levels left of each variable, as levels of the original model."""
        found = list(self.domains)
        for variable, left in zip(self.kept, domains, strict=True):
            found[variable] = found[variable][left]
        return found

    def encode(self, choice: Sequence[int]) -> Choice | None:
        """A choice of the reduced model; None if it uses a level that is gone."""
        found = []
        for variable, k in enumerate(choice):
            if k not in self.domains[variable]:
                return None
        for variable in self.kept:
            found.append(int(np.flatnonzero(self.domains[variable] == choice[variable])[0]))
        return tuple(found)


def compact(model: Model) -> Compact:
    """Take the settled variables and the levels not allowed out of a model."""
    if any(len(domain) == 0 for domain in model.domains):
        return Compact(Model((), Row("nothing", ())), (), model.domains)
    kept = tuple(v for v, domain in enumerate(model.domains) if len(domain) > 1)
    renumber = {v: i for i, v in enumerate(kept)}
    objective = _reduce(model.objective, model.domains, renumber)
    rows = tuple(_reduce(row, model.domains, renumber) for row in model.rows)
    domains = tuple(np.arange(len(model.domains[v])) for v in kept)
    return Compact(Model(domains, objective, rows), kept, model.domains)


def _reduce(row: Row, domains: Sequence[np.ndarray], renumber: dict[int, int]) -> Row:
    constant: Number = row.constant
    terms = []
    for term in row.terms:
        reduced = _slice(term, domains)
        if reduced is None:
            continue
        if isinstance(reduced, Term):
            when = None if reduced.when is None else renumber[reduced.when]
            terms.append(Term(tuple(renumber[v] for v in reduced.scope), reduced.table, when))
        else:
            constant = constant + reduced
    return replace(row, terms=tuple(terms), constant=simplify(constant))


def _slice(term: Term, domains: Sequence[np.ndarray]) -> Term | Number | None:
    """A term on the allowed levels: a smaller term, a number where nothing is left to choose, None for zero."""
    when = term.when
    if when is not None and len(domains[when]) == 1:
        if domains[when][0] == 0:
            return None
        when = None
    open_axes = [axis for axis, v in enumerate(term.scope) if len(domains[v]) > 1]
    if not open_axes:
        value = entry(term.table, *(int(domains[v][0]) for v in term.scope))
        if when is None:
            return value
        return Term((when,), _vector([0, value]))
    scope = tuple(term.scope[axis] for axis in open_axes)
    if isinstance(term.table, RankOne):
        first, second = term.table.first[domains[term.scope[0]]], term.table.second[domains[term.scope[1]]]
        if len(open_axes) == 2:
            return Term(scope, RankOne(first, second), when)
        moving, fixed = (first, second) if open_axes == [0] else (second, first)
        return Term(scope, _scaled(moving, entry(fixed, 0)), when)
    table = term.table[np.ix_(*(domains[v] for v in term.scope))]
    return Term(scope, table.reshape([len(domains[v]) for v in scope]), when)


def _vector(values: list[Number]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _scaled(vector: np.ndarray, factor: Number) -> np.ndarray:
    """``vector * factor``, exact."""
    if vector.dtype.kind == "i" and isinstance(factor, int) and max_abs(vector) * abs(factor) < 2**62:
        return vector * factor
    return _vector([simplify(entry(vector, i) * factor) for i in range(len(vector))])
