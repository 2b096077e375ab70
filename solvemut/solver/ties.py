"""Equalities that leave one variable no choice once the others are chosen, such as a sum and its parts.

As a table of forbidden cells an equality over three variables costs the product of all three sizes. But whichever of
them is eliminated, its level follows from the other two: tables that speak of it are looked up at that level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .integral import integral
from .model import Row
from .tables import Part, spread

FORBIDDEN = -1e30
PEAK = 1 << 60  # sums stay within 64 bits


@dataclass(frozen=True, eq=False)
class Tie:
    """``sum_i amounts[i][level of scope[i]] == total`` over two or three variables, no amount of a variable twice.

    >>> tie = Tie((0, 1), (np.array([1, 2, 3]), np.array([-2, -1])), 0)
    >>> tie.levels(1), tie.levels(0)
    (array([ 1,  0, -1]), array([1, 0]))
    """

    scope: tuple[int, ...]
    amounts: tuple[np.ndarray, ...]
    total: int

    def levels(self, variable: int) -> np.ndarray:
        """The variable's level for each choice of the others (in their order), -1 where there is none."""
        at = self.scope.index(variable)
        need = np.array(self.total, dtype=np.int64)
        for axis, amounts in enumerate(self.amounts):
            if axis != at:
                need = np.add.outer(need, -amounts)
        order = np.argsort(self.amounts[at])
        known = self.amounts[at][order]
        found = np.minimum(np.searchsorted(known, need), len(known) - 1)
        return np.where(known[found] == need, order[found], -1)

    def broken(self, variable: int, levels: np.ndarray, separator: Sequence[int]) -> np.ndarray:
        """Where on the separator's grid this equality fails, the variable standing at ``levels`` there."""
        total = np.zeros(1, dtype=np.int64)
        for v, amounts in zip(self.scope, self.amounts, strict=True):
            total = total + (amounts[levels] if v == variable else spread(amounts, (v,), separator))
        return total != self.total


def tie_of(row: Row) -> Tie | None:
    """A row as a tie, if it is one."""
    if row.lower is None or row.upper is None or row.lower != row.upper:
        return None
    variables = sorted({v for term in row.terms for v in term.variables})
    if not 2 <= len(variables) <= 3 or any(len(term.variables) > 1 for term in row.terms):
        return None
    found = integral(row)
    if found.upper is None or found.lower != found.upper or found.peak + abs(found.upper) >= PEAK:
        return None
    amounts = [found.tables[(v,), None].astype(np.int64) for v in variables]
    if any(len(np.unique(vector)) < len(vector) for vector in amounts):
        return None
    return Tie(tuple(variables), tuple(amounts), found.upper)


def tied_table(
    variable: int,
    separator: Sequence[int],
    levels: np.ndarray,
    parts: Sequence[Part],
    checks: Sequence[Tie],
    sizes: Sequence[int],
) -> np.ndarray:
    """The sum of all parts on the separator's grid, the variable at its level there."""
    table = np.zeros([sizes[u] for u in separator])
    inside = np.maximum(levels, 0)
    for scope, part in parts:
        table += part[_grid(scope, variable, inside, separator, sizes)]
    for tie in checks:
        table += np.where(tie.broken(variable, inside, separator), FORBIDDEN, 0.0)
    np.copyto(table, FORBIDDEN, where=levels < 0)
    return table


def back(
    belief: np.ndarray,
    variable: int,
    separator: Sequence[int],
    levels: np.ndarray,
    scope: Sequence[int],
    sizes: Sequence[int],
) -> np.ndarray:
    """The best belief for each cell of a scope that may hold the tied variable, where belief is on the separator."""
    if variable in scope:
        needed = {u for axis, u in enumerate(separator) if u in scope or levels.shape[axis] > 1}
    else:
        needed = set(scope)
    gone = tuple(axis for axis, u in enumerate(separator) if u not in needed)
    belief = belief.max(axis=gone, keepdims=True)
    if variable not in scope:
        return spread(belief.squeeze(axis=gone), [u for u in separator if u in scope], scope)
    found = np.full([sizes[u] for u in scope], 4 * FORBIDDEN)
    grid = np.broadcast_arrays(*_grid(scope, variable, levels, separator, sizes), belief)
    held = grid[scope.index(variable)] >= 0
    np.maximum.at(found, tuple(axis[held] for axis in grid[:-1]), grid[-1][held])
    return found


def _grid(
    scope: Sequence[int], variable: int, levels: np.ndarray, separator: Sequence[int], sizes: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """Indices into a table over ``scope`` from the separator's grid."""
    return tuple(levels if u == variable else spread(np.arange(sizes[u]), (u,), separator) for u in scope)
