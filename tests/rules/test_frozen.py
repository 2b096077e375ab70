"""What freezes a size and what lets it follow: numbers in the forward, attributes, operations without a rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import assert_same, masked, outputs, randomise
from torch import nn

import solvemut as sm
from solvemut.rules import OPS, op

# -- sizes written as numbers ------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, call: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 2)
        self.call = call
        for k, v in attributes.items():
            setattr(self, k, v)

    def forward(self, x):
        return self.b(self.call(self, self.a(x)))


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda s, y: y.view(-1, 12), "written as a number"),
        (lambda s, y: y.view(2, 3, 4).view(2, -1), "written as number"),
        (lambda s, y: torch.cat(y.split([5, 7], 1), 1), "written as a number"),
        (lambda s, y: y + torch.ones(12), "fixed"),
        (lambda s, y: y.flip(1), "flip"),
        (lambda s, y: y[:, list(range(12))], "indexed"),
        (lambda s, y: y.cumsum(1), "cumsum"),
    ],
)
def test_what_cannot_follow_is_frozen_with_its_reason(call, why):
    graph = sm.capture(Net(call), torch.ones(2, 5))
    reason = graph.frozen_because(graph["a"])
    assert why in reason, reason
    assert "test_frozen.py" in reason or why == "fixed"
    assert reason[:40] in str(graph)


@pytest.mark.parametrize(
    ("call", "attributes"),
    [
        (lambda s, y: y.view(-1, s.n), {"n": 12}),
        (lambda s, y: y.view(y.shape[0], y.size(1)), {}),
        (lambda s, y: torch.cat(y.split(s.sizes, 1), 1), {"sizes": (5, 7)}),
        (lambda s, y: torch.cat([y[:, : s.n], y[:, s.n :]], 1), {"n": 5}),
        (lambda s, y: y.view(2, s.h, -1).flatten(1), {"h": 3}),
        (lambda s, y: y.view(2, s.h, s.n // s.h).flatten(1), {"h": 3, "n": 12}),
        (lambda s, y: y + torch.zeros(y.shape[1]), {}),
    ],
)
def test_what_follows_an_attribute_or_a_size_is_free(call, attributes):
    model = Net(call, **attributes)
    graph = sm.capture(model, torch.ones(2, 5))
    assert graph.frozen_because(graph["a"]) == ""
    plan = sm.prune(model, torch.ones(2, 5), constraints=lambda g: [g["a"].out <= 9])
    assert plan.sizes["a"][1] <= 9 and model.a.weight.shape[0] == plan.sizes["a"][1]
    assert model(torch.ones(2, 5)).shape == (2, 2)


# -- unknown operations ------------------------------------------------------------------------------------------------


class Unknown(nn.Module):
    """One branch goes through an operation without a rule, the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.highest = Highest()

    def forward(self, x):
        return self.c(self.highest(self.a(x))) + self.d(self.b(x))


class Highest(nn.Module):
    def forward(self, x):
        return x.cummax(-1)[0]


def test_unknown_operation_freezes_what_it_touches_and_says_so():
    with pytest.warns(UserWarning, match="no rule for cummax"):
        graph = sm.capture(Unknown(), torch.ones(2, 3, 5))
    assert "no rule for cummax" in graph.frozen_because(graph["a"])
    assert graph.frozen_because(graph["b"]) == ""
    assert "no rule for cummax" in str(graph)
    assert any("no rule for cummax" in note for note in graph.notes)


def test_unknown_operation_is_not_pruned_and_the_rest_is():
    model = Unknown().double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    with pytest.warns(UserWarning):
        plan = sm.prune(model, x, constraints=lambda g: [g["b"].out == 3])
    assert plan.sizes["a"] == (6, 6) and plan.sizes["b"] == (6, 3)
    assert model(x).shape == (2, 3, 2)
    assert any("cummax" in n for n in plan.notes)


def test_strict_raises_on_an_unknown_operation():
    with pytest.raises(sm.errors.UnsupportedOpError, match=r"no rule for cummax.*highest"):
        sm.capture(Unknown(), torch.ones(2, 3, 5), strict=True)
    assert sm.capture(nn.Linear(2, 3), torch.ones(1, 2), strict=True).params.now == 9


def test_a_second_rule_for_an_operation_is_an_error():
    with pytest.raises(ValueError, match="two records for linear"):
        op("linear", ints="")(OPS["linear"].labels)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.fft.fft(x).real,
        lambda x: torch.histc(x, 12).expand(2, 12),
        lambda x: torch.linalg.svd(x, full_matrices=False)[2].expand(2, 12),
        lambda x: x.scatter(1, torch.zeros(2, 1, dtype=torch.long), 1.0),
        lambda x: torch.kron(x, torch.ones(1, 1)),
        lambda x: x.unfold(1, 12, 1).squeeze(1),
        lambda x: x.as_strided((2, 12), (12, 1)),
        lambda x: torch.tril(x),
        lambda x: torch.diag_embed(x).sum(1),
        lambda x: x.index_fill(1, torch.tensor([1]), 0.0),
        lambda x: torch.cdist(x, x).sum(1, keepdim=True) + x,
        lambda x: x.renorm(2, 0, 1.0),
        lambda x: x.cummax(1)[0],
        lambda x: x.gather(1, torch.zeros(2, 12, dtype=torch.long)),
        lambda x: torch.searchsorted(x.sort(1)[0], x).float(),
    ],
)
def test_pruned_anyway_means_masked_exactly(call):
    """Whatever the operation: either the layer before it is frozen, or pruning it gives the masked network."""
    model = randomise(Net(lambda s, y: call(y)).double())
    x = torch.randn(2, 5, dtype=torch.float64)
    graph = sm.capture(model, x)
    if graph.frozen_because(graph["a"]):
        return
    problem = sm.Problem(graph)
    problem.add(graph["a"].out <= 7)
    problem.maximize(sm.values.random(0))
    plan = problem.solve()
    wanted = outputs(masked(model, plan), (x,))
    plan.apply(model)
    assert_same(outputs(model, (x,)), wanted)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ],
)
def test_weights_under_a_parametrization_stay_or_follow(wrap):
    """Whatever is done with the wrapped layer, the result is the masked network, and the other layers go."""
    layers = [nn.Linear(5, 8), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)]
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    plan = sm.Mutator(model, x).prune(params=0.9, dry_run=True)
    wanted = outputs(masked(model, plan), (x,))
    plan.apply(model)
    assert plan.costs["params"].after == sum(p.numel() for p in model.parameters()) < plan.costs["params"].before
    assert_same(outputs(model, (x,)), wanted)


# -- shuffles ----------------------------------------------------------------------------------------------------------


def shuffled(by_hand: bool, channels: int) -> nn.Module:
    class ByHand(nn.Module):
        def forward(self, x):
            b, c, *pixels = x.shape
            return x.view(b, 3, c // 3, *pixels).transpose(1, 2).reshape(b, c, *pixels)

    shuffle = ByHand() if by_hand else nn.ChannelShuffle(3)
    layers = [nn.Conv2d(3, channels, 1, groups=3), shuffle, nn.Conv2d(channels, 12, 3, groups=3), nn.Conv2d(12, 2, 1)]
    return randomise(nn.Sequential(*layers).double())


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("channels", "shared_out"), [(18, True), (12, False)])
def test_a_shuffle_between_groups_is_exact_or_refused_in_words(by_hand, channels, shared_out):
    """Where its groups do not divide their channels, what is left may fall to other groups: refused, not misaligned."""
    model, x = shuffled(by_hand, channels), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph = sm.capture(model, x)
    held = refused = 0
    for seed in range(6):
        problem = sm.Problem(graph)
        problem.maximize(sm.values.random(seed))
        problem.add(graph.params <= (0.3 + 0.1 * (seed % 6)) * graph.params.now, graph["0"].out <= channels - 3)
        try:
            plan = problem.solve()
        except sm.errors.SolvemutError as e:
            assert "fall to other groups" in str(e) and not shared_out
            refused += 1
            continue
        after = copy.deepcopy(model)
        plan.apply(after)
        assert_same(outputs(after, (x,)), outputs(masked(model, plan), (x,)))
        held += plan.sizes["0"][1] < channels
    assert held > 0 and (refused > 0) is not shared_out
