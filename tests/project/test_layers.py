"""The layering of the package, read off its imports: who may import whom, no circles, torch and ortools in place.

Every import counts, also one inside a function or under TYPE_CHECKING: a delayed import hides a circle, it does not
open it.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "solvemut"

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
    "plan": {"edits", "graph"},
    "tracing": {"rules"},
    "values": {"interrupts", "plan", "tracing"},
    "apply": {"interrupts", "plan", "tracing"},
    "problem": {"apply", "compile", "progress", "values"},
}
FACADES = {"mutator", "__init__"}  # these may import every room
TORCH = {"tracing", "values", "apply", "problem", *FACADES}
ORTOOLS = {"solver", "program"}


def room(path: Path) -> str:
    """The room a file belongs to: its module, or the sub-package it lies in."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


@cache
def imports(path: Path) -> frozenset[tuple[str, ...]]:
    """Absolute dotted names that a file imports, each as a tuple of its parts."""
    here = ("solvemut", *path.relative_to(PACKAGE).with_suffix("").parts)
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            stem = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {(*stem, alias.name) for alias in node.names}
    return frozenset(found)


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


def below(name: str, table: dict[str, set[str]]) -> set[str]:
    """Everything reachable from a row of a table, the row itself left out unless a circle leads back to it."""
    seen: set[str] = set()
    todo = list(table.get(name, ()))
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += table.get(current, ())
    return seen


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
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "solvemut")
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
