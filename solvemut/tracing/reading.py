"""Reading: the graph that torch.export made, with what the recorder noted, as a `Trace`."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..rules import OPS
from ..trace import Call, Guard, Node, Param, Ref, Size, Trace, sizes_in
from .modules import held_tensors, repeats
from .objects import kinds_in
from .open_sizes import is_open, largest, shape_of
from .recording import CALL, ID, KEY, Recorder


class Reader:
    """Reads an exported program into a trace."""

    def __init__(self, model: nn.Module, exported: Any, recorder: Recorder) -> None:
        self.model = model
        self.recorder = recorder
        self.graph = exported.graph
        self.signature = exported.graph_signature
        self.constants = exported.constants
        self.form = exported.call_spec.out_spec
        self.lost = {k: (list(dict.fromkeys(sizes)), place) for k, (sizes, place) in recorder.lost.items()}
        self.values: dict[torch.fx.Node, str] = {}
        self.names = {n.meta[ID]: n.name for n in self.graph.nodes if ID in n.meta}

    def trace(self) -> Trace:
        params, rename = self._params()
        user = set(self.signature.user_inputs)
        inputs: dict[str, tuple[int, ...]] = {}
        nodes: list[Node] = []
        outputs: list[str] = []
        self.rename = rename
        for n in self.graph.nodes:
            value = n.meta.get("val")
            if n.op == "placeholder" and n.name not in rename and isinstance(value, torch.Tensor):
                if n.name in user:
                    inputs[n.name] = shape_of(value)
                else:
                    params[n.name] = Param(n.name, tuple(value.shape), "constant", digest=self._digest(n.name))
        self._read(self.graph, "", nodes, params)
        self._attention_widths(nodes)
        for n in self.graph.nodes:
            if n.op == "output":
                outputs = [self._name(m) for m in n.all_input_nodes]
        mutated = set(self.signature.buffers_to_mutate) | set(self.signature.user_inputs_to_mutate)
        outputs = [o for o in outputs if o not in mutated]
        root = type(self.model).__name__
        noted = self.recorder.noted
        lost = [(size, place) for sizes, place in self.lost.values() for size in sizes]
        numbers = tuple(dict.fromkeys((self._named(size), place) for size, place in [*noted.numbers, *lost]))
        guards = tuple(
            dict.fromkeys(replace(g, left=self._named(g.left), right=self._named(g.right)) for g in noted.guards)
        )
        sizes = [*(s for n in nodes for s in n.sizes.values()), *(s for s, _ in numbers)]
        sizes += [s for g in guards for s in (g.left, g.right)]
        calls = () if self.recorder.opaque else tuple(self._call(c) for c in self.recorder.calls)
        asked = {leaf.args[0] for s in (*sizes, *sizes_in(calls)) for leaf in s.leaves() if leaf.op == "size"}
        read = {r for node in nodes for r in node.refs()} | set(outputs) | asked
        used = {k: p for k, p in params.items() if k in read}
        seen = {a for p in used.values() for a in (p.name, *p.aliases)}
        unused = tuple(Param(k, tuple(p.shape)) for k, p in self.model.named_parameters() if k not in seen)
        guards += self._layer_widths({leaf for s in sizes for leaf in s.leaves() if leaf.op == "attr"}, used)
        sizes += [s for g in guards for s in (g.left, g.right)]
        attributes = {leaf: self._attribute(leaf) for s in sizes for leaf in s.leaves() if leaf.op == "attr"}
        return Trace(
            used,
            inputs,
            tuple(nodes),
            tuple(dict.fromkeys(outputs)),
            unused,
            root,
            attributes,
            numbers,
            guards,
            (self._returned(),),
            (calls,) if calls else (),
            self._notes(),
        ).validate()

    def _notes(self) -> tuple[str, ...]:
        """What costs and shapes do not tell exactly."""
        made = [v for n in self.graph.nodes for v in pytree.tree_leaves(n.meta.get("val"))]
        found = []
        if any(isinstance(v, torch.Tensor) and any(map(is_open, v.shape)) for v in made):
            found.append("sizes that depend on data count as the largest that they can be")
        for name in kinds_in(self.form):
            found.append(
                f"what a {name} that the call returns holds is output and stays; a call without it leaves it free"
            )
        kept = [name for name, held in held_tensors(self.model) if not any(held is c for c in self.constants.values())]
        if kept := list(dict.fromkeys(kept)):
            more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
            found.append(
                f"{', '.join(kept[:3])}{more} hold tensors that are no parameters or buffers and that the call did not "
                "read: what was computed of weights before a change must be emptied after it"
            )
        return tuple(found)

    def _returned(self) -> tuple[Any, ...]:
        """The form of what the call returns, unless it is plain, and its leaves."""
        nodes = {m.name: m for n in self.graph.nodes if n.op == "output" for m in n.all_input_nodes}
        leaves = tuple(
            Ref(self._name(nodes[found])) if isinstance(found, str) and found in nodes else found
            for found in self.signature.user_outputs
        )
        plain = (pytree.tree_structure(0), pytree.tree_structure((0,) * len(leaves)))
        return ("" if self.form in plain else str(self.form), *leaves)

    def _layer_widths(self, attributes: set[Size], params: Mapping[str, Param]) -> tuple[Guard, ...]:
        """Attributes in which torch's own layers repeat the sizes of their tensors go with those sizes."""
        value_of = {a: value for value, p in params.items() for a in (p.name, *p.aliases)}
        found = []
        for leaf in attributes:
            path, name, index = leaf.args
            module = self.model.get_submodule(path)
            now = getattr(module, name, None)
            row = next(((r, dim) for r, dim, size in repeats(module) if r.attribute == name and size == now), None)
            value = None if row is None else value_of.get(f"{path}.{row[0].tensor}".lstrip("."))
            if row is None or value is None or index is not None:
                continue
            repeat, dim = row
            size = Size("size", (value, dim))
            if repeat.per_group and dim == 1 and module.groups > 1:  # type: ignore[operator]
                size = Size("*", (size, Size("attr", (path, "groups", None))))
            found.append(Guard("==", leaf, size, True, f"a {type(module).__name__} repeats it"))
        return tuple(found)

    def _call(self, call: Call) -> Call:
        """A recorded call, with the values of the trace."""

        def named(a: Any) -> Any:
            if isinstance(a, Size):
                return self._named(a)
            return tuple(named(x) for x in a) if isinstance(a, tuple) else a

        outs = tuple(self._value(x) if isinstance(x, int) else x for x in call.outs)
        return Call(call.func, named(call.args), outs)

    def _value(self, number: int) -> str | None:
        name = self.names.get(number)
        return None if name is None else self.rename.get(name, name)

    def _read(self, graph: Any, prefix: str, nodes: list[Node], params: dict[str, Param]) -> None:
        """Append the nodes of a graph; blocks that export wraps (no_grad, autocast) are read in place."""
        elements: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        for n in graph.nodes:
            if n.op == "get_attr" and isinstance(n.meta.get("val"), torch.Tensor):
                self.values[n] = prefix + n.name
                params[prefix + n.name] = Param(str(n.target), tuple(n.meta["val"].shape), "constant")
            elif n.op != "call_function" or _of_open_sizes(n):
                continue
            elif (block := _wrapped(n)) is not None:
                inner, operands = block
                holes = [m for m in inner.nodes if m.op == "placeholder"]
                self.values.update({m: self._name(a) for m, a in zip(holes, operands, strict=True)})
                self._read(inner, f"{prefix}{n.name}.", nodes, params)
                elements[n] = list(next(m for m in inner.nodes if m.op == "output").args[0])
            elif n.target is operator.getitem and n.args[0] in elements:
                self.values[n] = self._name(elements[n.args[0]][n.args[1]])
            else:
                self.values.setdefault(n, prefix + n.name)
                if ID in n.meta:
                    self.names[n.meta[ID]] = self.values[n]
                nodes.append(self._node(n))

    def _digest(self, placeholder: str) -> str:
        """The numbers of a tensor that the forward wrote down (`torch.tensor(...)`), in short."""
        target = self.signature.inputs_to_lifted_tensor_constants.get(placeholder)
        if target is None or not target.startswith("lifted_tensor"):
            return ""
        value = self.constants.get(target)
        if not isinstance(value, torch.Tensor) or value.is_meta:
            return ""
        if value.numel() == 1:
            return f"={value.item()}"
        data = value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64).contiguous()
        return "#" + hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]

    def _name(self, n: torch.fx.Node) -> str:
        return self.values.get(n) or self.rename.get(n.name, n.name)

    def _attribute(self, leaf: Size) -> int:
        module, name, index = leaf.args
        value = getattr(self.model.get_submodule(module), name)
        return int(value if index is None else value[index])

    def _params(self) -> tuple[dict[str, Param], dict[str, str]]:
        """Parameters and buffers by value name; names of the same tensor are one parameter."""
        sig = self.signature
        targets = {**sig.inputs_to_parameters, **sig.inputs_to_buffers}
        live: dict[str, torch.Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        live.update(self.model.named_buffers(remove_duplicate=False))
        names: dict[int, list[str]] = {}
        for name, tensor in live.items():
            names.setdefault(id(tensor), []).append(name)
        params: dict[str, Param] = {}
        first: dict[int, str] = {}
        rename: dict[str, str] = {}
        for placeholder, target in targets.items():
            if target not in live:
                continue
            tensor = live[target]
            value = first.setdefault(id(tensor), placeholder)
            rename[placeholder] = value
            if value == placeholder:
                main, *others = names[id(tensor)]
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                params[value] = Param(main, tuple(tensor.shape), kind, tuple(others))
        return params, rename

    def _node(self, n: torch.fx.Node) -> Node:
        args = {k: self._argument(v) for k, v in _bind(n).items()}
        value = n.meta.get("val")
        is_list = isinstance(value, (list, tuple))
        values: list[Any] = list(value) if is_list else [value]  # type: ignore[arg-type]
        shapes = tuple(shape_of(v) if isinstance(v, torch.Tensor) else () for v in values)
        module, source = _place(n)
        op, sizes = _op_name(n.target), self._sizes(n, args)
        if (width := self._width_attribute(module, op)) is not None:
            args["width"], sizes[("width",)] = shapes[0][1], width
        if _is_masked(n):
            args["mask"] = True
        pointwise = torch.Tag.pointwise in getattr(n.target, "tags", ())
        return Node(self._name(n), op, args, shapes or ((),), is_list, pointwise, module, source, sizes)

    def _width_attribute(self, module: str, op: str) -> Size | None:
        """The attribute in which a norm layer repeats its width; without parameters no shape would tell it."""
        name = OPS[op].width if op in OPS else ""
        if not name or not isinstance(getattr(self.model.get_submodule(module), name, None), int):
            return None
        return Size("attr", (module, name, None))

    def _attention_widths(self, nodes: list[Node]) -> None:
        """nn.MultiheadAttention holds `embed_dim` against the width of its query and of its output."""
        linears: dict[str, list[int]] = {}
        for k, node in enumerate(nodes):
            if node.op == "linear" and isinstance(self.model.get_submodule(node.module), nn.MultiheadAttention):
                linears.setdefault(node.module, []).append(k)
        for module, places in linears.items():
            embed = Size("attr", (module, "embed_dim", None))
            width = int(self.model.get_submodule(module).embed_dim)  # type: ignore[arg-type]
            for k, name in ((places[0], "in_width"), (places[-1], "width")):
                n = nodes[k]
                nodes[k] = replace(n, args={**n.args, name: width}, sizes={**n.sizes, (name,): embed})

    def _argument(self, a: Any) -> Any:
        if isinstance(a, torch.fx.Node):
            value = a.meta.get("val")
            if is_open(value):
                return largest(value) if isinstance(value, torch.SymInt) else str(value)
            return Ref(self._name(a))
        if isinstance(a, (list, tuple)):
            return [self._argument(x) for x in a]
        if a is None or isinstance(a, (bool, int, float, str)):
            return a
        return str(a)

    def _sizes(self, n: torch.fx.Node, args: Mapping[str, Any]) -> dict[tuple[Any, ...], Size]:
        """Match the ints that the forward passed, with where they came from, to the ints in the node's arguments."""
        passed = n.meta.get(KEY)
        if not passed:
            return {}
        here = list(_int_paths(args, ()))
        tracked = [(v, s) for v, s in passed if s.op != "const"]
        out = {}
        if [v for v, _ in passed] == [v for _, v in here]:
            pairs = [(path, s) for (path, _), (_, s) in zip(here, passed, strict=True)]
        else:
            pairs = []
            for path, v in here:
                match = list(dict.fromkeys(s for w, s in tracked if w == v))
                plain = any(w == v and s.op == "const" for w, s in passed)
                if (len(match) == 1 and not plain) or (len(match) > 1 and self._list_match(path, args, passed) is None):
                    pairs.append((path, match[0]))
                elif match:
                    s = self._list_match(path, args, passed)
                    if s is not None:
                        pairs.append((path, s))
        found = self.lost.get(n.meta.get(CALL, -1), ([], ""))[0]
        for path, s in pairs:
            if s.op != "const":
                out[path] = self._named(s)
                if s in found:
                    found.remove(s)
        return out

    def _list_match(self, path: tuple[Any, ...], args: Mapping[str, Any], passed: Any) -> Size | None:
        """The tracked int at the same place of a run of passed ints that equals the list argument holding `path`."""
        if len(path) != 2:
            return None
        wanted = args[path[0]]
        values = [v for v, _ in passed]
        for k in range(len(values) - len(wanted) + 1):
            if values[k : k + len(wanted)] == list(wanted):
                return passed[k + path[1]][1]
        return None

    def _named(self, s: Size) -> Size:
        """Sizes of values refer to them by name."""
        if s.op == "size":
            return Size("size", (self._value(s.args[0]) or f"?{s.args[0]}", s.args[1]))
        if s.op in ("attr", "const"):
            return s
        return Size(s.op, tuple(self._named(a) for a in s.args))


def _of_open_sizes(n: torch.fx.Node) -> bool:
    """Whether a node only computes with sizes that depend on data, or asserts something of them."""
    made, read = n.meta.get("val"), [m.meta.get("val") for m in n.all_input_nodes]
    if made is None:
        return any(map(is_open, read))
    return is_open(made) and n.target is not torch.ops.aten.item.default  # which reads a tensor's values


def _is_masked(n: torch.fx.Node) -> bool:
    """Whether a mask, not positions, is among the indices of an operation."""
    indices = _bind(n).get("indices")
    found = indices if isinstance(indices, (list, tuple)) else ()
    return any(isinstance(i, torch.fx.Node) and i.meta["val"].dtype in (torch.bool, torch.uint8) for i in found)


def _wrapped(n: torch.fx.Node) -> tuple[Any, Sequence[Any]] | None:
    """The graph and the operands of a block that a higher-order op wraps; None for any other node."""
    if getattr(n.target, "__name__", "") not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return None
    for k, a in enumerate(n.args):
        if isinstance(a, torch.fx.Node) and a.op == "get_attr":
            return getattr(n.graph.owning_module, str(a.target)).graph, n.args[k + 1 :]
    return None


def _op_name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(target, "__name__", str(target))
    if name.startswith(("__", "_")):
        return name
    return name[:-1] if name.endswith("_") else name  # in place is the same to us


def _bind(n: torch.fx.Node) -> dict[str, Any]:
    """Arguments by schema name, defaults included."""
    if n.target is operator.getitem:
        return {"a": n.args[0], "b": n.args[1]}
    schema = getattr(n.target, "_schema", None)
    if schema is None:
        return {**{f"arg{i}": a for i, a in enumerate(n.args)}, **n.kwargs}
    out: dict[str, Any] = {}
    for i, a in enumerate(schema.arguments):
        if i < len(n.args) and not a.kwarg_only:
            out[a.name] = n.args[i]
        elif a.name in n.kwargs:
            out[a.name] = n.kwargs[a.name]
        elif a.has_default_value():
            out[a.name] = a.default_value
    return out


def _int_paths(a: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    if isinstance(a, Mapping):
        for k, v in a.items():
            yield from _int_paths(v, (*path, k))
    elif isinstance(a, (list, tuple)):
        for i, v in enumerate(a):
            yield from _int_paths(v, (*path, i))
    elif isinstance(a, int) and not isinstance(a, bool):
        yield path, a


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')


def _place(n: torch.fx.Node) -> tuple[str, str]:
    """Module path and source line of a node."""
    stack = n.meta.get("nn_module_stack") or {}
    module = list(stack.values())[-1][0] if stack else ""
    if isinstance(module, type) or not isinstance(module, str):
        module = ""
    frames = _FRAME.findall(n.meta.get("stack_trace") or "")
    if not frames:
        return module, ""
    file, line, code = frames[-1]
    return module, f"{file.rsplit('/', 1)[-1]}:{line}: {code.strip()[:80]}"
