"""Surgery: layers and edges that come and go; sizes are aligned by the program, and all of it or nothing is done."""

from .graphs import connect, disconnect, insert, remove
from .operation import Operation, perform

__all__ = ["Operation", "connect", "disconnect", "insert", "perform", "remove"]
