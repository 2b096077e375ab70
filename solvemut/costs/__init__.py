"""Costs: what a model uses, as sums of products of sizes; to bring in this package is to register all of them."""

from . import flops, params
from .base import COSTS, cost, monomial

__all__ = ["COSTS", "cost", "flops", "monomial", "params"]
