"""Every engine behind the program answers alike: one suite, run for each of them, against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies_program import SHAPES, assert_optimal, best, build, examples, specs

from solvemut.errors import InfeasibleError
from solvemut.solver import auto, enumeration

ENGINES = [name for name in auto.ENGINES if name != "enumeration"]


@pytest.fixture(autouse=True, scope="module")
def _no_shortcut():
    """Small programs would be enumerated: keep every engine to its own means."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enumeration, "MOST", 1)
        yield


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", sorted(SHAPES))
@given(data=st.data())
@examples(300, nightly=100)
def test_engine_agrees_with_brute_force(engine, shape, data):
    spec = data.draw(specs(shape))
    truth = best(spec)
    if truth is None:
        with pytest.raises(InfeasibleError):
            build(spec).solve(engine=engine)
    else:
        assert_optimal(spec, build(spec).solve(engine=engine), truth)
