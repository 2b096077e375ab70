"""The conformance suite of the engines: one table of small programs, every engine, one contract.

The contract: a choice handed over is exactly feasible and its value is the exact one; a bound is never below the
optimum; "finished" means that the gap asked for is proven, or that the program is infeasible; "infeasible" is true.
An engine may give up (not finished); it may not be wrong.
"""

from __future__ import annotations

import pytest
from benchmarks_path import instances
from hypothesis import given
from hypothesis import strategies as st
from oracle_program import WAYS, Budget, Linear, Spec, Term, best, build, constants_of, feasible, objectives, rank
from strategies_program import Stopwatch, examples, specs

from solvemut.errors import ProgramError
from solvemut.program import Program
from solvemut.solver.certificate import Answer, Request
from solvemut.solver.clock import Clock
from solvemut.solver.engines import ENGINES

HOW = [*(way for way in WAYS if way != "auto"), *(name for name in ENGINES if name not in WAYS)]


def vector(name: str, *data: float, when: str | None = None, of: str | int = 0) -> Term:
    return Term("vector", data, (name,), when, of)


def scalar(data: float, when: str | None, of: str | int = 0) -> Term:
    return Term("scalar", data, (), when, of)


AB = {"a": (8, 16, 24), "b": (1, 2, 3)}
SWITCHED = {"a": (8, 16, 24), "b": (1, 2, 3), "s": (0, 1)}
PRODUCT = Term("product", 1, ("a", "b"), None, "x")
RISING = (vector("a", 1, 4, 5), vector("b", 1, 3, 4))
TABLE: dict[str, Spec] = {
    "nothing to choose": Spec({"a": (4,)}, values=(vector("a", 3),)),
    "nothing asked": Spec(AB),
    "no budget": Spec(AB, values=(vector("a", 1, 5, 2), vector("b", -1, -2, -3))),
    "one product budget": Spec(AB, (), RISING, (PRODUCT,), (Budget("x", 33),)),
    "a budget hit exactly": Spec(AB, (), RISING, (PRODUCT,), (Budget("x", 32),)),
    "a budget below everything": Spec(AB, (), RISING, (PRODUCT,), (Budget("x", 7),)),
    "a lower budget": Spec(AB, (), (vector("a", 5, 4, 1),), (PRODUCT,), (Budget("x", None, 30),)),
    "both sides": Spec(AB, (), (vector("a", 5, 4, 1), vector("b", 3, 1, 0)), (PRODUCT,), (Budget("x", 32, 30),)),
    "both sides, nothing between": Spec(AB, (), (vector("a", 5, 4, 1),), (PRODUCT,), (Budget("x", 31, 25),)),
    "two budgets": Spec(
        AB,
        (),
        RISING,
        (PRODUCT, vector("a", 3, 1, 0.5, of="y"), vector("b", 0.5, 0.25, 4, of="y")),
        (Budget("x", 40), Budget("y", 2.5)),
    ),
    "a table that is not monotone": Spec(
        AB,
        (),
        (vector("a", 1, 2, 3), vector("b", 1, 2, 3)),
        (Term("table", ((5, 1, 9), (2, 8, 3), (7, 4, 6)), ("a", "b"), None, "x"),),
        (Budget("x", 4),),
    ),
    "a switch over a group": Spec(
        SWITCHED,
        ("s",),
        (vector("a", 1, 4, 5), vector("b", 1, 3, 4, when="s"), scalar(3, "s")),
        (Term("product", 1, ("a", "b"), "s", "x"), scalar(12, "s", "x")),
        (Budget("x", 45),),
    ),
    "a switch that does not pay": Spec(
        SWITCHED,
        ("s",),
        (vector("a", 1, 4, 5), vector("b", 1, 3, 4, when="s")),
        (Term("product", 1, ("a", "b"), "s", "x"), vector("a", 20, 40, 60, of="x")),
        (Budget("x", 60),),
    ),
    "a pair value": Spec(
        AB, (), (Term("table", ((0, 0, 9), (1, 2, 0), (8, 0, 0)), ("a", "b"), None, 0),), (PRODUCT,), (Budget("x", 24),)
    ),
    "a rank-one table of either sign": Spec(
        AB, (), RISING, (Term("rank one", ((-1, 0, 2), (3, -2, 0.5)), ("a", "b"), None, "x"),), (Budget("x", 0),)
    ),
    "linear rows": Spec(
        AB,
        (),
        RISING,
        linear=(Linear("r", ((1, "a"), (8, "b")), "<=", 32), Linear("e", ((1, "a"), (-8, "b")), "==", 8)),
    ),
    "linear rows in conflict": Spec(
        AB,
        (),
        RISING,
        linear=(Linear("r", ((1, "a"), (-8, "b")), ">=", 16), Linear("e", ((1, "a"), (-8, "b")), "<=", -1)),
    ),
    "all ties": Spec(AB, (), (vector("a", 2, 2, 2), vector("b", 0, 0, 0)), (PRODUCT,), (Budget("x", 30),)),
    "huge beside tiny": Spec(
        AB,
        (),
        (vector("a", 0, 10**18, 10**18 + 1), vector("b", 0, 2.0**-30, 2.0**-29)),
        (vector("a", 0, 1e9, 1e9 + 1e-3, of="x"), vector("b", 0, 1e-3, 2e-3, of="x")),
        (Budget("x", 1e9 + 2e-3),),
    ),
    "negative values": Spec(
        AB, (), (vector("a", -5, -4, -9), vector("b", -1e-9, -1, -2)), (PRODUCT,), (Budget("x", 20),)
    ),
}


def ask(way: str, program: Program, gap: float = 0, seconds: float = 30.0, **options: object) -> Answer:
    request = Request(program.statement().model(), Clock(seconds), gap=gap, seed=1, **options)
    if way not in WAYS:
        return ENGINES[way](request)
    with constants_of(way) as engine:
        return ENGINES[engine](request)


def assert_conforms(spec: Spec, answer: Answer) -> None:
    """The contract, against brute force; values and bounds of an engine are of the maximised form."""
    truth = best(spec)
    assert answer.finished, "small programs are finished by every engine there is"
    if truth is None:
        assert answer.infeasible and answer.choice is None
        return
    optimum = rank(spec, truth)[0]
    assert not answer.infeasible
    choice = {name: levels[k] for (name, levels), k in zip(spec.levels.items(), answer.choice, strict=True)}
    assert feasible(spec, choice)
    assert answer.value == rank(spec, objectives(spec, choice))[0] == optimum == answer.bound


@pytest.mark.parametrize("way", HOW)
@pytest.mark.parametrize("case", TABLE)
def test_every_engine_keeps_the_contract(way, case):
    assert_conforms(TABLE[case], ask(way, build(TABLE[case])))


@pytest.mark.parametrize("way", HOW)
@examples(20)
@given(st.data())
def test_a_hint_changes_nothing_but_the_path(way, data):
    spec = data.draw(specs(stages=1))
    hint = tuple(data.draw(st.integers(0, len(levels) - 1)) for levels in spec.levels.values())
    assert_conforms(spec, ask(way, build(spec), hint=hint))


@pytest.mark.parametrize("way", HOW)
def test_every_engine_answers_the_same_twice(way):
    program = build(TABLE["all ties"])
    first, second = ask(way, program), ask(way, program)
    assert (first.choice, first.value, first.bound) == (second.choice, second.value, second.bound)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_stops_in_time_and_is_not_wrong_by_then(engine):
    program = instances.resnet18(step=8)
    watch = Stopwatch()
    answer = ask(engine, program, seconds=1.5)
    assert watch.seconds <= 3.0
    assert not answer.infeasible
    if answer.choice is not None:
        model = program.statement().model()
        assert model.feasible(answer.choice) and answer.value == model.objective.at(answer.choice)
        assert answer.bound is None or answer.bound >= answer.value


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(ProgramError, match="abacus"):
        build(TABLE["no budget"]).solve(engine="abacus")
