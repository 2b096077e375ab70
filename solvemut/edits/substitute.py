"""Another module in the place of one: of low rank, one that the caller gave, or the same at other costs."""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..errors import PlanMismatchError
from .base import register
from .forms import fail, one_of, record, text, whole
from .structure import Placed

LOW_RANK, GIVEN, COSTS = "low-rank", "module", "costs"
MOST = 2**28  # bytes of a basis, unpacked
_FORM = record(module=text, option=text, how=one_of(LOW_RANK, GIVEN, COSTS), rank=whole(0), basis=text)


@register
@dataclass(frozen=True)
class Substitute(Placed):
    """The option that was chosen for a module.

    `how`: "low-rank", two maps of `rank` channels between them, the second of which is the `basis` (outputs by rank; of
    the weights where there is none); "module", a copy of the one `given`, which no file holds; "costs", the module
    stays, and what was counted for it is for the caller to bring about.

    >>> Substitute("fc", "rank 16", "low-rank", 16).describe()
    'fc: rank 16, two maps of rank 16 in its place'
    """

    kind: ClassVar[str] = "substitute"

    option: str
    how: str
    rank: int = 0
    basis: str = ""
    given: Any = field(default=None, compare=False, repr=False)

    @staticmethod
    def form(where: str, x: Any) -> None:
        _FORM(where, x)
        if (x["how"] == LOW_RANK) != (x["rank"] > 0):
            fail(f"{where}.rank", "a rank from 1 on for what is of low rank, else 0", x["rank"])
        if x["basis"]:
            try:
                unpacked(x["basis"], x["rank"])
            except PlanMismatchError as e:
                fail(f"{where}.basis", str(e), x["basis"][:20])

    @property
    def replaces(self) -> bool:
        return self.how != COSTS

    def describe(self) -> str:
        done = {
            LOW_RANK: f"two maps of rank {self.rank} in its place",
            GIVEN: "the module given stands in its place",
            COSTS: "its costs are counted; the module is as it was",
        }
        return f"{self.module}: {self.option}, {done[self.how]}"

    def to_data(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_data().items() if k != "given"}


def packed(basis: np.ndarray) -> str:
    """A matrix [outputs, rank] as text, in single precision.

    >>> unpacked(packed(np.eye(3)[:, :2]), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    return base64.b64encode(zlib.compress(np.ascontiguousarray(basis, dtype="<f4").tobytes())).decode()


def unpacked(text: str, rank: int) -> np.ndarray:
    """The matrix that `packed` wrote. PlanMismatchError for anything else."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MOST)
        if not data or not unpacker.eof or unpacker.unused_data:
            raise ValueError("more, or less, than a matrix")
        found = np.frombuffer(data, dtype="<f4").reshape(-1, rank)
    except (ValueError, binascii.Error, zlib.error) as e:
        raise PlanMismatchError(f"a matrix of {rank} columns as text ({type(e).__name__})") from None
    if not np.isfinite(found).all():
        raise PlanMismatchError("a matrix of finite numbers")
    return found
