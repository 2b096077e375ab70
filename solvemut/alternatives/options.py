"""Options: what a caller offers for a layer, checked and tried in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..arguments import near, number, shown, whole
from ..building import factored, matrix_of
from ..edits import GIVEN, Substitute
from ..errors import RequestError
from ..graph import Graph, Vertex, inside
from ..remodel import why_not
from ..requests import Switch
from .variants import values_in

COUNTED = ("flops", "params", "weight_bytes", "latency")  # costs that can be told where a layer has alternatives


@dataclass(frozen=True, eq=False)
class Alternative:
    """A layer's alternative: a module in its place, or with `costs` alone the layer itself at other costs.

    `value` is what is gained or, below zero, lost with it, on the scale of the values; None: they see data, and measure
    it. `costs` are shares of what the layer costs as it is, at every size, by resource: {"weight_bytes": 0.25}.
    """

    module: nn.Module | None = None
    value: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.module is not None and not isinstance(self.module, nn.Module):
            raise RequestError(f"Alternative({shown(self.module)}): give a torch.nn.Module, or value= and costs=")
        _check(self.value, self.costs)
        if self.module is None and (self.value is None or not self.costs):
            raise RequestError("Alternative: without a module it needs value= and costs=; None is the layer as it is")


@dataclass(frozen=True, eq=False)
class LowRank:
    """A linear layer or ungrouped convolution as two with `rank` channels between, by singular value decomposition.

    Where the values see data, the outputs on that data are kept as well as that rank can; else the weights are. `value`
    and `costs` are those of an `Alternative`; without a value it is measured, or where the values are `retention` it is
    the logarithm of the share of the weight's energy that stays.
    """

    rank: int
    value: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole(self.rank, f"LowRank({shown(self.rank)})", least=1)
        _check(self.value, self.costs)


def _check(value: Any, costs: Any) -> None:
    if value is not None:
        number(value, f"value={shown(value)}", "what is gained, or below zero what is lost")
    if not isinstance(costs, Mapping) or not all(isinstance(k, str) for k in costs):
        raise RequestError(f"costs={shown(costs)}: give shares of the layer's costs by resource")
    for name, share in costs.items():
        if name not in COUNTED:
            raise RequestError(f"costs={{{name!r}: ...}}: there are {', '.join(COUNTED)}")
        if number(share, f"costs={{{name!r}: {shown(share)}}}", "give a share of what the layer costs") < 0:
            raise RequestError(f"costs={{{name!r}: {shown(share)}}}: a share is at least 0")


Given = None | nn.Module | Alternative | LowRank


@dataclass(frozen=True, eq=False)
class Choice:
    """A layer, the options that it has, and what runs in it now: nodes and parameters by value name."""

    path: str
    options: Mapping[str, Given]
    values: frozenset[str]

    def switch(self, option: str) -> Switch:
        """On where that option is taken."""
        return Switch(f"{self.path}: {option}", now=self.options[option] is None)

    @property
    def own(self) -> Switch:
        """On where the layer is as it is."""
        name = next((k for k, v in self.options.items() if v is None), None)
        return self.switch(name) if name is not None else Switch(f"{self.path}: as it is", now=False)


def choice_of(graph: Graph, target: Any, options: Any, shapes: list[tuple[int, ...]]) -> Choice:
    """What `Problem.choose` is told, checked: each module is tried in its place, for outputs of these shapes.

    Of several that are of low rank one is tried: they run the same.
    """
    path = target.name if isinstance(target, Vertex) else target
    modules = dict(graph.model.named_modules())
    if not isinstance(path, str) or path not in modules or not path:
        hint = near(path, list(modules)) if isinstance(path, str) else []
        meant = f"; did you mean {' or '.join(map(repr, hint))}?" if hint else ""
        raise RequestError(f"choose({shown(target)}): this model has no module of that name{meant}")
    if not isinstance(options, Mapping) or not options or not all(isinstance(k, str) and k for k in options):
        raise RequestError(f"choose({path!r}): give a dict of options by name, not {shown(options)}")
    if sum(v is None for v in options.values()) > 1:
        raise RequestError(f"choose({path!r}): just one option is the layer as it is (None)")
    names = [k for k, m in graph.model.named_modules(remove_duplicate=False) if m is modules[path]]
    if len(names) > 1:
        raise RequestError(f"choose({path!r}): the module is there under other names too: {', '.join(names[:4])}")
    if not inside(graph.trace, [path])[0]:
        raise RequestError(f"choose({path!r}): the captured forward does not run it")
    found = Choice(path, dict(options), values_in(graph, [path]))
    tried = False
    for name, given in options.items():
        if not isinstance(given, Given):
            raise RequestError(
                f"choose({path!r}): {name!r} is {shown(given)}; give None, a module, an Alternative or a LowRank"
            )
        module = _tried(found, modules[path], name) if isinstance(given, LowRank) else module_of(given)
        if module is None or (tried and isinstance(given, LowRank)):
            continue
        tried = tried or isinstance(given, LowRank)
        if why := why_not(graph, [Substitute(path, name, GIVEN, given=module)], shapes):
            raise RequestError(f"choose({path!r}): with {name!r} in its place the model does not run: {why}")
    return found


def module_of(given: Given) -> nn.Module | None:
    """The module that a caller gave."""
    return given.module if isinstance(given, Alternative) else given if isinstance(given, nn.Module) else None


def _tried(choice: Choice, layer: nn.Module, name: str) -> nn.Module:
    """A layer of low rank with no numbers in it that mean something."""
    rank: int = choice.options[name].rank  # type: ignore[union-attr, assignment]
    try:
        return factored(layer, rank, torch.zeros(matrix_of(layer).shape[0], rank))
    except RequestError as e:
        raise RequestError(f"choose({choice.path!r}): {name!r}: {e}") from None
