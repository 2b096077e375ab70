"""Models turned into graphs: the same function of the same parameters, or an error that says why not."""

from __future__ import annotations

import copy
import pickle
import warnings

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_shapes  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from oracles import assert_same, outputs, randomise
from torch import nn
from torch.utils import _pytree as pytree

import solvemut as sm
from solvemut.building.following import is_leaf
from solvemut.errors import CaptureError, RequestError


def graph_of(n, model):
    """Without examples where that goes, as users would try it first."""
    try:
        return sm.editable(model)
    except CaptureError:
        return sm.editable(model, n.args(), n.kw())


def train_step(model, n):
    """Outputs in train mode, gradients of a sum of them, and the buffers afterwards; dropout by one seed."""
    model.train()
    torch.manual_seed(3)
    leaves = [t for t in pytree.tree_leaves(model(*n.args(), **n.kw())) if isinstance(t, torch.Tensor)]
    model.zero_grad()
    sum(t.double().sum() for t in leaves).backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [t.detach() for t in leaves], gradients, [b.clone() for b in model.buffers()]


def equal(a, b):
    return (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", NETS)
def test_every_network_as_a_graph(name):
    n = NETS[name]
    model = randomise(n.model())
    untouched = copy.deepcopy(model)
    graph = graph_of(n, model)
    assert isinstance(graph, torch.fx.GraphModule) and type(graph).__name__ == type(model).__name__
    assert list(graph.state_dict()) == list(model.state_dict()) and not graph.training
    for kind in ("named_parameters", "named_buffers"):
        ours = dict(getattr(graph, kind)(remove_duplicate=False))
        theirs = dict(getattr(model, kind)(remove_duplicate=False))
        assert theirs.keys() <= ours.keys() and all(ours[k] is theirs[k] for k in theirs), kind
    assert all(equal(a, b) for a, b in zip(untouched.state_dict().values(), model.state_dict().values(), strict=True))
    assert all(
        equal(a, b) for a, b in zip(outputs(graph, n.args(), n.kw()), outputs(model, n.args(), n.kw()), strict=True)
    )
    wanted = train_step(untouched, n)
    for found, other in zip(train_step(graph, n), wanted, strict=True):
        assert all(equal(a, b) for a, b in zip(found, other, strict=False))
    assert not any(m.training for m in graph.eval().modules())


@pytest.mark.parametrize("name", NETS)
def test_torchs_own_layers_are_nodes(name):
    n = NETS[name]
    model = n.model()
    graph = graph_of(n, model)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    run: list[str] = []
    for path, module in model.named_modules():
        if path and is_leaf(module) and not any(path.startswith(outer + ".") for outer in run):
            module.register_forward_hook(lambda *_, path=path: run.append(path))
    model(*n.args(), **n.kw())
    layers = {id(model.get_submodule(path)) for path in called if not path.startswith("by_mode")}
    outermost = [p for p in run if not any(p.startswith(outer + ".") for outer in called)]
    assert {id(model.get_submodule(p)) for p in outermost} == layers


PRUNED_ALIKE = [
    "Mlp",
    "Chain1d",
    "Chain2d",
    "Chain3d",
    "Up2d",
    "UpDepthwise",
    "Depthwise",
    "DepthwiseTwice",
    "GroupNorm",
    "LayerNorm",
    "Embedding",
    "InvertedResidual",
    "SqueezeExcite",
    "Broadcasting",
    "NotZeroAtZero",
    "Product",
    "ScaleBySize",
    "MeanBySize",
    "ViewBySize",
    "ChannelShuffle",
    "Mixer",
    "ConvNeXt",
    "Windows",
    "GqaExpand",
]


@pytest.mark.parametrize("name", PRUNED_ALIKE)
def test_pruned_as_the_original_is(name):
    n = NETS[name]
    model = randomise(n.model())
    other = copy.deepcopy(model)
    graph = graph_of(n, model)
    plan = sm.prune(graph, n.args(), n.kw(), **n.budget[0])
    wanted = sm.prune(other, n.args(), n.kw(), **n.budget[0])
    assert plan.indices == wanted.indices and plan.sizes == wanted.sizes and plan.objective == wanted.objective
    assert_same(outputs(graph, n.args(), n.kw()), outputs(other, n.args(), n.kw()))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out, self.heads = nn.Linear(4, 12), nn.Linear(12, 2), 3

    def forward(self, x):
        return self.out(self.fc(x).view(2, self.heads, -1).flatten(1))


def test_attributes_are_numbers_in_a_graph_so_what_they_count_stays():
    x = torch.ones(2, 4)
    graph = sm.editable(Heads())
    assert sm.capture(Heads(), x).groups[0].units == 12
    plan = sm.prune(graph, x, params=0.8)
    assert plan.sizes["fc"][1] % 3 == 0 and plan.sizes["fc"][1] < 12 and graph(x).shape == (2, 2)


def test_copies_and_pickles():
    n = NETS["SqueezeExcite"]
    graph = sm.editable(n.model())
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert type(other).__name__ == "SqueezeExcite" and list(other.state_dict()) == list(graph.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(outputs(other, n.args()), outputs(graph, n.args()), strict=True))
        assert other.stem.weight is not graph.stem.weight


def test_a_built_model_is_its_own_graph():
    net = sm.Builder()
    x = net.input("x", 3)
    model = net.build(net.concat(net.layer(nn.Linear(3, 4), x, name="fc"), x, name="cat"))
    graph = sm.editable(model)
    assert [str(n.target) for n in graph.graph.nodes] == ["x", "fc", "cat", "output"]
    assert graph.fc is model.fc


# -- modes -------------------------------------------------------------------------------------------------------------


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.fc(x), 0.5, self.training)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if self.training else 0.0)
        return F.batch_norm(x, self.mean, self.var, training=self.training) + F.dropout(
            x, 0.1, training=not self.training
        )


def test_flags_of_the_mode_follow_it():
    model = FunctionalDropout()
    other, x = copy.deepcopy(model), torch.randn(4, 8)
    graph = sm.editable(model, x)
    assert list(graph.state_dict()) == list(model.state_dict())
    for candidate in (graph, pickle.loads(pickle.dumps(copy.deepcopy(graph)))):
        reference = copy.deepcopy(other)
        for training in (True, False, True):
            candidate.train(training)
            reference.train(training)
            torch.manual_seed(0)
            found = candidate(x)
            torch.manual_seed(0)
            assert torch.equal(found, reference(x))
            assert torch.equal(candidate.mean, reference.mean)


class OtherInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.aux = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y + self.aux(x) if self.training else y


class MoreInTraining(OtherInTraining):
    def forward(self, x):
        y = self.fc(x)
        return (y, self.aux(x)) if self.training else y


class OtherConstant(OtherInTraining):
    def forward(self, x):
        return self.fc(x) * torch.tensor([0.5 if self.training else 1.0])


@pytest.mark.parametrize("kind", [OtherInTraining, MoreInTraining, OtherConstant])
@pytest.mark.parametrize("examples", [False, True])
def test_other_calls_in_train_mode_are_refused(kind, examples):
    model = kind()
    with pytest.raises(CaptureError, match=f"{kind.__name__} cannot be made editable: in train mode"):
        sm.editable(model, torch.ones(1, 3) if examples else None)
    assert model.training


# -- examples ----------------------------------------------------------------------------------------------------------


class AsksSizes(nn.Module):
    """Branches on a size, writes constants, uses properties, items, in-place operations and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3))
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6), persistent=False)
        self.table = torch.rand(6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if x.shape[1] != 6:
            x = x.repeat(1, 2)
        y = self.block(x) * self.scale + self.shift - self.table
        z = torch.zeros(x.shape[0], 6)
        z[:, 1:3] = y[:, :2] * torch.arange(1, 3)
        z += torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        a, b = z.chunk(2, -1)
        values, _ = torch.max(y.T, 0)
        return {"ab": torch.cat([b, a], -1) * len(x), "m": (values, 2 - y, y @ y.T)}


def test_a_forward_that_asks_for_sizes_is_followed_by_a_run():
    model = AsksSizes()
    with pytest.raises(CaptureError, match="give example inputs"):
        sm.editable(model)
    x = torch.randn(4, 3)
    graph = sm.editable(model, x)
    called = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    assert called == ["block.0", "block.1", "block.2"] and graph.block is not model.block
    assert graph.scale is model.scale and graph.get_submodule("block.0") is model.block[0]
    assert list(graph.state_dict()) == list(model.state_dict())
    for other in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        for training in (False, True):
            reference = copy.deepcopy(model).train(training)
            reference.load_state_dict(other.state_dict())
            found, wanted = outputs(other.train(training), (x,)), outputs(reference, (x,))
            assert len(found) == 4 and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert graph(x).keys() == model(x).keys()


class AsksValues(nn.Module):
    def __init__(self, ask) -> None:
        super().__init__()
        self.fc, self.ask = nn.Linear(3, 3), ask

    def forward(self, x):
        y = self.fc(x)
        return y * 2 if self.ask(y) else y


ASKS = {
    "bool": lambda y: y.sum() > 0,
    "item": lambda y: y.sum().item() > 0,
    "float": lambda y: float(y.sum()) > 0,
    "tolist": lambda y: y.tolist()[0][0] > 0,
    "equal": lambda y: torch.equal(y, y),
    "nonzero": lambda y: len(y.nonzero()) > 3,
    "mask": lambda y: len(y[y > 0]) > 3,
}


@pytest.mark.parametrize("name", ASKS)
def test_a_forward_that_goes_on_by_values_is_refused(name):
    with pytest.raises(CaptureError, match="AsksValues cannot be made editable"):
        sm.editable(AsksValues(ASKS[name]), torch.ones(2, 3))


class WithoutGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            y = self.fc(x)
        return y + x


class Autocast(WithoutGradients):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.fc(x)


@pytest.mark.parametrize("kind", [WithoutGradients, Autocast])
def test_contexts_are_refused(kind):
    for args in (None, torch.ones(1, 3)):
        with pytest.raises(CaptureError, match="no_grad"):
            sm.editable(kind(), args)


class Options(nn.Module):
    """Arguments with defaults, tensors among them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x, double=False, mask=None, *, shift=0.0):
        y = self.fc(x) * 2 if double else self.fc(x)
        y = y if mask is None else y * mask
        return y + shift


def test_arguments_with_defaults():
    model, x, mask = Options(), torch.ones(2, 3), torch.rand(2, 3)
    plain = sm.editable(model)
    assert torch.equal(plain(x), model(x)) and torch.equal(plain(x, shift=0.0, double=False), model(x))
    for wrong in ({"double": True}, {"mask": mask}, {"shift": 1}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            plain(x, **wrong)
    graph = sm.editable(model, (x, True), {"mask": mask})
    assert torch.equal(graph(x, True, mask), model(x, True, mask))
    assert torch.equal(graph(x, mask=mask, double=True), model(x, True, mask))
    with pytest.raises(RequestError, match="double"):
        graph(x, False, mask)
    with pytest.raises(RequestError, match="mask"):
        graph(x, True)
    assert torch.equal(sm.editable(model, (x, True))(x), model(x, True))  # what is plain may be left out
    shifted = sm.editable(model, x, {"shift": torch.ones(3)})
    assert torch.equal(shifted(x, shift=torch.rand(3) * 0 + 2), model(x, shift=2))


class Many(nn.Module):
    def forward(self, pair, *more, **named):
        (a, b), total = pair, 0
        for x in (*more, *named.values()):
            total = total + x
        return a @ b + total


def test_nested_and_variadic_arguments():
    pair, c, d = [torch.rand(2, 2), torch.rand(2, 2)], torch.rand(2, 2), torch.rand(2, 2)
    graph = sm.editable(Many(), (pair, c), {"d": d})
    assert torch.equal(graph(pair, c, d=d), Many()(pair, c, d=d))


def odd(x, scale, flag, *rest, **named):
    return x * scale + sum(rest) + (1 if flag else 0) + named.get("bias", 0)


@pytest.mark.parametrize("more", [(), (torch.full((3,), 2.0), True, torch.ones(3))])
def test_defaults_that_are_not_plain(more):
    class Odd(nn.Module):
        def forward(self, x, scale=torch.full((3,), 3.0), flag=False, *rest, **named):  # noqa: B008
            return odd(x, scale, flag, *rest, **named)

    model, x = Odd(), torch.rand(3)
    graph = sm.editable(model, (x, *more), {"bias": 4.0})
    assert torch.equal(graph(x, *more, bias=4.0), model(x, *more, bias=4.0))


def test_one_tensor_given_twice_is_two_inputs():
    x = torch.rand(3, 4)
    graph = sm.editable(NETS["Product"].model(), (torch.ones(3, 5).double(), torch.ones(3, 4).double()))
    assert len([n for n in graph.graph.nodes if n.op == "placeholder"]) == 2

    class Sized(nn.Module):
        def forward(self, a, b):
            return a - 2 * b if a.shape[0] > 2 else a

    y = torch.rand(3, 4)
    assert torch.equal(sm.editable(Sized(), (x, x))(x, y), x - 2 * y)


def test_hooks_and_forwards_of_the_object_are_followed():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.rand(1, 3)
    model.register_forward_hook(lambda m, args, out: out * 3)
    assert torch.equal(sm.editable(model)(x), model(x))
    other = OtherInTraining()
    other.forward = lambda x: other.fc(x) * 5
    with pytest.raises(CaptureError):  # it closes over the original, not over the copy that is followed
        sm.editable(other, x)


def test_random_numbers():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn(3)

    with pytest.raises(CaptureError, match="random"):
        sm.editable(Noisy())
    state, graph = torch.get_rng_state(), sm.editable(Noisy(), torch.zeros(3))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(graph(torch.zeros(3)), graph(torch.zeros(3)))


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        z = torch.zeros(3)
        z += x
        self.count.add_(1)
        return z


class Assigns(Writes):
    def forward(self, x):
        self.count = self.count + 1
        return x * self.count if x.shape[0] else x


def test_tensors_that_the_forward_creates_and_writes_into_are_new_at_each_call():
    with pytest.raises(CaptureError, match="writes into"):
        sm.editable(Writes())
    graph = sm.editable(Writes(), torch.ones(3))
    for k in range(3):
        assert torch.equal(graph(torch.full((3,), float(k))), torch.full((3,), float(k)))
    assert graph.count == 3
    with pytest.raises(CaptureError, match="buffer count"):
        sm.editable(Assigns(), torch.ones(3))


def test_layers_that_are_called_twice_or_tied_stay_so():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.again = self.a

        def forward(self, x):
            return self.a(self.b(self.again(x)))

    model, x = Tied(), torch.rand(1, 3)
    graph = sm.editable(model)
    assert list(graph.state_dict()) == list(model.state_dict()) and torch.equal(graph(x), model(x))
    assert len(list(graph.parameters())) == 3 and graph.again is graph.a is model.a


def test_a_layer_alone_and_wrapped():
    model, x = nn.Linear(3, 2), torch.rand(1, 3)
    for graph in (
        sm.editable(model),
        sm.editable(torch.compile(model, backend="eager")),
        sm.editable(nn.DataParallel(model)),
    ):
        assert graph.weight is model.weight and torch.equal(graph(x), model(x))


def test_what_cannot_be_a_model_or_its_inputs():
    with pytest.raises(RequestError, match=r"torch\.nn\.Module"):
        sm.editable(torch.relu)
    with pytest.raises(RequestError, match="cannot be called"):
        sm.editable(nn.Linear(3, 2), (torch.ones(1, 3), 2))
    with pytest.raises(RequestError, match="kwargs"):
        sm.editable(nn.Linear(3, 2), kwargs=[1])
    with pytest.raises(RequestError, match="neither tensors nor plain"):
        sm.editable(Options(), (torch.ones(1, 3), object()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(RequestError, match="TorchScript"):
        sm.editable(scripted)
    with pytest.raises(CaptureError, match="does not run on the example"):
        sm.editable(nn.Linear(3, 2), torch.ones(1, 5))
