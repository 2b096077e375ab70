"""The layering of the package, read off its imports: who may import whom, no circles, torch and ortools in place.

Every import counts, also one inside a function or under TYPE_CHECKING: a delayed import hides a circle, it does not
open it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from imported import PACKAGE, below, imports

# room -> the rooms it names as its direct footing; what those stand on is allowed too. A new module needs a row here.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "report": set(),
    "interrupts": set(),
    "arguments": {"errors"},
    "trace": {"errors"},
    "flow": {"trace"},
    "rules": {"flow"},
    "coupling": {"rules"},
    "requests": {"arguments", "flow"},
    "costs": {"coupling", "requests"},
    "graph": {"costs", "report"},
    "solver": {"errors"},
    "program": {"arguments", "solver"},
    "progress": {"program"},
    "compile": {"costs", "program"},
    "edits": {"trace"},
    "pictures": {"errors"},
    "plan": {"edits", "graph", "pictures"},
    "tracing": {"rules"},
    "precision": set(),
    "batches": {"arguments", "interrupts"},
    "calls": {"tracing"},
    "values": {"apply", "batches", "calls", "compile", "precision", "progress"},
    "regularize": {"graph", "values"},
    "building": {"arguments", "precision", "tracing"},
    "apply": {"building", "interrupts", "plan", "tracing"},
    "explain": {"compile", "graph"},
    "frontier": {"apply", "compile", "pictures"},
    "remodel": {"apply"},
    "depth": {"compile", "remodel"},
    "alternatives": {"depth", "values"},
    "problem": {"alternatives", "explain", "frontier", "progress", "values"},
    "relax": {"frontier", "problem"},
    "select": {"problem"},
    "latency": {"problem"},
    "refine": {"select"},
    "stages": {"lazy", "refine", "repair"},
    "resizing": {"problem"},
    "surgery": {"building", "resizing"},
    "kernels": {"apply"},
    "lazy": {"apply"},
    "repair": {"batches", "calls", "apply", "precision"},
    "search": {"mutator", "surgery"},
}
FACADES = {"mutator", "__init__"}  # these may import every room
TORCH = {
    "alternatives",
    "tracing",
    "building",
    "batches",
    "calls",
    "values",
    "regularize",
    "apply",
    "depth",
    "problem",
    "remodel",
    "resizing",
    "surgery",
    "kernels",
    "latency",
    "lazy",
    "repair",
    *FACADES,
}
TORCH |= {"frontier", "precision", "refine", "relax", "search", "select", "stages"}
ORTOOLS = {"solver", "program"}


def room(path: Path) -> str:
    """The room a file belongs to: its module, or the sub-package it lies in."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def edges() -> dict[str, set[str]]:
    """room -> the rooms that its files import."""
    rooms = {room(path) for path in files()}
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for path in files():
        for name in imports(path):
            if name[0] == "solvemut" and len(name) > 1:
                # `from solvemut import Plan` names no room: it goes through the package's own front
                found[room(path)].add(name[1] if name[1] in rooms else "__init__")
    return {name: targets - {name} for name, targets in found.items()}


def third_party(name: str) -> set[str]:
    return {parts[0] for path in files() if room(path) == name for parts in imports(path)}


ROOMS = sorted({room(path) for path in files()})


def test_every_module_has_a_row():
    assert ROOMS
    assert set(ROOMS) <= set(LAYERS) | FACADES


def test_the_table_itself_has_no_circle():
    assert [name for name in LAYERS if name in below(name, LAYERS)] == []


@pytest.mark.parametrize("name", ROOMS)
def test_imports_only_what_lies_below(name):
    allowed = (set(LAYERS) | FACADES) - {"__init__"} if name in FACADES else below(name, LAYERS) | {"errors"}
    assert edges()[name] - allowed == set()


@pytest.mark.parametrize("name", ROOMS)
def test_is_in_no_import_circle(name):
    assert name not in below(name, edges())


# Rooms that may look behind a door: the program is the solver's public face, and forms are a language of their own.
INSIDE = {("program", "solver"), ("plan", "edits")}


def modules(path: Path) -> set[tuple[str, ...]]:
    """The files of the package that a file imports from, as dotted names; a room's door counts as `room.__init__`."""
    found = set()
    for name in imports(path):
        for end in range(len(name), 1, -1):
            if (file := PACKAGE.joinpath(*name[1:end])).is_dir():
                found.add((*name[1:end], "__init__"))
                break
            if file.with_suffix(".py").is_file():
                found.add(name[1:end])
                break
    return found if path.parent != PACKAGE or path.stem != "__init__" else set()


def test_others_come_through_the_door():
    behind = {
        (room(path), name[0])
        for path in files()
        for name in modules(path)
        if len(name) > 1 and name[0] != room(path) and name[-1] != "__init__"
    }
    assert behind == INSIDE


def test_no_two_files_import_each_other():
    paths = [path for path in files() if path.stem != "__init__"]
    graph = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): {".".join(name) for name in modules(path)}
        for path in paths
    }
    assert [name for name in graph if name in below(name, graph)] == []


@pytest.mark.parametrize(("library", "where"), [("torch", TORCH), ("ortools", ORTOOLS)])
def test_library_is_imported_only_where_it_belongs(library, where):
    assert {name for name in ROOMS if library in third_party(name)} <= where


@pytest.mark.parametrize("name", sorted(set(ROOMS) - TORCH))
def test_nothing_below_the_middle_brings_torch(name):
    assert {lower for lower in below(name, edges()) if "torch" in third_party(lower)} == set()


def test_the_reader_of_imports_sees_each_form(tmp_path, monkeypatch):
    """The oracle's own oracle: relative, absolute, aliased, nested and TYPE_CHECKING imports are all found."""
    module = tmp_path / "solvemut" / "sub" / "a.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import numpy as np\nfrom . import b\nfrom ..graph import Graph\nfrom solvemut.axes import Axis\n"
        "def f():\n    import torch.nn\nif TYPE_CHECKING:\n    from ..rules import RULES\n"
    )
    monkeypatch.setattr("imported.PACKAGE", tmp_path / "solvemut")
    assert imports(module) == {
        ("numpy",),
        ("solvemut", "sub", "b"),
        ("solvemut", "graph", "Graph"),
        ("solvemut", "axes", "Axis"),
        ("torch", "nn"),
        ("solvemut", "rules", "RULES"),
    }


def test_the_front_shows_public_names_only():
    import solvemut

    assert dir(solvemut) == sorted(solvemut.__all__)
    assert {"capture", "prune", "program", "values"} <= set(dir(solvemut))
    assert all(getattr(solvemut, name) is not None for name in dir(solvemut))


def test_the_formatter_is_never_told_to_look_away():
    root = PACKAGE.parent
    mark = "# " + "fmt:"
    written = [p for d in ("solvemut", "tests", "examples", "benchmarks") for p in (root / d).rglob("*.py")]
    assert [str(p.relative_to(root)) for p in written if mark in p.read_text(encoding="utf-8")] == []
