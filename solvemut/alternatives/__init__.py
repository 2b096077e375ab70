"""Alternatives: what may stand in the place of a layer, what each is worth, and what it costs at every size.

An alternative is put in the place of the layer in a copy of the model, and that is captured: so its costs are those of
the operations that then run there, over the sizes of the units around it. Where it couples units that the layer does
not (a depthwise convolution, say), these all stay where it is chosen.
"""

from .counted import budgets_of, switched
from .offered import Alternatives
from .options import COUNTED, Alternative, Choice, LowRank, choice_of

__all__ = ["COUNTED", "Alternative", "Alternatives", "Choice", "LowRank", "budgets_of", "choice_of", "switched"]
