"""Requests: what a user may ask of sizes and costs."""

from .budgets import Budget, Cost, Monomial, Switch, Table, budget_of
from .request import Request, asked, flat, owners
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
