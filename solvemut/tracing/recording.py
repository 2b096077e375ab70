"""Recording: what a forward calls, seen from above: each torch function with its arguments as the source gives them.

The same recorder runs twice: under torch.export it writes to the traced nodes where their ints came from, and lists the
calls; on a changed model, without export, the list of its calls is held against the one foretold (`verify`).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..trace import Call, Ref, Size
from .objects import closed, opened
from .open_sizes import is_open, shape_of
from .provenance import Noted, TrackedInt, ints, note_number, noting, replaced, size_of, tracked, untracked, user_place

KEY, ID, CALL = "solvemut_sizes", "solvemut_id", "solvemut_call"
_GET = {name: getattr(torch.Tensor, name).__get__ for name in ("shape", "nbytes")}
_SHAPE, _BYTES = _GET["shape"], _GET["nbytes"]
_NUMEL = (torch.Tensor.numel, torch.Tensor.nelement, torch.numel)
_AS_NUMBERS = (torch.Tensor.__len__, torch.Tensor.stride, _BYTES)
# What an export copies, another run may hand through: in the list of calls such a result goes by its input's name. What
# a dropout drops is no matter of sizes.
_MAY_RETURN_ITS_INPUT = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "contiguous",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "type_as",
)


class Recorder(TorchFunctionMode):
    """Lists the calls of one forward; with `tracked`, under torch.export, it also follows sizes.

    `noted` holds the sizes used as numbers and the questions asked of sizes. `lost[k]` are the tracked ints that call k
    was given, to be looked for in the nodes that it made. `opaque` tells that the list is not the whole story: some
    argument has no text, a tensor came from nowhere, or an operation ran that no call in the list explains.
    """

    def __init__(self, tracked: bool) -> None:
        super().__init__()
        self.tracked = tracked
        self.noted = Noted()
        self.calls: list[Call] = []
        self.lost: dict[int, tuple[list[Size], str]] = {}
        self.opaque = False
        self._names: dict[int, str] = {}
        self._alive: list[torch.Tensor] = []  # an id counts only while its tensor lives
        self._next_id = self._count = 0
        self._running = self._calling = False
        self._last: Any = None  # the latest node that is explained

    # -- around a forward ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def around(self, model: nn.Module, method: str = "forward") -> Iterator[None]:
        """Within it, a call of the model runs `method` and is recorded; restoring the module's dict is the caller's."""
        original = getattr(model, method)

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return original(*args, **kwargs)
            given = (args, kwargs)
            args, kwargs = closed(given)
            if self.tracked and get_proxy_mode() is None:
                return opened(original(*args, **kwargs))
            self._running = True
            try:
                self._begin(model, *given)
                watch = contextlib.nullcontext() if self.tracked else self.watch()
                with noting(self.noted), self, watch:
                    out = opened(original(*args, **kwargs))
                self._end(out)
                return out
            finally:
                self._running = False

        model.__dict__["forward"] = forward
        yield

    def watch(self) -> contextlib.AbstractContextManager[Any]:
        """What looks at the operations that calls consist of."""
        return _Unexplained(self)

    def _begin(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Names for the tensors that are there before the first call."""
        self.noted.numbers.clear()
        self.noted.guards.clear()
        self.calls.clear()
        self.lost.clear()
        self._names.clear()
        self._alive.clear()
        self._count = 0
        leaves = pytree.tree_leaves((args, sorted(kwargs.items())))
        for k, x in enumerate(x for x in leaves if isinstance(x, torch.Tensor)):
            self._name(x, f"input {k}")
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        named += [(f"{path}.{k}", v) for path, m in model.named_modules() for k, v in vars(m).items()]
        for name, tensor in named:
            if isinstance(tensor, torch.Tensor):
                self._name(tensor, name)
        self.opaque = bool(model._forward_hooks or model._forward_pre_hooks)  # they run outside of the forward
        self._last = _latest(get_proxy_mode()) if self.tracked else None

    def _end(self, out: Any) -> None:
        """What is returned is part of the list; a size that is returned is a number."""
        mode = get_proxy_mode() if self.tracked else None
        self._check_explained(_latest(mode))
        leaves, form = pytree.tree_flatten(out)
        self.noted.numbers.extend((s, "the output") for s in tracked(leaves))
        said = tuple(untracked(x) if isinstance(x, int) else self._said(x) for x in leaves)
        self.calls.append(Call("return", (str(form), *said), ()))

    def _check_explained(self, latest: Any) -> None:
        self.opaque |= latest is not self._last

    def _name(self, x: torch.Tensor, name: str | None = None) -> str:
        known = self._names.get(id(x))
        if known is None:
            self._count += 1
            known = self._names[id(x)] = name or f"%{self._count}"
            self._hold(x)
        return known

    def _hold(self, x: torch.Tensor) -> None:
        """See that an id stays that of its tensor."""
        self._alive.append(x)

    # -- one call --------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.tracked:
            return self._logged(func, args, kwargs, None)
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        tracer: Any = mode.tracer
        if func == _SHAPE or func is torch.Tensor.size:
            return self._read(tracer, args[0], func(*args, **kwargs), args[1:], kwargs)
        if func in _NUMEL:
            return self._elements(tracer, args[0], func(*args, **kwargs))
        if func in _AS_NUMBERS:
            note_number(*(s for d in range(args[0].dim()) if (s := self._dim(tracer, args[0], d)) is not None))
        return self._logged(func, args, kwargs, tracer)

    def _logged(self, func: Any, args: Any, kwargs: Any, tracer: Any) -> Any:
        said = (*(self._said(a) for a in args), *((k, self._said(v)) for k, v in kwargs.items()))
        last = tracer.graph._root._prev if tracer is not None else None
        self._check_explained(last)
        self._calling = True
        try:
            out = func(*args, **kwargs)
        finally:
            self._calling = False
        if tracer is not None:
            self._write(tracer, last, args, kwargs)
            self._last = tracer.graph._root._prev
        leaves = [out] if isinstance(out, torch.Tensor) else _tensors(out)
        passed = _title(func) in _MAY_RETURN_ITS_INPUT and args and isinstance(args[0], torch.Tensor)
        if passed and id(out) not in self._names:
            self._names[id(out)] = self._name(args[0])
            self._hold(out)
        if leaves or (out is None and func is not torch._assert):
            self.calls.append(Call(_title(func), said, self._results(leaves, tracer)))
        return out

    def _said(self, a: Any) -> Any:
        """An argument as plain data; ints that are tracked as their `Size`."""
        if isinstance(a, torch.Tensor):
            self.opaque |= id(a) not in self._names  # who knows what it holds
            return Ref(self._name(a))
        if isinstance(a, TrackedInt):
            return a.size
        if a is None or a is Ellipsis or isinstance(a, (bool, int, float, complex, str)):
            return a
        if isinstance(a, slice):
            return ("slice", *(self._said(x) for x in (a.start, a.stop, a.step)))
        if isinstance(a, (list, tuple)):
            return tuple(self._said(x) for x in a)
        if isinstance(a, dict):
            return tuple((k, self._said(v)) for k, v in a.items())
        if isinstance(a, torch.device):
            return "device"
        if is_open(a):
            return "a number that depends on data"
        if not isinstance(a, (torch.dtype, torch.layout, torch.memory_format)):
            self.opaque = True
        return str(a)

    def _results(self, leaves: Sequence[torch.Tensor], tracer: Any) -> tuple[Any, ...]:
        return tuple(self._made(x, tracer) for x in leaves)

    def _made(self, x: torch.Tensor, tracer: Any) -> Any:
        """A tensor that a call returned: its shape, or the node that tells it."""
        self._name(x)
        node = None if tracer is None else _node(tracer, x)
        return shape_of(x) if node is None else self._id(node)

    def _id(self, node: Any) -> int:
        if ID not in node.meta:
            node.meta[ID] = self._next_id
            self._next_id += 1
        return node.meta[ID]

    def _write(self, tracer: Any, last: Any, args: Any, kwargs: Any) -> None:
        """Tell the nodes that a call made where its ints came from."""
        given = list(tracked((args, kwargs)))
        if not given:
            return
        passed = [(untracked(x), size_of(x)) for x in ints((args, kwargs))]
        call = len(self.lost)
        self.lost[call] = (given, user_place())
        node = tracer.graph._root._prev
        while node is not last and node.op != "root":
            node.meta.setdefault(KEY, passed)
            node.meta.setdefault(CALL, call)
            node = node._prev

    # -- sizes read off tensors ------------------------------------------------------------------------------------

    def _read(self, tracer: Any, tensor: Any, value: Any, args: Any, kwargs: Any) -> Any:
        """A size read by the user's code is tracked; the tracing machinery gets plain ints."""
        if not user_place() or _node(tracer, tensor) is None:
            return value

        def track(d: int) -> Any:
            found, n = self._dim(tracer, tensor, d), tensor.size(d)
            assert found is not None
            return n if is_open(n) else TrackedInt(int(n), found)

        with torch._C.DisableTorchFunction():
            if isinstance(value, int):
                return track(untracked(args[0] if args else kwargs["dim"]))
            return torch.Size([track(d) for d in range(len(value))])

    def _dim(self, tracer: Any, tensor: Any, d: int) -> Size | None:
        node = _node(tracer, tensor)
        return None if node is None else Size("size", (self._id(node), d % max(1, tensor.dim())))

    def _elements(self, tracer: Any, tensor: Any, value: int) -> int:
        if not user_place():
            return value
        found: Any = None
        for d in range(tensor.dim()):
            size = self._dim(tracer, tensor, d)
            if size is None or is_open(value):
                return value
            found = size if found is None else Size("*", (found, size))
        return value if found is None else TrackedInt(int(value), found)


class _Unexplained(TorchDispatchMode):
    """Notices operations that run outside of any call that the recorder has seen."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.recorder.opaque |= not self.recorder._calling
        return func(*args, **(kwargs or {}))


def _latest(mode: Any) -> Any:
    """The latest node of the graph that is being traced."""
    return None if mode is None else mode.tracer.graph._root._prev


def _node(tracer: Any, tensor: Any) -> Any:
    """The traced node that made a tensor; None for one from outside."""
    if not isinstance(tensor, torch.Tensor):
        return None
    slot = get_proxy_slot(tensor, tracer, None)
    return getattr(getattr(slot, "proxy", slot), "node", None)


def _tensors(out: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)] if out is not None else []


def _title(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return f"{func.__self__.__name__}.{name}" if name in ("__get__", "__set__") else name


_open_in: dict[int, int] = {}  # thread -> how often it opened the functions


@contextlib.contextmanager
def python_functions_open() -> Iterator[None]:
    """Let functions of torch.nn.functional that are written in Python run their bodies under a function mode.

    They would otherwise hand themselves to the mode as one call, and the sizes used within would stay unseen. Other
    threads find them as ever.
    """
    thread = threading.get_ident()
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")

    def opened(f: Callable[..., bool]) -> Callable[..., bool]:
        return lambda *args: False if threading.get_ident() in _open_in else f(*args)

    patch = contextlib.nullcontext() if _open_in else replaced(torch.nn.functional, names, opened)
    with patch:
        _open_in[thread] = _open_in.get(thread, 0) + 1
        try:
            yield
        finally:
            _open_in[thread] -= 1
            if not _open_in[thread]:
                del _open_in[thread]
