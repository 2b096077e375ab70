"""Grafts: a model gets the back of another one in place of its own, behind a vertex that everything passes through."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..graph import Graph
from .graphs import Editor, aligned, strip
from .operation import Changed, Operation


@dataclass(frozen=True)
class Cut:
    """A vertex between front and back of a model: where it stands, from 0 to 1, and the value that passes there."""

    vertex: str
    position: float
    shape: tuple[int, ...]
    dim: int

    def fits(self, other: Cut) -> bool:
        """Whether the values have one shape, but for the number of units."""
        return self.dim == other.dim and _but(self.shape, self.dim) == _but(other.shape, other.dim)


def _but(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    return tuple(0 if d == dim else n for d, n in enumerate(shape))


def cuts(model: nn.Module, graph: Graph) -> list[Cut]:
    """The vertices through which everything passes on its way from the inputs to the outputs, in the model's order."""
    editor, found = Editor(model, graph), []
    nodes = list(editor.graph.nodes)
    for k, node in enumerate(nodes):
        if node.op == "placeholder" or editor.vertex_name(node) not in graph or not _is_cut(nodes[-1], node):
            continue
        shape, dim = editor.value(editor.vertex(node))
        if dim is not None:
            found.append(Cut(editor.vertex_name(node), k / len(nodes), shape, dim % len(shape)))
    return found


def _is_cut(output: torch.fx.Node, node: torch.fx.Node) -> bool:
    if any(u.target is operator.getitem for u in node.users):  # several values pass there
        return False
    back = _back(output, node)
    return any(n.op.startswith("call") for n in back) and not any(n.op == "placeholder" for n in back)


def _back(output: torch.fx.Node, node: torch.fx.Node) -> set[torch.fx.Node]:
    """What the output needs besides a node."""
    found: set[torch.fx.Node] = set()
    todo = list(output.all_input_nodes)
    while todo:
        n = todo.pop()
        if n not in found and n is not node:
            found.add(n)
            todo += n.all_input_nodes
    return found


def graft(front: str, donor: nn.Module, donor_graph: Graph, back: str) -> Operation:
    """What comes behind the vertex `front` goes; a copy of what the donor has behind `back` takes its place."""

    def change(model: nn.Module, graph: Graph) -> Changed:
        editor, other = Editor(model, graph), Editor(copy.deepcopy(donor), donor_graph)
        node, start = editor.find(front, "graft"), other.find(back, "graft")
        output, wanted = list(editor.graph.nodes)[-1], list(other.graph.nodes)[-1]
        editor.alters.append(f"what came behind {front} went")
        output.args = (node,)
        editor.sweep()
        behind = _back(wanted, start)
        made = {start: aligned(editor, node, other.vertex(start))}
        names: dict[str, str] = {}
        with editor.graph.inserting_before(output):
            for n in other.graph.nodes:
                if n in behind:
                    made[n] = editor.graph.node_copy(n, made.__getitem__)
                    if n.op in ("call_module", "get_attr"):
                        path = str(n.target)
                        names[path] = names.get(path) or _moved(editor, other, path)
                        made[n].target = names[path]
        output.args = torch.fx.node.map_arg(wanted.args, made.__getitem__)
        return editor.done()

    return Operation(f"graft what comes behind {back} to {front}", change, strip)


def _moved(editor: Editor, other: Editor, path: str) -> str:
    """Enter a module, parameter or buffer of the other model in this one; the name that it gets."""
    parent, _, leaf = path.rpartition(".")
    holder = other.model.get_submodule(parent)
    thing = getattr(holder, leaf)
    name = path if _is_free(editor, path) else editor.unused(leaf)
    around, _, last = name.rpartition(".")
    if isinstance(thing, nn.Module):
        if other.model.training != editor.model.training:
            thing.train(editor.model.training)
        editor.model.add_submodule(name, thing)
        return name
    if around and around not in dict(editor.model.named_modules()):
        editor.model.add_submodule(around, nn.Module())
    target: Any = editor.model.get_submodule(around)
    if leaf in holder._buffers:
        target.register_buffer(last, thing, persistent=leaf not in holder._non_persistent_buffers_set)
    else:
        setattr(target, last, thing)
    return name


def _is_free(editor: Editor, path: str) -> bool:
    """Whether a path leads through modules that hold others, to a name that is not taken."""
    called = {str(n.target) for n in editor.graph.nodes if n.op == "call_module"}
    parts, at = path.split("."), editor.model
    for k, part in enumerate(parts):
        if not hasattr(at, part):
            return True
        at = getattr(at, part)
        if not isinstance(at, nn.Module) or ".".join(parts[: k + 1]) in called:
            return False
    return False
