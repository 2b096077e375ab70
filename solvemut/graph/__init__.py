"""Graph: what a user sees of a captured model."""

from .branches import Branch, branches_of, inside
from .frozen import Frozen, FrozenRow
from .graph import Graph, Vertex

__all__ = ["Branch", "Frozen", "FrozenRow", "Graph", "Vertex", "branches_of", "inside"]
