"""Tables as users write them: what they are made of is found, exactly, and the answer is that of the program."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import gcd

import numpy as np
import pytest
from benchmarks_path import instances
from hypothesis import given
from hypothesis import strategies as st
from strategies_program import examples

from solvemut.program import Program, RankOne
from solvemut.solver import structure
from solvemut.solver.clock import Clock
from solvemut.solver.engines import enumeration
from solvemut.solver.engines.price import search
from solvemut.solver.exact import entry
from solvemut.solver.structure import nearly, parts_of

A, B = np.arange(3, 70), np.arange(2, 90)


def spelled(parts: structure.Parts, i: int, j: int) -> Fraction:
    """The entry that the parts make."""
    vectors = [entry(v, k) for v, k in ((parts.first, i), (parts.second, j)) if v is not None]
    return Fraction(sum(vectors) + sum(product.entry(i, j) for product in parts.products))


TABLES = {  # a table, has it a first and a second vector, how many products
    "product": (np.multiply.outer(7 * A, B), (False, False), 1),
    "product of floats": (np.multiply.outer(A * 0.5, B * 0.375), (False, False), 1),
    "product with zeros": (np.multiply.outer(A - 3, B - 20), (False, False), 1),
    "row and column": (np.add.outer(A**2, 3 * B), (True, True), 0),
    "constant rows": (np.multiply.outer(A, np.ones(88, dtype=int)), (True, False), 0),
    "constant columns": (np.multiply.outer(np.ones(67), B), (True, True), 0),
    "constant": (np.full((67, 88), 4), (True, False), 0),
    "nothing": (np.zeros((67, 88)), (False, False), 0),
    "product and vectors": (np.multiply.outer(A, B) + np.add.outer(5 * A, B**2), (True, True), 1),
    "two products": (np.multiply.outer(A, B) + np.multiply.outer(A**2, B**3), (True, True), 2),
    "three products": (sum(np.multiply.outer(A**k, B ** (4 - k)) for k in (1, 2, 3)), (True, True), 3),
    "large numbers": (np.multiply.outer(A * 10**8 + 1, B * 10**6 + 1), (False, False), 1),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_its_parts_bit_by_bit(name):
    table, vectors, products = TABLES[name]
    found = parts_of(table)
    assert found is not None
    assert (found.first is not None, found.second is not None) == vectors and len(found.products) == products
    for i, j in itertools.product((0, 1, 40, 66), (0, 3, 50, 87)):
        assert spelled(found, i, j) == Fraction(table[i, j].item())


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"nothing"}))
@pytest.mark.parametrize("at", [(0, 0), (0, 5), (66, 0), (30, 40), (66, 87)])
def test_one_entry_that_is_off_by_one_makes_another_table(name, at):
    table = TABLES[name][0].copy()
    table[at] += 1
    found = parts_of(table)
    assert found is None or all(
        spelled(found, i, j) == Fraction(table[i, j].item()) for i, j in itertools.product(range(67), range(88))
    )


def test_what_is_no_sum_of_few_parts_stays_a_table():
    rng = np.random.default_rng(0)
    assert parts_of(rng.integers(0, 9, (70, 70))) is None
    assert parts_of(np.maximum.outer(A, B)) is None
    assert parts_of(np.multiply.outer(A * 0.1, B * 0.1)) is None  # every entry is rounded: not exactly a product
    assert all(gcd(p, q) == 1 for p, q in itertools.combinations(structure.PRIMES, 2))


@pytest.mark.parametrize("table", [np.outer(A, B) * 49 / 1e6, np.outer(A * 0.1, B * 0.7), np.outer(A, B) * 0.1 + B / 3])
def test_rounded_entries_are_nearly_a_product_and_the_error_covers_them(table):
    found = nearly(table)
    assert found is not None and 0 < found.error <= 64 * np.abs(table).max() * 2.0**-52
    for i, j in itertools.product((0, 1, 40, 66), (0, 3, 50, 87)):
        exact = (
            Fraction(found.first[i]) + Fraction(found.second[j]) + Fraction(found.left[i]) * Fraction(found.right[j])
        )
        assert abs(exact - Fraction(table[i, j])) <= Fraction(found.error)
    off = table.copy()
    off[33, 44] *= 1 + 1e-12
    assert nearly(off) is None


# -- whole programs ----------------------------------------------------------------------------------------------------

FORMS = st.sampled_from(["product", "shifted", "additive", "rows", "two products", "noise"])


@st.composite
def twins(draw: st.DrawFn) -> tuple[Program, Program]:
    """One program twice: pair tables as plain arrays, and as the parts that they are made of."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=3, max_size=4))
    plain, parts = Program(), Program()
    for p in (plain, parts):
        for v, size in enumerate(sizes):
            p.width(f"w{v}", levels=range(1, size + 1))
    ints = st.integers(-3, 9)
    scale = draw(st.sampled_from([1, 0.25, 3]))
    top = 0

    def state(add: str, name: tuple[str, ...], form: str, a: str, b: str) -> int:
        f = np.array(draw(st.lists(ints, min_size=len(plain[a].levels), max_size=len(plain[a].levels))))
        g = np.array(draw(st.lists(ints, min_size=len(plain[b].levels), max_size=len(plain[b].levels))))
        pieces = {
            "product": [RankOne(scale * f, g)],
            "shifted": [RankOne(scale * f, g), scale * f, 2 * g],
            "additive": [None, scale * f, g],
            "rows": [None, scale * f, 0 * g],
            "two products": [RankOne(scale * f, g), None, None, RankOne(scale * f * f, g * g)],
            "noise": [None],
        }[form]
        table = np.zeros((len(f), len(g)))
        if form == "noise":
            table = np.array(draw(st.lists(ints, min_size=table.size, max_size=table.size))).reshape(table.shape)
            getattr(parts, add)(*name, table, a, b)
        for piece, at in zip(pieces, ((a, b), (a,), (b,), (a, b)), strict=False):
            if piece is not None:
                getattr(parts, add)(*name, piece, *at)
                whole = np.multiply.outer(piece.first, piece.second) if isinstance(piece, RankOne) else piece
                table = table + (whole[:, None] if at == (a,) else whole)
        getattr(plain, add)(*name, table, a, b)
        return int(np.abs(table).max())

    for i, j in draw(
        st.lists(st.sampled_from(list(itertools.permutations(range(len(sizes)), 2))), min_size=2, max_size=6)
    ):
        top += state("cost", ("c",), draw(FORMS), f"w{i}", f"w{j}")
    state("value", (), draw(FORMS), "w0", "w1")
    for v, size in enumerate(sizes):
        gains = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
        for p in (plain, parts):
            p.value(gains, f"w{v}")
    limit = draw(st.integers(-top // 2, top))
    for p in (plain, parts):
        p.budget("c", limit)
    return plain, parts


@given(twins())
@examples(60)
def test_plain_arrays_and_their_parts_have_one_optimum(pair):
    found = []
    for p in pair:
        statement = p.statement()
        model = statement.model()
        raw = [statement.objective(0), statement.cost_row("c")]
        for choice in itertools.product(*(range(len(w.levels)) for w in statement.widths)):
            assert [row.at(choice) for row in (model.objective, model.rows[0])] == [row.at(choice) for row in raw]
        found.append(enumeration.solve(search.Request(model, Clock(10))).value)
    assert found[0] == found[1]
    if found[0] is not None:
        assert {p.solve(engine=engine).objective for p in pair for engine in ("price", "cp-sat")} == {found[0]}


def test_terms_on_one_pair_become_one():
    p = Program()
    a, b, c = (p.width(name, levels=range(1, 9)) for name in "abc")
    levels = np.arange(1, 9)
    p.cost("flops", np.outer(levels, levels), a, b)
    p.product("flops", 3, b, a)
    p.cost("flops", np.outer(levels, 2 * levels), b, a)
    p.cost("flops", np.outer(levels, levels) + np.add.outer(levels, 5 * levels), a, c)
    p.value(levels, a)
    p.budget("flops", 100)
    terms = p.statement().model().rows[0].terms
    products = [term for term in terms if isinstance(term.table, RankOne)]
    assert sorted(tuple(sorted(term.scope)) for term in products) == [(0, 1), (0, 2)]
    of_a = [term.table.first if term.scope[0] == 0 else term.table.second for term in products]
    assert all((factor == factor[0] * levels).all() for factor in of_a)  # not shifted: an envelope needs one factor
    assert all(len(term.scope) == 1 for term in terms if not isinstance(term.table, RankOne))


@pytest.mark.parametrize("unit", [1, 10**6], ids=["flops", "MFLOPs, rounded"])
def test_a_network_in_plain_arrays_is_solved_like_one_in_products(unit):
    net = instances.bottleneck_net(50)
    arrays = instances.build_plain(net, 4, instances.HALF_FLOPS, 0, unit).solve(gap=1e-3, time_limit=60)
    products = instances.resnet50(4).solve(gap=1e-3, time_limit=60)
    assert arrays.gap <= 1e-3 and "price" in arrays.solver
    assert arrays.bound >= products.objective * (1 - 1e-12) and products.bound >= arrays.objective * (1 - 1e-12)
    arrays.check()


# -- never stop early --------------------------------------------------------------------------------------------------


def test_what_no_engine_settles_is_halved_until_it_is(monkeypatch):
    """Too much for CP-SAT and a narrow search: the bound still closes."""
    for name, value in (("KEPT", (1,)), ("HALF_KEPT", 3), ("FINISH_CELLS", 0)):
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(enumeration, "MOST", 4)
    solution = instances.chain(6, 8, budgets=(0.4, 0.5), seed=1).solve(time_limit=60)
    assert solution.status == "optimal" and solution.gap == 0 and "branching" in solution.solver
    assert solution.notes == ()
    monkeypatch.undo()
    assert instances.chain(6, 8, budgets=(0.4, 0.5), seed=1).solve(engine="cp-sat").objective == solution.objective


def test_a_gap_left_open_is_explained(monkeypatch):
    for name, value in (("KEPT", (1,)), ("HALF_KEPT", 1), ("FINISH_CELLS", 0)):
        monkeypatch.setattr(search, name, value)
    solution = instances.chain(24, 32, budgets=(0.4, 0.5), seed=1).solve(time_limit=1.5)
    assert solution.status == "feasible" and solution.seconds > 1
    assert any("cp-sat was not asked" in note for note in solution.notes)
    assert any("time limit" in note for note in solution.notes) and "note: the time limit" in str(solution)


def test_lack_of_memory_ends_the_search_with_what_is_known(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("solvemut.solver.engines.price.beam.search", full)
    solution = instances.chain(24, 32, budgets=(0.4, 0.5), seed=1).solve(time_limit=10)
    solution.check()
    assert solution.status == "feasible" and "9 GiB" in solution.notes[0]
