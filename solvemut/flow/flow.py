"""The flow of unit labels through a trace: what the rules say, written down.

Parameters (and tensors a forward creates) are the sources of labels; a rule passes labels on and states facts about
them: these are equal, this one stays, these parts stay equally large. A `Flow` collects the facts with the node that
stated each. `coupling` draws the conclusions; `index` runs the same rules over what is left after a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..trace import Node, Ref, Size, Trace
from .facts import Equal, Extent, Facts, Floor, Freeze, Held, Literal, Merge, Multiple, Path, Rectangle, Sum, Work
from .labels import Factor, Labels, prod, simplify, view_groups

Output = Labels | list[Labels]


LARGEST_VIEW = 1 << 25  # positions of one reshaped group of dims; beyond it the labels are frozen, not tracked


class Flow:
    """Runs the rules over a trace and collects the facts.

    `sources` holds the labels of parameter dims by (value name, dim), and of created tensors by (node name, path).
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.values: dict[str, Output] = {k: Labels(s) for k, s in trace.inputs.items()}
        self.sources: dict[tuple[str, Any], Extent] = {}
        self.produced: set[tuple[str, Any]] = set()  # sources whose units a node makes, rather than takes over
        self.count = 1  # labels handed out; 0 is FIXED
        self.facts = Facts()
        self.node: Node = Node("", "", {}, ())
        self.counted: set[Any] = set()  # arguments of the present node that are said to count labels
        self._weights: set[str] | None = None
        self._elements: set[tuple[str, int]] | None = None
        self._thin: list[tuple[str, int, Node]] = []  # single positions of parameters that a node read without labels
        self._asked: dict[int, tuple[str, Any]] = {}  # sources first asked for by the present node, by id of the array

    def run(self, apply: Callable[[Flow, Node], Output]) -> Facts:
        """Apply the rules to every node in order; the model's outputs stay as they are."""
        for node in self.trace.nodes:
            self.node, self._asked = node, {}
            self.values[node.name] = apply(self, node)
        for name, d, node in self._thin:
            if (name, d) in self.sources:
                self.facts.freezes.append(
                    Freeze(self.sources[name, d].labels, node, "its only position may be broadcast")
                )
        self.node = Node("output", "output", {}, ())
        for name in self.trace.outputs:
            self.freeze_all(self.labels(Ref(name)) if name in self.trace.params else self.values[name], "model output")
        return self.facts

    # -- reading ---------------------------------------------------------------------------------------------------

    def source(self, key: tuple[str, Any], shape: tuple[int, ...], per_row: bool = False) -> np.ndarray:
        """The labels of a parameter dim or a created dim, fresh when first asked for."""
        if key not in self.sources:
            n = prod(shape)
            labels = np.arange(self.count, self.count + n).reshape(shape).copy()  # owns its data: see asked_here
            self.sources[key] = Extent(labels, per_row)
            self.count += n
            self.produced.add(key)
            self._asked[id(labels)] = key
        return self.sources[key].labels

    def labels(self, arg: Ref, only: Sequence[int] | None = None) -> Labels:
        """The labels of an argument. Of a parameter only the dims in `only` take part, if it is given.

        A dim of size 1 may be there to be broadcast, so that it has labels only where `only` says that it counts units.
        """
        param = self.trace.params.get(arg.name)
        if param is None:
            found = self.values[arg.name]
            assert isinstance(found, Labels), f"{arg.name} is a list"
            return found
        dims = range(len(param.shape)) if only is None else [d for d in only if d < len(param.shape)]
        if param.kind == "constant":
            return Labels(param.shape)
        thin = [d for d in dims if param.shape[d] == 1 and only is None]
        self._thin += [(arg.name, d, self.node) for d in thin]
        sources = {d: self.source((arg.name, d), (param.shape[d],)) for d in dims if d not in thin}
        return Labels.of(param.shape, sources)

    def is_per_row(self, arg: Ref) -> bool:
        """Whether the inner dim of a weight had labels for each of its groups before a change."""
        return False

    def element(self, arg: Ref, index: int) -> Labels:
        """One element of a list value."""
        found = self.values[arg.name]
        return found[index] if isinstance(found, list) else found.take(0, index)

    # -- facts -----------------------------------------------------------------------------------------------------

    def merge(self, a: np.ndarray | None, b: np.ndarray | None, shape: Sequence[int]) -> None:
        """Position by position the same units; None is fixed throughout."""
        if a is None and b is None:
            return
        if a is None or b is None:
            labels = b if a is None else a
            assert labels is not None
            self._take(labels)
            self.freeze(labels, "it meets a fixed dim there")
            return
        assert a.shape == b.shape, (self.node.at(), a.shape, b.shape)
        self._take(b)
        if self.asked_here(b) is None or self.asked_here(a) is None:
            self._take(a)
        if a is not b:
            takes_over = self.asked_here(a) is not None or self.asked_here(b) is not None
            self.facts.merges.append(Merge(a, b, self.node, takes_over))

    def asked_here(self, labels: np.ndarray) -> tuple[str, Any] | None:
        """The source that these labels are, or are a view of, if the present node is the first to read it."""
        return self._asked.get(id(labels)) or self._asked.get(id(labels.base))

    def _take(self, labels: np.ndarray) -> None:
        """The present node takes these units over from another, it does not make them."""
        if (key := self.asked_here(labels)) is not None:
            self.produced.discard(key)

    def makes(self, arg: Ref, dim: int) -> None:
        """The present node makes the units along this dim of a parameter, though they also meet others in it."""
        if (arg.name, dim) in self.sources and (arg.name, dim) in self._asked.values():
            self.produced.add((arg.name, dim))

    def freeze(self, labels: np.ndarray, why: str) -> None:
        """These units must stay."""
        self.facts.freezes.append(Freeze(labels, self.node, why))

    def freeze_dims(self, x: Labels, dims: Iterable[int], why: str) -> None:
        """Freeze whatever is labelled in these dims."""
        wanted = set(dims)
        for f in x.factors:
            if wanted & set(f.dims):
                self.freeze(f.labels, why)

    def freeze_all(self, x: Output, why: str) -> None:
        """Freeze every label of a value."""
        for y in x if isinstance(x, list) else [x]:
            self.freeze_dims(y, range(y.ndim), why)

    def note(self, labels: np.ndarray | None, why: str) -> None:
        """Something the user should know about these units, though they may go."""
        if labels is not None:
            self.facts.notes.append(Freeze(labels, self.node, why))

    def is_weight(self, arg: Any) -> bool:
        """Whether a value is a parameter, or made of parameters alone."""
        if self._weights is None:
            self._weights = {name for name, p in self.trace.params.items() if p.kind != "constant"}
            for node in self.trace.nodes:
                refs = list(node.refs())
                if refs and self._weights.issuperset(refs):
                    self._weights.add(node.name)
        return isinstance(arg, Ref) and arg.name in self._weights

    def contracted(self, sides: Sequence[tuple[Any, np.ndarray | None]]) -> None:
        """Products are summed along these units, which two arguments hold: one is a weight, or neither is."""
        labelled = [(arg, labels) for arg, labels in sides if labels is not None]
        weights = [(arg.name, labels) for arg, labels in labelled if self.is_weight(arg)]
        self.facts.summed += [Sum(labels, self.node, name * (len(weights) == 1)) for name, labels in weights]
        if not weights:
            why = "sums over units of two activations"
            self.facts.mixed += [Freeze(labels, self.node, why) for _, labels in labelled]

    def literal(self, path: Path, labels: np.ndarray | None, sign: int = 1) -> None:
        """The int at `path` says how many of these labels there are."""
        self.counted.add(path[0])
        if labels is not None and labels.any():
            self.facts.literals.append(Literal(labels, self.node, path, sign))

    def equal(self, parts: Sequence[np.ndarray], why: str) -> None:
        """Of each part equally many units must stay."""
        if any(p.any() for p in parts):
            self.facts.equals.append(Equal(tuple(parts), self.node, why))

    def multiple(self, labels: np.ndarray | None, divisor: int, why: str) -> None:
        """Of these labels a multiple of the divisor must stay."""
        if labels is not None and labels.any() and divisor > 1:
            self.facts.multiples.append(Multiple(labels.reshape(-1), divisor, self.node, why))

    def rectangle(self, labels: np.ndarray, paths: Sequence[Path | None]) -> None:
        """These labels stand over several dims of one dense tensor."""
        self.counted |= {path[0] for path in paths if path is not None}
        if labels.any():
            key = f"{self.node.name}#{len(self.facts.rectangles)}"
            self.facts.rectangles.append(Rectangle(labels, self.node, tuple(paths), key))

    def group_rows(self, labels: np.ndarray, stays: bool = False) -> None:
        """The channels of one side of a grouped convolution, [groups, channels]; whether none of them can go."""
        key = f"{self.node.name}.groups"
        self.facts.rectangles.append(Rectangle(labels, self.node, (("groups",), None), key, grouped=True, stays=stays))

    def nonempty(self, parts: Sequence[np.ndarray]) -> None:
        """Of each part at least one unit must stay."""
        self.facts.nonempty.extend(p for p in parts if p.all())

    def hold(self, labels: np.ndarray, axis: int) -> None:
        """One axis of labels that stand over several dims keeps its size."""
        self.facts.held.append(Held(labels, axis, self.node))

    def at_least(self, labels: np.ndarray, least: int, why: str) -> None:
        """So many of these labels must stay."""
        if labels.size >= least > 0:
            self.facts.floors.append(Floor(labels, least, self.node, why))

    def reads_element(self, node: Node, index: int) -> bool:
        """Whether anything reads one element of a node's list of outputs."""
        if self._elements is None:
            read = {r for n in self.trace.nodes for r in n.refs()} | set(self.trace.outputs)
            got = [n for n in self.trace.nodes if n.op == "getitem" and n.name in read]
            self._elements = {(n.args["a"].name, n.args["b"]) for n in got}
        return node.is_list and (node.name, index) in self._elements

    def work(self, sizes: Sequence[int | np.ndarray | Extent]) -> None:
        """The node does as many multiply-accumulates as the product of these sizes."""
        extents = [s if isinstance(s, Extent) else Extent(s.reshape(-1)) for s in sizes if not isinstance(s, int)]
        self.facts.works.append(Work(self.node, prod([s for s in sizes if isinstance(s, int)]), tuple(extents)))

    def unsupported(self, node: Node) -> None:
        """There is no rule for this node."""
        self.facts.unsupported.append(node)

    # -- joint factors ---------------------------------------------------------------------------------------------

    def collapse(self, x: Labels, dim: int) -> Labels:
        """Make the units along one dim of a joint factor one unit: a head stays whole, or goes as a whole."""
        f = x.factor(dim)
        if f is None or len(f.dims) == 1:
            return x
        axis = f.dims.index(dim)
        first = f.labels.take([0], axis=axis)
        self.merge(np.broadcast_to(first, f.labels.shape), f.labels, f.labels.shape)
        rest = tuple(d for d in f.dims if d != dim)
        return x.replaced([dim], simplify(Factor(rest, first.take(0, axis=axis))))

    def whole(self, x: Labels, dim: int) -> Labels:
        """Forbid changes along a dim: its head or group stays whole, or all of it is frozen if it stands alone."""
        f = x.factor(dim)
        if f is None:
            return x
        if len(f.dims) > 1:
            return self.collapse(x, dim)
        self.freeze(f.labels, f"{self.node.op} needs the whole of it")
        return x.without([dim])

    def separate(self, x: Labels, dim: int) -> Labels:
        """Give a dim of a joint factor labels of its own: the same positions go in every row."""
        f = x.factor(dim)
        if f is None or len(f.dims) == 1:
            return x
        axis = f.dims.index(dim)
        rest = tuple(k for k in range(len(f.dims)) if k != axis)
        row = f.labels[tuple(slice(None) if k == axis else 0 for k in range(len(f.dims)))]
        shape = [-1 if k == axis else 1 for k in range(len(f.dims))]
        self.merge(np.broadcast_to(row.reshape(shape), f.labels.shape), f.labels, f.labels.shape)
        assert rest
        return x.replaced([dim], [Factor((dim,), row)])

    # -- shapes ----------------------------------------------------------------------------------------------------

    def view(self, x: Labels, shape: tuple[int, ...], paths: Sequence[Path | None]) -> Labels:
        """torch.reshape: labels are re-indexed; what is split over several dims stays together in one factor."""
        groups = _with_singles(view_groups(x.shape, shape), x, shape)
        out: list[Factor] = []
        for dims, new in _united(groups, x.factors):
            factors = [f for f in x.factors if set(f.dims) <= set(dims)]
            if not factors:
                continue
            out.extend(self._view_factor(x, factors, dims, new, shape, paths))
        return Labels(shape, tuple(sorted(out, key=lambda f: f.dims)))

    def _view_factor(
        self,
        x: Labels,
        factors: list[Factor],
        dims: tuple[int, ...],
        new: tuple[int, ...],
        shape: tuple[int, ...],
        paths: Sequence[Path | None],
    ) -> list[Factor]:
        first = factors[0]
        for f in factors[1:]:
            self.freeze(f.labels, "a view joins it with another prunable dim")
        if prod([x.shape[d] for d in dims]) > LARGEST_VIEW:
            self.freeze(first.labels, f"a view joins it with fixed dims to more than {LARGEST_VIEW} positions")
            return []
        index = tuple(slice(None) if d in first.dims else None for d in dims)
        full = np.broadcast_to(first.labels[index], [x.shape[d] for d in dims])
        keep = tuple(d for d in new if shape[d] > 1 or len(new) == 1)
        if not keep:
            self.freeze(first.labels, "a view moves its only position")
            return []
        labels = np.ascontiguousarray(full).reshape([shape[d] for d in keep])
        if not (len(dims) == 1 and len(keep) == 1) or paths[keep[0]] is not None:
            self.rectangle(labels, [paths[d] for d in keep])
        if len(dims) == len(keep) == 1:
            labels = first.labels  # nothing happens to it: keep the identity of the array
        return simplify(Factor(keep, labels))

    def created(self, path: Path, n: int) -> np.ndarray | None:
        """Labels of a dim of a tensor that the forward creates: its own if its size follows another, else fixed."""
        size = self.node.sizes.get(path)
        if size is None or all(map(self._is_fixed, size.leaves())):
            return None
        labels = self.source((self.node.name, path), (n,))
        self.literal(path, labels)
        return labels

    def _is_fixed(self, leaf: Size) -> bool:
        """Whether what a size is read off has no units there."""
        value = self.values.get(leaf.args[0]) if leaf.op == "size" else None
        return isinstance(value, Labels) and leaf.args[1] < value.ndim and value.factor(leaf.args[1]) is None


def _with_singles(
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]], x: Labels, shape: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """View groups, where a single unit goes into the dims that what follows it goes into, as in a flatten.

    It does so where none of these is of size 1 and might be the unit's own, or where nothing else may be in it.
    """
    found = list(groups)
    for k in reversed(range(len(found))):
        (dims, new), m = found[k], k + 1
        if new or len(dims) != 1 or x.factor(dims[0]) is None:
            continue
        while m < len(found) and not found[m][1]:
            m += 1
        after, into = [d for g in found[k : m + 1] for d in g[0]], found[m][1] if m < len(found) else ()
        lone = len(into) == 1 and all(x.shape[d] == 1 for d in after)
        if into and (lone or min(shape[d] for d in into) > 1):
            found[k : m + 1] = [(tuple(after), into)]
    return found


def _united(
    groups: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], factors: Sequence[Factor]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """View groups, with those that share a joint factor made one."""
    pools = [(set(a), set(b)) for a, b in groups]
    for f in factors:
        touched = [p for p in pools if p[0] & set(f.dims)]
        if len(touched) > 1:
            pools = [p for p in pools if p not in touched]
            pools.append((set().union(*(p[0] for p in touched)), set().union(*(p[1] for p in touched))))
    return [(tuple(sorted(a)), tuple(sorted(b))) for a, b in pools]
