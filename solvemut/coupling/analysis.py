"""Analysis: from the facts that the rules stated to unit classes, what is frozen, and the links between counts.

Facts are added until no fact adds another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from ..flow import FIXED, Flow, Freeze, Labels, Path, Rectangle
from ..trace import Guard, Node, Size, affine
from .links import (
    AttributeUse,
    Divides,
    Link,
    Rows,
    answer,
    components,
    number_at,
    row_of_units,
    same_attribute,
    trivial,
    within,
)


class Analysis:
    """The state of one analysis: facts are added until nothing new follows from them."""

    def __init__(self, flow: Flow, keep: Iterable[tuple[np.ndarray, str]]) -> None:
        self.flow, self.facts = flow, flow.facts
        self.edges = [self._split_fixed(m.a, m.b, m.node) for m in flow.facts.merges]
        self.frozen_labels: list[tuple[np.ndarray, str]] = [
            (f.labels, _reason(f.why, f.node)) for f in self.facts.freezes
        ]
        self.frozen_labels += list(keep)
        self.done: set[int] = set()
        self.divides: list[Divides] = []
        self.pinned = {x for size, _ in flow.trace.numbers for x in size.leaves() if x.op == "attr"}  # these stay

    def _split_fixed(self, a: np.ndarray, b: np.ndarray, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """Edges between labels; a label that meets a fixed position is frozen."""
        a, b = a.reshape(-1), b.reshape(-1)
        met = (a == FIXED) != (b == FIXED)
        if met.any():
            self.flow.facts.freezes.append(_freeze_at(np.maximum(a[met], b[met]), node))
        both = (a != FIXED) & (b != FIXED)
        return a[both], b[both]

    def solve(self) -> tuple[np.ndarray, np.ndarray, dict[int, str], list[Link], list[Rows], list[AttributeUse]]:
        while True:
            root = components(self.flow.count, self.edges)
            _, unit_of = np.unique(root, return_inverse=True)
            self.unit_of = unit_of
            frozen, reasons = self._frozen(unit_of)
            rows: list[Rows] = []
            literals = [(lit.labels, lit.node, lit.path, lit.sign) for lit in self.facts.literals]
            known = (len(self.edges), len(self.frozen_labels), len(self.pinned))
            self.pins: list[AttributeUse] = []
            self.divides = []
            matched: set[int] = set()
            for k, rect in enumerate(self.facts.rectangles):
                literals += self._rectangle(k, rect, unit_of, frozen, rows, matched)
            self._hold_others(matched, unit_of, frozen)
            links, uses = self._literals(literals, unit_of, frozen)
            if known == (len(self.edges), len(self.frozen_labels), len(self.pinned)):
                break
        links += self._equals()
        links += [
            Link(((f.labels.reshape(-1), 1),), f.least, f.node, f.why, f.labels.size - f.least)
            for f in self.facts.floors
        ]
        self.divides += [
            Divides(((m.labels, 1),), 0, m.divisor, 0, _reason(m.why, m.node))
            for m in self.facts.multiples
            if not frozen[unit_of[m.labels]].all()
        ]
        links += self._interleaved(rows, links, unit_of)
        links = [x for x in links if not trivial(x, unit_of)]
        return unit_of, frozen, reasons, links, rows, uses

    def _frozen(self, unit_of: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        frozen = np.zeros(int(unit_of.max()) + 1, dtype=bool)
        frozen[FIXED] = True
        reasons: dict[int, str] = {FIXED: "fixed"}
        for labels, why in self.frozen_labels:
            units = unit_of[labels].reshape(-1)
            fresh = np.unique(units[~frozen[units]])
            frozen[fresh] = True
            reasons |= dict.fromkeys(fresh.tolist(), why)
        return frozen, reasons

    def _freeze(self, labels: np.ndarray, why: str, node: Node) -> None:
        self.frozen_labels.append((labels[labels != FIXED], _reason(why, node)))

    def _rectangle(
        self, k: int, rect: Rectangle, unit_of: np.ndarray, frozen: np.ndarray, rows: list[Rows], matched: set[int]
    ) -> list[tuple[np.ndarray, Node, Path, int]]:
        """What one rectangle demands: sizes of its axes, or rows of equal size; enters in `matched` what it holds."""
        labels, units = rect.labels, unit_of[rect.labels]
        paths = list(rect.paths)
        if rect.grouped:
            self._group_rows(rect, units, rows)
            return []
        if frozen[units].all():
            for path in paths:
                self._pin(rect.node, path)
            return []
        for axis in reversed(range(units.ndim)):
            if units.ndim > 1 and (units == units.take([0], axis=axis)).all():
                labels, units = labels.take(0, axis=axis), units.take(0, axis=axis)
                self._pin(rect.node, paths.pop(axis))
        held = [self._is_held(units, axis, matched) for axis in range(units.ndim)]
        for path in (p for p, stays in zip(paths, held, strict=True) if stays):
            self._pin(rect.node, path)
        if units.ndim == 1 and not held[0]:
            return [(labels, rect.node, paths[0], 1)] if paths[0] is not None else []
        number = [p is not None and self._is_number(rect.node, p) for p in paths]
        written = [a or b for a, b in zip(number, held, strict=True)]
        free = [axis for axis in range(units.ndim) if not written[axis]]
        if not free:
            why = "its positions are picked by number" if any(held) else "its sizes are written as numbers"
            self._once(k, lambda: self._freeze(labels.reshape(-1), why, rect.node))
            return []
        ragged = free[-1]
        moved = np.moveaxis(units, ragged, -1)
        removable = units.ndim == 2 and len(free) == 2
        rows.append(Rows(moved.reshape(-1, moved.shape[-1]), removable, rect.key, rect.node))
        return []

    def _is_held(self, units: np.ndarray, axis: int, matched: set[int]) -> bool:
        """Whether an axis keeps its size because some node picks positions along it by number."""
        if not self.facts.held:
            return False
        row_of = np.full(int(self.unit_of.max()) + 1, -1)
        for k, row in enumerate(np.moveaxis(units, axis, 0)):
            row_of[row] = k
        found = False
        for k, h in enumerate(self.facts.held):
            ids = row_of[np.moveaxis(self.unit_of[h.labels], h.axis, 0).reshape(h.labels.shape[h.axis], -1)]
            if (ids >= 0).all() and (ids == ids[:, :1]).all() and len(np.unique(ids[:, 0])) == len(ids):
                matched.add(k)
                found = True
        return found

    def _hold_others(self, matched: set[int], unit_of: np.ndarray, frozen: np.ndarray) -> None:
        """A held axis that is none of any rectangle keeps all its units, unless it keeps its size anyway."""
        for k, h in enumerate(self.facts.held):
            units = unit_of[h.labels]
            same = (units == units.take([0], axis=h.axis)).all()
            if k not in matched and not same and not frozen[units].all():
                self._freeze(h.labels.reshape(-1), "its positions are picked by number", h.node)

    def _group_rows(self, rect: Rectangle, units: np.ndarray, rows: list[Rows]) -> None:
        """Channels of one side of a grouped convolution; a group whose channels are one unit goes as that unit."""
        if (units == units[:, :1]).all():
            units = units[:, :1]
        alike = len(units) > 1 and bool((units == units[:1]).all())  # every group reads the same units: all groups stay
        removable = not alike and not self._is_number(rect.node, ("groups",))
        rows.append(Rows(units, removable, rect.key, rect.node, grouped=True, stays=rect.stays))

    def _once(self, k: int, act: Any) -> None:
        if k not in self.done:
            self.done.add(k)
            act()

    def _literals(
        self, literals: Sequence[tuple[np.ndarray, Node, Path, int]], unit_of: np.ndarray, frozen: np.ndarray
    ) -> tuple[list[Link], list[AttributeUse]]:
        """Links between sizes that one int of the forward gives; a size written as a number is frozen."""
        links: list[Link] = []
        uses: list[AttributeUse] = []
        for labels, node, path, sign in literals:
            labels = labels.reshape(-1)
            size = node.sizes.get(path)
            if size is None or size.op == "const":
                if frozen[unit_of[labels]].all():
                    continue
                number = number_at(node, path)
                self._freeze(labels, f"the size {number} is written as a number in the forward", node)
                continue
            form = affine(size if sign > 0 else Size("-", (Size("const", (0,)), size)))
            if form is None:
                continue  # checked by a run of the changed model on fake tensors
            constant, leaves = form
            scale = int(np.lcm.reduce([constant.denominator, *(c.denominator for c in leaves.values())]))
            parts, rest = [(labels, scale)], int(constant * scale)
            attributes = []
            for leaf, c in leaves.items():
                if leaf.op == "attr":
                    attributes.append((leaf, int(c * scale)))
                    continue
                other = self._dim_labels(leaf, unit_of)
                if isinstance(other, int):
                    rest += int(c * scale) * other
                elif other is not None:
                    parts.append((other, -int(c * scale)))
            if not attributes:
                links.append(Link(tuple(parts), rest, node, f"the forward computes it as {size}"))
            elif len(attributes) == 1 and len(parts) == 1 and scale == 1:
                uses.append(AttributeUse(attributes[0][0], attributes[0][1], rest, labels, node))
        for node, path in self.untied:
            self._pin(node, path)
            for leaf in node.sizes[path].leaves():
                self._pin_dim(leaf, f"its size is an argument that must stay: {node.at()}", unit_of, frozen)
        for size, place in self.flow.trace.numbers:
            for leaf in size.leaves():
                self._pin_dim(leaf, f"its size is used as a number in the forward: {place}", unit_of, frozen)
                if leaf.op == "attr":
                    self.pins.append(self._stays(leaf, Node(place, "number", {}, ())))
        for guard in self.flow.trace.guards:
            self._guard(guard, uses, links, unit_of, frozen)
        places = {leaf: place for size, place in self.flow.trace.numbers for leaf in size.leaves()}
        for use in uses:
            if (where := places.get(use.attribute)) and not frozen[unit_of[use.labels]].all():
                why = f"its size is {use.attribute}, which is used as a number in the forward: {where}"
                self.frozen_labels.append((use.labels[use.labels != FIXED], why))
        return links + same_attribute(uses + self.pins), uses

    def _guard(
        self, guard: Guard, uses: list[AttributeUse], links: list[Link], unit_of: np.ndarray, frozen: np.ndarray
    ) -> None:
        """What a forward asked of sizes keeps its answer: a linear relation, a divisor, or sizes that stay.

        Questions about attributes that are not linear are put again when a plan is drawn up (`plan.attributes`).
        """
        node, why = Node(guard.place, "branch", {}, ()), f"the forward asks whether {guard}"
        form = affine(Size("-", (guard.left, guard.right)), exact=True)
        linear = None if form is None else self._linear(form, uses, unit_of)
        if linear is not None:
            parts, constant, free = linear
            low, high = answer(guard, self._now(parts) + constant)
            if len(free) == 1 and (low, high) == (0, 0) and len(parts) == 1 and abs(parts[0][1]) == 1:
                (attribute, c), (labels, k) = free[0], parts[0]
                constant -= c * self.flow.trace.attributes[attribute]
                if c == -k:  # count + constant = attribute
                    uses.append(AttributeUse(attribute, 1, -constant * k, labels, node))
                    return
            self.pins += [self._stays(a, node) for a, _ in free]
            if (link := within(parts, constant, low, high, node, why)) is not None:
                links.append(link)
        elif (found := self._remainder(guard, uses, unit_of, why)) is not None:
            self.divides.append(found)
        elif not any(leaf.op == "attr" for side in (guard.left, guard.right) for leaf in side.leaves()):
            for leaf in (*guard.left.leaves(), *guard.right.leaves()):
                self._pin_dim(leaf, f"{why}: {guard.place}", unit_of, frozen)

    def _linear(
        self, form: tuple[Fraction, dict[Size, Fraction]], uses: Sequence[AttributeUse], unit_of: np.ndarray
    ) -> tuple[list[tuple[np.ndarray, int]], int, list[tuple[Size, int]]] | None:
        """An affine form over counts of labels: parts, constant, and the attributes in it that no count gives."""
        parts: list[tuple[np.ndarray, int]] = []
        free: list[tuple[Size, int]] = []
        constant = int(form[0])
        for leaf, coefficient in form[1].items():
            c = int(coefficient)
            if leaf.op == "attr":
                use = next((u for u in uses if u.attribute == leaf and u.factor == 1 and u.labels.size), None)
                if use is not None:  # attribute = count - constant
                    parts.append((use.labels.reshape(-1), c))
                    constant -= c * use.constant
                elif any(u.attribute == leaf and u.labels.size for u in uses):
                    return None
                else:
                    free.append((leaf, c))
                    constant += c * self.flow.trace.attributes[leaf]
                continue
            labels = self._dim_labels(leaf, unit_of)
            if labels is None:
                return None
            if isinstance(labels, int):
                constant += c * labels
            else:
                parts.append((labels.reshape(-1), c))
        return parts, constant, free

    def _remainder(self, guard: Guard, uses: Sequence[AttributeUse], unit_of: np.ndarray, why: str) -> Divides | None:
        """`size % k == r`, where k and r are numbers."""
        equal = (guard.sense, guard.holds) in (("==", True), ("!=", False))
        if not equal or guard.left.op != "%" or guard.right.op != "const" or guard.left.args[1].op != "const":
            return None
        form = affine(guard.left.args[0], exact=True)
        linear = None if form is None else self._linear(form, uses, unit_of)
        if linear is None:
            return None
        parts, constant, free = linear
        self.pins += [self._stays(a, Node(guard.place, "branch", {}, ())) for a, _ in free]
        divisor, remainder = int(guard.left.args[1].args[0]), int(guard.right.args[0])
        return Divides(tuple(parts), constant, divisor, remainder, f"{why}: {guard.place}")

    @staticmethod
    def _now(parts: Sequence[tuple[np.ndarray, int]]) -> int:
        return sum(c * labels.size for labels, c in parts)

    @cached_property
    def untied(self) -> list[tuple[Node, Path]]:
        """Ints from attributes that give no size of units: they must stay."""
        tied = {(x.node.name, x.path) for x in self.facts.literals}
        tied |= {(r.node.name, p) for r in self.facts.rectangles for p in r.paths if p is not None}
        return [(n, p) for n in self.flow.trace.nodes for p in n.sizes if (n.name, p) not in tied]

    def _pin(self, node: Node, path: Path | None) -> None:
        """The int at `path` must stay: if one attribute gives it, that attribute must."""
        size = None if path is None else node.sizes.get(path)
        if size is None or path is None:
            return
        if size.op == "attr":
            self.pins.append(self._stays(size, node))
        elif size.op == "//" and (size.args[0].op, size.args[1].op) == ("size", "attr"):
            # a width divided by a number of heads is the length of a head, which stays: width = length * heads
            width, length = self._dim_labels(size.args[0], self.unit_of), int(number_at(node, path))
            if isinstance(width, np.ndarray):
                self.pins.append(AttributeUse(size.args[1], length, 0, width, node))

    def _is_number(self, node: Node, path: Path) -> bool:
        """Whether an argument is written as a number, or given by attributes that must stay."""
        size = node.sizes.get(path)
        return size is None or all(leaf in self.pinned for leaf in size.leaves())

    def _stays(self, attribute: Size, node: Node) -> AttributeUse:
        self.pinned.add(attribute)
        now = self.flow.trace.attributes.get(attribute, 0)
        return AttributeUse(attribute, 1, -now, np.zeros(0, dtype=np.int64), node)

    def _pin_dim(self, leaf: Size, why: str, unit_of: np.ndarray, frozen: np.ndarray) -> None:
        """The size of a dim must stay: units along it are frozen, unless it stays whatever goes (a head's length)."""
        if leaf.op != "size":
            return
        labels = self._dim_labels(leaf, unit_of)
        extent = self.flow.sources.get(leaf.args)
        if extent is not None and extent.per_row:
            labels = extent.labels.reshape(-1)
        if labels is None and isinstance(value := self.flow.values.get(leaf.args[0]), Labels):
            f = value.factor(leaf.args[1])
            labels = None if f is None else f.labels.reshape(-1)
        if isinstance(labels, np.ndarray) and not frozen[unit_of[labels]].all():
            self.frozen_labels.append((labels[labels != FIXED], why))

    def _dim_labels(self, leaf: Size, unit_of: np.ndarray) -> np.ndarray | int | None:
        """Labels whose number is the size of a dim of a value; an int if it is fixed; None if it is neither."""
        name, dim = leaf.args
        if name in self.flow.trace.params:
            extent = self.flow.sources.get((name, dim))
            return self.flow.trace.params[name].shape[dim] if extent is None or extent.per_row else extent.labels
        value = self.flow.values.get(name)
        if not isinstance(value, Labels):
            return None
        f = value.factor(dim)
        if f is None:
            return value.shape[dim]
        labels, units, dims = f.labels, unit_of[f.labels], list(f.dims)
        for axis in reversed(range(units.ndim)):
            if units.ndim > 1 and (units == units.take([0], axis=axis)).all():
                labels, units = labels.take(0, axis=axis), units.take(0, axis=axis)
                if dims.pop(axis) == dim:
                    return value.shape[dim]
        return labels if units.ndim == 1 else None

    def _interleaved(self, rows: Sequence[Rows], links: Sequence[Link], unit_of: np.ndarray) -> list[Link]:
        """A part that holds a share of several rows must hold an equal share of each: a shuffle deals rows in turn."""
        label_of = np.unique(unit_of, return_index=True)[1]
        parts = [(np.unique(unit_of[labels]), x.node) for x in links for labels, _ in x.parts]
        parts += [(np.unique(row), r.node) for r in rows for row in r.units]
        found: list[Link] = []
        for r in rows:
            row_of = row_of_units(r, len(label_of))
            row_of[FIXED] = -1
            length = np.bincount(row_of[row_of >= 0], minlength=len(r.units))
            for units, node in parts:
                inside = units[row_of[units] >= 0]
                share = np.bincount(row_of[inside], minlength=len(r.units))
                cut = np.flatnonzero((share > 0) & (share < length))
                shares = sorted((label_of[inside[row_of[inside] == k]] for k in cut), key=len, reverse=True)
                for other in shares[1:]:  # dealt in turn, the first rows may hold one more
                    slack = int(len(shares[0]) > len(other))
                    found.append(Link(((shares[0], 1), (other, -1)), 0, node, "an equal share of every row", slack))
        return found

    def _equals(self) -> list[Link]:
        return [
            Link(((e.parts[0], 1), (part, -1)), 0, e.node, e.why) for e in self.facts.equals for part in e.parts[1:]
        ]


def _reason(why: str, node: Node | None) -> str:
    if node is None or not node.name or node.name == "output":
        return why
    return f"{why}: {node.at()}"


def _freeze_at(labels: np.ndarray, node: Node) -> Freeze:
    return Freeze(labels, node, "it meets a fixed position there")
