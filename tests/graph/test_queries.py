"""Queries on captured models: who feeds whom, by name and by position, layers behind vertices, drawings."""

from __future__ import annotations

import copy
import re

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from nets import NETS
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError


class Branches(nn.Module):
    """in -> a, b; cat(a, b, a) -> block (conv, norm) + in -> head, with a view that no user would call a vertex."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.block = nn.Sequential(nn.Conv2d(13, 3, 1), nn.BatchNorm2d(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.a(x), self.b(x), self.a(x)], 1)
        return self.head((self.block(y).contiguous() + x).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> sm.Graph:
    return sm.capture(Branches().eval(), torch.ones(2, 3, 4, 4))


def names(vertices):
    return [v.name for v in vertices]


def test_inputs_are_in_order_one_per_slot(graph):
    assert names(graph.inputs("cat")) == ["a", "b", "a#2"]
    assert names(graph.inputs("add")) == ["block.1", "x"]  # through contiguous(), which is no vertex
    assert names(graph.inputs(graph["head"])) == ["mean"]
    assert graph.inputs("x") == []
    assert names(graph.inputs("block")) == ["cat"]


def test_outputs_are_in_order_of_the_graph(graph):
    assert names(graph.outputs("x")) == ["a", "b", "a#2", "add"]
    assert names(graph.outputs("cat")) == ["block.0"] and graph.outputs("head") == []
    assert names(graph.outputs("block")) == ["add"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y + y


def test_what_is_read_twice_is_there_twice():
    graph = sm.capture(Twice(), torch.ones(1, 3))
    assert names(graph.inputs("add")) == ["fc", "fc"]
    assert names(graph.outputs("fc")) == ["add", "add"]
    assert names(graph.ancestors("add")) == ["x", "fc"]


def test_ancestors_and_descendants(graph):
    assert names(graph.ancestors("block.0")) == ["x", "a", "b", "a#2", "cat"]
    assert names(graph.descendants("cat")) == ["block.0", "block.1", "add", "mean", "head"]
    assert names(graph.ancestors("block")) == ["x", "a", "b", "a#2", "cat"]
    assert names(graph.descendants("block")) == ["add", "mean", "head"]
    assert graph.ancestors("x") == [] and graph.descendants("head") == []


@pytest.mark.parametrize("name", NETS)
def test_edges_of_every_network_agree_with_sizes_and_with_each_other(name):
    n = NETS[name]
    graph = sm.capture(n.model(), n.args(), n.kw())
    place = {id(v): k for k, v in enumerate(graph)}
    forwards = [(id(v), id(u)) for v in graph for u in graph.outputs(v)]
    backwards = [(id(u), id(v)) for v in graph for u in graph.inputs(v)]
    assert sorted(forwards) == sorted(backwards) and forwards
    for v in graph:
        assert all(place[id(u)] < place[id(v)] for u in graph.inputs(v))
        if v.op != "parameter" and graph.inputs(v):
            assert len(graph.inputs(v)) == len(v.nin), v
        closed = {id(v)} | {id(u) for u in graph.ancestors(v)}
        assert closed == {id(v)}.union(*({id(u), *map(id, graph.ancestors(u))} for u in graph.inputs(v)))


def test_layers_behind_vertices(graph):
    model = graph.model
    assert graph["a"].layer is graph["a#2"].layer is model.a
    assert graph["block.1"].layer is model.block[1] and graph["block"].layer is model.block
    assert graph["cat"].layer is graph["x"].layer is None


def test_layers_are_those_of_the_mutators_own_model():
    mutator = sm.Mutator(Branches(), torch.ones(2, 3, 4, 4))
    assert mutator.graph["block"].layer is mutator.model.block
    other = mutator.copy()
    assert other.graph["block"].layer is other.model.block is not mutator.model.block
    mutator.prune(params=0.8)
    assert mutator.graph["a"].layer is mutator.model.a and mutator.model.a.out_channels == mutator.graph["a"].nout


def test_find(graph):
    assert names(graph.find("cat")) == ["cat"] and graph.find("nothing") == []
    assert names(graph.find("block.*")) == ["block.0", "block.1"]
    assert names(graph.find(re.compile(r"^[ab]$"))) == ["a", "b"]
    assert names(graph.find(re.compile("a"))) == ["a", "a#2", "cat", "add", "mean", "head"]
    assert names(graph.find(lambda v: v.nout == 13)) == ["cat"]
    for wrong in (3, None, re.compile(b"a")):
        with pytest.raises(RequestError, match="glob"):
            graph.find(wrong)


def test_a_graph_is_a_sequence_of_vertices(graph):
    assert len(graph) == len(graph.vertices) == len(list(graph))
    assert graph[0] is graph["x"] and graph[-1] is graph["head"] and graph[np.int64(1)] is graph["a"]
    assert names(graph[1:4]) == ["a", "b", "a#2"] and names(graph[::-1])[0] == "head"
    assert graph["a"] in graph and "a" in graph and "zz" not in graph and 0 not in graph
    for k in (len(graph), -len(graph) - 1):
        with pytest.raises(IndexError, match=str(len(graph))):
            graph[k]
    with pytest.raises(RequestError, match="position"):
        graph[1.5]


def test_vertices_of_other_graphs_are_refused(graph):
    other = sm.capture(Twice(), torch.ones(1, 3))
    with pytest.raises(RequestError, match="another graph"):
        graph.inputs(other["fc"])
    with pytest.raises(RequestError, match="no vertex"):
        graph.outputs(3)
    with pytest.raises(RequestError, match="did you mean"):
        graph.inputs("haed")
    assert names(graph.inputs(copy.deepcopy(graph)["cat"])) == ["a", "b", "a#2"]  # a copy's vertices are the same


DOT = re.compile(r'digraph "(?:[^"\\]|\\.)*" \{\n(.*)\n\}\n', re.DOTALL)
NAME = r'"((?:[^"\\]|\\.)*)"'


def test_drawing_is_graphviz(graph):
    body = DOT.fullmatch(graph.draw())[1].split("\n")
    nodes = [m[1] for line in body if (m := re.fullmatch(rf"  {NAME} \[label={NAME}(, \w+=\w+)?\];", line))]
    edges = [m.groups() for line in body if (m := re.fullmatch(rf"  {NAME} -> {NAME};", line))]
    assert nodes == names(graph)
    assert edges == [(u.name, v.name) for v in graph for u in graph.inputs(v)]
    assert len(body) == 1 + len(nodes) + len(edges)


def test_drawing_quotes_names():
    model = nn.Sequential()
    model.add_module('an "odd\\name', nn.Linear(2, 2))
    text = sm.capture(model, torch.ones(1, 2)).draw()
    assert '"an \\"odd\\\\name"' in text
    assert all(re.fullmatch(rf'[^"]*({NAME}[^"]*)*', line) for line in text.split("\n"))
