"""Graph: what a user sees of a captured model."""

from .graph import Graph, Vertex

__all__ = ["Graph", "Vertex"]
