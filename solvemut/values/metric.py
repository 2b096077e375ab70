"""A metric: what units are worth, and how that is made comparable between layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import one_of
from ..compile import Worth
from ..errors import ValuesError
from ..graph import Graph, Vertex

FORMAT, VERSION = "solvemut-values", 1
Path = str | PathLike[str]
NORMALISE = ("mean", "max", "sum", "l2", None)


@dataclass(frozen=True)
class Metric:
    """A named way to value units: `score(model, graph)` gives one number per unit class, or a `Worth` with curves.

    With `keeps` what was found is kept for as long as the weights stay as they are, so that several budgets cost one
    evaluation.
    """

    name: str
    score: Callable[[nn.Module, Graph], np.ndarray | Worth]
    normalize: str | None = None
    keeps: bool = False
    data: tuple[Any, Any] | None = field(default=None, compare=False, repr=False)  # batches and loss, of such a metric
    memo: dict[str, Worth] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        one_of(self.normalize, "normalize", NORMALISE, ValuesError)
        if not callable(self.score):
            raise ValuesError(f"Metric({self.name!r}): score is a function of a model and a graph, not {self.score!r}")

    def save(self, path: Path) -> None:
        """Write what was found last to a file that `load` reads; of a metric that keeps what it finds."""
        if not self.memo:
            raise ValuesError(f"{self.name}: nothing is kept of it; use solvemut.values.save(values, graph, path)")
        key, worth = list(self.memo.items())[-1]
        write(path, self.name, key, worth)


def write(path: Path, name: str, of: str, worth: Worth) -> None:
    """Values as an .npz file: a header in JSON, numbers, curves; `of` is the checksum of what they were found for."""
    header = {"format": FORMAT, "version": VERSION, "name": name, "checksum": of, "curves": len(worth.curves)}
    found = {"header": np.array(json.dumps(header)), "value": np.asarray(worth.value, dtype=float)}
    found |= {k: np.asarray(a, dtype=float) for k in ("new", "second") if (a := getattr(worth, k)) is not None}
    for k, curve in enumerate(worth.curves):
        found[f"units {k}"] = np.asarray(curve.units, dtype=np.int64)
        found[f"worth {k}"] = np.asarray(curve.worth, dtype=float)
    with open(path, "wb") as file:  # savez adds an ending to a name
        np.savez(file, **found)  # type: ignore[arg-type]


Values = Metric | Worth | Mapping[str, Any] | Callable[[Vertex], Any] | None


def checksum(model: nn.Module, graph: Graph) -> str:
    """Tells apart the weights, and the units, that values were found for."""
    found = hashlib.blake2b(digest_size=16)
    found.update(graph.coupling.unit_of.astype(np.int64).tobytes())
    found.update(np.packbits(graph.coupling.frozen).tobytes())
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {tuple(t.shape)} {t.dtype};".encode())
        if not t.is_meta:
            t = t.detach().to_dense() if t.layout is not torch.strided else t.detach()
            found.update(t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
