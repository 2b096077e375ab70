"""Bytes: of the weights, of what a forward holds at its worst moment, and of what a training step keeps.

They need more than the coupling: the dtypes of the weights, and a `Footprint`, which is observed on the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..coupling import Coupling
from ..errors import RequestError
from ..flow import Extent, Labels, prod
from ..requests import Cost, Monomial, Peak
from ..trace import Footprint, Held, layer_of
from .base import elements, home, monomial


def weight_bytes(coupling: Coupling, itemsizes: Mapping[str, tuple[int, int]]) -> Cost:
    """Bytes of the tensors of a state dict; `itemsizes` tells by name the bytes of an element and the elements.

    Tied tensors count once. What the forward does not read stays as it is.
    """
    left, terms = dict(itemsizes), []
    for value, p in coupling.trace.params.items():
        if (found := left.pop(p.name, None)) is not None:
            terms.append(_of(coupling, value, found[0], home(p)))
        for alias in p.aliases:
            left.pop(alias, None)
    rest = [Monomial(itemsize * n, (), "what the forward does not read", of=k) for k, (itemsize, n) in left.items()]
    return Cost("weight_bytes", (*terms, *rest), coupling)


def memory(coupling: Coupling, footprint: Footprint) -> Peak:
    """Bytes of what a forward holds at its worst moment: its inputs, outputs and all between, without the weights.

    What a kernel needs while it runs, and how an allocator rounds, is not in it.
    """
    moments: dict[tuple[object, ...], Cost] = {}
    for t, there in footprint.moments():
        at = _vertex(coupling, footprint.makes[t])
        cost = _sum(coupling, f"memory at {at}", there)
        moments.setdefault(_content(coupling, cost), cost)  # blocks that repeat are one moment
    return Peak("memory", owner=coupling, moments=tuple(moments.values()))


def training_memory(
    coupling: Coupling, footprint: Footprint, itemsizes: Mapping[str, tuple[int, int]], states: int = 2
) -> Cost:
    """Bytes that a training step keeps: activations for the way back, gradients, and the optimizer's state.

    `itemsizes` tells of the parameters that are trained, `states` how many tensors the optimizer has for each: 2 for
    Adam, 1 for SGD with momentum.
    """
    if footprint.kept is None:
        raise RequestError(f"training_memory of this {coupling.trace.root} cannot be told: {footprint.why}")
    terms = list(_sum(coupling, "", footprint.kept).monomials)
    for value, p in coupling.trace.params.items():
        if p.name in itemsizes:
            terms.append(_of(coupling, value, (1 + states) * itemsizes[p.name][0], home(p)))
    return Cost("training_memory", tuple(terms), coupling)


def _sum(coupling: Coupling, name: str, there: Iterable[Held]) -> Cost:
    fixed, terms = 0, []
    for h in there:
        if h.value:
            terms.append(_of(coupling, h.value, h.itemsize, _vertex(coupling, h.value), h.dims))
        else:
            fixed += h.nbytes
    return Cost(name, (*terms, *([Monomial(fixed, (), "inputs and what has no name")] if fixed else ())), coupling)


def _of(coupling: Coupling, value: str, itemsize: int, vertex: str, dims: int | None = None) -> Monomial:
    """Bytes of a value: the product of its sizes; or of its leading dims only, which have labels of their own."""
    if value in coupling.trace.params:
        fixed, extents = elements(coupling, value, dims)
    else:
        shape, labels = coupling.trace.shape(value)[:dims], coupling.values[value]
        assert isinstance(labels, Labels), "a call that gives a list makes no tensor of that name"
        factors = [f for f in labels.factors if f.dims[-1] < len(shape)]
        sized = {d for f in factors for d in f.dims}
        fixed = prod([n for d, n in enumerate(shape) if d not in sized])
        extents = [Extent(f.labels.reshape(-1)) for f in factors]
    return monomial(coupling, itemsize * fixed, extents, vertex, value)


def _vertex(coupling: Coupling, value: str) -> str:
    if not value or value in coupling.trace.params:
        return value or "the output"
    node = coupling.trace.node(value)
    return layer_of(node.module) or node.name


def _content(coupling: Coupling, cost: Cost) -> tuple[object, ...]:
    """What tells two sums apart."""
    terms = Counter(
        (m.coefficient, tuple(sorted(coupling.units(e).tobytes() for e in m.extents)))
        for m in cost.monomials
        if isinstance(m, Monomial) and m.extents
    )
    fixed = sum(m.now for m in cost.monomials if not m.extents)
    return fixed, *sorted(terms.items())
