"""Plan: the answer as data, with its file and its index maps."""

from .compose import changes_nothing, then
from .copying import copyable
from .draw import redrawn
from .file import checksum, runs
from .kept import kept_units
from .kernel import Convolution, kernel_parts, seen_by, taps
from .record import PlanCost, PlanRecord, as_lists
from .replay import Replayed, replayed

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
    "redrawn",
    "replayed",
    "runs",
    "seen_by",
    "taps",
    "then",
]
