"""Branches: parts of a network without which it can be run.

What a network adds to a stream, and what runs for that alone: without it the sum is its other side. Found from the
graph: of each sum of two tensors of one shape, the operations that nothing else reads. And outside of these, modules
that put out what their one input could stand for: tensors of its shape. No torch here, so whether a model runs without
one is for others to try.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..costs import COSTS
from ..coupling import Coupling
from ..trace import Node, Trace, layer_of

PRODUCTS = {"mul"}  # zero where one of their factors is
HOMOGENEOUS = {  # zero where the first of what they read is
    *("dropout", "relu", "gelu", "silu", "tanh", "neg", "div", "to", "_to_copy", "type_as", "clone"),
    *("contiguous", "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze"),
    *("getitem", "slice", "select", "chunk", "split", "unbind", "expand", "roll", "feature_dropout"),
}


@dataclass(frozen=True)
class Branch:
    """One side of a sum, or a module between two tensors of one shape, which may go: operations and their modules.

    `modules` are the outermost, in the order in which they run. The last of the side of a `sum` is what then gives
    zeros, all others pass on what they are given; then the values `passed` are one, the input and the output. Shares
    are of the model: what goes with them.
    """

    name: str
    modules: tuple[str, ...]
    nodes: frozenset[str]
    params: frozenset[str]  # by value name: those that nothing else reads
    sum: str = ""  # the node
    passed: tuple[str, ...] = ()
    flops_share: float = 0.0
    params_share: float = 0.0

    def __str__(self) -> str:
        shares = f"{100 * self.flops_share:.1f} % of FLOPs, {100 * self.params_share:.1f} % of params"
        return f"{self.name}: {', '.join(self.modules)}; {shares}"


class _Finder:
    def __init__(self, coupling: Coupling, callable_modules: set[str]) -> None:
        self.trace, self.callable = coupling.trace, callable_modules
        runs = [n for n in self.trace.nodes if not n.op.startswith("_assert")]  # what is only asserted reads nothing
        self.nodes = [n for n in runs if not n.tag]
        self.place = {n.name: k for k, n in enumerate(self.nodes)}
        self.readers: dict[str, list[Node]] = {}
        for n in runs:
            for r in dict.fromkeys(n.refs()):
                self.readers.setdefault(r, []).append(n)
        self.work: dict[str, int] = {}  # FLOPs by node
        for m in COSTS["flops"](coupling).monomials:
            self.work[m.of] = self.work.get(m.of, 0) + m.now
        self.before: dict[str, set[str]] = {}  # by value all that it depends on
        for node in self.nodes:
            of = [r for r in node.refs() if r not in self.trace.params]
            self.before[node.name] = set(of).union(*(self.before.get(r, set()) for r in of))

    def found(self) -> list[Branch]:
        """A branch for each sum that has one: where both of its sides could go, the one that works more."""
        branches = []
        for node in self.nodes:
            sides = list(node.refs())
            if node.op == "add" and len(sides) == 2 and self._alike(node, sides):
                both = [self._branch(node, *sides), self._branch(node, *reversed(sides))]
                some = [b for b in both if b is not None]
                branches += [max(some, key=lambda b: b.flops_share)] if some else []
        return branches

    def _alike(self, node: Node, sides: Sequence[str]) -> bool:
        same = all(s not in self.trace.params and self.trace.shape(s) == node.shape for s in sides)
        return same and sides[0] != sides[1]

    def _flops(self, nodes: Iterable[str]) -> int:
        return sum(self.work.get(x, 0) for x in nodes)

    def _side(self, node: Node, side: str, other: str) -> frozenset[str]:
        """What runs for one side of a sum alone; nothing, unless that starts from what the other side has, too."""
        inside: set[str] = set()
        for x in reversed(self.nodes[: self.place.get(side, -1) + 1]):
            readers = [r.name for r in self.readers.get(x.name, ()) if not r.tag]
            alone = readers == [node.name] if x.name == side else bool(readers) and inside.issuperset(readers)
            if alone and x.name not in self.trace.outputs:
                inside.add(x.name)
        if side not in inside:
            return frozenset()
        read = {r for x in inside for r in self.trace.node(x).refs()} - inside - self.trace.params.keys()
        known = self.before.get(other, set()) | {other}  # zeros are as many as what a module is given, so:
        return frozenset(inside) if any(self.trace.shape(r) == node.shape for r in read & known) else frozenset()

    def _branch(self, node: Node, side: str, other: str) -> Branch | None:
        """A side with its modules; None where no modules work for it alone, or their zeros would not end it."""
        paths = self._outermost(self._side(node, side, other))
        mine, params = inside(self.trace, paths)
        if not self._flops(mine) or not self._vanishes(side, paths[-1]):
            return None
        return self._shared(Branch("", tuple(paths), mine, params, node.name))

    def _shared(self, b: Branch) -> Branch:
        """With its shares of the model."""
        sizes = {v: p.numel for v, p in self.trace.params.items() if p.kind == "parameter"}
        return replace(
            b,
            flops_share=self._flops(b.nodes) / max(1, self._flops(self.work)),
            params_share=sum(sizes.get(v, 0) for v in b.params) / max(1, sum(sizes.values())),
        )

    def layers(self, branches: Sequence[Branch]) -> list[Branch]:
        """Modules that put out a tensor of the shape of their one input, no part of a branch, nor with one in it."""
        taken, total = frozenset[str]().union(*(b.nodes for b in branches)), self._flops(self.work)
        found: dict[frozenset[str], Branch] = {}  # the outermost of those that run the same
        for path in sorted(self.callable):
            mine, params = inside(self.trace, [path])
            if not 0 < self._flops(mine) < total or taken & mine or (ends := self._ends(mine)) is None:
                continue
            found.setdefault(mine, self._shared(Branch(path, (path,), mine, params, passed=ends)))
        return sorted(found.values(), key=lambda b: min(self.place[x] for x in b.nodes if x in self.place))

    def _ends(self, mine: frozenset[str]) -> tuple[str, str] | None:
        """The one value that some operations read, and the one that others read of them, where they have one shape."""
        nodes = [n for n in self.nodes if n.name in mine]
        read = {r for n in nodes for r in n.refs()} - mine - self.trace.params.keys()
        made = {n.name for n in nodes if n.name in self.trace.outputs or self._is_read(n, mine)}
        if len(read) != 1 or len(made) != 1:
            return None
        (x,), (y,) = read, made
        return (x, y) if self.trace.shape(x) == self.trace.shape(y) else None

    def _is_read(self, node: Node, mine: frozenset[str]) -> bool:
        return any(r.name not in mine for r in self.readers.get(node.name, ()))

    def _vanishes(self, value: str, module: str) -> bool:
        """Whether a value is zero where a module gives zeros."""
        if value not in self.place:
            return False
        x = self.nodes[self.place[value]]
        if _in(x, module):
            return True
        if x.op not in HOMOGENEOUS | PRODUCTS:
            return False
        return any(self._vanishes(r, module) for r in (x.refs() if x.op in PRODUCTS else x.refs()[:1]))

    def _outermost(self, inside: frozenset[str]) -> list[str]:
        """The outermost modules that can be called, all of whose operations are inside, as they come to run."""
        by_path: dict[str, bool] = {}
        for x in self.nodes:
            parts = layer_of(x.module).split(".")
            for k in range(1, len(parts) + 1):
                path = ".".join(parts[:k])
                by_path[path] = by_path.get(path, True) and x.name in inside
        whole = {p for p, mine in by_path.items() if mine and p in self.callable}
        outer = [p for p in whole if not any(p.startswith(q + ".") for q in whole)]
        return sorted(outer, key=lambda p: next(k for k, x in enumerate(self.nodes) if _in(x, p)))

    def main(self, b: Branch) -> str:
        """The module of a branch that works most."""
        return max(b.modules, key=lambda p: self._flops(x.name for x in self.nodes if _in(x, p)))


def branches_of(coupling: Coupling, callable_modules: Iterable[str]) -> list[Branch]:
    """The branches of a network, in the order in which they run, named by where they stand; then layers, likewise."""
    finder = _Finder(coupling, set(callable_modules))
    found = finder.found()
    homes = [_common(b.modules) for b in found]
    alone = [bool(home) and homes.count(home) == 1 for home in homes]
    taken: set[str] = set()
    named = []
    for b, home, only in zip(found, homes, alone, strict=True):
        wanted = (home if only else finder.main(b), b.modules[-1], b.modules[0], f"{b.modules[0]} to {b.modules[-1]}")
        name = next((n for n in wanted if n not in taken), b.sum)
        taken.add(name)
        named.append(replace(b, name=name))
    return named + finder.layers(named)


def inside(trace: Trace, paths: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The operations of the first call that modules run, and the values of parameters that nothing else reads."""
    runs = [n for n in trace.nodes if not n.op.startswith("_assert")]  # what is only asserted reads nothing
    mine = {n.name for n in runs if any(_in(n, p) for p in paths)}
    read = {r for n in runs if n.name in mine for r in n.refs()} & trace.params.keys()
    elsewhere = {r for n in runs if n.name not in mine for r in n.refs()}
    return frozenset(n.name for n in runs if n.name in mine and not n.tag), frozenset(read - elsewhere)


def _in(x: Node, path: str) -> bool:
    return layer_of(x.module) == path or layer_of(x.module).startswith(path + ".")


def _common(paths: Sequence[str]) -> str:
    """The module that all of them lie in; the one itself."""
    if len(paths) == 1:
        return paths[0]
    homes = [p.split(".")[:-1] for p in paths]
    same = 0
    while all(len(h) > same for h in homes) and len({h[same] for h in homes}) == 1:
        same += 1
    return ".".join(homes[0][:same])
