"""Apply: a plan in a model, in place, all or nothing."""

from .attributes import EDITORS
from .initialise import Init
from .optimizer import Optimizers, optimizers_of
from .plan import Plan
from .verify import check_how

__all__ = ["EDITORS", "Init", "Optimizers", "Plan", "check_how", "optimizers_of"]
