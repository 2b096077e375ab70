"""The enumeration engine: look at every choice. For a few thousand choices nothing is faster, or plainer."""

from __future__ import annotations

import numpy as np

from ..certificate import Answer, Certificate, Request, settled
from ..compact import compact
from ..integral import integral

MOST = 1 << 13  # choices
ROOM = 1 << 22  # level indices that may be written down at once, where this engine is asked by name


def fits(combinations: int) -> bool:
    """Whether so many choices are few enough."""
    return combinations <= MOST


def solve(request: Request) -> Answer:
    """Look at every choice, in exact integers; give up (not finished) where there are too many to write down."""
    request.on_engine("enumeration")
    reduced = compact(request.model)
    answer = settled(reduced)
    if answer is not None:
        return answer
    certificate = Certificate(request)
    if reduced.model.combinations * len(reduced.model.domains) > ROOM:
        certificate.offer_hint()
        return certificate.answer
    sizes = [len(domain) for domain in reduced.model.domains]
    codes = np.indices(sizes).reshape(len(sizes), -1)
    for row in reduced.model.rows:
        codes = codes[:, integral(row, MOST * MOST).kept(codes)]
    if codes.shape[1]:
        amounts = integral(reduced.model.objective, MOST * MOST).totals(codes)
        certificate.offer(reduced.decode(codes[:, int(np.argmax(amounts))]))
    return certificate.complete()
