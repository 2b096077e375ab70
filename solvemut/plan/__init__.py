"""Plan: the answer as data, with its file and its index maps."""

from .compose import changes_nothing, then
from .copying import copyable
from .draw import redrawn
from .file import checksum, runs
from .kept import kept_units
from .kernel import Convolution, kernel_parts, seen_by, taps
from .record import PlanCost, PlanRecord, as_lists
from .replay import Replayed, replayed
from .shapes import node_after, param_shape, shape_after

__all__ = [
    "Convolution",
    "PlanCost",
    "PlanRecord",
    "Replayed",
    "as_lists",
    "changes_nothing",
    "checksum",
    "copyable",
    "kept_units",
    "kernel_parts",
    "node_after",
    "param_shape",
    "redrawn",
    "replayed",
    "runs",
    "seen_by",
    "shape_after",
    "taps",
    "then",
]
