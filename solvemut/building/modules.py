"""Modules that graphs are made of: the model itself, and operations as modules, so that they keep their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.fx.immutable_collections import immutable_list
from torch.fx.node import map_aggregate

from ..arguments import shown
from ..errors import RequestError

_STATE = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "training")


class GraphModel(torch.fx.GraphModule):
    """A model whose forward is a torch.fx graph; a call with too few or too many inputs names both counts.

    Its modules stay in the order in which they were given, whatever the graph runs first, also in copies and pickles.
    """

    def __init__(self, root: Any, graph: torch.fx.Graph, class_name: str = "GraphModel", state: Any = None) -> None:
        super().__init__(root, graph, class_name)
        if state is not None:
            vars(self).update({k: state[k] for k in _STATE})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            self._check_inputs(len(args) + len(kwargs))
        return super().__call__(*args, **kwargs)

    def _check_inputs(self, given: int) -> None:
        places = list(takewhile(lambda n: n.op == "placeholder", self.graph.nodes))
        needed = sum(not n.args for n in places)
        if not needed <= given <= len(places) and not any(str(n.target).startswith("*") for n in places):
            count = str(needed) if needed == len(places) else f"{needed} to {len(places)}"
            names = ", ".join(str(n.target) for n in places)
            raise RequestError(
                f"{type(self).__name__} takes {count} input{'s' * (count != '1')}{names and f' ({names})'}, not {given}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Node by node: torch.fx would run the forward on proxies again, and what it makes of numbers be a constant."""
        place: dict[Any, Any] = {n: Place(k) for k, n in enumerate(self.graph.nodes)}

        def said(x: Any) -> Any:
            return map_aggregate(x, lambda a: place.get(a, a) if isinstance(a, torch.fx.Node) else a)

        nodes = [(n.op, n.name, n.target, _plain(said(n.args)), _plain(said(n.kwargs))) for n in self.graph.nodes]
        return _restored, (type(self).__name__, {k: vars(self)[k] for k in _STATE}, nodes)

    def _deepcopy_init(self) -> Callable[..., None]:
        def init(copied: GraphModel, root: Any, graph: torch.fx.Graph) -> None:
            GraphModel.__init__(copied, root, graph, type(self).__name__, vars(root))

        return init


@dataclass(frozen=True)
class Place:
    """A node in a pickle: the number of its place."""

    number: int


def _plain(x: Any) -> Any:
    """Lists and dicts of torch.fx as Python's own."""
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if type(x) in (tuple, immutable_list, list):
        return (tuple if type(x) is tuple else list)(_plain(v) for v in x)
    return x


def _restored(name: str, state: dict[str, Any], nodes: list[tuple[Any, ...]]) -> GraphModel:
    graph, made = torch.fx.Graph(), list[torch.fx.Node]()
    for op, own, target, args, kwargs in nodes:
        args, kwargs = (
            map_aggregate(x, lambda a: made[a.number] if isinstance(a, Place) else a) for x in (args, kwargs)
        )
        made.append(graph.create_node(op, target, args, kwargs, own))  # type: ignore[arg-type]
    root = nn.Module()
    vars(root).update(state)
    return GraphModel(root, graph, name, state)


@dataclass(frozen=True)
class Slot:
    """The place of an input among the arguments of a function."""

    number: int


def filled(x: Any, inputs: tuple[Any, ...]) -> Any:
    """Arguments with inputs at their places."""
    if isinstance(x, Slot):
        return inputs[x.number]
    if isinstance(x, Mapping):
        return {k: filled(v, inputs) for k, v in x.items()}
    if type(x) in (tuple, list):
        return type(x)(filled(v, inputs) for v in x)
    return x


class Apply(nn.Module):
    """A function of tensors as a module.

    >>> Apply(torch.flatten, (Slot(0), 1))(torch.ones(2, 3, 4)).shape
    torch.Size([2, 12])
    """

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.function, self.arguments, self.keywords = function, args, dict(kwargs or {})

    def forward(self, *inputs: Any) -> Any:
        return self.function(*filled(self.arguments, inputs), **filled(self.keywords, inputs))

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", shown(self.function))


class Concat(nn.Module):
    """Tensors one after the other along a dim."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat(inputs, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class ByMode(nn.Module):
    """A plain value that is another in train mode than in eval mode."""

    def __init__(self, in_training: Any, in_eval: Any) -> None:
        super().__init__()
        self.in_training, self.in_eval = in_training, in_eval

    def forward(self) -> Any:
        return self.in_training if self.training else self.in_eval

    def extra_repr(self) -> str:
        return f"{shown(self.in_training)} in train mode, {shown(self.in_eval)} in eval mode"
