"""Footprint: which tensors a forward holds when, and which it keeps for the way back, as data.

Whose shape a tensor has is told by the name of a value, so that its size follows a plan; where nothing names it, its
present size counts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
    """Memory of so many bytes per element, or in all, and when it is there.

    It has an element for each of a value ("": its size is known as a number only), or for each of its leading `dims`.
    Moments are operations, numbered from 0; `dies` is the last at which it is there.
    """

    value: str
    itemsize: int
    nbytes: int
    born: int
    dies: int
    dims: int | None = None


@dataclass(frozen=True)
class Footprint:
    """What a forward holds from operation to operation, and what a training step keeps until its gradients are there.

    `kept` is None where a run with gradients was not possible, `why` says what went wrong.
    """

    held: tuple[Held, ...]
    makes: tuple[str, ...]  # by moment the value that its call makes, "" where it makes none of the trace
    kept: tuple[Held, ...] | None = None
    why: str = ""

    def moments(self) -> list[tuple[int, list[Held]]]:
        """The moments that can be the worst, with what is there: those after which something goes before more comes.

        >>> a, b, c = Held("a", 4, 40, 0, 1), Held("b", 4, 40, 1, 3), Held("c", 4, 40, 2, 3)
        >>> [(t, [h.value for h in there]) for t, there in Footprint((a, b, c), ("a", "b", "c", "d")).moments()]
        [(1, ['a', 'b']), (2, ['b', 'c'])]
        """
        births = sorted({h.born for h in self.held})
        nexts = [*births[1:], len(self.makes) + 1]
        found = []
        for t, after in zip(births, nexts, strict=True):
            there = [h for h in self.held if h.born <= t <= h.dies]
            if any(h.dies < after for h in there):
                found.append((t, there))
        return found
