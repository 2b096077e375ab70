"""Kernel sizes: outputs stay where padding follows, the right taps stay, and all that hangs on a kernel follows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import count_flops, count_params, randomise
from torch import nn
from training import assert_untouched, snapshot, step

import solvemut as sm
from solvemut.edits import Kernel, SetKernel
from solvemut.errors import PlanMismatchError, RequestError, SolvemutError

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def whole_numbers(model: nn.Module, seed: int = 0) -> nn.Module:
    """Small ints in double precision: sums come out exactly, in whatever order."""
    g = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(1, 9, p.shape, generator=g) * (torch.randint(0, 2, p.shape, generator=g) * 2 - 1))
    return model


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).double()


def agrees_with_a_fresh_capture(mut: sm.Mutator, x: torch.Tensor) -> None:
    modes = ("eval", "train") if any(n.tag for n in mut.graph.trace.nodes) else "eval"
    fresh = sm.capture(mut.model, x, modes=modes)
    assert fresh.trace.nodes == mut.graph.trace.nodes and fresh.trace.params == mut.graph.trace.params
    assert fresh.trace.attributes == mut.graph.trace.attributes
    assert (fresh.params.now, fresh.flops.now) == (mut.graph.params.now, mut.graph.flops.now)
    assert fresh.params.now == count_params(mut.model)


# -- growth ------------------------------------------------------------------------------------------------------------

GROWN: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "line": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9), 2),
    "image": (nn.Conv2d(3, 4, (3, 2), padding=(1, 0)), (2, 3, 8, 9), (4, 2)),
    "volume": (nn.Conv3d(2, 3, 1), (1, 2, 4, 5, 4), (2, 0, 4)),
    "strided": (nn.Conv2d(3, 4, 3, stride=(2, 3), padding=1), (2, 3, 10, 11), 2),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=(2, 3), padding=(2, 1)), (2, 3, 10, 11), (2, 4)),
    "dilated and strided": (nn.Conv2d(3, 4, 3, 2, padding=2, dilation=2), (2, 3, 12, 11), 2),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 7, 7), 2),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 7, 7), 4),
    "no bias": (nn.Conv2d(3, 4, 2, bias=False), (2, 3, 6, 6), (0, 2)),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 7, 7), (2, 1)),
    "same, dilated": (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 9, 9), 2),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 7, 7), 2),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 7), 2),
    "reflect": (nn.Conv2d(3, 4, 3, padding=(1, 0), padding_mode="reflect"), (2, 3, 7, 8), (2, 4)),
    "replicate, same": (nn.Conv1d(3, 4, 3, padding="same", padding_mode="replicate"), (2, 3, 7), 2),
    "transposed line": (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 7), 2),
    "transposed": (
        nn.ConvTranspose2d(3, 4, (2, 3), stride=(1, 2), padding=(0, 1), output_padding=(0, 1)),
        (2, 3, 5, 6),
        (2, 4),
    ),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, 3, groups=2, dilation=2, output_padding=1), (2, 4, 5, 5), 2),
    "transposed, depthwise": (nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=4), (2, 4, 5, 5), 2),
    "transposed volume": (nn.ConvTranspose3d(2, 3, 2, 2), (1, 2, 3, 3, 3), (0, 2, 4)),
}


@pytest.mark.parametrize("name", GROWN)
def test_growth_with_padding_that_follows_leaves_outputs_as_they_are(name):
    conv, shape, delta = GROWN[name]
    model = whole_numbers(nn.Sequential(nn.ReLU(), copy.deepcopy(conv), nn.Flatten()))
    x, before = image(*shape), copy.deepcopy(model)
    mut = sm.Mutator(model, x, modes="eval")
    flops = count_flops(model, (x,))
    plan = mut.resize_kernel("1", delta)
    changes = (delta,) * len(conv.kernel_size) if isinstance(delta, int) else delta
    assert model[1].kernel_size == tuple(a + b for a, b in zip(conv.kernel_size, changes, strict=True))
    assert plan.alters == () and torch.equal(model(x), before(x))
    assert (plan.costs["params"].before, plan.costs["params"].after) == (count_params(before), count_params(model))
    assert (plan.costs["flops"].before, plan.costs["flops"].after) == (flops, count_flops(model, (x,)))
    assert plan.costs["flops"].after > flops
    twin = (
        type(conv)(
            conv.in_channels,
            conv.out_channels,
            model[1].kernel_size,
            conv.stride,
            model[1].padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
        if not conv.transposed
        else model[1]
    )
    assert repr(twin) == repr(model[1])
    assert list(twin._reversed_padding_repeated_twice) == list(model[1]._reversed_padding_repeated_twice)
    agrees_with_a_fresh_capture(mut, x)


@pytest.mark.parametrize("delta", [1, 3, (2, 1)])
def test_odd_growth_under_same_padding_says_where_it_shifts(delta):
    """torch puts the odd one of "same" behind: from odd to even outputs stay, from even to odd they shift."""
    x = image(1, 2, 8, 8)
    for size, kept in ((3, True), (2, delta == 2)):
        model = whole_numbers(nn.Sequential(nn.Conv2d(2, 3, size, padding="same")))
        before = copy.deepcopy(model)
        plan = sm.Mutator(model, x).resize_kernel("0", delta)
        assert (plan.alters == ()) == kept == torch.equal(model(x), before(x))
        assert plan.alters in ((), ("the padding of 0 does not follow its kernel",))


def test_new_taps_are_drawn_where_that_is_asked_for():
    model, x = whole_numbers(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1))), image(1, 2, 6, 6)
    old = model[0].weight.detach().clone()
    plan = sm.Mutator(model, x).resize_kernel("0", (2, 0), init=lambda name, shape: torch.full(shape, 7.0))
    assert plan.alters == ("new taps of 0 are drawn",) and plan.fills == {"0.weight": {2: "drawn"}}
    assert torch.equal(model[0].weight[:, :, 1:4], old) and (model[0].weight[:, :, [0, 4]] == 7).all()


# -- taps --------------------------------------------------------------------------------------------------------------


def test_of_equals_the_lower_index_stays():
    model = nn.Sequential(nn.Conv1d(1, 1, 4, padding="same"))
    nn.init.ones_(model[0].weight)
    mut = sm.Mutator(model, torch.ones(1, 1, 8))
    assert mut.resize_kernel("0", -1, dry_run=True).indices["0.weight"][2] == [0, 1, 2]
    assert mut.resize_kernel("0", -3, dry_run=True).indices["0.weight"][2] == [1]


def by_hand(weight: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Tap by tap: each dim is ranked on the kernel as it was."""
    out = weight.detach().clone()
    for d, n in enumerate(sizes, 2):
        k = weight.shape[d]
        if n >= k:
            wide = list(out.shape)
            wide[d] = n
            grown = torch.zeros(wide, dtype=out.dtype)
            grown.narrow(d, (n - k) // 2, k).copy_(out)
            out = grown
            continue
        score = [abs(i - (k - 1) / 2) / (1 + weight.select(d, i).abs().mean().item()) for i in range(k)]
        kept = sorted(sorted(range(k), key=lambda i: (score[i], i))[:n])
        out = torch.stack([out.select(d, i) for i in kept], d)
    return out


@pytest.mark.parametrize("delta", [2, (4, 2), (1, 3)])
def test_grown_and_shrunk_again_a_kernel_is_what_it_was(delta):
    model = whole_numbers(nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.ConvTranspose2d(3, 2, 3, padding=1)))
    x, before = image(1, 2, 8, 8), copy.deepcopy(model.state_dict())
    mut = sm.Mutator(model, x)
    mut.resize_kernel("0", delta)
    mut.resize_kernel("0", size=3)
    mut.resize_kernel("1", 2)
    assert model[1].padding == (2, 2)
    mut.resize_kernel("1", -2)
    assert model[1].padding == (1, 1) and len(mut.history) == 4
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@st.composite
def requests(draw: Any) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    n, transposed = draw(st.integers(1, 2)), draw(st.booleans())
    dims = st.tuples(*[st.integers(1, 4)] * n)
    size, change = draw(dims), draw(st.tuples(*[st.integers(-2, 4)] * n))
    groups = draw(st.sampled_from([1, 2, 4]))
    stride, dilation = draw(st.tuples(*[st.integers(1, 3)] * n)), draw(st.tuples(*[st.integers(1, 2)] * n))
    padding = draw(st.tuples(*[st.integers(0, 2)] * n))
    kind = (TRANSPOSED if transposed else CONVS)[n]
    return kind(4, 4, size, stride, padding, groups=groups, dilation=dilation), change, size


@settings(max_examples=30, deadline=None)
@given(requests(), st.integers(0, 99))
def test_any_convolution(request_, seed):
    """Refused with nothing changed, or: the taps of `by_hand`, outputs of the old size, the old outputs if so told."""
    conv, change, size = request_
    model, x = whole_numbers(nn.Sequential(conv), seed), image(1, 4, *[13] * len(size))
    mut = sm.Mutator(model, x, modes="eval")
    before, then, was = copy.deepcopy(model), snapshot(model), mut.graph
    wanted = tuple(a + b for a, b in zip(size, change, strict=True))
    more = [d * c for d, c in zip(conv.dilation, change, strict=True)]
    possible = all(m % 2 == 0 and p + m // 2 >= 0 for m, p in zip(more, conv.padding, strict=True))
    if min(wanted) < 1 or not possible:
        with pytest.raises(RequestError):
            mut.resize_kernel("0", change)
        assert_untouched(then, snapshot(model))
        assert mut.graph is was and mut.history == ()
        return
    plan = mut.resize_kernel("0", size=wanted)
    assert torch.equal(conv.weight, by_hand(before[0].weight, wanted)) and conv.kernel_size == wanted
    assert model(x).shape == before(x).shape
    assert (plan.alters == ()) == all(c >= 0 and c % 2 == 0 for c in change)
    if not plan.alters:
        assert torch.equal(model(x), before(x))
    assert sm.Plan.from_json(plan.to_json()) == plan


# -- what follows ------------------------------------------------------------------------------------------------------


def trained() -> tuple[nn.Module, torch.Tensor, torch.optim.Optimizer]:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(4 * 4 * 4, 2),
        )
    )
    x = torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        step(model, (x,), optimizer)
    return model, x, optimizer


def test_gradients_and_optimizer_state_follow_with_zeros_in_new_taps():
    model, x, optimizer = trained()
    weight = model[3].weight
    old = {k: v.clone() for k, v in optimizer.state[weight].items()}
    grad = weight.grad.clone()
    mut = sm.Mutator(model, x, optimizer=optimizer)
    mut.resize_kernel("3", (2, 0))
    assert model[3].weight is weight and tuple(weight.shape) == (4, 6, 5, 3)
    for now, was in ((weight.grad, grad), *((optimizer.state[weight][k], old[k]) for k in ("exp_avg", "exp_avg_sq"))):
        assert torch.equal(now[:, :, 1:4], was) and (now[:, :, [0, 4]] == 0).all()
    assert torch.equal(optimizer.state[weight]["step"], old["step"])
    step(model, (x,), optimizer)
    assert (weight[:, :, [0, 4]] != 0).any()
    kept = by_hand(weight, (3, 3))
    mut.resize_kernel("3", (-2, 0))
    assert torch.equal(weight, kept) and optimizer.state[weight]["exp_avg"].shape == kept.shape
    step(model, (x,), optimizer)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adafactor, torch.optim.SGD, torch.optim.Adagrad])
def test_a_size_of_one_grows_in_the_weight_and_in_its_state(kind):
    """A dim of size 1 in state may be one of a factored statistic, or one that must grow."""
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    model = randomise(nn.Sequential(nn.Conv2d(1, 1, (1, 1)), nn.Conv2d(1, 2, (3, 1)), nn.Conv2d(2, 1, 1)))
    x = torch.randn(2, 1, 5, 5)
    optimizer = kind(model.parameters(), lr=1e-3, **options)
    step(model, (x,), optimizer)
    mut, before = sm.Mutator(model, x, optimizer=optimizer), copy.deepcopy(model)
    old = {k: copy.deepcopy(optimizer.state[p]) for k, p in model.named_parameters()}
    mut.resize_kernel("0", 2)
    mut.resize_kernel("1", (0, 2))
    assert tuple(model[0].weight.shape) == (1, 1, 3, 3) and tuple(model[1].weight.shape) == (2, 1, 3, 3)
    assert torch.allclose(model(x), before(x))
    if kind is not torch.optim.Adafactor:
        key = next(k for k, v in optimizer.state[model[0].weight].items() if v.dim() > 1)
        now, was = (state[key] for state in (optimizer.state[model[0].weight], old["0.weight"]))
        assert now[0, 0, 1, 1] == was[0, 0, 0, 0] and now.abs().sum() == was.abs().sum()
    else:
        state = optimizer.state[model[0].weight]
        assert (tuple(state["row_var"].shape), tuple(state["col_var"].shape)) == ((1, 1, 3, 1), (1, 1, 1, 3))
    step(model, (x,), optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_pruning_and_resizing_go_on_before_and_after():
    model, x, optimizer = trained()
    mut = sm.Mutator(model, x, optimizer=optimizer)
    mut.resize({"0": -2})
    mut.resize_kernel("0", (2, 4))
    agrees_with_a_fresh_capture(mut, x)
    mut.prune(params=0.7)
    agrees_with_a_fresh_capture(mut, x)
    mut.resize_kernel(mut.graph["5"], size=(5, 5))
    mut.resize({"3": +2})
    agrees_with_a_fresh_capture(mut, x)
    assert [len(p.edits) for p in mut.history][1] == 1 and len(mut.history) == 5
    step(model, (x,), optimizer)


def test_a_plan_goes_into_a_file_and_into_a_twin(tmp_path):
    model, x, optimizer = trained()
    twin, follower = copy.deepcopy(model), copy.deepcopy(model)
    mut = sm.Mutator(model, x, optimizer=optimizer, followers=[follower])
    plan = mut.resize_kernel("5", 2)
    plan.save(tmp_path / "plan.json")
    again = sm.Plan.load(tmp_path / "plan.json")
    assert again == plan and isinstance(again.edits[0], SetKernel)
    again.apply(twin)
    for other in (twin, follower):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
        assert (other[5].kernel_size, other[5].padding) == ((5, 5), (1, 1))
    assert "5: kernel 3x3 (padding 0x0) -> 5x5 (padding 1x1)" in str(plan)
    assert plan.back.edits == (plan.edits[0].back(),)
    assert plan.back.selection.indices["5.weight"][2] == [1, 2, 3]


class Tied(nn.Module):
    """Two convolutions of one weight, in containers, with paddings of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3, padding=1)})
        self.right = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.right.weight = self.left["conv"].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left["conv"](x) + self.right(x)


def test_tied_kernels_change_together():
    model, x = whole_numbers(Tied()), image(1, 2, 8, 8)
    before, mut = copy.deepcopy(model), sm.Mutator(model, x)
    plan = mut.resize_kernel("left.conv", 2)
    assert [e.module for e in plan.edits] == ["left.conv", "right"] and model.right.padding == (4, 4)
    assert model.right.weight is model.left["conv"].weight and torch.equal(model(x), before(x)) and not plan.alters
    agrees_with_a_fresh_capture(mut, x)
    assert torch.equal(sm.Plan.from_json(plan.to_json()).apply(before)(x), model(x))


class Shared(nn.Module):
    """One module under two names, called by the second, on images of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
        self.second = self.first[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x).flatten(1).sum(1) + self.second(x[..., 2:]).flatten(1).sum(1)


def test_a_module_under_two_names_is_edited_once():
    model, x = whole_numbers(Shared()), image(1, 2, 8, 8)
    before, mut = copy.deepcopy(model), sm.Mutator(model, x, modes="eval")
    target = next(v for v in mut.graph.vertices if v.op == "conv2d")
    plan = mut.resize_kernel(target, (2, 0))
    assert len(plan.edits) == 1 and plan.alters == () and torch.equal(model(x), before(x))
    assert plan.indices.keys() == {"first.0.weight", "second.weight"} and model.second.padding == (2, 1)
    assert torch.equal(sm.Plan.from_json(plan.to_json()).apply(before)(x), model(x))
    agrees_with_a_fresh_capture(mut, x)


def test_a_graph_module():
    model = torch.fx.symbolic_trace(whole_numbers(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1))))
    x = image(1, 2, 8, 8)
    y, mut = model(x), sm.Mutator(model, x)
    assert mut.resize_kernel("0", 2).alters == () and torch.equal(model(x), y)
    mut.resize({"0": -1})
    assert tuple(model.get_submodule("0").weight.shape) == (2, 2, 5, 5)
    agrees_with_a_fresh_capture(mut, x)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.abs().mean(), self.bias)


class Watched(nn.Module):
    """What else reads a kernel, or its size."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(2, 2, 3, padding=1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.how == "weight":
            return y * self.conv.weight.mean()
        return nn.functional.pad(y, [self.conv.kernel_size[0]] * 4) if self.how == "size" else y


@pytest.mark.parametrize("model", [nn.Sequential(Standardised(2, 2, 3, padding=1)), Watched("weight"), Watched("size")])
def test_what_else_sees_a_kernel_is_told(model):
    model, x = whole_numbers(copy.deepcopy(model)), image(1, 2, 8, 8)
    before = copy.deepcopy(model)
    plan = sm.Mutator(model, x).resize_kernel("0" if isinstance(model, nn.Sequential) else "conv", 2)
    same = model(x).shape == before(x).shape and torch.equal(model(x), before(x))
    assert len(plan.alters) == 1 and not same
    assert sm.Plan.from_json(plan.to_json()) == plan


# -- refused -----------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 2, 3, 3))
        self.layer1 = nn.Sequential(nn.Conv2d(2, 2, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3))
        self.up = nn.ConvTranspose2d(2, 2, 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3))
        self.fc = nn.Linear(2 * 5 * 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.normed(self.up(self.layer1(x)))
        return self.fc(nn.functional.conv2d(x, self.kernel, padding=2).flatten(1))


REFUSED = {
    "near names": (("layer1.4", 2), {}, r"no vertex 'layer1.4'.*did you mean 'layer1.2' or"),
    "another layer": (("layer1.1", 2), {}, "'layer1.1' is no convolution, but ReLU"),
    "an operation": (("flatten", 2), {}, "'flatten' is no convolution, but flatten"),
    "a container": (("layer1", 2), {}, "'layer1' is no single layer; name a convolution in it, as 'layer1.0' or"),
    "no module": (("kernel", 2), {}, "'kernel' is a convolution without a module of its own, called in Functional"),
    "parametrized": (("normed", 2), {}, "the weight of 'normed' is computed from other parameters"),
    "nothing": (("up",), {}, "give delta= .* or size=, one of them"),
    "both": (("up", 2, 5), {}, "give delta= .* or size=, one of them"),
    "too small": (("up", (-3, 0)), {}, "'up': the kernel would be 0x3, now 3x3; it needs 1 at least"),
    "size 0": (("up",), {"size": 0}, "the kernel would be 0x0"),
    "dims": (("up", (1, 2, 3)), {}, r"delta=\(1, 2, 3\): give an int, or one for each of 2 dims"),
    "no int": (("up", 1.5), {}, "delta=1.5: give an int"),
    "odd": (("up", (0, 1)), {}, r"'up': from 3 to 4 in dim 1 .* only with \+1 padding on both sides together"),
    "negative": (("layer1.2", -2), {}, "'layer1.2': from 3 to 1 in dim 0 .* only with a padding of -1, now 0"),
    "sides": (("up", 2), {"padding": (1, 1, 1, 2)}, "pad both sides of a dim alike"),
    "padding below 0": (("up", 2), {"padding": -1}, "padding=-1: give an int of at least 0"),
    "same, transposed": (("up", 2), {"padding": "same"}, "padding='same': torch has that for plain convolutions only"),
    "same, strided": (("layer1.0", 2), {"padding": "same"}, r"for a stride of 1 only, here it is \(2, 2\)"),
    "a word": (("up", 2), {"padding": "reflect"}, "padding='reflect': give an int, one for each dim, or 'same'"),
    "init": (("up", 2), {"init": 3}, "init=3: give a function"),
    "what follows": (
        ("layer1.2", 2),
        {"padding": 2},
        r"with layer1.2: kernel 3x3 .* does not run any more: .*reduction dim",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(name):
    args, kwargs, words = REFUSED[name]
    torch.manual_seed(0)
    model, x = Functional(), torch.ones(1, 2, 10, 10)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, (x,), optimizer)
    mut = sm.Mutator(model, x, optimizer=optimizer)
    before, graph = snapshot(model, optimizer), mut.graph
    with pytest.raises(RequestError, match=words):
        mut.resize_kernel(*args, **kwargs)
    assert_untouched(before, snapshot(model, optimizer))
    assert mut.graph is graph and mut.history == ()


def test_a_plan_that_does_not_fit_is_refused_or_put_back():
    model, x, optimizer = trained()
    mut = sm.Mutator(model, x, optimizer=optimizer)
    plan = mut.resize_kernel("5", 2, dry_run=True)
    before = snapshot(model, optimizer)
    (edit,) = plan.edits
    wrong = SetKernel("5", edit.before, Kernel((5, 5), (2, 2), (2, 2, 2, 2)))
    for edits, words in (
        ((wrong,), "would not run|would compute something else"),
        ((SetKernel("5", edit.after, edit.after),), r"edits\[0\].before.size: expected \[3, 3\], as 5.weight has"),
        ((SetKernel("5", edit.before, edit.before),), r"edits\[0\].after.size: expected \[5, 5\]"),
        ((SetKernel("4", edit.before, edit.after),), r"edits\[0\].module: .* '4.weight' is not"),
    ):
        with pytest.raises(SolvemutError, match=words):
            replace(plan, edits=edits).apply(model, optimizer)
        assert_untouched(before, snapshot(model, optimizer))
    mut.apply(plan)
    assert model[5].kernel_size == (5, 5)


def test_a_model_that_is_another_one_is_refused():
    model, x, _ = trained()
    plan = sm.Mutator(model, x).resize_kernel("5", 2, dry_run=True)
    model[5].padding = (1, 1)
    before = snapshot(model)
    with pytest.raises(PlanMismatchError, match=r"5.padding is \(1, 1\), the plan expects \(0, 0\)"):
        plan.apply(model)
    assert_untouched(before, snapshot(model))
    other = nn.Module()
    other.weight, other.bias = model[5].weight, model[5].bias
    model[5] = other
    with pytest.raises(PlanMismatchError, match="the plan sets the kernel of 5, here a Module"):
        plan.apply(model)
    assert tuple(other.weight.shape) == (4, 2, 3, 3)
