"""The rooms of the solver: what the engines share knows no engine, helpers of one are its own, and nothing circles."""

from __future__ import annotations

from pathlib import Path

import pytest
from imported import PACKAGE, below, imports

SOLVER = PACKAGE / "solver"
ABOVE = {"driver", "conflict", "frontier"}  # these ask the engines


def name_of(path: Path) -> str:
    """A file by its name inside the solver: ``order``, ``engines.price.beam``; a package by its own."""
    parts = path.relative_to(SOLVER).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(SOLVER.rglob("*.py"))}


def targets(path: Path) -> set[str]:
    """The files of the solver that one imports: the module a name comes from, or the module that the name is."""
    found = set()
    for parts in imports(path):
        if parts[:2] == ("solvemut", "solver"):
            whole, stem = ".".join(parts[2:]), ".".join(parts[2:-1])
            found.add(whole if whole in FILES else stem)
    return found - {name_of(path)}


EDGES = {name: targets(path) for name, path in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_in_no_circle(name):
    assert name not in below(name, EDGES)


@pytest.mark.parametrize(
    "name", sorted(name for name in FILES if "." not in name and name not in {*ABOVE, "", "engines"})
)
def test_what_engines_share_knows_no_engine(name):
    assert {other for other in EDGES[name] if other.startswith("engines")} | EDGES[name] & ABOVE <= set()


@pytest.mark.parametrize("name", sorted(FILES))
def test_helpers_of_the_pricing_engine_are_its_own(name):
    if not name.startswith("engines.price"):
        assert not {other for other in EDGES[name] if other.startswith("engines.price.")}


def test_no_engine_knows_who_asks():
    assert {other for name in FILES if name.startswith("engines") for other in EDGES[name]} & ABOVE == set()
