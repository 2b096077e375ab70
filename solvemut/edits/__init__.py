"""Edits: what a plan does to a model's structure, as values; to bring in this package is to register all kinds."""

from .attributes import SetAttribute
from .base import EDITS, Edit, edit_form, edit_of, register
from .bypass import INPUT, ZEROS, Bypass
from .copies import Copies
from .kernel import AROUND, Kernel, SetKernel, is_convolution
from .selection import Index, Selection, is_grouped, rows_of
from .structure import Placed, Rewire
from .substitute import COSTS, GIVEN, LOW_RANK, Substitute, packed, unpacked

__all__ = [
    "AROUND",
    "COSTS",
    "EDITS",
    "GIVEN",
    "INPUT",
    "LOW_RANK",
    "ZEROS",
    "Bypass",
    "Copies",
    "Edit",
    "Index",
    "Kernel",
    "Placed",
    "Rewire",
    "Selection",
    "SetAttribute",
    "SetKernel",
    "Substitute",
    "edit_form",
    "edit_of",
    "is_convolution",
    "is_grouped",
    "packed",
    "register",
    "rows_of",
    "unpacked",
]
