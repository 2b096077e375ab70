"""The exceptions of solvemut.

::

    SolvemutError
    ├── ProgramError (also ValueError)      a malformed integer program: unknown width, wrong table shape, NaN
    ├── InfeasibleError                     no choice satisfies the request; names the smallest conflict
    ├── TimeLimitError                      the time limit passed before any feasible choice was found
    ├── CheckError                          a certificate disagrees with its exact recomputation
    ├── CaptureError                        a model could not be captured
    ├── UnsupportedOpError                  an operation has no rule
    ├── PlanMismatchError                   a plan does not fit the model it is applied to
    ├── ProgramMismatchError                a changed model would not compute what its plan foretells
    ├── RequestError (also ValueError)      a request that makes no sense for this graph
    │   └── PositionError (also IndexError) a position in a graph that has no vertex
    └── ValuesError (also ValueError)       values of the wrong shape, or not finite
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SolvemutError(Exception):
    """The root of all errors raised on purpose by solvemut."""


class ProgramError(SolvemutError, ValueError):
    """An integer program was stated in a way that has no meaning."""


class InfeasibleError(SolvemutError):
    """No choice satisfies the request.

    ``conflict`` lists the names of a smallest set of constraints and budgets that cannot hold together: each one is
    needed for the conflict. ``smallest`` maps each budget in it to the smallest limit that would do (to the largest,
    for a lower budget), all else as asked.
    """

    def __init__(self, message: str, conflict: Sequence[str] = (), smallest: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.conflict = list(conflict)
        self.smallest = dict(smallest or {})


class TimeLimitError(SolvemutError):
    """The time limit passed before any feasible choice was found."""


class CheckError(SolvemutError):
    """A certificate disagrees with its exact recomputation."""


class CaptureError(SolvemutError):
    """A model could not be captured."""


class UnsupportedOpError(SolvemutError):
    """An operation has no rule, and freezing what it touches was not allowed."""


class PlanMismatchError(SolvemutError):
    """A plan does not fit the model it is applied to."""


class ProgramMismatchError(SolvemutError):
    """A changed model would not compute what its plan foretells; it was put back."""


class RequestError(SolvemutError, ValueError):
    """A request that makes no sense for this graph."""


class PositionError(RequestError, IndexError):
    """A position in a graph that has no vertex."""


class ValuesError(SolvemutError, ValueError):
    """Values of the wrong shape, or not finite."""
