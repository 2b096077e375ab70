"""Kernel sizes of convolutions: a request becomes a plan, tried out on a copy that shares the model's other tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .apply import EDITORS, Plan
from .arguments import items, scalar, shown, whole
from .coupling import couple
from .edits import SetKernel, is_convolution
from .errors import CaptureError, RequestError, SolvemutError
from .graph import Graph, Vertex
from .plan import Convolution, kernel_parts, seen_by, taps
from .trace import Node, Ref
from .tracing import trace_examples, unwrapped

_TORCH = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class _Weight:
    """The weight of a convolution with every name it has, and every module that convolves with it, by path."""

    tensor: torch.Tensor
    names: tuple[str, ...]
    modules: dict[str, nn.modules.conv._ConvNd]


def kernel_plan(
    graph: Graph, target: Any, delta: Any = None, size: Any = None, padding: Any = None, drawn: bool = False
) -> Plan:
    """The plan that gives a convolution another kernel; see `Mutator.resize_kernel`. Changes nothing.

    With `drawn` the new taps hold what an initialiser draws instead of zeros.

    >>> from solvemut import capture
    >>> graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), torch.ones(1, 3, 6, 6))
    >>> plan = kernel_plan(graph, "0", delta=(2, -2))
    >>> plan.edits[0].describe(), plan.indices["0.weight"][2], plan.alters
    ('0: kernel 3x3 (padding 1x1) -> 5x1 (padding 2x0)', [-1, 0, 1, 2, -1], ('taps of 0 go',))
    """
    if graph.model is None:
        raise RequestError("resize_kernel needs the model of the graph, and this one has none; capture it again")
    model = unwrapped(graph.model)
    path, conv = _convolution(graph, model, target)
    weight = _weight(model, path, conv)
    old = _of(path, conv)
    new = _sizes(path, old.size, delta, size)
    paddings = {p: _of(p, m).following(new) for p, m in weight.modules.items() if p != path}
    paddings[path] = old.following(new) if padding is None else _padding(old, padding)
    edits = [SetKernel(p, (c := _of(p, m)).now, c.kernel(new, paddings[p])) for p, m in weight.modules.items()]
    maps = {d: taps(_means(weight.tensor, d), n) for d, n in enumerate(new, 2)}
    maps = {d: index for d, index in maps.items() if index != list(range(weight.tensor.shape[d]))}
    after = _tried(graph, model, weight, edits, new)
    why = _alters(graph, after, weight, edits, drawn)
    fill = "drawn" if drawn else 0.0
    return Plan(
        status="optimal",
        objective=0.0,
        bound=0.0,
        gap=0.0,
        seconds=0.0,
        solver="no solver",
        notes=after.notes,
        graph=after,
        alters=why,
        **kernel_parts(graph, after, edits, weight.names if maps else (), maps, fill),
    )


# -- what is asked for -------------------------------------------------------------------------------------------------


def _convolution(graph: Graph, model: nn.Module, target: Any) -> tuple[str, nn.modules.conv._ConvNd]:
    """The module of a vertex, with its path."""
    vertex = graph[target.name if isinstance(target, Vertex) else target]
    nodes = [graph.trace.node(n) for n in vertex.nodes]
    convolutions = [n for n in nodes if is_convolution(n)]
    paths = list(dict.fromkeys(_home(graph, model, n) for n in convolutions))
    if not paths:
        kinds = [type(m).__name__ for n in nodes if (m := _module(model, n.module)) is not None and n.module]
        raise RequestError(f"resize_kernel: {vertex.name!r} is no convolution, but {kinds[0] if kinds else vertex.op}")
    within = (convolutions[0].module, convolutions[0].module + ".")
    if len(paths) > 1 or not all(n.module == within[0] or n.module.startswith(within[1]) for n in nodes):
        inside = " or ".join(repr(p) for p in paths[:3])
        raise RequestError(f"resize_kernel: {vertex.name!r} is no single layer; name a convolution in it, as {inside}")
    module = _module(model, paths[0])
    if not isinstance(module, nn.modules.conv._ConvNd):
        raise RequestError(
            f"resize_kernel: {vertex.name!r} is a convolution without a module of its own, called in "
            f"{paths[0] or type(model).__name__}; nothing holds its kernel size and padding: use nn.Conv2d or alike"
        )
    return paths[0], module


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _home(graph: Graph, model: nn.Module, node: Node) -> str:
    """The path of the module that a convolution runs in; that of its weight, where the export's is none."""
    if _module(model, node.module) is not None:
        return node.module
    weight = node.args.get("weight")
    param = graph.trace.params.get(weight.name) if isinstance(weight, Ref) else None
    return node.module if param is None else param.name.rpartition(".")[0]


def _of(path: str, module: nn.modules.conv._ConvNd) -> Convolution:
    padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
    return Convolution(
        path, tuple(module.kernel_size), padding, tuple(module.stride), tuple(module.dilation), module.transposed
    )


def _weight(model: nn.Module, path: str, conv: nn.modules.conv._ConvNd) -> _Weight:
    """Raises RequestError where the weight is none that can get taps."""
    named = dict(model.named_parameters(remove_duplicate=False))
    name = f"{path}.weight".lstrip(".")
    if name not in named or named[name] is not conv.weight:
        raise RequestError(
            f"resize_kernel: the weight of {path!r} is computed from other parameters (by a parametrization, such as "
            "weight norm); remove that first"
        )
    names = tuple(n for n, p in named.items() if p is conv.weight)
    modules: dict[str, nn.modules.conv._ConvNd] = {}
    for owner in (path, *(n.rpartition(".")[0] for n in names)):
        module = model.get_submodule(owner)
        if not isinstance(module, nn.modules.conv._ConvNd):
            raise RequestError(f"resize_kernel: the weight of {path!r} is also that of {owner!r}, no convolution")
        if module not in modules.values():
            modules[owner] = module
    return _Weight(conv.weight, names, modules)


def _sizes(path: str, now: tuple[int, ...], delta: Any, size: Any) -> tuple[int, ...]:
    if (delta is None) == (size is None):
        raise RequestError(f"resize_kernel of {path!r}: give delta= (a change) or size=, one of them")
    if size is None:
        change = _by_dim(path, delta, "delta", len(now))
        found = tuple(a + b for a, b in zip(now, change, strict=True))
    else:
        found = _by_dim(path, size, "size", len(now))
    if min(found) < 1:
        raise RequestError(
            f"resize_kernel of {path!r}: the kernel would be {'x'.join(map(str, found))}, now "
            f"{'x'.join(map(str, now))}; it needs 1 at least in each dim"
        )
    return found


def _by_dim(path: str, x: Any, what: str, n: int, least: int | None = None) -> tuple[int, ...]:
    """An int for each spatial dim; one int stands for all."""
    where = f"resize_kernel of {path!r}: {what}={shown(x)}"
    found = None if isinstance(x, (str, bytes, dict)) or getattr(scalar(x), "ndim", 1) == 0 else items(x)
    if found is None:
        return (whole(x, where, least),) * n
    if len(found) != n:
        also = "; torch's layers pad both sides of a dim alike" if what == "padding" else ""
        raise RequestError(f"{where}: give an int, or one for each of {n} dims{also}")
    return tuple(whole(v, where, least) for v in found)


def _padding(conv: Convolution, padding: Any) -> tuple[int, ...] | str:
    if not isinstance(padding, str):
        return _by_dim(conv.name, padding, "padding", len(conv.size), least=0)
    where = f"resize_kernel of {conv.name!r}: padding={shown(padding)}"
    if padding != "same":
        raise RequestError(f"{where}: give an int, one for each dim, or 'same'")
    if conv.transposed:
        raise RequestError(f"{where}: torch has that for plain convolutions only, this one is transposed; give ints")
    if set(conv.stride) != {1}:
        raise RequestError(f"{where}: torch has that for a stride of 1 only, here it is {conv.stride}; give ints")
    return "same"


# -- what becomes of it ------------------------------------------------------------------------------------------------


def _means(weight: torch.Tensor, dim: int) -> list[float]:
    """The mean absolute weight of each slice; zeros where there are no numbers."""
    if weight.is_meta:
        return [0.0] * weight.shape[dim]
    found = weight.detach().double().abs().movedim(dim, 0).flatten(1).mean(1)
    means: list[float] = torch.nan_to_num(found).tolist()
    return means


def _tried(graph: Graph, model: nn.Module, weight: _Weight, edits: Sequence[SetKernel], size: tuple[int, ...]) -> Graph:
    """The graph of the model with the new kernels. Raises RequestError if it does not run with them."""
    other = _copy(model, weight.tensor, (*weight.tensor.shape[:2], *size))
    for edit in edits:
        EDITORS[edit.kind](other, edit, [], set())
    try:
        trace, examples = trace_examples(other, graph.examples, ("eval",))
        trace = replace(trace, notes=graph.trace.notes)
        coupling = couple(trace)
    except CaptureError as e:
        told = "; ".join(edit.describe() for edit in edits)
        raise RequestError(
            f"resize_kernel: with {told} the network does not run any more: {e.__cause__ or e}. Nothing was changed; "
            "leave out padding= so that outputs keep their sizes, or give one with which what follows fits"
        ) from e
    after = Graph(
        trace, coupling, graph.example, graph.model, tuple(examples), observe=graph.observe and graph.observe.again()
    )
    _check_foretold(after, other, edits)
    return after


def _copy(model: nn.Module, weight: torch.Tensor, shape: tuple[int, ...]) -> nn.Module:
    """The model's modules anew, over the tensors that it has, but for one of another shape."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [x for m in model.modules() for x in vars(m).values() if isinstance(x, torch.Tensor)]
    memo: dict[int, Any] = {id(t): t for t in tensors}
    new = torch.empty(shape, dtype=weight.dtype, device=weight.device)
    memo[id(weight)] = nn.Parameter(new, requires_grad=weight.requires_grad)
    try:
        return copy.deepcopy(model, memo)
    except Exception as e:
        raise RequestError(
            f"resize_kernel tries a change on a copy first, and {type(model).__name__} cannot be copied: "
            f"{type(e).__name__}: {e}"
        ) from e


def _check_foretold(after: Graph, model: nn.Module, edits: Sequence[SetKernel]) -> None:
    """Every output of these convolutions has the size that torch documents."""
    trace = after.trace
    for node in trace.nodes:
        edit = next((e for e in edits if is_convolution(node) and e.module == _home(after, model, node)), None)
        module: Any = None if edit is None else model.get_submodule(edit.module)
        if edit is None or type(module).forward not in [t.forward for t in _TORCH]:
            continue
        n, k, conv = len(edit.after.size), edit.after.size, _of(edit.module, module)
        source = node.args["input"].name
        made = next((x for x in trace.nodes if x.name == source and (x.op, x.module) == ("pad", node.module)), None)
        before = trace.shape(source if made is None else made.args["self"].name)[-n:]
        sides = conv.sides(k, edit.after.padding)
        extra = node.args.get("output_padding") or [0] * n
        wanted = tuple(
            (x - 1) * s - sum(p) + d * (k - 1) + o + 1 if conv.transposed else (x + sum(p) - d * (k - 1) - 1) // s + 1
            for x, p, k, s, d, o in zip(before, sides, k, conv.stride, conv.dilation, extra, strict=True)
        )
        if node.shape[-n:] != wanted:
            raise SolvemutError(f"{node.at()} gives {node.shape[-n:]}, foretold was {wanted}; please report this model")


def _alters(graph: Graph, after: Graph, weight: _Weight, edits: Sequence[SetKernel], drawn: bool) -> tuple[str, ...]:
    """Why outputs may not be what they were, one line each; nothing if they are."""
    if all(e.before == e.after for e in edits):
        return ()
    told = []
    for e in edits:
        module = weight.modules[e.module]
        name, pairs = e.module or type(module).__name__, list(zip(e.before.size, e.after.size, strict=True))
        if any(b < a for a, b in pairs):
            told.append(f"taps of {name} go")
        elif not _of(e.module, module).keeps(e.after.size, e.after.padding):
            told.append(f"the padding of {name} does not follow its kernel")
        if drawn and any(b > a for a, b in pairs):
            told.append(f"new taps of {name} are drawn")
        if type(module).forward not in [t.forward for t in _TORCH]:
            told.append(f"{name} has a forward of its own")
    value = next(v for v, p in graph.trace.params.items() if set(weight.names) & {p.name, *p.aliases})
    paths = [n.rpartition(".")[0] for n in weight.names]  # a module may have several, and run under yet another
    paths += [n.module for n in graph.trace.nodes if is_convolution(n) and _home(graph, graph.model, n) in paths]
    seen = seen_by(graph.trace.nodes, after.trace.nodes, paths, value)
    return tuple(told or [seen] * bool(seen))
