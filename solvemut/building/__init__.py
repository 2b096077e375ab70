"""Building: models written as graphs, models turned into graphs that can be edited, layers that pass on their input."""

from .builder import Builder, BuilderVertex
from .bypassed import Bypassed
from .editing import editable
from .identity import identity_init
from .low_rank import factored, matrix_of
from .modules import Apply, Concat, GraphModel, Slot
from .widths import Width, after, expected

__all__ = [
    "Apply",
    "Builder",
    "BuilderVertex",
    "Bypassed",
    "Concat",
    "GraphModel",
    "Slot",
    "Width",
    "after",
    "editable",
    "expected",
    "factored",
    "identity_init",
    "matrix_of",
]
