"""Requests that nobody means, of many kinds: each gives a plan that keeps its budgets, or an error that helps.

Nothing but SolvemutError may come out, and a model whose request failed is as it was, bit by bit.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from oracles import count_flops, count_params, randomise, tensors
from strategies_program import NIGHTLY
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError, SolvemutError, ValuesError
from solvemut.program import Program, ProgramError

COMBINATIONS = 50_000 if NIGHTLY else 2000
VERTICES = ("0", "1", "3")


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.Flatten(), nn.Linear(144, 3)]
    return randomise(nn.Sequential(*layers).double().eval())  # type: ignore[return-value]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD: list[Any] = [
    None,
    0,
    1,
    2,
    3,
    -1,
    0.5,
    0.75,
    -0.5,
    True,
    False,
    float("nan"),
    float("inf"),
    -float("inf"),
    10**400,
    10**5000,
    -(10**400),
    1e308,
    -1e308,
    1e-308,
    5e-324,
    "",
    "0.5",
    "raise",
    "0",
    "zero",
    b"1",
    [],
    [0.5],
    ["0"],
    [5],
    (),
    (1,),
    {},
    {"0": 1},
    {1},
    np.float32(0.5),
    np.float16(0.7),
    np.longdouble("0.5"),
    np.longdouble("1e400"),
    np.int64(4),
    np.uint8(2),
    np.bool_(True),
    np.array(0.5),
    np.array([0.5]),
    np.array("a"),
    np.datetime64("2020-01-01"),
    torch.tensor(0.5),
    torch.tensor(4),
    torch.tensor([4]),
    torch.tensor(True),
    torch.tensor(0.5, dtype=torch.bfloat16),
    torch.tensor(float("nan")),
    torch.tensor(1j),
    torch.empty((), device="meta"),
    torch.nn.Parameter(torch.tensor(0.5)),
    Fraction(1, 3),
    Fraction(1, 10**2000),
    Decimal("0.5"),
    Decimal("NaN"),
    Decimal("Infinity"),
    1j,
    object(),
    Unprintable(),
    print,
    nn.Linear,
    sm,
    range(3),
    ...,
    NotImplemented,
    slice(3),
    iter([1]),
    sm.values.random(0),
]
GOOD: dict[str, list[Any]] = {
    "flops": [0.5, 0.9, 1.0, 10**6],
    "params": [0.5, 0.9, 300, 10**6],
    "round_to": [1, 2, 4, 8],
    "keep": ["0", "[03]"],
    "constraints": [],
    "values": [],
    "dry_run": [True, False],
    "time_limit": [10, 10.0],
    "gap": [0, 1e-3, 0.5],
    "seed": [0, 1, 2**40],
    "progress": [False],
    "verify": [None, "shapes"],
    "on_interrupt": ["raise", "return"],
    "on_infeasible": ["raise", "relax"],
    "order": [(), "params", ["params", "flops"]],
    "memory": [None],
    "latency": [None],
}


def values_pool() -> list[Any]:
    metrics = [sm.values.magnitude, sm.values.bn_scale, sm.values.taylor, sm.values.random, sm.values.constant]
    made: list[Any] = [sm.values.magnitude(p=1, normalize=n) for n in ("mean", "max", "sum", "l2", None)]
    by_vertex = [{v: odd} for odd in ODD for v in VERTICES[:2]]
    arrays: list[Any] = [
        np.full(12, 1e308),
        np.full(12, 1e-308),
        np.r_[1e308, np.full(11, 5e-324)],
        -np.full(12, 1e308),
        np.ones(13),
        np.ones((12, 1)),
        np.ones(12, dtype=complex),
        np.ones(12, dtype=object),
        np.array(["a"] * 12),
        torch.ones(12),
        torch.ones(12, dtype=torch.bfloat16),
        torch.ones(12, requires_grad=True),
        torch.ones(12, device="meta"),
        [1] * 12,
        [10**400] * 12,
        [10**300] * 12,
        [[1], [2, 3]],
        [None] * 12,
        range(12),
        np.arange(12, dtype=np.uint64),
    ]
    by_vertex += [{"0": a, "3": 1e-308} for a in arrays] + [{odd: 1.0} for odd in ODD if _hashable(odd)]
    functions = [lambda v, odd=odd: odd for odd in ODD] + [lambda v, a=a: a if v.nout == 12 else 1 for a in arrays]
    functions += [lambda: 1, lambda v, w: 1, lambda v: v, lambda *v: v[0].nout]
    scores = [sm.values.Metric("mine", lambda m, g, odd=odd: odd) for odd in [*ODD, *arrays]]
    return [*metrics, *made, *by_vertex, *functions, *scores, sm.values, {"0": sm.values.random(0)}]


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def constraints_pool() -> list[Any]:
    made: list[Callable[[Any], Any]] = []
    for odd in ODD:
        made += [
            lambda g, o=odd: g["0"].out <= o,
            lambda g, o=odd: g["0"].out == o,
            lambda g, o=odd: o >= g["3"].out,
            lambda g, o=odd: [g["0"].out % o == 0],
            lambda g, o=odd: (g["0"].out % 4 == o,),
            lambda g, o=odd: g.params <= o,
            lambda g, o=odd: o >= g.flops,
            lambda g, o=odd: o * g["0"].out <= 40,
            lambda g, o=odd: g["0"].out + o >= 3,
            lambda g, o=odd: o - g["0"].out <= 3,
            lambda g, o=odd: g["0"].out < o,
            lambda g, o=odd: g["0"].out != o,
            lambda g, o=odd: g[o] if isinstance(o, slice) else g[o].out <= 5,  # a slice gives several
            lambda g, o=odd: o,
            lambda g, o=odd: [[g["0"].out <= 9], o],
            lambda g, o=odd: g.params > o,
            lambda g, o=odd: o in g and g.params <= 300,
        ]
    return [
        *made,
        lambda g: g,
        lambda g: g["0"],
        lambda g: g["0"].out,
        lambda g: g.params,
        lambda g: g["0"].out % 2,
        lambda g: iter([g["0"].out <= 9]),
        lambda g: {g["0"].out <= 9: 1},
    ]


POOLS: dict[str, list[Any]] = {key: [*ODD, *good] for key, good in GOOD.items()}
POOLS["values"] += values_pool()
POOLS["constraints"] += constraints_pool()
POOLS["keep"] += [[odd] for odd in ODD] + [["0", "0"], ("3",), {"0"}, "*", "[", "**", "0.*", "conv", "\0", iter(["0"])]


@pytest.fixture(scope="module")
def mutator() -> sm.Mutator:
    return sm.Mutator(network(), torch.ones(1, 3, 8, 8, dtype=torch.float64))


def state(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    kinds = (int, float, bool, str, tuple, type(None))
    numbers = [{k: v for k, v in vars(m).items() if isinstance(v, kinds)} for m in model.modules()]
    return {k: t.detach().clone() for k, t in tensors(model).items()}, numbers


def attempt(mutator: sm.Mutator, request: dict[str, Any]) -> bool:
    """Whether a plan came out; then its budgets hold on the model, else the model is as it was."""
    mut = mutator.copy()
    graph = mut.graph
    before, numbers = state(mut.model)
    try:
        plan = mut.prune(**{"verify": None, "time_limit": 5, **request})
    except SolvemutError as e:
        assert str(e).strip()
        after, then = state(mut.model)
        assert before.keys() == after.keys() and all(torch.equal(t, after[k]) for k, t in before.items())
        assert numbers == then
        return False
    for name, cost in plan.costs.items():
        assert cost.budget is None or cost.after <= cost.budget, name
    if mut.graph is not graph:  # applied
        assert count_params(mut.model) == plan.costs["params"].after
        assert count_flops(mut.model, (torch.ones(1, 3, 8, 8, dtype=torch.float64),)) == plan.costs["flops"].after
    str(plan)
    return True


@pytest.mark.parametrize("key", POOLS)
def test_each_odd_value_alone(mutator, key):
    outcomes = [attempt(mutator, {"dry_run": True, key: value}) for value in POOLS[key]]
    assert not all(outcomes)


def test_odd_values_together(mutator):
    draw = random.Random(0 if not NIGHTLY else None)
    good = 0
    for _ in range(COMBINATIONS):
        request = {k: draw.choice(v) for k, v in GOOD.items() if v and draw.random() < 0.3}
        for key in draw.sample(list(POOLS), draw.randint(1, 2)):
            request[key] = draw.choice(POOLS[key])
        try:
            good += attempt(mutator, request)
        except BaseException:
            print({k: type(v) if isinstance(v, Unprintable) else str(v)[:80] for k, v in request.items()})
            raise
    assert good > COMBINATIONS / 50


@pytest.mark.parametrize("k", range(len(ODD)))
def test_odd_arguments_of_capture_mutator_and_problem(mutator, k):
    odd, x = ODD[k], torch.ones(1, 3, 8, 8, dtype=torch.float64)
    model, graph = mutator.model, mutator.graph
    before, numbers = state(model)
    asks: list[Callable[[], Any]] = [
        lambda: sm.capture(odd, x),
        lambda: sm.Problem(odd),
        lambda: sm.prune(odd, x),
        lambda: graph[odd],
        lambda: sm.Problem(graph).keep(odd),
        lambda: sm.Problem(graph).add(odd),
        lambda: sm.Problem(graph).round_to(odd),
        lambda: graph.params <= odd,
        lambda: graph["0"].out >= odd,
        lambda: sm.values.magnitude(p=odd),
        lambda: sm.values.magnitude(normalize=odd),
        lambda: sm.values.random(odd),
        lambda: sm.values.constant(odd),
        lambda: sm.values.taylor(odd, odd),
        lambda: sm.values.activation([1], odd),
        lambda: sm.values.bn_scale(odd),
        lambda: mutator.copy().apply(odd),
    ]
    if NIGHTLY or k % 4 == 0:
        asks += [
            lambda: sm.capture(model, odd),
            lambda: sm.capture(model, (x, odd)),
            lambda: sm.capture(model, x, odd),
            lambda: sm.capture(model, x, {"input": odd}),
            lambda: sm.capture(model, x, strict=odd),
            lambda: sm.Mutator(model, x, optimizer=odd),
            lambda: sm.Mutator(model, x, followers=odd),
        ]
    for number, ask in enumerate(asks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ask()
            except SolvemutError:
                continue
            except Exception as e:
                raise AssertionError(f"{number}: {type(e).__name__}: {e}") from e
    after, then = state(model)
    assert all(torch.equal(t, after[n]) for n, t in before.items()) and numbers == then


# -- what each message says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"params": float("nan")}, r"params=nan.*fraction in \(0, 1\]"),
        ({"params": -1}, r"params=-1.*fraction"),
        ({"flops": "0.5"}, r"flops='0.5'.*fraction"),
        ({"params": torch.tensor([0.5])}, r"params=tensor\(\[0.5"),
        ({"params": 10**5000}, r"params.*1000 digits"),
        ({"time_limit": 0}, r"time_limit.*seconds above 0, or None"),
        ({"time_limit": "5"}, r"time_limit.*seconds above 0, or None.*'5'"),
        ({"time_limit": float("nan")}, r"time_limit.*nan"),
        ({"gap": -1}, r"gap.*at least 0.*-1"),
        ({"gap": None}, r"gap.*give a relative gap.*None"),
        ({"seed": None}, r"seed.*give an int, not None"),
        ({"seed": 0.5}, r"seed.*give an int, not 0.5"),
        ({"keep": 5}, r"keep=5.*names or globs"),
        ({"keep": [5]}, r"keep=\[5\].*names or globs.*5 is none"),
        ({"constraints": 5}, r"constraints=5.*list of requests"),
        ({"constraints": "a <= 3"}, r"constraints='a <= 3'.*list of requests"),
        ({"round_to": 2.5}, r"round_to=2.5.*int of at least 1"),
        ({"round_to": torch.tensor([4])}, r"round_to=tensor\(\[4\]\)"),
        ({"dry_run": "yes"}, r"dry_run.*True or False.*'yes'"),
        ({"progress": 1}, r"progress.*True or False"),
        ({"verify": "all"}, r"verify='all'.*'program'"),
        ({"on_interrupt": "stop"}, r"on_interrupt='stop'.*'raise', 'return'"),
        ({"values": sm.values.magnitude}, r"values=solvemut.values.magnitude.*not called.*magnitude\(\.\.\.\)"),
        ({"values": lambda: 1}, r"values=.*called with one vertex"),
        ({"values": {"0": 1j}}, r"values of 0 are no numbers: 1j"),
        ({"values": {"0": np.full(12, 1e308)}}, r"unit of 0.*divide"),
        ({"values": {"0": 1e308, "1": 1e308}}, r"unit of 0.*inf"),
        ({"values": {5: 1.0}}, r"graph\[5\]"),
        ({"values": sm.values.Metric("mine", lambda m, g: np.ones(3))}, r"values of mine have shape \(3,\)"),
    ],
)
def test_the_message_names_the_argument_and_what_to_give(mutator, request_, says):
    with pytest.raises((RequestError, ValuesError), match=f"(?s){says}"):
        mutator.copy().prune(**{"params": 0.9, **request_})


HALVES = [
    np.float32(0.5),
    np.float16(0.5),
    np.array(0.5),
    np.longdouble("0.5"),
    torch.tensor(0.5),
    Fraction(1, 2),
    Decimal("0.5"),
    torch.tensor(0.5, dtype=torch.bfloat16),
    nn.Parameter(torch.tensor(0.5)),
]
FOURS = [np.int8(4), np.uint64(4), np.array(4), torch.tensor(4), 4.0, np.float32(4), torch.tensor(4.0), Fraction(4)]


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_scalars_of_any_library_are_budgets(mutator, half):
    plan = mutator.prune(params=half, gap=half, time_limit=half * 20, dry_run=True)
    assert plan.costs["params"].after <= mutator.graph.params.now // 2
    problem = sm.Problem(mutator.graph)
    problem.add(mutator.graph.params <= half * 800)
    assert problem.solve().costs["params"].after <= 400


@pytest.mark.parametrize("four", FOURS, ids=str)
def test_scalars_of_any_library_are_sizes(mutator, four):
    wanted = mutator.prune(params=0.7, round_to=4, seed=4, dry_run=True).sizes
    assert mutator.prune(params=0.7, round_to=four, seed=four, dry_run=True).sizes == wanted
    for ask in (
        lambda g: g["0"].out == four,
        lambda g: four == g["0"].out,
        lambda g: [four >= g["0"].out, g["0"].out >= 4],
        lambda g: [g["0"].out % four == 0, g["0"].out < 8],
        lambda g: four * g["0"].out == 16,
        lambda g: g["0"].out * four == 16,
        lambda g: g["0"].out - four == 0,
        lambda g: four - g["0"].out == 0,
        lambda g: four + g["0"].out == 8,
    ):
        assert mutator.prune(constraints=ask, dry_run=True).sizes["0"] == (12, 4)


@pytest.mark.parametrize("one", [np.float32(1), torch.tensor(1), torch.ones(12), np.ones(12, np.float16), [1] * 12])
def test_values_of_any_library(mutator, one):
    wanted = mutator.prune(params=0.7, values={"0": 1.0}, dry_run=True).sizes
    assert mutator.prune(params=0.7, values={"0": one}, dry_run=True).sizes == wanted
    assert mutator.prune(params=0.7, values=lambda v: 1 if v.name != "0" else one, dry_run=True).sizes == wanted


def test_none_is_nothing_asked(mutator):
    wanted = mutator.prune(params=0.7, dry_run=True)
    found = mutator.prune(params=0.7, keep=None, constraints=None, time_limit=None, round_to=None, dry_run=True)
    assert found.sizes == wanted.sizes and found.status == "optimal"
    found = mutator.prune(params=0.7, time_limit=float("inf"), keep=(), constraints=(), flops=10**400, dry_run=True)
    assert found.sizes == wanted.sizes and found.costs["flops"].budget == 10**400
    sm.Plan.from_json(found.to_json())


def test_no_time_limit_explains_a_conflict_too(mutator):
    with pytest.raises(SolvemutError, match="no plan satisfies"):
        mutator.prune(params=2, time_limit=None)


@pytest.mark.parametrize("normalize", ["mean", "max", "sum", "l2"])
@pytest.mark.parametrize("scale", [1e307, 1e-307])
def test_normalised_metrics_neither_overflow_nor_vanish(mutator, normalize, scale):
    base = np.random.default_rng(0).random(mutator.graph.coupling.n_units) + 0.5
    found = [
        mutator.prune(values=sm.values.Metric("mine", lambda m, g, s=s: base * s, normalize), params=0.6, dry_run=True)
        for s in (1.0, scale)
    ]
    assert found[0].sizes == found[1].sizes and found[0].indices == found[1].indices
    assert found[1].objective == pytest.approx(found[0].objective, rel=1e-9)


@pytest.mark.parametrize("engine", ["auto", "price", "cp-sat", "highs", "additive", "enumeration"])
def test_programs_mix_numbers_from_one_end_of_floats_to_the_other(engine):
    p = Program()
    x = [p.width(f"w{i}", range(3)) for i in range(4)]
    for i, w in enumerate(x):
        p.value([0.0, 10.0 ** (308 - 205 * i), 1.5 * 10.0 ** (308 - 205 * i)], w)
        p.cost("c", [0.0, 1e-308, 1e308 / 4], w)
    p.budget("c", 1e308)
    solution = p.solve(engine=engine, time_limit=30)
    solution.check()
    assert solution.status == "optimal" and solution[x[0]] == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: p.solve(time_limit="5"),
        lambda p: p.solve(time_limit=0),
        lambda p: p.solve(gap=None),
        lambda p: p.solve(seed=0.5),
        lambda p: p.k_best(1.5),
        lambda p: p.k_best(2, seed=None),
        lambda p: p.frontier("x", points="3"),
        lambda p: p.solve(gap=float("nan")),
    ],
)
def test_options_of_a_program_are_checked(ask):
    p = Program()
    p.cost("x", [1, 2], p.width("w", [1, 2]))
    with pytest.raises(ProgramError):
        ask(p)
    assert p.solve(time_limit=None, seed=np.int64(2**40), gap=np.float32(0.1), engine="cp-sat").status == "optimal"
    assert p.solve(time_limit=torch.tensor(3), seed=-1, engine="highs").status == "optimal"
