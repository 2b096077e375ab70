"""The edit that sets a kernel: on a trace, in a file, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import solvemut as sm
from solvemut.edits import Kernel, SetKernel, edit_of
from solvemut.errors import PlanMismatchError

KINDS = [
    nn.Conv2d(2, 2, 3, padding=1),
    nn.Conv2d(2, 2, 3, padding="same"),
    nn.Conv2d(2, 2, 3, padding=(1, 0), padding_mode="circular"),
    nn.ConvTranspose2d(2, 2, 3, padding=1),
]


@pytest.mark.parametrize("conv", KINDS)
def test_an_edit_changes_a_trace_and_leads_back(conv):
    model, x = nn.Sequential(copy.deepcopy(conv)), torch.ones(1, 2, 6, 6)
    mut = sm.Mutator(model, x, modes="eval")
    trace = mut.graph.trace
    plan = mut.resize_kernel("0", 2)
    changed, back = plan.edits[0].apply(trace)
    assert changed.attributes == mut.graph.trace.attributes
    assert [dict(n.args) for n in changed.nodes] == [dict(n.args) for n in mut.graph.trace.nodes]
    assert back.apply(changed) == (trace, plan.edits[0]) and back == plan.edits[0].back()
    assert edit_of(plan.edits[0].to_data()) == plan.edits[0]


def test_an_edit_of_another_trace_is_refused():
    trace = sm.capture(nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.ReLU()), torch.ones(1, 2, 6)).trace
    three, five = Kernel((3,), (1,), (1, 1)), Kernel((5,), (2,), (2, 2))
    for edit, words in ((SetKernel("1", three, five), "runs no convolution"), (SetKernel("0", five, three), "expects")):
        with pytest.raises(PlanMismatchError, match=words):
            edit.apply(trace)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"size": [0], "padding": [1], "around": [1, 1]}, r"after.size\[0\]"),
        ({"size": [3], "padding": "reflect", "around": [1, 1]}, "after.padding"),
        ({"size": [3], "padding": [1, 1], "around": [1, 1]}, "after.padding"),
        ({"size": [3], "padding": [1], "around": [1]}, "after.around"),
        ({"size": [3, 3], "padding": [1, 1], "around": [1, 1, 1, 1]}, "after.size"),
        ({"size": [3], "padding": [1]}, "after"),
    ],
)
def test_a_damaged_edit_is_told_by_its_place(after, words):
    data = {"kind": "set_kernel", "module": "0", "before": Kernel((3,), (1,), (1, 1)).to_data(), "after": after}
    with pytest.raises(PlanMismatchError, match=words):
        edit_of(data)
