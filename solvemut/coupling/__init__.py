"""Coupling: from what the rules said to coupled units."""

from .groups import Coupling, Group, couple
from .links import Divides, Link, Rows, components

__all__ = ["Coupling", "Divides", "Group", "Link", "Rows", "components", "couple"]
