"""Requests: what a user may ask of sizes and costs."""

from .asked import Request, asked, flat, owners
from .budgets import Budget, Cost, Monomial, Switch, Table, budget_of
from .sizes import Affine, Multiple, Relation

__all__ = [
    "Affine",
    "Budget",
    "Cost",
    "Monomial",
    "Multiple",
    "Relation",
    "Request",
    "Switch",
    "Table",
    "asked",
    "budget_of",
    "flat",
    "owners",
]
