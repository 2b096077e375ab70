"""Objects that hold tensors, among inputs and outputs: caches, dataclasses, any class that pytree does not know.

torch.export takes and returns tensors in containers that torch.utils._pytree knows. An object becomes `Opened`, a node
of the tree that holds what the object does and knows how to put another one together; one without tensors goes through
it whole. The forward itself sees objects as ever: they are put together before it and opened after it. Nothing is
registered for the user's classes.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_PLAIN = (torch.Tensor, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Generator)
_NO_DATA = (type, nn.Module, enum.Enum, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinMethodType)


@dataclass(frozen=True, eq=False)
class Kind:
    """A class, and what an object of it holds beside its tensors; two are equal that name the same parts."""

    cls: type
    names: tuple[Any, ...]
    items: int  # how many of the names are keys or positions, not attributes
    rest: tuple[tuple[str, Any], ...] = ()  # attributes that hold no tensors
    whole: Any = None  # the object itself, where it holds no tensors at all

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and (self.cls, self.names) == (other.cls, other.names)

    def __hash__(self) -> int:
        return hash((self.cls, self.names))

    def __repr__(self) -> str:
        return f"{self.cls.__name__}({', '.join(map(str, self.names))})"


@dataclass(frozen=True)
class Opened:
    """An object as a node of a tree: its kind, and the parts that hold tensors or numbers."""

    kind: Kind
    parts: tuple[Any, ...]


pytree.register_pytree_node(
    Opened,
    lambda x: (list(x.parts), x.kind),
    lambda parts, kind: Opened(kind, tuple(parts)),
    flatten_with_keys_fn=lambda x: (
        [(pytree.MappingKey(k), v) for k, v in zip(x.kind.names, x.parts, strict=True)],
        x.kind,
    ),
)


def opened(tree: Any) -> Any:
    """A tree with each object that pytree does not know as a node.

    >>> class Pair:
    ...     def __init__(self, a, b):
    ...         self.a, self.b = a, b
    >>> pytree.tree_leaves(opened({"pair": Pair(torch.tensor(1), "name")}))
    [tensor(1), 'name']
    """
    return pytree.tree_map(lambda x: x if isinstance(x, _PLAIN) else _opened(x), tree)


def closed(tree: Any) -> Any:
    """The tree with an object of its class, made anew, for each node that `opened` made."""
    return pytree.tree_map(
        lambda x: _closed(x) if isinstance(x, Opened) else x, tree, is_leaf=lambda x: isinstance(x, Opened)
    )


def kinds_in(form: pytree.TreeSpec) -> list[str]:
    """The classes of the objects with tensors in the form of a tree, outermost ones alone."""
    if form.type is Opened:
        return [form.context.cls.__name__] * bool(form.context.names)
    return list(dict.fromkeys(name for child in form.children() for name in kinds_in(child)))


def holds_tensors(x: Any, within: frozenset[int] = frozenset()) -> bool:
    """Whether there are tensors in a value, in its attributes or in theirs."""
    if isinstance(x, torch.Tensor):
        return True
    if isinstance(x, (*_PLAIN, *_NO_DATA)) or id(x) in within:
        return False
    within |= {id(x)}
    leaves = pytree.tree_leaves(x)
    inside = leaves if len(leaves) != 1 or leaves[0] is not x else [v for _, v in (*_items(x), *_attributes(x))]
    return any(holds_tensors(v, within) for v in inside)


def _items(x: Any) -> Iterator[tuple[Any, Any]]:
    """What a container of a class of its own holds by key or position."""
    if isinstance(x, dict):
        yield from dict.items(x)
    elif isinstance(x, (list, tuple)):
        yield from enumerate(x)


def _attributes(x: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(x, "__dict__", {}).items()
    for cls in type(x).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(x, name):
                yield name, getattr(x, name)


def _opened(x: Any) -> Opened:
    if not holds_tensors(x):
        return Opened(Kind(type(x), (), 0, whole=x), ())
    items, attributes = list(_items(x)), list(_attributes(x))
    own = [(k, v) for k, v in attributes if holds_tensors(v) or type(v) in (int, float, str, bool)]
    rest = tuple((k, v) for k, v in attributes if not any(k == name for name, _ in own))
    parts = [*items, *own]
    kind = Kind(type(x), tuple(k for k, _ in parts), len(items), rest)
    return Opened(kind, tuple(opened(v) for _, v in parts))


def _closed(node: Opened) -> Any:
    kind, parts = node.kind, [closed(p) for p in node.parts]
    if not parts:
        return kind.whole
    named = list(zip(kind.names, parts, strict=True))
    items, attributes = named[: kind.items], named[kind.items :]
    cls: Any = kind.cls
    x = tuple.__new__(cls, [v for _, v in items]) if issubclass(cls, tuple) else cls.__new__(cls)
    if isinstance(x, dict):
        dict.update(x, items)
    elif isinstance(x, list):
        list.extend(x, [v for _, v in items])
    for name, value in (*attributes, *kind.rest):
        object.__setattr__(x, name, value)
    return x
