"""Plan files: whatever is done to one, it is refused in words, or what it does to a model is what it says.

The fuzzer damages plan files as bytes and as data; half of the damaged data get a checksum that is right again, so that
the checks of the content stand alone. Files of earlier versions are damaged as well.
SOLVEMUT_NIGHTLY=1 tries twenty times as many.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import assert_same, masked, outputs, randomise
from strategies_program import NIGHTLY
from torch import nn
from training import assert_untouched, planned, snapshot, step, training_set

import solvemut as sm
from solvemut.apply import EDITORS
from solvemut.edits import EDITS, Selection
from solvemut.errors import PlanMismatchError, SolvemutError
from solvemut.plan import checksum

# name -> fraction of params: groups, a shuffle, heads as an attribute, tied weights, concat, flatten, group norm
CASES = {
    "ResNeXt": 0.6,
    "ChannelShuffle": 0.5,
    "FusedQkv": 0.85,
    "TiedHead": 0.8,
    "Dense": 0.6,
    "LayerNormImage": 0.7,
    "GroupNorm": 0.6,
    "Mlp": 0.6,
    "TwoMethods": 0.6,
    "Grown": 0.9,
    "Split": 0.9,
}
COUNT = 6000 if NIGHTLY else 300
BYTES = COUNT // 2
VERSIONS = (1, 2, 3, 4, 5)
SINCE = {"Grown": 3, "Split": 4}  # nothing was new in earlier versions, then no new unit was a copy
FILES = [(n, v) for n in CASES for v in VERSIONS if v >= SINCE.get(n, 1)]
SEEDS = {1: "", 2: "2 ", 3: "3 ", 4: "4 ", 5: "5 "}  # each version has damage of its own


class TwoMethods(nn.Module):
    """Train mode takes another branch, and a second method is called: the plan tells of three calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, x):
        h = self.a(x).relu()
        return (self.b(h), self.c(h)) if self.training else self.b(h)

    def project(self, x, scale: float = 1.0):
        return self.c(self.a(x) * scale)


@functools.cache
def case(name: str) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """A network, its inputs, and a plan for it; nobody changes them."""
    if name == "TwoMethods":
        model, args = randomise(TwoMethods().double()).eval(), (torch.ones(2, 5).double(),)
        mutator = sm.Mutator(model, args, methods={"project": (*args, 0.5)})
        return model, args, mutator.prune(params=CASES[name], values=sm.values.random(0), dry_run=True)
    model, args = training_set("Residual" if name in SINCE else name)
    if name in SINCE:
        values, init = {"stem": [5.0, *[1.0] * 7], "a": [0.01] * 10}, "split" if name == "Split" else None
        return model, args, sm.Mutator(model, args).prune(params=0.9, grow=4, init=init, values=values, dry_run=True)
    return model, args, planned(model, args, CASES[name])


def content(plan: Any, version: int) -> Any:
    """What a file of that version says of a plan."""
    data = json.loads(plan.to_json())
    if version == 5:
        return data
    data.pop("trials")
    if version == 4:
        return json.loads(repaired({**data, "version": 4}))
    data.pop("copies")
    if version == 3:
        return json.loads(repaired({**data, "version": 3}))
    if version == 2:
        data = {k: v for k, v in data.items() if k not in ("fills", "alters")}
        return json.loads(repaired({**data, "version": 2}))
    attributes = [[e["module"], e["name"], e["index"], e["before"], e["after"]] for e in data["edits"]]
    old = {"version": 1, "indices": data["selection"]["indices"], "attributes": attributes}
    keys = (
        "format",
        "version",
        "certificate",
        "sizes",
        "indices",
        "units",
        "shapes",
        "costs",
        "attributes",
        "notes",
        "root",
        "values",
        "example",
        "outputs",
        "program",
    )
    return json.loads(repaired({k: old[k] if k in old else data[k] for k in keys}))


def repaired(data: Any) -> str:
    """The text of a file whose checksum is that of its content."""
    return json.dumps({**data, "checksum": checksum(data)})


# -- what must hold for any file ---------------------------------------------------------------------------------------


def outcome(name: str, text: str | bytes) -> str:
    """What comes of a plan file, with everything checked that must hold."""
    model, args, plan = case(name)
    try:
        loaded = sm.Plan.from_json(text)
    except PlanMismatchError as e:
        assert str(e)
        return "refused on load"
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        print(loaded)
    model, optimizer = copy.deepcopy(trained(name))
    before = snapshot(model, optimizer)
    wanted = masked(model, loaded)
    try:
        loaded.apply(model, optimizer)
    except SolvemutError:
        assert_untouched(before, snapshot(model, optimizer))
        return "refused by apply"
    assert_same(outputs(model, args), outputs(wanted, args))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()}.items() <= {
        n: after for n, (_, after) in plan.shapes.items()
    }.items()
    return "applied"


@functools.cache
def trained(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, args, _ = case(name)
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, args, optimizer)
    optimizer.zero_grad()
    return model.eval(), optimizer


# -- damage ------------------------------------------------------------------------------------------------------------

JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    10**6,
    2**48,
    10**30,
    10**400,
    0.5,
    1.0,
    -2.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "\x1b[2J",
    [],
    [0],
    [[]],
    [[0, 1]],
    [None],
    {},
    {"0": [0]},
    {"a.weight": 7},
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a file with each key in it."""
    for key in data if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], (dict, list)):
            yield from places(data[key])


def put(rng: random.Random, at: Any, key: Any) -> None:
    at[key] = copy.deepcopy(rng.choice(JUNK))


def drop(rng: random.Random, at: Any, key: Any) -> None:
    del at[key]


def rename(rng: random.Random, at: Any, key: Any) -> None:
    if isinstance(at, dict):
        at[rng.choice([*at, "0", "1", "-1", "x", "", key + "x"])] = at.pop(key)
    else:
        at.insert(key, at.pop())


def double(rng: random.Random, at: Any, key: Any) -> None:
    """The same again: at another place of a list, under another name of an object."""
    if isinstance(at, dict):
        at[rng.choice([*at, key + "2"])] = copy.deepcopy(at[key])
    else:
        at[rng.randrange(len(at))] = copy.deepcopy(at[key])


def swap(rng: random.Random, at: Any, key: Any) -> None:
    other = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
    at[key], at[other] = at[other], at[key]


def nudge(rng: random.Random, at: Any, key: Any) -> None:
    """Numbers a little off, alone or all those of a list; strings by a character."""
    by = rng.choice([-1, 1, 1, 2, 7])
    if isinstance(at, list) and rng.random() < 0.3:
        at[:] = [x + by if type(x) is int else x for x in at]
    elif type(at[key]) in (int, float):
        at[key] += by
    elif isinstance(at[key], str) and at[key]:
        k = rng.randrange(len(at[key]))
        at[key] = at[key][:k] + rng.choice(["", "0", "1", '"', "\\"]) + at[key][k + 1 :]
    else:
        put(rng, at, key)


def longer(rng: random.Random, at: Any, key: Any) -> None:
    if isinstance(at, list):
        at.insert(rng.randrange(len(at) + 1), copy.deepcopy(at[key]))
    else:
        at[key] = [at[key]]


DAMAGE: tuple[Callable[[random.Random, Any, Any], None], ...] = (put, drop, rename, double, swap, nudge, longer)
INDICES = (double, swap, nudge, drop, longer)


def damaged_data(plan: Any, version: int, rng: random.Random) -> tuple[Any, str]:
    """A file's content with one place damaged, and what was done. Every third time it is an index list."""
    data = content(plan, version)
    if rng.random() < 0.1:
        return damaged_example(data, rng)
    inside = rng.choice(["", "", "indices"])
    found = list(places(data.get("selection", data)[inside] if inside else data))
    if not inside and rng.random() < 0.7:  # any part of the plan is as likely as another, whatever its size
        part = rng.choice([k for k in data if isinstance(data[k], (dict, list)) and data[k]])
        found = list(places(data[part]))
    at, key = rng.choice(found)
    how = rng.choice(INDICES if inside else DAMAGE)
    told = f"{how.__name__} {key!r} in {str(at)[:80]}"
    how(rng, at, key)
    return data, told


def damaged_example(data: Any, rng: random.Random) -> tuple[Any, str]:
    """The example inputs are JSON in a string, and their tree is JSON in a string of that."""
    spec = json.loads(data["example"])
    tree = json.loads(spec["tree"])
    at, key = rng.choice(list(places(rng.choice([spec, spec["leaves"], tree, *spec.get("more", [])]))))
    how = rng.choice(DAMAGE)
    told = f"example: {how.__name__} {key!r} in {str(at)[:80]}"
    how(rng, at, key)
    if "tree" in spec and rng.random() < 0.9:
        spec["tree"] = json.dumps(tree)
    data["example"] = json.dumps(spec)
    return data, told


def damaged_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A file with bits flipped, bytes exchanged, a piece cut out or doubled, or an end missing."""
    a, b = sorted(rng.sample(range(len(raw)), 2))
    b = min(b, a + rng.choice([1, 3, 40]))
    kind = rng.randrange(6)
    if kind == 0:
        return raw[:a] + bytes([raw[a] ^ 1 << rng.randrange(8)]) + raw[a + 1 :]
    if kind == 1:
        return raw[:a]
    if kind == 2:
        return raw[:a] + raw[b:]
    if kind == 3:
        return raw[:b] + raw[a:]
    if kind == 4:
        return raw[:a] + bytes(rng.randrange(256) for _ in range(b - a)) + raw[b:]
    return raw[:a] + rng.choice([b"0", b"1", b"9", b"-", b"e", b"]", b"}", b",", b" ", b"\x00", b"\xff"]) + raw[a + 1 :]


# -- the fuzzers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "version"), FILES)
def test_damaged_bytes(name, version):
    plan = case(name)[2]
    raw = json.dumps(content(plan, version)).encode()
    for seed in range(BYTES // len(CASES)):
        text = damaged_bytes(raw, random.Random(f"{name} bytes {SEEDS[version]}{seed}"))
        with contextlib.suppress(PlanMismatchError):
            assert sm.Plan.from_json(text) == plan, seed  # a blank, say: the content is the same


@pytest.mark.parametrize(("name", "version"), FILES)
def test_damaged_data_with_the_old_checksum(name, version):
    plan = case(name)[2]
    for seed in range(COUNT // len(CASES)):
        data, how = damaged_data(plan, version, random.Random(f"{name} data {SEEDS[version]}{seed}"))
        with contextlib.suppress(PlanMismatchError):
            assert sm.Plan.from_json(json.dumps(data)) == plan, (seed, how)


@pytest.mark.parametrize(("name", "version"), FILES)
def test_damaged_data_with_a_checksum_that_is_right(name, version):
    plan = case(name)[2]
    found: collections.Counter[str] = collections.Counter()
    for seed in range(COUNT // len(CASES)):
        data, how = damaged_data(plan, version, random.Random(f"{name} repaired {SEEDS[version]}{seed}"))
        try:
            found[outcome(name, repaired(data))] += 1
        except Exception as e:
            raise AssertionError(f"seed {seed}: {how}: {type(e).__name__}: {e}") from e
    assert found["refused on load"] > found["applied"] > 0


@pytest.mark.parametrize(("name", "version"), FILES)
def test_the_whole_file_applies(name, version):
    text = json.dumps(content(case(name)[2], version))
    assert sm.Plan.from_json(text) == case(name)[2]
    assert outcome(name, text) == "applied"


# -- one by one: the place and what was expected -----------------------------------------------------------------------


def edited(name: str, version: int, edit: Callable[[Any], Any]) -> str:
    data = content(case(name)[2], version)
    edit(data)
    return repaired(data)


def inside(data: Any, path: tuple[Any, ...]) -> Any:
    """What stands there; index maps lie in the selection since version 2."""
    for key in ("selection", *path) if path[0] == "indices" and "selection" in data else path:
        data = data[key]
    return data


def setting(*path: Any, to: Any) -> Callable[[Any], None]:
    def edit(data: Any) -> None:
        (inside(data, path[:-1]) if path[:-1] else data)[path[-1]] = to

    return edit


def swapped(*path: Any) -> Callable[[Any], None]:
    def edit(data: Any) -> None:
        found = inside(data, path)
        found[0], found[1] = found[1], found[0]

    return edit


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (setting("indices", "a.weight", "0", 0, to=True), r"indices\['a.weight'\]\[0\]: expected ints, found True"),
        (
            setting("indices", "a.weight", "0", 0, to=-1),
            r"fills\['a.weight'\]\[0\]: expected an entry, as there are new slices",
        ),
        (setting("indices", "a.weight", "0", 0, to=12), r"indices\['a.weight'\]\[0\]: expected positions below 12"),
        (
            setting("indices", "a.weight", "0", 1, to=0),
            r"indices\['a.weight'\]\[0\]: expected each position once, found 0",
        ),
        (setting("indices", "a.bias", "0", 0, to=1), r"indices\['.*'\]\[0\]: .*what the other lists keep"),
        (swapped("indices", "a.bias", "0"), r"indices\['a.bias'\]\[0\]: .*in this order"),
        (swapped("indices", "g.weight", "1"), r"indices\['g.weight'\]\[1\]: expected"),
        (setting("indices", "a.weight", "7", to=[0]), r"units\['a.weight'\]|indices\['a.weight'\]\[7\]"),
        (setting("indices", "a.weight", "x", to=[0]), r"a key of (selection\.)?indices\['a.weight'\]: expected a dim"),
        (setting("shapes", "a.weight", 1, 0, to=5), r"indices\['a.weight'\]\[0\]: expected 5 positions"),
        (setting("shapes", "a.weight", 1, 2, to=5), r"shapes\['a.weight'\]\[1\]\[2\]: expected 1, as indices"),
        (setting("shapes", "a.weight", 1, to=[3]), r"shapes\['a.weight'\]\[1\]: expected a shape of 4 dims"),
        (setting("shapes", "a.weight", 0, 0, to=-3), r"shapes\['a.weight'\]\[0\]\[0\]: expected an int of at least 0"),
        (setting("sizes", "a", to=[12, 13]), r"sizes\['a'\]\[1\]: expected a size from 1 to 12, found 13"),
        (setting("sizes", "a", to=[12, 0]), r"sizes\['a'\]\[1\]: expected a size from 1 to 12, found 0"),
        (setting("sizes", "a", to=[12.0, 3]), r"sizes\['a'\]\[0\]: expected an int of at least 0, found 12.0"),
        (setting("costs", "params", 1, to=10**6), r"costs\['params'\]\[1\]: expected a cost of at most 706"),
        (setting("costs", "params", 2, to=1.5), r"costs\['params'\]\[1\]: expected a cost within the budget of 1.5"),
        (
            setting("costs", "params", 2, to=float("nan")),
            r"costs\['params'\]\[2\]: expected a finite number, found nan",
        ),
        (setting("certificate", "objective", to=1e9), "certificate.objective: expected a value within the bound"),
        (setting("certificate", "gap", to=-1), "certificate.gap: expected a finite number of at least 0"),
        (setting("certificate", "status", to="perfect"), "certificate.status: expected 'optimal' or"),
        (setting("certificate", "bound", to=10**400), "certificate.bound: expected a finite number"),
        (setting("notes", to=["\ud800"]), r"notes\[0\]: expected a string without lone surrogates"),
        (setting("program", to=[1]), r"program\[0\]: expected a string, found 1"),
        (setting("outputs", to=[[2.0]]), r"outputs\[0\]\[0\]: expected an int of at least 0, found 2.0"),
        (setting("example", to="{"), "example: expected JSON"),
        (setting("example", to='{"leaves": [1, 2], "tree": "[1]"}'), "example.tree: expected a list of 2"),
        (setting("extra", to=1), r"the plan: expected no entry but .*found \['extra'\]"),
        (setting("version", to=True), "version: expected an int from 1 to 5, found True"),
        (setting("version", to=0), "version: expected an int from 1 to 5, found 0"),
        (lambda data: data["units"].pop("a.bias"), r"units\['a.bias'\]: expected the dims"),
        (lambda data: data["shapes"].pop("a.bias"), "shapes: expected an entry 'a.bias'"),
        (setting("units", "a.bias", "0", to=[[[0, 3, 1]]]), r"units\['a.bias'\]\[0\]: expected runs of 12 positions"),
    ],
)
def test_what_is_wrong_is_named(edit, words, version):
    with pytest.raises(PlanMismatchError, match=words):
        sm.Plan.from_json(edited("ResNeXt", version, edit))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (setting("attributes", to=[["a", "groups", None, 1, 1]] * 2), r"attributes\[1\]: expected each attribute once"),
        (setting("attributes", to=[["a", "groups", None, 1]]), r"attributes\[0\]: expected a list of 5"),
        (setting("attributes", to=[["a", 7, None, 1, 1]]), r"attributes\[0\]\[1\]: expected a string, found 7"),
        (setting("edits", to=[]), r"the plan: expected no entry but .*found \['edits'\]"),
        (setting("version", to=2), "the plan: expected an entry 'edits'"),
    ],
)
def test_what_is_wrong_in_version_1_is_named(edit, words):
    with pytest.raises(PlanMismatchError, match=words):
        sm.Plan.from_json(edited("ResNeXt", 1, edit))


GROUPS = {"kind": "set_attribute", "module": "a", "name": "groups", "index": None, "before": 1, "after": 1}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (setting("edits", to=[GROUPS] * 2), r"attributes\[1\]: expected each attribute once"),
        (setting("edits", to=[{**GROUPS, "name": 7}]), r"edits\[0\]\.name: expected a string, found 7"),
        (setting("edits", to=[{**GROUPS, "more": 7}]), r"edits\[0\]: expected no entry but .*found \['more'\]"),
        (setting("edits", to=[{"kind": "set_attribute"}]), r"edits\[0\]: expected an entry 'module'"),
        (setting("edits", to=[{**GROUPS, "kind": "wid\n"}]), r"edits\[0\]\.kind: .*edit of kind 'wid\\+n', only set_"),
        (setting("edits", to=[{**GROUPS, "kind": ["a"]}]), r"edits\[0\]\.kind: expected a string"),
        (setting("edits", to=[{}]), r"edits\[0\]: expected an entry 'kind'"),
        (setting("edits", to=[["a", "groups", None, 1, 1]]), r"edits\[0\]: expected an object"),
        (setting("edits", to={}), "edits: expected a list"),
        (setting("selection", to={}), "selection: expected an entry 'indices'"),
        (setting("selection", "more", to=1), "selection: expected no entry but indices, found"),
        (setting("attributes", to=[]), r"the plan: expected no entry but .*found \['attributes'\]"),
        (setting("version", to=1), "the plan: expected an entry 'indices'"),
    ],
)
def test_what_is_wrong_in_version_2_is_named(edit, words):
    with pytest.raises(PlanMismatchError, match=words):
        sm.Plan.from_json(edited("ResNeXt", 2, edit))


def test_an_edit_of_no_known_kind_is_refused_by_apply(monkeypatch):
    model, _, plan = case("FusedQkv")
    assert set(EDITORS) == set(EDITS) and plan.edits
    monkeypatch.delitem(EDITORS, "set_attribute")
    with pytest.raises(PlanMismatchError, match="makes no edit of kind 'set_attribute'"):
        plan.apply(copy.deepcopy(model))
    monkeypatch.delitem(EDITS, "set_attribute")
    with pytest.raises(PlanMismatchError, match=r"edits\[0\]\.kind: .*no edit of kind 'set_attribute'"):
        plan.apply(copy.deepcopy(model))


def test_a_budget_may_be_an_int_of_any_size():
    plan = case("Mlp")[2]
    huge = replace(plan, costs={k: replace(c, budget=10**400) for k, c in plan.costs.items()})
    assert sm.Plan.from_json(huge.to_json()) == huge


def test_a_missing_and_a_wrong_checksum():
    data = json.loads(case("Mlp")[2].to_json())
    del data["checksum"]
    with pytest.raises(PlanMismatchError, match=r"expected an entry 'checksum'.*save it again"):
        sm.Plan.from_json(json.dumps(data))
    with pytest.raises(PlanMismatchError, match=r"checksum: the content is not what was saved.*save the plan again"):
        sm.Plan.from_json(json.dumps({**data, "notes": ["mine"], "checksum": checksum(data)}))
    assert sm.Plan.from_json(json.dumps({**data, "checksum": checksum(data)}, indent=3)) == case("Mlp")[2]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"\x80abc",
        "\ufeff{}".encode(),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b"NaN",
        b"\x00",
        b'{"format": "solvemut-plan", "version": ' + b"9" * 4000 + b"}",
        b'{"format": "solvemut-plan", "version": NaN}',
    ],
)
def test_files_that_are_no_plans(raw, tmp_path):
    (tmp_path / "plan.json").write_bytes(raw)
    with pytest.raises(PlanMismatchError):
        sm.Plan.load(tmp_path / "plan.json")


def test_a_key_that_stands_twice():
    text = case("Mlp")[2].to_json()
    with pytest.raises(PlanMismatchError, match="'notes' stands twice"):
        sm.Plan.from_json(text[:-1] + ', "notes": []}')


def test_what_is_no_file_is_an_error_of_the_system(tmp_path):
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(OSError):
            sm.Plan.load(path)


def test_files_are_utf_8_wherever_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    plan = replace(case("Mlp")[2], notes=("größer – 大きい",))
    plan.save(tmp_path / "plan.json")
    assert sm.Plan.load(tmp_path / "plan.json").notes == plan.notes


# -- plans that never were in a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [[0, 0], [1, 0], [0, 2], [True, 1], [-1, 0], [0.0, 1], "01", [0, 10**400]])
def test_a_plan_changed_in_memory_is_refused_by_apply(index):
    model, _, plan = case("Mlp")
    keep = plan.indices["0.weight"][0]
    wrong = [*index, *keep[2:]] if isinstance(index, list) else index
    assert wrong != keep or index == [True, 1]
    broken = replace(plan, selection=Selection({**plan.indices, "0.weight": {**plan.indices["0.weight"], 0: wrong}}))
    model, optimizer = copy.deepcopy(trained("Mlp"))
    before = snapshot(model, optimizer)
    with pytest.raises(PlanMismatchError, match=r"(indices|fills)\['0\.(weight|bias)'\]\[0\]"):
        broken.apply(model, optimizer)
    assert_untouched(before, snapshot(model, optimizer))


def test_an_attribute_that_is_no_int_is_refused():
    model, _, plan = case("FusedQkv")
    for name in ("training", "weight", "forward", "missing", "__class__"):
        bad = replace(plan, edits=(replace(plan.edits[0], name=name), *plan.edits[1:]))
        with pytest.raises(PlanMismatchError, match=f"{name} is no int of this model"):
            bad.apply(copy.deepcopy(model))
