"""Where the ints in a forward come from: attributes of modules, sizes of tensors, or arithmetic on them.

While a model is traced, every int attribute of its modules is an int that remembers its name, and every size read from
a tensor remembers the tensor. Both stay ints, so that the forward runs as ever; arithmetic on them is remembered too.
What reaches the arguments of an operation is written to the traced node. So a plan knows which attribute to change when
`x.view(b, n, self.heads, -1)` must see fewer heads, and which sizes are plain numbers that nothing can change.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

from .trace import Size

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_NN = os.path.join(_TORCH, "nn", "")
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
KEY, ID = "solvemut_sizes", "solvemut_id"


class TrackedInt(int):
    """An int that knows where it came from."""

    size: Size

    def __new__(cls, value: int, size: Size) -> TrackedInt:
        x = super().__new__(cls, value)
        x.size = size
        return x

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _size(x: Any) -> Size:
    return x.size if isinstance(x, TrackedInt) else Size("const", (int(x),))


def _arithmetic(op: str, name: str) -> None:
    plain, reflected = getattr(int, f"__{name}__"), getattr(int, f"__r{name}__")

    def forward(self: TrackedInt, other: Any) -> Any:
        value = plain(self, other)
        return TrackedInt(value, Size(op, (_size(self), _size(other)))) if type(value) is int else value

    def backward(self: TrackedInt, other: Any) -> Any:
        value = reflected(self, other)
        return TrackedInt(value, Size(op, (_size(other), _size(self)))) if type(value) is int else value

    setattr(TrackedInt, f"__{name}__", forward)
    setattr(TrackedInt, f"__r{name}__", backward)


def _as_number(name: str) -> None:
    """Turning a size into a float makes it part of the function: whoever records is told."""
    plain = getattr(int, name)

    def number(self: TrackedInt, *other: Any) -> Any:
        if SizeRecorder.numbers is not None and _called_by_user():
            frame = sys._getframe(1)
            place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            SizeRecorder.numbers.append((self.size, place))
        return plain(self, *other)

    setattr(TrackedInt, name, number)


for _name in ("__pow__", "__rpow__", "__truediv__", "__rtruediv__", "__float__"):
    _as_number(_name)

for _op, _name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("//", "floordiv"), ("%", "mod")):
    _arithmetic(_op, _name)


def _ints(x: Any) -> Iterator[Any]:
    """The ints in nested arguments, in order; slices count by their bounds."""
    if isinstance(x, slice):
        x = (x.start, x.stop, x.step)
    if isinstance(x, dict):
        x = tuple(x.values())
    if isinstance(x, (list, tuple)):
        for y in x:
            yield from _ints(y)
    elif isinstance(x, int) and not isinstance(x, bool):
        yield x


class SizeRecorder(TorchFunctionMode):
    """Writes to each traced node which tracked ints it was called with; `numbers` lists sizes turned into floats."""

    numbers: list[tuple[Size, str]] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.next_id = 0

    def __enter__(self) -> Any:
        SizeRecorder.numbers = []
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self.found, SizeRecorder.numbers = SizeRecorder.numbers or [], None
        return super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        tracer: Any = mode.tracer
        if func == _SHAPE or func is torch.Tensor.size:
            return self._read(tracer, args[0], func(*args, **kwargs), args[1:], kwargs)
        tracked = [x.size for x in _ints((args, kwargs)) if isinstance(x, TrackedInt)]
        if not tracked:
            return func(*args, **kwargs)
        ints = [(int(x), _size(x)) for x in _ints((args, kwargs))]
        last = tracer.graph._root._prev
        out = func(*args, **kwargs)
        node = tracer.graph._root._prev
        while node is not last and node.op != "root":
            node.meta.setdefault(KEY, ints)
            node = node._prev
        return out

    def _read(self, tracer: Any, tensor: Any, value: Any, args: Any, kwargs: Any) -> Any:
        """A size read by the user's code is tracked; the tracing machinery gets plain ints."""
        if not _called_by_user():
            return value
        slot = get_proxy_slot(tensor, tracer, None)
        node = getattr(getattr(slot, "proxy", slot), "node", None)
        if node is None:
            return value
        if ID not in node.meta:
            node.meta[ID] = self.next_id
            self.next_id += 1
        name = node.meta[ID]

        def track(d: int) -> TrackedInt:
            return TrackedInt(int(tensor.size(d)), Size("size", (name, d % tensor.dim())))

        with torch._C.DisableTorchFunction():
            if isinstance(value, int):
                return track(args[0] if args else kwargs["dim"])
            return torch.Size([track(d) for d in range(len(value))])


def _called_by_user() -> bool:
    """Whether the innermost frame outside the function modes is a forward, of the user or of torch.nn."""
    frame = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_name == "__torch_function__"):
        frame = frame.f_back  # type: ignore[assignment]
    file = frame.f_code.co_filename if frame is not None else ""
    return file.startswith(_NN) or not file.startswith(_TORCH)


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


@contextlib.contextmanager
def python_functions_open() -> Iterator[None]:
    """Let functions of torch.nn.functional that are written in Python run their bodies under a function mode.

    They would otherwise hand themselves to the mode as one call, and the sizes used within would stay unseen.
    """
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    module: Any = torch.nn.functional
    saved = {n: getattr(module, n) for n in names if hasattr(module, n)}
    try:
        for n in saved:
            setattr(module, n, lambda *_: False)
        yield
    finally:
        for n, f in saved.items():
            setattr(module, n, f)
