"""Survey: which layers a model calls, in which order, and which of them can be repaired."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..calls import EMBEDDING, NORM, LayerCall, watched
from .measure import bytes_in


@dataclass(frozen=True)
class Seen:
    """A call of a layer, without its tensors."""

    kind: str
    weight: str
    bias: str
    nr: int
    out_dim: int
    groups: int

    @classmethod
    def of(cls, call: LayerCall) -> Seen:
        """What there is to know of a call."""
        return cls(call.kind, call.weight, call.bias, call.nr, call.out_dim, call.groups)


class _Uses(TorchFunctionMode):
    """Counts how often each parameter goes into a function that gives tensors."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.by: dict[str, Counter[str]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = str(getattr(func, "__name__", func))
        tensors = any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(found))
        if tensors and name not in _OF_FORM_ALONE and not (name == "to" and id(args[0]) not in self.names):
            for x in pytree.tree_leaves((args, kwargs)):
                if id(x) in self.names:
                    self.by.setdefault(self.names[id(x)], Counter())[name] += 1
        return found


_OF_FORM_ALONE = {"type_as", "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "full_like"}
_OF_FORM_ALONE |= {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}


@dataclass
class Survey:
    """The calls of layers in each batch; of the first also what else parameters are used for, and how large it is."""

    calls: list[list[Seen]] = field(default_factory=list)
    uses: dict[str, Counter[str]] = field(default_factory=dict)
    largest: int = 0  # bytes of the input and output of one call
    stateful: bool = False  # whether a forward leaves something behind in its modules

    @contextlib.contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Within it a forward is written down."""
        found: list[Seen] = []

        def after(call: LayerCall) -> None:
            if call.weight:
                found.append(Seen.of(call))
                self.largest = max(self.largest, bytes_in((call.x, call.y)))

        with contextlib.ExitStack() as stack:
            first = not self.calls
            uses = _Uses({id(p): name for name, p in model.named_parameters()})
            before = _attributes(model) if first else []
            if first:
                stack.enter_context(uses)
            stack.enter_context(watched(model, after=after))
            yield
            if first:
                self.uses, self.stateful = uses.by, not _same(before, _attributes(model))
        self.calls.append(found)

    @property
    def alike(self) -> bool:
        """Whether all batches make the same calls."""
        return all(calls == self.calls[0] for calls in self.calls)


def _attributes(model: nn.Module) -> list[Any]:
    """What modules hold besides parameters and submodules, containers with their contents."""
    found: list[Any] = []
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules") and not name.endswith("_hooks"):
                found += [value, *(value.values() if type(value) is dict else value if type(value) is list else ())]
    return [(x, x._version if isinstance(x, torch.Tensor) and not x.is_inference() else 0) for x in found]


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(x is y and v == w for (x, v), (y, w) in zip(a, b, strict=True))


@dataclass
class Task:
    """A layer to be repaired: its weight, the bias that is solved with it ("" for none), and how often it is called.

    `varies`: batches differ in that.
    """

    weight: str
    bias: str
    calls: int
    varies: bool = False


def tasks_of(model: nn.Module, survey: Survey, teacher: Survey) -> tuple[list[Task], dict[str, str]]:
    """The layers to be repaired, in the order of their last calls, and why the others are left."""
    named = dict(model.named_parameters())
    by_weight: dict[str, list[Seen]] = {}
    for seen in survey.calls[0]:  # the last call counts
        by_weight[seen.weight] = [*by_weight.pop(seen.weight, []), seen]
    biases = Counter(bias for calls in by_weight.values() for bias in {seen.bias for seen in calls} if bias)
    tasks, left = [], {}
    for name, calls in by_weight.items():
        if {seen.kind for seen in calls} <= {EMBEDDING, NORM}:
            continue
        if why := _reason(name, calls, survey, teacher) or ("" if named[name].ndim > 1 else "its weight is a vector"):
            left[name] = why
            continue
        bias = calls[0].bias if len({seen.bias for seen in calls}) == 1 else ""
        alone = biases[bias] == 1 and sum(survey.uses.get(bias, Counter()).values()) <= len(calls)
        varies = any(sum(seen.weight == name for seen in batch) != len(calls) for batch in survey.calls)
        tasks.append(Task(name, bias if alone else "", len(calls), varies))
        if bias and not alone:
            left[bias] = "it is the bias of several layers"
    for name, p in named.items():
        if p.ndim > 1 and name not in by_weight and p.is_floating_point():
            left[name] = _unseen(survey.uses.get(name))
    return tasks, left


def _reason(name: str, calls: list[Seen], survey: Survey, teacher: Survey) -> str:
    """Why a layer cannot be repaired, "" if it can."""
    kinds = dict.fromkeys(seen.kind for seen in calls)
    others = [seen for seen in teacher.calls[0] if seen.weight == name]
    if len(kinds) > 1:
        return f"its weight is tied: {' and '.join(kinds)}"
    if len({(seen.out_dim, seen.groups) for seen in calls}) > 1:
        return "its weight is tied: layers that read it in different ways"
    if (n := sum(survey.uses.get(name, Counter()).values())) > len(calls):
        return f"its weight is tied: it goes into {n - len(calls)} more functions ({', '.join(survey.uses[name])})"
    if [(s.kind, s.out_dim, s.nr) for s in calls] != [(s.kind, s.out_dim, s.nr) for s in others]:
        return "the teacher does not call it in the same way"
    return ""


def _unseen(uses: Counter[str] | None) -> str:
    if not uses:
        return "it is never called"
    return f"it is the weight of no linear map: it goes into {', '.join(uses)}"
