"""Flow: unit labels run through a trace, and rules state facts about them."""

from .facts import Extent, Facts, Freeze, Path, Rectangle
from .flow import Flow, Output
from .labels import FIXED, Factor, Labels, compressed, prod, rectangle, stretched, view_groups

__all__ = [
    "FIXED",
    "Extent",
    "Factor",
    "Facts",
    "Flow",
    "Freeze",
    "Labels",
    "Output",
    "Path",
    "Rectangle",
    "compressed",
    "prod",
    "rectangle",
    "stretched",
    "view_groups",
]
