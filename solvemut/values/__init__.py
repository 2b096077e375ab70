"""Values: what units are worth, as one number per unit or as a curve over how many stay."""

from ..compile import Curve, Worth
from .data import activation, taylor
from .dims import UnitDim, unit_dims
from .metric import Metric, Values
from .running import Tracker, track
from .shares import retention
from .units import unit_values, worth_of
from .weights import bn_scale, constant, magnitude, over_slices, random, slice_sums
from .zoo import fpgm, hessian, lamp, wanda

__all__ = [
    "Curve",
    "Metric",
    "Tracker",
    "UnitDim",
    "Values",
    "Worth",
    "activation",
    "bn_scale",
    "constant",
    "fpgm",
    "hessian",
    "lamp",
    "magnitude",
    "over_slices",
    "random",
    "retention",
    "slice_sums",
    "taylor",
    "track",
    "unit_dims",
    "unit_values",
    "wanda",
    "worth_of",
]
