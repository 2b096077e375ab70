"""Surgery: layers and edges that come and go; sizes are aligned by the program, and all of it or nothing is done."""

from .grafts import Cut, cuts, graft
from .graphs import connect, disconnect, insert, remove
from .operation import Operation, Settling, perform

__all__ = ["Cut", "Operation", "Settling", "connect", "cuts", "disconnect", "graft", "insert", "perform", "remove"]
