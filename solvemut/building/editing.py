"""editable: a model as a torch.fx graph of its own layers, which shares its parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..arguments import shown
from ..errors import CaptureError, RequestError
from ..tracing import unwrapped
from .calls import Argument, arguments_of, placed
from .following import Followed, Unfollowed, by_a_run, by_proxies, first_line, is_leaf
from .modules import ByMode, GraphModel

_PLAIN = (bool, int, float, str, type(None))


def editable(model: nn.Module, args: Any = None, kwargs: Mapping[str, Any] | None = None) -> GraphModel:
    """The model as a torch.fx.GraphModule: the same function of the same parameters, with torch's layers as nodes.

    The parameters, buffers and layers are shared, not copied, and keep their keys in `state_dict`. A forward that asks
    for sizes can be followed with example inputs only, and the graph is then good for their sizes; with examples, too,
    the graph is run beside the model once and must give the same. What only train mode or only eval mode does cannot
    stand in a graph: CaptureError says where they differ.

    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return torch.relu(x + self.fc(x))
    >>> model = Residual()
    >>> graph = editable(model)
    >>> print(graph.code.strip())
    def forward(self, x):
        fc = self.fc(x)
        add = x + fc;  x = fc = None
        relu = torch.relu(add);  add = None
        return relu
    >>> graph.fc.weight is model.fc.weight, list(graph.state_dict()) == list(model.state_dict())
    (True, True)
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"editable takes a torch.nn.Module, not {shown(model)}")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(k, str) for k in kwargs)):
        raise RequestError(f"kwargs={shown(kwargs)}: give a dict of the forward's keyword arguments by name")
    model = unwrapped(model)
    examples = args is not None or kwargs is not None
    arguments = arguments_of(model, args, kwargs)
    found = _followed(model, arguments, examples)
    graph = _assembled(model, found)
    if examples:
        _check_same(model, graph, arguments)
    return graph


def _followed(model: nn.Module, arguments: list[Argument], examples: bool) -> Followed:
    """The graph that both modes agree on, the first way that leads through both of them."""
    name, reasons = type(model).__name__, []
    for way in (by_proxies, by_a_run) if examples else (by_proxies,):
        try:
            trained, found = (way(_copied(model, training), arguments) for training in (True, False))
        except Unfollowed as e:
            reasons.append(str(e))
            continue
        except CaptureError as e:
            raise CaptureError(f"{name} cannot be made editable: {e}") from None
        if difference := _difference(trained, found):
            raise CaptureError(
                f"{name} cannot be made editable: in train mode its forward {difference} A graph does one thing; "
                "make what depends on the mode a layer, such as nn.Dropout or nn.BatchNorm2d, which follows it"
            )
        return found
    do = (
        "rewrite that part, or put it in a module under torch.nn's own layers"
        if examples
        else "give example inputs, args= and kwargs=, and it is followed by a run on them"
    )
    raise CaptureError(f"{name} cannot be made editable: {'; with examples, '.join(reasons)}. What helps: {do}")


def _copied(model: nn.Module, training: bool) -> nn.Module:
    """A copy to follow, in one mode throughout: what following does to a model stays in it."""
    try:
        other = copy.deepcopy(model)
    except Exception as e:
        raise CaptureError(
            f"it cannot be copied ({type(e).__name__}: {first_line(e)}), and a copy is what is followed"
        ) from e
    for module in other.modules():
        module.training = training
    return other


def _difference(trained: Followed, found: Followed) -> str:
    """What train mode does where eval mode does something else; empty if both are one graph.

    Plain values that differ, such as training=self.training, become nodes that go with the mode.
    """
    for x, y in zip_longest(list(trained.graph.nodes), list(found.graph.nodes)):
        if x is None or y is None or (x.op, str(x.target), x.name) != (y.op, str(y.target), y.name):
            return f"does {_told(x)}, in eval mode {_told(y)}."
        (xs, form), (ys, other) = (pytree.tree_flatten((n.args, n.kwargs)) for n in (x, y))
        unlike = [k for k, (a, b) in enumerate(zip(xs, ys, strict=False)) if (type(a), str(a)) != (type(b), str(b))]
        if form != other or not all(isinstance(a[k], _PLAIN) for k in unlike for a in (xs, ys)):
            return f"does {_told(x)}, in eval mode {_told(y)}."
        if unlike:
            by_mode = {k: _by_mode(found, xs[k], ys[k]) for k in unlike}
            y.args, y.kwargs = pytree.tree_unflatten([by_mode.get(k, a) for k, a in enumerate(ys)], form)
    constants = zip_longest(trained.constants.values(), found.constants.values())
    if not all(_equal(a, b) for a, b in constants):
        return f"writes down other constants than in eval mode ({', '.join({**trained.constants, **found.constants})})."
    return ""


def _told(node: torch.fx.Node | None) -> str:
    if node is None:
        return "nothing more"
    return f"{node.op} {getattr(node.target, '__name__', node.target)}{node.args} {dict(node.kwargs) or ''}".strip()


def _by_mode(found: Followed, in_training: Any, in_eval: Any) -> torch.fx.Node:
    """The node of a value that is one in train mode and another in eval mode."""
    name = f"by_mode_{len(found.modes)}"
    found.modes[name] = ByMode(in_training, in_eval)
    with found.graph.inserting_before(next(n for n in found.graph.nodes if n.op != "placeholder")):
        return found.graph.call_module(name)


# -- assembling --------------------------------------------------------------------------------------------------------


def _assembled(model: nn.Module, found: Followed) -> GraphModel:
    """The graph with the model's own layers and tensors below it, in the model's order."""
    root = _skeleton(model, {})
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    if any(id(t) in own or t.requires_grad for t in found.constants.values()):
        raise CaptureError(
            f"{type(model).__name__} cannot be made editable: its forward reads a parameter or a buffer that is not in "
            "the copy it is called on; does it hold on to the model in a closure?"
        )
    for name, tensor in found.constants.items():
        root.register_buffer(name, tensor.detach().clone(), persistent=False)
    for name, mode in found.modes.items():
        root.add_module(name, mode.train(model.training))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GraphModel(root, found.graph, type(model).__name__, vars(root))


def _skeleton(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """The tree of a model: modules without a forward, which hold the same tensors and the same leaf modules."""
    if id(module) in made:
        return made[id(module)]
    root = not made
    if is_leaf(module) and not root:
        made[id(module)] = module
        return module
    bare = made[id(module)] = nn.Module()
    bare.training = module.training
    for tensors in ("_parameters", "_buffers"):
        vars(bare)[tensors].update(vars(module)[tensors])
    bare._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):  # a tensor that a forward may read, and that state_dict does not show
            bare.register_buffer(name, value, persistent=False)
    for name, child in module._modules.items():
        vars(bare)["_modules"][name] = None if child is None else _skeleton(child, made)
    return bare


# -- checking ----------------------------------------------------------------------------------------------------------


def _check_same(model: nn.Module, graph: GraphModel, arguments: list[Argument]) -> None:
    """Run both once in eval mode on the example, each on copies, with the same random numbers."""
    name = type(model).__name__
    args, kwargs = placed(arguments, {a.name: a.value for a in arguments})
    try:
        wanted, form = _run(model, args, kwargs)
    except Exception as e:
        raise CaptureError(
            f"{name} does not run on the example inputs ({type(e).__name__}: {first_line(e)}); give it inputs it takes"
        ) from e
    got, other = _run(graph, (), {a.name: a.value for a in arguments})
    if form != other or not all(_equal(a, b) for a, b in zip(wanted, got, strict=True)):
        raise CaptureError(
            f"{name} cannot be made editable: its graph does not give what the model gives on the example inputs; does "
            "the forward depend on more than its inputs and parameters?"
        )


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    module = _copied(model, False)
    given = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (args, kwargs))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return pytree.tree_flatten(module(*given[0], **given[1]))


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    same = isinstance(b, torch.Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype)
    if not same or not a.is_floating_point():
        return same and torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6 * a.abs().max().item() if a.numel() else 0.0, equal_nan=True)
