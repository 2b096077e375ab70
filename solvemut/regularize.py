"""Regularisers that make units small in training, before a plan cuts them: `loss + reg(model)`.

Each is made of a graph, and called with the model that was captured or with a copy of it: tensors are found by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from .arguments import real, shown, whole
from .errors import RequestError
from .graph import Graph
from .plan import PlanRecord, kept_units
from .trace import Ref
from .tracing import unwrapped
from .values import Metric, UnitDim, Values, slice_sums, unit_dims, unit_values


class Regularizer:
    """A term of the loss: called with a model it gives a scalar to differentiate, where the model is."""

    weight: float

    def __call__(self, model: nn.Module) -> torch.Tensor:
        raise NotImplementedError


def group_lasso(graph: Graph, weight: float = 1e-4) -> GroupLasso:
    """`weight` times the sum over free units of sqrt(number of entries) times the l2 norm of all slices of the unit.

    The slices of all layers that make or read a unit are one group, so that it goes everywhere at once; an entry counts
    for the unit that it makes and for the one that it reads. Yuan and Lin, Model selection and estimation in regression
    with grouped variables, 2006; of networks Wen et al., Learning Structured Sparsity, arXiv 1608.03665; of coupled
    layers Fang et al., DepGraph, arXiv 2301.12900.

    >>> import solvemut as sm
    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> reg = group_lasso(sm.capture(model, torch.ones(1, 1)), weight=1.0)
    >>> for p in model.parameters():
    ...     _ = nn.init.constant_(p, 1.0)
    >>> round(float(reg(model).detach()), 5)  # two units of two entries each
    4.0
    """
    return GroupLasso(graph, weight)


def bn_scale(graph: Graph, weight: float = 1e-4) -> BnScale:
    """`weight` times the sum of |weight| of the batch norms whose channels are free units.

    Liu et al., Network Slimming, arXiv 1708.06519.

    >>> import solvemut as sm
    >>> model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1))
    >>> float(bn_scale(sm.capture(model, torch.ones(1, 1, 2, 2)), weight=2.0)(model).detach())
    6.0
    """
    return BnScale(graph, weight)


def growing(
    graph: Graph,
    weight: float = 1e-4,
    step: float = 1e-4,
    every: int = 10,
    most: float = 1.0,
    share: float = 0.5,
    values: Values | Any = None,
    plan: PlanRecord | None = None,
) -> Growing:
    """Half of a growing factor times the squared l2 norm of all slices of the least units.

    The factor is `weight` at first and grows by `step` every so many calls, up to `most`; calls under torch.no_grad do
    not count. The least units are the `share` of least value in each coupled group, of the model as it is now: `values`
    as for `maximize`, or an array with a number per unit class; None: magnitude. With `plan` they are the units that it
    drops. Wang et al., Neural Pruning via Growing Regularization, arXiv 2012.09243.

    >>> import solvemut as sm
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> reg = growing(sm.capture(model, torch.ones(1, 2)), weight=0.0, step=0.1, every=2, most=0.25)
    >>> factors = [(reg.factor, reg(model))[0] for _ in range(8)]
    >>> len(reg.units), factors
    (2, [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25])
    """
    return Growing(graph, weight, step, every, most, share, values, plan)


class GroupLasso(Regularizer):
    """See `group_lasso`."""

    def __init__(self, graph: Graph, weight: float) -> None:
        self.weight = _at_least_0(weight, "weight")
        self._slices = _Slices(_checked(graph, "group_lasso"), list(unit_dims(graph)))
        self._roots = _Fixed(np.sqrt(self._slices.entries))

    def __call__(self, model: nn.Module) -> torch.Tensor:
        squares = self._slices.sums(model, _square)
        there = squares > 0  # at 0 the root has no gradient that is finite, and the norm one that is 0
        norms = torch.where(there, torch.where(there, squares, 1).sqrt(), 0)
        return self.weight * (self._roots.like(norms) * norms).sum()


class BnScale(Regularizer):
    """See `bn_scale`."""

    def __init__(self, graph: Graph, weight: float) -> None:
        self.weight = _at_least_0(weight, "weight")
        trace = _checked(graph, "bn_scale").coupling.trace
        read = [n.args.get("weight") for n in trace.nodes if "batch_norm" in n.op]
        names = {trace.params[r.name].name for r in read if isinstance(r, Ref) and r.name in trace.params}
        self._slices = _Slices(graph, [d for d in unit_dims(graph) if d.name in names])

    def __call__(self, model: nn.Module) -> torch.Tensor:
        return self.weight * self._slices.sums(model, torch.abs).sum()


class Growing(Regularizer):
    """See `growing`. `units` are the classes it makes small, `calls` counts, `factor` is that of the next call."""

    def __init__(
        self,
        graph: Graph,
        weight: float,
        step: float,
        every: int,
        most: float,
        share: float,
        values: Any,
        plan: PlanRecord | None,
    ) -> None:
        self.weight, self.step = _at_least_0(weight, "weight"), _at_least_0(step, "step")
        self.every, self.most = whole(every, "every", 1), _at_least_0(most, "most")
        if self.most < self.weight:
            raise RequestError(f"most={shown(most)}: the factor begins at {self.weight:g}; give no less")
        self._slices = _Slices(_checked(graph, "growing"), list(unit_dims(graph)))
        if plan is None:
            units = _least(graph, _numbers(graph, values, self._slices.dims), share)
        elif values is None:
            units = _dropped(graph, plan)
        else:
            raise RequestError("give values or a plan, not both: the units of a plan are chosen already")
        if not len(units):
            what = f"share={shown(share)} of the free units of each group" if plan is None else "what the plan drops"
            raise RequestError(f"growing: {what} is no unit at all, so there is nothing to make small")
        self.calls = 0
        self._choose(units)

    def _choose(self, units: np.ndarray) -> None:
        self.units = units
        self._chosen = _Fixed(np.isin(self._slices.free, units).astype(float))

    @property
    def factor(self) -> float:
        return min(self.most, self.weight + self.step * (self.calls // self.every))

    def __call__(self, model: nn.Module) -> torch.Tensor:
        squares = self._slices.sums(model, _square)
        found = self.factor / 2 * (self._chosen.like(squares) * squares).sum()
        self.calls += torch.is_grad_enabled()
        return found

    def state_dict(self) -> dict[str, Any]:
        """How many calls there were, and the units, to be saved beside the model's state."""
        return {"calls": self.calls, "units": self.units.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises RequestError, with nothing changed, if it is of other units."""
        try:
            calls, units = whole(state["calls"], "calls", 0), np.array(state["units"], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as e:
            raise RequestError(f"this is no state of `growing`: {type(e).__name__}: {shown(e)}") from e
        if units.ndim != 1 or not np.isin(units, self._slices.free).all():
            raise RequestError("this state of `growing` speaks of units that this graph has not, or that must stay")
        self.calls = calls
        self._choose(units)


# -- which units -------------------------------------------------------------------------------------------------------


def _numbers(graph: Graph, values: Any, dims: list[UnitDim]) -> np.ndarray:
    """A number per unit class, of the model that the graph has."""
    if isinstance(values, (np.ndarray, torch.Tensor, list, tuple)):
        given = values
        values = Metric("values", lambda model, graph: given)  # type: ignore[arg-type,return-value]
    if graph.model is None:
        raise RequestError("growing: this graph has no model to value units by; capture it again, or give a plan")
    parameters_of(graph.model, graph.trace.root, dims)
    return unit_values(values, graph.model, graph)


def _least(graph: Graph, value: np.ndarray, share: Any) -> np.ndarray:
    """The units of least value, so many of each coupled group; of equal ones the first."""
    part = real(share, "share", "give a share of the units above 0 and below 1")
    if not 0 < part < 1:
        raise RequestError(f"share: give a share of the units above 0 and below 1, not {shown(share)}")
    found = [np.empty(0, dtype=np.int64)]
    for g in range(len(graph.groups)):
        units = np.flatnonzero((graph.coupling.group_of == g) & ~graph.coupling.frozen)
        count = int(part * len(units) + 1e-9)  # 0.29 of 100 is 28.999...
        found.append(units[np.argsort(value[units], kind="stable")[:count]])
    return np.sort(np.concatenate(found))


def _dropped(graph: Graph, plan: Any) -> np.ndarray:
    """The units whose slices a plan does not keep."""
    if not isinstance(plan, PlanRecord):
        raise RequestError(f"plan={shown(plan)}: give a plan of this graph's model that was not applied yet")
    for d in unit_dims(graph):
        before, _ = plan.shapes.get(d.name, (d.tensor, d.tensor))
        if tuple(before) != d.tensor:
            raise RequestError(f"the plan is of another model: it has {d.name} of shape {before}, captured {d.tensor}")
    return np.flatnonzero(~kept_units(graph, plan) & ~graph.coupling.frozen)


# -- the slices of units -----------------------------------------------------------------------------------------------


class _Fixed:
    """Numbers that do not change, once for each device and type that asks for them."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = torch.from_numpy(numbers)
        self._moved: dict[Any, torch.Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if (device, dtype) not in self._moved:
            self._moved[device, dtype] = self.numbers.to(device=device, dtype=dtype)
        return self._moved[device, dtype]

    def like(self, t: torch.Tensor) -> torch.Tensor:
        return self.on(t.device, t.dtype)


class _Slices:
    """The slices of free units: where they stand in a model's parameters, and how many entries each unit has."""

    def __init__(self, graph: Graph, dims: list[UnitDim]) -> None:
        self.root, self.free = graph.trace.root, np.flatnonzero(~graph.coupling.frozen)
        place = np.full(graph.coupling.n_units, len(self.free))  # behind them all that stays
        place[self.free] = np.arange(len(self.free))
        self.dims = [d for d in dims if (place[d.units] < len(self.free)).any()]
        if not self.dims:
            raise RequestError(f"no parameter of {self.root} that counts here has units that may go: see print(graph)")
        self._places = [_Fixed(place[d.units]) for d in self.dims]
        entries = np.zeros(len(self.free) + 1)
        for d in self.dims:
            np.add.at(entries, place[d.units], np.prod(d.tensor, dtype=float) / d.units.size)
        self.entries = entries[:-1]

    def sums(self, model: nn.Module, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The sum of `of` the weights over each free unit's slices, in single precision at least."""
        tensors = parameters_of(model, self.root, self.dims)
        device = tensors[0].device
        total = torch.zeros(len(self.free) + 1, device=device)
        last: tuple[Any, Any] = (None, None)  # a tensor, and what its dims have in common
        for d, w, place in zip(self.dims, tensors, self._places, strict=True):
            if last[0] is not w:
                last = w, of(w.float() if w.dtype.itemsize < 4 else w)
            found = slice_sums(last[1], d.dim, d.shape).reshape(-1).to(device)
            dtype = torch.promote_types(total.dtype, found.dtype)
            total = total.to(dtype).index_add(0, place.on(device, torch.int64), found.to(dtype))
        return total[:-1]


def _square(w: torch.Tensor) -> torch.Tensor:
    return w.abs().square() if w.is_complex() else w.square()


def parameters_of(model: nn.Module, root: str, dims: list[UnitDim]) -> list[torch.Tensor]:
    """The parameter of each dim. Raises RequestError if a model has not what was captured."""
    if not isinstance(model, nn.Module):
        raise RequestError(f"a regulariser is called with the model, not with {shown(model)}")
    named = dict(unwrapped(model).named_parameters(remove_duplicate=False))
    for d in dims:
        now = tuple(named[d.name].shape) if d.name in named else None
        if now != d.tensor:
            told = "is gone" if now is None else f"has shape {now}"
            raise RequestError(
                f"this {type(model).__name__} is not the {root} that was captured, or was changed since: {d.name} "
                f"{told}, captured was {d.tensor}; capture it and make the regulariser again"
            )
    return [named[d.name] for d in dims]


def _checked(graph: Any, name: str) -> Graph:
    if not isinstance(graph, Graph):
        raise RequestError(f"{name} takes the graph of a model, as capture gives it, not {shown(graph)}")
    return graph


def _at_least_0(x: Any, what: str) -> float:
    found = real(x, what, "give a number of at least 0")
    if found < 0:
        raise RequestError(f"{what}: give a number of at least 0, not {shown(x)}")
    return found
