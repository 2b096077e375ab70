"""Parts: the trace of a changed graph, put together from parts, is that of a fresh capture, line by line."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import solvemut as sm
from solvemut.trace import listing
from solvemut.tracing import parts_agree, seen, spliced, trace_module


def built() -> nn.Module:
    net = sm.Builder()
    x = net.input("in", 3)
    a = net.layer(nn.Conv2d(3, 5, 3, padding=1), x, name="a")
    bn = net.layer(nn.BatchNorm2d(5), a, name="bn")
    b = net.layer(nn.Conv2d(3, 7, 3, padding=1), x, name="b")
    cat = net.concat(bn, b, bn, name="cat")
    c = net.layer(nn.Conv2d(17, 17, 1), cat, name="inner.c")
    both = net.apply(torch.relu, c + cat, name="act")
    flat = net.layer(nn.Flatten(), net.layer(nn.AdaptiveAvgPool2d(1), both, name="pool"), name="flat")
    return net.build(net.layer(nn.Linear(17, 4), flat, name="head")).eval()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x))
        z = torch.cat([y, F.max_pool2d(self.b(y) + y, 3, 1, 1)], 1)
        return self.c(z).mean((2, 3))


X = torch.ones(2, 3, 8, 8)


def _call(graph: torch.fx.Graph, path: str) -> torch.fx.Node:
    return next(n for n in graph.nodes if n.target == path)


def insert_layer(model: torch.fx.GraphModule) -> None:
    path, width = ("inner.c", 17) if hasattr(model, "cat") else ("c", 4)
    model.add_submodule("new.layer", nn.Conv2d(width, width, 1))
    node = _call(model.graph, path)
    with model.graph.inserting_after(node):
        new = model.graph.call_module("new.layer", (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def pool_first(model: torch.fx.GraphModule) -> None:
    """All that comes after it has other sizes."""
    model.add_submodule("pool0", nn.MaxPool2d(2))
    node = next(n for n in model.graph.nodes if n.op == "placeholder")
    with model.graph.inserting_after(node):
        new = model.graph.call_module("pool0", (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def add_again(model: torch.fx.GraphModule) -> None:
    node = _call(model.graph, "inner.c" if hasattr(model, "cat") else "b")
    with model.graph.inserting_after(node):
        new = model.graph.call_function(operator.add, (node, node))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


@pytest.mark.parametrize("change", [insert_layer, pool_first, add_again])
@pytest.mark.parametrize("kind", [built, Plain])
def test_spliced_traces_are_those_of_a_fresh_capture(kind, change):
    model = kind() if kind is built else sm.editable(kind().eval(), X)
    trace, nodes = trace_module(model, (X,)), copy.deepcopy(model.graph)
    change(model)
    model.recompile()
    found, fresh = spliced(model, nodes, trace), trace_module(model, (X,))
    assert found is not None
    assert listing(found) == listing(fresh)
    assert [n.name for n in found.nodes] == [n.name for n in fresh.nodes]
    assert list(found.params) == list(fresh.params) and dict(found.params) == dict(fresh.params)
    assert set(found.guards) == set(fresh.guards) and set(found.numbers) == set(fresh.numbers)
    assert found.attributes == fresh.attributes and found.unused == fresh.unused
    assert found.outputs == fresh.outputs and found.returned == fresh.returned and found.inputs == fresh.inputs


def test_layers_called_twice_or_tied_are_no_parts():
    net = sm.Builder()
    x = net.input("in", 4)
    layer = nn.Linear(4, 4)
    model = net.build(net.layer(nn.ReLU(), net.layer(layer, x, name="a"), name="b"))
    model.add_submodule("c", nn.Linear(4, 4))
    model.c.weight = layer.weight
    trace, nodes = trace_module(model, (torch.ones(1, 4),)), copy.deepcopy(model.graph)
    out = next(n for n in model.graph.nodes if n.op == "output")
    with model.graph.inserting_before(out):
        out.args = (model.graph.call_module("c", (out.args[0],)),)
    model.recompile()
    assert spliced(model, nodes, trace) is None  # its weight goes by two names
    out.args[0].target = "a"
    model.recompile()
    assert spliced(model, nodes, trace) is None


def test_parts_agree_only_where_layers_are_what_they_were():
    model = built()
    graph = sm.capture(model, X)
    problem = sm.Problem(graph)
    problem.add(graph["a"].out == 3)
    plan = problem.solve()
    before = seen(model, graph.trace)
    assert not parts_agree(model, before, plan.graph.trace)  # nothing was applied yet
    changed = copy.deepcopy(model)
    plan.apply(changed, verify=None)
    assert parts_agree(changed, before, plan.graph.trace)
    changed.b.stride = (2, 2)
    assert not parts_agree(changed, before, plan.graph.trace)  # a layer that the plan leaves alone
    changed.b.stride = (1, 1)
    changed.bn.register_forward_hook(lambda module, args, out: out[:, :1])
    assert not parts_agree(changed, before, plan.graph.trace)


def test_a_layer_of_ones_own_is_looked_at_whole():
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[1] != 3 else x

    net = sm.Builder()
    a = net.layer(nn.Linear(4, 6), net.input("in", 4), name="a")
    model = net.build(net.layer(nn.Linear(6, 2), net.layer(Doubled(), a, name="own"), name="b"))
    graph = sm.capture(model, torch.ones(1, 4))
    problem = sm.Problem(graph)
    problem.add(graph["a"].out == 5)
    plan = problem.solve()
    before = seen(model, graph.trace)
    plan.apply(model, verify=None)
    assert not parts_agree(model, before, plan.graph.trace)
