"""Tables as text and as HTML, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """Rows under a header, columns aligned; the columns in `right` to the right.

    >>> print(table(["layer", "width"], [["conv1", 64], ["fc", 10]], right=[1]))
    layer  width
    -----  -----
    conv1     64
    fc        10
    """
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    cells.insert(1, ["-" * w for w in widths])
    lines = []
    for row in cells:
        line = "  ".join(
            c.rjust(w) if k in right else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class Table:
    """Rows under a header; the columns in `right` to the right. Prints as `table` does."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    right: Sequence[int] = ()

    def __str__(self) -> str:
        return table(self.header, self.rows, self.right)

    def html(self) -> str:
        """The table as HTML, every cell escaped."""
        lines = [self._row("th", self.header), *(self._row("td", row) for row in self.rows)]
        return "<table>" + "".join(lines) + "</table>"

    def _row(self, tag: str, row: Sequence[Any]) -> str:
        sides = ("right" if k in self.right else "left" for k in range(len(row)))
        cells = (f'<{tag} style="text-align: {s}">{escape(str(c))}</{tag}>' for c, s in zip(row, sides, strict=True))
        return f"<tr>{''.join(cells)}</tr>"


Part = str | Table  # a paragraph, or lines of text; or a table


def text(parts: Sequence[Part]) -> str:
    """Parts of a report as text, an empty line between them."""
    return "\n\n".join(map(str, parts))


def html(parts: Sequence[Part]) -> str:
    """Parts of a report as HTML that needs no script, and in which every text is escaped.

    >>> html(["a < b", Table(["layer", "width"], [["conv1", 64]], right=[1])]).count("&lt;")
    1
    """
    found = [p.html() if isinstance(p, Table) else f"<pre>{escape(p)}</pre>" for p in parts]
    return f"<div>{''.join(found)}</div>"


def share(part: float, whole: float) -> str:
    """A share in percent; nothing where there is no whole."""
    return f"{part / whole:.2%}" if whole else ""


def short(n: float) -> str:
    """A count with a unit.

    >>> short(1234), short(25_557_032), short(12), short(10**400)
    ('1.23 k', '25.56 M', '12', '1.00e+400')
    """
    if abs(n) >= 10**18:  # maybe beyond floats
        return f"{Decimal(n):.2e}"
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n:g}"


def clipped(text: str, width: int = 70) -> str:
    """At most `width` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def one_line(text: str, width: int = 190) -> str:
    """A text for `repr`: one line, not too long."""
    return clipped(" ".join(text.split()), width)
