"""An int of a module that the forward takes a size from: a number of heads, the parts of a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import PlanMismatchError
from ..trace import Size, Trace
from .base import Edit, register
from .forms import INT, SIZE, optional, record, text

_FORM = record(module=text, name=text, index=optional(SIZE), before=INT, after=INT)


@register
@dataclass(frozen=True)
class SetAttribute(Edit):
    """A new value for an attribute of a module; `index` where the attribute is a list or tuple.

    >>> from solvemut.trace import Size, Trace
    >>> heads = Size("attr", ("attn", "heads", None))
    >>> trace, back = SetAttribute("attn", "heads", None, 8, 6).apply(Trace({}, {}, (), (), attributes={heads: 8}))
    >>> trace.attributes[heads], back.describe()
    (6, 'attn.heads: 6 -> 8')
    """

    kind = "set_attribute"

    module: str
    name: str
    index: int | None
    before: int
    after: int

    @property
    def place(self) -> str:
        """The attribute as the module's code names it, without self."""
        return f"{self.module}.{self.name}".lstrip(".") + ("" if self.index is None else f"[{self.index}]")

    @staticmethod
    def form(where: str, x: Any) -> None:
        _FORM(where, x)

    def apply(self, trace: Trace) -> tuple[Trace, SetAttribute]:
        size = Size("attr", (self.module, self.name, self.index))
        if size not in trace.attributes:
            raise PlanMismatchError(f"the plan sets {self.place}, which gives no size in this trace")
        if trace.attributes[size] != self.before:
            raise PlanMismatchError(f"{self.place} is {trace.attributes[size]}, the plan expects {self.before}")
        return replace(trace, attributes={**trace.attributes, size: self.after}), self.back()

    @property
    def sets(self) -> tuple[Any, ...]:
        return (self.module, self.name, self.index)

    def then(self, other: Edit) -> SetAttribute | None:
        if isinstance(other, SetAttribute) and self.sets == other.sets and self.after == other.before:
            return replace(self, after=other.after)
        return None

    def back(self) -> SetAttribute:
        return replace(self, before=self.after, after=self.before)

    def describe(self) -> str:
        return f"{self.place}: {self.before} -> {self.after}"
