"""A forward as text, one line per operation: what two programs are compared by, number by number.

Values are numbered in order, parameters go by name. Dtypes and devices are left out: a plan may be applied to a model
that was cast or moved since it was captured, and a limit of one dtype (its smallest number, say) stands for another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .data import Node, Ref, Trace

_LEFT_OUT = {"dtype", "device", "layout", "pin_memory", "memory_format"}


# An export leaves these out where they would do nothing, which depends on strides; they change no number.
_TRANSPARENT = {"contiguous", "alias", "detach"}


def listing(trace: Trace) -> tuple[str, ...]:
    """The lines of a program: its inputs, its operations, and what it returns.

    >>> from .data import Param
    >>> node = Node("mul", "mul", {"self": Ref("x"), "other": 0.5}, ((2, 4),))
    >>> print(*listing(Trace({}, {"x": (2, 4)}, (node,), ("mul",))), sep="\\n")
    %0 = input (2, 4)
    %1 = mul(self=%0, other=0.5) -> (2, 4)
    return %1
    """
    return tuple(line for line, _ in lines(trace))


def lines(trace: Trace) -> list[tuple[str, Node | None]]:
    """The lines of `listing`, each with its node."""
    names = {value: f"{p.name}{p.digest}" for value, p in trace.params.items()}
    found: list[tuple[str, Node | None]] = []
    for value, shape in trace.inputs.items():
        names[value] = f"%{len(found)}"
        found.append((f"{names[value]} = input {shape}", None))
    for node in trace.nodes:
        if node.op in _TRANSPARENT:
            names[node.name] = names[node.refs()[0]]
            continue
        names[node.name] = f"%{len(found)}"
        found.append((f"{names[node.name]} = {_call(node, names)}", node))
    returned = trace.returned or (("", *(Ref(o) for o in trace.outputs)),)
    return [*found, *((_return(form, leaves, names), None) for form, *leaves in returned)]


def _return(form: str, leaves: Sequence[Any], names: Mapping[str, str]) -> str:
    return "return " + ", ".join(_text(x, names) for x in leaves) + (f" as {form}" if form else "")


def _call(node: Node, names: Mapping[str, str]) -> str:
    args = ", ".join(f"{k}={_text(v, names)}" for k, v in node.args.items() if k not in _LEFT_OUT)
    shapes = list(node.shapes) if node.is_list else node.shape
    return f"{node.op}({args}) -> {shapes}"


def _text(a: Any, names: Mapping[str, str]) -> str:
    if isinstance(a, Ref):
        return names[a.name]
    if isinstance(a, (list, tuple)):
        return "[" + ", ".join(_text(x, names) for x in a) + "]"
    if isinstance(a, float):
        return _LIMITS.get(a, repr(a))
    return str(a)


def _limits() -> dict[float, str]:
    bfloat16 = (3.3895313892515355e38, 1.1754943508222875e-38, 0.0078125)
    infos: list[Any] = [np.finfo(d) for d in (np.float16, np.float32, np.float64)]
    kinds = [(float(i.max), float(i.tiny), float(i.eps)) for i in infos]
    return {
        sign * number: f"{'-' if sign < 0 else ''}{word} of the dtype"
        for kind in [*kinds, bfloat16]
        for number, word in zip(kind, ("largest", "tiny", "eps"), strict=True)
        for sign in (1, -1)
    }


_LIMITS = _limits()
