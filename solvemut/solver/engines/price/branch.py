"""Where nothing else settles what is left: halve a domain, bound both halves, go on with the half of highest bound.

The bounds of the halves still open, together with what was dropped, bound everything; so the gap closes bit by bit
for as long as there is time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from ...certificate import Certificate
from ...exact import Number
from ...model import Choice, Model


@dataclass(frozen=True, eq=False)
class Node:
    """A part of the model, a bound on what it holds, and where to halve it: a variable, and how many levels go left."""

    bound: Number
    model: Model
    variable: int
    left: int

    def halves(self) -> Iterator[Model]:
        """The model on either side."""
        domain = self.model.domains[self.variable]
        for part in (domain[: self.left], domain[self.left :]):
            domains = list(self.model.domains)
            domains[self.variable] = part
            yield self.model.restricted(domains)


def halved(bound: Number, model: Model, choice: Choice, other: Choice | None) -> Node:
    """A node split between two choices, in the variable where they lie furthest apart; else its largest domain."""
    if other is not None:
        apart = [_between(domain, k, j) for domain, k, j in zip(model.domains, choice, other, strict=True)]
        variable = int(np.argmax([share for share, _ in apart]))
        if apart[variable][0] > 0:
            return Node(bound, model, variable, apart[variable][1])
    variable = int(np.argmax([len(domain) for domain in model.domains]))
    return Node(bound, model, variable, len(model.domains[variable]) // 2)


def _between(domain: np.ndarray, k: int, j: int) -> tuple[float, int]:
    """How far apart two levels lie as a share of the domain, and how many of its levels lie up to between them."""
    low, high = sorted(int(at) for at in np.searchsorted(domain, (k, j)))
    left = min(max(1, (low + high + 1) // 2), len(domain) - 1)
    return (0.0 if low == high or len(domain) < 2 else (high - low) / len(domain)), left


def branch(certificate: Certificate, root: Node, look: Callable[[Model], Node | None]) -> None:
    """Go on until the gap is proven or time is over; ``look`` bounds a half, None: nothing of interest is in it."""
    nodes: dict[int, Node] = {0: root}
    queue, made = [(-root.bound, 0)], 0
    while queue and not certificate.over():
        _, key = heappop(queue)
        for model in nodes.pop(key).halves():
            node = look(model)
            if node is not None:
                made += 1
                nodes[made] = node
                heappush(queue, (-node.bound, made))
        if queue:
            certificate.bound(-queue[0][0])
            if certificate.proven:
                certificate.answer.finished = True
                return
    if not queue:
        certificate.complete()
