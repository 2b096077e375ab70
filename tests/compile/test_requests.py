"""What can be asked of a graph, and what is said to a request that makes no sense or cannot be met."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from nets import NETS
from oracles import count_params, outputs, randomise, tensors
from torch import nn

import solvemut as sm
from solvemut.errors import CaptureError, InfeasibleError, RequestError, ValuesError

_GRAPHS: dict[str, Any] = {}


def graph_of(name: str) -> Any:
    if name not in _GRAPHS:
        n = NETS[name]
        _GRAPHS[name] = sm.capture(randomise(n.model()), n.args(), n.kw())
    return _GRAPHS[name]


def sizes(name: str, requests: Any, values: Any = None, **more: Any) -> dict[str, int]:
    graph = graph_of(name)
    problem = sm.Problem(graph)
    problem.maximize(sm.values.random(0) if values is None else values)
    for key, value in more.items():
        getattr(problem, key)(*(value if isinstance(value, tuple) else (value,)))
    problem.add(requests(graph))
    return {k: after for k, (_, after) in problem.solve(time_limit=20).sizes.items()}


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "holds"),
    [
        (lambda g: [g["0"].out == 5], lambda s: s == {"0": 5, "2": 9, "4": 3}),
        (lambda g: [g["0"].out <= 5], lambda s: s == {"0": 5, "2": 9, "4": 3}),
        (lambda g: [g["0"].out <= 5, g["2"].out >= 4], lambda s: s == {"0": 5, "2": 9, "4": 3}),
        (lambda g: [g["0"].out <= 11, g["0"].out % 4 == 0], lambda s: s["0"] == 8),
        (lambda g: [g["0"].out % 5 == 1], lambda s: s["0"] == 11),
        (lambda g: [g["0"].out + g["2"].out <= 9], lambda s: s["0"] + s["2"] == 9),
        (lambda g: [2 * g["0"].out - g["2"].out == 1], lambda s: 2 * s["0"] - s["2"] == 1),
        (lambda g: [g["0"].out == g["2"].out], lambda s: s["0"] == s["2"] == 9),
        (lambda g: [(g["0"].out + g["2"].out) % 7 == 0], lambda s: (s["0"] + s["2"]) == 21),
        (lambda g: [g["0"].out == 3 * g["2"].out + 1, g["0"].out <= 8], lambda s: s["0"] == 7 and s["2"] == 2),
        (lambda g: [g["2"].ins[0] == 4], lambda s: s["0"] == 4),
        (lambda g: [g["0"].out >= g["2"].out + 3], lambda s: s["0"] - s["2"] >= 3),
        (lambda g: (g["0"].out == 5, [g["2"].out == 4]), lambda s: (s["0"], s["2"]) == (5, 4)),
    ],
)
def test_sizes(requests, holds):
    found = sizes("Mlp", requests)
    assert holds(found), found


def test_sizes_of_ins_and_outs_of_coupled_layers():
    found = sizes("Residual", lambda g: [g["b"].out == 5, g["a"].out == 4])
    assert found == {"stem": 5, "a": 4, "b": 5, "head": 2}
    graph = graph_of("Dense")
    assert graph["head"].nin == [21] and graph["head"].ins[0].now == 21
    found = sizes("Dense", lambda g: [g["head"].ins[0] == 15])
    assert 3 + found["a"] + found["b"] + found["c"] == 15
    found = sizes("CatAdded", lambda g: [g["cat"].out == 6, g["cat"].ins[1] == 1])
    assert (found["a"], found["b"], found["c"]) == (5, 1, 6)


def test_containers_and_operations_have_sizes():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2)))
    graph = sm.capture(model, torch.ones(1, 4))
    assert (graph["0"].nout, graph["1"].nin, graph["1"].nout, graph["0.1"].nout) == (8, [8], 2, 8)
    problem = sm.Problem(graph)
    problem.add(graph["0"].out == 3)
    assert problem.solve().sizes["0.0"] == (8, 3)
    assert "0.0" in graph and "nothing" not in graph


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_round_to(k):
    found = sizes("Residual", lambda g: [g.params <= 0.6 * g.params.now], round_to=k)
    assert all(n % k == 0 or n < k or n in (8, 10) for name, n in found.items() if name != "head"), found
    assert found["head"] == 2
    assert found["a"] % k == 0 and (found["stem"] % k == 0 or k == 5)


def test_round_to_of_concatenated_parts():
    found = sizes("Dense", lambda g: [g.params <= 0.7 * g.params.now], round_to=2)
    assert all(found[x] % 2 == 0 for x in "abc")


def test_round_to_leaves_small_layers_whole():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    plan = sm.Mutator(model, torch.ones(1, 4)).prune(params=0.7, round_to=8, dry_run=True)
    assert plan.sizes == {"0": (3, 3), "2": (16, 8), "4": (2, 2)}


# -- keep --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (("a",), {"a": 10}),
        (("stem",), {"stem": 8, "b": 8}),
        (("b", "a"), {"stem": 8, "a": 10, "b": 8}),
        (("[ab]",), {"stem": 8, "a": 10, "b": 8}),
        (("st*",), {"stem": 8, "b": 8}),
    ],
)
def test_keep(keep, kept):
    found = sizes("Residual", lambda g: [g["a"].out + g["stem"].out <= 18], keep=keep)
    assert {k: found[k] for k in kept} == kept


def test_keep_container_and_glob():
    first, second = [nn.Linear(4, 8), nn.Linear(8, 8)], [nn.Linear(8, 8), nn.Linear(8, 2)]
    model = nn.Sequential(nn.Sequential(*first), nn.Sequential(*second))
    for keep, free in (("0", "1.0"), ("0.*", "1.0"), (["0.0", "1.0"], "0.1"), (["?.0"], "0.1")):
        plan = sm.Mutator(copy.deepcopy(model), torch.ones(1, 4)).prune(params=0.8, keep=keep, dry_run=True)
        assert {k for k, (a, b) in plan.sizes.items() if b < a} == {free}


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_several_budgets_at_once():
    graph = graph_of("Residual")
    problem = sm.Problem(graph)
    problem.maximize(sm.values.random(0))
    problem.add(graph.flops <= 0.5 * graph.flops.now, graph.params <= 0.4 * graph.params.now, graph["a"].out >= 4)
    plan = problem.solve()
    assert plan.costs["flops"].after <= 0.5 * graph.flops.now and plan.costs["params"].after <= 0.4 * graph.params.now
    assert plan.costs["params"].budget == 0.4 * graph.params.now and plan.sizes["a"][1] >= 4


@pytest.mark.parametrize("budget", [0.5, 300, 1, 1.0, 10**9, 0.999])
def test_fractions_and_absolute_numbers(budget):
    n = NETS["Residual"]
    model = n.model()
    now = count_params(model)
    plan = sm.prune(model, n.args(), params=budget)
    assert count_params(model) <= (budget * now if budget <= 1 else budget)
    assert budget < 1 or budget == 300 or count_params(model) == now
    assert plan.status == "optimal"


def test_budget_at_exactly_the_smallest_network():
    graph = graph_of("Mlp")
    smallest = 5 + 1 + 1 + 3 + 3
    problem = sm.Problem(graph)
    problem.add(graph.params <= smallest)
    assert {k: b for k, (_, b) in problem.solve().sizes.items()} == {"0": 1, "2": 1, "4": 3}
    problem = sm.Problem(graph)
    problem.add(graph.params <= smallest - 1)
    with pytest.raises(InfeasibleError, match=rf"\b{smallest}\b") as error:
        problem.solve()
    assert list(error.value.smallest.values()) == [smallest]


@pytest.mark.parametrize("name", ["Residual", "Grouped", "FusedQkv", "Dense", "GroupNorm"])
def test_smallest_network_is_said_and_is_feasible(name):
    """A budget far too low: the error names the smallest that would do, and that is met to the unit."""
    n = NETS[name]
    model = n.model()
    before = {k: t.clone() for k, t in tensors(model).items()}
    with pytest.raises(InfeasibleError) as error:
        sm.prune(model, n.args(), params=2)
    assert all(torch.equal(before[k], t) for k, t in tensors(model).items())
    (smallest,) = error.value.smallest.values()
    assert str(int(smallest)) in str(error.value)
    with pytest.raises(InfeasibleError):
        sm.prune(model, n.args(), params=int(smallest) - 1)
    sm.prune(model, n.args(), params=int(smallest))
    assert count_params(model) == smallest
    assert all(s > 0 for t in model.parameters() for s in t.shape)
    outputs(model, n.args())


@pytest.mark.parametrize(
    ("requests", "names"),
    [
        (lambda g: [g["a"].out == 4, g["a"].out >= 6, g["b"].out <= 7], ("a.out == 4", "a.out >= 6")),
        (lambda g: [g["b"].out == 4, g["stem"].out == 5], ("b.out == 4", "stem.out == 5")),
        (lambda g: [g["a"].out == 5, g["a"].out % 4 == 0], ("a.out == 5", "a.out % 4 == 0")),
        (lambda g: [g["a"].out == 11], ("a.out == 11",)),
        (lambda g: [g["a"].out == 0], ("a.out == 0",)),
        (lambda g: [g["head"].out == 1], ("head.out == 1",)),
        (lambda g: [g["a"].out >= 9, g.params <= 200], ("a.out >= 9", "params <= 200")),
    ],
)
def test_conflicts_name_the_smallest_set(requests, names):
    graph = graph_of("Residual")
    problem = sm.Problem(graph)
    problem.add(requests(graph), graph["b"].out + graph["a"].out <= 18)
    with pytest.raises(InfeasibleError) as error:
        problem.solve()
    for name in names:
        assert name in str(error.value)
        assert any(name in c for c in error.value.conflict), error.value.conflict
    assert not any("<= 18" in c for c in error.value.conflict)


def test_conflict_with_what_is_kept():
    graph = graph_of("Residual")
    problem = sm.Problem(graph)
    problem.keep("a")
    problem.add(graph["a"].out <= 9)
    with pytest.raises(InfeasibleError, match=r"a\.out <= 9"):
        problem.solve()


# -- requests that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "near"), [("stemm", "stem"), ("haed", "head"), ("hed", "head"), ("Stem", "stem")])
def test_unknown_vertex_suggests_near_names(name, near):
    graph = graph_of("Residual")
    for ask in (lambda: graph[name], lambda: sm.Problem(graph).keep(name)):
        with pytest.raises(RequestError, match=repr(name)) as error:
            ask()
        assert near in str(error.value)


def test_unknown_vertex_in_values_and_keep_changes_nothing():
    n = NETS["Residual"]
    model = n.model()
    with pytest.raises(RequestError, match="did you mean 'stem'"):
        sm.prune(model, n.args(), params=0.5, values={"stom": 1.0})
    with pytest.raises(RequestError, match="did you mean 'stem'"):
        sm.prune(model, n.args(), params=0.5, keep="stom")
    assert model.stem.weight.shape == (8, 3, 3, 3)


@pytest.mark.parametrize("bad", [0, -1, -0.5, float("nan"), float("inf"), "half", True, [0.5]])
def test_budgets_that_are_none(bad):
    n = NETS["Mlp"]
    with pytest.raises(RequestError, match="params"):
        sm.prune(n.model(), n.args(), params=bad)


@pytest.mark.parametrize("bad", [0, -8, 2.5, "8", True])
def test_round_to_that_is_none(bad):
    with pytest.raises(RequestError, match="round_to"):
        sm.Problem(graph_of("Mlp")).round_to(bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: g["0"].out * 0.5,
        lambda g: g["0"].out <= 4.5,
        lambda g: g["0"].out % 0 == 0,
        lambda g: g["0"].out == "4",
        lambda g: g["0"].out + None,
        lambda g: g.params <= "many",
        lambda g: g.params <= float("nan"),
        lambda g: sm.Problem(g).add(True),
        lambda g: sm.Problem(g).add("params <= 3"),
        lambda g: sm.Problem(g).add(g["0"].out),
        lambda g: bool(g["0"].out == 4),
        lambda g: bool(g["0"].out <= 4),
        lambda g: 2 <= g["0"].out <= 4,
        lambda g: bool(g.params <= 4),
        lambda g: bool(g["0"].out % 2 == 0),
    ],
)
def test_requests_that_make_no_sense(make):
    with pytest.raises(RequestError):
        make(graph_of("Mlp"))


def test_request_of_another_graph_is_refused():
    """A size of another graph means nothing here; it must not be taken for a unit with the same number."""
    other, graph = graph_of("Residual"), graph_of("Mlp")
    problem = sm.Problem(graph)
    with pytest.raises(RequestError):
        problem.add(other["a"].out <= 3)
        problem.solve()
    problem = sm.Problem(graph)
    with pytest.raises(RequestError):
        problem.add(other.params <= 100)
        problem.solve()


# -- values that make no sense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"a": float("nan")}, "a"),
        ({"a": float("inf")}, "a"),
        ({"b": np.r_[np.ones(7), np.nan]}, "b"),
        ({"b": np.ones(7)}, "b has 8 units"),
        ({"b": np.ones((8, 1))}, "b has 8 units"),
        (lambda v: -float("inf"), "stem"),
        (lambda v: np.ones(3), "units"),
        (lambda v: "x", ""),
        (3.0, "values=3.0"),
        ("magnitude", "values='magnitude'"),
        ([1, 2], "values="),
    ],
)
def test_bad_values(values, text):
    problem = sm.Problem(graph_of("Residual"))
    problem.maximize(values)
    with pytest.raises(ValuesError) as error:
        problem.solve()
    assert text in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_name_their_layer(value):
    n = NETS["Residual"]
    model = n.model()
    with torch.no_grad():
        model.a.weight[3, 0, 0, 0] = value
    with pytest.raises(ValuesError, match=r"\ba\b"):
        sm.prune(model, n.args(), params=0.5)
    assert model.a.weight.shape[0] == 10


def test_extreme_but_finite_values_are_solved():
    for scale in (1e-30, 1e30, 1e-300):
        found = sizes("Mlp", lambda g: [g["0"].out == 5], values=lambda v, s=scale: s * np.arange(1, v.nout + 1))
        assert found["0"] == 5
    found = sizes("Mlp", lambda g: [g["0"].out <= 9], values={"0": -np.ones(12), "2": np.r_[1e12, np.full(8, 1e-9)]})
    assert found["0"] == 1 and found["2"] == 9


def test_scale_of_values_makes_no_difference():
    rng = np.random.default_rng(0)
    base = {"0": rng.random(12), "2": rng.random(9)}
    wanted = sizes("Mlp", lambda g: [g.params <= 0.5 * g.params.now], values=base)
    for scale in (1e-20, 1e20):
        scaled = {k: v * scale for k, v in base.items()}
        assert sizes("Mlp", lambda g: [g.params <= 0.5 * g.params.now], values=scaled) == wanted


# -- data and models that fail -----------------------------------------------------------------------------------------


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("metric", [sm.values.taylor, sm.values.activation])
def test_data_that_fails(metric):
    n = NETS["Residual"]
    model = n.model()
    used = iter([n.args()[0]])
    list(used)
    for batches, f, text in [
        ([], loss, "no batch"),
        (used, loss, "no batch"),
        ([n.args()[0] * float("nan")], loss, "loss on batch 1 is nan"),
        ([n.args()[0]], lambda m, b: m(b), "scalar"),
        ([n.args()[0]], lambda m, b: 3.0, "scalar"),
    ]:
        with pytest.raises(ValuesError, match=text):
            sm.prune(model, n.args(), params=0.5, values=metric(batches, f))
    with pytest.raises(RuntimeError):
        sm.prune(model, n.args(), params=0.5, values=metric([torch.ones(1, 7, 8, 8)], loss))
    assert model.a.weight.shape[0] == 10 and all(p.grad is None for p in model.parameters())


class Failing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.how = nn.Linear(4, 8), how

    def forward(self, x):
        y = self.a(x)
        if self.how == "raises":
            raise KeyError("no such thing")
        if self.how == "branches" and y.sum() > 0:
            return y
        if self.how == "numpy":
            return torch.from_numpy(np.tanh(y.detach().numpy()))
        return y


@pytest.mark.parametrize(
    ("how", "args", "text"),
    [
        ("raises", (torch.ones(1, 4),), "no such thing"),
        ("branches", (torch.ones(1, 4),), "branch"),
        ("shape", (torch.ones(1, 5),), "Failing"),
        ("missing", (), "Failing"),
        ("extra", (torch.ones(1, 4), torch.ones(1)), "Failing"),
    ],
)
def test_a_model_whose_forward_fails(how, args, text):
    model = Failing(how).train()
    with pytest.raises(CaptureError, match="could not be captured") as error:
        sm.capture(model, args)
    assert text in str(error.value) and error.value.__cause__ is not None
    assert model.training and type(model.a.in_features) is int


def test_capture_of_what_is_no_module():
    with pytest.raises(RequestError, match=r"torch\.nn\.Module"):
        sm.capture(lambda x: x, torch.ones(1))


def test_capture_of_a_model_with_nothing_to_prune():
    model = nn.Sequential(nn.Linear(4, 2))
    graph = sm.capture(model, torch.ones(1, 4))
    assert graph.frozen_because(graph["0"]) != ""
    with pytest.raises(InfeasibleError, match=r"\b10\b"):
        sm.prune(model, torch.ones(1, 4), params=0.5)
    assert sm.prune(model, torch.ones(1, 4), params=1.0).sizes["0"] == (2, 2)


def test_parameters_that_the_forward_does_not_read_stay():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model.extra = nn.Linear(3, 3)  # type: ignore[assignment]
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    graph = sm.capture(model, torch.ones(1, 4))
    assert graph.params.now == count_params(model)
    assert any("extra.weight" in note for note in graph.notes)
    plan = sm.prune(model, torch.ones(1, 4), params=0.9)
    assert plan.costs["params"].after == count_params(model) and model.extra.weight.shape == (3, 3)


# -- limits and reproducibility ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_plan():
    plans = [sizes("Dense", lambda g: [g.flops <= 0.5 * g.flops.now]) for _ in range(2)]
    assert plans[0] == plans[1]


def test_equal_values_change_as_little_as_possible():
    found = sizes("Mlp", lambda g: [g["0"].out <= 7], values=sm.values.constant())
    assert found == {"0": 7, "2": 9, "4": 3}
    graph = graph_of("Mlp")
    problem = sm.Problem(graph)
    problem.maximize(sm.values.constant(0.0))
    problem.add(graph["0"].out <= 7)
    plan = problem.solve()
    assert plan.sizes == {"0": (12, 7), "2": (9, 9), "4": (3, 3)}
    assert plan.indices["0.weight"][0] == list(range(7))  # ties go to the lowest index


def test_requests_as_a_function_of_the_graph_and_as_a_list():
    n = NETS["Mlp"]
    for constraints in (lambda g: [g["0"].out == 5], lambda g: g["0"].out == 5):
        assert sm.prune(n.model(), n.args(), constraints=constraints).sizes["0"] == (12, 5)
    mut = sm.Mutator(n.model(), n.args())
    assert mut.prune(constraints=[mut.graph["0"].out == 5]).sizes["0"] == (12, 5)


def test_inputs_as_one_tensor_a_tuple_and_keywords():
    model = nn.Linear(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sm.capture(model, torch.ones(1, 4)).params.now == 10
    assert sm.capture(model, (torch.ones(1, 4),)).params.now == 10
    assert sm.capture(model, (), {"input": torch.ones(1, 4)}).params.now == 10
