"""solvemut: change the architecture of PyTorch models by integer programming."""

from . import errors, values
from .graph import Graph, Vertex
from .mutator import Mutator, capture, prune
from .plan import Plan
from .problem import Problem

__version__ = "0.1.0"
__all__ = ["Graph", "Mutator", "Plan", "Problem", "Vertex", "capture", "errors", "prune", "values"]
