"""Apply: a plan in a model, in place, all or nothing."""

from .attributes import EDITORS, make_edit
from .initialise import SPLIT, Init, check_init, drawing
from .optimizer import Optimizers, adopt_parameters, forget_parameters, optimizers_of
from .plan import Plan
from .verify import check_how

__all__ = [
    "EDITORS",
    "SPLIT",
    "Init",
    "Optimizers",
    "Plan",
    "adopt_parameters",
    "check_how",
    "check_init",
    "drawing",
    "forget_parameters",
    "make_edit",
    "optimizers_of",
]
