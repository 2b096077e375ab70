"""Forwards drawn from a grammar of size arithmetic, branches and index operations.

Each is Python source that is written, compiled and captured. Whatever it does with sizes, a pruned network equals the
masked one, or the sizes stay, or the plan is refused with the model as it was.
"""

from __future__ import annotations

import copy
import linecache
import math
import os
import random
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from oracles import assert_same, masked, outputs, randomise, tensors
from torch import nn

import solvemut as sm

NIGHTLY = bool(os.environ.get("SOLVEMUT_NIGHTLY"))
BATCHES, EACH = (40, 100) if NIGHTLY else (6, 25)


class Config:
    """Sizes that no module holds: plain ints to everybody."""

    def __init__(self) -> None:
        self.width, self.heads = 12, 3


class Draw:
    """Draws a program, line by line; `h` is the value at hand, [3, 12] at the start."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.lines: list[str] = []
        self.depth = 0

    # -- numbers ---------------------------------------------------------------------------------------------------

    def read(self) -> str:
        """An int that has to do with a size."""
        return self.r.choice(
            [
                "h.shape[1]",
                "h.size(1)",
                "h.size(-1)",
                "h.shape[-1]",
                "len(h[0])",
                "h.numel()",
                "h[0].numel()",
                "self.a.out_features",
                "self.o.in_features",
                "self.b.weight.shape[0]",
                "len(self.a.weight)",
                "self.width",
                "self.heads",
                "self.config.width",
                "self.config.heads",
                "h.shape[0]",
                "x.shape[1]",
                "list(h.shape)[1]",
                "h.shape.numel()",
                "self.norm.normalized_shape[0]",
                "self.a.weight.size(0)",
                "tuple(h.size())[-1]",
            ]
        )

    def number(self, depth: int = 0) -> str:
        """An int expression."""
        if depth > 2 or self.r.random() < 0.35:
            return self.read() if self.r.random() < 0.7 else str(self.r.randint(1, 6))
        a, b, k = self.number(depth + 1), self.number(depth + 1), self.r.randint(1, 5)
        return self.r.choice(
            [
                f"({a} + {b})",
                f"({a} - {b})",
                f"({a} * {k})",
                f"({a} // {k})",
                f"({a} % {k})",
                f"(-{a})",
                f"abs({a})",
                f"divmod({a}, {k})[0]",
                f"divmod({a}, {k})[1]",
                f"({a} << 1)",
                f"({a} >> 1)",
                f"({a} & 6)",
                f"({a} | 1)",
                f"min({a}, {b})",
                f"max({a}, {b})",
                f"sum([{a}, {b}])",
                f"round({a})",
                f"int({a})",
                f"math.gcd({a}, {k})",
                f"math.prod(({a}, {k}))",
                f"len(range({a}))",
                f"[{k}, {k + 1}]['{k}' in str({a})]",
                f"int({a} / {k})",
                f"{{12: 3, 6: 5}}.get({a}, {k})",
                f"(lambda n: n + {k})({a})",
                f"math.ceil({a} / {k})",
                f"int(f'{{{a}}}')",
                f"next(n for n in range(99) if n * n >= {a})",
                f"int(np.prod([{a}, {k}]))",
                f"int(torch.tensor({k}) * {k})",
                f"({a} if {b} > {k} else {k})",
            ]
        )

    def fraction(self) -> str:
        """A small float expression."""
        a, k = self.number(), self.r.randint(1, 6)
        return self.r.choice(
            [
                f"1.0 / (1 + abs({a}))",
                f"math.log2(1 + abs({a}))",
                f"math.sqrt(abs({a}))",
                f"(1 + abs({a})) ** -0.5",
                f"float({a}) / 8",
                f"0.1 * ({a})",
                f"np.sqrt(abs({a})) / 4",
                f"math.sin({a})",
                f"({a}) / {k}",
            ]
        )

    def question(self) -> str:
        a, b, k = self.number(1), self.number(1), self.r.choice([1, 2, 3, 4, 6, 8, 10, 12, 36])
        return self.r.choice(
            [
                f"{a} > {k}",
                f"{a} == {b}",
                f"{a} != {b}",
                f"{a} <= {k}",
                f"{a} % {k % 5 + 2} == 0",
                f"{a} in (6, 12, 24)",
                f"not {a} - {k}",
                f"{a} < {b} or {b} > {k}",
                "h.shape == x.shape",
                "h.shape == self.b(x).shape",
                f"any(n > {k} for n in h.shape)",
                f"all(n < {k} for n in ({a}, {b}))",
                f"bool({a} - {k})",
                f"'{k}' in f'{{{a}}}'",
                f"isinstance({a}, int)",
                f"({a}, {b}) > ({k}, {k})",
                f"{a} is {k}",
            ]
        )

    # -- statements ------------------------------------------------------------------------------------------------

    def use(self) -> str:
        """An expression for the next h, of the width it has."""
        n, f = self.number(1), self.fraction()
        return self.r.choice(
            [
                f"h * ({f})",
                f"h + {n}",
                f"h - ({f})",
                f"torch.full_like(h, {n}) + h",
                f"h * torch.tensor(float({n}))",
                "h + self.b(x)",
                "torch.relu(h)",
                "self.norm(h)",
                "h * self.b(x).sigmoid()",
                "self.mid(h)",
                "h.flip(0)",
                f"h.roll({n}, 1)",
                f"h.roll({n}, 0)",
                "h.view(h.shape[0], -1)",
                "h.reshape(3, self.heads, -1).flatten(1)",
                "h.view(3, 3, -1).transpose(1, 2).flatten(1)",
                "h.unflatten(1, (-1, 2)).flip(2).flatten(1)",
                "torch.cat(h.chunk(2, 1)[::-1], 1)",
                "torch.cat(h.split(h.shape[1] // 2, 1)[::-1], 1)",
                f"torch.cat([h[:, {n} % 7 :], h[:, : {n} % 7]], 1)",
                "torch.cat(h.tensor_split([4], 1)[::-1], 1)",
                "torch.cat([h.narrow(1, 4, h.shape[1] - 4), h.narrow(1, 0, 4)], 1)",
                "torch.cat(h.split(4, 1)[::-1], 1)",
                "h[:, torch.arange(h.shape[1]).flip(0)]",
                "h.index_select(1, torch.arange(h.shape[1] - 1, -1, -1))",
                "h + torch.arange(h.shape[1])",
                "h + torch.zeros(h.shape[1])",
                f"h + torch.ones(1, {n} * 0 + 1)",
                "h + h.mean(1, keepdim=True)",
                "h + h.max(1, keepdim=True).values",
                "h + h.argmax(1, keepdim=True)",
                "h.softmax(1)",
                "h.cumsum(1)",
                "h * h.shape[1] / self.a.out_features",
                "(h.unsqueeze(1) @ h.unsqueeze(2)).squeeze(1) + h",
                "nn.functional.pad(h, (1, 0))[:, 1:]",
                "h.repeat(1, 2)[:, : h.shape[1]]",
                "h.repeat_interleave(2, 1)[:, ::2]",
                "h.expand(h.shape[0], h.shape[1])",
                "torch.stack(h.unbind(1), 1)",
                "torch.stack([t for t in h], 0)",
                "nn.functional.layer_norm(h, h.shape[1:])",
                f"h.clamp(max={n} + 50)",
                "h.sort(1).values",
                "h.clone()",
                "torch.einsum('bi,bi->b', h, h).unsqueeze(1) + h",
                "torch.where(h > 0, h, h * 0.1)",
                "h.t().t()",
                "nn.functional.group_norm(h, self.heads)",
                "h.diff(dim=1, prepend=h[:, :1])",
                "h.topk(h.shape[1], 1).values",
                "h.masked_fill(torch.eye(h.shape[1])[0].bool(), 0.0)",
                "h.unsqueeze(2).squeeze()",
                "h.to(torch.float64)",
            ]
        )

    def line(self, text: str) -> None:
        self.lines.append("    " * (2 + self.depth) + text)

    def statement(self) -> None:
        kind = self.r.random()
        if kind < 0.62 or self.depth > 1:
            self.line(f"h = {self.use()}")
        elif kind < 0.85:
            self.line(f"if {self.question()}:")
            self.depth += 1
            self.statement()
            self.depth -= 1
            if self.r.random() < 0.4:
                self.line("else:")
                self.depth += 1
                self.statement()
                self.depth -= 1
        elif kind < 0.92:
            self.line(f"for k in range(abs({self.number(1)}) % 3):")
            self.depth += 1
            self.line(self.r.choice(["h = h + k", "h = torch.relu(h) * (k + 1)"]))
            self.depth -= 1
        elif kind < 0.96:
            place = self.r.choice(["0", "-1", ":2", "::2"])
            self.line(f"h[:, {place}] = 0.5" if self.r.random() < 0.3 else "h = h.clone()")
        else:
            self.line(f"h = getattr(self, ['id', 'act'][({self.number(1)}) % 2])(h)")

    def source(self) -> str:
        for _ in range(self.r.randint(1, 4)):
            self.statement()
        return "\n".join(
            [
                "class Net(Base):",
                "    def forward(self, x):",
                "        h = self.a(x)",
                *self.lines,
                "        return self.o(h)",
                "",
            ]
        )


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mid, self.o = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.norm, self.id, self.act = nn.LayerNorm(12), nn.Identity(), nn.Tanh()
        self.width, self.heads, self.config = 12, 3, Config()


X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def network(source: str, name: str) -> nn.Module:
    """The module of a program, with its source where tracebacks look for it."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    names: dict[str, Any] = {"Base": Base, "torch": torch, "nn": nn, "math": math, "np": np}
    exec(compile(source, name, "exec"), names)
    return randomise(names["Net"]().double())


def runs(model: nn.Module) -> bool:
    """Whether a program is one: it runs, gives finite numbers, and its output depends on its input."""
    try:
        y, z = model(X), model(X + 1)
    except Exception:
        return False
    return y.shape == (3, 3) and bool(torch.isfinite(y).all()) and not torch.equal(y, z)


def statistics_over_units(source: str) -> bool:
    """Functions that run over all units, where what is masked need not be 0 any more: a mean, a product of values."""
    words = "mean( max(1 softmax functional.layer_norm group_norm sort( topk diff( @ einsum"
    return any(w in source for w in words.split())


def outcome(source: str, seed: int) -> str:
    """What becomes of one program; fails if it is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `is` with a number
            model = network(source, f"<program {seed}>")
    except SyntaxError:  # quotes within quotes, before Python 3.12
        return "is no program"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not runs(model):
            return "is no program"
        original = copy.deepcopy(model)
        rng = np.random.default_rng(seed)
        stage = "capture"
        try:
            graph = sm.capture(model, X)
            problem = sm.Problem(graph)
            problem.maximize(lambda v: rng.uniform(size=v.nout))
            name = str(rng.choice(["a", "b", "mid"]))
            if rng.random() < 0.5:
                problem.add(graph.params <= float(rng.uniform(0.3, 0.9)) * graph.params.now)
            else:
                problem.add((graph[name] if name in graph else graph["a"]).out == int(rng.integers(3, 12)))
            stage = "plan"
            plan = problem.solve(time_limit=20)
            stage = "apply"
            plan.apply(model)
        except sm.errors.SolvemutError as e:
            assert "report this model" not in str(e), f"{e}\n{source}"
            pairs = zip(tensors(model).values(), tensors(original).values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs) and model.a.out_features == 12, source
            return "infeasible" if isinstance(e, sm.errors.InfeasibleError) else f"refused at {stage}"
        if not statistics_over_units(source):
            try:
                assert_same(outputs(model, (X,)), outputs(masked(original, plan), (X,)), 1e-8)
            except (AssertionError, RuntimeError) as e:
                raise AssertionError(f"another function:\n{source}\n{e}\n{plan}") from e
        changed = any(a != b for a, b in plan.sizes.values())
        return "pruned and equal" if changed else "nothing changed"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_forwards_from_a_grammar(batch):
    found = Counter(outcome(Draw(1000 * batch + k).source(), 1000 * batch + k) for k in range(EACH))
    assert found["pruned and equal"] > 0, found
    assert found["is no program"] < 0.6 * EACH, found
