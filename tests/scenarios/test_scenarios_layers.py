"""Scenarios of what layers hold: depthwise convolutions, gates, norms, kernels; values and maps, each with its numbers.

See test_scenarios for what `why` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scenarios import N, Net, Scenario, Step, play
from torch import nn
from tracked import feed, linear_to_mean

import solvemut as sm
from solvemut.edits import Selection
from solvemut.values import unit_values


def resize(changes: Any, **options: Any) -> Any:
    return lambda mut: mut.resize(changes, **options)


def with_zeros(changes: Any) -> Any:
    """Resize, with zeros in all that is new."""
    return lambda mut: mut.apply(mut.resize(changes, dry_run=True), init=lambda name, shape: torch.zeros(shape))


# -- depthwise convolutions --------------------------------------------------------------------------------------------


def depthwise(inputs: int, outputs: int) -> Net:
    """in -> dw, a 1x1 kernel for each of the outputs."""
    return Net(x=inputs).conv("dw", "x", outputs, groups=inputs).conv("end", "dw", 1)


def tens_and_twenties(model: nn.Module) -> None:
    model.dw.weight.copy_(torch.tensor([10.0, 20.0] * 4).reshape(8, 1, 1, 1))
    model.dw.bias.copy_(torch.tensor([0.0] * 4 + [1.0] * 4))


def alike(model: nn.Module) -> None:
    for p in model.parameters():
        p.fill_(1)


def some_of_three_times_seven() -> np.ndarray:
    found = np.ones(21)
    found[[1, 12, 13]], found[0] = -10, 10
    return found


def sandwich() -> Net:
    """in4 -> conv3 -> dw 3 to 6 -> end3: an input of a group goes and comes with its outputs."""
    return Net(x=4).conv("conv", "x", 3).conv("dw", "conv", 6, groups=3).conv("end", "dw", 3)


def lows_last(n: int) -> np.ndarray:
    found = np.ones(n)
    found[-2:] = -10
    return found


TENS = {"dw": [10, 20, 10, 20, 11, 21, 11, 21]}

DEPTHWISE: dict[str, Scenario] = {
    "37 of each group the smaller filter goes": Scenario(
        lambda: depthwise(4, 8),
        ["end"],
        [
            Step(resize({}), seen=TENS, changed=[]),
            Step(resize({"dw": -4}), kept={("dw.weight", 0): [1, 3, 5, 7]}, seen={"dw": [20, 20, 21, 21]}),
            Step(
                with_zeros({"dw": +4}),
                kept={("dw.weight", 0): [0, N, 1, N, 2, N, 3, N]},
                seen={"dw": [20, 0, 20, 0, 21, 0, 21, 0]},
                same=True,
            ),
        ],
        "V",
        tens_and_twenties,
    ),
    "37 groups keep equally many, not the same": Scenario(
        lambda: depthwise(3, 21),
        ["end"],
        [
            Step(
                resize({"dw": -9}, values={"dw": some_of_three_times_seven()}),
                kept={("dw.weight", 0): [0, 2, 3, 4, 7, 8, 9, 10, 14, 15, 16, 17]},
            )
        ],
        "of the highest value, 21, the lowest indices; elsewhere all groups must keep the same of their filters, here "
        "[0, 2, 3, 4, 7, 9, 10, 11, 14, 16, 17, 18], of value 21 too",
        alike,
    ),
    "37 what only groups of their own can do": Scenario(
        lambda: depthwise(2, 4),
        ["end"],
        [
            Step(
                resize({"dw": -2}, values={"dw": [9, 1, 1, 9]}),
                kept={("dw.weight", 0): [0, 3], ("dw.bias", 0): [0, 3], ("end.weight", 1): [0, 3]},
            )
        ],
        "V: value 18, where the same filter of each group would leave 10",
    ),
    "37 an input comes with its outputs": Scenario(
        sandwich,
        ["end"],
        [
            Step(
                resize({"conv": +1, "dw": +2}),
                {"conv": 4, "dw": 8},
                kept={("conv.weight", 0): [0, 1, 2, N], ("dw.weight", 0): [0, 1, 2, 3, 4, 5, N, N]},
                same=True,
            ),
            Step(
                resize({"dw": -2}, values={"dw": lows_last(8)}),
                {"conv": 3, "dw": 6},
                kept={("dw.weight", 0): [0, 1, 2, 3, 4, 5]},
                same=True,
            ),
        ],
        "F",
    ),
    "37 more filters for each input": Scenario(
        lambda: depthwise(3, 6),
        ["end"],
        [
            Step(
                resize({"dw": +12}),
                {"dw": 18},
                kept={("dw.weight", 0): [0, 1, N, N, N, N, 2, 3, N, N, N, N, 4, 5, N, N, N, N]},
                same=True,
            ),
            Step(
                resize({"dw": -6}, values={"dw": [1, 1, 1, 1, -1, -1] * 3}),
                {"dw": 12},
                kept={("dw.weight", 0): [*range(4), *range(6, 10), *range(12, 16)]},
                same=True,
            ),
        ],
        "F: its inputs are the model's",
    ),
    "37 one after another": Scenario(
        lambda: Net(x=4).conv("a", "x", 8, groups=4).conv("b", "a", 8, groups=8).conv("end", "b", 1),
        ["end"],
        [
            Step(resize({"a": +2}), refused="the nearest feasible values of a.out are 8 and 12"),
            Step(resize({"a": +2}, on_infeasible="relax"), {"a": 12, "b": 12}, warns=1, same=True),
        ],
        "F",
    ),
    "37 filters for two inputs": Scenario(
        lambda: depthwise(2, 6),
        ["end"],
        [
            Step(resize({"dw": +2}), {"dw": 8}, kept={("dw.weight", 0): [0, 1, 2, N, 3, 4, 5, N]}, same=True),
            Step(
                resize({"dw": +3}, constraints=lambda g: g["dw"].out <= 10),
                refused="dw.out == 11: the nearest feasible values of dw.out are 10",
            ),
            Step(
                resize({"dw": +3}, constraints=lambda g: g["dw"].out <= 10, on_infeasible="relax"),
                {"dw": 10},
                warns=1,
                same=True,
            ),
        ],
        "F: even, and at most 5 for each input",
    ),
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name):
    play(DEPTHWISE[name])


@pytest.mark.xfail(strict=True, reason="behind a layer that can change, a group's input and outputs are one unit")
def test_more_filters_for_each_input_that_a_layer_makes():
    """37: the widths in front stay; now the number of filters for each input is what stays, and conv becomes 9."""
    mut = sandwich().mutator("end")
    plan = mut.resize({"dw": +12})
    assert mut.graph["conv"].nout == 3
    assert plan.indices["dw.weight"][0] == [0, 1, N, N, N, N, 2, 3, N, N, N, N, 4, 5, N, N, N, N]


# -- weights -----------------------------------------------------------------------------------------------------------


def sequence(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


TRAINED = {
    "dense": (lambda: sequence(nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 2)), (64, 3)),
    "conv-bn-conv": (
        lambda: sequence(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)),
        (8, 3, 5, 5),
    ),
    "convs": (lambda: sequence(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 2, 3)), (8, 3, 9, 9)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_new_weights_leave_outputs_and_are_reached_by_the_first_step(name):
    """38: the first layer +2; outputs are equal, and after one step of SGD no weight is 0."""
    make, shape = TRAINED[name]
    model, x = make(), torch.randn(shape)
    before = model.eval()(x)
    plan = sm.Mutator(model, x).resize({"0": +2})
    assert plan.sizes["0"][1] == plan.sizes["0"][0] + 2 and plan.alters == ()
    torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-6)
    assert any((p == 0).any() for p in model.parameters())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    (model(x) - torch.randn(before.shape)).square().mean().backward()
    optimizer.step()
    assert all((p != 0).all() for p in model.parameters() if p.dim() > 1)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def test_each_gate_of_an_lstm_is_mapped_alike():
    """38: of 4 units the first two stay and one comes, in each of 4 gates; then it runs on 10 steps."""
    model = Tagger()
    old, mut = model.rnn.weight_hh_l0.detach().clone(), sm.Mutator(model, torch.ones(2, 5, 3))
    with mut.lazy() as pending:
        mut.resize({"rnn": -2}, values={"rnn": [2, 2, 1, 1]})
        mut.resize({"rnn": +1})
    gates = [0, 1, N, 4, 5, N, 8, 9, N, 12, 13, N]
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert pending.plan.indices[f"rnn.{name}"][0] == gates
    assert pending.plan.indices["rnn.weight_hh_l0"][1] == pending.plan.indices["head.weight"][1] == [0, 1, N]
    new = model.rnn.weight_hh_l0.detach().reshape(4, 3, 3)
    assert torch.equal(new[:, :2, :2], old.reshape(4, 4, 4)[:, :2, :2]) and (new[:, :2, 2] == 0).all()
    assert model(torch.ones(2, 10, 3)).shape == (2, 10, 2) and model.rnn.hidden_size == 3


def test_a_group_of_a_norm_goes():
    """38: of 6 channels in 3 groups the middle group is worth least."""
    model = sequence(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1))
    plan = sm.Mutator(model, torch.ones(1, 3, 4, 4)).resize({"0": -2}, values={"0": [1, 1, -1, -1, 1, 1]})
    assert plan.indices["1.weight"][0] == plan.indices["2.weight"][1] == [0, 1, 4, 5]
    assert (model[1].num_groups, model[1].num_channels) == (2, 4)


def test_what_a_new_channel_of_a_batch_norm_holds():
    """38: scale and variance 1, shift and mean 0, beside the old ones."""
    model = sequence(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    norm = model[1]
    with torch.no_grad():
        for k, t in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            t.copy_(torch.arange(4) + 10 * (k + 1))
    mut = sm.Mutator(model, torch.ones(1, 3, 4, 4))
    with mut.lazy() as pending:
        mut.resize({"0": -2}, values={"0": [1, 5, 1, 5]})
        mut.resize({"0": +1})
    assert pending.plan.indices["1.weight"][0] == [1, 3, N]
    found = [t.tolist() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    assert found == [[11, 13, 1], [21, 23, 0], [31, 33, 0], [41, 43, 1]]


def test_a_flatten_keeps_the_columns_of_each_channel():
    """J: 4 channels of 2x3 pixels; of channels 1 and 3 stay the blocks of 6 columns that are theirs."""
    net = Net(x=3).conv("conv", "x", 4)
    net.space = (2, 3)
    mut = net.apply("flat", torch.flatten, "conv", 1).dense("fc", "flat", 2, 24).mutator("fc")
    plan = mut.resize({"conv": -2}, values={"conv": [1, 2, 1, 2]})
    assert plan.indices["fc.weight"][1] == [*range(6, 12), *range(18, 24)]
    grown = mut.resize({"conv": +1})
    assert grown.indices["fc.weight"][1] == [*range(12), *[N] * 6] and mut.graph["fc"].nin == [18]


# -- kernels -----------------------------------------------------------------------------------------------------------


def test_rows_come_on_both_sides_and_the_column_of_least_weight_goes():
    """G: a kernel 5x4 by (+2, -1), with larger weights at the far end."""
    model = sequence(nn.Conv2d(2, 3, (5, 4), padding=2))
    with torch.no_grad():
        model[0].weight[...] = torch.tensor([1.0, 1.0, 1.0, 3.0])
    plan = sm.Mutator(model, torch.ones(1, 2, 9, 9)).resize_kernel("0", (+2, -1), padding=(3, 2))
    assert plan.indices["0.weight"] == {2: [N, 0, 1, 2, 3, 4, N], 3: [1, 2, 3]}
    assert plan.alters == ("taps of 0 go",) and tuple(model[0].weight.shape) == (3, 2, 7, 3)
    assert (model[0].weight[:, :, [0, 6]] == 0).all()


def test_kernels_of_even_sizes():
    """G: 3x4 by (-1, +2) is 2x6; by (+1, -1) it is 3x5, under "same" padding."""
    model = sequence(nn.Conv2d(2, 3, (3, 4), padding=(1, 1)))
    x = torch.ones(1, 2, 8, 8)
    mut = sm.Mutator(model, x)
    mut.resize_kernel("0", (-1, +2), padding=(1, 2))
    assert model[0].kernel_size == (2, 6) and model(x).shape == (1, 3, 9, 7)
    mut.resize_kernel("0", (+1, -1), padding="same")
    assert model[0].kernel_size == (3, 5) and model(x).shape == (1, 3, 8, 8)


# -- values and maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "added"), [(0, 0), (1, 1)])
def test_the_norm_of_a_depthwise_filter(bias, added):
    """E: 10 and 20 for each of 4 inputs, and |bias| more. Each filter is a unit; over the 4 inputs it is 20 and 40."""
    mut = depthwise(4, 8).mutator("end")
    with torch.no_grad():
        tens_and_twenties(mut.model)
        mut.model.dw.bias.fill_(bias)
        mut.model.end.weight.zero_()
    found = unit_values(sm.values.magnitude(normalize=None), mut.model, mut.graph)[mut.graph["dw"].units]
    assert found.tolist() == [10 + added, 20 + added] * 4
    over_inputs = np.sqrt(((found - added) ** 2).reshape(4, 2).sum(0)) + added
    assert over_inputs.tolist() == [20 + added, 40 + added]


def test_a_running_average():
    """E: 0.3 of the old and 0.7 of the new: from 1 to 5 it is 3.8. A larger decay forgets more slowly."""
    model = linear_to_mean()
    tracker = sm.values.track(model, torch.ones(1, 1, dtype=torch.float64), decay=0.3)
    for x, average in ((1, 1), (5, 3.8)):
        feed(model, x)
        np.testing.assert_allclose(tracker.averages["0"], np.array([1, 2, 3]) * average, rtol=1e-12)


@pytest.mark.parametrize(
    ("first", "then", "both"),
    [
        ([N, 0, 2, N, 3], [0, 1, 3, 4], [N, 0, N, 3]),
        ([1, N, 2, N, 3], [0, 1, 4, N], [1, N, 3, N]),
        ([0, 1, 2, 3], [2, N], [2, N]),
    ],
)
def test_maps_that_wait_compose(first, then, both):
    """F: what is inserted and then removed was never there; what is inserted last is new."""
    for d in (0, 1):
        assert Selection({"w": {d: first}}).then(Selection({"w": {d: then}})) == Selection({"w": {d: both}})
