"""Repair: what a cut has cost is made good without training, from data and the model before the cut."""

from .batch_norm import BatchNorm, batch_norm
from .chain import Chain, Repair, chain, name_of, none, repair_of
from .least_squares import LeastSquares, least_squares
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
