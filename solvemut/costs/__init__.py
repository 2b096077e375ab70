"""Costs: what a model uses, as sums of products of sizes; to bring in this package is to register all of them.

Those of memory are built from what was observed besides.
"""

from . import flops, params
from .base import COSTS, cost, elements, monomial
from .memory import memory, training_memory, weight_bytes

__all__ = ["COSTS", "cost", "elements", "flops", "memory", "monomial", "params", "training_memory", "weight_bytes"]
