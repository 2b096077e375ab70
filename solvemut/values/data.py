"""Values from runs of the model on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import batches as runs
from ..arguments import flag, one_of
from ..errors import ValuesError
from ..graph import Graph, Vertex
from ..interrupts import deferred
from ..precision import wide
from .dims import over_dims, over_slices
from .metric import Metric


def taylor(
    batches: Iterable[Any],
    loss: Callable[..., torch.Tensor],
    normalize: str | None = None,
    squared: bool = False,
    each: str = "batch",
) -> Metric:
    """|sum of weight times gradient| over each slice, accumulated over batches: the first-order change of the loss.

    `loss(output, target)` returns a scalar for batches `(input, ..., target)`; a function whose first parameter is
    called model, net, module or m is given `loss(model, batch)`, whatever the batches are. With squared=True it is the
    square of the sum, averaged over batches, as eq. (8) of the paper. With each="example" every example is a batch.

    >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    >>> taylor([(x, y)], nn.functional.cross_entropy).name
    'taylor(batches, loss)'

    Molchanov et al., Importance Estimation for Neural Network Pruning,
    arXiv 1906.10771.
    """
    squared = flag(squared, "taylor(squared=...)")
    one_of(each, "each", ("batch", "example"), ValuesError)
    name = f"taylor(batches, loss{', squared=True' * squared}{', each=' + repr(each) if each != 'batch' else ''})"
    return of_data(name, partial(_taylor, squared=squared, each=each), batches, loss, normalize)


def _taylor(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    loss: Callable[..., torch.Tensor],
    squared: bool,
    each: str,
) -> np.ndarray:
    total: Any = 0
    tensors = dict(model.named_parameters(remove_duplicate=False))

    def contribution(name: str, w: torch.Tensor) -> torch.Tensor | None:
        grad = tensors[name].grad
        return None if grad is None else wide(w) * wide(grad)

    def add() -> None:
        nonlocal total
        if squared:
            total = total + over_dims(graph, lambda name: contribution(name, tensors[name].detach()), np.square)
        else:
            total = total + over_slices(model, graph, contribution, np.abs)

    n = runs.each(model, runs.singles(batches) if each == "example" else batches, loss, add)
    return np.asarray(total) / (n if squared else 1)


def of_data(
    name: str,
    score: Callable[..., np.ndarray],
    batches: Iterable[Any],
    loss: Callable[..., torch.Tensor],
    normalize: str | None,
) -> Metric:
    """A metric that runs a loss over batches."""
    if loss is None:
        raise ValuesError(f"{name}: give a loss, a function of output and target, or of model and batch")
    runs.check(name, batches, loss)
    return Metric(name, partial(score, batches=batches, loss=loss), normalize, data=(batches, loss))


def activation(batches: Iterable[Any], loss: Callable[..., torch.Tensor], normalize: str | None = None) -> Metric:
    """|mean of activation times gradient| of each unit at the layers that make it, averaged over examples and batches.

    Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, arXiv 1611.06440. The
    activation is the output of every module that makes the unit.
    """
    return of_data("activation(batches, loss)", _activation_scores, batches, loss, normalize)


def makers(model: nn.Module, graph: Graph) -> dict[str, tuple[Vertex, int]]:
    """The called modules whose output has the units that they make, and the dim of these, counted from the end.

    Calls differ in how many dims stand in front. Units that are spread over several dims are left out.
    """
    modules, found = dict(model.named_modules()), {}
    for v in graph.vertices:
        if v.makes_units and v.name in modules and v.dim is not None and v.nodes:
            shape = graph.coupling.trace.shape(v.nodes[-1])
            if shape[v.dim] == len(v.units):
                found[v.name] = (v, v.dim - len(shape))
    return found


def written_over(graph: Graph) -> set[str]:
    """What operations such as relu_ and add_ write over, as far as the trace shows."""
    found = set()
    for node in graph.coupling.trace.nodes:
        rest = node.name.removeprefix(node.op)
        if rest == "_" or rest.startswith("__"):
            found.update(list(node.refs())[:1])
    return found


def _activation_scores(
    model: nn.Module, graph: Graph, batches: Iterable[Any], loss: Callable[..., torch.Tensor]
) -> np.ndarray:
    modules = dict(model.named_modules())
    places = makers(model, graph)
    copied = written_over(graph)
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    total = np.zeros(graph.coupling.n_units)

    def collect(name: str, value: torch.Tensor, grad: torch.Tensor | None) -> None:
        if grad is not None:
            vertex, axis = places[name]
            np.add.at(total, vertex.units, position_means(value, grad, axis).abs().mean(0).cpu().numpy())

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if not (isinstance(out, torch.Tensor) and out.requires_grad):
                return
            if copied.isdisjoint(places[name][0].nodes):
                out.retain_grad()
                seen.setdefault(name, []).append(out)
            else:  # of a tensor that is written over later, this is the gradient before that
                out.register_hook(partial(collect, name, out.detach().clone()))

        return hook

    def add() -> None:
        for name, outs in seen.items():
            for out in outs:
                collect(name, out.detach(), out.grad)
        seen.clear()

    with deferred():
        try:
            for name in places:
                handles.append(modules[name].register_forward_hook(record(name)))
            n = runs.each(model, batches, loss, add)
        finally:
            for h in handles:
                h.remove()
    return total / n


def position_means(value: torch.Tensor, grad: torch.Tensor, axis: int) -> torch.Tensor:
    """[batch, units]: the mean over positions of value * gradient. The batch is dim 0, unless that is the units."""
    c = (wide(value) * wide(grad)).movedim(axis, -1)
    batch = c.shape[0] if c.ndim > 1 else 1
    return c.reshape(batch, -1, c.shape[-1]).mean(1)
