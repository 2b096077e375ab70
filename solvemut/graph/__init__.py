"""Graph: what a user sees of a captured model."""

from .frozen import Frozen, FrozenRow
from .graph import Graph, Vertex

__all__ = ["Frozen", "FrozenRow", "Graph", "Vertex"]
