"""Trace: what a forward did, as data. No torch here."""

from .data import Call, Guard, Node, Param, Ref, Trace, layer_of, sizes_in
from .footprint import Footprint, Held
from .several import join, renamed_guard, renamed_node, renamed_size
from .sizes import Size, affine
from .text import lines, listing

__all__ = [
    "Call",
    "Footprint",
    "Guard",
    "Held",
    "Node",
    "Param",
    "Ref",
    "Size",
    "Trace",
    "affine",
    "join",
    "layer_of",
    "lines",
    "listing",
    "renamed_guard",
    "renamed_node",
    "renamed_size",
    "sizes_in",
]
