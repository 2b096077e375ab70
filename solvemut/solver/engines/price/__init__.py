"""The pricing engine: prices on the limits, levels removed by bound, and a search along the bound."""

from .search import solve

__all__ = ["solve"]
