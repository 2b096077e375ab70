"""Every operation that has a rule, with all its int arguments, over a dim that a plan changes.

Each case is pruned to several sizes with random values and must equal the masked network; or the size is frozen, or the
plan refused, with the model as it was. What takes statistics over the units that stay (a mean, a softmax) is held
against the original with the layers cut by the plan's own index lists.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from typing import Any

import pytest
import torch
from int_argument_cases import CASES, INPUTS, WITHOUT_RULE, Between
from oracles import assert_same, masked, outputs, randomise, tensors
from torch import nn

import solvemut as sm
from solvemut.rules import OPS as RECORDS
from solvemut.trace import Node, Trace

TABLE = {f"{op}-{i}": case for op, cases in CASES.items() for i, case in enumerate(cases)}
TABLE |= {f"without a rule: {name}": case for name, case in WITHOUT_RULE.items()}
# What runs over the units that stay: zeros for those that go would count as numbers.
OVER_WHAT_STAYS = (
    "mean amax amin var std var_mean std_mean prod any all logsumexp norm linalg_vector_norm max min median"
    " softmax _softmax log_softmax _log_softmax scaled_dot_product_attention native_layer_norm group_norm"
)
SHOWN: dict[tuple[str, str], int] = Counter()  # (operation, argument) -> cases that gave it ints and a labelled value
OPS: set[str] = set()
PRUNED: dict[str, int] = Counter()  # operation -> plans that were applied and held
RAN: set[str] = set()


pytestmark = pytest.mark.usefixtures("exact")  # what a forward creates is as exact as the rest


@functools.cache
def captured(name: str) -> tuple[nn.Module, torch.Tensor, Any]:
    """The network of a case with random weights, and its graph; nobody changes them."""
    torch.manual_seed(0)
    kind, use = TABLE[name]
    model = randomise(Between(kind, use).double())
    x = torch.randn(INPUTS[kind])
    return model, x, sm.capture(model, x)


def cut(model: nn.Module, plan: Any) -> nn.Module:
    """A copy of which every tensor holds what the plan's index lists name, in their order."""
    other = copy.deepcopy(model)
    for name, dims in plan.indices.items():
        t = tensors(other)[name]
        for d, index in dims.items():
            t.data = t.data.index_select(d, torch.tensor(index))
    for a in plan.attributes:
        if a.index is None:
            setattr(other.get_submodule(a.module), a.name, a.after)
    return other


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a).values(), tensors(b).values(), strict=True))


def has_labels(graph: Any, node: Node) -> bool:
    """Whether some value that a node reads has a dim that may change, or would if nothing froze it."""
    found = [graph.coupling.values.get(ref) for ref in node.refs()]
    lists = [x if isinstance(x, list) else [x] for x in found if x is not None]
    return any(x.factors for xs in lists for x in xs) or any(ref in graph.coupling.trace.params for ref in node.refs())


def holds_int(x: Any) -> bool:
    return any(map(holds_int, x)) if isinstance(x, list) else isinstance(x, int) and not isinstance(x, bool)


def note_shown(graph: Any) -> None:
    """Which int arguments a case gives to operations over labelled values."""
    for node in graph.coupling.trace.nodes:
        if has_labels(graph, node) or "size" in node.args or not list(node.refs()):
            OPS.add(node.op)
            for name, value in node.args.items():
                if holds_int(value):
                    SHOWN[node.op, name] += 1


def applied(name: str, request: Any) -> tuple[nn.Module, Any] | None:
    """The pruned network with its plan; None if it was refused, in words, and nothing was changed."""
    original, _x, graph = captured(name)
    model = copy.deepcopy(original)
    problem = sm.Problem(graph)
    problem.maximize(sm.values.random(len(name)))
    try:
        problem.add(request(graph))
        plan = problem.solve(time_limit=20)
        plan.apply(model)
    except sm.errors.SolvemutError as e:
        assert "report this model" not in str(e), e
        assert len(str(e)) > 20
        assert same_state(model, original)
        return None
    return model, plan


REQUESTS = {
    "half": lambda g: g["a"].out == 8,
    "odd": lambda g: g["a"].out == 11,
    "quarter": lambda g: g["a"].out == 4,
    "budget": lambda g: g.params <= 0.55 * g.params.now,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TABLE)
def test_the_pruned_network_is_the_masked_one_or_the_size_stays(name):
    original, x, graph = captured(name)
    trace: Trace = graph.coupling.trace
    ops = {n.op for n in trace.nodes}
    note_shown(graph)
    RAN.add(name)
    for request in REQUESTS.values():
        if (found := applied(name, request)) is None:
            continue
        model, plan = found
        PRUNED.update(ops)
        wanted = cut(original, plan) if ops & set(OVER_WHAT_STAYS.split()) else masked(original, plan)
        assert_same(outputs(model, (x,)), outputs(wanted, (x,)))


# -- nothing is left out, and nothing is vacuous -----------------------------------------------------------------------

# Ints that name no size, dim or position.
NO_SIZES = {"dtype", "layout", "memory_format", "device", "out_dtype", "out_mode"}
# Overloads for TorchScript's own lists, numbers and strings, which no traced module contains.
SCRIPT_ONLY = {"a", "b", "t", "n", "el", "idx", "max", "self"}
NOT_REACHED = {
    ("split", "split_sizes"): "torch.export writes split_with_sizes for it",
    ("einsum", "path"): "torch.einsum gives it only where opt_einsum is installed",
    ("index", "start"): "of the index of a str, in TorchScript",
    ("index", "end"): "of the index of a str, in TorchScript",
    ("sym_size", "dim"): "stands in graphs of dynamic shapes only",
    ("_assert_tensor_metadata", "size"): "torch.export writes its dtype and layout only",
    ("_assert_tensor_metadata", "stride"): "torch.export writes its dtype and layout only",
}


def int_arguments(op: str) -> set[str]:
    """Names of the int arguments of all overloads of an operation, as its schemas have them."""
    packet = getattr(torch.ops.aten, op, None)
    if not hasattr(packet, "overloads"):
        return set()
    schemas = [getattr(packet, o)._schema for o in packet.overloads()]
    arguments = [a for s in schemas if not any(a.is_out for a in s.arguments) for a in s.arguments]
    ints = {a.name for a in arguments if str(a.type) in INT_TYPES}
    own = {"n", "self"} if op in ("eye", "arange") else set()
    return ints - NO_SIZES - (SCRIPT_ONLY - own - ({"a"} if op == "getitem" else set()))


INT_TYPES = {
    f"{before}int{after}"
    for before, after in (
        ("", ""),
        ("Optional[", "]"),
        ("List[", "]"),
        ("Optional[List[", "]]"),
        ("List[Optional[", "]]"),
    )
}


def test_every_int_argument_of_every_rule_is_shown():
    if len(RAN) < len(TABLE):
        pytest.skip("run the whole file")
    wanted = {(op, arg) for op in RECORDS for arg in int_arguments(op)}
    assert wanted - set(SHOWN) - set(NOT_REACHED) == set()
    assert set(NOT_REACHED) & set(SHOWN) == set()


MUST_PRUNE = (
    "linear embedding conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm"
    " layer_norm rms_norm group_norm instance_norm prelu softmax cumsum flip roll sort max_pool1d max_pool2d"
    " max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
    " adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest2d upsample_bilinear2d sum mean"
    " amax var std topk max argmax matmul bmm mm addmm baddbmm einsum scaled_dot_product_attention view reshape"
    " flatten unflatten view_as permute transpose movedim unsqueeze squeeze expand repeat tile repeat_interleave"
    " select unbind slice narrow split split_with_sizes chunk tensor_split cat stack hstack vstack pad glu"
    " pixel_shuffle pixel_unshuffle index index_select zeros ones full new_zeros add sub mul div pow relu"
    " masked_fill where clamp channel_shuffle lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell"
    " rnn_relu_cell _weight_norm gather take_along_dim scatter scatter_add scatter_reduce index_put index_add"
    " index_copy index_fill"
)


def test_operations_that_have_a_rule_do_prune():
    if len(RAN) < len(TABLE):
        pytest.skip("run the whole file")
    assert [op for op in MUST_PRUNE.split() if not PRUNED[op]] == []
    assert sum(PRUNED.values()) > 2000
