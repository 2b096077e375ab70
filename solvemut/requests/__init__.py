"""Requests: what a user may ask of sizes and costs."""

from .budgets import Budget, Cost, Monomial, Peak, Switch, Table, budget_of, timed
from .request import Request, asked, flat, owners
from .sizes import Affine, Multiple, Relation
from .wishes import Wish, between, exactly, ratio, relaxed, wish_of

__all__ = [
    "Affine",
    "Budget",
    "Cost",
    "Monomial",
    "Multiple",
    "Peak",
    "Relation",
    "Request",
    "Switch",
    "Table",
    "Wish",
    "asked",
    "between",
    "budget_of",
    "exactly",
    "flat",
    "owners",
    "ratio",
    "relaxed",
    "timed",
    "wish_of",
]
