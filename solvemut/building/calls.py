"""Calls: which arguments of a forward become inputs of a graph, and which are plain values that the graph holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..arguments import shown
from ..errors import CaptureError, RequestError

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class Argument:
    """One input of a graph; what may be left out has its plain value as a default."""

    name: str
    keyword: str | None  # by which the forward takes it; None: by position
    value: Any = None  # an example
    fixed: bool = False  # a plain value: the graph is only good for this one
    optional: bool = False  # the forward does without
    given: bool = True  # False: a default of the forward, which it takes itself


def arguments_of(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> list[Argument]:
    """The arguments of a call; without examples all that the forward needs is a tensor, all else has its default."""
    name = type(model).__name__
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError) as e:
        raise CaptureError(f"{name}: its forward has no signature ({e}), so its inputs are not known") from None
    examples = args is not None or kwargs is not None
    given: Mapping[str, Any] = {}
    if examples:
        args = () if args is None else tuple(args) if isinstance(args, (tuple, list)) else (args,)
        try:
            given = signature.bind(*args, **(kwargs or {})).arguments
        except TypeError as e:
            raise RequestError(f"editable: {name} cannot be called with these args and kwargs: {e}") from None
    found: list[Argument] = []
    in_line = True  # every argument so far is given by position
    for p in signature.parameters.values():
        keyword = p.name if p.kind is p.KEYWORD_ONLY or not in_line else None
        if p.kind is p.VAR_POSITIONAL:
            found += [_argument(f"{p.name}_{k}", None, x, False) for k, x in enumerate(given.get(p.name, ()))]
        elif p.kind is p.VAR_KEYWORD:
            found += [_argument(k, k, x, False) for k, x in given.get(p.name, {}).items()]
        elif p.name in given:
            found.append(_argument(p.name, keyword, given[p.name], p.default is not p.empty))
        elif p.default is p.empty:
            found.append(Argument(p.name, keyword))
        else:  # the forward takes its default itself
            in_line = False
            if isinstance(p.default, _PLAIN):
                found.append(Argument(p.name, keyword, p.default, fixed=True, given=False))
    return found


def _argument(name: str, keyword: str | None, value: Any, optional: bool) -> Argument:
    leaves = pytree.tree_leaves(value)
    if any(isinstance(x, torch.Tensor) for x in leaves):
        return Argument(name, keyword, value, optional=optional)
    if not all(isinstance(x, _PLAIN) for x in leaves):
        raise RequestError(
            f"editable: {name}={shown(value)} is neither tensors nor plain; hold it in a module around the model"
        )
    return Argument(name, keyword, value, fixed=True)


def placed(arguments: list[Argument], values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Values as the forward takes them; plain ones are those of the call."""
    found = {a: a.value if a.fixed else values[a.name] for a in arguments if a.given}
    args = tuple(x for a, x in found.items() if a.keyword is None)
    return args, {a.keyword: x for a, x in found.items() if a.keyword is not None}


def placeholders(graph: torch.fx.Graph, arguments: list[Argument]) -> dict[str, torch.fx.Node]:
    """The inputs of a graph, and checks that each is what the graph is good for."""
    last = max((k for k, a in enumerate(arguments) if not a.fixed and not a.optional), default=-1)
    nodes = {}
    for k, a in enumerate(arguments):
        default = (a.value if a.fixed else None,) if k > last else ()
        nodes[a.name] = graph.create_node("placeholder", a.name, default, name=a.name)
    for a in arguments:
        if a.fixed:
            graph.call_function(expect, (nodes[a.name], a.value, a.name))
        elif a.optional:
            graph.call_function(present, (nodes[a.name], a.name))
    return nodes


def expect(value: Any, wanted: Any, name: str) -> None:
    """An argument is the plain value that the graph was made with."""
    if not isinstance(value, torch.fx.Proxy) and (type(value) is not type(wanted) or value != wanted):
        raise RequestError(
            f"{name}={shown(value)}: this graph was made with {name}={shown(wanted)} and holds for that alone; make "
            "another with this value among the args of editable"
        )


def present(value: Any, name: str) -> None:
    """An argument that the forward could do without is given."""
    if value is None:
        raise RequestError(f"{name} is missing: this graph was made with it; make another without it")
