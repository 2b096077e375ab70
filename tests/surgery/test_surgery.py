"""Layers and edges that come and go, with the sizes and columns that must come out."""

from __future__ import annotations

import copy

import pytest
import torch
from scenarios import Net, feeds, runs
from torch import nn
from training import assert_untouched, snapshot

import solvemut as sm
from solvemut.errors import InfeasibleError, RequestError

# -- remove ------------------------------------------------------------------------------------------------------------


def test_what_dangles_is_not_resized():
    mut = Net(x=3).dense("A", "x", 5).dense("C", "A", 6).dense("D", "A", 2).mutator("D", "C")
    with pytest.raises(RequestError, match="output"):
        mut.remove("C", reconnect="none")
    assert mut.graph["A"].nout == 5


# -- connect -----------------------------------------------------------------------------------------------------------


def branches() -> Net:
    net = Net(x=3).dense("A", "x", 5).dense("B", "x", 4).dense("C", "x", 2).cat("cat", "A", "B")
    return net.dense("L", "cat", 2).dense("M", "C", 1)


@pytest.mark.parametrize("position", [0, 1, 2, None, -1])
def test_a_new_input_of_a_concat_leaves_outputs_as_they_were(position):
    mut = branches().mutator("L", "M")
    x = torch.randn(5, 3)
    before, old = mut.model(x), mut.model.L.weight.clone()
    plan = mut.connect("C", "cat", position)
    k = 2 if position in (None, -1) else position
    names = ["A", "B"]
    names.insert(k, "C")
    assert feeds(mut, "cat") == names and plan.alters == ()
    at = [0, 5, 9][k]
    assert plan.indices["L.weight"][1] == [*range(at), -1, -1, *range(at, 9)]
    assert torch.equal(mut.model.L.weight[:, [*range(at), *range(at + 2, 11)]], old)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mut.model(x), before, strict=True))
    runs(mut)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_was_connected_can_be_disconnected(position):
    mut = branches().mutator("L", "M")
    before = {k: v.clone() for k, v in mut.model.state_dict().items()}
    mut.connect("C", "cat", position)
    mut.disconnect("C", "cat")
    after = mut.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())
    runs(mut)


def test_new_columns_grow_what_is_added_to_the_concat():
    net = Net(x=3).dense("A", "x", 3).dense("B", "x", 2).dense("V", "x", 5).dense("C", "x", 2).cat("cat", "A", "B")
    net.at["sum"] = net.at["cat"] + net.at["V"]
    mut = net.dense("L", "sum", 2).dense("M", "C", 1).mutator("L", "M")
    x = torch.randn(4, 3)
    before = mut.model(x)
    plan = mut.connect("C", "cat", 1)
    assert plan.sizes["V"] == (5, 7) and plan.indices["V.weight"][0] == [0, 1, 2, -1, -1, 3, 4]
    assert plan.alters == () and torch.allclose(mut.model(x)[0], before[0], atol=1e-6)
    runs(mut)


@pytest.mark.parametrize("merge", ["concat", "add"])
def test_a_layer_gets_a_concat_or_an_add_in_front(merge):
    mut = branches().mutator("L", "M")
    x = torch.randn(4, 3)
    before = mut.model(x)[1]
    plan = mut.connect("A", "M", merge=merge)
    runs(mut)
    if merge == "concat":
        assert plan.alters == () and torch.allclose(mut.model(x)[1], before, atol=1e-6) and mut.graph["M"].nin == [7]
    else:
        assert mut.graph["A"].nout == mut.graph["C"].nout == mut.graph["M"].nin[0]


def test_inputs_stay_in_front_of_what_comes():
    net = Net(x=3, y=2).dense("A", "x", 4).dense("B", "y", 4)
    net.at["sum"] = net.at["A"] + net.at["B"]
    mut = net.dense("L", "sum", 2).mutator("L")
    mut.insert("x", nn.Linear(3, 3), "new")
    mut.connect("x", "A")
    assert [n.op for n in mut.model.graph.nodes][:3] == ["placeholder", "placeholder", "call_module"]
    runs(mut)


# -- disconnect --------------------------------------------------------------------------------------------------------


def test_surviving_branches_keep_their_columns():
    net = Net(x=3).dense("A", "x", 3).dense("B", "x", 4).dense("C", "x", 5).cat("cat", "A", "B", "C")
    mut = net.dense("L", "cat", 2).mutator("L")
    x, old = torch.randn(4, 3), mut.model.L.weight.clone()
    mut.disconnect("B", "cat")
    a, c = mut.model.A(x), mut.model.C(x)
    wanted = a @ old[:, :3].T + c @ old[:, 7:].T + mut.model.L.bias
    assert torch.allclose(mut.model(x), wanted, atol=1e-6)
    runs(mut)


# -- insert ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("consumers", "left"), [(None, []), (["E", "D"], ["C"]), ("C", ["E", "D"])])
def test_a_layer_for_all_consumers_or_some(consumers, left):
    net = Net(x=3).dense("A", "x", 4).dense("E", "A", 5).dense("C", "A", 6).dense("D", "A", 7)
    mut = net.mutator("E", "C", "D")
    x = torch.randn(4, 3)
    before = mut.model(x)
    mut.insert("A", sm.identity_init(nn.Linear(4, 4)), "new", consumers)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mut.model(x), before, strict=True))
    assert [v.name for v in mut.graph.outputs("A") if v.name != "new"] == left
    runs(mut)


def test_a_chain_before_a_vertex_trains_with_the_rest():
    model = Net(x=3).dense("A", "x", 4).dense("E", "A", 5)
    mut = model.mutator("E")
    mut.optimizer = torch.optim.Adam(mut.model.parameters(), lr=1e-2)
    mut.model(torch.randn(4, 3)).sum().backward()
    mut.optimizer.step()
    mut.insert(before="E", module=[nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)], name=["p", "act", "q"])
    assert feeds(mut, "E") == ["q"] and {"p.weight", "q.bias"} <= set(mut.model.state_dict())
    runs(mut)
    old = mut.model.p.weight.detach().clone()
    mut.optimizer.zero_grad()
    mut.model(torch.randn(4, 3)).sum().backward()
    mut.optimizer.step()
    assert not torch.equal(mut.model.p.weight, old)
    mut.remove("p")
    held = {id(p) for g in mut.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in mut.model.parameters()}


def test_a_layer_of_another_size_is_aligned():
    mut = Net(x=3).dense("A", "x", 4).dense("E", "A", 5).mutator("E")
    mut.insert("A", nn.Linear(6, 7), "new")
    assert mut.graph["A"].nout == mut.graph["new"].nin[0] and mut.graph["new"].nout == mut.graph["E"].nin[0]
    runs(mut)


def test_images_and_their_norms():
    net = sm.Builder()
    x = net.input("x", 3)
    a = net.layer(nn.Conv2d(3, 5, 3, padding=1), x, name="a")
    cat = net.concat(a, net.layer(nn.Conv2d(3, 7, 5, padding=2), x, name="named"), name="cat")
    total = cat + net.layer(nn.Conv2d(12, 12, 1), cat, name="residual")
    model = net.build(net.layer(nn.Conv2d(12, 2, 1), total, name="head")).eval()
    other, image = copy.deepcopy(model), torch.randn(2, 3, 7, 7)
    mut = sm.Mutator(model, image)
    y = model(image)
    mut.insert("residual", sm.identity_init(nn.BatchNorm2d(12)).eval(), "bn")
    assert torch.allclose(model(image), y, atol=1e-5)
    mut.resize({"add": -3})
    assert mut.graph["add"].nout == mut.graph["residual"].nout == mut.graph["bn"].nout == 9
    assert mut.graph["a"].nout + mut.graph["named"].nout == 9
    mut.remove("bn")
    mut.remove("a", reconnect="none")
    mut.prune(params=0.7)
    assert model(image).shape == (2, 2, 7, 7) and torch.equal(other(image), y)
    fresh = sm.capture(model, image)
    assert [(v.name, v.nin, v.nout) for v in fresh] == [(v.name, v.nin, v.nout) for v in mut.graph]


# -- what cannot be ----------------------------------------------------------------------------------------------------


def fork() -> Net:
    """The branches of a fork are joined and added back to where they began: their size cannot but grow."""
    net = Net(x=3).dense("A", "x", 4).dense("B", "A", 2).dense("C", "A", 2).cat("cat", "B", "C")
    net.at["sum"] = net.at["cat"] + net.at["A"]
    return net.dense("L", "sum", 2)


IMPOSSIBLE = {
    "a size cycle": (lambda m: (m.remove("B"),), "port"),
    "no such vertex": (lambda m: m.remove("nowhere"), "nowhere"),
    "an input of the model": (lambda m: m.remove("x"), "input"),
    "a circle": (lambda m: m.connect("add", "cat"), "circle"),
    "not an input": (lambda m: m.disconnect("L", "cat"), "0 times"),
    "no add": (lambda m: m.disconnect("A", "B"), "no add or concat"),
    "not a consumer": (lambda m: m.insert("A", nn.ReLU(), "r", consumers=["L"]), "does not read"),
    "a name that is taken": (lambda m: m.insert("A", nn.ReLU(), "B"), "taken"),
    "no module": (lambda m: m.insert("A", 3), "torch.nn.Module"),
    "neither after nor before": (lambda m: m.insert(module=nn.ReLU()), "either"),
    "an unknown option": (lambda m: m.remove("B", speed=3), "speed"),
    "a position": (lambda m: m.connect("x", "cat", 7), "position=7"),
    "a layer that breaks the forward": (lambda m: m.insert("A", nn.Conv2d(4, 4, 1), "r"), "does not run"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_changes_nothing(what):
    call, told = IMPOSSIBLE[what]
    mut = fork().mutator("L")
    mut.optimizer = torch.optim.Adam(mut.model.parameters())
    mut.model(torch.ones(2, 3)).sum().backward()
    mut.optimizer.step()
    before, graph, code = snapshot(mut.model, mut.optimizer), mut.graph, mut.model.code
    with pytest.raises((RequestError, InfeasibleError, TypeError)) as e:
        call(mut)
    assert told in str(e.value)
    assert_untouched(before, snapshot(mut.model, mut.optimizer))
    assert mut.graph is graph and mut.model.code == code and not mut.history
    runs(mut)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, **o: m.remove("D", **o),
        lambda m, **o: m.connect("A", "C", merge="add", **o),
        lambda m, **o: m.insert("A", nn.Linear(4, 4), "new", **o),
    ],
)
def test_a_dry_run_changes_nothing(call):
    mut = Net(x=3).dense("A", "x", 4).dense("C", "A", 5).dense("D", "C", 6).dense("E", "D", 2).mutator("E")
    before, code = snapshot(mut.model), mut.model.code
    plan = call(mut, dry_run=True)
    assert plan.edits and plan.alters
    assert_untouched(before, snapshot(mut.model))
    assert mut.model.code == code and not mut.history


def test_a_forward_in_code_says_what_to_do():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(RequestError, match="editable"):
        sm.Mutator(model, torch.ones(1, 3)).connect("0", "1")


def test_it_works_on_a_model_made_editable():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    model = sm.editable(Plain())
    mut = sm.Mutator(model, torch.ones(2, 3))
    x = torch.randn(4, 3)
    y = model(x)
    plan = mut.connect("x", "cat", 1)
    assert plan.alters == () and torch.allclose(model(x), y, atol=1e-6) and model.c.in_features == 11
    mut.disconnect("b", "cat")
    runs(mut)


@pytest.mark.parametrize(
    "position, terms", [(None, "a b c"), (0, "c a b"), (1, "a c b"), (2, "a b c"), (-1, "a b c"), (-2, "a c b")]
)
def test_a_term_comes_at_its_position(position, terms):
    net = sm.Builder()
    x = net.input("x", 3)
    a, b, c = (net.layer(nn.Linear(3, n), x, name=name) for name, n in (("a", 5), ("b", 5), ("c", 3)))
    model = net.build(net.layer(nn.Linear(5, 2), a + b, name="head"), net.layer(nn.Linear(3, 2), c, name="other"))
    mut = sm.Mutator(model, torch.ones(1, 3))
    mut.connect("c", "add", position)

    def read(node):
        if node.op == "call_module" and str(node.target).startswith("add"):
            return [name for n in node.args for name in read(n)]
        return [str(node.target)]

    (sum_,) = next(n for n in model.graph.nodes if n.target == "head").args
    assert read(sum_) == terms.split()
    assert mut.graph["c"].nout == 5 and model(torch.ones(1, 3))[0].shape == (1, 2)


def test_positions_of_terms_are_checked():
    net = sm.Builder()
    x = net.input("x", 3)
    a, b, c = (net.layer(nn.Linear(3, 5), x, name=name) for name in "abc")
    model = net.build(net.layer(nn.Linear(5, 2), a * b, name="head"), net.layer(nn.Linear(5, 2), c, name="other"))
    mut = sm.Mutator(model, torch.ones(1, 3))
    with pytest.raises(RequestError, match="position=3: mul has 2 inputs"):
        mut.connect("c", "mul", 3)
    with pytest.raises(RequestError, match="position=0: mul is no sum"):
        mut.connect("c", "mul", 0)
    mut.connect("c", "mul")


def test_a_dry_run_is_to_look_at():
    net = sm.Builder()
    a = net.layer(nn.Linear(3, 5), net.input("in", 3), name="a")
    model = net.build(net.layer(nn.Linear(5, 2), net.layer(nn.Linear(5, 5), a, name="b"), name="head"))
    mut = sm.Mutator(model, torch.ones(1, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = mut.remove("b", dry_run=True)
    assert "- remove b" in str(plan) and mut.graph["in"].nout == 3
    with pytest.raises(sm.errors.PlanMismatchError, match=r"tells of a change of structure .remove b.*without dry_run"):
        mut.apply(plan)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_fixed_size_says_why():
    net = sm.Builder()
    model = net.build(net.layer(nn.Linear(3, 2), net.input("x", 3), name="head"))
    why = r"nearest feasible values of head\.out are 2, which stays: model output"
    with pytest.raises(InfeasibleError, match=why):
        sm.Mutator(model, torch.ones(1, 3)).resize({"head": +1})
