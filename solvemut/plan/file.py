"""Plan files: what a plan may say, checked whole before anything is done with it.

`FORM` says what stands at each place of a plan, in types and ranges; `AGREEMENTS` say what must fit together, in the
words of a plan's attributes. The first thing that is wrong raises PlanMismatchError with its place, such as
indices['a.weight'][0], and what was expected. Files of earlier versions have forms of
their own and are then read as version 4.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..edits import SetAttribute, SetKernel, Substitute, edit_form, rows_of
from ..edits.forms import (
    INT,
    SIZE,
    Check,
    budget,
    by_dim,
    each,
    fail,
    fill,
    index,
    mapping,
    number,
    one_of,
    optional,
    origins,
    record,
    row,
    shown,
    text,
    whole,
)
from ..errors import PlanMismatchError
from .copies import check_origins, sources_in

FORMAT, VERSION = "solvemut-plan", 5
ROOM = 2**31  # elements of one example input, positions of one dim

Data = Mapping[str, Any]


def checksum(data: Data) -> str:
    """Of everything in a plan but the checksum itself; blanks and the order of keys do not count."""
    rest = {k: v for k, v in data.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse(text: str | bytes) -> dict[str, Any]:
    """The content of a plan file as the present version has it, checked in every way that needs no model."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        data = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, TypeError, RecursionError) as e:
        raise PlanMismatchError(f"this is no plan that solvemut saved: {type(e).__name__}: {str(e)[:200]}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanMismatchError(f"this is no plan that solvemut saved: it does not say format {FORMAT!r}")
    version = data.get("version")
    if type(version) is int and version > VERSION:
        raise PlanMismatchError(f"this plan has version {shown(version)}, this solvemut reads up to {VERSION}")
    if "version" in data:
        whole(1, VERSION)("version", version)
    found = {1: _from_1, 2: _from_2, 3: _from_3, 4: _from_4}.get(version, dict)(data)  # type: ignore[operator, arg-type]
    check(found)
    if data["checksum"] != checksum(data):
        raise PlanMismatchError(
            "checksum: the content is not what was saved, so the file is damaged or was edited. Take a copy that is "
            "whole, or solve and save the plan again"
        )
    return found


def check(data: Data) -> None:
    """Raise PlanMismatchError at the first place that is not as a plan has it."""
    FORM("", data)
    for agreement in AGREEMENTS:
        agreement(data)


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had attributes where now there are edits, and index maps outside of a selection."""
    FORM_1("", data)
    rest = {k: v for k, v in data.items() if k not in ("attributes", "indices")}
    edits = [SetAttribute(*a).to_data() for a in data["attributes"]]
    return _from_2({**rest, "version": 2, "edits": edits, "selection": {"indices": data["indices"]}})


def _from_2(data: dict[str, Any]) -> dict[str, Any]:
    """In version 2 nothing was new, and whatever changed something pruned it."""
    FORM_2("", data)
    alters = ["units go"] if data["selection"]["indices"] else []
    return _from_3({**data, "version": 3, "fills": {}, "alters": alters})


def _from_3(data: dict[str, Any]) -> dict[str, Any]:
    """In version 3 no new unit was a copy."""
    FORM_3("", data)
    return _from_4({**data, "version": 4, "copies": {}})


def _from_4(data: dict[str, Any]) -> dict[str, Any]:
    """In version 4 no loss was measured."""
    FORM_4("", data)
    return {**data, "version": VERSION, "trials": []}


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"{shown(next(k for k in names if names.count(k) > 1))} stands twice in one object")
    return found


def example(where: str, x: Any) -> None:
    """The example calls as `examples.to_text` writes them, or nothing."""
    text(where, x)
    if not x:
        return
    spec = _inner_json(where, x)
    first = {k: v for k, v in spec.items() if k != "more"} if isinstance(spec, dict) else spec
    _EXAMPLE(where, first)
    _tree(where, first)
    for k, call in enumerate(_more(where, spec)):
        _FURTHER(f"{where}.more[{k}]", call)
        _tree(f"{where}.more[{k}]", call)


def _more(where: str, spec: Data) -> list[Any]:
    found = spec.get("more", [])
    each(lambda where, x: None)(f"{where}.more", found)
    return found


def _tree(where: str, spec: Data) -> None:
    """The structure of the arguments fits their number."""
    root = _inner_json(f"{where}.tree", spec["tree"])
    row(whole(1), _node)(f"{where}.tree", root)
    if [root[1]["type"], *(child["type"] for child in root[1]["children_spec"])] != _CALL:
        fail(f"{where}.tree", "a tuple of arguments and a dict of keywords", spec["tree"])
    if (n := len(spec["leaves"])) != _leaves(root[1]):
        fail(f"{where}.tree", f"a tree of {n} leaves", spec["tree"])


_CALL = ["builtins.tuple", "builtins.tuple", "builtins.dict"]


def _inner_json(where: str, x: str) -> Any:
    try:
        return json.loads(x)
    except (ValueError, RecursionError):
        fail(where, "JSON", x)


def _node(where: str, x: Any) -> None:
    """A node of a tree of inputs, as torch writes it; what its types mean is for torch to say."""
    _NODE(where, x)
    if x["type"] is None and x["children_spec"]:
        fail(f"{where}.children_spec", "none in a leaf", x["children_spec"])


def _leaves(node: Any) -> int:
    return 1 if node["type"] is None else sum(map(_leaves, node["children_spec"]))


def _leaf(where: str, x: Any) -> None:
    if isinstance(x, dict):
        _TENSOR(where, x)
        if math.prod(x["shape"]) > ROOM:
            fail(f"{where}.shape", f"a tensor of at most {ROOM} elements", x["shape"])
    elif isinstance(x, str):
        text(where, x)
    elif type(x) is int:
        whole(-(2**63), 2**63 - 1)(where, x)
    elif not (x is None or isinstance(x, (bool, float))):
        fail(where, "a tensor, a number, a string or null", x)


SHAPE = each(SIZE)
_TENSOR = record(shape=SHAPE, dtype=text)
_NODE = record(type=optional(text), context=optional(text), children_spec=each(_node))
_EXAMPLE = record(leaves=each(_leaf), tree=text)
_FURTHER = record(leaves=each(_leaf), tree=text, method=text, training=one_of(True, False))
COUNT = whole(0, 10**60)  # costs grow as products of sizes


def _cost(where: str, x: Any) -> None:
    """What is counted is an int; what is measured, such as a latency, a float."""
    (number(0) if type(x) is float else COUNT)(where, x)


_COMMON: dict[str, Check] = {
    "format": one_of(FORMAT),
    "version": whole(1, VERSION),
    "checksum": text,
    "certificate": record(
        status=one_of("optimal", "feasible", "interrupted"),
        objective=number(-math.inf),
        bound=number(-math.inf),
        gap=number(0),
        seconds=number(0),
        solver=text,
    ),
    "sizes": mapping(row(SIZE, SIZE)),
    "units": mapping(by_dim(each(each(row(SIZE, SIZE, SIZE))))),
    "shapes": mapping(row(SHAPE, SHAPE)),
    "costs": mapping(row(_cost, _cost, budget)),
    "notes": each(text),
    "root": text,
    "values": text,
    "example": example,
    "outputs": each(SHAPE),
    "program": each(text),
}
_INDICES = mapping(by_dim(index))
_ATTRIBUTE = row(text, text, optional(SIZE), INT, INT)

_EDITS: dict[str, Check] = {"edits": each(edit_form), "selection": record(indices=_INDICES)}
_GROWN: dict[str, Check] = {"fills": mapping(by_dim(fill)), "alters": each(text)}
_COPIED: dict[str, Check] = {"copies": mapping(by_dim(record(of=origins, divided=one_of(True, False))))}
FORM = record(**_COMMON, **_EDITS, **_GROWN, **_COPIED, trials=each(row(text, number(-math.inf))))
FORM_4 = record(**_COMMON, **_EDITS, **_GROWN, **_COPIED)
FORM_3 = record(**_COMMON, **_EDITS, **_GROWN)
FORM_2 = record(**_COMMON, **_EDITS)
FORM_1 = record(**_COMMON, indices=_INDICES, attributes=each(_ATTRIBUTE))


# -- what must fit together --------------------------------------------------------------------------------------------


def _grown(data: Data) -> set[tuple[str, str]]:
    """The parameter dims that have new slices."""
    indices = data["selection"]["indices"]
    return {(k, d) for k, dims in indices.items() for d, i in dims.items() if any(-1 in row for row in rows_of(i))}


def _no_layer_is_emptied(data: Data) -> None:
    other = any(e["kind"] in (SetKernel.kind, Substitute.kind) for e in data["edits"])  # positions, layers
    grows = bool(_grown(data))
    for name, (before, after) in data["sizes"].items():
        if not min(before, 1) <= after <= (ROOM if grows else before):
            fail(f"sizes[{name!r}][1]", f"a size from 1 {f'to {before}' if not grows else 'on'}", after)
    for name, (before, after, _) in data["costs"].items():
        measured = type(before) is float  # a smaller layer may take longer
        if after > before and not (grows or other or measured):
            fail(f"costs[{name!r}][1]", f"a cost of at most {before}, as nothing is new", after)


def _new_slices_are_filled(data: Data) -> None:
    """What is new, and only that, has something to hold."""
    new = _grown(data)
    told = {(k, d) for k, dims in data["fills"].items() for d in dims}
    for name, dim in sorted(new ^ told):
        has = "an entry, as there are" if (name, dim) in new else "no entry, as there are no"
        fail(f"fills[{name!r}][{dim}]", f"{has} new slices", data["fills"].get(name, {}).get(dim))


def _keeps_promises(data: Data) -> None:
    """Budgets hold, and no plan is worth more than its bound; floats were rounded when they were written."""
    for name, (_, after, limit) in data["costs"].items():
        if limit is not None and after > limit + (1e-9 * abs(limit) if type(limit) is float else 0):
            fail(f"costs[{name!r}][1]", f"a cost within the budget of {shown(limit)}", after)
    certificate = data["certificate"]
    value, bound = certificate["objective"], certificate["bound"]
    if value > bound + 1e-6 * max(abs(value), abs(bound), 1):
        fail("certificate.objective", f"a value within the bound of {bound}", value)


def _attributes_once(data: Data) -> None:
    seen = set()
    for k, edit in enumerate(e for e in data["edits"] if e["kind"] == SetAttribute.kind):
        place = (edit["module"], edit["name"], edit["index"])
        if place in seen:
            fail(f"attributes[{k}]", "each attribute once", list(place))
        seen.add(place)


def _kernels_fit(data: Data) -> None:
    """The sizes that a kernel is given are those of its weight."""
    for k, edit in enumerate(data["edits"]):
        if edit["kind"] != SetKernel.kind:
            continue
        name = f"{edit['module']}.weight".lstrip(".")
        shapes = data["shapes"].get(name)
        if shapes is None:
            fail(f"edits[{k}].module", f"a module whose weight is in shapes, as {name!r} is not", edit["module"])
        for part, shape in zip(("before", "after"), shapes, strict=True):
            if edit[part]["size"] != shape[2:]:
                fail(f"edits[{k}].{part}.size", f"{shape[2:]}, as {name} has", edit[part]["size"])


def _inputs_are_listed(data: Data) -> None:
    """The program, where there is one, takes the example's tensors."""
    if data["example"] and data["program"]:
        spec = json.loads(data["example"])
        leaves = [x for call in (spec, *spec.get("more", ())) for x in call["leaves"]]
        given = sorted(f"input {tuple(x['shape'])}" for x in leaves if isinstance(x, dict))
        taken = sorted(line.partition(" = ")[2] for line in data["program"] if " = input " in line)
        if given != taken:
            fail("program", f"lines for {', '.join(given) or 'no input'}, as the example has", taken)


def _shapes_follow(data: Data) -> None:
    """Indices lead from the shape before to the shape after; where there are none, nothing changes."""
    indices = data["selection"]["indices"]
    for name in indices:
        if name not in data["shapes"]:
            fail("shapes", f"an entry {name!r}, as indices have one", list(data["shapes"]))
    for name, (before, after) in data["shapes"].items():
        dims = indices.get(name, {})
        if len(before) != len(after):
            fail(f"shapes[{name!r}][1]", f"a shape of {len(before)} dims", after)
        for d, (old, new) in enumerate(zip(before, after, strict=True)):
            if str(d) not in dims and old != new:
                fail(f"shapes[{name!r}][1][{d}]", f"{old}, as indices[{name!r}] say nothing of dim {d}", new)
        for key, found in dims.items():
            where = f"indices[{name!r}][{key}]"
            if int(key) >= len(before):
                fail(where, f"a dim of shape {before}", int(key))
            _index_follows(where, found, int(key), before, after)


def _index_follows(where: str, found: list[Any], dim: int, before: list[int], after: list[int]) -> None:
    rows = rows_of(found)
    if rows is found and (dim != 1 or after[0] % len(rows)):
        fail(where, f"one list, or in dim 1 one for each group of {after[0]} outputs", found)
    for kept in rows:
        if len(kept) != after[dim]:
            fail(where, f"{after[dim]} positions, as the shape after has", len(kept))
        if kept and max(kept) >= before[dim]:
            fail(where, f"positions below {before[dim]}, the size before", max(kept))


# -- units: what makes index lists agree -------------------------------------------------------------------------------
#
# `units` says for every entry of `indices` which unit stands at each old position, as runs: [3, 2, 4] is four positions
# of unit 3, then four of unit 4. A unit is kept or removed wherever it stands, so the lists can be held against each
# other. What stays keeps its order; where a shuffle changes that, the units in their new order follow as further runs.


def runs(units: np.ndarray) -> list[list[int]]:
    """Unit numbers as [first unit, how many units, positions of each].

    >>> runs(np.array([3, 3, 4, 4, 7]))
    [[3, 2, 2], [7, 1, 1]]
    """
    flat = units.reshape(-1)
    if len(flat) and (flat[1:] == flat[:-1] + 1).all():
        return [[int(flat[0]), len(flat), 1]]
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    found: list[list[int]] = []
    for unit, n in zip(flat[starts].tolist(), np.diff(starts, append=len(flat)).tolist(), strict=True):
        if found and found[-1][2] == n and sum(found[-1][:2]) == unit:
            found[-1][1] += 1
        else:
            found.append([unit, 1, n])
    return found


def expanded(coded: Sequence[Sequence[int]]) -> np.ndarray:
    """The unit at each position, from `runs`.

    >>> expanded([[3, 2, 2], [7, 1, 1]]).tolist()
    [3, 3, 4, 4, 7]
    """
    return np.concatenate([np.empty(0, dtype=np.int64), *(np.repeat(np.arange(a, a + n), k) for a, n, k in coded)])


class _Kept:
    """One index list with the units that it moves."""

    def __init__(self, data: Data, name: str, key: str) -> None:
        self.where = f"indices[{name!r}][{key}]"
        self.index = data["selection"]["indices"][name][key]
        self.rows = rows_of(self.index)
        shape, coded = data["shapes"][name][0], data["units"][name][key]
        size = shape[int(key)]
        if not self._fits(coded, size, shape[0] if self.is_grouped else 1):
            fail(f"units[{name!r}][{key}]", f"runs of {size} positions{', by group' * self.is_grouped}", coded)
        self.units = expanded(coded[0]).reshape(-1, size)
        self.order = expanded(coded[1]).tolist() if len(coded) == 2 else None

    def _fits(self, coded: Sequence[Sequence[Sequence[int]]], size: int, most: int) -> bool:
        """As many positions as there are before, and then as many as stay; not more than memory takes."""
        old, *new = (sum(n * k for _, n, k in c) for c in coded) if coded else (-1,)
        whole_rows = size > 0 and old in range(size * (1 + self.is_grouped), size * most + 1, size)
        return whole_rows and old <= ROOM and new in ([], [sum(map(len, self.rows))])

    @property
    def is_grouped(self) -> bool:
        return self.rows is self.index

    def removed(self) -> np.ndarray:
        """The units that go, as far as one list can tell: of groups it does not say which ones stay."""
        if self.is_grouped:
            return np.empty(0, dtype=np.int64)
        return np.delete(self.units[0], [i for i in self.index if i >= 0])

    def check(self, removed: np.ndarray) -> None:
        stays = ~np.isin(self.units, removed)
        left = [k for k in range(len(stays)) if stays[k].any()] if self.is_grouped else [0]
        wanted = [np.flatnonzero(stays[k]).tolist() for k in left]
        old = [[i for i in r if i >= 0] for r in self.rows]
        old = [r for r in old if r or not self.is_grouped]  # a group that is all new
        if (old if self.order is None else [sorted(r) for r in old]) != wanted:
            what = f"{reprlib.repr(wanted if self.is_grouped else wanted[0])}, that is what the other lists keep"
            fail(self.where, what + (", in this order" if self.order is None else ""), self.index)
        found = [int(u) for k, r in zip(left, old, strict=True) for u in self.units[k][r]]
        if self.order is not None:
            new = [i < 0 for r in self.rows for i in r]
            if found != [u for u, is_new in zip(self.order, new, strict=True) if not is_new]:
                fail(self.where, "the order that its units have", self.index)
            if np.isin([u for u, is_new in zip(self.order, new, strict=True) if is_new], self.units).any():
                fail(self.where, "units of its own at new slices", self.index)
        elif any(i < 0 for r in self.rows for i in r):
            fail(self.where, "no new slice, as its units say of none", self.index)


def _copies_agree(data: Data) -> None:
    """A copy is one of the same unit wherever it stands."""
    if not data["copies"]:
        return
    sources: dict[int, set[int]] = {}
    for name, dims in data["copies"].items():
        if other := dims.keys() - data["selection"]["indices"].get(name, {}).keys():
            fail(f"copies[{name!r}]", f"dims of indices[{name!r}]", sorted(other))
    for name, dims in data["selection"]["indices"].items():
        for key in dims:
            x, where = _Kept(data, name, key), f"copies[{name!r}][{key}]"
            copies = data["copies"].get(name, {}).get(key)
            if copies is not None:
                check_origins(where, copies, x.index, data["fills"].get(name, {}).get(key))
            if x.order is None:
                continue
            of = [[-1] * len(row) for row in x.rows] if copies is None else copies["of"]
            for unit, found in sources_in(of, x.index, x.units, x.order):
                known = sources.setdefault(unit, found)
                if bool(known) != bool(found) or (known and not known & found):
                    fail(where, f"copies of the unit that the other lists name for new unit {unit}", of)
                sources[unit] = known & found


def _units_agree(data: Data) -> None:
    """A unit stays wherever it stands, or nowhere."""
    indices = data["selection"]["indices"]
    for name, dims in indices.items():
        if (own := data["units"].get(name, {})).keys() != dims.keys():
            fail(f"units[{name!r}]", f"the dims {list(dims)} of indices[{name!r}]", list(own))
    if other := [name for name in data["units"] if name not in indices]:
        fail("units", "no entry that indices have not", other)
    lists = [_Kept(data, name, key) for name, dims in indices.items() for key in dims]
    removed = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *(x.removed() for x in lists)]))
    for x in lists:
        x.check(removed)


AGREEMENTS = (
    _no_layer_is_emptied,
    _keeps_promises,
    _attributes_once,
    _kernels_fit,
    _inputs_are_listed,
    _shapes_follow,
    _new_slices_are_filled,
    _units_agree,
    _copies_agree,
)
