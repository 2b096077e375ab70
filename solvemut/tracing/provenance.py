"""Where the ints in a forward come from: attributes of modules, sizes of tensors, or arithmetic on them.

While a model is traced, every int attribute of its modules is an int that remembers its name, and every size read from
a tensor remembers the tensor. Both stay ints, so that the forward runs as ever; arithmetic on them is remembered too.
Where a forward asks something of such an int, the question and its answer are noted as a guard (`c > 10`, `a == b`);
where it turns one into something that cannot be followed (a float, text, a key), that is noted as a number.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..trace import Guard, Size
from .open_sizes import is_open

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_NN = os.path.join(_TORCH, "nn", "")
_LAYERS = os.path.join(_NN, "modules", "")
_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_MACHINERY = {os.path.join(_HERE, f) for f in ("provenance.py", "recording.py")}


@dataclass
class Noted:
    """What a forward did with the ints that are tracked."""

    numbers: list[tuple[Size, str]] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)


_here = threading.local()  # .noted: where to write down, in the thread that traces


@contextlib.contextmanager
def noting(noted: Noted) -> Iterator[None]:
    """Within it what happens to tracked ints in this thread is written down."""
    before = getattr(_here, "noted", None)
    _here.noted = noted
    try:
        yield
    finally:
        _here.noted = before


def user_place() -> str:
    """file:line of the innermost frame, if it belongs to a forward, of the user or of torch.nn; else empty."""
    file, line, _ = _caller()
    return "" if file.startswith(_TORCH) and not file.startswith(_NN) else f"{os.path.basename(file)}:{line}"


def _caller() -> tuple[str, int, str]:
    frame = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename in _MACHINERY or frame.f_code.co_name == "__torch_function__"
    ):
        frame = frame.f_back  # type: ignore[assignment]
    return ("", 0, "") if frame is None else (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def note_number(*sizes: Size) -> None:
    """These sizes are used as numbers from here on: they are part of the function."""
    noted = getattr(_here, "noted", None)
    if noted is not None and (place := user_place()):
        noted.numbers.extend((s, place) for s in sizes)


def _note_guard(sense: str, left: Size, right: Size, holds: bool) -> None:
    """torch's own layers ask whether a fused kernel will do, which changes no result; functional.py checks sizes.

    Where it only raises (`_verify_batch_size`), a run of the changed model tells.
    """
    noted = getattr(_here, "noted", None)
    if noted is None or left == right or not (place := user_place()):
        return
    file, _, function = _caller()
    if not file.startswith(_LAYERS) and not (file.startswith(_NN) and function.startswith("_verify")):
        noted.guards.append(Guard(sense, left, right, holds, place))


class TrackedInt(int):
    """An int that knows where it came from."""

    size: Size

    def __new__(cls, value: int, size: Size) -> TrackedInt:
        x = super().__new__(cls, value)
        x.size = size
        return x

    def __deepcopy__(self, memo: Any) -> int:
        return int.__int__(self)

    def __reduce__(self) -> Any:
        return int, (int.__int__(self),)

    def __neg__(self) -> TrackedInt:
        return TrackedInt(int.__neg__(self), Size("-", (constant(0), self.size)))

    def __pos__(self) -> TrackedInt:
        return self

    def __abs__(self) -> TrackedInt:
        return self if self >= 0 else -self

    def __round__(self, digits: Any = None) -> Any:
        return self if digits is None else int.__round__(self, digits)

    def __trunc__(self) -> TrackedInt:
        return self

    __floor__ = __ceil__ = conjugate = __trunc__  # type: ignore[assignment]

    @property
    def real(self) -> TrackedInt:  # type: ignore[override]
        return self

    numerator = real  # type: ignore[assignment]

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << other) if type(other) is int else self._number(int.__lshift__, other)

    def __rshift__(self, other: Any) -> Any:
        return self // (1 << other) if type(other) is int else self._number(int.__rshift__, other)

    def __bool__(self) -> bool:
        found = int.__bool__(self)
        _note_guard("!=", self.size, constant(0), found)
        return found

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        note_number(*tracked(inputs))
        return getattr(ufunc, method)(*(untracked(x) for x in inputs), **kwargs)

    def _beside_open(self, other: Any, found: Any) -> Any:
        """Beside a size that depends on data, which torch computes with, it is a number."""
        if is_open(other):
            note_number(self.size)
        return found

    def _number(self, f: Callable[..., Any], *other: Any) -> Any:
        note_number(self.size)
        return f(self, *other)


def constant(value: int) -> Size:
    """A size that is written as a number."""
    return Size("const", (value,))


def size_of(x: int) -> Size:
    """Where an int came from."""
    return x.size if isinstance(x, TrackedInt) else constant(int(x))


def untracked(x: Any) -> Any:
    """The plain int."""
    return int.__int__(x) if isinstance(x, TrackedInt) else x


def tracked(x: Any) -> Iterator[Size]:
    """Where the tracked ints in nested arguments came from."""
    for y in ints(x):
        if isinstance(y, TrackedInt):
            yield y.size


def ints(x: Any) -> Iterator[Any]:
    """The ints in nested arguments, in order; slices count by their bounds."""
    if isinstance(x, slice):
        x = (x.start, x.stop, x.step)
    if isinstance(x, dict):
        x = tuple(x.values())
    if isinstance(x, (list, tuple)):
        for y in x:
            yield from ints(y)
    elif isinstance(x, int) and not isinstance(x, bool):
        yield x


def _arithmetic(op: str, name: str) -> None:
    plain, reflected = getattr(int, f"__{name}__"), getattr(int, f"__r{name}__")

    def forward(self: TrackedInt, other: Any) -> Any:
        value = plain(self, other)
        if type(value) is int:
            return TrackedInt(value, Size(op, (size_of(self), size_of(other))))
        return self._beside_open(other, value)

    def backward(self: TrackedInt, other: Any) -> Any:
        value = reflected(self, other)
        if type(value) is int:
            return TrackedInt(value, Size(op, (size_of(other), size_of(self))))
        return self._beside_open(other, value)

    setattr(TrackedInt, f"__{name}__", forward)
    setattr(TrackedInt, f"__r{name}__", backward)


def _comparison(sense: str, name: str) -> None:
    plain = getattr(int, name)

    def compare(self: TrackedInt, other: Any) -> Any:
        found = plain(self, other)
        if found is NotImplemented:
            if isinstance(other, float) or is_open(other):
                note_number(self.size)
            return found
        _note_guard(sense, self.size, size_of(other), found)
        return found

    setattr(TrackedInt, name, compare)


def _as_number(name: str) -> None:
    """Turning a size into something that cannot be followed makes it part of the function."""
    plain = getattr(int, name)

    def number(self: TrackedInt, *other: Any) -> Any:
        note_number(self.size)
        return plain(self, *other)

    setattr(TrackedInt, name, number)


_NUMBERS = (
    "__pow__",
    "__rpow__",
    "__truediv__",
    "__rtruediv__",
    "__float__",
    "__int__",
    "__index__",
    "__hash__",
    "__str__",
    "__repr__",
    "__format__",
    "__and__",
    "__rand__",
    "__or__",
    "__ror__",
    "__xor__",
    "__rxor__",
    "__invert__",
    "__rlshift__",
    "__rrshift__",
    "bit_length",
    "to_bytes",
    "as_integer_ratio",
)
for _name in _NUMBERS:
    _as_number(_name)
for _op, _name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("//", "floordiv"), ("%", "mod")):
    _arithmetic(_op, _name)
for _op, _name in (("==", "eq"), ("!=", "ne"), ("<", "lt"), ("<=", "le"), (">", "gt"), (">=", "ge")):
    _comparison(_op, f"__{_name}__")


@contextlib.contextmanager
def tracked_attributes(model: nn.Module) -> Iterator[None]:
    """Within it, every int attribute of every module (alone or in a list or tuple) is a `TrackedInt`."""
    saved: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, module in model.named_modules():
            for name, value in list(vars(module).items()):
                new = _track(value, path, name)
                if new is not value:
                    saved.append((module, name, value))
                    module.__dict__[name] = new
        yield
    finally:
        for module, name, value in saved:
            module.__dict__[name] = value


def _track(value: Any, path: str, name: str) -> Any:
    if type(value) is int:
        return TrackedInt(value, Size("attr", (path, name, None)))
    if type(value) in (list, tuple, torch.Size) and value and all(type(v) is int for v in value):
        return type(value)([TrackedInt(v, Size("attr", (path, name, i))) for i, v in enumerate(value)])
    return value


# Functions of math that read an int without asking it for a float.
_MATH = ("log", "log2", "log10", "gcd", "lcm", "isqrt", "comb", "perm", "factorial", "hypot")


@contextlib.contextmanager
def replaced(module: Any, names: Sequence[str], make: Callable[[Any], Any]) -> Iterator[None]:
    """Within it `module` has `make(x)` for each x that it has under one of these names."""
    saved = {name: getattr(module, name) for name in names if hasattr(module, name)}
    try:
        for name, x in saved.items():
            setattr(module, name, make(x))
        yield
    finally:
        for name, x in saved.items():
            setattr(module, name, x)


def watched_math() -> contextlib.AbstractContextManager[None]:
    """Within it, what functions of `math` make of a tracked int counts as a number."""

    def watched(f: Callable[..., Any]) -> Callable[..., Any]:
        def number(*args: Any) -> Any:
            note_number(*tracked(args))
            return f(*args)

        return number

    return replaced(math, _MATH, watched)
