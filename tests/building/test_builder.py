"""Models written as graphs: they compute what the same model by hand does, and are modules like any other."""

from __future__ import annotations

import copy
import importlib.util
import operator
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same, count_params, masked, outputs, randomise
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError


def two_branches() -> torch.fx.GraphModule:
    """Two inputs, two outputs, a shared layer, a concatenation, arithmetic with vertices and numbers."""
    torch.manual_seed(0)
    net = sm.Builder("Branches")
    x, y = net.input("x", 3), net.input("y", 3)
    conv = net.layer(nn.Conv2d(3, 5, 3, padding=1), x, name="conv")
    bn = net.layer(nn.BatchNorm2d(5), conv, name="block.bn")
    cat = net.concat(conv, bn, name="cat")
    again = net.layer(net["conv"].module, y)
    mixed = 2 * cat - net.concat(net.apply(torch.relu, again), -bn) / 3 + 1
    small = net.layer(nn.Conv2d(10, 4, 1), mixed * cat, name="block.small")
    return net.build(net.layer(nn.Conv2d(4, 2, 1), small, name="head"), net.apply(torch.mean, small, dim=(2, 3)))


class ByHand(nn.Module):
    """The same, written as a forward around the builder's own layers."""

    def __init__(self, m: Any) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        conv, again = self.m.conv(x), self.m.conv(y)
        bn = self.m.block.bn(conv)
        cat = torch.cat([conv, bn], 1)
        mixed = 2 * cat - torch.cat([torch.relu(again), -bn], 1) / 3 + 1
        small = self.m.block.small(mixed * cat)
        return self.m.head(small), small.mean((2, 3))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 6, 6, generator=g), torch.randn(2, 3, 6, 6, generator=g)


@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_the_forward_by_hand_does(training):
    model, args = two_branches().train(training), images()
    other = ByHand(copy.deepcopy(model))
    found, wanted = outputs(model, args), outputs(other, args)
    assert len(found) == 2 and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    gradients = []
    for m in (model, other):
        m.zero_grad()
        sum(t.sum() for t in m(*args)).backward()
        gradients.append([p.grad for p in m.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_it_is_a_graph_module_whose_layers_have_the_names_given():
    model = two_branches()
    assert isinstance(model, torch.fx.GraphModule) and type(model).__name__ == "Branches"
    assert [k for k, _ in model.named_parameters()] == [
        "conv.weight",
        "conv.bias",
        "block.bn.weight",
        "block.bn.bias",
        "block.small.weight",
        "block.small.bias",
        "head.weight",
        "head.bias",
    ]
    again = two_branches()
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again(*images()), model(*images()), strict=True))


def test_one_output_is_bare_and_several_are_a_tuple():
    net = sm.Builder()
    x = net.input("x", 2)
    t = torch.ones(1, 2)
    assert torch.equal(net.build(x + x)(t), 2 * t)
    single, (a, b) = net.build(x), net.build(x, x * 3)(t)
    assert torch.equal(single(t), t) and torch.equal(a, t) and torch.equal(b, 3 * t)


def test_a_graph_without_inputs():
    net = sm.Builder()
    assert torch.equal(net.build(net.apply(torch.ones, 2, 3))(), torch.ones(2, 3))


ARITHMETIC = {
    "add": lambda x, y: x + y + 1,
    "radd": lambda x, y: 1 + x + y,
    "sub": lambda x, y: x - y - 0.5,
    "rsub": lambda x, y: 3 - x - y,
    "mul": lambda x, y: 2 * x * y * 4,
    "div": lambda x, y: x / y / 4,
    "rdiv": lambda x, y: 1 / x + y,
    "neg": lambda x, y: -x + (-(y * 2)),
    "twice": lambda x, y: x * x - x,
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name):
    net = sm.Builder()
    model = net.build(ARITHMETIC[name](net.input("x", 3), net.input("y", 3)))
    x, y = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[4.0, 5.0, -6.0]])
    assert torch.equal(model(x, y), ARITHMETIC[name](x, y))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def test_a_shared_vertex_is_computed_once():
    net = sm.Builder()
    counting = Counting()
    v = net.layer(counting, net.input("x", 2))
    net.build(net.concat(v, v, v * v), v)(torch.ones(1, 2))
    assert counting.calls == 1


def test_what_no_output_needs_is_left_out_and_inputs_stay():
    net = sm.Builder()
    x, y = net.input("x", 2), net.input("y", 2)
    net.layer(nn.Linear(2, 2), y, name="unused")
    model = net.build(net.layer(nn.Linear(2, 2), x, name="used"))
    assert set(model.state_dict()) == {"used.weight", "used.bias"}
    assert model(torch.ones(1, 2), torch.ones(1, 2)).shape == (1, 2)


# -- as a module like any other ----------------------------------------------------------------------------------------


def test_copies_and_pickles_are_equal_and_apart():
    model, args = two_branches(), images()
    wanted, before = outputs(model.eval(), args), copy.deepcopy(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))):
        assert type(other).__name__ == "Branches" and list(other.state_dict()) == list(before)
        assert not other.training and other.code == model.code
        assert all(torch.equal(a, b) for a, b in zip(outputs(other, args), wanted, strict=True))
        with torch.no_grad():
            other.conv.weight.zero_()
        with pytest.raises(RequestError, match="takes 2 inputs"):
            other(args[0])
    assert torch.equal(model.conv.weight, before["conv.weight"])


def test_dtype_and_device_follow():
    model = two_branches().double()
    assert all(t.dtype == torch.float64 for t in model(*(a.double() for a in images())))
    model.to("meta")
    assert all(t.device.type == "meta" for t in model(*(a.double().to("meta") for a in images())))


def test_compiled_and_exported():
    model, args = two_branches().eval(), images()
    wanted = outputs(model, args)
    assert_same(outputs(torch.compile(model, backend="eager", fullgraph=True), args), wanted, 1e-6)
    assert_same(outputs(torch.export.export(model, args).module(), args), wanted, 1e-6)
    assert_same(outputs(torch.fx.symbolic_trace(model), args), wanted, 1e-6)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(p) for p in ("onnx", "onnxscript")),
    reason="needs the packages onnx and onnxscript",
)
def test_onnx():
    program = torch.onnx.export(two_branches().eval(), images(), dynamo=True)
    assert {"Conv", "Concat"} <= {n.op_type for n in program.model_proto.graph.node}


# -- captured and pruned -----------------------------------------------------------------------------------------------


def prunable() -> torch.fx.GraphModule:
    net = sm.Builder()
    x = net.input("image", 3)
    conv = net.layer(nn.Conv2d(3, 12, 3, padding=1), x, name="conv")
    bn = net.layer(nn.BatchNorm2d(12), net.layer(nn.Conv2d(3, 12, 1), x, name="block.side"), name="block.bn")
    mixed = net.concat(net.apply(F.relu, conv + bn, name="act"), bn * 0.5, name="cat")
    mid = net.layer(nn.Conv2d(24, 8, 1), mixed, name="mid")
    flat = net.apply(torch.mean, mid, (2, 3), name="pooled")
    return net.build(net.layer(nn.Linear(8, 2), flat, name="head"))


def test_capture_shows_vertices_under_their_names():
    model = prunable()
    graph = sm.capture(model, torch.ones(1, 3, 6, 6))
    assert [v.name for v in graph] == [
        "image",
        "conv",
        "block.side",
        "block.bn",
        "add",
        "act",
        "mul",
        "cat",
        "mid",
        "pooled",
        "head",
    ]
    assert [v.name for v in graph.inputs("cat")] == ["act", "mul"] and graph["cat"].nin == [12, 12]
    assert graph["block.bn"].layer is model.block.bn and graph["cat"].nout == 24


def test_pruned_it_equals_the_masked_original():
    model = randomise(prunable().double().eval())
    args = (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    before = copy.deepcopy(model)
    plan = sm.prune(model, args, params=0.6)
    assert count_params(model) <= 0.6 * count_params(before) and plan.status == "optimal"
    assert plan.sizes["conv"][1] < 12 or plan.sizes["mid"][1] < 8
    assert_same(outputs(model, args), outputs(masked(before, plan), args))
    assert_same(outputs(pickle.loads(pickle.dumps(model)), args), outputs(model, args))


def test_attributes_of_layers_follow_in_a_graph():
    """Groups of a depthwise convolution and the shape of a norm are attributes that a plan must be able to set."""
    net = sm.Builder()
    wide = net.layer(nn.Conv2d(3, 12, 1), net.input("x", 3), name="wide")
    depth = net.layer(nn.GroupNorm(1, 12), net.layer(nn.Conv2d(12, 12, 3, groups=12), wide, name="depth"), name="norm")
    fc = net.layer(nn.Linear(12, 8), net.apply(torch.mean, depth, (2, 3)), name="fc")
    model = net.build(net.layer(nn.Linear(8, 2), net.layer(nn.LayerNorm(8), fc, name="ln"), name="head"))
    model, x = randomise(model.double().eval()), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = copy.deepcopy(model)
    problem = sm.Problem(sm.capture(model, x))
    problem.add(problem.graph["depth"].out == 7, problem.graph["fc"].out == 5)
    plan = problem.solve()
    plan.apply(model)
    assert (model.depth.groups, model.norm.num_channels, model.ln.normalized_shape) == (7, 7, (5,))
    assert_same(outputs(model, (x,)), outputs(masked(before, plan), (x,)))


# -- refused -----------------------------------------------------------------------------------------------------------


def refused(*says: str):
    return pytest.raises(RequestError, match=".*".join(says))


def test_a_wrong_number_of_inputs_at_a_call_names_both_counts():
    model = two_branches()
    x, y = images()
    for args in ((), (x,), (x, y, x)):
        with refused(r"takes 2 inputs \(x, y\)", f"not {len(args)}"):
            model(*args)
    assert len(model(y=y, x=x)) == 2


def test_names_are_unique():
    net = sm.Builder()
    x = net.input("x", 3)
    net.layer(nn.Linear(3, 3), x, name="a.b")
    for make in (
        lambda name: net.layer(nn.Linear(3, 3), x, name=name),
        lambda name: net.concat(x, name=name),
        lambda name: net.apply(torch.relu, x, name=name),
    ):
        for name in ("x", "a.b", "a", "a.b.c"):
            with refused(repr(name), "unique"):
                make(name)
        for name in ("", "a..b", "a b", "a-b", 3, "graph", "forward", "p.training", "class"):
            with refused("name"):
                make(name)
    with refused("'x'", "taken"):
        net.input("x")
    with refused("identifier"):
        net.input("a.b")
    assert net.input("in").name == "in_"  # Python has `in` for itself


def test_generated_names_step_aside():
    net = sm.Builder()
    x = net.input("add", 3)
    assert [(x + x).name, (x + x).name, net.concat(x).name, net.concat(x).name] == ["add_1", "add_2", "cat", "cat_1"]
    assert net.apply(lambda t: t, x).name == "function" and net.layer(nn.ReLU(), x).name == "relu"
    assert net.apply(torch.Tensor.float, x).name == "float_1"  # every module has a method of that name


def test_one_module_has_one_name():
    net = sm.Builder()
    x, fc = net.input("x", 3), nn.Linear(3, 3)
    a, b = net.layer(fc, x, name="fc"), net.layer(fc, x)
    assert (a.name, b.name) == ("fc", "fc#2")
    with refused("'other'", "'fc'"):
        net.layer(fc, x, name="other")
    model = net.build(a + b)
    assert list(model.state_dict()) == ["fc.weight", "fc.bias"]
    assert torch.equal(model(torch.ones(1, 3)), 2 * fc(torch.ones(1, 3)))


def test_vertices_of_other_builders_and_other_things():
    net, other = sm.Builder(), sm.Builder()
    x, foreign = net.input("x", 3), other.input("y", 3)
    for make in (
        lambda v: net.layer(nn.Linear(3, 3), v),
        lambda v: net.concat(x, v),
        lambda v: net.apply(torch.add, x, v),
        lambda v: net.build(x, v),
        lambda v: x + v,
    ):
        with refused("'y'", "another builder"):
            make(foreign)
    for make in (lambda: net.layer(nn.Linear(3, 3), 5), lambda: net.concat(x, 5), lambda: net.build("x")):
        with refused("no vertex"):
            make()
    for wrong in ("1", None, torch.ones(3), True):
        with refused("neither a vertex"):
            x + wrong
    with refused("parameter or a buffer"):
        net.apply(torch.add, x, torch.ones(3))


def test_what_is_no_layer_and_no_function():
    net = sm.Builder()
    x = net.input("x", 3)
    with refused("net.apply"):
        net.layer(torch.relu, x)
    with refused("net.layer"):
        net.apply(nn.ReLU(), x)
    with refused("function"):
        net.apply(3, x)
    with refused("does not take 2 inputs"):
        net.layer(nn.Linear(3, 3), x, x)
    for empty in (net.concat, net.build):
        with refused("give"):
            empty()
    with refused("at least 1"):
        net.input("z", 0)
    with refused("no vertex 'q'"):
        net["q"]


MISFITS = {
    "in_features": (nn.Linear(4, 2), nn.Linear(3, 5)),
    "in_channels": (nn.Conv2d(4, 2, 1), nn.Conv2d(3, 5, 1)),
    "num_features": (nn.BatchNorm2d(4), nn.Conv2d(3, 5, 1)),
    "num_channels": (nn.GroupNorm(2, 4), nn.Conv2d(3, 5, 1)),
    "normalized_shape": (nn.LayerNorm(4), nn.Linear(3, 5)),
}


@pytest.mark.parametrize("attribute", MISFITS)
def test_layers_that_do_not_fit(attribute):
    net, (layer, before) = sm.Builder(), MISFITS[attribute]
    wide = net.layer(before, net.input("x", 3), name="before")
    with refused("it", f"{attribute}=4", "'before' puts out 5"):
        net.layer(layer, wide, name="it")


def test_widths_go_through_what_keeps_them():
    net = sm.Builder()
    x = net.input("x", 3)
    conv = net.layer(nn.Conv2d(3, 6, 3), x, name="conv")
    for module in (nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Dropout2d(), nn.Upsample(scale_factor=2)):
        assert (net.layer(module, conv).size, net.layer(copy.deepcopy(module), conv).dim) == (6, 1)
    assert net.apply(F.gelu, conv).size == 6 and net.apply(torch.flatten, conv, 1).size is None
    assert net.layer(nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU()), conv).size == 8
    with refused(r"seq\.1", "in_channels=7", "8"):
        net.layer(nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(7, 8, 1)), conv, name="seq")
    with refused("'x'", "3"):
        net.layer(nn.Conv2d(4, 2, 1), x)
    net.layer(nn.Linear(28, 2), conv)  # which works on another dim than the channels
    net.layer(nn.LayerNorm(9), conv)


def test_elementwise_widths():
    net = sm.Builder()
    a, b = (net.layer(nn.Conv2d(3, n, 1), net.input(f"x{n}", 3), name=f"conv{n}") for n in (5, 7))
    one = net.layer(nn.Conv2d(3, 1, 1), net["x5"], name="gate")
    for f in (operator.add, operator.sub, operator.mul, operator.truediv):
        with refused("'conv5' puts out 5", "'conv7' 7"):
            f(a, b)
    assert (a * one).size == 5 and (one * b).size == 7 and (a * 2).size == 5
    assert (a + net.input("unknown")).size == 5


def test_concat_finds_its_dim():
    net = sm.Builder()
    x = net.input("x", 4)
    conv, line = net.layer(nn.Conv2d(4, 5, 1), x, name="conv"), net.layer(nn.Linear(4, 5), x, name="fc")
    assert (net.concat(conv, conv).dim, net.concat(conv, x).size) == (1, 9)
    assert (net.concat(line, line).dim, net.concat(line, x, line).size) == (-1, 14)
    assert net.concat(net.layer(nn.ReLU(), line), line).dim == -1 and net.concat(x, x).dim == 1
    with refused("'conv' in dim 1", "'fc' in dim -1"):
        net.concat(conv, line)
    assert net.concat(conv, line, dim=1).size is None
    assert net.concat(conv, conv, dim=2).size == 5
    with refused("'conv' puts out 5", "'wide' puts out 6"):
        net.concat(conv, net.layer(nn.Conv2d(4, 6, 1), x, name="wide"), dim=2)
    tokens = torch.randn(2, 7, 4)
    assert net.build(net.concat(line, line, x))(tokens).shape == (2, 7, 14)
