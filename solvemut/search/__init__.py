"""Search blocks: random mutations of networks, crossover between two of them, and a loop that evolves a population."""

from .evolution import Candidate, evolve
from .mutations import Chain, Choose, Connect, Disconnect, Insert, Mutation, Remove, Resize, crossover

__all__ = [
    "Candidate",
    "Chain",
    "Choose",
    "Connect",
    "Disconnect",
    "Insert",
    "Mutation",
    "Remove",
    "Resize",
    "crossover",
    "evolve",
]
