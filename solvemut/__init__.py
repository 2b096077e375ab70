"""solvemut: change the architecture of PyTorch models by integer programming.

Names are loaded when first used, so that `solvemut.program` and the analysis can be used without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, program, regularize, repair, search, select, values
    from .alternatives import Alternative, LowRank
    from .apply import Plan
    from .building import Builder, editable, identity_init
    from .graph import Graph, Vertex
    from .latency import LatencyTable, measure_latency, roofline
    from .mutator import Mutator, capture, prune
    from .problem import Problem
    from .requests import between, exactly, ratio, relaxed

__version__ = "0.1.0"

_HOMES = {
    "Alternative": "alternatives",
    "LowRank": "alternatives",
    "Builder": "building",
    "Graph": "graph",
    "Vertex": "graph",
    "LatencyTable": "latency",
    "Mutator": "mutator",
    "Plan": "apply",
    "Problem": "problem",
    "capture": "mutator",
    "editable": "building",
    "identity_init": "building",
    "measure_latency": "latency",
    "prune": "mutator",
    "roofline": "latency",
    "between": "requests",
    "exactly": "requests",
    "ratio": "requests",
    "relaxed": "requests",
}
_MODULES = ("errors", "program", "regularize", "repair", "search", "select", "values")
__all__ = [
    "Alternative",
    "Builder",
    "Graph",
    "LatencyTable",
    "LowRank",
    "Mutator",
    "Plan",
    "Problem",
    "Vertex",
    "between",
    "capture",
    "editable",
    "errors",
    "exactly",
    "identity_init",
    "measure_latency",
    "program",
    "prune",
    "ratio",
    "regularize",
    "relaxed",
    "repair",
    "roofline",
    "search",
    "select",
    "values",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
