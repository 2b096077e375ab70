"""Edits and selections: changes of structure as values that apply, turn round, compose, and go into files and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import planned, training_set

import solvemut as sm
from solvemut.edits import EDITS, Edit, Selection, SetAttribute, edit_of, register
from solvemut.errors import PlanMismatchError
from solvemut.trace import Size, Trace

HEADS, SECOND = Size("attr", ("attn", "heads", None)), Size("attr", ("", "sizes", 1))
TRACE = Trace({}, {}, (), (), attributes={HEADS: 8, SECOND: 4})

# -- edits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [SetAttribute("attn", "heads", None, 8, 6), SetAttribute("", "sizes", 1, 4, 5)])
def test_an_edit_there_and_back(edit):
    changed, back = edit.apply(TRACE)
    assert changed.attributes == {**TRACE.attributes, Size("attr", (edit.module, edit.name, edit.index)): edit.after}
    again, forth = back.apply(changed)
    assert again == TRACE and forth == edit and back == edit.back()
    assert edit_of(json.loads(json.dumps(edit.to_data()))) == edit == SetAttribute.from_data(edit.to_data())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (SetAttribute("attn", "heads", None, 7, 6), "attn.heads is 8, the plan expects 7"),
        (SetAttribute("attn", "width", None, 8, 6), "the plan sets attn.width, which gives no size"),
        (SetAttribute("", "sizes", 0, 4, 5), r"the plan sets sizes\[0\], which"),
    ],
)
def test_an_edit_of_another_trace_is_refused(edit, words):
    with pytest.raises(PlanMismatchError, match=words):
        edit.apply(TRACE)


def test_a_plan_edits_its_trace_as_it_edits_its_model():
    model, args = training_set("FusedQkv")
    plan = planned(model, args, 0.7)
    graph = sm.capture(model, args)
    trace, undo = graph.trace, []
    for edit in plan.edits:
        trace, back = edit.apply(trace)
        undo.insert(0, back)
    assert plan.edits and trace.attributes == {**graph.trace.attributes, **_values(plan.attributes)}
    assert tuple(undo) == plan.back.edits
    for back in plan.back.edits:
        trace, _ = back.apply(trace)
    assert trace == graph.trace


def _values(edits: tuple[SetAttribute, ...]) -> dict[Size, int]:
    return {Size("attr", (e.module, e.name, e.index)): e.after for e in edits}


def test_one_kind_is_one_edit():
    with pytest.raises(ValueError, match="the kind 'set_attribute' is that of SetAttribute"):
        register(SetAttribute)
    assert EDITS["set_attribute"] is SetAttribute
    with pytest.raises(TypeError, match="abstract"):
        Edit()  # type: ignore[abstract]


def test_a_new_kind_is_printed_saved_and_read(monkeypatch):
    """What a later edit needs: a class in the table. Apply refuses it until it has an editor."""

    @dataclass(frozen=True)
    class Rename(Edit):
        kind = "rename"
        before: str
        after: str

        @staticmethod
        def form(where: str, x: Any) -> None:
            if set(x) != {"before", "after"}:
                raise PlanMismatchError(f"{where}: no rename")

        def apply(self, trace: Trace) -> tuple[Trace, Edit]:
            return replace(trace, root=self.after), self.back()

        def back(self) -> Edit:
            return Rename(self.after, self.before)

        def describe(self) -> str:
            return f"{self.before} is called {self.after}"

    monkeypatch.setattr("solvemut.edits.base.EDITS", {**EDITS, "rename": Rename})
    model, args = training_set("FusedQkv")
    plan = planned(model, args, 0.7)
    more = replace(plan, edits=(Rename("a", "b"), *plan.edits))
    assert sm.Plan.from_json(more.to_json()) == more and more.attributes == plan.attributes == plan.edits
    assert "edits:\n- a is called b" in str(more) and "edits" not in str(plan)
    with pytest.raises(PlanMismatchError, match="makes no edit of kind 'rename'"):
        more.apply(model)


# -- selections --------------------------------------------------------------------------------------------------------


def cut(x: np.ndarray, dims: dict[int, Any]) -> np.ndarray:
    """A selection done with plain indexing, one position at a time; what is new is -1."""

    def taken(x: np.ndarray, index: list[int], axis: int) -> np.ndarray:
        new = np.full_like(x.take(0, axis), -1)
        return np.stack([x.take(i, axis) if i >= 0 else new for i in index], axis)

    for d in sorted(dims):
        if isinstance(dims[d][0], list):
            each = len(x) // len(dims[d])
            x = np.stack([taken(x[k], dims[d][k // each], d - 1) for k in range(len(x))])
        else:
            x = taken(x, dims[d], d)
    return x


def test_the_same_on_both_dims_changes_nothing():
    same = Selection({"w": {0: [0, 1, 2], 1: [0, 1, 2, 3]}})
    some = Selection({"w": {0: [2, -1, 0], 1: [-1, 0, 3, 1]}})
    assert same.then(some) == some == some.then(same) == some.then(Selection()) == Selection().then(some)
    assert Selection({"a": {0: [1]}}).then(Selection({"b": {0: [2]}})) == Selection({"a": {0: [1]}, "b": {0: [2]}})


def test_groups_compose():
    first = {0: [0, 1, 4, 5, 6, 7], 1: [[0, 2], [1, 2], [0, -1]]}  # of 8 outputs in 4 groups of 3 inputs
    second = {0: [2, 3, 4, 5], 1: [[1], [0]]}
    assert Selection({"w": first}).then(Selection({"w": second})).indices["w"] == {0: [4, 5, 6, 7], 1: [[2], [0]]}
    only_outputs = {0: [4, 5, 0, 1]}
    found = Selection({"w": first}).then(Selection({"w": only_outputs})).indices["w"]
    assert found == {0: [6, 7, 0, 1], 1: [[0, -1], [0, 2]]}
    new_group = {0: [0, 1, -1, -1], 1: [[1, 0], [0, 1]]}
    found = Selection({"w": first}).then(Selection({"w": new_group})).indices["w"]
    assert found == {0: [0, 1, -1, -1], 1: [[2, 0], [-1, -1]]}
    with pytest.raises(PlanMismatchError, match="w: groups are selected anew"):
        Selection({"w": {1: [[0], [1]]}}).then(Selection({"w": {0: [0]}}))


def positions(draw: Any, n: int, least: int = 1) -> list[int]:
    """Some of n old positions, each at most once, in any order, with new ones among them."""
    old = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n))
    new = draw(st.integers(max(0, least - len(old)), 2))
    return draw(st.permutations(old + [-1] * new)) or [-1]


@st.composite
def plain(draw: Any, shape: tuple[int, ...]) -> dict[int, Any]:
    return {d: positions(draw, n) for d, n in enumerate(shape) if draw(st.booleans())}


@st.composite
def grouped(draw: Any, shape: tuple[int, int], groups: int) -> dict[int, Any]:
    """Some groups stay, some are new; of each as many outputs and inputs as of any other."""
    each = shape[0] // groups
    order = positions(draw, groups)
    outputs, inputs = draw(st.integers(1, each)), draw(st.integers(1, shape[1]))

    def some(n: int, of: int) -> list[int]:
        return draw(st.permutations(range(of)))[: n - draw(st.integers(0, 1))]

    def filled(found: list[int], n: int) -> list[int]:
        return found + [-1] * (n - len(found))

    dim0 = [filled([g * each + i for i in some(outputs, each)] if g >= 0 else [], outputs) for g in order]
    dim1 = [filled(some(inputs, shape[1]) if g >= 0 else [], inputs) for g in order]
    return {0: [p for part in dim0 for p in part], 1: dim1}


@given(st.data())
def test_selections_compose_as_arrays_do(data):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    x = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
    first = data.draw(plain(shape))
    middle = cut(x, first)
    second = data.draw(plain(middle.shape))
    both = Selection({"w": first}).then(Selection({"w": second})).indices["w"]
    assert (cut(x, dict(both)) == cut(middle, second)).all()


@given(st.data())
def test_selections_of_groups_compose_as_arrays_do(data):
    groups, each, inputs = (data.draw(st.integers(1, 4)) for _ in range(3))
    x = np.arange(1, 1 + groups * each * inputs).reshape(groups * each, inputs)
    first = data.draw(grouped(x.shape, groups))
    middle = cut(x, first)
    second = data.draw(grouped(middle.shape, len(first[1])))
    second = {d: second[d] for d in data.draw(st.sampled_from([(0, 1), (1,), (0,)])) if d in second}
    if 0 not in second and len(second[1]) != len(first[1]):
        second = {}
    both = Selection({"w": first}).then(Selection({"w": second})).indices["w"]
    assert (cut(x, dict(both)) == cut(middle, second)).all()
    one = data.draw(plain(middle.shape))  # one list for all groups
    both = Selection({"w": first}).then(Selection({"w": one})).indices["w"]
    assert (cut(x, dict(both)) == cut(middle, one)).all()


@given(st.data())
def test_there_and_back_marks_what_was_dropped(data):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 4)))
    divisors = [g for g in range(1, shape[0] + 1) if shape[0] % g == 0]
    dims = data.draw(st.one_of(plain(shape), st.sampled_from(divisors).flatmap(lambda g: grouped(shape, g))))
    x = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
    selection = Selection({"w": dims})
    back = selection.back({"w": shape})
    left = cut(x, dims)
    there_and_back = cut(x, dict(selection.then(back).indices["w"]))
    assert there_and_back.shape == shape and (there_and_back == np.where(np.isin(x, left), x, -1)).all()
    assert (there_and_back == cut(left, dict(back.indices["w"]))).all()
    for d, index in selection.then(back).indices["w"].items():
        if not isinstance(index[0], list):
            assert index == [p if p in dims[d] else -1 for p in range(shape[d])]


@given(st.data())
def test_selections_go_into_files_and_back(data):
    selection = Selection({"w": data.draw(grouped((6, 3), 3)), "b": data.draw(plain((4,))), "c": {}})
    assert Selection.from_data(json.loads(json.dumps(selection.to_data()))) == selection


# -- plans in a row ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResNeXt", "FusedQkv", "ChannelShuffle"])
def test_two_plans_are_one_selection(name):
    """Applied one after another, two plans leave of every tensor what their selections say together."""
    model, args = training_set(name)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    mutator = sm.Mutator(model, args)
    plans = [mutator.prune(params=0.8, values=sm.values.random(seed)) for seed in (0, 1)]
    both = plans[0].selection.then(plans[1].selection)
    for n, p in model.named_parameters():
        assert (cut(before[n], dict(both.indices.get(n, {}))) == p.detach().numpy()).all(), n
    assert plans[0].selection != both and mutator.history == tuple(plans)


def test_the_history_keeps_the_way_back():
    model, args = training_set("FusedQkv")
    mutator = sm.Mutator(model, args)
    assert mutator.history == ()
    dry = mutator.prune(params=0.7, dry_run=True)
    assert mutator.history == ()
    with pytest.raises(PlanMismatchError):
        mutator.apply(replace(dry, edits=(replace(dry.edits[0], before=77), *dry.edits[1:])))
    assert mutator.history == ()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    mutator.apply(dry)
    (plan,) = mutator.history
    assert plan == dry and plan.graph is None and dry.graph is not None
    assert plan.back.edits == tuple(e.back() for e in reversed(plan.edits)) != ()
    for n, dims in plan.back.selection.indices.items():
        for d, index in dims.items():
            kept = plan.indices[n][d]
            assert [index.index(k) for k in range(len(kept))] == kept and len(index) == shapes[n][d]
    twin = mutator.copy()
    twin.prune(params=0.9)
    assert len(twin.history) == 2 and len(mutator.history) == 1


# -- repr --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResNeXt", "FusedQkv", "Dense"])
def test_repr_is_one_short_line(name):
    model, args = training_set(name)
    mutator = sm.Mutator(model, args)
    problem = sm.Problem(mutator.graph)
    empty = repr(problem)
    problem.add(mutator.graph.params <= 0.9 * mutator.graph.params.now)
    problem.round_to(2)
    plan = problem.solve()
    long = replace(plan, root="a\nb" * 999)
    for thing in (plan, long, mutator, mutator.graph, problem, *mutator.graph.vertices):
        assert len(repr(thing)) < 200 and "\n" not in repr(thing)
        assert type(thing).__name__ in repr(thing)
    assert "nothing asked" in empty and "params <= " in repr(problem) and "round_to(2)" in repr(problem)
    assert plan.status in repr(plan) and type(model).__name__ in repr(mutator.graph)
    assert str(plan).count("\n") > 5 < str(mutator.graph).count("\n")
