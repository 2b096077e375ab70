"""Recurrent layers: pruned, they are the masked network, and the network that torch builds of the weights that stay."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import nets_recurrent  # noqa: F401  (enters its networks in the table)
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from oracles import assert_same, count_flops, count_params, masked, outputs, randomise
from torch import nn

import solvemut as sm

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


pytestmark = pytest.mark.usefixtures("exact")  # what a forward creates is as exact as the rest


class Net(nn.Module):
    def __init__(self, kind: str, hidden: int = 8, **how: Any) -> None:
        super().__init__()
        self.kind, self.how = kind, how
        self.a = nn.Linear(5, 7)
        self.rnn = getattr(nn, kind)(7, hidden, **how)
        self.o = nn.Linear((1 + how.get("bidirectional", False)) * (how.get("proj_size") or hidden), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.rnn(self.a(x))[0])


def parts(rnn: Any) -> list[str]:
    """The suffixes of the parameters of every layer and direction, in the order of the states."""
    return [f"l{k}{d}" for k in range(rnn.num_layers) for d in ("", "_reverse")[: 1 + rnn.bidirectional]]


def hidden_units(plan: Any, rnn: Any, part: str) -> list[int]:
    """The hidden units that a plan keeps in one layer and direction, read off the gates of its input weights."""
    gates, n = GATES[rnn.mode.partition("_")[0]], rnn.hidden_size
    rows = plan.indices.get(f"rnn.weight_ih_{part}", {}).get(0, list(range(gates * n)))
    first = [k for k in rows if k < n]
    assert rows == [g * n + k for g in range(gates) for k in first]
    return first


def rebuilt(before: Net, plan: Any) -> Net:
    """The small network, built by torch, with weights cut by the hidden units of each part."""
    units = {part: hidden_units(plan, before.rnn, part) for part in parts(before.rnn)}
    (n,) = {len(u) for u in units.values()}
    gates, size, how = GATES[before.kind], before.rnn.hidden_size, dict(before.how)
    out = {p: plan.indices.get(f"rnn.weight_hr_{p}", {}).get(0, list(range(before.rnn.proj_size))) for p in units}
    if before.rnn.proj_size:
        (how["proj_size"],) = {len(o) for o in out.values()}
    else:
        out = units
    small = Net(before.kind, n, **how)
    first = plan.indices.get("a.weight", {}).get(0, list(range(7)))
    small.a, small.rnn = nn.Linear(5, len(first)), getattr(nn, before.kind)(len(first), n, **how)
    wide = before.rnn.proj_size or size
    with torch.no_grad():
        small.a.weight.copy_(before.a.weight[first])
        small.a.bias.copy_(before.a.bias[first])
        read = first
        for k in range(before.rnn.num_layers):
            here = [p for p in units if p.removesuffix("_reverse") == f"l{k}"]
            for p in here:
                rows = [g * size + u for g in range(gates) for u in units[p]]
                cuts = {f"weight_ih_{p}": (rows, read), f"weight_hh_{p}": (rows, out[p])}
                cuts |= {f"bias_ih_{p}": (rows,), f"bias_hh_{p}": (rows,), f"weight_hr_{p}": (out[p], units[p])}
                for name, cut in cuts.items():
                    if (w := getattr(before.rnn, name, None)) is not None:
                        getattr(small.rnn, name).copy_(w[cut[0]] if len(cut) == 1 else w[cut[0]][:, cut[1]])
            read = [d * wide + u for d, p in enumerate(here) for u in out[p]]
        small.o.weight.copy_(before.o.weight[:, read])
        small.o.bias.copy_(before.o.bias)
    return small


TABLE = [
    (kind, {"num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias, **more})
    for kind, layers, both, first, bias in itertools.product(GATES, (1, 2), (False, True), (False, True), (True, False))
    for more in ([{}, {"proj_size": 4}] if kind == "LSTM" else [{}])
] + [("RNN", {"nonlinearity": "relu", "num_layers": 3}), ("GRU", {"dropout": 0.3, "num_layers": 2})]


def named(kind: str, how: dict[str, Any]) -> str:
    return kind + "".join(f"-{k}{'' if v is True else v}" for k, v in how.items() if v not in (False, 1) or k == "bias")


@pytest.mark.parametrize(("kind", "how"), TABLE, ids=[named(*row) for row in TABLE])
def test_pruned_is_masked_and_rebuilt(kind, how):
    before = randomise(Net(kind, **how).eval())
    x = torch.randn(3, 2, 5)
    graph = sm.capture(before, x)
    assert (graph.params.now, graph.flops.now) == (count_params(before), count_flops(before, (x,)))
    problem = sm.Problem(graph)
    problem.maximize(sm.values.random(1))
    problem.add(graph.params <= 0.5 * graph.params.now)
    plan = problem.solve()
    after = copy.deepcopy(before)
    sm.Plan.from_json(plan.to_json()).apply(after)
    found = outputs(after, (x,))
    assert_same(found, outputs(masked(before, plan), (x,)))
    small = rebuilt(before, plan)
    assert_same(found, outputs(small.eval(), (x,)))
    assert count_params(after) == plan.costs["params"].after <= 0.5 * count_params(before)
    assert count_flops(after, (x,)) == plan.costs["flops"].after
    for name in ("input_size", "hidden_size", "proj_size"):
        assert getattr(after.rnn, name) == getattr(small.rnn, name)
    assert 0 < after.rnn.hidden_size < 8
    check_flat_weights(after.rnn)
    check_goes_on(after, x)


def check_flat_weights(rnn: Any) -> None:
    assert [id(w) for w in rnn._flat_weights] == [id(getattr(rnn, name)) for name in rnn._flat_weights_names]
    rnn.flatten_parameters()
    x = torch.randn(3, 2, rnn.input_size)
    rnn(x)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\)"):  # torch's own checks
        rnn(torch.randn(3, 2, rnn.input_size + 1))
    with pytest.raises(RuntimeError, match="hidden"):
        wrong = torch.zeros(rnn.num_layers * (1 + rnn.bidirectional), 2, rnn.hidden_size + 1)
        rnn(x, (wrong, wrong) if isinstance(rnn, nn.LSTM) else wrong)


def check_goes_on(model: nn.Module, x: torch.Tensor) -> None:
    """Training goes on."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@settings(max_examples=40)
@given(st.data())
def test_any_sizes(data):
    """Random sizes under random values and a request on the layer itself."""
    kind = data.draw(st.sampled_from(list(GATES)))
    how: dict[str, Any] = {"num_layers": data.draw(st.integers(1, 3)), "bidirectional": data.draw(st.booleans())}
    hidden = data.draw(st.integers(2, 7))
    if kind == "LSTM" and data.draw(st.booleans()):
        how["proj_size"] = data.draw(st.integers(1, hidden - 1))
    torch.manual_seed(0)
    before = randomise(Net(kind, hidden, **how))
    x = torch.randn(data.draw(st.integers(1, 4)), 2, 5)
    problem = sm.Problem(graph := sm.capture(before, x))
    problem.maximize(sm.values.random(data.draw(st.integers(0, 99))))
    wide = how.get("proj_size") or hidden
    n = data.draw(st.integers(1, wide))
    directions = 1 + how["bidirectional"]
    problem.add(graph["rnn"].out == directions * n, graph["a"].out <= data.draw(st.integers(1, 7)))
    plan = problem.solve()
    after = copy.deepcopy(before)
    plan.apply(after)
    assert (after.rnn.proj_size or after.rnn.hidden_size) == n
    assert_same(outputs(after, (x,)), outputs(masked(before, plan), (x,)))
    assert_same(outputs(after, (x,)), outputs(rebuilt(before, plan), (x,)))


# -- whole models, to half of their parameters -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Tagger", "GruAttention", "LstmCellLoop", "EncoderDecoder", "TwoCells"])
@pytest.mark.parametrize("cost", ["params", "flops"])
def test_half_of_a_model(name, cost):
    n = NETS[name]
    before = randomise(n.model())
    after = copy.deepcopy(before)
    plan = sm.prune(after, n.args(), values=sm.values.magnitude(), **{cost: 0.5})
    assert plan.costs[cost].after <= 0.5 * plan.costs[cost].before
    assert plan.costs["params"].after == count_params(after) < count_params(before)
    assert plan.costs["flops"].after == count_flops(after, n.args())
    assert_same(outputs(after, n.args()), outputs(masked(before, plan), n.args()))


def test_a_unit_that_is_zeroed_keeps_a_state_of_zero():
    """What makes the masked network an oracle: without weights and biases a unit never leaves zero."""
    for kind in GATES:
        rnn: Any = randomise(getattr(nn, kind)(4, 6, 2))
        with torch.no_grad():
            for name, w in rnn.named_parameters():
                rows = w.view(GATES[kind], 6, *w.shape[1:])
                rows[:, 2] = 0
                if name == "weight_hh_l0":
                    assert not w[2].any()
        y, states = rnn(torch.randn(9, 2, 4))
        assert not y[..., 2].any() and y[..., 3].all()
        for s in states if isinstance(states, tuple) else (states,):
            assert not s[..., 2].any()


# -- which units are one -----------------------------------------------------------------------------------------------


def pruned(model: Any, args: tuple[Any, ...], seed: int = 0, **request: Any) -> tuple[Any, Any]:
    """The pruned copy, which is the masked network, and the plan."""
    before, after = randomise(model), copy.deepcopy(model)
    plan = sm.prune(after, args, values=sm.values.random(seed), **(request or {"params": 0.6}))
    assert_same(outputs(after, args), outputs(masked(before, plan), args))
    return after, plan


def test_every_layer_and_direction_has_units_of_its_own_and_all_keep_equally_many():
    model = Net("LSTM", 16, num_layers=2, bidirectional=True)
    after, plan = pruned(model, (torch.randn(3, 2, 5),))
    kept = {part: tuple(hidden_units(plan, model.rnn, part)) for part in parts(model.rnn)}
    assert len(set(kept.values())) == 4
    assert {len(k) for k in kept.values()} == {after.rnn.hidden_size} and after.rnn.hidden_size < 16


class Started(nn.Module):
    """An initial state, made by `start` of the batch and a layer's output."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.s, self.rnn, self.o = nn.Linear(5, 8), nn.GRU(5, 8, 2), nn.Linear(8, 3)
        self.start = start

    def forward(self, x):
        return self.o(self.rnn(x, self.start(self, x, self.s(x[0])))[0])


def zeros(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(m.rnn.num_layers, x.shape[1], m.rnn.hidden_size)


def written(m: Any, x: torch.Tensor, s: torch.Tensor, where: Any) -> torch.Tensor:
    h = zeros(m, x)
    h[where] = s
    return h


def added(m: Any, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    h = zeros(m, x)
    h.add_(s)
    return h


def written_through_a_view(m: Any, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    h = zeros(m, x)
    h.view(2, x.shape[1], -1)[1].copy_(s)
    return h


STARTS: dict[str, tuple[Any, bool]] = {
    "zeros": (lambda m, x, s: zeros(m, x), True),
    "zeros of a layer": (lambda m, x, s: torch.zeros_like(s).expand(2, -1, -1).contiguous(), True),
    "new zeros": (lambda m, x, s: x.new_zeros(2, x.size(1), m.rnn.hidden_size).clone(), True),
    "of a layer": (lambda m, x, s: s.expand(2, -1, -1).contiguous(), False),
    "stacked": (lambda m, x, s: torch.stack((s, s.relu())), False),
    "ones": (lambda m, x, s: torch.ones(m.rnn.num_layers, x.shape[1], m.rnn.hidden_size), False),
    "zeros and more": (lambda m, x, s: zeros(m, x) + s, False),
    "written in full": (lambda m, x, s: written(m, x, s, slice(None)), False),
    "written": (lambda m, x, s: written(m, x, s, 1), False),
    "added to": (added, False),
    "written through a view": (written_through_a_view, False),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", STARTS)
def test_only_zeros_leave_every_layer_its_own_units(name):
    """Zeros are alike; any other state says which unit of one layer is which of the next, or all stay."""
    start, alike = STARTS[name]
    model = Started(start)
    x = (torch.randn(4, 2, 5),)
    graph = sm.capture(model, x)
    if graph.frozen_because(graph["rnn"]):
        assert not alike and name in ("written", "written in full", "written through a view")
        return
    after, plan = pruned(model, x, constraints=lambda g: [g["rnn"].out == 4])
    assert after.rnn.hidden_size == 4
    assert (hidden_units(plan, model.rnn, "l0") == hidden_units(plan, model.rnn, "l1")) is not alike


def test_a_state_that_is_an_input_of_the_model_stays():
    class Given(Net):
        def forward(self, x, h):
            return self.o(self.rnn(self.a(x), h)[0])

    model, args = Given("GRU", num_layers=2), (torch.randn(3, 2, 5), torch.randn(2, 2, 8))
    graph = sm.capture(model, args)
    assert "rnn" in graph.frozen_because(graph["rnn"])
    after, plan = pruned(model, args, constraints=lambda g: [g["a"].out == 3])
    assert plan.sizes["rnn"] == (8, 8) and after.rnn.input_size == 3


@pytest.mark.filterwarnings("ignore:no captured call reads")
def test_states_that_are_outputs_of_the_model_stay():
    class Returned(Net):
        def forward(self, x):
            return self.rnn(self.a(x))

    after, plan = pruned(Returned("LSTM"), (torch.randn(3, 2, 5),), constraints=lambda g: [g["a"].out == 3])
    assert plan.sizes["rnn"] == (8, 8) and (after.rnn.input_size, after.rnn.hidden_size) == (3, 8)


def test_steps_and_batch_stay():
    """A dim of channels that becomes the steps of a layer is not one of units."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn, self.o = nn.Conv1d(3, 6, 1), nn.GRU(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.o(self.rnn(self.a(x).permute(1, 0, 2))[0])

    graph = sm.capture(Steps(), torch.randn(2, 3, 4))
    assert "gru works along it" in graph.frozen_because(graph["a"])
    assert graph.frozen_because(graph["rnn"]) == ""


def test_one_layer_called_twice():
    class Twice(Net):
        def forward(self, x):
            y = self.a(x)
            return self.o(self.rnn(y)[0] + self.rnn(y.flip(0))[0])

    after, _ = pruned(Twice("LSTM", bidirectional=True), (torch.randn(3, 2, 5),))
    assert after.rnn.hidden_size < 8


def test_a_width_that_the_forward_takes_from_the_layer_follows():
    class Widths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.cell = nn.LSTM(5, 8, bidirectional=True, batch_first=True), nn.LSTMCell(16, 6)
            self.o = nn.Linear(6, 2)

        def forward(self, x):
            y, _ = self.rnn(x)
            y = y.reshape(x.shape[0], x.shape[1], 2, self.rnn.hidden_size).flatten(2)
            h = c = y.new_zeros(y.shape[0], self.cell.hidden_size)
            for k in range(y.shape[1]):
                h, c = self.cell(y[:, k].view(-1, self.cell.input_size), (h, c))
            return self.o(h.view(-1, self.cell.hidden_size))

    request = {"constraints": lambda g: [g["rnn"].out == 10, g["cell"].out == 4]}
    after, _ = pruned(Widths(), (torch.randn(2, 3, 5),), **request)
    assert (after.rnn.hidden_size, after.cell.input_size, after.cell.hidden_size) == (5, 10, 4)


# -- packed sequences --------------------------------------------------------------------------------------------------


class Packs(Net):
    """Packs where it is told how long the sequences are."""

    def forward(self, x, lengths=None):
        y = self.a(x)
        if lengths is None:
            return self.o(self.rnn(y)[0])
        packed = nn.utils.rnn.pack_padded_sequence(y, lengths)
        return self.o(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0])


def test_packed_sequences_cannot_be_captured_and_say_so():
    with pytest.raises(sm.errors.CaptureError, match="could not be captured"):
        sm.capture(Packs("LSTM"), (torch.randn(4, 2, 5), torch.tensor([4, 2])))


@pytest.mark.parametrize("kind", GATES)
def test_a_model_that_is_pruned_by_a_plain_call_packs_as_before(kind):
    before = randomise(Packs(kind, bidirectional=True))
    x, lengths = torch.randn(4, 2, 5), torch.tensor([4, 2])
    after = copy.deepcopy(before)
    plan = sm.prune(after, x, params=0.5)
    assert_same(outputs(after, (x, lengths)), outputs(masked(before, plan), (x, lengths)))
    assert after.rnn.hidden_size < 8


# -- whose vertices, which words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 5)])
def test_the_size_of_a_recurrent_layer_is_that_of_its_output(shape):
    model = Net("LSTM", 8, num_layers=2, bidirectional=True)
    graph = sm.capture(model, torch.randn(shape))
    assert (graph["rnn"].nin, graph["rnn"].nout, graph["rnn"].dim) == ([7], 16, len(shape) - 1)
    problem = sm.Problem(graph)
    problem.add(graph["rnn"].out == 6)
    assert problem.solve().sizes["rnn"] == (16, 6)
    problem.add(graph["rnn"].out == 7)
    with pytest.raises(sm.errors.InfeasibleError):
        problem.solve()


def test_nothing_is_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("Tagger", "GruAttention", "TwoCells", "ProjectedLstm"):
            n = NETS[name]
            assert sm.capture(n.model(), n.args(), strict=True).coupling.facts.unsupported == []
