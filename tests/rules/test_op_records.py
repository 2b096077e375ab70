"""The records of operations: what they must hold, and that an error in one is told at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.errors import SolvemutError
from solvemut.flow import Flow, Labels
from solvemut.rules import OPS, op
from solvemut.rules.notation import parse, pattern
from solvemut.trace import Node, Param, Ref, Trace


def test_a_record_without_its_ints_fails_when_it_is_entered():
    with pytest.raises(TypeError, match="ints"):
        op("new_operation")
    assert "new_operation" not in OPS


@pytest.mark.parametrize(
    ("parts", "lacks"),
    [({"sizes": "width"}, "sizes= without follow="), ({"follow": lambda *_: None}, "follow= without sizes=")],
)
def test_a_size_that_counts_units_must_say_how_it_follows(parts, lacks):
    with pytest.raises(ValueError, match=f"new_operation: {lacks}"):
        op("new_operation", ints="", **parts)(lambda flow, node: Labels(node.shape))
    assert "new_operation" not in OPS


def test_a_record_needs_a_name():
    with pytest.raises(ValueError, match="name"):
        op(" ", ints="")


def test_a_rule_that_counts_units_by_an_int_its_record_forgets_fails(monkeypatch):
    def forgetful(flow: Flow, node: Node) -> Labels:
        x = flow.labels(node.args["self"])
        flow.literal(("width",), x.dim(-1))
        return x

    op("forgetful_operation", ints="")(forgetful)
    try:
        trace = Trace(
            {"p": Param("p", (4,))},
            {"x": (2, 4)},
            (
                Node("y", "mul", {"self": Ref("x"), "other": Ref("p")}, ((2, 4),)),
                Node("z", "forgetful_operation", {"self": Ref("y"), "width": 4}, ((2, 4),)),
            ),
            ("z",),
        )
        from solvemut.coupling import couple

        with pytest.raises(SolvemutError, match=r"forgetful_operation counts units by width, .* name it in sizes="):
            couple(trace)
    finally:
        del OPS["forgetful_operation"]


@pytest.mark.parametrize(
    ("args", "text", "work", "told"),
    [
        ("input", "b c", "", "give arguments -> result"),
        ("input", "b -> c -> d", "", "give arguments -> result"),
        ("input weight", "b c -> b c", "", "1 terms for the 2 arguments input weight"),
        ("input", "b c ... -> b c", "", r"'\.\.\.' stands first"),
        ("input", "b *s c -> b c", "", r"'\*s' stands last"),
        ("input", "b 3 -> b", "", "'3' is neither a name"),
        ("input", "b b -> b", "", "a name stands twice in 'b b'"),
        ("input", "b c -> b d", "", "'d' of the result stands in no argument"),
        ("input weight", "b c, -> b c", "", "a term is empty"),
        ("input", "b c -> b c", "b k", "'k' of the work stands nowhere in it"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_an_error_with_the_pattern(args, text, work, told):
    with pytest.raises(ValueError, match=told) as e:
        parse(args, text, work)
    assert text in str(e.value)


def test_a_pattern_is_read_once():
    assert parse("input", "b c -> b c") is parse("input", "b c -> b c")


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (((2, 4), (3, 5)), r"'i' of the pattern .* is 4, and 5 in weight of shape \(3, 5\)"),
        (((2, 4), (3, 4, 1)), r"weight has shape \(3, 4, 1\), which does not fit 'o i' of the pattern"),
    ],
)
def test_shapes_that_do_not_fit_a_pattern_are_told_with_both(shapes, told):
    rule = pattern("input weight", "... i, o i -> ... o")
    params = {name: Param(name, shape) for name, shape in zip(("x", "w"), shapes, strict=True)}
    node = Node("y", "linear", {"input": Ref("x"), "weight": Ref("w")}, ((2, 3),))
    flow = Flow(Trace(params, {}, (node,), ("y",)))
    with pytest.raises(SolvemutError, match=told):
        rule(flow, node)


def test_layers_repeat_the_sizes_that_the_records_name():
    """Every attribute that a record says a layer repeats is one, and has the size of its tensor."""
    from solvemut.tracing import repeats

    layers = [
        nn.Linear(3, 5),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.BatchNorm1d(7),
        nn.GroupNorm(2, 8),
        nn.Embedding(9, 10),
        nn.PReLU(11),
        nn.InstanceNorm2d(12, affine=True),
        nn.LSTM(3, 5),
        nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2),
        nn.GRU(4, 6, bias=False),
        nn.RNN(7, 2),
        nn.LSTMCell(3, 5),
        nn.GRUCell(4, 6),
    ]
    told = {repeat for record in OPS.values() for repeat in record.repeats}
    seen = set()
    for layer in layers:
        for repeat, _, size in repeats(layer):
            assert getattr(layer, repeat.attribute) == size
            seen.add(repeat)
    assert seen == told


def test_what_takes_over_units_does_not_count_as_what_couples_them():
    """The origins of a group name the addition, not the layers that read it, transposed convolutions included."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.up, self.norm = nn.ConvTranspose2d(8, 4, 2), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.norm(self.a(x) + self.b(x)))

    group = next(g for g in sm.capture(Net(), torch.ones(1, 3, 4, 4)).groups if not g.frozen and g.units == 8)
    assert len(group.origins) == 1 and "add" in group.origins[0]
