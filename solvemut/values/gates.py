"""Gates: the loss with a unit closed, to second order, example by example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import batches as runs
from ..arguments import names as given_names
from ..arguments import one_of
from ..calls import EMBEDDING, MAPS, NORM, LayerCall, watched
from ..errors import ValuesError
from ..graph import Graph
from ..precision import wide
from ..progress import counted
from .dims import unit_dims
from .metric import Metric

FIRST, SECOND, MIXED = "first", "second", "mixed"  # where the examples of a batch stand in a tensor: its dim
Places = dict[int, tuple[Any, np.ndarray, int, Any]]  # by id of a tensor: it, its units and their dim, its hook


def fisher(batches: Iterable[Any], loss: runs.Loss, reduction: str = "mean", progress: bool | None = None) -> Metric:
    """Half the mean square of what closing a unit's gate does to the loss of one example, to first order.

    A gate is a factor of 1 on every place where the unit leaves its producers, after the norm where nothing but that
    reads them; a unit of a residual stream has one at each addend. With s the sum over places and positions of
    activation times gradient of an example's loss, the worth is mean(s^2) / 2, an estimate of how much the loss rises
    without the unit: Theis et al., arXiv 1801.05787; Liu et al., arXiv 2108.00708. `reduction` is how the loss adds up
    the examples of a batch, "mean" or "sum". What was found is kept while the weights stay.

    >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    >>> fisher([(x, y)], nn.functional.cross_entropy).name
    'fisher(batches, loss)'
    """
    name = "fisher(batches, loss)"
    checked(name, batches, loss)
    one_of(reduction, "reduction", ("mean", "sum"), ValuesError)
    batches = runs.again(batches)
    score = partial(_fisher, batches=batches, loss=loss, reduction=reduction, progress=progress)
    return Metric(name, score, keeps=True, data=(batches, loss))


def checked(name: str, batches: Any, loss: Any) -> None:
    """Raises ValuesError unless there are batches, and a loss."""
    if loss is None:
        raise ValuesError(f"{name}: give a loss, a function of output and target, or of model and batch")
    runs.check(name, batches, loss)


def _fisher(
    model: nn.Module, graph: Graph, batches: Iterable[Any], loss: runs.Loss, reduction: str, progress: bool | None
) -> np.ndarray:
    units, forks = makers_of(graph), forks_of(graph)
    layout: dict[tuple[str, int], str] | None = None
    total, n = torch.zeros(graph.coupling.n_units, dtype=torch.float64), 0
    with runs.evaluated(model, gradients=True):
        for batch in runs.some(counted(batches, "fisher", progress)):
            if layout is None:
                layout = layouts(model, batch, loss)
            for part in runs.singles([batch]) if MIXED in layout.values() else [batch]:
                size, part = runs.examples_in(part), runs.plain(part)
                found = _of_batch(model, part, loss, (units, forks), layout, total.shape[0])
                total += 0.5 * (found * (size if reduction == "mean" else 1)).square().sum(0).cpu()
                n += size
    return (total / n).numpy()


def _of_batch(
    model: nn.Module,
    batch: Any,
    loss: runs.Loss,
    makers: tuple[Mapping[str, np.ndarray], set[str]],
    layout: Mapping[tuple[str, int], str],
    n_units: int,
) -> torch.Tensor:
    """[examples, units]: activation times gradient, summed over places and positions."""
    size, (units, forks) = runs.examples_in(batch), makers
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total = torch.zeros(size, n_units, dtype=wide(torch.zeros(0, device=device)).dtype)
    places: Places = {}

    def collect(value: torch.Tensor, of: np.ndarray, axis: int, how: str, grad: torch.Tensor) -> None:
        c = (wide(value) * wide(grad)).movedim(axis, -1)
        c = c.reshape(-1, size, c.shape[-1]).sum(0) if how == SECOND else c.reshape(size, -1, c.shape[-1]).sum(1)
        total.index_add_(1, torch.as_tensor(of), c.cpu())

    def look(call: LayerCall) -> None:
        y, x = call.y, call.x
        if not (isinstance(y, torch.Tensor) and y.requires_grad):
            return
        if call.kind == NORM and id(x) in places and places[id(x)][0] is x:  # the gate stands behind the norm
            _, of, _, handle = places.pop(id(x))
            handle.remove()
            how = layout.get(call.key, FIRST)
        elif call.kind in (*MAPS, EMBEDDING) and call.weight in units:
            of, how = units[call.weight], layout.get(call.key, FIRST)
        else:
            return
        hook = y.register_hook(partial(collect, y.detach().clone(), of, call.axis, how))  # relu_ may write over it
        if call.weight not in forks:
            places[id(y)] = (y, of, call.axis, hook)

    model.zero_grad(set_to_none=True)
    with watched(model, after=look):
        found = runs.value_of(loss, model, batch)
    runs.backward(found)
    return total


def makers_of(graph: Graph) -> dict[str, np.ndarray]:
    """By name of a weight the unit classes of its outputs, in order."""
    return {d.name: d.units.astype(np.int64) for d in unit_dims(graph) if d.makes and len(d.tensor) > 1}


def forks_of(graph: Graph) -> set[str]:
    """Names of weights whose outputs have several readers: a gate behind one of these would leave the others open."""
    trace = graph.coupling.trace
    readers = Counter([*trace.outputs, *(ref for node in trace.nodes for ref in set(node.refs()))])
    forks = [node for node in trace.nodes if readers[node.name] > 1]
    return {trace.params[ref].name for node in forks for ref in node.refs() if ref in trace.params}


def layouts(model: nn.Module, batch: Any, loss: runs.Loss | None) -> dict[tuple[str, int], str]:
    """How each call of a layer keeps the examples of a batch apart, found by running three in two orders.

    Some attention has its batch in the second dim, and layers may see both dims as one.
    """
    few = runs.by_example(batch, lambda x: x[:3])
    size = runs.examples_in(few)
    if size < 2:
        return {}
    seen: dict[tuple[str, int], torch.Tensor] = {}
    found: dict[tuple[str, int], str] = {}

    def keep(call: LayerCall) -> None:
        if call.y is not None:
            seen[call.key] = call.y.detach().movedim(call.axis, -1)

    def compare(call: LayerCall) -> None:
        if call.y is not None and call.key in seen:
            found[call.key] = _layout(seen.pop(call.key), call.y.detach().movedim(call.axis, -1), size)

    with torch.no_grad():
        for look, examples in ((keep, few), (compare, runs.by_example(few, lambda x: x.flip(0)))):
            with watched(model, after=look):
                runs.run(model, examples, loss)
    return found


def _layout(a: torch.Tensor, b: torch.Tensor, size: int) -> str:
    if a.shape != b.shape or a.numel() % (size * a.shape[-1]):
        return MIXED
    scale = float(a.abs().max()) * 1e-3 + 1e-12
    for how, shape, dim in ((FIRST, (size, -1, a.shape[-1]), 0), (SECOND, (-1, size, a.shape[-1]), 1)):
        if float((a.reshape(shape).flip(dim) - b.reshape(shape)).abs().max()) <= scale:
            return how
    return MIXED


# -- whole blocks ------------------------------------------------------------------------------------------------------


def bypass(
    graph: Graph,
    blocks: str | Sequence[str],
    batches: Iterable[Any],
    loss: runs.Loss,
    reduction: str = "mean",
    zeros: bool = False,
) -> dict[str, float]:
    """What bypassing whole modules would do to the loss, on the scale of `fisher`: by name mean(s^2) / 2.

    A bypassed module passes on its first input, so that s is the sum of (output - input) times the output's gradient;
    with `zeros` it gives zeros in place of its (first) output. Raises ValuesError for a module that is never called, or
    whose output has another shape than its input.
    """
    checked("bypass(blocks, batches, loss)", batches, loss)
    modules, wanted = dict(graph.model.named_modules()), given_names(blocks, "blocks")
    if missing := [b for b in wanted if b not in modules]:
        raise ValuesError(f"bypass: there is no module {missing[0]!r}")

    def stand_in(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> Any:
        return torch.zeros((), dtype=out.dtype, device=out.device).expand_as(out) if zeros else (*args, None)[0]

    return instead(graph, {b: (b, stand_in) for b in wanted}, batches, loss, reduction)


StandIn = Callable[[nn.Module, Any, Any, Any], Any]  # of a module, its arguments and its first output: what replaces it


def instead(
    graph: Graph,
    others: Mapping[str, tuple[str, StandIn]],
    batches: Iterable[Any],
    loss: runs.Loss,
    reduction: str = "mean",
) -> dict[str, float]:
    """What other outputs of modules would do to the loss, on the scale of `fisher`: by name mean(s^2) / 2.

    `others` has by name the path of a module, and what gives the tensor in the place of its (first) output. s is the
    sum of (output - that) times the output's gradient. Raises ValuesError for a module that is never called, or an
    output of another shape.
    """
    model, modules = graph.model, dict(graph.model.named_modules())
    total, n = dict.fromkeys(others, 0.0), 0
    sums: dict[str, Any] = {}

    def hook(name: str, stand_in: StandIn) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            with torch.no_grad():
                x = stand_in(module, args, kwargs, out)
            if not (isinstance(out, torch.Tensor) and isinstance(x, torch.Tensor) and out.shape == x.shape):
                raise ValuesError(f"{name} does not put out what another output could stand for")
            change = (out - x).detach()
            out.register_hook(
                lambda g: sums.__setitem__(
                    name, sums.get(name, 0) + (wide(change) * wide(g)).reshape(g.shape[0], -1).sum(1)
                )
            )

        return look

    handles = [
        modules[path].register_forward_hook(hook(name, other), with_kwargs=True)
        for name, (path, other) in others.items()
    ]
    try:
        with runs.evaluated(model, gradients=True):
            for batch in runs.some(batches):
                size = runs.examples_in(batch)
                sums.clear()
                model.zero_grad(set_to_none=True)
                runs.backward(runs.value_of(loss, model, runs.plain(batch)))
                if never := [b for b in others if b not in sums]:
                    raise ValuesError(f"the loss does not depend on {never[0]}, or it is never called")
                for name, s in sums.items():
                    total[name] += float((s * (size if reduction == "mean" else 1)).square().sum()) / 2
                n += size
    finally:
        for handle in handles:
            handle.remove()
    return {name: t / n for name, t in total.items()}
