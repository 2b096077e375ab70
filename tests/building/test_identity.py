"""Layers that pass their input on: outputs equal inputs to 1e-6, and where none can the error says why."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import RequestError

SPACE = {1: (9,), 2: (7, 9), 3: (5, 6, 7)}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def passes_on(layer: nn.Module, x: torch.Tensor, n: int | None = None, dim: int = 1) -> None:
    """The first n features of the output are those of the input, and the others are zero."""
    returned = sm.identity_init(layer)
    assert returned is layer
    y = layer.eval()(x)
    n = x.shape[dim] if n is None else n
    torch.testing.assert_close(y.narrow(dim, 0, n), x.narrow(dim, 0, n), atol=1e-6, rtol=0)
    assert not y.narrow(dim, n, y.shape[dim] - n).any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [3, 5, 8])
def test_linear(out, bias):
    passes_on(nn.Linear(5, out, bias=bias), torch.randn(2, 4, 5), min(5, out), dim=-1)


@pytest.mark.parametrize(("d", "kernel", "dilation"), list(itertools.product((1, 2, 3), (1, 3, 5), (1, 2))))
def test_convolutions(d, kernel, dilation):
    x = torch.randn(2, 4, *SPACE[d])
    for padding in (dilation * (kernel - 1) // 2, "same"):
        for out in (4, 7, 2):
            passes_on(CONV[d](4, out, kernel, padding=padding, dilation=dilation), x, min(4, out))
    passes_on(TRANSPOSED[d](4, 6, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation), x, 4)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_padding_modes(mode):
    passes_on(nn.Conv2d(3, 3, (3, 5), padding=(1, 2), padding_mode=mode), torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_and_depthwise(groups):
    x = torch.randn(2, 6, 5, 5)
    passes_on(nn.Conv2d(6, 6, 3, padding=1, groups=groups), x)
    passes_on(nn.ConvTranspose2d(6, 6, 3, padding=1, groups=groups), x)


@pytest.mark.parametrize("kernel", [2, 4, (2, 3)])
def test_even_kernels_with_same_padding(kernel):
    passes_on(nn.Conv2d(3, 3, kernel, padding="same"), torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(affine, eps):
    for norm, shape in ((nn.BatchNorm1d, (3, 4)), (nn.BatchNorm2d, (2, 4, 3, 3)), (nn.BatchNorm3d, (2, 4, 2, 2, 2))):
        layer = norm(4, affine=affine, eps=eps)
        layer(torch.randn(shape) * 3 + 1)  # statistics of its own, which go
        passes_on(layer, torch.randn(shape) * 2 - 1)
    passes_on(nn.InstanceNorm2d(4, affine=affine, track_running_stats=True, eps=eps), torch.randn(2, 4, 3, 3))


def test_sequences_and_activations_that_can():
    layers = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.PReLU(), nn.Dropout(), nn.Conv2d(5, 3, 1)
    passes_on(nn.Sequential(*layers), torch.randn(2, 3, 4, 4))


def test_noise_is_what_passes_nothing_on():
    torch.manual_seed(0)
    x, layer = torch.randn(2, 3, 5, 5), sm.identity_init(nn.Conv2d(3, 40, 3, padding=1), noise=0.01)
    assert torch.equal(layer(x)[:, :3], x)
    rest = layer.weight[3:].detach()
    assert 0.008 < float(rest.std()) < 0.012 and not layer.bias.any()
    up = sm.identity_init(nn.ConvTranspose2d(3, 40, 1), noise=0.01)
    torch.testing.assert_close(up(x)[:, :3], x, atol=1e-6, rtol=0)


def test_it_trains_on():
    layer = sm.identity_init(nn.Linear(3, 3))
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.weight.requires_grad and layer.weight.grad.abs().sum() > 0


REFUSED = {
    "stride": (nn.Conv2d(3, 3, 3, padding=1, stride=2), "stride"),
    "no padding": (nn.Conv2d(3, 3, 3), "padding=1"),
    "padding of one dim": (nn.Conv2d(3, 3, 3, padding=(1, 0)), "padding=1 keeps it in dim 1"),
    "even kernel": (nn.Conv1d(3, 3, 4, padding=1), "odd kernel"),
    "even kernel, dilated": (nn.Conv1d(3, 3, 2, padding=1, dilation=2), "position itself"),
    "valid": (nn.Conv2d(3, 3, 3, padding="valid"), "padding=1"),
    "depthwise multiplier": (nn.Conv2d(4, 8, 1, groups=4), "own group"),
    "output padding": (nn.ConvTranspose2d(3, 3, 3, padding=1, dilation=2, output_padding=1), "output_padding"),
    "group norm": (nn.GroupNorm(2, 4), "statistics of its input"),
    "layer norm": (nn.LayerNorm(4), "statistics of its input"),
    "batch norm without statistics": (nn.BatchNorm2d(4, track_running_stats=False), "statistics of its input"),
    "relu": (nn.ReLU(), "no identity"),
    "lazy": (nn.LazyLinear(3), "run it once"),
    "no module": (3, "torch.nn.Module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_no_weights_do(case):
    layer, why = REFUSED[case]
    lazy = case in ("no module", "lazy")
    before = None if lazy else {k: t.clone() for k, t in layer.state_dict().items()}
    with pytest.raises(RequestError, match=why):
        sm.identity_init(layer)
    assert lazy or all(torch.equal(t, before[k]) for k, t in layer.state_dict().items())


def test_a_sequence_is_changed_whole_or_not_at_all():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(RequestError, match="ReLU"):
        sm.identity_init(model)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


@pytest.mark.parametrize("noise", [-1, float("nan"), "much"])
def test_noise_is_a_deviation(noise):
    with pytest.raises(RequestError, match="noise"):
        sm.identity_init(nn.Linear(2, 2), noise=noise)
