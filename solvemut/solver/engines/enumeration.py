"""The enumeration engine: look at every choice. For a few thousand choices nothing is faster, or plainer."""

from __future__ import annotations

import numpy as np

from ..certificate import Answer, Request, settled
from ..compact import compact
from ..integral import IntegerRow, integral

MOST = 1 << 13  # choices
ROOM = 1 << 22  # level indices that may be written down at once, where this engine is asked by name


def fits(combinations: int) -> bool:
    """Whether so many choices are few enough."""
    return combinations <= MOST


def solve(request: Request) -> Answer:
    """Look at every choice, in exact integers; give up (not finished) where there are too many to write down."""
    reduced = compact(request.model)
    answer = settled(reduced)
    if answer is not None:
        return answer
    if reduced.model.combinations * len(reduced.model.domains) > ROOM:
        given_up = Answer()
        if request.hint is not None:
            given_up.offer(request, request.hint)
        return given_up
    sizes = [len(domain) for domain in reduced.model.domains]
    codes = np.indices(sizes).reshape(len(sizes), -1)
    kept = np.ones(codes.shape[1], dtype=bool)
    for row in reduced.model.rows:
        found = integral(row, sizes, MOST * MOST)
        amounts = totals(found, codes)
        if found.upper is not None:
            kept &= (amounts <= found.upper).astype(bool)
        if found.lower is not None:
            kept &= (amounts >= found.lower).astype(bool)
    places = np.flatnonzero(kept)
    if not len(places):
        return Answer(infeasible=True, finished=True)
    amounts = totals(integral(reduced.model.objective, sizes, MOST * MOST), codes[:, places])
    answer = Answer(finished=True)
    answer.offer(request, reduced.decode(codes[:, places[int(np.argmax(amounts))]].tolist()))
    answer.bound = answer.value
    return answer


def totals(row: IntegerRow, codes: np.ndarray) -> np.ndarray:
    """The row's integer part for each column of level indices."""
    wide = max(row.peak, abs(row.upper or 0), abs(row.lower or 0)) >= 1 << 62
    found = np.zeros(codes.shape[1], dtype=object if wide else np.int64)
    for (scope, when), table in row.tables.items():
        part = table[tuple(codes[v] for v in scope)]
        part = part.astype(object) if wide else part
        found = found + (part if when is None else np.where(codes[when] == 0, 0, part))
    return found
