"""Edits: what a plan does to a model's structure, as values; to bring in this package is to register all kinds."""

from .attributes import SetAttribute
from .base import EDITS, Edit, edit_form, edit_of, register
from .bypass import INPUT, ZEROS, Bypass
from .copies import Copies
from .kernel import AROUND, Kernel, SetKernel, is_convolution
from .selection import Index, Selection, is_grouped, rows_of
from .structure import Rewire

__all__ = [
    "AROUND",
    "EDITS",
    "INPUT",
    "ZEROS",
    "Bypass",
    "Copies",
    "Edit",
    "Index",
    "Kernel",
    "Rewire",
    "Selection",
    "SetAttribute",
    "SetKernel",
    "edit_form",
    "edit_of",
    "is_convolution",
    "is_grouped",
    "register",
    "rows_of",
]
