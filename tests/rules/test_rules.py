"""The rules as a table: labels in, labels out, and what must be equal or stay.

A row is a torch call on labelled tensors. "2 a:6 4" is an input of shape (2, 6, 4) whose dim 1 has the labels a;
"2 a[::-1] 4" is an expected output, each token a number (no labels there) or an expression of numpy. An expression with
two or three axes stands for as many dims, whose labels they share. `same` lists all that must be equal, `stay` all that
must be frozen, `even` parts of which equally many must stay; what a row does not list must not happen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grouped import grouped_mm
from torch import nn

from solvemut.coupling import components
from solvemut.flow import Factor, Flow, Labels
from solvemut.rules import OPS, apply_rule
from solvemut.tracing import trace_module


@dataclass(frozen=True)
class Row:
    call: Callable[..., Any]
    inputs: str  # separated by |
    outputs: str  # separated by |
    same: str = ""
    stay: str = ""
    even: int = 0  # facts that parts stay equally large, or rows stay rectangular


DTYPES = {"": torch.float32, "ids": torch.long, "bool": torch.bool}


class Call(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args):
        return self.call(*args)


class Run:
    """A row, run through the rules."""

    def __init__(self, row: Row) -> None:
        specs = [s.split() for s in row.inputs.split("|")]
        self.env: dict[str, np.ndarray] = {}
        inputs, labels, count = [], [], 1
        for spec in specs:
            kind = "ids" if spec[0] == "ids" else "bool" if spec[0] == "bool" else ""
            tokens = spec[1:] if kind else spec
            shape = tuple(int(t.partition(":")[2] or t) for t in tokens)
            dims = {}
            for d, token in enumerate(tokens):
                name, colon, size = token.partition(":")
                if colon:
                    self.env[name] = dims[d] = np.arange(count, count + int(size))
                    count += int(size)
            inputs.append(torch.zeros(shape, dtype=DTYPES[kind]))
            labels.append(Labels.of(shape, dims))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trace = trace_module(Call(row.call), tuple(inputs))
        self.flow = Flow(self.trace)
        self.flow.count = count
        names = list(self.trace.inputs)
        assert len(names) == len(labels), "every input is used"
        self.flow.values.update(zip(names, labels, strict=True))
        for node in self.trace.nodes:
            self.flow.node = node
            self.flow.values[node.name] = apply_rule(self.flow, node)
        facts = self.flow.facts
        edges = [(m.a.reshape(-1), m.b.reshape(-1)) for m in facts.merges]
        fixed = [np.maximum(a, b)[(a == 0) != (b == 0)] for a, b in edges]
        edges = [(a[(a != 0) & (b != 0)], b[(a != 0) & (b != 0)]) for a, b in edges]
        self.unit = components(count, edges)
        frozen = np.concatenate([np.zeros(0, int), *(f.labels.reshape(-1) for f in facts.freezes), *fixed])
        self.frozen = set(self.unit[frozen.astype(int)].tolist()) - {0}
        self.outputs = [self.flow.values[o] for o in self.trace.outputs]

    def value(self, text: str) -> Any:
        return eval(text, {"np": np, "z": lambda *n: np.zeros(n, int), **self.env})

    def partition(self, unit: np.ndarray) -> set[frozenset[int]]:
        classes: dict[int, set[int]] = {}
        for label, c in enumerate(unit.tolist()):
            classes.setdefault(c, set()).add(label)
        return {frozenset(s) for s in classes.values() if len(s) > 1}

    def equalities(self, text: str) -> np.ndarray:
        edges = []
        for clause in text.split():
            first, *rest = (np.asarray(self.value(part)) for part in clause.split("=="))
            edges += [tuple(np.broadcast_arrays(first, x)) for x in rest]
        return components(len(self.unit), [(np.array(a).reshape(-1), np.array(b).reshape(-1)) for a, b in edges])

    def expected(self, text: str, shape: tuple[int, ...]) -> Labels:
        factors: list[Factor] = []
        found: list[int] = []
        for token in text.split():
            if token.isdigit():
                found.append(int(token))
                continue
            a = np.asarray(self.value(token))
            factors.append(Factor(tuple(range(len(found), len(found) + a.ndim)), a))
            found += a.shape
        assert tuple(found) == shape, f"the row says {found}, torch says {shape}"
        return Labels(shape, tuple(factors)).simplified()

    def check(self, row: Row) -> None:
        assert self.partition(self.unit) == self.partition(self.equalities(row.same))
        stay = {int(x) for part in row.stay.split() for x in self.unit[np.ravel(self.value(part))]}
        assert self.frozen == stay - {0}
        wanted = row.outputs.split("|")
        assert len(wanted) == len(self.outputs)
        for text, out in zip(wanted, self.outputs, strict=True):
            assert isinstance(out, Labels)
            self.check_labels(self.expected(text, out.shape), out)
        facts = self.flow.facts
        even = len(facts.equals) + sum(len(_long(r.labels)) > 1 for r in facts.rectangles)
        assert even == row.even, (facts.equals, facts.rectangles)
        assert facts.unsupported == []

    def check_labels(self, wanted: Labels, out: Labels) -> None:
        a, b = ({f.dims: self.unit[f.labels] for f in x.factors} for x in (wanted, self._simple(out)))
        assert a.keys() == b.keys(), (wanted, out)
        for dims, units in a.items():
            assert units.tolist() == b[dims].tolist()

    def _simple(self, x: Labels) -> Labels:
        """Axes along which all are one unit say nothing, nor do frozen positions that are written as zeros."""
        return Labels(x.shape, tuple(Factor(f.dims, self.unit[f.labels]) for f in x.factors)).simplified()


def _long(labels: np.ndarray) -> list[int]:
    """Axes of a rectangle along which the labels change."""
    return [k for k in range(labels.ndim) if (labels != labels.take([0], axis=k)).any()]


def pool(f: Callable[..., Any], k: int) -> Row:
    size = " ".join(["4"] * k)
    n = " ".join(["2"] * k)
    return Row(lambda x: f(x, 2), f"2 a:6 {size}", f"2 a {n}")


def same_shape(*calls: Callable[..., Any]) -> Iterator[Row]:
    for call in calls:
        yield Row(call, "2 a:6 4", "2 a 4")


ROWS: dict[str, Row | list[Row]] = {
    # layers
    "linear": [
        Row(F.linear, "2 i:5 | o:7 j:5 | p:7", "2 o", "i==j o==p"),
        Row(F.linear, "2 3 i:5 | o:7 5", "2 3 o", "", "i"),
        Row(F.linear, "2 t:3 i:5 | o:7 j:5", "2 t o", "i==j"),
        Row(F.linear, "i:5 | o:7 j:5", "o", "i==j"),
    ],
    "conv1d": Row(F.conv1d, "2 i:4 9 | o:6 j:4 3 | p:6", "2 o 7", "i==j o==p"),
    "conv2d": [
        Row(F.conv2d, "2 i:4 9 9 | o:6 j:4 3 3 | p:6", "2 o 7 7", "i==j o==p"),
        Row(F.conv2d, "i:4 9 9 | o:6 j:4 3 3", "o 7 7", "i==j"),
        Row(lambda x, w: F.conv2d(x, w, groups=4), "2 i:4 9 9 | o:4 1 3 3", "2 i 7 7", "i==o"),
        Row(
            lambda x, w: F.conv2d(x, w, groups=4), "2 i:4 9 9 | o:8 1 3 3", "2 np.repeat(i,2) 7 7", "np.repeat(i,2)==o"
        ),
        Row(F.conv2d, "2 i:4 h:9 9 | o:6 j:4 k:3 3", "2 o 7 7", "i==j", "h k"),
    ],
    "conv3d": Row(F.conv3d, "1 i:4 3 3 3 | o:6 j:4 1 1 1", "1 o 3 3 3", "i==j"),
    "conv_transpose1d": Row(F.conv_transpose1d, "2 i:4 5 | j:4 o:6 2 | p:6", "2 o 6", "i==j o==p"),
    "conv_transpose2d": [
        Row(F.conv_transpose2d, "2 i:4 5 5 | j:4 o:6 2 2 | p:6", "2 o 6 6", "i==j o==p"),
        Row(lambda x, w: F.conv_transpose2d(x, w, groups=4), "2 i:4 5 5 | j:4 1 2 2", "2 i 6 6", "i==j"),
    ],
    "conv_transpose3d": Row(F.conv_transpose3d, "1 i:4 2 2 2 | j:4 o:6 1 1 1", "1 o 2 2 2", "i==j"),
    "avg_pool2d": [
        pool(F.avg_pool2d, 2),
        Row(lambda x: F.avg_pool2d(x, (2, 1)), "2 3 4 a:6", "2 3 2 a"),
        Row(lambda x: F.max_pool2d(x, (2, 1), (2, 1)), "2 3 4 a:6", "2 3 2 a"),
        Row(lambda x: F.avg_pool2d(x, (2, 1), (2, 2)), "2 3 4 a:6", "2 3 2 3", "", "a"),
        Row(lambda x: F.avg_pool2d(x, (1, 2)), "2 3 a:4 6", "2 3 a 3"),
        Row(lambda x: F.avg_pool2d(x, 2), "2 3 4 a:6", "2 3 2 3", "", "a"),
        Row(lambda x: F.adaptive_avg_pool2d(x, 1), "2 3 4 a:6", "2 3 1 1", "", "a"),
    ],
    "diff": [
        Row(lambda x: x.diff(1, 1), "2 a:6 b:4", "2 5 b", "", "a"),
        Row(lambda x, y: x.diff(2, 1, prepend=y), "2 6 b:4 | 2 1 c:4", "2 5 b", "b==c"),
    ],
    "batch_norm": [
        Row(lambda x: F.batch_norm(x, None, None, training=True), "1 a:4 b:5", "1 a b", "", "b"),
        Row(lambda x, m, v: F.batch_norm(x, m, v), "2 a:4 b:5 | m:4 | v:4", "2 a b", "a==m==v", "b"),
        Row(
            lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b),
            "2 a:4 5 | m:4 | v:4 | w:4 | b:4",
            "2 a 5",
            "a==m==v==w==b",
        ),
        Row(lambda x, m, v: F.batch_norm(x, m, v), "2 a:4 | m:4 | v:4", "2 a", "a==m==v"),
    ],
    "instance_norm": Row(
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b), "2 a:4 5 | w:4 | b:4", "2 a 5", "a==w==b"
    ),
    "layer_norm": [
        Row(lambda x, w, b: F.layer_norm(x, (4,), w, b), "2 3 a:4 | w:4 | b:4", "2 3 a", "a==w==b"),
        Row(lambda x: F.layer_norm(x, (4,)), "2 t:3 a:4", "2 t a"),
        Row(
            lambda x: F.layer_norm(x.view(2, 3, 4), (4,)),
            "2 a:12",
            "2 a[[0,4,8]] 4",
            "a[0:4]==a[0] a[4:8]==a[4] a[8:12]==a[8]",
            even=1,
        ),
    ],
    "rms_norm": Row(lambda x, w: F.rms_norm(x, (4,), w), "2 a:4 | w:4", "2 a", "a==w"),
    "group_norm": [
        Row(lambda x, w, b: F.group_norm(x, 2, w, b), "2 a:6 5 | w:6 | b:6", "2 a 5", "a==w==b", even=1),
        Row(lambda x: F.group_norm(x, 2), "2 a:6 s:5", "2 a s", "", "s", even=1),
    ],
    "prelu": [Row(F.prelu, "2 a:6 4 | w:6", "2 a 4", "a==w"), Row(F.prelu, "2 a:6 4 | 1", "2 a 4")],
    "embedding": Row(lambda w, i: F.embedding(i, w), "v:7 o:4 | ids 2 3", "2 3 o", "", "v"),
    "weight_norm": [
        Row(torch._weight_norm, "o:6 i:4 | p:6 1", "o i", "o==p"),
        Row(lambda v, g: torch._weight_norm(v, g, 1), "o:6 i:4 3 | 1 j:4 1", "o i 3", "i==j"),
        Row(lambda v, g: torch._weight_norm(v, g, -1), "o:6 i:4 | 1", "o i"),
        Row(lambda v, g: torch._weight_norm_interface(v, g)[0], "o:6 i:4 | p:6 1", "o i", "o==p"),
    ],
    # recurrent layers: every gate holds the same hidden units
    "lstm": [
        Row(
            lambda x, h, c, *w: torch.lstm(x, (h, c), w, True, 1, 0.0, False, False, False),
            "5 2 i:3 | 1 2 p:2 | 1 2 q:2 | g:8 j:3 | k:8 u:2 | b:8 | d:8",
            "5 2 p | 1 2 p | 1 2 p",
            "i==j p==q==u==g[:2]==g[2:4]==g[4:6]==g[6:] g==k==b==d",
        ),
        Row(
            lambda x, h, c, *w: torch.lstm(x, (h, c), w, True, 1, 0.0, False, False, False),
            "5 2 i:3 | 1 2 p:2 | 1 2 h:3 | g:12 j:3 | k:12 q:2 | b:12 | d:12 | r:2 v:3",
            "5 2 p | 1 2 p | 1 2 h",
            "i==j h==v==g[:3]==g[3:6]==g[6:9]==g[9:] g==k==b==d p==q==r",
        ),
        Row(
            lambda x, h, c, *w: torch.lstm(x, (h, c), w, False, 1, 0.0, False, False, False),
            "t:5 s:2 3 | 1 2 2 | 1 2 2 | g:8 j:3 | k:8 u:2",
            "5 2 u | 1 2 u | 1 2 u",
            "u==g[:2]==g[2:4]==g[4:6]==g[6:] g==k",
            "t s j u",
        ),
    ],
    "gru": [
        Row(
            lambda x, h, *w: torch.gru(x, h, w, False, 2, 0.0, False, False, False)[0],
            "5 2 i:3 | 2 2 s:2 | g:6 j:3 | k:6 u:2 | l:6 m:2 | n:6 v:2",
            "5 2 s",
            "i==j s==u==v==m==g[:2]==g[2:4]==g[4:]==l[:2]==l[2:4]==l[4:] g==k l==n",
        ),
        Row(
            lambda x, h, *w: torch.gru(x, torch.zeros_like(h), w, False, 2, 0.0, False, False, False)[0],
            "5 2 i:3 | 2 2 s:2 | g:6 j:3 | k:6 u:2 | l:6 m:2 | n:6 v:2",
            "5 2 v",
            "i==j s==u==m==g[:2]==g[2:4]==g[4:] v==l[:2]==l[2:4]==l[4:] g==k l==n",
            even=1,
        ),
    ],
    "rnn": [
        Row(
            lambda x, h, *w, f=f: f(x, torch.zeros_like(h), w, False, 1, 0.0, False, True, True)[0],
            "5 2 i:3 | 2 5 s:2 | g:2 j:3 | k:2 u:2 | l:2 m:3 | n:2 v:2",
            "5 2 np.r_[s,l]",
            "i==j==m s==g==k==u l==n==v",
            even=1,
        )
        for f in (torch.rnn_tanh, torch.rnn_relu)
    ],
    "cells": [
        Row(
            lambda x, h, c, *w: torch.lstm_cell(x, (h, c), *w),
            "2 i:3 | 2 p:2 | 2 q:2 | g:8 j:3 | k:8 u:2 | b:8 | d:8",
            "2 p | 2 p",
            "i==j p==q==u==g[:2]==g[2:4]==g[4:6]==g[6:] g==k==b==d",
        ),
        Row(
            torch.gru_cell,
            "2 i:3 | 2 p:2 | g:6 j:3 | k:6 u:2 | b:6 | d:6",
            "2 p",
            "i==j p==u==g[:2]==g[2:4]==g[4:] g==k==b==d",
        ),
        *(
            Row(f, "2 i:3 | 2 p:2 | g:2 j:3 | k:2 u:2 | b:2", "2 p", "i==j p==u==g==k==b")
            for f in (torch.rnn_tanh_cell, torch.rnn_relu_cell)
        ),
    ],
    # elementwise
    "relu": list(
        same_shape(
            torch.relu,
            torch.sigmoid,
            torch.tanh,
            torch.exp,
            torch.cos,
            torch.abs,
            torch.neg,
            torch.sqrt,
            torch.rsqrt,
            torch.log,
            torch.erf,
            torch.square,
            torch.zeros_like,
            torch.ones_like,
            F.gelu,
            F.silu,
            F.mish,
            F.relu6,
            F.hardswish,
            F.elu,
            F.celu,
            F.selu,
            F.softplus,
            F.hardtanh,
            F.hardsigmoid,
            F.leaky_relu,
            F.logsigmoid,
            lambda x: x.clamp(0, 1),
            lambda x: x.clamp_min(0),
            lambda x: x**2,
            lambda x: 2 - x,
            lambda x: 1 / x,
            lambda x: x.clone(),
            lambda x: x.contiguous(),
            lambda x: x.to(torch.float64),
            lambda x: x.detach(),
            lambda x: F.dropout(x, 0.5, False),
            lambda x: x.nan_to_num(),
            lambda x: F.threshold(x, 0.1, 0.0),
            lambda x: x > 0,
            lambda x: x.masked_fill(x > 0, 1.0),
            lambda x: x.relu_().mul_(2),
        )
    ),
    "add": [
        Row(torch.add, "2 a:6 | 2 b:6", "2 a", "a==b"),
        Row(torch.add, "2 a:6 4 | b:6 1", "2 a 4", "a==b"),
        Row(torch.add, "2 a:6 4 | 1", "2 a 4"),
        Row(torch.add, "2 a:6 4 | c:4", "2 a c", "", "c"),
        Row(torch.add, "2 a:6 1 | 2 1 c:4", "2 a c"),
        Row(torch.add, "2 a:6 | 2 6", "2 a", "", "a"),
        Row(lambda x: x + x, "2 a:6", "2 a"),
        Row(lambda x: x + x.flip(0), "2 a:6", "2 a"),
        Row(torch.add, "2 1 4 | 2 a:6 4", "2 a 4"),
    ],
    "mul": Row(torch.mul, "2 a:6 | b:6", "2 a", "a==b"),
    "maximum": [
        Row(f, "2 a:6 | b:6", "2 a", "a==b")
        for f in (
            torch.maximum,
            torch.minimum,
            torch.sub,
            torch.div,
            torch.max,
            torch.min,
            torch.atan2,
            torch.true_divide,
        )
    ],
    "where": [
        Row(torch.where, "bool 2 a:6 | 2 b:6 | b2:6", "2 a", "a==b==b2"),
        Row(lambda c, x: torch.where(c, x, 0.0), "bool 2 1 | 2 b:6", "2 b"),
    ],
    "addcmul": Row(torch.addcmul, "2 a:6 | 2 b:6 | 2 c:6", "2 a", "a==b==c"),
    "lerp": Row(lambda a, b: torch.lerp(a, b, 0.5), "2 a:6 | 2 b:6", "2 a", "a==b"),
    "type_as": Row(lambda a, b: a.type_as(b), "2 a:6 | 3", "2 a"),
    "softmax": [
        Row(lambda x: x.softmax(-1), "2 a:6 4", "2 a 4"),
        Row(lambda x: x.softmax(1), "2 a:6 4", "2 a 4"),
        Row(
            lambda x: x.view(2, 3, 4).softmax(-1),
            "2 a:12",
            "2 a[[0,4,8]] 4",
            "a[0:4]==a[0] a[4:8]==a[4] a[8:12]==a[8]",
            even=1,
        ),
    ],
    "log_softmax": Row(lambda x: x.log_softmax(-1), "2 a:6", "2 a"),
    "cumsum": [Row(lambda x: x.cumsum(-1), "2 a:6", "2 6", "", "a"), Row(lambda x: x.cumsum(1), "2 3 a:6", "2 3 a")],
    "flip": [Row(lambda x: x.flip(-1), "2 a:6", "2 6", "", "a"), Row(lambda x: x.flip(1), "2 3 a:6", "2 3 a")],
    "roll": Row(lambda x: torch.roll(x, (1, 1), (1, 2)), "2 3 3 a:6", "2 3 3 a"),
    "sort": [Row(lambda x: x.sort(1)[0], "2 3 a:6", "2 3 a"), Row(lambda x: x.argsort(-1), "2 a:6", "2 6", "", "a")],
    # shape
    "view": [
        Row(lambda x: x.view(2, 3, 4), "2 a:12", "2 a.reshape(3,4)", even=1),
        Row(lambda x: x.view(2, 12), "2 a:3 4", "2 np.repeat(a,4)"),
        Row(lambda x: x.view(2, 12), "2 4 a:3", "2 np.tile(a,4)"),
        Row(lambda x: x.view(6, 4), "2 3 a:4", "6 a"),
        Row(lambda x: x.view(2, 1, 12, 1), "2 a:12", "2 1 a 1"),
        Row(lambda x: x.view(2, 3, 2, 2).view(2, 12), "2 a:12", "2 a", even=1),
        Row(lambda x: x.reshape(2, 2, 6), "2 a:4 3", "2 np.repeat(a,3).reshape(2,6)", even=1),
    ],
    "reshape": [
        Row(lambda x: x.permute(0, 2, 1).reshape(2, -1), "2 a:3 4", "2 np.tile(a,4)"),
        Row(lambda x: x.flatten(1), "2 a:3 2 2", "2 np.repeat(a,4)"),
        Row(lambda x: x.flatten(), "a:3", "a"),
        Row(lambda x: x.unflatten(1, (3, 4)), "2 a:12 5", "2 a.reshape(3,4) 5", even=1),
        Row(lambda x, y: x.view_as(y), "2 a:12 | 2 3 4", "2 a.reshape(3,4)", "", "a", even=1),
        Row(lambda x, y: x.view_as(y), "2 a:12 | 2 b:12", "2 a", even=1),
        Row(lambda x, y: x.flatten(2).reshape_as(y), "2 a:3 4 5 | 2 b:3 4 5", "2 a 4 5", even=1),
        Row(lambda x: x.view(2, 2, 3, 5).transpose(1, 2).reshape(2, 6, 5), "2 a:6 5", "2 a[[0,3,1,4,2,5]] 5", even=1),
    ],
    "permute": [
        Row(lambda x: x.permute(0, 2, 3, 1), "2 a:6 4 5", "2 4 5 a"),
        Row(lambda x: x.permute(2, -3, 1), "a:6 b:4 5", "5 a b"),
        Row(lambda x: x.transpose(-1, 1), "2 a:6 4 5", "2 5 4 a"),
        Row(lambda x: x.t(), "2 a:6", "a 2"),
        Row(lambda x: x.mT, "2 a:6 3", "2 3 a"),
        Row(lambda x: x.T, "2 a:6", "a 2"),
        Row(lambda x: x.movedim(1, -1), "2 a:6 4 5", "2 4 5 a"),
        Row(lambda x: x.movedim((0, 1), (2, 0)), "b:2 a:6 4 5", "a 4 b 5"),
        Row(lambda x: x.swapaxes(0, 1), "2 a:6", "a 2"),
        Row(lambda x: x.swapdims(0, 1), "2 a:6", "a 2"),
        Row(lambda x: x.view(2, 3, 4).transpose(1, 2), "2 a:12", "2 a.reshape(3,4).T", even=1),
    ],
    "unsqueeze": Row(lambda x: x.unsqueeze(1)[:, None].unsqueeze(-1), "2 a:6", "2 1 1 a 1"),
    "squeeze": [
        Row(lambda x: x.squeeze(-1), "2 a:6 1", "2 a"),
        Row(lambda x: x.squeeze(), "1 a:6 1", "a"),
        Row(lambda x: x.squeeze(1), "2 a:6", "2 a"),
    ],
    "expand": [
        Row(lambda x: x.expand(3, -1, 4), "a:6 1", "3 a 4"),
        Row(lambda x, y: x.expand_as(y), "a:6 1 | 2 6 3", "2 a 3"),
    ],
    "repeat": [
        Row(lambda x: x.repeat(2, 1, 3), "2 a:6 4", "4 a 12"),
        Row(lambda x: x.repeat(1, 2), "2 a:3", "2 np.tile(a,2)"),
        Row(lambda x: x.tile(2), "2 a:3", "2 np.tile(a,2)"),
    ],
    "repeat_interleave": [
        Row(lambda x: x.repeat_interleave(2, 1), "2 a:3 4", "2 np.repeat(a,2) 4"),
        Row(lambda x: x.repeat_interleave(2, 2), "2 a:3 4", "2 a 8"),
    ],
    "select": [
        Row(lambda x: x[:, 0], "2 3 a:6", "2 a"),
        Row(lambda x: x.select(2, -1), "2 a:6 4", "2 a"),
        Row(lambda x: x[:, 1], "2 a:6", "2", "", "a"),
    ],
    "unbind": [
        Row(lambda x: x.unbind(1)[1], "2 3 a:6", "2 a"),
        Row(lambda x: x.view(2, 2, 3).unbind(1), "2 a:6", "2 a[:3] | 2 a[3:]", even=1),
    ],
    "slice": [
        Row(lambda x: x[:, 1:], "2 3 a:6", "2 2 a"),
        Row(lambda x: x[:, ::2], "2 4 a:6", "2 2 a"),
        Row(lambda x: x[:, :2], "2 a:6", "2 a[:2]"),
        Row(lambda x: x[..., 2:5], "2 a:6", "2 a[2:5]"),
        Row(lambda x: x[:, ::2], "2 a:6", "2 a[::2]", "a[::2]==a[1::2]", even=1),
        Row(lambda x: x[:, 2::3], "2 a:6", "2 a[::3]", "a[::3]==a[1::3]==a[2::3]", even=1),
        Row(lambda x: x[:, ::4], "2 a:6", "2 a[::4]", "", "a"),
        Row(lambda x: x[:, 1:5:2], "2 a:6", "2 a[1:5:2]", "", "a"),
        Row(lambda x: x.narrow(1, 1, 2), "2 3 a:6", "2 2 a"),
    ],
    "split": [
        Row(lambda x: x.split(3, 1), "2 a:6", "2 a[:3] | 2 a[3:]", even=1),
        Row(lambda x: x.split([2, 4], 1), "2 a:6", "2 a[:2] | 2 a[2:]"),
        Row(lambda x: x.split(2, 1), "2 4 a:6", "2 2 a | 2 2 a"),
        Row(lambda x: x.chunk(3, -1), "2 a:6", "2 a[:2] | 2 a[2:4] | 2 a[4:]", even=1),
        Row(lambda x: x.chunk(2, -1), "2 a:5", "2 a[:3] | 2 a[3:]", "", "a"),
        Row(lambda x: x.tensor_split(2, -1), "2 a:6", "2 a[:3] | 2 a[3:]", even=1),
    ],
    "cat": [
        Row(lambda x, y: torch.cat([x, y], 1), "2 a:3 | 2 b:4", "2 np.r_[a,b]"),
        Row(lambda x, y: torch.cat([y, x, y], -1), "2 a:3 | 2 2", "2 np.r_[z(2),a,z(2)]"),
        Row(lambda x, y: torch.cat([x, y], 2), "2 a:3 4 | 2 b:3 5", "2 a 9", "a==b"),
        Row(lambda x, y: torch.cat([x, y], 0), "2 a:3 | 1 3", "3 a", "", "a"),
        Row(lambda x: torch.cat([x, x], 1), "2 a:3", "2 np.tile(a,2)"),
    ],
    "hstack": [
        Row(lambda x, y: torch.hstack([x, y]), "2 a:3 | 2 b:4", "2 np.r_[a,b]"),
        Row(lambda x, y: torch.hstack([x, y]), "a:3 | b:4", "np.r_[a,b]"),
        Row(lambda x, y: torch.vstack([x, y]), "2 a:3 | 2 b:3", "4 a", "a==b"),
        Row(lambda x, y: torch.vstack([x, y]), "a:3 | b:3", "2 a", "a==b"),
    ],
    "expand_as": [
        Row(lambda x, y: x.expand_as(y), "2 1 | 2 b:4", "2 b"),
        Row(lambda x: F.normalize(x, dim=-1), "2 a:6", "2 a"),
    ],
    "stack": [
        Row(lambda x, y: torch.stack([x, y], 1), "2 a:3 | 2 b:3", "2 2 a", "a==b"),
        Row(lambda x: torch.stack([x, x], -1), "2 a:3", "2 a 2"),
    ],
    "pad": [
        Row(lambda x: F.pad(x, (1, 1)), "2 a:3 4", "2 a 6"),
        Row(lambda x: F.pad(x, (0, 0, 1, 2)), "2 a:3 4", "2 np.pad(a,(1,2)) 4"),
        Row(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "2 a:3 4 4", "2 a 6 6"),
        Row(lambda x: F.pad(x, (0, -1)), "2 a:3", "2 2", "", "a"),
    ],
    "glu": [Row(lambda x: F.glu(x, 1), "2 a:6 4", "2 a[:3] 4", "a[:3]==a[3:]"), Row(F.glu, "2 a:6 4", "2 a 2")],
    "pixel_shuffle": [
        Row(lambda x: F.pixel_shuffle(x, 2), "2 a:8 3 3", "2 a[[0,4]] 6 6", "a[:4]==a[0] a[4:]==a[4]"),
        Row(lambda x: F.pixel_unshuffle(x, 2), "2 a:3 4 4", "2 np.repeat(a,4) 2 2"),
    ],
    "channel_shuffle": [
        Row(lambda x: F.channel_shuffle(x, 2), "2 a:6 3", "2 a[[0,3,1,4,2,5]] 3", even=1),
        Row(lambda x: F.channel_shuffle(x, 3), "2 a:6 h:3 w:3", "2 a[[0,2,4,1,3,5]] h w", even=1),
    ],
    # pooling and reductions
    "max_pool": [pool(F.max_pool1d, 1), pool(F.max_pool2d, 2), pool(F.max_pool3d, 3)],
    "avg_pool": [pool(F.avg_pool1d, 1), pool(F.avg_pool2d, 2), pool(F.avg_pool3d, 3)],
    "adaptive": [
        pool(f, k)
        for k, f in (
            (1, F.adaptive_avg_pool1d),
            (2, F.adaptive_avg_pool2d),
            (3, F.adaptive_avg_pool3d),
            (1, F.adaptive_max_pool1d),
            (2, F.adaptive_max_pool2d),
        )
    ],
    "upsample": [
        Row(lambda x, m=m: F.interpolate(x, scale_factor=2, mode=m), f"2 a:3{' 2' * k}", f"2 a{' 4' * k}")
        for k, m in (
            (1, "nearest"),
            (2, "nearest"),
            (3, "nearest"),
            (1, "linear"),
            (2, "bilinear"),
            (2, "bicubic"),
            (3, "trilinear"),
            (2, "nearest-exact"),
        )
    ]
    + [Row(lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True), "2 a:3 2 2", "2 a 3 3")],
    "mean": [
        Row(lambda x: x.mean((2, 3)), "2 a:3 4 5", "2 a"),
        Row(lambda x: x.mean(-1, keepdim=True), "2 a:3 4", "2 a 1"),
        Row(lambda x: x.mean(1), "2 a:3 4", "2 4"),
        Row(lambda x: x.sum(1, keepdim=True), "2 a:3 4", "2 1 4"),
        Row(lambda x: x.sum(), "2 a:3", ""),
        Row(lambda x: x.amax(1), "2 4 a:3", "2 a"),
        Row(lambda x: x.amin(1), "2 4 a:3", "2 a"),
        Row(lambda x: x.std(1) + x.var(1), "2 4 a:3", "2 a"),
        Row(lambda x: x.norm(dim=1) + x.prod(1), "2 4 a:3", "2 a"),
        Row(lambda x: x.logsumexp(1), "2 4 a:3", "2 a"),
        Row(lambda x: (x > 0).any(1), "2 4 a:3", "2 a"),
        Row(lambda x: torch.linalg.vector_norm(x, dim=1), "2 4 a:3", "2 a"),
        Row(lambda x: x.max(1)[0] + x.median(1)[0], "2 4 a:3", "2 a"),
        Row(lambda x: x.argmax(-1), "2 a:3", "2", "", "a"),
        Row(lambda x: x.view(2, 3, 4).sum(1), "2 a:12", "2 a[:4]", "a[:4]==a[4:8]==a[8:]", even=1),
    ],
    "topk": [
        Row(lambda x: x.topk(2, 1)[0], "2 4 a:3", "2 2 a"),
        Row(lambda x: x.topk(2, -1)[0], "2 a:3", "2 2", "", "a"),
    ],
    # products
    "matmul": [
        Row(torch.matmul, "2 i:3 k:4 | l:4 j:5", "2 i j", "k==l"),
        Row(torch.matmul, "2 t:7 3 k:4 | 2 u:7 l:4 j:5", "2 t 3 j", "t==u k==l"),
        Row(torch.matmul, "k:4 | l:4 j:5", "j", "k==l"),
        Row(torch.matmul, "i:3 k:4 | l:4", "i", "k==l"),
        Row(torch.matmul, "i:3 k:4 | 4 j:5", "i j", "", "k"),
        Row(torch.mm, "i:3 k:4 | l:4 j:5", "i j", "k==l"),
        Row(torch.bmm, "2 i:3 k:4 | 2 l:4 j:5", "2 i j", "k==l"),
        Row(torch.mv, "i:3 k:4 | l:4", "i", "k==l"),
        Row(torch.dot, "k:4 | l:4", "", "k==l"),
        Row(torch.vdot, "k:4 | l:4", "", "k==l"),
    ],
    "addmm": [
        Row(torch.addmm, "b:5 | i:3 k:4 | l:4 j:5", "i j", "k==l b==j"),
        Row(torch.baddbmm, "2 1 b:5 | 2 i:3 k:4 | 2 l:4 j:5", "2 i j", "k==l b==j"),
        Row(torch.addmv, "b:3 | i:3 k:4 | l:4", "i", "k==l b==i"),
    ],
    "einsum": [
        Row(lambda x, y: torch.einsum("bic,jc->bij", x, y), "2 i:3 c:4 | j:5 d:4", "2 i j", "c==d"),
        Row(lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y), "2 h:3 5 d:4 | 2 g:3 7 e:4", "2 h 5 7", "h==g d==e"),
    ],
    "scaled_dot_product_attention": [
        Row(F.scaled_dot_product_attention, "2 h:3 5 4 | 2 k:3 7 4 | 2 v:3 7 w:8", "2 h 5 w", "h==k==v"),
        Row(F.scaled_dot_product_attention, "2 3 5 d:4 | 2 3 7 e:4 | 2 3 7 8", "2 3 5 8", "d==e", "d"),
        Row(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.5),
            "2 3 5 d:4 | 2 3 7 e:4 | 2 3 7 8",
            "2 3 5 8",
            "d==e",
        ),
        Row(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            "2 h:6 5 4 | 2 k:3 7 4 | 2 v:3 7 8",
            "2 h 5 8",
            "np.repeat(k,2)==h k==v",
        ),
    ],
    "grouped_mm_fallback": [
        Row(grouped_mm, "8 i:6 | 4 j:6 o:5 | ids 4", "8 o", "i==j"),
        Row(grouped_mm, "s:8 i:6 | e:4 6 o:5 | ids 4", "s o", "", "i e"),
    ],
    # indexing and creation
    "index": [
        Row(lambda x: x[:, [0, 2]], "2 4 a:6", "2 2 a"),
        Row(lambda x: x[:, [0, 2]], "2 a:6 4", "2 2 4", "", "a"),
        Row(lambda x: x[torch.arange(2), torch.tensor([1, 0])], "2 4 a:6", "2 a"),
        Row(lambda x, i: x.index_select(1, i), "2 4 a:6 | ids 3", "2 3 a"),
        Row(lambda x, m: x[m].sum(), "2 a:3 b:6 | bool 2 3", "", "", "a"),
        Row(lambda x, m: x[m], "2 3 b:6 | bool 2 3", "6 b"),
    ],
    "index_put": [
        Row(lambda x, v: x.index_put((torch.tensor([1, 0]),), v), "2 3 a:6 | 2 3 b:6", "2 3 a", "a==b"),
        Row(lambda x, v: x.index_put((torch.tensor([1, 0]),), v), "2 a:6 | b:6", "2 a", "a==b"),
        Row(lambda x, m, v: x.index_put((m,), v), "2 3 a:6 | bool 2 3 | b:6", "2 3 a", "a==b"),
        Row(lambda x, m, v: x.index_put((m,), v), "2 a:3 6 | bool 2 3 | 6", "2 3 6", "", "a"),
    ],
    "gather": [
        Row(lambda x, i: x.gather(1, i), "2 4 a:6 | ids 2 3 b:6", "2 3 a", "a==b"),
        Row(lambda x, i: x.gather(1, i), "2 4 a:6 | ids 2 3 b:5", "2 3 5", "", "a b"),
        Row(lambda x, i: x.gather(1, i), "2 a:4 b:6 | ids 2 c:3 d:6", "2 3 b", "b==d", "a c"),
        Row(lambda x, i: x.take_along_dim(i, 1), "2 4 a:6 | ids 2 3 1", "2 3 a"),
    ],
    "scatter": [
        Row(lambda x, i, v: x.scatter(1, i, v), "2 4 a:6 | ids 2 3 b:6 | 2 3 c:6", "2 4 a", "a==b==c"),
        Row(lambda x, i, v: x.scatter_add(1, i, v), "2 4 a:6 | ids 2 3 5 | 2 4 c:6", "2 4 a", "", "a c"),
        Row(lambda x, i, v: x.scatter_reduce(1, i, v, "amax"), "2 4 a:6 | ids 2 3 b:6 | 2 3 c:6", "2 4 a", "a==b==c"),
    ],
    "index_add": [
        Row(lambda x, i, v: x.index_add(1, i, v), "2 4 a:6 | ids 3 | 2 3 b:6", "2 4 a", "a==b"),
        Row(lambda x, i: x.index_fill(1, i, 0), "2 a:4 b:6 | ids 3", "2 4 b", "", "a"),
    ],
    "nonzero": Row(lambda x: x.nonzero().sum(), "2 a:6", "", "", "a"),
    "item": Row(lambda x: x.sum() * torch.zeros(max(1, x.shape[0])).sum().item(), "2 3", ""),
}
CASES = [(name, i, r) for name, rows in ROWS.items() for i, r in enumerate(rows if isinstance(rows, list) else [rows])]
SEEN: set[str] = set()


@pytest.mark.parametrize(("name", "i", "row"), CASES, ids=[f"{n}-{i}" for n, i, _ in CASES])
def test_row(name, i, row):
    run = Run(row)
    SEEN.update(n.op for n in run.trace.nodes)
    run.check(row)


# Rows for operations that torch.export does not give for eager code: other names, or parts of decompositions.
OTHER_NAMES = {
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
    "convolution",
    "native_layer_norm",
    "_prelu_kernel",
    "_softmax",
    "_log_softmax",
    "_unsafe_view",
    "broadcast_to",
    "native_dropout",
    "_to_copy",
    "max_pool2d_with_indices",
    "linalg_matmul",
    "concat",
    "concatenate",
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "unsafe_split",
    "unsafe_chunk",
    "multiply",
    "subtract",
    "divide",
    "true_divide",
    "numpy_T",
    "reshape_as",
    "ravel",
}


def test_every_rule_has_a_row_here():
    if len(SEEN) < 60:
        pytest.skip("run the whole file")
    rule = {name: record.labels for name, record in OPS.items()}
    rare = {k for k, r in rule.items() if r in (rule["dropout"], rule["zeros"], rule["sym_size"])}
    rare |= {k for k, r in rule.items() if k not in SEEN and any(r is rule[s] for s in SEEN if s in rule)}
    assert set(OPS) - SEEN - OTHER_NAMES - rare == set()
