"""Attributes that give sizes: their values after a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SolvemutError
from ..trace import Node, Size, Trace, affine


def solve_attributes(trace: Trace) -> dict[Size, int]:
    """New values for the attributes that give sizes, so that every argument comes out as the trace has it.

    Raises SolvemutError where no value of an attribute can.
    """
    equations: list[tuple[Size, int, Node]] = []
    for node in trace.nodes:
        for path, size in node.sizes.items():
            value: Any = node.args.get(path[0])
            for k in path[1:]:
                value = value[k]
            if isinstance(value, int) and (value >= 0 or node.op == "slice"):  # -1 of a view stands for any size
                equations.append((size, value, node))
    for size, place in trace.numbers:
        here = Node(place, "number", {}, ())
        equations += [(leaf, trace.attributes[leaf], here) for leaf in size.leaves() if leaf.op == "attr"]
    for guard in trace.guards:
        if (guard.sense, guard.holds) in (("==", True), ("!=", False)):
            equations.append((Size("-", (guard.left, guard.right)), 0, Node(guard.place, "branch", {}, ())))
    env = trace.sizes(size for size, _, _ in equations)
    solved: dict[Size, int] = {}
    waiting = equations
    while waiting:  # equations with one unknown attribute first; what they settle may leave others with one
        ready: dict[Size, list[tuple[Size, int, Node]]] = {}
        left = []
        for equation in waiting:
            unknown = {x for x in equation[0].leaves() if x.op == "attr" and x not in solved}
            if len(unknown) == 1:
                ready.setdefault(unknown.pop(), []).append(equation)
            elif unknown:
                left.append(equation)
        for attribute, own in ready.items():
            solved[attribute] = env[attribute] = _solve_one(attribute, own, env)
        if not ready and (stuck := next((e for e in left if not _holds(e, env)), None)):
            # several unknown attributes: the largest follows, the others (numbers of parts, say) stay
            choices = [x for x in stuck[0].leaves() if x.op == "attr" and x not in solved and x in env]
            attribute = max(choices, key=lambda x: env[x])
            same = [e for e in left if attribute in e[0].leaves()]
            solved[attribute] = env[attribute] = _solve_one(attribute, same, env)
        elif not ready:
            break
        waiting = left
    _check_attributes(equations, env)
    return solved


def _holds(equation: tuple[Size, int, Node], env: Mapping[Size, int]) -> bool:
    size, wanted, _ = equation
    return any(leaf not in env for leaf in size.leaves()) or size.evaluate(env) == wanted


def _check_attributes(equations: Sequence[tuple[Size, int, Node]], env: Mapping[Size, int]) -> None:
    for size, wanted, node in equations:
        if not _holds((size, wanted, node), env):
            raise SolvemutError(
                f"the forward computes {size} = {size.evaluate(env)} where this plan has {wanted}: {node.at()}; "
                "keep one of the layers before it"
            )


def check_guards(trace: Trace) -> None:
    """Every question that the forward asks of sizes has the answer it had."""
    env = trace.sizes(s for g in trace.guards for s in (g.left, g.right))
    for guard in trace.guards:
        known = all(leaf in env for side in (guard.left, guard.right) for leaf in side.leaves())
        if known and guard.asks(env) != guard.holds:
            raise SolvemutError(
                f"the forward asks at {guard.place} whether {guard}, and this plan would change the answer; keep one "
                "of the layers before it, or ask for sizes that leave it"
            )


def _solve_one(attribute: Size, equations: Sequence[tuple[Size, int, Node]], env: Mapping[Size, int]) -> int:
    now = env[attribute]
    own = [e for e in equations if all(leaf in env for leaf in e[0].leaves())]

    def fits(value: int) -> bool:
        try:
            return all(size.evaluate({**env, attribute: value}) == wanted for size, wanted, _ in own)
        except ZeroDivisionError:
            return False

    if fits(now):
        return now
    direct = [_solve_affine(size, wanted, env, attribute) for size, wanted, _ in own]
    for value in [v for v in direct if v is not None] or range(now, -1, -1):
        if fits(value):
            return value
    demands = "; ".join(f"{size} = {wanted} at {node.at()}" for size, wanted, node in own[:4])
    raise SolvemutError(f"no value of {attribute} (now {now}) gives the sizes of this plan: {demands}")


def _solve_affine(size: Size, wanted: int, env: Mapping[Size, int], attribute: Size) -> int | None:
    form = affine(_with_known(size, env, attribute))
    if form is None or attribute not in form[1]:
        return None
    value = (wanted - form[0]) / form[1][attribute]
    return int(value) if value.denominator == 1 else None


def _with_known(size: Size, env: Mapping[Size, int], attribute: Size) -> Size:
    """All but one attribute replaced by their numbers."""
    if size.op in ("attr", "size"):
        return size if size == attribute else Size("const", (env[size],))
    return size if size.op == "const" else Size(size.op, tuple(_with_known(a, env, attribute) for a in size.args))
