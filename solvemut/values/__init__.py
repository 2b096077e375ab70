"""Values: what units are worth, as one number per unit."""

from .data import activation, taylor
from .metric import Metric, Values
from .running import Tracker, track
from .units import unit_values
from .weights import bn_scale, constant, magnitude, over_slices, random

__all__ = [
    "Metric",
    "Tracker",
    "Values",
    "activation",
    "bn_scale",
    "constant",
    "magnitude",
    "over_slices",
    "random",
    "taylor",
    "track",
    "unit_values",
]
