"""The kernel of a convolution: its size and padding, which change together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import PlanMismatchError
from ..trace import Node, Ref, Size, Trace
from .base import Edit, register
from .forms import SIZE, each, fail, record, text, whole

AROUND = "_reversed_padding_repeated_twice"  # in it torch's layers repeat the padding, for modes other than zeros

CONVOLUTIONS = {"convolution", *(f"{name}{n}d" for name in ("conv", "conv_transpose") for n in (1, 2, 3))}


@dataclass(frozen=True)
class Kernel:
    """What the module of a convolution says of its kernel, in its own words.

    `padding` may be one of torch's strings. `around` is the padding as torch.nn.functional.pad takes it: the last dim
    first, both sides of each.

    >>> str(Kernel((3, 3), "same", (1, 1, 1, 1))), str(Kernel((5,), (2,), (2, 2)))
    ('3x3 (padding same)', '5 (padding 2)')
    """

    size: tuple[int, ...]
    padding: tuple[int, ...] | str
    around: tuple[int, ...]

    def __str__(self) -> str:
        padding = self.padding if isinstance(self.padding, str) else "x".join(map(str, self.padding))
        return f"{'x'.join(map(str, self.size))} (padding {padding})"

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Kernel:
        padding = data["padding"]
        return cls(tuple(data["size"]), padding if isinstance(padding, str) else tuple(padding), tuple(data["around"]))

    def to_data(self) -> dict[str, Any]:
        return {k: x if isinstance(x, str) else list(x) for k, x in asdict(self).items()}


def _padding(where: str, x: Any) -> None:
    if isinstance(x, str):
        if x not in ("same", "valid"):
            fail(where, "'same', 'valid', or an int for each dim", x)
    else:
        each(SIZE)(where, x)


def _kernel(where: str, x: Any) -> None:
    record(size=each(whole(1)), padding=_padding, around=each(SIZE))(where, x)
    n = len(x["size"])
    if not (isinstance(x["padding"], str) or len(x["padding"]) == n):
        fail(f"{where}.padding", f"{n} ints, as the size has", x["padding"])
    if len(x["around"]) != 2 * n:
        fail(f"{where}.around", f"{2 * n} ints, two for each dim", x["around"])


_FORM = record(module=text, before=_kernel, after=_kernel)


@register
@dataclass(frozen=True)
class SetKernel(Edit):
    """Another kernel size and padding of a convolution; the taps of its weight are the selection's.

    >>> edit = SetKernel("stem", Kernel((3,), (1,), (1, 1)), Kernel((5,), (2,), (2, 2)))
    >>> edit.describe(), edit.back().describe()
    ('stem: kernel 3 (padding 1) -> 5 (padding 2)', 'stem: kernel 5 (padding 2) -> 3 (padding 1)')
    """

    kind = "set_kernel"

    module: str
    before: Kernel
    after: Kernel

    @staticmethod
    def form(where: str, x: Any) -> None:
        _FORM(where, x)
        if len(x["before"]["size"]) != len(x["after"]["size"]):
            fail(f"{where}.after.size", f"{len(x['before']['size'])} ints, as before", x["after"]["size"])

    def to_data(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "module": self.module,
            "before": self.before.to_data(),
            "after": self.after.to_data(),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> SetKernel:
        return cls(data["module"], Kernel.from_data(data["before"]), Kernel.from_data(data["after"]))

    def apply(self, trace: Trace) -> tuple[Trace, SetKernel]:
        """The attributes and the padding of its calls; the shapes that follow are for a capture to tell."""
        calls = [n for n in trace.nodes if is_convolution(n) and self._reads(trace, n)]
        if not calls:
            raise PlanMismatchError(f"the plan sets the kernel of {self.module}, which runs no convolution here")
        for node in calls:
            if (found := node.args.get("padding")) not in (_said(self.before.padding), [0] * len(self.before.size)):
                raise PlanMismatchError(f"{node.at()} has padding {found}, the plan expects {self.before.padding}")
        modules = {n.module for n in calls}
        nodes = tuple(self._node(n) if n.module in modules else n for n in trace.nodes)
        return replace(trace, nodes=nodes, attributes=self._attributes(trace)), self.back()

    def _reads(self, trace: Trace, node: Node) -> bool:
        """Whether an operation convolves with the module's weight: it may run under another name of the module."""
        weight = node.args.get("weight")
        param = trace.params.get(weight.name) if isinstance(weight, Ref) else None
        return param is not None and f"{self.module}.weight".lstrip(".") in (param.name, *param.aliases)

    def _node(self, node: Node) -> Node:
        name, before, after = "padding", _said(self.before.padding), _said(self.after.padding)
        if node.op == "pad":
            name, before, after = "pad", list(self.before.around), list(self.after.around)
        elif not is_convolution(node):
            return node
        return replace(node, args={**node.args, name: after}) if node.args.get(name) == before else node

    def _attributes(self, trace: Trace) -> dict[Size, int]:
        found = dict(trace.attributes)
        pairs: tuple[tuple[str, Any, Any], ...] = (
            ("kernel_size", self.before.size, self.after.size),
            ("padding", self.before.padding, self.after.padding),
            (AROUND, self.before.around, self.after.around),
        )
        for name, before, after in pairs:
            for k, (old, new) in enumerate(zip(before, after, strict=False)):
                size = Size("attr", (self.module, name, k))
                if size not in found or isinstance(old, str) or isinstance(new, str):
                    continue
                if found[size] != old:
                    raise PlanMismatchError(f"{size} is {found[size]}, the plan expects {old}")
                found[size] = new
        return found

    @property
    def sets(self) -> tuple[Any, ...]:
        return (self.module, "kernel")

    def then(self, other: Edit) -> SetKernel | None:
        if isinstance(other, SetKernel) and self.sets == other.sets and self.after == other.before:
            return replace(self, after=other.after)
        return None

    def back(self) -> SetKernel:
        return replace(self, before=self.after, after=self.before)

    def describe(self) -> str:
        return f"{self.module}: kernel {self.before} -> {self.after}".lstrip(": ")


def _said(padding: tuple[int, ...] | str) -> Any:
    """A padding as a call has it."""
    return padding if isinstance(padding, str) else list(padding)


def is_convolution(node: Node) -> bool:
    """Whether an operation is a convolution, of any kind."""
    return node.op in CONVOLUTIONS
