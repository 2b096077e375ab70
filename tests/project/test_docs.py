"""The README and the pages under docs/ say what is so: their Python runs, their links and commands exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from solvemut.apply import EDITORS
from solvemut.costs import COSTS
from solvemut.edits import EDITS
from solvemut.rules import OPS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
WIDTH = 120
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]+\]\((?!https?://|#|mailto:)([^)#]+)")
MAKE = re.compile(r"\bmake ([a-z]+)\b(?=[^\n]*`|\s*(?:#|$))", re.MULTILINE)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page: the line on which each begins, and its text."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in PYTHON_BLOCK.finditer(text)]


def run_doctest(page: Path, line: int, code: str, names: dict[str, object]) -> dict[str, object]:
    """Run a block of `>>>` examples; the names it leaves."""
    test = doctest.DocTestParser().get_doctest(code, names, f"{page.name}:{line}", str(page), line)
    result = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test, clear_globs=False)
    assert result.attempted, f"{page.name}:{line + 1}: no example in this block"
    assert not result.failed, f"{page.name}:{line + 1}: {result.failed} of {result.attempted} examples failed"
    return test.globs


@pytest.fixture(autouse=True)
def registries():
    """What a page enters in a registry is taken out again."""
    tables = (OPS, COSTS, EDITS, EDITORS)
    before = [dict(table) for table in tables]
    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    """The blocks of one page share their names, as a reader who types them in would have it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for line, code in blocks(page):
        if code.lstrip().startswith(">>>"):
            names = run_doctest(page, line, code, names)
        else:  # blank lines in front, so that a traceback names the page's own line
            exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_no_longer_than_code(page):
    """Tables aside, whose rows cannot be broken."""
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    assert [k for k, line in lines if len(line) > WIDTH and not line.startswith("|")] == []


def test_contributing_walks_through_each_kind_of_addition():
    """The walks run with the other pages' blocks; here, that each enters what it speaks of."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walks = dict(re.findall(r"^## An? ([a-z ]+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    entered = {"operation": "op(", "cost": "@cost", "value metric": "Metric(", "edit": "@register"}
    assert {name for name, call in entered.items() if call in walks.get(name, "")} == set(entered)


def test_the_readme_has_a_quick_start_that_runs():
    assert any("solvemut" in code for _, code in blocks(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_commands_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(MAKE.findall(page.read_text(encoding="utf-8"))) <= targets
