"""The importances of the literature against direct computations; the model is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import nets_shapes  # noqa: F401  (enters its networks in the table)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from oracles import randomise
from test_values import INSIDE, STREAM, direct, example, found, gradients, loss, nothing_moves, small
from torch import nn

import solvemut as sm
from solvemut.values import unit_values

PLACES = {"stream": STREAM, "inside": INSIDE}
METRICS = {
    "lamp": lambda data, loss: sm.values.lamp(),
    "fpgm": lambda data, loss: sm.values.fpgm(),
    "wanda": lambda data, loss: sm.values.wanda(data),
    "hessian": sm.values.hessian,
    "taylor2": lambda data, loss: sm.values.taylor(data, loss, squared=True),
    "taylor1": lambda data, loss: sm.values.taylor(data, loss, squared=True, each="example"),
}
WITH_DATA = ["wanda", "hessian", "taylor2", "taylor1"]


def assert_close(a: dict[str, np.ndarray], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key in b:
        np.testing.assert_allclose(a[key], np.asarray(b[key]), rtol=1e-9, atol=1e-12, err_msg=key)


def valued(name: str, metric: Any) -> tuple[nn.Module, tuple[Any, ...], sm.Graph, np.ndarray]:
    """A network of the table with random weights, its arguments, its graph, and the value of each unit class."""
    model, args = randomise(NETS[name].model()), NETS[name].args()
    graph = sm.capture(model, args)
    return model, args, graph, unit_values(metric(args), model, graph)


def mean_square(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(*batch).square().mean()


def energies(w: torch.Tensor, dim: int) -> list[float]:
    return [float(w.select(dim, i).square().sum()) for i in range(w.shape[dim])]


def lamp_of(energy: list[float]) -> np.ndarray:
    return np.array([e / sum(o for o in energy if o >= e) for e in energy])


def far(w: torch.Tensor, dim: int) -> np.ndarray:
    slices = [w.select(dim, i) for i in range(w.shape[dim])]
    return np.array([sum(float((a - b).square().sum().sqrt()) for b in slices) for a in slices])


def reading(w: torch.Tensor, x: torch.Tensor, **how: Any) -> np.ndarray:
    """|w| times the norm of each column of the unfolded input of a convolution of one group, by input channel."""
    unfolded = F.unfold(x, w.shape[2:], **how)
    norm = unfolded.square().sum((0, 2)).sqrt().reshape(w.shape[1:])
    return (w.abs() * norm).sum((0, 2, 3)).detach().numpy()


# -- weights -----------------------------------------------------------------------------------------------------------


def test_lamp():
    model = small()
    named = {n: p.detach() for n, p in model.named_parameters()}
    wanted = {
        key: sum(lamp_of(energies(named[n], dim)) for n, dim in places if named[n].ndim > 1)
        for key, places in PLACES.items()
    }
    assert_close(found(model, sm.values.lamp()), wanted)


def test_lamp_counts_equal_and_empty_slices_alike_and_the_scale_not():
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]]))
        model[2].weight.zero_()
    wanted = [1 / 4, 1 / 4, 2 / 2, 0]
    for scale in (1.0, 1e200, 1e-200):
        with torch.no_grad():
            model[0].weight.div_(model[0].weight.max()).mul_(scale)
        graph = sm.capture(model, torch.ones(1, 2).double())
        values = unit_values(sm.values.lamp(), model, graph)[graph["0"].units]
        np.testing.assert_allclose(values, wanted, rtol=1e-12)


def test_fpgm():
    model = small()
    named = {n: p.detach() for n, p in model.named_parameters()}
    wanted = {
        "stream": far(named["stem.weight"], 0) + far(named["b.weight"], 0),
        "inside": far(named["a.weight"], 0),
    }
    assert_close(found(model, sm.values.fpgm(normalize=None)), wanted)
    assert_close(found(model, sm.values.fpgm()), {k: v / v.mean() for k, v in wanted.items()})


def test_fpgm_of_filters_that_are_alike_is_zero():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(1, 3).expand(5, 3))
    graph = sm.capture(model, torch.ones(1, 3))
    assert (unit_values(sm.values.fpgm(), model, graph)[graph["0"].units] == 0).all()


def test_weights_of_a_grouped_convolution():
    """Input i is position i % 4 of group i // 4, whose outputs are six rows; a group is a layer of its own."""
    model, _, graph, lamp = valued("Grouped", lambda args: sm.values.lamp())
    a, b = model[0].weight.detach(), model[2].weight.detach()
    wanted = lamp_of(energies(a, 0)) + np.concatenate([lamp_of(energies(part, 1)) for part in b.split(6)])
    np.testing.assert_allclose(lamp[graph["0"].units], wanted, rtol=1e-9)
    fpgm = unit_values(sm.values.fpgm(normalize=None), model, graph)
    np.testing.assert_allclose(fpgm[graph["0"].units], far(a, 0), rtol=1e-9)
    np.testing.assert_allclose(fpgm[graph["2"].units], far(b, 0), rtol=1e-9)


def test_weights_of_a_grouped_transposed_convolution():
    """Output o is position o % 6 of group o // 6, whose inputs are four rows."""
    model, _, graph, lamp = valued("UpGrouped", lambda args: sm.values.lamp())
    w, head = model[2].weight.detach(), model[4].weight.detach()
    wanted = np.concatenate([lamp_of(energies(part, 1)) for part in w.split(4)]) + lamp_of(energies(head, 1))
    np.testing.assert_allclose(lamp[graph["2"].units], wanted, rtol=1e-9)
    filters = torch.stack([w[o // 6 * 4 : o // 6 * 4 + 4, o % 6] for o in range(18)])
    fpgm = unit_values(sm.values.fpgm(normalize=None), model, graph)
    np.testing.assert_allclose(fpgm[graph["2"].units], far(filters, 0), rtol=1e-9)


def test_weights_that_are_tied_count_once():
    model, _, graph, lamp = valued("TiedHead", lambda args: sm.values.lamp())
    stream = [(model.embed.weight, 1), (model.up.weight, 1), (model.down.weight, 0)]
    wanted = sum(lamp_of(energies(w.detach(), dim)) for w, dim in stream)
    np.testing.assert_allclose(lamp[graph["embed"].units], wanted, rtol=1e-9)
    fpgm = unit_values(sm.values.fpgm(normalize=None), model, graph)[graph["embed"].units]
    np.testing.assert_allclose(fpgm, far(model.embed.weight.detach(), 1) + far(model.down.weight.detach(), 0))


# -- wanda -------------------------------------------------------------------------------------------------------------


def inputs_of(model: nn.Module, names: list[str], batches: list[Any]) -> dict[str, torch.Tensor]:
    """What modules get, all batches as one."""
    twin = copy.deepcopy(model).eval()
    seen: dict[str, list[torch.Tensor]] = {n: [] for n in names}
    for n in names:
        twin.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: seen[n].append(i[0].detach()))
    for batch in batches:
        twin(*batch)
    return {n: torch.cat(xs) for n, xs in seen.items()}


def test_wanda():
    model = small().train()
    data = [example(s) for s in range(3)]
    x = inputs_of(model, ["a", "b", "head"], [(b,) for b in data])
    wanted = {
        "stream": reading(model.a.weight, x["a"], padding=1) + reading(model.head.weight, x["head"]),
        "inside": reading(model.b.weight, x["b"]),
    }
    assert_close(found(model, sm.values.wanda(data)), wanted)
    assert_close(found(model, sm.values.wanda([(b, torch.zeros(3)) for b in data])), wanted)


def test_wanda_of_a_grouped_convolution():
    model, args, graph, wanda = valued("Grouped", lambda args: sm.values.wanda([(*args, 0)]))
    x = inputs_of(model, ["2"], [args])["2"]
    pairs = zip(model[2].weight.split(6), x.split(4, 1), strict=True)
    wanted = np.concatenate([reading(w, part, padding=model[2].padding) for w, part in pairs])
    np.testing.assert_allclose(wanda[graph["0"].units], wanted, rtol=1e-9)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"stride": 2},
        {"padding": 2, "dilation": 2},
        {"stride": 3, "padding": 1, "output_padding": 1},
        {"groups": 2, "stride": 2, "padding": 1},
    ],
)
def test_wanda_of_a_transposed_convolution(how):
    """Tap t of input i goes to position i * stride + t * dilation - padding, if there is one."""
    conv = nn.ConvTranspose1d(4, 6, 3, **how)
    model = randomise(nn.Sequential(nn.Linear(5, 5), nn.Conv1d(2, 4, 1), conv, nn.Conv1d(6, 1, 1)).double())
    x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1)).double()
    inner = model[:2](x).detach()
    size, wanted = conv(inner).shape[-1], np.zeros(4)
    for t in range(3):
        at = torch.arange(5) * conv.stride[0] + t * conv.dilation[0] - conv.padding[0]
        norm = inner[..., (at >= 0) & (at < size)].square().sum((0, 2)).sqrt()
        wanted += (conv.weight[..., t].abs().sum(1) * norm).detach().numpy()
    graph = sm.capture(model, x)
    values = unit_values(sm.values.wanda([x]), model, graph)
    np.testing.assert_allclose(values[graph["1"].units], wanted, rtol=1e-9)


def test_wanda_of_tied_weights_and_of_several_calls():
    model, args, graph, wanda = valued("TiedHead", lambda args: sm.values.wanda([(*args, 0)]))
    x = inputs_of(model, ["up", "head"], [args])
    wanted = sum(
        m.weight.abs().sum(0) * x[n].flatten(0, -2).norm(dim=0) for n, m in (("up", model.up), ("head", model.head))
    )
    np.testing.assert_allclose(wanda[graph["embed"].units], wanted.detach().numpy(), rtol=1e-9)
    model, args, graph, wanda = valued("SharedLayer", lambda args: sm.values.wanda([(*args, 0)]))
    x = inputs_of(model, ["w", "c"], [args])
    wanted = sum(m.weight.abs().sum(0) * x[n].norm(dim=0) for n, m in (("w", model.w), ("c", model.c)))
    np.testing.assert_allclose(wanda[graph["a"].units], wanted.detach().numpy(), rtol=1e-9)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_hessian():
    model = small().train()
    data = [example(s) for s in range(2)]
    one_by_one = [gradients(model, x[None]) for batch in data for x in batch]

    def score(name: str, w: torch.Tensor, dim: int, i: int) -> torch.Tensor:
        fisher = sum(g[name] ** 2 for g in one_by_one) / len(one_by_one)
        return (w**2 * fisher).select(dim, i).sum() / 2

    assert_close(found(model, sm.values.hessian(data, loss)), direct(model, score))


@pytest.mark.parametrize("each", ["batch", "example"])
def test_taylor_squared(each):
    model = small().train()
    data = [example(s) for s in range(2)]
    steps = data if each == "batch" else [x[None] for batch in data for x in batch]
    grads = [gradients(model, batch) for batch in steps]

    def score(name: str, w: torch.Tensor, dim: int, i: int) -> torch.Tensor:
        return sum((w * g[name]).select(dim, i).sum() ** 2 for g in grads) / len(grads)

    assert_close(found(model, sm.values.taylor(data, loss, squared=True, each=each)), direct(model, score))


def test_taylor_of_each_example_adds_up():
    model, data = small(), [example(0), example(1)]
    one_by_one = [x[None] for batch in data for x in batch]
    wanted = found(model, sm.values.taylor(one_by_one, loss))
    assert_close(found(model, sm.values.taylor(data, loss, each="example")), wanted)


@pytest.mark.parametrize("name", ["Grouped", "UpGrouped", "TiedHead"])
def test_hessian_and_squared_taylor_of_other_layers(name):
    """By the slices of the trace's own dims: of a grouped weight one list of inputs for every group."""
    model, args, graph, hessian = valued(name, lambda args: sm.values.hessian([args], mean_square))
    taylor = unit_values(sm.values.taylor([args], mean_square, squared=True, each="example"), model, graph)
    twin, wanted, squares = copy.deepcopy(model).eval(), np.zeros(len(hessian)), np.zeros(len(hessian))
    n = len(args[0])
    for i in range(n):
        twin.zero_grad()
        mean_square(twin, [x[i : i + 1] for x in args]).backward()
        p = {k: (v * v.grad).detach() for k, v in twin.named_parameters()}
        for (value, dim), extent in graph.coupling.sources.items():
            c, units = p[graph.trace.params[value].name], graph.coupling.units(extent)
            for at in np.ndindex(units.shape):
                part = c if not extent.per_row else c.chunk(len(units))[at[0]]
                wanted[units[at]] += float(part.select(dim, at[-1]).square().sum()) / 2 / n
                squares[units[at]] += float(part.select(dim, at[-1]).sum() ** 2) / n
    np.testing.assert_allclose(hessian, wanted, rtol=1e-9)
    np.testing.assert_allclose(taylor, squares, rtol=1e-9)


def test_examples_of_batches_of_any_structure():
    """Every tensor with as many rows as the batch is cut, nothing else."""
    model, w = small(), torch.tensor([1.0, 2.0]).double()
    data = [{"x": example(s), "weights": w} for s in range(2)]
    values = found(model, sm.values.hessian(data, lambda m, b: loss(m, b["x"]) * b["weights"].sum()))
    assert_close(values, {k: 9 * v for k, v in found(model, sm.values.hessian([b["x"] for b in data], loss)).items()})


# -- of every one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_model_gradients_mode_and_random_state_stay(name):
    nothing_moves(METRICS[name]([example()], loss))


@pytest.mark.parametrize("name", WITH_DATA)
def test_an_iterator_that_is_used_up_and_what_is_no_data(name):
    model = small()
    metric = METRICS[name](iter([example()]), loss)
    assert (found(model, metric)["inside"] > 0).all()
    with pytest.raises(sm.errors.ValuesError, match="no batch"):
        found(model, metric)
    with pytest.raises(sm.errors.ValuesError, match="batches"):
        METRICS[name](example(), loss)


def test_options_that_make_no_sense():
    for make in (
        lambda: sm.values.hessian([], None),
        lambda: sm.values.lamp(normalize="median"),
        lambda: sm.values.taylor([], loss, each="pixel"),
        lambda: sm.values.taylor([], loss, squared="yes"),
    ):
        with pytest.raises(ValueError):
            make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["lamp", "fpgm", "wanda"])
def test_low_precision(name, dtype):
    model = small().to(dtype)
    x = example().to(dtype)
    graph = sm.capture(model, x)
    values = unit_values(METRICS[name]([x], loss), model, graph)
    wanted = unit_values(METRICS[name]([x.double()], loss), model.double(), sm.capture(model, x.double()))
    np.testing.assert_allclose(values, wanted, rtol=0.02)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("net", ["ChunkSwapped", "Embedding", "Siamese", "Depthwise", "UNet", "TiedAutoencoder"])
def test_other_layers_get_finite_values(name, net):
    _, _, graph, values = valued(net, lambda args: METRICS[name]([(*args, 0)], lambda m, b: m(*b[:-1]).square().mean()))
    assert np.isfinite(values).all() and (values >= 0).all()
    if (name, net) != ("wanda", "TiedAutoencoder"):  # its decoder computes its weight first
        assert len(set(values[~graph.coupling.frozen].round(12))) > 2
