"""A metric: what units are worth, and how that is made comparable between layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..arguments import one_of
from ..errors import ValuesError
from ..graph import Graph, Vertex

NORMALISE = ("mean", "max", "sum", "l2", None)


@dataclass(frozen=True)
class Metric:
    """A named way to value units: `score(model, graph)` gives one number per unit class."""

    name: str
    score: Callable[[nn.Module, Graph], np.ndarray]
    normalize: str | None = None

    def __post_init__(self) -> None:
        one_of(self.normalize, "normalize", NORMALISE, ValuesError)
        if not callable(self.score):
            raise ValuesError(f"Metric({self.name!r}): score is a function of a model and a graph, not {self.score!r}")


Values = Metric | Mapping[str, Any] | Callable[[Vertex], Any] | None
