"""The certificate is one for all engines: offers checked, bounds over all that was dropped, and who produced it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from benchmarks_path import instances

from solvemut.program import Program
from solvemut.solver.certificate import Answer, Certificate, Request
from solvemut.solver.clock import Clock
from solvemut.solver.compact import compact
from solvemut.solver.engines import additive, enumeration, price
from solvemut.solver.engines.price import beam, search
from solvemut.solver.engines.price.aggregate import extend
from solvemut.solver.exact import array
from solvemut.solver.model import Model, Row, Term
from solvemut.solver.multipliers import Priced
from solvemut.solver.order import order_of
from solvemut.solver.thread import in_thread
from solvemut.solver.view import view


def chain(layers: int = 6, levels: int = 6) -> Program:
    """Pair tables, too many choices to enumerate."""
    return instances.chain(layers, levels, budgets=(0.4, 0.5), seed=1)


def knapsack(classes: int = 10, top: float = 1.0) -> Program:
    """No pair tables."""
    p = Program()
    for i in range(classes):
        width = p.width(f"w{i}", levels=range(4))
        p.value([0, 5 + i, 9 + i, top * (10 + 2 * i)], width)
        p.cost("x", [0, 3 + i, 7 + i, 12 + 3 * i], width)
    p.budget("x", 9 * classes)
    return p


# -- the engine that really ran ----------------------------------------------------------------------------------------

WHO = {
    "few choices": (lambda: knapsack(3), "enumeration"),
    "no pair tables": (knapsack, "additive"),
    "pair tables": (chain, "price"),
    "beyond floats": (lambda: knapsack(top=1e300), "cp-sat"),
}


@pytest.mark.parametrize("case", WHO)
def test_auto_names_the_engine_that_ran(case):
    make, name = WHO[case]
    solution = make().solve()
    assert (solution.status, solution.solver.split(" + ")[0]) == ("optimal", name)


def test_auto_names_every_engine_that_had_a_part(monkeypatch):
    monkeypatch.setattr(additive, "KEPT", ((2, 3),))
    monkeypatch.setattr(search, "KEPT", (1,))
    monkeypatch.setattr(enumeration, "MOST", 1)
    solution = instances.variants(budget=0.4, seed=1).solve(gap=1e-5, time_limit=10)
    assert solution.solver in ("additive + price", "additive + price + cp-sat")


def test_auto_names_the_engine_that_ctrl_c_broke_off(monkeypatch):
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(beam, "search", pressed)
    solution = instances.chain(24, 32, budgets=(0.4, 0.5), seed=1).solve()
    assert solution.interrupted
    assert solution.solver == "price"
    solution.check()


def test_an_engine_asked_by_name_tells_who_helped(monkeypatch):
    monkeypatch.setattr(search, "KEPT", (1,))
    monkeypatch.setattr(enumeration, "MOST", 1)
    assert chain(8, 8).solve(engine="price").solver == "price + cp-sat"


# -- offer, bound, close -----------------------------------------------------------------------------------------------


def small(gap: float | Fraction = 0, **options: object) -> Request:
    """Two variables of four levels, worth even numbers from 1 on, together at most level 4."""
    values = array([0, 2, 4, 6])
    rows = (Row("level", (Term((0,), array(range(4))), Term((1,), array(range(4)))), 0, None, 4),)
    model = Model((np.arange(4), np.arange(4)), Row("value", (Term((0,), values), Term((1,), values)), 1), rows)
    return Request(model, Clock(10), gap=gap, **options)


def test_an_offer_counts_only_where_it_is_feasible_and_better():
    told = []
    certificate = Certificate(small(on_choice=lambda choice, value: told.append((choice, value))))
    assert not certificate.offer((3, 3))
    assert certificate.offer((1, 1)) and certificate.offer((0, 1)) and not certificate.offer((1, 1))
    assert (certificate.answer.choice, certificate.answer.value, told) == ((1, 1), 5, [((1, 1), 5)])


def test_a_bound_is_rounded_down_to_a_value_and_never_below_what_was_dropped():
    certificate = Certificate(request := small(gap=Fraction(1)), small().model.objective)
    certificate.bound(12)
    assert certificate.answer.bound == 11  # 1 and a multiple of 2
    certificate.offer((1, 1))
    assert certificate.cutoff() == 10  # twice the value of 5
    certificate.bound(6)
    assert certificate.answer.bound == 10 and certificate.proven and request.gap == 1


def test_within_a_unit_above_the_incumbent_there_is_nothing():
    certificate = Certificate(small(), small().model.objective)
    assert certificate.cutoff() is None
    certificate.offer((1, 1))
    cutoff = certificate.cutoff()
    assert cutoff is not None and 5 < cutoff < 7 and certificate.dropped == 5


def test_closing_takes_choice_and_bound_and_an_empty_rest_proves_the_incumbent():
    certificate = Certificate(small())
    certificate.close(Answer((2, 1), 7, 9))
    assert (certificate.answer.value, certificate.answer.bound, certificate.answer.finished) == (7, 9, False)
    done = certificate.close(Answer(infeasible=True, finished=True))
    assert (done.value, done.bound, done.finished, done.infeasible) == (7, 7, True, False)
    assert Certificate(small()).complete().infeasible


def test_a_bound_on_the_rest_alone_is_not_reported():
    bounds: list[object] = []
    certificate = Certificate(small(gap=Fraction(1), on_bound=bounds.append))
    certificate.offer((1, 1))
    certificate.cutoff()
    certificate.rest(certificate.request.model).on_bound(6)
    assert bounds == [10]


def test_another_engine_reports_through_the_certificate(monkeypatch):
    """Running sums add variables, and the rest is bounded alone: neither is to be seen from outside."""
    monkeypatch.setattr("solvemut.solver.order.CELLS", 3000)
    monkeypatch.setattr("solvemut.solver.order.STREAMED", 0)
    monkeypatch.setattr(search, "KEPT", (1,))

    def lost(guides: list[Priced], *_: object) -> beam.Found:
        return beam.Found(np.zeros((0, len(guides[0].sweep.order.view.sizes)), dtype=int), 1.0)

    monkeypatch.setattr(beam, "search", lost)
    monkeypatch.setattr(enumeration, "MOST", 1)
    rng, p = np.random.default_rng(0), Program()
    widths = [p.width(f"w{i}", levels=range(1, 5)) for i in range(6)]
    for j, width in enumerate(widths):
        p.value(np.cumsum(np.sort(rng.integers(1, 100, 4))[::-1]), width)
        for other in widths[:j]:
            p.product("flops", 3, other, width)
    p.budget("flops", 3 * 55)
    model = p.statement().model()
    extended = extend(compact(model).model, lambda m: 0)
    assert extended is not None
    assert [order_of(view(m)).exact for m in (model, extended.model)] == [False, True]
    choices, bounds, engines = [], [], []
    request = Request(model, Clock(30), on_engine=engines.append, on_bound=bounds.append)
    request.on_choice = lambda choice, value: choices.append((choice, value))
    answer = price.solve(request)
    assert engines == ["price", "cp-sat"] and answer.finished
    assert all(model.feasible(choice) and model.objective.at(choice) == value for choice, value in choices)
    assert choices[-1] == (answer.choice, answer.value) and min(bounds) == answer.bound == answer.value


# -- a solve in a thread -----------------------------------------------------------------------------------------------


def test_a_thread_gives_back_what_came_of_it():
    def broken() -> None:
        raise ZeroDivisionError("inside")

    assert in_thread(lambda: 7, small()) == 7
    with pytest.raises(ZeroDivisionError, match="inside"):
        in_thread(broken, small())


def test_a_thread_is_asked_to_stop_until_it_does():
    asked, request = [], small()
    request.clock.stop()

    def work() -> str:
        while len(asked) < 3:
            pass
        return "stopped"

    assert in_thread(work, request, stop=lambda: asked.append(1)) == "stopped"
    assert len(asked) >= 3
