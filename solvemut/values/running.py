"""Values tracked while a model is trained: hooks observe its backward passes and keep a running average per unit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import flag, real, shown, whole
from ..batches import measuring
from ..coupling import couple
from ..errors import ValuesError
from ..flow import FIXED
from ..graph import Graph
from ..interrupts import deferred
from ..plan import PlanRecord
from ..precision import wide
from ..report import one_line
from ..tracing import MODES, examples_of, is_compiled, to_text, trace_examples, unwrapped
from .data import position_means
from .dims import slice_sums
from .metric import Metric
from .places import EPS, check, followed, places_of, units_at


def track(
    model_or_mutator: Any,
    args: Any = None,
    *,
    activation: bool = True,
    every: int = 1,
    decay: float = 0.95,
    normalize: str | None = None,
) -> Tracker:
    """Observe what units are worth while the model is trained, as `values=` of `prune` and `Problem.maximize`.

    With activation=True it is what `activation` computes: |mean over positions of activation times gradient| of each
    unit, averaged over the batch, at the layers that make it. With activation=False it is what `taylor` computes, of
    the gradient that each backward brings. A layer called several times in one forward counts the sum over its calls.

    Each forward whose gradients come is one observation; with every=n only the forwards 1, n+1, 2n+1, ... are observed
    (or the next that backward is called for), and in between the hooks only count. The average becomes decay * average
    + (1 - decay) * observation, so that a larger decay forgets more slowly; the first observation is taken whole.
    Observations that are not finite, as where a loss scaler overflows, are left out.

    >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
    >>> with track(model, x, decay=0.9) as tracker:
    ...     for _ in range(3):
    ...         model(x).square().mean().backward()
    >>> tracker
    <Tracker of Sequential: activation, 3 forwards, 2 places, every=1, decay=0.9, removed>
    >>> {name: len(average) for name, average in tracker.averages.items()}
    {'0': 8, '2': 2}

    Given a Mutator, it follows each plan that this applies; given a model and example inputs, `follow(plan)` is for you
    to call. Given a model, `args` is as for `capture`. Not observed are runs under torch.no_grad, compiled code,
    replicas of DataParallel, and copies of the model.

    Molchanov et al., arXiv 1611.06440 and arXiv 1906.10771.
    """
    activation, every = flag(activation, "activation"), whole(every, "every", 1, ValuesError)
    give = "give a number of at least 0 and below 1, such as 0.95"
    decay = real(decay, "decay", give, ValuesError)
    if not 0 <= decay < 1:
        raise ValuesError(f"decay: {give}, not {decay:g}")
    owner = model_or_mutator if isinstance(getattr(model_or_mutator, "graph", None), Graph) else None
    if owner is not None and args is not None:
        raise ValuesError("args: a mutator has example inputs already; give them with a model alone")
    graph: Graph = _captured(model_or_mutator, args) if owner is None else owner.graph
    given = model_or_mutator if owner is None else owner.model
    if any(is_compiled(m) for m in given.modules()):
        raise ValuesError(
            f"{type(given).__name__} is compiled, and compiled code runs no hooks; track the plain module and train it "
            "uncompiled"
        )
    return Tracker(graph, owner, activation, every, decay, normalize)


def _captured(model: Any, args: Any) -> Graph:
    if not isinstance(model, nn.Module):
        raise ValuesError(f"track takes a Mutator, or a torch.nn.Module with example inputs, not {shown(model)}")
    if args is None:
        raise ValuesError(f"args: give example inputs of {type(model).__name__}, as for capture, or give a Mutator")
    model = unwrapped(model)
    trace, examples = trace_examples(model, examples_of(args, None, None), MODES)
    return Graph(trace, couple(trace), to_text(examples), model, tuple(examples))


class Tracker(Metric):
    """Running averages of what units are worth: a metric, a context manager, and a follower of plans.

    A copy or an unpickled one has the numbers and observes nothing.
    """

    def __init__(
        self, graph: Graph, owner: Any, activation: bool, every: int, decay: float, normalize: str | None
    ) -> None:
        name = f"track(activation={activation}, every={every}, decay={decay:g})"
        super().__init__(name, self._scores, normalize)
        self.activation, self.every, self.decay = activation, every, decay
        self.calls = 0  # forwards with gradients
        self._root, self._model = graph.trace.root, graph.model
        self._places = places_of(graph.model, graph, activation)
        self._pending: dict[tuple[int, str, int], torch.Tensor] = {}  # by forward, place and call; signed, per example
        self._warned: set[str] = set()
        self._generation = 0  # gradients of graphs that are older than the last change of sizes come too late
        self._slots = 0
        self._forget_forward()
        self._handles: list[Any] = []
        self._held: dict[str, tuple[nn.Parameter, bool, Any]] = {}
        self._owner = owner
        self._warn_of_unplaced(graph)
        with deferred():
            try:
                self._hook()
            except BaseException:
                self.remove()
                raise

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _forget_forward(self) -> None:
        self._begun = self._active = self._unseen = self._rooted = False
        self._answered = True
        self._first: str | None = None
        self._task = -1

    def __getstate__(self) -> dict[str, Any]:
        self._flush()
        return {**vars(self), "_model": None, "_owner": None, "_handles": [], "_held": {}}

    def __repr__(self) -> str:
        what = "activation" if self.activation else "taylor"
        told = f"{self.calls} forwards, {len(self._places)} places, every={self.every}, decay={self.decay:g}"
        return one_line(f"<Tracker of {self._root}: {what}, {told}{'' if self._handles else ', removed'}>")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.remove()

    # -- hooks -----------------------------------------------------------------------------------------------------

    def _hook(self) -> None:
        self._handles.append(self._model.register_forward_pre_hook(_Hook(self, self._model, self._model_called)))
        if self.activation:
            self._hook_layers(self._places)
        else:
            self._hold_parameters()
        if self._owner is not None:
            self._owner.trackers = (*self._owner.trackers, self)

    def _hook_layers(self, keys: Iterable[str]) -> None:
        modules = dict(self._model.named_modules())
        for key in keys:
            hook = _Hook(self, modules[key], partial(self._layer_called, key))
            self._handles.append(modules[key].register_forward_hook(hook))

    def remove(self) -> None:
        """Take every hook away; the averages stay as they are, and follow no more plans by themselves."""
        with deferred():
            self._flush()
            self._generation += 1
            for handle in self._handles:
                handle.remove()
            for name in list(self._held):
                self._let_go(name)
            self._handles = []
            if self._owner is not None:
                self._owner.trackers = tuple(t for t in self._owner.trackers if t is not self)
                self._owner = None
            self._model = None

    def _hold_parameters(self) -> None:
        """Hooks on the parameters that are trained now: some are thawed or exchanged on the way."""
        now = dict(self._model.named_parameters(remove_duplicate=False))
        for name in dict.fromkeys(p.tensor[0] for p in self._places.values() if p.tensor):
            parameter = now.get(name)
            if name in self._held and self._held[name][0] is not parameter:
                self._let_go(name)
            if name not in self._held and parameter is not None and parameter.requires_grad:
                bare = parameter._backward_hooks is None
                self._held[name] = (parameter, bare, parameter.register_hook(partial(self._weights_reached, name)))

    def _let_go(self, name: str) -> None:
        parameter, bare, handle = self._held.pop(name)
        handle.remove()
        if bare and not parameter._backward_hooks:
            parameter._backward_hooks = None  # as it was, not an empty dict

    # -- forward ---------------------------------------------------------------------------------------------------

    def _model_called(self, args: Any) -> None:
        if measuring():
            return
        if not torch.is_grad_enabled():
            self._unseen = True
        elif self._unseen or not _in_backward():  # in a backward it is a checkpoint's second run of what was seen
            self._unseen, self._rooted = False, True
            self._begin(None)

    def _layer_called(self, key: str, args: Any, out: Any) -> None:
        if measuring() or not (isinstance(out, torch.Tensor) and out.requires_grad and torch.is_grad_enabled()):
            return
        if self._starts(key):
            self._begin(key)
        if self._active and key in self._places:
            self._watch(key, out)

    def _begin(self, first: str | None) -> None:
        """Another forward; `first` is the layer it begins with, where the model's own forward is not called."""
        self._flush()
        asked_in_vain = self._active and not self._answered
        self._active = self.calls % self.every == 0 or asked_in_vain
        self.calls += 1
        self._begun, self._answered, self._first = True, False, first
        if self._active and not self.activation:
            self._hold_parameters()

    def _starts(self, key: str) -> bool:
        """Whether a call of a layer outside of the model's forward, as by another method, begins another forward."""
        if _in_backward():  # what a checkpoint runs again belongs to the forward at hand
            return False
        if not self._begun:
            return True
        return self._answered if self._active else key == self._first

    def _watch(self, key: str, out: torch.Tensor) -> None:
        place = self._places[key]
        n, value = place.shape[0], out.detach()
        if out.dim() < -place.dim or out.shape[place.dim] != n:
            return self._warn(
                key, f"put out a tensor of shape {tuple(out.shape)}, and has {n} units in dim {place.dim} as tracked"
            )
        if place.overwritten:
            value = value.clone()
        self._slots += 1
        about = (key, value, value._version, (self.calls, key, self._slots), self._generation)
        out.register_hook(partial(self._output_reached, *about))

    # -- backward --------------------------------------------------------------------------------------------------

    def _output_reached(
        self,
        key: str,
        value: torch.Tensor,
        version: int,
        slot: tuple[int, str, int],
        generation: int,
        grad: torch.Tensor | None,
    ) -> None:
        if grad is None or generation != self._generation:
            return
        place = self._places[key]
        if value._version != version:  # written over in place since: the next time a copy is kept
            self._places[key] = place.copied()
            return
        with torch.no_grad():
            self._collect(slot, position_means(value, grad.detach(), place.dim))

    def _weights_reached(self, name: str, grad: torch.Tensor | None) -> None:
        if grad is None or measuring():
            return
        if not self._rooted and (task := _task()) != self._task:  # other methods were called: each backward counts
            self._task = task
            self._begin(None)
        if not self._active:
            return
        parameter = self._held[name][0].detach()
        with torch.no_grad():
            product = wide(parameter) * wide(grad.detach())
            for key, place in self._places.items():
                if place.tensor and place.tensor[0] == name:
                    if product.shape[place.dim] != place.shape[-1]:
                        self._warn(key, f"is of a parameter of shape {tuple(product.shape)}, with {place.shape[-1]}")
                        continue
                    self._collect((self.calls, key, 0), slice_sums(product, place.dim, place.shape).unsqueeze(0))

    def _collect(self, slot: tuple[int, str, int], found: torch.Tensor) -> None:
        """Gradients of several backward passes through one call add up before the absolute value is taken."""
        self._pending[slot] = self._pending[slot] + found if slot in self._pending else found
        self._answered = True

    def _flush(self) -> None:
        """What came since the last forward began becomes part of the averages, forward by forward."""
        pending, self._pending = self._pending, {}
        found: dict[tuple[int, str], torch.Tensor] = {}
        for (at, key, _), signed in pending.items():
            size = signed.abs().mean(0)
            found[at, key] = found[at, key] + size.to(found[at, key].device) if (at, key) in found else size
        for at, key in sorted(found):
            self._places[key] = self._places[key].observed(found[at, key], self.decay)

    # -- what was found --------------------------------------------------------------------------------------------

    @property
    def averages(self) -> dict[str, torch.Tensor]:
        """By layer, or by parameter dim, the average of each unit; float32's eps before any observation."""
        self._flush()
        return {key: place.average.clone() for key, place in self._places.items()}

    def _scores(self, model: nn.Module, graph: Graph) -> np.ndarray:
        """One number per unit class: the sum over the places where it is observed."""
        self._flush()
        units = units_at(model, graph, self.activation)
        common = [key for key in self._places if key in units]  # the others make no units any more
        self._check_names({*units, *self._places} if common else units, f"the graph of {graph.trace.root}")
        self._check_shapes({key: units[key].shape for key in common}, "the graph")
        total, count = np.zeros(graph.coupling.n_units), np.zeros(graph.coupling.n_units)
        for key in common:
            place = self._places[key]
            if int(place.seen) > 0:
                np.add.at(total, units[key].reshape(-1), place.average.cpu().numpy().reshape(-1))
                np.add.at(count, units[key].reshape(-1), 1)
        free = ~graph.coupling.frozen
        free[FIXED] = False
        starved = [key for key, u in units.items() if (free[u] & (count[u] == 0)).any()]
        if starved or not self._places:
            more = f" and {len(starved) - 3} more" if len(starved) > 3 else ""
            raise ValuesError(
                f"{self.name} has seen no gradient yet of {', '.join(starved[:3]) or 'any layer'}{more}, in "
                f"{self.calls} forwards: train the model for a step while it is tracked; layers that the loss does not "
                "depend on, or that return no tensor, get none: see activation=False"
            )
        placed = np.zeros(len(total), dtype=bool)
        for u in units.values():
            placed[u] = True
        total[~placed & free] = EPS
        return total

    def _check_names(self, names: Any, what: str) -> None:
        if wrong := sorted(set(self._places) ^ set(names)):
            raise ValuesError(
                f"{what} and this tracker differ in {len(wrong)} places ({', '.join(wrong[:3])}): it was made for "
                f"another model than this tracker's {self._root}"
            )

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
        for key, shape in shapes.items():
            place = self._places[key]
            if tuple(shape) != place.shape:
                raise ValuesError(
                    f"{what} has {' x '.join(map(str, shape))} units of {key}, the tracker "
                    f"{' x '.join(map(str, place.shape))}; after a plan that no tracked mutator applied, call "
                    "tracker.follow(plan)"
                )

    def _warn(self, key: str, why: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(
                f"{key} {why}: it is not observed; if the model was changed, call tracker.follow(plan)", stacklevel=2
            )

    def _warn_of_unplaced(self, graph: Graph) -> None:
        placed = np.zeros(graph.coupling.n_units, dtype=bool)
        placed[FIXED] = True
        for units in units_at(graph.model, graph, self.activation).values():
            placed[units] = True
        missing = [
            v.name
            for v in graph.vertices
            if v.makes_units and (~placed[v.units] & ~graph.coupling.frozen[v.units]).any()
        ]
        if missing:
            warnings.warn(
                f"no layer's output has the units of {', '.join(missing[:3])} ({len(missing)} in all), so they stay "
                f"worth {EPS:.2g} each and go first; track with activation=False, or keep them",
                stacklevel=4,
            )

    # -- plans and files -------------------------------------------------------------------------------------------

    def check(self, plan: PlanRecord) -> None:
        """Raise PlanMismatchError if a plan was made for other sizes than those of the units that are tracked."""
        for key, place in self._places.items():
            check(key, place, plan)

    def follow(self, plan: PlanRecord) -> None:
        """Take over a plan that was applied: units that stay keep their averages, in the plan's order.

        A new unit (-1) starts at float32's eps, or lower, at the least positive average in its layer. A Mutator that is
        tracked calls this itself.
        """
        if not isinstance(plan, PlanRecord):
            raise ValuesError(f"follow takes a Plan that was applied to the model, not {shown(plan)}")
        self.check(plan)
        self._flush()
        places = {key: followed(place, plan) for key, place in self._places.items()}
        if plan.graph is not None and self._model is not None:  # a grouped convolution may be depthwise by now
            now = places_of(self._model, plan.graph, self.activation)
            places = {key: places.get(key, place) for key, place in now.items()}
        new = [key for key in places if key not in self._places]
        self._places = places
        self._generation += 1
        self._warned.clear()
        if self.activation and self._model is not None:
            self._hook_layers(new)

    def state_dict(self) -> dict[str, Any]:
        """The averages, and how many observations and forwards there were, to be saved beside the model's state."""
        self._flush()
        return {
            "activation": self.activation,
            "calls": self.calls,
            "average": {key: place.average.clone() for key, place in self._places.items()},
            "seen": {key: place.seen.clone() for key, place in self._places.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValuesError, with nothing changed, if it is of other units."""
        try:
            activation, calls = flag(state["activation"], "activation"), whole(state["calls"], "calls", 0, ValuesError)
            average = {str(k): torch.as_tensor(v).double() for k, v in state["average"].items()}
            seen = {str(k): torch.as_tensor(v).long() for k, v in state["seen"].items()}
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as e:
            raise ValuesError(f"this is no state of a tracker: {type(e).__name__}: {shown(e)}") from e
        if activation != self.activation:
            raise ValuesError(f"the state is of a tracker with activation={activation}, this one has {self.activation}")
        for names in (average, seen):
            self._check_names(names, "the state")
        self._check_shapes({key: tuple(a.shape) for key, a in average.items()}, "the state")
        for key, a in average.items():
            if seen[key].dim() or not bool((a.isfinite() & (a >= 0)).all()) or int(seen[key]) < 0:
                raise ValuesError(f"the state of {key} holds numbers that no tracker gives: averages are at least 0")
        self._pending, self.calls = {}, calls
        self._generation += 1
        self._forget_forward()
        self._places = {key: place.loaded(average[key], seen[key]) for key, place in self._places.items()}


class _Hook:
    """A hook of one module; in a copy or a file of that module there stands one without effect."""

    def __init__(self, tracker: Tracker, module: nn.Module, call: Callable[..., None]) -> None:
        self.tracker, self.module, self.call = tracker, module, call

    def __call__(self, module: nn.Module, *call: Any) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if module is self.module:
            self.call(*call)
        elif getattr(module, "_is_replica", False):
            self.tracker._warn("DataParallel", "runs replicas of the model, each on a part of the batch")

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_effect, ()


def _without_effect() -> Callable[..., None]:
    return _nothing


def _nothing(*call: Any) -> None:
    """What becomes of a hook in a copy of the model."""


def _in_backward() -> bool:
    return _task() != -1


def _task() -> int:
    """The number of the backward pass that runs in this thread, -1 for none."""
    return torch._C._current_graph_task_id()
