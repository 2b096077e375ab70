"""What the files of the package import."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "solvemut"


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
