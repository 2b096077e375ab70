"""Layers and edges that come and go in a torch.fx graph, each as an operation that leaves ports where sizes differ."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..arguments import near, shown, whole
from ..building import Apply, Concat, Slot, Width, after, expected
from ..errors import RequestError
from ..graph import Graph, Vertex
from ..tracing import like, node_name, read_by
from . import modules as in_code
from .operation import Changed, Operation
from .ports import Port, layer, shape_of, with_size

CATS = (torch.cat, torch.concat, torch.concatenate)
ADDS = {operator.add, operator.iadd, torch.add}
SUMS = {*ADDS, operator.mul, torch.mul, operator.sub, torch.sub, operator.truediv, torch.div}


class Editor:
    """A copy of a model's graph to work on; the model gets it, and the modules it calls, when the work is done."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        if not isinstance(model, torch.fx.GraphModule):
            raise RequestError(
                f"edges of a {type(model).__name__} cannot be changed, as its forward is code: make a graph of it with "
                "sm.editable(model, args), or write it with sm.Builder"
            )
        self.model, self.captured = model, graph
        self.graph = copy.deepcopy(model.graph)
        self.called_by = _names(graph)
        self.ports: list[Port] = []
        self.alters: list[str] = []  # why outputs may not be what they were

    # -- nodes and vertices ----------------------------------------------------------------------------------------

    def find(self, target: Any, what: str) -> torch.fx.Node:
        """The node of a vertex, or of its name: the call of its module, or the node that bears the name."""
        if not isinstance(target, (str, Vertex)):
            raise RequestError(f"{what}: give a vertex or its name, not {shown(target)}")
        name = target.name if isinstance(target, Vertex) else target
        path, _, nth = name.partition("#")
        calls = [n for n in self.graph.nodes if n.op == "call_module" and n.target == path]
        kinds = ("call_function", "call_method", "placeholder")
        named = [n for n in self.graph.nodes if self.name(n) == name and n.op in kinds]
        k = int(nth or 1) - 1 if (nth or "1").isdigit() else 0
        if 0 <= k < len(calls):
            return calls[k]
        if named:
            return named[0]
        meant = near(name, [self.name(n) for n in self.graph.nodes if n.op != "output"])
        hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
        raise RequestError(f"{what}: {name!r} is no node of this graph by itself{hint}")

    def vertex(self, node: torch.fx.Node) -> Vertex:
        """The vertex whose output a node puts out: its own, or for a module that does nothing that of its input."""
        while (name := self.vertex_name(node)) not in self.captured and len(read_by(node)) == 1:
            (node,) = read_by(node)
        return self.captured[name]

    def vertex_name(self, node: torch.fx.Node) -> str:
        """The name its vertex gets; a module's second call is `name#2`."""
        if node.op != "call_module":
            return self.name(node)
        calls = [n for n in self.graph.nodes if n.op == "call_module" and n.target == node.target]
        nth = calls.index(node) + 1 if node in calls else 1
        return str(node.target) if nth == 1 else f"{node.target}#{nth}"

    def name(self, node: torch.fx.Node) -> str:
        """The vertex name of a node."""
        return str(node.target) if node.op == "call_module" else self.called_by.get(node.name, node.name)

    def module(self, node: torch.fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_cat(self, node: torch.fx.Node) -> bool:
        """Whether a node joins its inputs one after another."""
        return isinstance(self.module(node), Concat) or (node.op == "call_function" and node.target in CATS)

    def is_sum(self, node: torch.fx.Node) -> bool:
        """Whether a node is elementwise in two inputs."""
        return self.function(node) in SUMS and len(read_by(node)) == 2

    def function(self, node: torch.fx.Node) -> Any:
        """The function that a node calls, by itself or as a module; None where it calls a layer."""
        module = self.module(node)
        return module.function if isinstance(module, Apply) else node.target if node.op == "call_function" else None

    def set_inputs(self, node: torch.fx.Node, inputs: Sequence[torch.fx.Node]) -> None:
        """Other inputs for a concat."""
        node.args = tuple(inputs) if node.op == "call_module" else (list(inputs), *node.args[1:])

    def consumers(self, node: torch.fx.Node, chosen: Iterable[Any] | None) -> list[torch.fx.Node]:
        """The nodes that read a node: all, or those of the vertices that were named."""
        users = list(node.users)
        if chosen is None:
            return users
        names = [chosen] if isinstance(chosen, (str, Vertex)) else list(chosen)
        wanted = [self.find(v, "consumers") for v in names]
        for v in wanted:
            if v not in users:
                reads = ", ".join(map(self.name, read_by(v)))
                raise RequestError(f"{self.name(v)} does not read {self.name(node)}; it reads {reads}")
        return wanted

    # -- changes ---------------------------------------------------------------------------------------------------

    def add(self, name: str, module: nn.Module, behind: torch.fx.Node, *args: Any) -> torch.fx.Node:
        """A call of a new module, right behind a node."""
        parent, _, leaf = name.rpartition(".")
        taken = [k for k, _ in self.model.named_modules() if k == name]
        if taken or (not parent and hasattr(self.model, leaf)):
            raise RequestError(f"the name {name!r} is taken in this model; names are unique, so choose another")
        self.model.add_submodule(name, module)
        with self.graph.inserting_after(behind):
            return self.graph.call_module(name, args)

    def unused(self, title: str) -> str:
        """A name that no module and no node has."""
        names = {n.name for n in self.graph.nodes} | set(dict(self.model.named_modules())) | set(vars(self.model))
        return next(f"{title}_{k}" for k in range(len(names) + 1) if f"{title}_{k}" not in names)

    def port(
        self, source: torch.fx.Node, of: tuple[Sequence[int], int | None], size: int, **what: Any
    ) -> torch.fx.Node:
        """A port behind a node whose value has that shape, with its units in that dim, to another size."""
        shape, dim = of
        where = self.name(source)
        if dim is None:
            raise RequestError(f"{where} has no dim of units, so nothing can be aligned with it")
        name = self.unused("port")
        node = self.add(name, layer(shape, dim, size, like(self.model), where), source, source)
        self.ports.append(Port(name, **what))
        return node

    def value(self, vertex: Vertex) -> tuple[tuple[int, ...], int | None]:
        """The shape of what a vertex puts out, and the dim of its units."""
        return shape_of(self.captured, vertex), vertex.dim

    def sweep(self) -> set[str]:
        """Take out nodes that nothing reads, and what the model called or read and now does not; what it calls."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op not in ("output", "placeholder"):
                self.graph.erase_node(node)
        called = {str(n.target) for n in self.graph.nodes if n.op == "call_module"}
        around = {path[:k] for path in called for k, c in enumerate(path) if c == "."}
        for n in self.model.graph.nodes:
            if n.op == "call_module" and str(n.target) not in called | around:
                self.model.delete_submodule(str(n.target))
        self._drop_unread(called)
        return called

    def _drop_unread(self, called: set[str]) -> None:
        """Parameters and buffers that the graph itself read go with the nodes that read them."""
        read = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        for path in {str(n.target) for n in self.model.graph.nodes if n.op == "get_attr"} - read - called:
            parent, _, leaf = path.rpartition(".")
            holder = dict(self.model.named_modules()).get(parent)
            if hasattr(holder, leaf) and called.isdisjoint(path[:k] for k, c in enumerate(path) if c == "."):
                delattr(holder, leaf)

    def done(self) -> Changed:
        """Give the graph to the model."""
        called = self.sweep()
        _in_order(self.graph)
        self.graph.lint()
        self.model.graph = self.graph
        return Changed([p for p in self.ports if p.name in called], self.alters)


def _names(graph: Graph) -> dict[str, str]:
    """The vertices of functions by the names of their nodes, which are the names that the generated code gives.

    The two differ where layers run the same operation, and once a node is gone: vertices are numbered anew.
    """
    vertices = {node: v.name for v in graph.vertices for node in v.nodes}
    named = [(node_name(n), n.name) for n in graph.trace.nodes if n.name in vertices]
    return {name: vertices[value] for name, value in named if name is not None}


def strip(model: nn.Module, ports: Sequence[Port]) -> None:
    """Take the ports out: what came in goes on."""
    if not isinstance(model, torch.fx.GraphModule):
        in_code.strip(model, ports)
        return
    graph = copy.deepcopy(model.graph)
    for port in ports:
        (node,) = (n for n in graph.nodes if n.op == "call_module" and n.target == port.name)
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    model.graph = graph
    for port in ports:
        model.delete_submodule(port.name)


# -- the operations ----------------------------------------------------------------------------------------------------


def insert(after_: Any, before: Any, modules: Sequence[tuple[str, nn.Module]], consumers: Any) -> Operation:
    """Modules, one after another, behind a vertex for all or some that read it, or before one."""

    def change(model: nn.Module, graph: Graph) -> Changed:
        if not isinstance(model, torch.fx.GraphModule):
            target = after_ if before is None else before
            return in_code.insert(model, graph, target, modules, consumers, before is not None)
        editor = Editor(model, graph)
        if before is not None:
            target = editor.find(before, "insert")
            if len(sources := read_by(target)) != 1:
                raise RequestError(f"{_name(before)} has {len(sources)} inputs; insert after the one that is meant")
            source, users = sources[0], [target]
        else:
            source = editor.find(after_, "insert")
            users = editor.consumers(source, consumers)
        last = _chain(editor, editor.vertex(source), source, modules)
        for user in users:
            user.replace_input_with(source, last)
        return editor.done()

    beside = f"after {_name(after_)}" if before is None else f"before {_name(before)}"
    return Operation(f"insert {', '.join(name for name, _ in modules)} {beside}", change, strip)


def _chain(
    editor: Editor, vertex: Vertex, source: torch.fx.Node, modules: Sequence[tuple[str, nn.Module]]
) -> torch.fx.Node:
    """Modules behind a vertex, with ports wherever sizes are known to differ."""
    shape, dim = editor.value(vertex)
    last, width = source, Width(vertex.nout, dim)
    for name, module in modules:
        editor.alters.append(f"a layer came: {name}")
        wanted = expected(module)
        if len(wanted) == 1 and wanted[0][1].size not in (None, width.size):
            last = editor.port(last, (with_size(shape, dim, width.size), dim), int(wanted[0][1].size or 0))
            width = Width(wanted[0][1].size, dim)
        last = editor.add(name, module, last, last)
        width = after(module, [(name, width)], name)
    if width.size not in (None, vertex.nout):
        last = editor.port(last, (with_size(shape, dim, width.size), dim), vertex.nout)
    return last


def remove(target: Any, reconnect: Any) -> Operation:
    """A vertex goes; what it read goes on to those that read it: to all, to some, or to none."""

    def change(model: nn.Module, graph: Graph) -> Changed:
        if not isinstance(model, torch.fx.GraphModule):
            return in_code.remove(model, graph, target, reconnect)
        editor = Editor(model, graph)
        node = editor.find(target, "remove")
        vertex = editor.vertex(node)
        if node.op == "placeholder":
            raise RequestError(f"{vertex.name} is an input of the model, which callers give; it stays")
        inputs, users = read_by(node), list(node.users)
        kept = [] if reconnect in (None, "none") else editor.consumers(node, None if reconnect == "all" else reconnect)
        if any(u.op == "output" for u in users if u not in kept):
            raise RequestError(f"{vertex.name} is an output of the model; reconnect what it reads to it")
        editor.alters.append(f"a layer went: {_name(target)}")
        for user in users:
            _splice(editor, vertex, node, inputs if user in kept else [], user)
        return editor.done()

    return Operation(f"remove {_name(target)}", change, strip)


def _splice(
    editor: Editor, vertex: Vertex, node: torch.fx.Node, inputs: list[torch.fx.Node], user: torch.fx.Node
) -> None:
    """Put the inputs of a node that goes into the places that it held at one of its consumers."""
    if editor.is_cat(user):
        _splice_cat(editor, vertex, node, inputs, user)
        return
    if not inputs and editor.is_sum(user):
        others = [n for n in read_by(user) if n is not node]
        if not others:
            raise RequestError(f"{editor.name(user)} reads nothing but {vertex.name}; remove it first")
        user.replace_all_uses_with(others[0])
        return
    if len(inputs) != 1:
        what = "nothing" if not inputs else f"{len(inputs)} values"
        raise RequestError(f"{editor.name(user)} would read {what} in place of {vertex.name}; it takes one")
    user.replace_input_with(node, aligned(editor, inputs[0], vertex))


def aligned(editor: Editor, source: torch.fx.Node, vertex: Vertex) -> torch.fx.Node:
    """A value that is to stand where another stood: itself, or a port to the size that is expected."""
    from_vertex = editor.vertex(source)
    if from_vertex.nout == vertex.nout:
        return source
    return editor.port(source, editor.value(from_vertex), vertex.nout, vertex=vertex.name)


def _splice_cat(
    editor: Editor, vertex: Vertex, node: torch.fx.Node, inputs: list[torch.fx.Node], user: torch.fx.Node
) -> None:
    slots = read_by(user)
    sizes = sum(editor.vertex(n).nout for n in inputs)
    if inputs and sizes != vertex.nout:
        if len(inputs) > 1:
            raise RequestError(f"{editor.name(user)} would read {sizes} units in place of {vertex.nout}")
        inputs = [aligned(editor, inputs[0], vertex)]
    if not inputs:
        for k in reversed([k for k, n in enumerate(slots) if n is node]):
            _cut(editor, user, k)
        return
    editor.set_inputs(user, [x for n in slots for x in (inputs if n is node else [n])])


def _cut(editor: Editor, cat: torch.fx.Node, k: int) -> None:
    """Take one input out of a concat; those that read it lose just the positions that it had."""
    slots = read_by(cat)
    if len(slots) < 2:
        raise RequestError(f"{editor.name(cat)} reads nothing else; remove it instead")
    vertex = editor.vertex(cat)
    sizes = [editor.vertex(n).nout for n in slots]
    start = sum(sizes[:k])
    shape, dim = editor.value(vertex)
    left = [n for j, n in enumerate(slots) if j != k]
    users = list(cat.users)
    editor.set_inputs(cat, left)
    port = editor.port(
        cat, (with_size(shape, dim, sum(sizes) - sizes[k]), dim), sum(sizes), cut=(start, start + sizes[k])
    )
    for user in users:
        user.replace_input_with(cat, port)


def connect(source: Any, target: Any, position: int | None, merge: str) -> Operation:
    """One more input for an add or a concat; before another layer comes an add or a concat that it then reads."""

    def change(model: nn.Module, graph: Graph) -> Changed:
        editor = Editor(model, graph)
        new, node = editor.find(source, "connect"), editor.find(target, "connect")
        a, b = editor.vertex(new), editor.vertex(node)
        if new in _after(node) or new is node:
            raise RequestError(f"{a.name} comes after {b.name}, so an edge between them would run in a circle")
        if editor.is_cat(node):
            _join(editor, a, new, b, node, position)
        elif editor.is_sum(node):
            _add_term(editor, a, new, b, node, position)
        else:
            _merge_before(editor, a, new, node, position, merge)
        return editor.done()

    return Operation(f"connect {_name(source)} to {_name(target)}", change, strip)


def _join(editor: Editor, a: Vertex, new: torch.fx.Node, b: Vertex, cat: torch.fx.Node, position: int | None) -> None:
    slots = read_by(cat)
    k = len(slots) if position is None else whole(position, f"position={shown(position)}")
    if not -len(slots) <= k <= len(slots):
        raise RequestError(f"position={k}: {b.name} has {len(slots)} inputs")
    k %= len(slots) + 1
    at = sum(editor.vertex(n).nout for n in slots[:k])
    shape, dim = editor.value(b)
    users = list(cat.users)
    editor.set_inputs(cat, [*slots[:k], new, *slots[k:]])
    port = editor.port(cat, (with_size(shape, dim, b.nout + a.nout), dim), b.nout, new=a.nout, at=at)
    for user in users:
        user.replace_input_with(cat, port)


def _add_term(
    editor: Editor, a: Vertex, new: torch.fx.Node, b: Vertex, node: torch.fx.Node, position: int | None
) -> None:
    """One more term: behind the node, or added to the first of its inputs where it is to come before the second."""
    slots = read_by(node)
    k = len(slots) if position is None else whole(position, f"position={shown(position)}")
    if not -len(slots) <= k <= len(slots):
        raise RequestError(f"position={k}: {b.name} has {len(slots)} inputs")
    k %= len(slots) + 1
    if k < len(slots) and editor.function(node) not in ADDS:
        raise RequestError(f"position={k}: {b.name} is no sum; without position the term is added to what it gives")
    editor.alters.append(f"a term came: {a.name}")
    if k == len(slots):
        users, term = list(node.users), aligned(editor, new, b)
        total = editor.add(editor.unused("add"), Apply(operator.add, (Slot(0), Slot(1))), node, node, term)
        for user in users:
            user.replace_input_with(node, total)
        return
    first, term = slots[0], aligned(editor, new, editor.vertex(slots[0]))
    order = (first, term) if k else (term, first)
    total = editor.add(editor.unused("add"), Apply(operator.add, (Slot(0), Slot(1))), term, *order)
    rest = iter([total, *slots[1:]])
    node.args, node.kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: next(rest))


def _merge_before(
    editor: Editor, a: Vertex, new: torch.fx.Node, node: torch.fx.Node, position: int | None, merge: str
) -> None:
    inputs = read_by(node)
    if len(inputs) != 1:
        raise RequestError(
            f"{editor.name(node)} has {len(inputs)} inputs and is no add or concat; connect to one of those"
        )
    old = editor.vertex(inputs[0])
    shape, dim = editor.value(old)
    if merge == "add":
        editor.alters.append(f"a term came: {a.name}")
        term = aligned(editor, new, old)
        both = editor.add(editor.unused("add"), Apply(operator.add, (Slot(0), Slot(1))), inputs[0], inputs[0], term)
        node.replace_input_with(inputs[0], both)
        return
    first = position is not None and whole(position, f"position={shown(position)}") == 0
    order = [new, inputs[0]] if first else [inputs[0], new]
    cat = editor.add(editor.unused("cat"), Concat(int(dim or 0)), inputs[0], *order)
    at = 0 if first else old.nout
    port = editor.port(cat, (with_size(shape, dim, old.nout + a.nout), dim), old.nout, new=a.nout, at=at)
    node.replace_input_with(inputs[0], port)
    cat.args = tuple(order)  # the line before replaced its own input, too


def disconnect(source: Any, target: Any, nr: int) -> Operation:
    """An input of an add or a concat goes, the nr-th of those that read the same vertex."""

    def change(model: nn.Module, graph: Graph) -> Changed:
        editor = Editor(model, graph)
        old, node = editor.find(source, "disconnect"), editor.find(target, "disconnect")
        a, b = editor.vertex(old), editor.vertex(node)
        editor.alters.append(f"an input went: {a.name}")
        places = [k for k, n in enumerate(read_by(node)) if n is old]
        if not 0 <= nr < len(places):
            raise RequestError(f"nr={nr}: {b.name} reads {a.name} {len(places)} times")
        if editor.is_cat(node):
            _cut(editor, node, places[nr])
        elif editor.is_sum(node):
            other = read_by(node)[1 - places[nr]]
            node.replace_all_uses_with(other)
        else:
            raise RequestError(f"{b.name} is no add or concat: without {a.name} it would read nothing; remove it")
        return editor.done()

    return Operation(f"disconnect {_name(source)} from {_name(target)}", change, strip)


def _name(target: Any) -> str:
    return target.name if isinstance(target, Vertex) else str(target)


def _after(node: torch.fx.Node) -> set[torch.fx.Node]:
    seen: set[torch.fx.Node] = set()
    todo: list[torch.fx.Node] = list(node.users)
    while todo:
        n = todo.pop()
        if n not in seen:
            seen.add(n)
            todo += n.users
    return seen


def _in_order(graph: torch.fx.Graph) -> None:
    """Inputs first, every node behind what it reads; otherwise the order stays."""
    placed: set[torch.fx.Node] = set()
    waiting = sorted(graph.nodes, key=lambda n: n.op != "placeholder")
    where: torch.fx.Node | None = None
    while waiting:
        last = len(waiting) == 1
        ready = next(n for n in waiting if placed.issuperset(n.all_input_nodes) and (n.op != "output" or last))
        if where is not None:
            where.append(ready)
        else:
            graph._root.append(ready)
        where = ready
        placed.add(ready)
        waiting.remove(ready)
