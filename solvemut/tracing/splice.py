"""Splicing: the trace of a changed torch.fx graph, put together from parts of what it was and from layers that came.

Nodes that are as they were, and read values of the shapes they read, keep their operations; layers that came, or read
something else, are captured alone, on zeros of the shapes they read. Values are named in the order of a new capture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..trace import Guard, Node, Param, Ref, Size, Trace, renamed_guard, renamed_node, renamed_size
from .export import trace_module
from .modules import zeros
from .parts import CALLS, Part, called, form, parts_of, read_by

_NUMBERED = re.compile(r"_\d+$")


def spliced(model: nn.Module, graph: torch.fx.Graph, trace: Trace) -> Trace | None:
    """The trace of a model whose graph was `graph` when `trace` was captured, and has changed since.

    Nodes that are as they were, and read values of the shapes they read, keep their operations; layers that came, or
    read something else, are captured alone. None where that cannot be done.
    """
    if not isinstance(model, torch.fx.GraphModule) or len(trace.returned) != 1:
        return None
    parts = parts_of(graph, trace)
    return None if parts is None else _Splice(model, graph, trace, parts).trace()


class _Splice:
    """A trace that grows node by node."""

    def __init__(
        self, model: torch.fx.GraphModule, graph: torch.fx.Graph, trace: Trace, parts: Mapping[str, Part]
    ) -> None:
        self.model, self.old, self.parts = model, trace, parts
        self.were = {n.name: (n.op, n.target, *form(n)) for n in graph.nodes}
        self.shapes: dict[str, tuple[int, ...]] = {**trace.inputs, **{k: p.shape for k, p in trace.params.items()}}
        self.names = torch.fx.graph._Namespace()
        for value in (*trace.inputs, *trace.params):
            self.names.create_name(value, None)
        self.nodes: list[Node] = []
        self.new: dict[str, str] = {}  # values of the old trace under their new names
        self.params: dict[str, Param] = dict(trace.params)
        self.attributes = dict(trace.attributes)
        self.guards: list[Guard] = []
        self.numbers: list[tuple[Size, str]] = []
        self.paths = dict(model.named_modules())
        named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        self.times = Counter(id(t) for tensors in named for _, t in tensors)

    def trace(self) -> Trace | None:
        value: dict[str, str] = {}
        for node in self.model.graph.nodes:
            read = [value[n.name] for n in read_by(node)]
            if node.op == "output":
                return self._whole(read)
            part = self.parts.get(node.name)
            if part is not None and node.op in CALLS and not self._is_as_it_was(node, part, read):
                part = None
            made = self._alone(node, read) if part is None else self._again(part, read)
            if made is None:
                return None
            value[node.name] = made
        return None

    def _is_as_it_was(self, node: torch.fx.Node, part: Part, read: Sequence[str]) -> bool:
        if self.were[node.name] != (node.op, node.target, *form(node)):
            return False
        return [self.old.shape(v) for v in part.inputs] == [self.shapes[v] for v in read]

    def _again(self, part: Part, read: Sequence[str]) -> str:
        """The operations of a part once more, on the values that are read now."""
        if not part.nodes and part.inputs:
            return read[0]
        return self._placed(part.nodes, dict(zip(part.inputs, read, strict=True)), part.value)

    def _placed(self, nodes: Iterable[Node], names: dict[str, str], value: str) -> str:
        """Append operations whose values go by other names; returns the name of `value`."""
        for n in nodes:
            names[n.name] = self.new[n.name] = self.names.create_name(_NUMBERED.sub("", n.name), None)
            placed = renamed_node(n, names)
            self.nodes.append(placed)
            self.shapes[placed.name] = placed.shape
        return names.get(value, value)

    def _alone(self, node: torch.fx.Node, read: Sequence[str]) -> str | None:
        """The operations of a layer that came, or reads something else, captured on zeros of the shapes it reads."""
        if node.op not in CALLS or self._shares(node):
            return None
        try:
            given = zeros(self.model, (self.shapes[v] for v in read))
            found = trace_module(_Alone(self.model, node), given)
        except Exception:
            return None
        known = {p.name: value for value, p in self.params.items()}
        names = dict(zip(found.inputs, read, strict=False))
        if len(found.outputs) != 1 or len(found.inputs) != len(read):
            return None
        for k, p in found.params.items():
            if p.kind == "constant":
                return None
            names[k] = known.get(p.name) or self.names.create_name(k, None)
            self.params[names[k]], self.shapes[names[k]] = p, p.shape
        line = f"<eval_with_key>:0: {node.name} = {node.target}"
        nodes = [replace(n, source=line) if not n.module else n for n in found.nodes]
        value = self._placed(nodes, names, found.outputs[0])
        self.attributes.update(found.attributes)
        self.guards += [renamed_guard(g, names) for g in found.guards]
        self.numbers += [(renamed_size(s, names), place) for s, place in found.numbers]
        return value

    def _shares(self, node: torch.fx.Node) -> bool:
        """Whether a tensor of the layer that a node calls goes by another name, too."""
        if node.op != "call_module":
            return False
        module = self.model.get_submodule(str(node.target))
        return any(self.times[id(t)] > 1 for t in (*module.parameters(), *module.buffers()))

    def _whole(self, returned: list[str]) -> Trace | None:
        form, *leaves = self.old.returned[0]
        if len(leaves) != len(returned) or not all(isinstance(x, Ref) for x in leaves):
            return None
        read = {r for n in self.nodes for r in n.refs()} | set(returned)
        asked = {leaf.args[0] for n in self.nodes for s in n.sizes.values() for leaf in s.leaves() if leaf.op == "size"}
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        value_of = {p.name: value for value, p in self.params.items() if value in read | asked}
        params = {value_of[name]: self.params[value_of[name]] for name, _ in tensors if name in value_of}
        params.update((v, p) for v, p in self.params.items() if v in read | asked and v not in params)
        here = {a for p in params.values() for a in (p.name, *p.aliases)}
        names = {**{v: v for v in (*self.old.inputs, *params)}, **self.new}
        guards = [renamed_guard(g, names) for g in self.old.guards if self._stands((g.left, g.right), names)]
        numbers = [(renamed_size(s, names), place) for s, place in self.old.numbers if self._stands((s,), names)]
        guards, numbers = [*guards, *self.guards], [*numbers, *self.numbers]
        sizes = [*(s for n in self.nodes for s in n.sizes.values()), *(s for s, _ in numbers)]
        sizes += [s for g in guards for s in (g.left, g.right)]
        used = {leaf for s in sizes for leaf in s.leaves() if leaf.op == "attr"}
        return replace(
            self.old,
            params=params,
            nodes=tuple(self.nodes),
            outputs=tuple(dict.fromkeys(returned)),
            unused=tuple(Param(k, tuple(p.shape)) for k, p in self.model.named_parameters() if k not in here),
            attributes={a: v for a, v in self.attributes.items() if a in used},
            numbers=tuple(dict.fromkeys(numbers)),
            guards=tuple(dict.fromkeys(guards)),
            returned=((form, *(Ref(v) for v in returned)),),
            calls=(),
        ).validate()

    def _stands(self, sizes: Iterable[Size], names: Mapping[str, str]) -> bool:
        """Whether all that sizes are read off is still there."""
        return all(
            leaf.args[0] in (names if leaf.op == "size" else self.paths)
            for s in sizes
            for leaf in s.leaves()
            if leaf.op in ("size", "attr")
        )


class _Alone(nn.Module):
    """What one node of a graph does, as a model; a layer that it calls keeps its path."""

    def __init__(self, model: nn.Module, node: torch.fx.Node) -> None:
        super().__init__()
        self._node = node
        if node.op == "call_module":
            *parents, leaf = str(node.target).split(".")
            at: nn.Module = self
            for name in parents:
                at.add_module(name, nn.Module())
                at = at.get_submodule(name)
            at.add_module(leaf, model.get_submodule(str(node.target)))

    def forward(self, *inputs: torch.Tensor) -> Any:
        module = self.get_submodule(str(self._node.target)) if self._node.op == "call_module" else None
        return called(self._node, inputs, None if module is None else lambda args, kwargs: module(*args, **kwargs))
