"""Scenarios of layers and edges that come and go; see test_scenarios for what `why` says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scenarios import N, Net, Scenario, Step, play, up

import solvemut as sm


def remove(name: str, reconnect: Any = "all", **options: Any) -> Any:
    return lambda mut: mut.remove(name, reconnect, **options)


def connect(source: str, target: str, position: int | None = None, **options: Any) -> Any:
    return lambda mut: mut.connect(source, target, position, **options)


def disconnect(source: str, target: str, nr: int = 0, **options: Any) -> Any:
    return lambda mut: mut.disconnect(source, target, nr, **options)


def residual() -> Net:
    """A10 -> B3 -> id -> D10; D + A -> L4."""
    net = Net(x=3).dense("A", "x", 10).dense("B", "A", 3).same("id", "B").dense("D", "id", 10)
    return net.add("add", "D", "A").dense("L", "add", 4, 10)


def narrow() -> Net:
    """A2 -> id -> C4 -> D3."""
    return Net(x=3).dense("A", "x", 2).same("id", "A").dense("C", "id", 4).dense("D", "C", 3)


def thrice() -> Net:
    """cat(id, id, id of A5) = 15 -> L16 -> M4."""
    net = Net(x=3).dense("A", "x", 5).same("a", "A").same("b", "A").same("c", "A").cat("cat", "a", "b", "c")
    return net.dense("L", "cat", 16).dense("M", "L", 4)


def in_steps(graph: Any) -> list[Any]:
    """A by 2, from 10; what C reads by 3, from 5."""
    return [graph["A"].out % 2 == 0, graph["C"].ins[0] % 3 == 5 % 3]


def fixed() -> Net:
    """A5, and what reads it takes 5, whatever comes."""
    return Net(x=3).dense("A", "x", 5).apply("five", torch.reshape, "A", (-1, 5)).dense("F", "five", 4, 5)


def several() -> Net:
    """A4 -> B5 -> E8, C6 and D7."""
    net = Net(x=3).dense("A", "x", 4).dense("B", "A", 5).dense("C", "A", 6).dense("D", "A", 7)
    return net.dense("E", "B", 8)


def three() -> Net:
    """cat(A4, B5, C6) -> L7."""
    net = Net(x=3).dense("A", "x", 4).dense("B", "x", 5).dense("C", "x", 6).cat("cat", "A", "B", "C")
    return net.dense("L", "cat", 7)


def dangling() -> Net:
    """A5 -> C6 and D2, joined."""
    net = Net(x=3).dense("A", "x", 5).dense("C", "A", 6).dense("D", "A", 2)
    return net.cat("cat", "C", "D").dense("L", "cat", 2)


def total(a: int | None, b: int, c: int) -> Net:
    """A + B -> L, with C aside; A is the input if it has no size."""
    net = Net(x=3)
    if a is not None:
        net.dense("A", "x", a)
    net.dense("B", "x", b).dense("C", "x", c).add("add", "x" if a is None else "A", "B")
    return net.dense("L", "add", 2, b).dense("aside", "C", 1)


def twice() -> Net:
    """cat(A5, B4, A5) -> L."""
    return Net(x=3).dense("A", "x", 5).dense("B", "x", 4).cat("cat", "A", "B", "A").dense("L", "cat", 2)


def branches(*sizes: int) -> Net:
    """cat(A, B, ...) -> L."""
    net, names = Net(x=3), "ABC"[: len(sizes)]
    for name, size in zip(names, sizes, strict=True):
        net.dense(name, "x", size)
    return net.cat("cat", *names).dense("L", "cat", 2)


def impossible(graph: Any) -> Any:
    return graph["B"].out == 9


def powers(v: Any) -> np.ndarray:
    return 2.0 ** np.arange(v.nout)


STRUCTURE: dict[str, Scenario] = {
    "28 a residual branch goes layer by layer": Scenario(
        residual,
        ["L"],
        [
            Step(remove("D"), {"A": 10, "B": 10, "id": 10}, feeds={"add": ["id", "A"]}),
            Step(remove("id"), {"A": 10, "B": 10}, feeds={"add": ["B", "A"]}),
            Step(remove("B"), {"A": 10, "add": 10}, feeds={"add": ["A", "A"]}, nin={"add": [10, 10]}),
        ],
        "F",
    ),
    "29 the smaller side grows": Scenario(
        narrow,
        ["D"],
        [
            Step(
                remove("C"),
                {"A": 4, "id": 4, "D": 3},
                kept={("A.weight", 0): [0, 1, N, N], ("D.weight", 1): [0, 1, 2, 3]},
            )
        ],
        "F",
    ),
    "29 without new units the larger side shrinks to its best": Scenario(
        narrow,
        ["D"],
        [
            Step(
                remove("C", grow=0, values={"C": up(4)}),
                {"A": 2},
                kept={("A.weight", 0): [0, 1], ("D.weight", 1): [2, 3]},
            )
        ],
        "F",
    ),
    "30a three times one size cannot become 16": Scenario(
        thrice, ["M"], [Step(remove("L"), {"A": 5, "cat": 15}, nin={"M": [15]})], "F: one side keeps its size, here 15"
    ),
    "30b neither side can keep its size": Scenario(
        lambda: Net(x=3).dense("A", "x", 10).dense("L", "A", 5).dense("C", "L", 4),
        ["C"],
        [
            Step(
                remove("L", constraints=in_steps),
                {"A": 14},
                nin={"C": [14]},
                kept={
                    ("A.weight", 0): [*range(10), N, N, N, N],
                    ("C.weight", 1): [*range(5), *[N] * 9],
                },
            )
        ],
        "V: both fit at 8 as well, but units that go are worth more than new ones cost",
    ),
    "30c what is fixed stays": Scenario(
        fixed, ["F"], [Step(remove("A"), refused="the nearest feasible values of port_0.out are 5")], "F: in3 is no 5"
    ),
    "30d one of several consumers, grown": Scenario(
        several,
        ["E", "C", "D"],
        [Step(remove("B"), {"A": 5}, feeds={"E": ["A"], "C": ["A"], "D": ["A"]}, nin={"E": [5], "C": [5], "D": [5]})],
        "F",
    ),
    "30d one of several consumers, not grown": Scenario(
        several, ["E", "C", "D"], [Step(remove("B", grow=0), {"A": 4}, nin={"E": [4], "C": [4], "D": [4]})], "F"
    ),
    "31 inputs of a concat take the place of what read them": Scenario(
        three,
        ["L"],
        [
            Step(remove("B"), feeds={"cat": ["A", "x", "C"]}, nin={"cat": [4, 3, 6]}),
            Step(
                remove("A", reconnect="none"),
                feeds={"cat": ["x", "C"]},
                nin={"cat": [3, 6]},
                kept={("L.weight", 1): list(range(4, 13))},
            ),
        ],
        "F; which columns stay is told by the branch that they were of",
    ),
    "31 twice in a concat": Scenario(
        lambda: Net(x=3).dense("A", "x", 3).dense("B", "x", 4).cat("cat", "A", "B", "B", "A").dense("L", "cat", 2),
        ["L"],
        [Step(remove("A"), feeds={"cat": ["x", "B", "B", "x"]}, nin={"cat": [3, 4, 4, 3]})],
        "F",
    ),
    "C2 what dangles is not resized": Scenario(
        dangling,
        ["L"],
        [
            Step(
                remove("C", reconnect="none"),
                {"A": 5},
                feeds={"cat": ["D"]},
                kept={("L.weight", 1): [6, 7]},
                nin={"D": [5]},
            )
        ],
        "F; elsewhere A becomes 6",
    ),
    "33 a term that grows": Scenario(
        lambda: (
            Net(x=3)
            .dense("A", "x", 5)
            .dense("B", "x", 4)
            .same("id", "A")
            .add("add", "id", "A")
            .dense("L", "add", 2, 5)
            .dense("aside", "B", 1)
        ),
        ["L", "aside"],
        [
            Step(connect("B", "add"), {"A": 5, "B": 5}, nin={"L": [5]}, feeds={"add_0": ["add", "B"]}),
            Step(disconnect("A", "add"), {"A": 5, "B": 5}, nin={"L": [5]}, feeds={"add": ["id", "B"]}),
        ],
        "F",
    ),
    "33 an input gives its size to the sum": Scenario(
        lambda: total(5, 5, 2),
        ["L", "aside"],
        [Step(connect("x", "add"), {"A": 3, "B": 3}, nin={"L": [3]})],
        "F",
    ),
    "33 a term that shrinks": Scenario(
        lambda: total(4, 4, 5),
        ["L", "aside"],
        [Step(connect("C", "add", grow=0, values=up), {"A": 4, "B": 4}, kept={("C.weight", 0): [1, 2, 3, 4]})],
        "F",
    ),
    "33 a term that must shrink": Scenario(
        lambda: total(None, 3, 5),
        ["L", "aside"],
        [Step(connect("C", "add", values=powers), {"B": 3}, kept={("C.weight", 0): [2, 3, 4]})],
        "F: the sum has an input among its terms",
    ),
    "33 a third term": Scenario(
        lambda: total(5, 5, 3),
        ["L", "aside"],
        [
            Step(
                connect("C", "add"),
                {"A": 5, "B": 5, "C": 5},
                feeds={"add": ["A", "B"], "add_0": ["add", "C"]},
                kept={("C.weight", 0): [0, 1, 2, N, N]},
            )
        ],
        "F; a sum of three is two sums, and the order of its terms makes no difference",
    ),
    "35 the first of two": Scenario(
        twice,
        ["L"],
        [
            Step(disconnect("A", "cat", nr=0, constraints=impossible), refused="B.out == 9"),
            Step(disconnect("A", "cat", nr=0), feeds={"cat": ["B", "A"]}, kept={("L.weight", 1): list(range(5, 14))}),
        ],
        "F; what fails leaves the order as it was",
    ),
    "35 the second of two": Scenario(
        twice,
        ["L"],
        [
            Step(disconnect("A", "cat", nr=1, constraints=impossible), refused="B.out == 9"),
            Step(disconnect("A", "cat", nr=1), feeds={"cat": ["A", "B"]}, kept={("L.weight", 1): list(range(9))}),
        ],
        "F",
    ),
    "35 the middle one of three": Scenario(
        lambda: branches(3, 4, 5),
        ["L"],
        [
            Step(
                disconnect("B", "cat"),
                {"A": 3, "C": 5},
                kept={("L.weight", 1): [0, 1, 2, *range(7, 12)]},
                nin={"cat": [3, 5]},
            )
        ],
        "F; elsewhere the first 8 columns stay, whosever they are",
    ),
    "35 one goes and the rest grows": Scenario(
        lambda: branches(5, 4),
        ["L"],
        [
            Step(disconnect("B", "cat"), {"A": 5}, nin={"L": [5]}),
            Step(lambda mut: mut.resize({"cat": +2}), {"A": 7}, nin={"L": [7]}, same=True),
        ],
        "F; two requests, one after the other",
    ),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(name):
    play(STRUCTURE[name])


@pytest.mark.parametrize(
    ("constraints", "told"), [([], "function"), (lambda g: g.params <= 9, "params"), (lambda g: 3, "constraints=3")]
)
def test_what_constraints_may_be(constraints, told):
    mut = narrow().mutator("D")
    with pytest.raises(sm.errors.RequestError, match=told):
        mut.remove("C", constraints=constraints)
