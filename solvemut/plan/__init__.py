"""Plan: the answer as data, with its file and its index maps."""

from .file import checksum, runs
from .record import PlanCost, PlanRecord, as_lists
from .replay import Resized, resize

__all__ = ["PlanCost", "PlanRecord", "Resized", "as_lists", "checksum", "resize", "runs"]
