"""A graph whose model was changed elsewhere says so; problems, graphs and metrics pickle; near names are suggested."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_shapes  # noqa: F401
import numpy as np
import pytest
import torch
from nets import NETS
from oracles import randomise, tensors
from torch import nn
from torch.nn.functional import cross_entropy

import solvemut as sm
from solvemut.errors import PlanMismatchError, RequestError

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, where it pickles a tree
X = torch.ones(1, 4)
SOME = ["Mlp", "Residual", "Dense", "Grouped", "GroupNorm", "FusedQkv"]  # of the table of networks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


# -- stale graphs ------------------------------------------------------------------------------------------------------


def replaced(model: nn.Sequential) -> None:
    model[0], model[1], model[3] = nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Linear(12, 8)


def renamed(model: nn.Sequential) -> None:
    del model[1]


def grown(model: nn.Sequential) -> None:
    model[0].bias = nn.Parameter(torch.ones(20))


STALE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pruned by another mutator": (
        lambda m: sm.prune(m, X, constraints=lambda g: g["0"].out == 5),
        r"0\.weight has shape \(5, 4\), captured was \(16, 4\)",
    ),
    "a layer replaced": (replaced, r"0\.weight has shape \(12, 4\), captured was \(16, 4\)"),
    "a layer removed": (renamed, r"(is gone|has shape)"),
    "a parameter replaced": (grown, r"0\.bias has shape \(20,\), captured was \(16,\)"),
}


@pytest.mark.parametrize("how", STALE)
def test_a_stale_graph_says_what_changed(how):
    change, says = STALE[how]
    model = network()
    mut = sm.Mutator(model, X)
    problem = sm.Problem(mut.graph)
    change(model)
    before = {k: t.clone() for k, t in tensors(model).items()}
    for ask in (
        lambda: problem.solve(),
        lambda: mut.prune(params=0.5),
        lambda: mut.prune(values={"0": 1.0}, dry_run=True),
    ):
        with pytest.raises(RequestError, match=f"stale.*{says}.*capture it again"):
            ask()
    assert all(torch.equal(before[k], t) for k, t in tensors(model).items())


def test_a_plan_for_the_graph_of_before_says_that_the_graph_is_stale():
    model = network()
    mut = sm.Mutator(model, X)
    plan = mut.prune(params=0.5, dry_run=True)
    replaced(model)
    with pytest.raises(RequestError, match=r"stale.*0\.weight has shape \(12, 4\)"):
        mut.apply(plan)
    with pytest.raises(PlanMismatchError):  # where nothing but the plan is wrong
        sm.Mutator(model, X).apply(plan)


def test_a_plan_applied_by_hand_makes_the_mutators_graph_stale_until_it_is_told():
    model = network()
    mut = sm.Mutator(model, X)
    plan = mut.prune(params=0.5, dry_run=True)
    plan.apply(model)
    with pytest.raises(RequestError, match="stale"):
        mut.prune(params=0.5)
    other = sm.Mutator(model, X).prune(params=0.8)
    assert other.status == "optimal"


def test_a_mutator_that_goes_on_is_never_stale():
    mut = sm.Mutator(network(), X)
    for _ in range(3):
        mut.prune(params=0.8)
    mut.model.half().float()
    mut.model.train()
    mut.prune(params=0.9)
    copied = mut.copy()
    copied.prune(params=0.8)
    mut.prune(params=0.9)


@pytest.mark.parametrize("name", SOME)
def test_no_fresh_graph_is_taken_for_a_stale_one(name):
    from solvemut.problem import check_fresh

    n = NETS[name]
    check_fresh(sm.capture(n.model(), n.args(), n.kw()))


# -- pickling ----------------------------------------------------------------------------------------------------------


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def by_name(vertex: Any) -> float:
    return float(len(vertex.name))


BATCHES = [torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(-2, 1, 12).reshape(3, 4)]
METRICS: dict[str, Any] = {
    "none": None,
    "magnitude": sm.values.magnitude(p=1, normalize="max"),
    "bn_scale": sm.values.bn_scale("mean"),
    "random": sm.values.random(3),
    "constant": sm.values.constant(2.0),
    "taylor": sm.values.taylor(BATCHES, loss),
    "pairs": sm.values.taylor([(b, torch.tensor([0, 1, 0])) for b in BATCHES], cross_entropy),
    "activation": sm.values.activation(BATCHES, loss, "l2"),
    "dict": {"0": np.arange(16.0)},
    "function": by_name,
    "mine": sm.values.Metric("mine", sm.values.random(7).score),
}


def clones(thing: Any) -> list[Any]:
    return [pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)]


@pytest.mark.parametrize("kind", METRICS)
def test_problems_pickle_with_their_metric(kind):
    graph = sm.capture(network(), X)
    str(graph)  # fills what is cached
    problem = sm.Problem(graph)
    problem.maximize(METRICS[kind])
    problem.add(graph.params <= 0.6 * graph.params.now, graph["0"].out % 2 == 0, graph["3"].out <= graph["0"].out)
    problem.keep("5")
    problem.round_to(2)
    wanted = problem.solve(gap=0)
    for other in clones(problem):
        found = other.solve(gap=0)
        assert (found.sizes, found.indices, found.objective) == (wanted.sizes, wanted.indices, wanted.objective)
        assert found.costs == wanted.costs and found.values == wanted.values
        other.add(other.graph["0"].out <= 4)
        assert other.solve().sizes["0"][1] <= 4
        found.apply(other.graph.model)
        with pytest.raises(RequestError, match="stale"):
            other.solve()
    assert problem.solve(gap=0).sizes == wanted.sizes


@pytest.mark.parametrize("kind", [k for k, v in METRICS.items() if isinstance(v, sm.values.Metric)])
def test_metrics_pickle(kind):
    metric, graph = METRICS[kind], sm.capture(network(), X)
    for other in clones(metric):
        assert (other.name, other.normalize) == (metric.name, metric.normalize)
        assert np.array_equal(other.score(graph.model, graph), metric.score(graph.model, graph))


@pytest.mark.parametrize("name", SOME)
def test_graphs_and_plans_pickle(name):
    n = NETS[name]
    graph = sm.capture(randomise(n.model()), n.args(), n.kw())
    wanted = sm.Problem(graph).solve()
    for other in clones(graph):
        assert str(other) == str(graph) and other.params.now == graph.params.now
        assert [v.name for v in other.vertices] == [v.name for v in graph.vertices]
        problem = sm.Problem(other)
        problem.add(other.params <= 0.7 * other.params.now)
        plan = problem.solve()
        again = clones(plan)[0]
        assert again == plan and str(again) == str(plan)
        again.apply(other.model)
    assert sm.Problem(graph).solve().sizes == wanted.sizes


# -- near names --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.bn1(self.conv1(x)))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Sequential(Block()), nn.Sequential(Block())
        self.Classifier = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.Classifier(self.layer2(self.layer1(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def deep() -> sm.Mutator:
    return sm.Mutator(Deep(), torch.ones(1, 3, 6, 6))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("conv1", ["layer1.0.conv1", "layer2.0.conv1"]),
        ("Conv1", ["layer1.0.conv1"]),
        ("0.conv2", ["layer1.0.conv2", "layer2.0.conv2"]),
        ("layer1.conv1", ["layer1.0.conv1"]),
        ("layer1.0.cnv1", ["layer1.0.conv1"]),
        ("LAYER2.0.BN1", ["layer2.0.bn1"]),
        ("classifier", ["Classifier"]),
        ("head.clasifier", ["Classifier"]),
        ("model.layer1.0.conv1", ["layer1.0.conv1"]),
        ("layer3", ["layer1", "layer2"]),
    ],
)
def test_near_names(deep, name, meant):
    for ask in (
        lambda: deep.graph[name],
        lambda: deep.prune(params=0.9, keep=name),
        lambda: deep.prune(keep=["layer1", name]),
        lambda: deep.prune(params=0.9, values={name: 1.0}),
        lambda: sm.Problem(deep.graph).keep(name),
        lambda: deep.prune(constraints=lambda g: g[name].out <= 3),
    ):
        with pytest.raises(RequestError, match="did you mean") as error:
            ask()
        told = str(error.value).partition("did you mean")[2]
        assert all(repr(m) in told for m in meant), told


@pytest.mark.parametrize("name", ["zzzzzz", "." * 50, "a" * 10_000, "[", "layer1.*.conv9", "\n"])
def test_names_that_are_like_none(deep, name):
    with pytest.raises(RequestError) as error:
        deep.graph[name]
    assert len(str(error.value)) < 400
