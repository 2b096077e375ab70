"""A program as text to read, and as JSON to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import ProgramError
from .exact import Number, RankOne, Table, array, number
from .expressions import Affine, Relation, Width
from .model import Term
from .statement import Budget, Statement, Sum

FORMAT = "solvemut.program/1"
SHOWN = 6  # levels or table entries printed before they are cut short


def printed(statement: Statement) -> str:
    """The program as text: what there is to choose, what is maximised, what is kept."""
    lines = []
    for stage, (values, sense) in enumerate(zip(statement.values, statement.senses, strict=True)):
        name = "" if len(statement.values) == 1 else f" stage {stage}"
        lines.append(f"{sense}imize{name} {_sum(statement, values)}")
    for resource, cost in statement.costs.items():
        budget = statement.budgets.get(resource, Budget())
        lines.append(f"cost {resource}{_limits(budget)}: {_sum(statement, cost)}")
    lines += [f"budget {name}{_limits(b)}" for name, b in statement.budgets.items() if name not in statement.costs]
    for name, relation in statement.relations.items():
        lines.append(f"subject to {relation}" + ("" if name == str(relation) else f"  ({name})"))
    lines += [statement.fix_name(width) for width in statement.fixed]
    for width in statement.widths:
        levels = "switch" if width.is_switch else f"in {{{_some(width.levels)}}}"
        lines.append(f"{width.name} {levels}")
    return "\n".join(lines)


def _limits(budget: Budget) -> str:
    upper = "" if budget.upper is None else f" <= {_short(budget.upper)}"
    lower = "" if budget.lower is None else f" >= {_short(budget.lower)}"
    return upper + lower + (f" (tolerance {_short(budget.tolerance)})" if budget.tolerance else "")


def _sum(statement: Statement, found: Sum) -> str:
    parts = [_term(statement, term) for term in found.terms]
    if found.constant or not parts:
        parts.append(_short(found.constant))
    if len(parts) > 2 * SHOWN:
        parts = [*parts[:SHOWN], f"... {len(parts) - SHOWN} more"]
    return " + ".join(parts)


def _term(statement: Statement, term: Term) -> str:
    names = ", ".join(statement.widths[v].name for v in term.scope)
    when = "" if term.when is None else f" if {statement.widths[term.when].name}"
    if isinstance(term.table, RankOne):
        kind = "product"
    else:
        kind = f"[{_some(term.table.tolist())}]" if term.table.ndim == 1 else "table"
    return f"{kind}({names}){when}"


def _some(values: Sequence[Any]) -> str:
    shown = [_short(value) for value in values]
    if len(shown) > SHOWN:
        shown = [*shown[:3], "...", shown[-1]]
    return ", ".join(shown)


def _short(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{float(value):g}"


# -- JSON ------------------------------------------------------------------------------------------------------------


def to_json(statement: Statement) -> str:
    """Everything a program states; ints and floats as JSON has them, other fractions as "p/q"."""
    data = {
        "format": FORMAT,
        "widths": [{"name": w.name, "levels": list(w.levels), "switch": w.is_switch} for w in statement.widths],
        "values": [_write_sum(values) for values in statement.values],
        "senses": list(statement.senses),
        "costs": {name: _write_sum(cost) for name, cost in statement.costs.items()},
        "budgets": {
            name: {"upper": _write(b.upper), "lower": _write(b.lower), "tolerance": _write(b.tolerance)}
            for name, b in statement.budgets.items()
        },
        "constraints": {name: _write_relation(relation) for name, relation in statement.relations.items()},
        "fixed": {str(width): k for width, k in statement.fixed.items()},
        "hint": {str(width): k for width, k in statement.hint.items()},
    }
    return json.dumps(data)


def _write(value: Number | None) -> Any:
    if value is None or isinstance(value, int):
        return value
    try:
        nearest = float(value)
    except OverflowError:
        return str(value)
    return nearest if Fraction(nearest) == value else str(value)


def _write_table(table: Table) -> Any:
    if isinstance(table, RankOne):
        return {"first": _write_table(table.first), "second": _write_table(table.second)}
    if table.dtype != object:
        return table.tolist()
    if table.ndim > 1:
        return [_write_table(line) for line in table]
    return [_write(value) for value in table]


def _write_sum(found: Sum) -> dict[str, Any]:
    terms = [{"scope": list(t.scope), "table": _write_table(t.table), "when": t.when} for t in found.terms]
    return {"terms": terms, "constant": _write(found.constant)}


def _write_relation(relation: Relation) -> dict[str, Any]:
    def side(expression: Affine) -> dict[str, Any]:
        return {
            "coefficients": [[width.index, c] for width, c in expression.coefficients.items()],
            "constant": expression.constant,
        }

    return {"left": side(relation.left), "sense": relation.sense, "right": side(relation.right)}


def parsed(source: str) -> dict[str, Any]:
    """JSON text as data, its format checked."""
    try:
        data = json.loads(source)
    except json.JSONDecodeError as error:
        raise ProgramError(f"not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ProgramError(f"not a program in the format {FORMAT!r}")
    return data


def _read(value: Any) -> Number | None:
    if value is None:
        return None
    return number(Fraction(value)) if isinstance(value, str) else number(value)


def _read_table(value: Any) -> Table:
    if isinstance(value, dict):
        return RankOne(_read_vector(value["first"]), _read_vector(value["second"]))
    return _read_vector(value)


def _read_vector(value: Any) -> np.ndarray:
    def entries(found: Any) -> Any:
        return [entries(one) for one in found] if isinstance(found, list) else _read(found)

    found = np.array(value, dtype=object)
    strings = any(isinstance(entry, str) for entry in found.flat)
    return array(entries(value) if strings else value)


def read_sum(data: dict[str, Any]) -> Sum:
    """The sum that JSON data describes."""
    terms = tuple(Term(tuple(t["scope"]), _read_table(t["table"]), t["when"]) for t in data["terms"])
    constant = _read(data["constant"])
    return Sum(terms, 0 if constant is None else constant)


def read_budget(data: dict[str, Any]) -> Budget:
    """The budget that JSON data describes."""
    return Budget(_read(data["upper"]), _read(data["lower"]), _read(data.get("tolerance")) or 0)


def read_relation(data: dict[str, Any], widths: Sequence[Width]) -> Relation:
    """The constraint that JSON data describes."""

    def side(found: dict[str, Any]) -> Affine:
        return Affine({widths[index]: c for index, c in found["coefficients"]}, found["constant"])

    return Relation(side(data["left"]), data["sense"], side(data["right"]))
