"""Every engine behind the program answers alike: one suite, run for each of them, against brute force."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_program import Budget, Spec, Term, assert_optimal, best, build
from strategies_program import NUMBERS, SHAPES, Stopwatch, examples, nearby, specs, vectors

from solvemut.errors import InfeasibleError
from solvemut.program import Program
from solvemut.solver import elimination, engines
from solvemut.solver.certificate import Request
from solvemut.solver.clock import Clock
from solvemut.solver.compact import compact
from solvemut.solver.elimination import sweep, upper_envelope
from solvemut.solver.engines import additive, auto, enumeration, highs
from solvemut.solver.engines.price.aggregate import extend
from solvemut.solver.engines.price.dominance import dominated
from solvemut.solver.order import order_of
from solvemut.solver.view import view

ENGINES = [name for name in engines.ENGINES if name != "enumeration"]


@pytest.fixture(autouse=True, scope="module")
def _no_shortcut():
    """Small programs would be enumerated: keep every engine to its own means."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enumeration, "MOST", 1)
        yield


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "additive"])  # that one has tests of its own
@pytest.mark.parametrize("shape", sorted(SHAPES))
@given(data=st.data())
@examples(7, nightly=90)
def test_engine_agrees_with_brute_force(engine, shape, data):
    spec = data.draw(specs(shape))
    truth = best(spec)
    if truth is None:
        with pytest.raises(InfeasibleError):
            build(spec).solve(engine=engine)
    else:
        assert_optimal(spec, build(spec).solve(engine=engine), truth)


@st.composite
def knapsacks(draw: st.DrawFn) -> Spec:
    """No table over a pair: some classes, one to three resources, limits near what some choice costs."""
    numbers = st.sampled_from(sorted(NUMBERS)).map(NUMBERS.__getitem__)
    sizes = draw(st.lists(st.integers(1, 5), min_size=3, max_size=5))
    levels = {f"w{i}": tuple(range(size)) for i, size in enumerate(sizes)}
    of_value, of_cost = draw(numbers), draw(numbers)
    values = [Term("vector", draw(vectors(of_value, len(at))), (name,), None, 0) for name, at in levels.items()]
    resources = [f"r{i}" for i in range(draw(st.integers(1, 3)))]
    costs = [
        Term("vector", draw(vectors(of_cost, len(at))), (name,), None, resource)
        for resource in resources
        for name, at in levels.items()
    ]
    spec = Spec(levels, (), tuple(values), tuple(costs), senses=(draw(st.sampled_from(["max", "min"])),))
    some = {name: draw(st.sampled_from(at)) for name, at in levels.items()}
    budgets = []
    for resource in resources:
        limit = nearby(spec, some, resource, draw(st.sampled_from([0, 0, 1, -1])))
        sides = {"upper": (limit, None), "lower": (None, limit), "equal": (limit, limit)}
        budgets.append(Budget(resource, *sides[draw(st.sampled_from(["upper", "upper", "lower", "equal"]))]))
    return Spec(levels, (), spec.values, spec.costs, tuple(budgets), senses=spec.senses)


@pytest.mark.parametrize("kept", [additive.KEPT, ((2, 3), (4, 5))], ids=["roomy", "starved"])
@given(spec=knapsacks())
@examples(40, nightly=50)
def test_knapsacks_agree_with_brute_force(kept, spec):
    truth = best(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(additive, "KEPT", kept)
        if truth is None:
            with pytest.raises(InfeasibleError):
                build(spec).solve(engine="additive")
        else:
            assert_optimal(spec, build(spec).solve(engine="additive"), truth)


def knapsack(classes: int, seed: int) -> Program:
    rng = np.random.default_rng(seed)
    p = Program()
    for i in range(classes):
        width = p.width(f"w{i}", levels=range(6))
        kept = np.sort(rng.uniform(0.1, 1.0, 6))
        p.value(rng.lognormal() * np.sqrt(kept), width)
        for resource in ("x", "y"):
            p.cost(resource, (rng.integers(100, 900) * kept * rng.normal(1, 0.05, 6)).astype(int), width)
    for resource in ("x", "y"):
        p.budget(resource, 270 * classes)
    return p


@pytest.mark.parametrize("seed", range(3))
def test_a_large_knapsack_is_proven_without_help_and_other_engines_agree(seed):
    program = knapsack(24, seed)
    answer = program.solve()
    assert answer.solver == "additive" and answer.status == "optimal"
    answer.check()
    for engine in ("cp-sat", "highs"):
        other = program.solve(engine=engine, time_limit=60)
        assert (other.status, other.objective, other.solver[: len(engine)]) == ("optimal", answer.objective, engine)


# -- HiGHS -------------------------------------------------------------------------------------------------------------


def infeasible_request(seconds: float = 20.0) -> Request:
    p = network(5, 5, 0)
    p.budget("flops", p.solve().costs["flops"] // 20)
    return Request(p.statement().model(), Clock(seconds), feasibility=True)


def test_highs_alone_proves_optima_and_infeasibility():
    program = network(5, 6, 3)
    answer = highs.alone(Request(program.statement().model(), Clock(30)))
    assert answer.finished and answer.value == answer.bound == program.solve(engine="cp-sat").objective
    nothing = highs.alone(infeasible_request())
    assert nothing.finished and nothing.infeasible and nothing.choice is None


@pytest.mark.parametrize("provers", [["price"], ["cp-sat"], ["price", "cp-sat"], ["highs"]], ids=" + ".join)
def test_a_second_opinion_is_another_engines(provers, monkeypatch):
    asked = []
    for name, module, attribute in (("cp-sat", auto.cpsat, "solve"), ("highs", highs, "alone")):
        solver = getattr(module, attribute)
        monkeypatch.setattr(module, attribute, lambda r, n=name, s=solver: asked.append(n) or s(r))
    assert auto.second_opinion(infeasible_request(), provers)
    assert asked == (["highs"] if "cp-sat" in provers else ["cp-sat"])
    feasible = Request(network(4, 4, 1).statement().model(), Clock(20))
    assert not auto.second_opinion(feasible, provers)


def test_highs_gives_up_alone_on_tables_too_large_and_the_engine_goes_on(monkeypatch):
    monkeypatch.setattr(highs, "TOTAL_CELLS", 10)
    program = network(4, 4, 0)
    request = Request(program.statement().model(), Clock(30))
    assert not highs.alone(request).finished
    assert highs.solve(request).value == program.solve(engine="cp-sat").objective


def test_highs_overstepping_its_limits_is_corrected():
    """Units of 1e-3 beside 1e9 are below what HiGHS can see of a limit."""
    p = Program()
    a, b = p.width("a", levels=[0, 1, 2]), p.width("b", levels=[0, 1, 2])
    p.value([0, 5, 6], a)
    p.value([0, 1, 2], b)
    p.cost("x", [0, 10**12, 10**12 + 2], a)
    p.cost("x", [0, 1, 2], b)
    p.budget("x", 10**12 + 1)
    solution = p.solve(engine="highs")
    assert (solution.status, solution.objective, solution[a], solution[b]) == ("optimal", 6, 1, 1)


def test_a_failing_highs_leaves_the_answer_to_another_engine(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("'StatusNotOk' object has no attribute 'canonical_code'")

    monkeypatch.setattr(highs.mathopt, "solve", broken)
    program = network(4, 4, 2)
    solution = program.solve(engine="highs")
    assert solution.solver == "highs + cp-sat"
    assert solution.objective == program.solve(engine="cp-sat").objective


def test_a_highs_that_never_comes_back_is_left_behind(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(highs.mathopt, "solve", lambda *_, **__: release.wait(20))
    watch = Stopwatch()
    answer = highs.alone(Request(network(4, 4, 2).statement().model(), Clock(0.3)))
    release.set()
    assert not answer.finished and watch.seconds < 2


def test_debug_lines_are_kept_from_the_user_and_others_pass(capfd):
    with highs.kept_quiet():
        os.write(1, b"HighsMipSolverData::something\nprogress\n")
        print("of the user's own")
    print("after")
    assert sorted(capfd.readouterr().out.splitlines()) == ["after", "of the user's own", "progress"]


# -- the parts ---------------------------------------------------------------------------------------------------------


def network(layers: int, levels: int, seed: int, dense: bool = False) -> Program:
    """Concave values, product costs: a chain with a shortcut, or a block where every layer reads all before it."""
    rng = np.random.default_rng(seed)
    p = Program()
    widths = [p.width(f"w{i}", levels=range(1, levels + 1)) for i in range(layers)]
    for width in widths:
        p.value(np.cumsum(np.sort(rng.integers(1, 100, levels))[::-1]), width)
    pairs = [(i, j) for j in range(layers) for i in range(j)] if dense else [(i, i + 1) for i in range(layers - 1)]
    pairs = pairs if dense else [*pairs, (0, layers - 1)]
    for i, j in pairs:
        p.product("flops", 3 if dense else int(rng.integers(1, 9)), widths[i], widths[j])
    p.budget("flops", int(0.4 * sum(3 if dense else 4 for _ in pairs) * levels**2))
    return p


@pytest.mark.parametrize("seed", range(5))
def test_max_marginals_are_the_best_total_with_each_level_forced(seed):
    model = compact(network(4, 4, seed).statement().model()).model
    seen = view(model)
    found = sweep(order_of(seen), seen.weights(np.array([0.7])))
    codes = np.indices(seen.sizes).reshape(4, -1).T
    totals = seen.totals(codes) @ seen.weights(np.array([0.7]))
    assert found.maximum == pytest.approx(totals.max(), abs=1e-12)
    assert totals[np.ravel_multi_index(tuple(found.maximiser()), seen.sizes)] == pytest.approx(totals.max(), abs=1e-12)
    for v, marginal in enumerate(found.max_marginals()):
        assert marginal == pytest.approx([totals[codes[:, v] == k].max() for k in range(4)], abs=1e-12)


def test_split_buckets_still_bound_from_above(monkeypatch):
    model = compact(network(6, 4, 0, dense=True).statement().model()).model
    seen = view(model)
    exact = order_of(seen)
    monkeypatch.setattr("solvemut.solver.order.CELLS", 80)
    split = order_of(seen)
    assert exact.exact and not split.exact
    weights = seen.weights(np.array([0.5]))
    whole, parts = sweep(exact, weights), sweep(split, weights)
    assert parts.maximum >= whole.maximum - 1e-12
    for bound, truth in zip(parts.max_marginals(), whole.max_marginals(), strict=True):
        assert (bound >= truth - 1e-12).all()


@pytest.mark.parametrize("sums", [False, True], ids=["products", "sums"])
def test_copies_that_agree_bound_lower_and_from_above(monkeypatch, sums):
    """Copies of a variable are tables, or tied to others; no level comes to more than its bound."""
    model = compact(network(6, 4, 0, dense=True).statement().model()).model
    if sums:
        extended = extend(model, lambda m: 0)
        assert extended is not None
        model = compact(extended.model).model
    seen = view(model)
    weights = seen.weights(np.full(len(seen.coordinates), 0.5))
    whole = sweep(order_of(seen), weights)
    monkeypatch.setattr("solvemut.solver.order.CELLS", 50)
    monkeypatch.setattr("solvemut.solver.order.STREAMED", 0)
    split = order_of(seen)
    copies = [split.buckets[b] for _, made in split.steps if len(made) > 1 for b in made]
    assert split.splits > 4 and any(b.ties for b in copies) == sums and not all(b.ties for b in copies)
    agreed = sweep(split, weights)
    monkeypatch.setattr(elimination, "_match", lambda found, made: None)
    alone = sweep(split, weights)
    assert whole.maximum - 1e-12 <= agreed.maximum < alone.maximum
    for bound, truth in zip(agreed.max_marginals(), whole.max_marginals(), strict=True):
        assert (bound >= truth - 1e-12).all()


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-50, 50)), min_size=1, max_size=9))
def test_the_envelope_is_the_highest_line(lines):
    slopes, heights = np.array(lines, dtype=float).T
    at = np.linspace(-20, 20, 41)
    assert upper_envelope(slopes, heights, at) == pytest.approx((heights + np.multiply.outer(at, slopes)).max(axis=1))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_dominated_row_has_a_better_one_that_stays(margin, rows):
    group, value, slack = np.array(rows).T
    bad = dominated(group, value.astype(float), slack[:, None].astype(float), np.array([margin, margin]))
    for i, row in enumerate(rows):
        better = [
            j
            for j, other in enumerate(rows)
            if j != i and other[0] == row[0] and other[1] >= row[1] + margin and other[2] >= row[2] + margin
        ]
        if bad[i]:
            assert any(not bad[j] for j in better)
        elif not margin:
            assert all(rows[j] == row for j in better)  # of equal rows one stays
        else:
            assert not better


def test_running_sums_change_no_value_and_no_cost():
    p = network(7, 4, 1, dense=True)
    model = compact(p.statement().model()).model
    found = extend(model, lambda m: 0)
    assert found is not None and len(found.model.domains) > len(model.domains)
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = tuple(int(k) for k in rng.integers(0, 4, 7))
        extended = found.encode(choice)
        assert found.decode(extended) == choice
        assert found.model.objective.at(extended) == model.objective.at(choice)
        assert found.model.rows[0].at(extended) == model.rows[0].at(choice)
        assert all(row.holds(extended) for row in found.model.rows[1:])


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_engines_agree_on_programs_beyond_brute_force(dense, seed):
    program = network(6, 5 if dense else 7, seed, dense)
    answers = [program.solve(engine=engine, time_limit=60) for engine in ENGINES if engine != "additive"]
    assert all(answer.status == "optimal" for answer in answers)
    assert len({answer.objective for answer in answers}) == 1
    for answer in answers:
        answer.check()


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_beyond_64_bits_are_exact(engine):
    p = Program()
    widths = [p.width(f"w{i}", levels=[0, 1, 2]) for i in range(4)]
    for i, width in enumerate(widths):
        p.value([0, 10**40 + i, 2 * 10**40 + i], width)
        p.cost("x", [0, 10**50 + 1, 2 * 10**50 + 1], width)
    p.budget("x", 6 * 10**50 + 3)
    solution = p.solve(engine=engine)
    assert solution.objective == 6 * 10**40 + 6 and solution.gap == 0
    assert [solution[w] for w in widths] == [0, 2, 2, 2]
