"""Plan: the answer as data, with its file and its index maps."""

from .draw import parts
from .file import checksum, runs
from .record import PlanCost, PlanRecord, as_lists
from .replay import Replayed, replayed

__all__ = ["PlanCost", "PlanRecord", "Replayed", "as_lists", "checksum", "parts", "replayed", "runs"]
