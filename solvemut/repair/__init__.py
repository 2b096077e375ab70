"""Repair: what a cut has cost is made good without training, from data and the model before the cut."""

from .chain import Chain, Repair, chain, name_of, none, repair_of
from .fit import LeastSquares, least_squares
from .norms import BatchNorm, batch_norm
from .report import Repaired, Report

__all__ = [
    "BatchNorm",
    "Chain",
    "LeastSquares",
    "Repair",
    "Repaired",
    "Report",
    "batch_norm",
    "chain",
    "least_squares",
    "name_of",
    "none",
    "repair_of",
]
