"""Coupling from hand-written traces, without torch: components, rows, links; and graphs and programs as text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvemut.coupling import components, couple
from solvemut.flow import Labels, compressed, rectangle, view_groups
from solvemut.graph import Graph
from solvemut.plan import replayed
from solvemut.trace import Node, Param, Ref, Size, Trace

X = Ref


def attr(module: str, name: str) -> Size:
    return Size("attr", (module, name, None))


def value(param: str) -> str:
    """The name by which nodes refer to a parameter."""
    return "p_" + param.replace(".", "_")


class Sheet:
    """Writes a trace node by node."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.inputs, self.params, self.nodes = inputs, {}, []
        self.attributes: dict[Size, int] = {}

    def param(self, name: str, *shape: int, kind: str = "parameter") -> Ref:
        self.params[value(name)] = Param(name, shape, kind)
        return Ref(value(name))

    def node(self, name: str, op: str, shape: Any, sizes: Any = None, /, **args: Any) -> Ref:
        shapes = tuple(shape) if isinstance(shape, list) else (shape,)
        module = args.pop("module", "")
        pointwise = op in ("relu", "add")
        self.nodes.append(Node(name, op, args, shapes, isinstance(shape, list), pointwise, module, "", sizes or {}))
        return Ref(name)

    def linear(self, name: str, x: Ref, i: int, o: int, *lead: int) -> Ref:
        w, b = self.param(f"{name}.weight", o, i), self.param(f"{name}.bias", o)
        return self.node(name.replace(".", "_"), "linear", (*lead, o), input=x, weight=w, bias=b, module=name)

    def conv(self, name: str, x: Ref, i: int, o: int, groups: int = 1) -> Ref:
        w = self.param(f"{name}.weight", o, i // groups, 1, 1)
        sizes = {("groups",): attr(name, "groups")}
        self.attributes[attr(name, "groups")] = groups
        return self.node(name, "conv2d", (2, o, 4, 4), sizes, input=x, weight=w, bias=None, groups=groups, module=name)

    def trace(self, *outputs: Ref) -> Trace:
        return Trace(
            self.params, self.inputs, tuple(self.nodes), tuple(o.name for o in outputs), attributes=self.attributes
        ).validate()


def units(coupling: Any, param: str, dim: int) -> list[int]:
    return coupling.units(coupling.sources[value(param), dim]).tolist()


def chain() -> Trace:
    s = Sheet(x=(2, 5))
    h = s.node("relu", "relu", (2, 8), self=s.linear("a", X("x"), 5, 8, 2))
    return s.trace(s.linear("b", h, 8, 3, 2))


def residual() -> Trace:
    s = Sheet(x=(2, 5))
    a = s.linear("a", X("x"), 5, 4, 2)
    c = s.linear("c", s.linear("b", a, 4, 6, 2), 6, 4, 2)
    return s.trace(s.linear("d", s.node("add", "add", (2, 4), self=a, other=c), 4, 3, 2))


def concat() -> Trace:
    s = Sheet(x=(2, 5))
    a, b = s.linear("a", X("x"), 5, 3, 2), s.linear("b", X("x"), 5, 2, 2)
    y = s.node("cat", "cat", (2, 10), tensors=[b, X("x"), a], dim=1)
    return s.trace(s.linear("c", y, 10, 2, 2))


def grouped() -> Trace:
    s = Sheet(x=(2, 3, 4, 4))
    g = s.conv("g", s.conv("a", X("x"), 3, 6), 6, 9, groups=3)
    return s.trace(s.conv("b", g, 9, 2))


def heads(written: bool = False) -> Trace:
    """view to (heads, size), something on it, and back."""
    s = Sheet(x=(2, 5))
    q = s.linear("q", X("x"), 5, 12, 2)
    size = attr("", "heads")
    s.attributes[size] = 3
    sizes = {} if written else {("size", 1): size}
    v = s.node("view", "view", (2, 3, 4), sizes, self=q, size=[2, 3, 4 if written else -1])
    r = s.node("reshape", "reshape", (2, 12), self=s.node("relu", "relu", (2, 3, 4), self=v), shape=[2, -1])
    return s.trace(s.linear("o", r, 12, 2, 2))


def split(sizes: tuple[int, int]) -> Trace:
    s = Sheet(x=(2, 5))
    a = s.linear("a", X("x"), 5, sum(sizes), 2)
    s.node("split", "split_with_sizes", [(2, n) for n in sizes], self=a, split_sizes=list(sizes), dim=1)
    attrs = {k: Size("attr", ("", "sizes", k)) for k in range(2)}
    s.nodes[-1] = Node(**{**vars(s.nodes[-1]), "sizes": {("split_sizes", k): v for k, v in attrs.items()}})
    s.attributes.update({v: sizes[k] for k, v in attrs.items()})
    one, two = (s.node(f"getitem_{k}", "getitem", (2, sizes[k]), a=X("split"), b=k) for k in range(2))
    return s.trace(s.linear("b", two, sizes[1], 2, 2), s.linear("c", one, sizes[0], 2, 2))


# -- components --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_components_against_union_find(seed):
    rng = np.random.default_rng(seed)
    n = 60
    edges = [(rng.integers(0, n, k), rng.integers(0, n, k)) for k in rng.integers(0, 12, 4)]
    root = list(range(n))

    def find(x: int) -> int:
        while root[x] != x:
            x = root[x]
        return x

    for a, b in edges:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = find(i), find(j)
            root[max(i, j)] = min(i, j)
    assert components(n, edges).tolist() == [find(i) for i in range(n)]


def test_components_of_a_long_chain_and_of_nothing():
    n = 5000
    assert components(3, []).tolist() == [0, 1, 2]
    assert not components(n, [(np.arange(1, n), np.arange(n - 1))]).any()


# -- who is coupled with whom ------------------------------------------------------------------------------------------


def test_chain():
    c = couple(chain())
    assert units(c, "a.weight", 0) == units(c, "a.bias", 0) == units(c, "b.weight", 1)
    assert len(set(units(c, "a.weight", 0))) == 8 and not c.frozen[units(c, "a.weight", 0)].any()
    assert c.frozen[units(c, "b.weight", 0)].all() and "model output" in c.why_frozen(c.sources["p_b_weight", 0])
    assert c.why_frozen(c.sources["p_a_weight", 0]) == ""
    assert c.produced >= {("p_a_weight", 0), ("p_b_weight", 0)} and ("p_b_weight", 1) not in c.produced
    group = c.groups[c.group_of[units(c, "a.weight", 0)[0]]]
    assert group.units == 8 and group.frozen == ""
    assert set(group.dims) == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1)}
    assert c.links == () and c.rows == ()


def test_residual_names_the_node_that_couples():
    c = couple(residual())
    assert units(c, "a.weight", 0) == units(c, "c.weight", 0) == units(c, "b.weight", 1) == units(c, "d.weight", 1)
    group = c.groups[c.group_of[units(c, "a.weight", 0)[0]]]
    assert {k for k, _ in group.sources} >= {"a.weight", "c.weight"}
    assert any("add" in origin for origin in group.origins)
    assert len(set(units(c, "b.weight", 0)) & set(units(c, "a.weight", 0))) == 0


def test_concat_keeps_the_order_of_its_parts():
    c = couple(concat())
    read = units(c, "c.weight", 1)
    assert read[:2] == units(c, "b.weight", 0) and read[7:] == units(c, "a.weight", 0)
    assert c.frozen[read[2:7]].all() and not c.frozen[read[:2] + read[7:]].any()


def test_rows_of_a_grouped_convolution():
    c = couple(grouped())
    by_size = {r.units.shape: r for r in c.rows}
    assert set(by_size) == {(3, 2), (3, 3)}
    assert all(r.removable for r in c.rows) and len({r.key for r in c.rows}) == 1
    assert by_size[3, 2].units.reshape(-1).tolist() == units(c, "a.weight", 0)
    assert by_size[3, 3].units.reshape(-1).tolist() == units(c, "g.weight", 0) == units(c, "b.weight", 1)
    assert c.units(c.sources["p_g_weight", 1]).tolist() == by_size[3, 2].units.tolist()


def test_rows_of_heads_and_their_attribute():
    c = couple(heads())
    assert [r.units.shape for r in c.rows] == [(3, 4)] or len(c.uses) == 1
    assert not c.frozen[units(c, "q.weight", 0)].any()
    frozen = couple(heads(written=True))
    assert frozen.frozen[units(frozen, "q.weight", 0)].all()
    assert "written as number" in frozen.why_frozen(frozen.sources["p_q_weight", 0])


def test_split_ties_nothing_when_its_sizes_follow():
    c = couple(split((4, 3)))
    made = units(c, "a.weight", 0)
    assert units(c, "b.weight", 1) == made[4:] and units(c, "c.weight", 1) == made[:4]
    assert len(c.uses) == 2 and not c.frozen[units(c, "a.weight", 0)].any()


def test_equal_parts_of_a_chunk_are_linked():
    s = Sheet(x=(2, 5))
    a = s.linear("a", X("x"), 5, 6, 2)
    s.node("chunk", "chunk", [(2, 3), (2, 3)], self=a, chunks=2, dim=1)
    one, two = (s.node(f"getitem_{k}", "getitem", (2, 3), a=X("chunk"), b=k) for k in range(2))
    c = couple(s.trace(s.linear("b", two, 3, 2, 2), s.linear("c", one, 3, 2, 2)))
    (link,) = c.links
    assert link.constant == 0 and [k for _, k in link.parts] == [1, -1]
    assert [c.units(p).tolist() for p, _ in link.parts] == [units(c, "a.weight", 0)[:3], units(c, "a.weight", 0)[3:]]
    assert "equal parts" in link.why and link.node.name == "chunk"


def test_one_attribute_in_two_places_is_a_link():
    s = Sheet(x=(2, 5))
    width = attr("", "width")
    s.attributes[width] = 4
    parts = []
    for name in "ab":
        y = s.linear(name, X("x"), 5, 4, 2)
        parts.append(s.node(f"view_{name}", "view", (2, 4), {("size", 1): width}, self=y, size=[2, 4]))
    y = s.node("cat", "cat", (2, 8), tensors=parts, dim=1)
    c = couple(s.trace(s.linear("c", y, 8, 2, 2)))
    (link,) = c.links
    assert "self.width" in link.why and link.constant == 0


def test_keep_freezes_a_parameter_dim_with_a_reason():
    c = couple(chain(), keep={("p_a_weight", 0): "asked to stay"})
    assert c.frozen[units(c, "b.weight", 1)].all() and c.why_frozen(c.sources["p_b_weight", 1]) == "asked to stay"


def test_unknown_operation():
    s = Sheet(x=(2, 5))
    y = s.node("mystery", "mystery", (2, 8), self=s.linear("a", X("x"), 5, 8, 2))
    c = couple(s.trace(s.linear("b", y, 8, 3, 2)))
    assert c.frozen[units(c, "a.weight", 0)].all() and [n.op for n in c.facts.unsupported] == ["mystery"]
    assert "no rule for mystery" in c.why_frozen(c.sources["p_a_weight", 0])


def test_a_trace_that_reads_what_nobody_makes_is_refused():
    from solvemut.errors import CaptureError

    s = Sheet(x=(2, 5))
    with pytest.raises(CaptureError, match="'nobody'"):
        s.trace(s.linear("a", X("nobody"), 5, 3, 2))
    s = Sheet(x=(2, 5))
    s.linear("a", X("x"), 5, 3, 2)
    with pytest.raises(CaptureError, match="made by no node"):
        s.trace(X("b"))


# -- the same trace, resized -------------------------------------------------------------------------------------------


def test_resize_by_hand():

    c = couple(split((4, 3)))
    kept = c.frozen.copy()
    a = units(c, "a.weight", 0)
    kept[[a[i] for i in (0, 2, 5)]] = True
    r = replayed(c, kept)
    assert r.index["p_a_weight", 0].tolist() == [0, 2, 5]
    assert r.index["p_b_weight", 1].tolist() == [1] and r.index["p_c_weight", 1].tolist() == [0, 2]
    assert {str(k): v for k, v in r.attributes.items()} == {"self.sizes[0]": 2, "self.sizes[1]": 1}
    assert r.trace.node("split").shapes == ((2, 2), (2, 1)) and r.trace.node("split").args["split_sizes"] == [2, 1]
    again = couple(r.trace)
    assert len(units(again, "a.weight", 0)) == 3


def test_resize_of_groups_by_hand():

    c = couple(grouped())
    a, g = units(c, "a.weight", 0), units(c, "g.weight", 0)
    kept = c.frozen.copy()
    kept[[a[i] for i in (1, 4)]] = True  # groups 0 and 2, one input each
    kept[[g[i] for i in (0, 2, 7, 8)]] = True  # two outputs each
    r = replayed(c, kept)
    assert r.trace.params["p_g_weight"].shape == (4, 1, 1, 1) and r.trace.node("g").args["groups"] == 2
    assert r.index["p_g_weight", 0].tolist() == [0, 2, 7, 8] and r.index["p_g_weight", 1].tolist() == [[1], [0]]
    assert r.index["p_b_weight", 1].tolist() == [0, 2, 7, 8]


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((6,), (2, 3), [((0,), (0, 1))]),
        ((2, 3), (6,), [((0, 1), (0,))]),
        ((2, 3, 4), (2, 12), [((0,), (0,)), ((1, 2), (1,))]),
        ((4, 3), (2, 6), [((0, 1), (0, 1))]),
        ((2, 1, 3), (2, 3), [((0,), (0,)), ((1,), ()), ((2,), (1,))]),
        ((2, 3), (2, 3), [((0,), (0,)), ((1,), (1,))]),
    ],
)
def test_view_groups(old, new, groups):
    assert view_groups(old, new) == groups


@pytest.mark.parametrize("seed", range(20))
def test_rectangle_against_counting(seed):
    """A mask is a rectangle when the kept entries, in order, can be reshaped with some axis packed row by row."""
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4)) < 0.6
    counts = mask.sum(1)
    rows = counts[counts > 0]
    columns = mask.sum(0)
    by_rows = len(set(rows.tolist())) <= 1
    by_columns = len(set(columns[columns > 0].tolist())) <= 1
    found = rectangle(mask)
    assert (found is not None) == (by_rows or by_columns)
    if found is not None:
        labels = np.arange(12).reshape(3, 4)
        out = compressed(labels, mask)
        assert out.shape == found[0] and sorted(out.reshape(-1).tolist()) == labels[mask].tolist()


def test_labels_follow_numpy():
    a = np.arange(1, 25).reshape(2, 3, 4)
    x = Labels.of((24,), {0: a.reshape(-1)})
    assert x.take(0, slice(3, 9)).dim(0).tolist() == list(range(4, 10))
    y = Labels((2, 5, 3), ()).insert(1)
    assert y.shape == (2, 1, 5, 3)


# -- slots that may come ----------------------------------------------------------------------------------------------


def selected(trace: Trace, slots: dict[str, list[int]], gone: dict[str, list[int]]) -> dict[tuple[str, int], list]:
    """Index maps when positions of some outputs are slots that come, and others go."""
    coupling = couple(trace)
    present, kept = np.ones(coupling.n_units, dtype=bool), np.ones(coupling.n_units, dtype=bool)
    for name, at in slots.items():
        present[coupling.units(coupling.sources[value(name), 0])[at]] = False
    for name, at in gone.items():
        kept[coupling.units(coupling.sources[value(name), 0])[at]] = False
    index = replayed(replace(coupling, present=present), kept).index
    return {(trace.params[v].name, d): found.tolist() for (v, d), found in index.items()}


def test_slots_come_out_as_minus_one_in_every_dim():
    """The chain a(8) -> b of which two positions do not exist yet, and one that does goes."""
    found = selected(chain(), {"a.weight": [6, 7]}, {"a.weight": [0]})
    assert found["a.weight", 0] == found["a.bias", 0] == found["b.weight", 1] == [1, 2, 3, 4, 5, -1, -1]
    assert found["a.weight", 1] == [0, 1, 2, 3, 4] and found["b.weight", 0] == [0, 1, 2]


def test_slots_stand_in_the_right_columns_of_a_concat():
    """cat(b of 2, the input of 5, a of 3): the last position of each producer is new."""
    found = selected(concat(), {"a.weight": [2], "b.weight": [1]}, {})
    assert found["a.weight", 0] == [0, 1, -1] and found["b.weight", 0] == [0, -1]
    assert found["c.weight", 1] == [0, -1, 1, 2, 3, 4, 5, 6, 7, -1]
    left_out = selected(concat(), {"a.weight": [2], "b.weight": [1]}, {"a.weight": [0, 2]})
    assert left_out["c.weight", 1] == [0, -1, 1, 2, 3, 4, 5, 7]


def test_a_slot_of_a_residual_stream_is_new_wherever_it_stands():
    found = selected(residual(), {"a.weight": [1]}, {"b.weight": [3]})
    assert found["a.weight", 0] == found["c.weight", 0] == found["b.weight", 1] == found["d.weight", 1] == [0, -1, 1, 2]
    assert found["b.weight", 0] == found["c.weight", 1] == [0, 1, 2, 4, 5]


def test_slots_of_the_groups_of_a_convolution_are_new_in_each_row():
    """g reads 6 channels of a in 3 groups of 2 and makes 9: the second channel of each group is a slot."""
    found = selected(grouped(), {"a.weight": [1, 3, 5]}, {})
    assert found["a.weight", 0] == [0, -1, 1, -1, 2, -1]
    assert found["g.weight", 1] == [[0, -1]] * 3


# -- graphs and programs as text ---------------------------------------------------------------------------------------


def test_printed_graph():
    text = str(Graph(residual(), couple(residual())))
    assert text.splitlines() == RESIDUAL.strip("\n").splitlines(), text


def test_printed_program():
    from solvemut.compile import Question, compile_program

    trace = residual()
    graph = Graph(trace, couple(trace))
    value = np.zeros(graph.coupling.n_units)
    value[graph["a"].units] = [4, 3, 2, 1]
    value[graph["b"].units] = [1, 5, 2, 2, 9, 1]
    program = compile_program(graph.coupling, value, Question([graph.params <= 40])).program
    assert str(program).splitlines() == PROGRAM.strip("\n").splitlines(), str(program)
    best = max(  # a and c make m units, b makes n
        (sum([4, 3, 2, 1][:m]) + sum([9, 5, 2, 2, 1, 1][:n]), m, n)
        for m in range(1, 5)
        for n in range(1, 7)
        if (5 * m + m) + (m * n + n) + (n * m + m) + (3 * m + 3) <= 40
    )
    solution = program.solve()
    assert (solution.objective, *(solution[w] for w in sorted(program._widths, key=lambda w: w.name))) == best


RESIDUAL = """
model: 97 params, 320 FLOPs, 3 coupled groups, 10 units to decide

vertex  op      nin  nout  group  params  FLOPs  frozen because
------  ------  ---  ----  -----  ------  -----  --------------
x       input           5                        model input
a       linear    5     4  0          24     80
b       linear    4     6  1          30     96
c       linear    6     4  0          28     96
add     add     4,4     4  0
d       linear    4     3  2          15     48  model output

frozen: 0.0 % of FLOPs, 3.1 % of params

FLOPs  params  op  where  layers  which  reason
-----  ------  --  -----  ------  -----  ------------
0.0 %   3.1 %                  1  d      model output
"""
PROGRAM = """
maximize [4, 7, 9, 10](a.out) + [9, 14, 16, 18, 19, 20](b.out)
cost params <= 40 <= 40: [10, 20, 30, 40](a.out) + [1, 2, 3, 4, 5, 6](b.out) + product(a.out, b.out) + 3
a.out in {1, 2, 3, 4}
b.out in {1, 2, 3, 4, 5, 6}
"""
