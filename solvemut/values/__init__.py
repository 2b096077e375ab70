"""Values: what units are worth, as one number per unit or as a curve over how many stay."""

from ..compile import Curve, Worth
from .blocks import branch_worth, sees_data, stand_in_worth
from .data import activation, taylor
from .dims import UnitDim, over_slices, slice_sums, unit_dims
from .elimination import reconstruction
from .gates import bypass, fisher
from .metric import Metric, Values
from .outputs import principal
from .running import Tracker, track
from .shares import kinds, ranked, retention
from .store import load, save
from .trials import measured
from .units import unit_values, worth_of
from .weights import bn_scale, constant, magnitude, random
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
    "branch_worth",
    "bypass",
    "constant",
    "fisher",
    "fpgm",
    "hessian",
    "kinds",
    "lamp",
    "load",
    "magnitude",
    "measured",
    "over_slices",
    "principal",
    "random",
    "ranked",
    "reconstruction",
    "retention",
    "save",
    "sees_data",
    "slice_sums",
    "stand_in_worth",
    "taylor",
    "track",
    "unit_dims",
    "unit_values",
    "wanda",
    "worth_of",
]
