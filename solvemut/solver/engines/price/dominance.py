"""Which partial choices need not be pursued: another one, equal in all that still matters, is no worse anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...order import Order

NEIGHBOURS = 48  # with several limits, how many better ones each partial choice is compared with


def live_variables(order: Order) -> list[tuple[int, ...]]:
    """For each step in the order of assignment: the assigned variables that later steps still look at."""
    steps = list(reversed(order.steps))
    later: list[set[int]] = [set() for _ in steps]
    seen: set[int] = set()
    for at in range(len(steps) - 1, -1, -1):
        later[at] = set(seen)
        for bucket in steps[at][1]:
            seen |= set(order.buckets[bucket].separator)
    assigned: set[int] = set()
    found = []
    for (variable, _), wanted in zip(steps, later, strict=True):
        assigned.add(variable)
        found.append(tuple(sorted(assigned & wanted)))
    return found


def contexts(choices: np.ndarray, live: Sequence[int]) -> np.ndarray:
    """A number per row, equal exactly where the live variables are."""
    code = np.zeros(len(choices), dtype=np.int64)
    for v in live:
        column = choices[:, v].astype(np.int64)
        code = np.unique(code * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1].reshape(-1)
    return code


def dominated(group: np.ndarray, value: np.ndarray, slacks: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Rows that another row of their group matches or beats in value and every slack, beyond rounding.

    ``margins``: for the value and each slack, how far apart two equal sums may come out (0: they are exact).
    Of rows alike in everything the first stays.
    """
    order = np.lexsort((*(-slacks[:, d] for d in range(slacks.shape[1] - 1, -1, -1)), -value, group))
    g, v, s = group[order], value[order], slacks[order]
    if slacks.shape[1] == 1:
        bad = _by_running_best(g, v, s[:, 0], margins)
    else:
        bad = _by_neighbours(g, v, s, margins)
    found = np.zeros(len(group), dtype=bool)
    found[order[bad]] = True
    return found


def _by_running_best(group: np.ndarray, value: np.ndarray, slack: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Sorted by falling value within each group: dominated where one of at least the value has at least the slack."""
    values, value_rank = np.unique(-value, return_inverse=True)
    slacks, slack_rank = np.unique(slack, return_inverse=True)
    width = len(group) + 2
    base = group.astype(np.int64) * width
    best = np.maximum.accumulate(base + slack_rank.reshape(-1))
    if not margins.any():
        found = np.zeros(len(group), dtype=bool)
        found[1:] = best[:-1] >= (base + slack_rank.reshape(-1))[1:]
        return found
    # how many rows, from the first group on, are better in value by more than rounding
    rank = np.searchsorted(values, -value - margins[0], side="right")
    before = np.searchsorted(base + value_rank.reshape(-1), base + rank - 1, side="right")
    need = base + np.searchsorted(slacks, slack + margins[1], side="left")
    return (before > 0) & (best[np.maximum(before, 1) - 1] >= need)


def _by_neighbours(group: np.ndarray, value: np.ndarray, slacks: np.ndarray, margins: np.ndarray) -> np.ndarray:
    found = np.zeros(len(group), dtype=bool)
    for step in range(1, min(NEIGHBOURS, len(group) - 1) + 1):
        same = group[step:] == group[:-step]
        if not same.any():
            break
        better = same & (value[:-step] >= value[step:] + margins[0])
        for d in range(slacks.shape[1]):
            better &= slacks[:-step, d] >= slacks[step:, d] + margins[1 + d]
        found[step:] |= better
    return found
