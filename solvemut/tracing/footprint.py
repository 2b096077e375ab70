"""The footprint of a model: a forward on fake tensors is watched for when the memory of each tensor comes and goes.

Python lets a tensor go when nobody refers to it any more: a layer's input is there until its forward returns, a
residual until it is added, what a kernel makes besides its result until it is done. So what a forward holds is not read
off the order of operations, it is observed, from one operation of torch's dispatcher to the next. A second run, in
train mode and with gradients, tells what autograd keeps.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import RequestError, SolvemutError
from ..trace import Call, Footprint, Held, Ref, Trace
from .examples import Example
from .export import fake_run
from .recording import Recorder


@dataclass
class _Storage:
    """Memory that one tensor or several share."""

    shape: tuple[int, ...]  # of the first of them
    itemsize: int
    nbytes: int
    call: int  # in which it came
    born: int
    dies: int = -1
    tensors: int = 0
    owner: tuple[int, int] | None = None  # the call, and the result of it, that has its shape
    weight: bool = False
    given: bool = False  # an input of the forward


class _Watch(Recorder):
    """Records the calls, and when the memory of each tensor comes and goes; time is counted in operations."""

    def __init__(self) -> None:
        super().__init__(tracked=False)
        self._clear()

    def _clear(self) -> None:
        self.time = 0
        self.storages: list[_Storage] = []
        self.saved: list[tuple[int, torch.Tensor]] = []
        self.call_at: list[int] = []  # by operation the call that it is part of
        self.there: dict[int, _Storage] = {}  # by address
        self._tensors: set[int] = set()
        self._weights: set[Ref] = set()

    def _begin(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._clear()
        super()._begin(model, args, kwargs)

    def watch(self) -> AbstractContextManager[Any]:
        return _Operations(self)

    def _name(self, x: torch.Tensor, name: str | None = None) -> str:
        found = super()._name(x, name)
        if name is not None:
            storage = self.there[_address(x)]
            storage.given |= name.startswith("input ")
            storage.weight |= not storage.given
            self._weights |= {Ref(found)} if storage.weight else set()
        return found

    def _logged(self, func: Any, args: Any, kwargs: Any, tracer: Any) -> Any:
        """A call, unless it only counts how often a layer was trained."""
        before = len(self.calls)
        out = super()._logged(func, args, kwargs, tracer)
        if len(self.calls) > before and func is torch.Tensor.add_ and self.calls[-1].args[0] in self._weights:
            self.calls.pop()
        return out

    def _hold(self, x: torch.Tensor) -> None:
        if id(x) in self._tensors:
            return
        address = _address(x)
        if address not in self.there:
            size, call = x.untyped_storage().nbytes(), len(self.calls)
            self.there[address] = _Storage(tuple(x.shape), x.element_size(), size, call, self.time)
            self.storages.append(self.there[address])
        self.there[address].tensors += 1
        self._tensors.add(id(x))
        weakref.finalize(x, self._gone, id(x), address, self.there[address])

    def _gone(self, number: int, address: int, storage: _Storage) -> None:
        self._names.pop(number, None)
        self._tensors.discard(number)
        storage.tensors -= 1
        if not storage.tensors:
            storage.dies = self.time - 1
            self.there.pop(address, None)

    def _results(self, leaves: Sequence[torch.Tensor], tracer: Any) -> tuple[Any, ...]:
        found = super()._results(leaves, tracer)
        for j, x in enumerate(leaves):
            storage = self.there[_address(x)]
            if storage.owner is None and not (storage.weight or storage.given) and x.nbytes == storage.nbytes:
                storage.owner = (len(self.calls), j)
        return found

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Autograd keeps a tensor."""
        self.saved.append((len(self.calls), x))
        return x

    def operation(self, out: Any) -> None:
        """The dispatcher has run an operation."""
        for x in pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._hold(x)
        self.call_at.append(len(self.calls))
        self.time += 1


class _Operations(TorchDispatchMode):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._watch.operation(out)
        return out


class Observer:
    """Observes a model when it is first asked to, and remembers what it found: sizes may change afterwards."""

    def __init__(self, removable: Callable[[Any], Any] | None = None) -> None:
        self._found: Footprint | None = None
        self.removable = removable  # the branches of a graph that may go: a later step finds them

    def again(self) -> Observer:
        """One that has not looked yet."""
        return Observer(self.removable)

    def __call__(self, model: nn.Module, examples: Sequence[Example], trace: Trace) -> Footprint:
        if self._found is None:
            self._found = footprint(model, examples, trace)
        return self._found


def footprint(model: nn.Module, examples: Sequence[Example], trace: Trace) -> Footprint:
    """What the first of some calls holds and keeps. Raises RequestError if it does not run on fake tensors."""
    watch = _watched(model, examples[0])
    foretold, calls = trace.foretold(), _calls(trace, 0, watch)
    if foretold is None or calls is None or not all(map(Call.agrees, foretold[0], watch.calls)):
        raise RequestError(
            f"what this {trace.root} holds in memory cannot be told: the calls that its forward makes are not those "
            "that were captured (the model was changed since, or has hooks, or takes arguments that no text describes)"
        )
    held = [_held(s, calls, trace, watch.time) for s in watch.storages if not s.weight and s.nbytes]
    found = Footprint(tuple(held), tuple(_makes(calls[min(k, len(calls) - 1)]) for k in watch.call_at))
    try:
        return replace(found, kept=_kept(model, examples, trace))
    except SolvemutError as e:
        return replace(found, why=str(e))


def _watched(model: nn.Module, example: Example, gradients: bool = False) -> _Watch:
    watch = _Watch()
    try:
        if gradients:
            with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda x: x):
                fake_run(model, example.in_training(), watch, gradients=True)
        else:
            fake_run(model, example, watch)
    except SolvemutError as e:
        raise RequestError(f"memory is counted by a run on fake tensors, which fails: {e}") from None
    return watch


def _calls(trace: Trace, k: int, watch: Recorder) -> Sequence[Call] | None:
    """The calls of the trace, if those watched are the same functions in the same order."""
    known = trace.calls[k] if k < len(trace.calls) else ()
    same = [c.func for c in known] == [c.func for c in watch.calls]
    return known if known and same else None


def _makes(call: Call) -> str:
    return next((o for o in call.outs if isinstance(o, str)), "")


def _held(storage: _Storage, calls: Sequence[Call], trace: Trace, end: int) -> Held:
    """Memory with the value that has its size: a result of a call, or what the call makes or reads besides."""
    dies = storage.dies if storage.dies >= 0 else end - 1
    found = Held("", storage.itemsize, storage.nbytes, storage.born, dies)
    if storage.given:
        return found
    if storage.owner is None:
        value, dims = _alike(trace, calls[min(storage.call, len(calls) - 1)], storage.shape)
        return replace(found, value=value, dims=dims)
    k, j = storage.owner
    value = calls[k].outs[j]
    return replace(found, value=value) if isinstance(value, str) else found


def _alike(trace: Trace, call: Call, shape: tuple[int, ...]) -> tuple[str, int | None]:
    """A value that a call makes or reads with as many elements, in all its dims or in some leading ones.

    A mask has the shape of what it is for, statistics that of its batch and channels. "" if nothing fits.
    """
    made = [o for o in call.outs if isinstance(o, str)]
    read = [r for o in made for r in trace.node(o).refs() if r not in trace.inputs]
    values, n = list(dict.fromkeys((*made, *read))), math.prod(shape)
    if (same := next((v for v in values if trace.shape(v) == shape), None)) is not None:
        return same, None
    sizes = [(v, d) for v in values for d in range(len(trace.shape(v)), 0, -1) if math.prod(trace.shape(v)[:d]) == n]
    return next(iter(sorted(sizes, key=lambda x: len(trace.shape(x[0])) - x[1])), ("", None))


def _kept(model: nn.Module, examples: Sequence[Example], trace: Trace) -> tuple[Held, ...]:
    """What autograd keeps of a forward in train mode, each memory once."""
    watch = _watched(model, examples[0], gradients=True)
    order = [0, *(k for k, e in enumerate(examples) if e == examples[0].in_training())]
    calls = next((c for k in order if (c := _calls(trace, k, watch)) is not None), None)
    if calls is None:
        raise RequestError("in train mode the forward makes other calls than those captured")
    found: dict[int, Held] = {}
    for k, x in watch.saved:
        address = _address(x)
        storage = watch.there.get(address)
        if storage is None:  # a copy that autograd made
            storage = _Storage(tuple(x.shape), x.element_size(), x.untyped_storage().nbytes(), k, watch.time)
        if not storage.weight:
            found.setdefault(address, _held(storage, calls, trace, watch.time))
    return tuple(found.values())


def _address(x: torch.Tensor) -> int:
    return int(x.untyped_storage()._cdata)
