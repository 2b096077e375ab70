"""Chains of shape operations, drawn at random, between two layers: what single rules say must hold together.

Each step knows the shape that it gets and writes its ints as numbers, as -1, from sizes at hand, or from attributes. A
pruned network equals the masked one, or the plan is refused with the model as it was. SOLVEMUT_NIGHTLY=1 tries more.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import assert_same, masked, outputs, randomise, tensors
from strategies_program import NIGHTLY
from torch import nn

import solvemut as sm

BATCHES, EACH = (60, 100) if NIGHTLY else (6, 20)
Step = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]  # of the module, its value and another like it


class Draw:
    """Draws steps; each is tried on the values that it gets."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def size(self, shape: torch.Size, d: int, k: int = 1) -> str:
        """The size of a dim over k, as source text."""
        n = shape[d] // k
        ways = [str(n), *[f"h.shape[{d}]" + (f" // {k}" if k > 1 else "")] * 4]
        if n == 4:
            ways.append("m.four")
        return self.r.choice(ways)

    def sizes(self, shape: torch.Size, d: int) -> list[str]:
        return [self.size(shape, k) if k != d else "?" for k in range(len(shape))]

    def split_dim(self, shape: torch.Size) -> str:
        d = self.r.randrange(len(shape))
        k = self.r.choice([k for k in (1, 2, 4, 8) if shape[d] % k == 0])
        inner, outer = self.size(shape, d, k), self.r.choice([str(k), "m.four" if k == 4 else str(k)])
        pair = self.r.choice([[outer, inner], [inner, outer], [outer, "-1"], ["-1", outer]])
        rest = self.sizes(shape, d)
        rest[d : d + 1] = pair
        how = self.r.choice(["view", "reshape", "unflatten"])
        if how == "unflatten":
            return f"h.unflatten({d}, ({', '.join(pair)}))"
        return f"h.contiguous().{how}({', '.join(rest)})"

    def join_dims(self, shape: torch.Size) -> str:
        if len(shape) < 3:
            return "h"
        d = self.r.randrange(1, len(shape) - 1)
        return self.r.choice([f"h.flatten({d}, {d + 1})", f"h.flatten({d})"])

    def move(self, shape: torch.Size) -> str:
        n = len(shape)
        order = list(range(n))
        self.r.shuffle(order)
        a, b = self.r.randrange(n), self.r.randrange(n)
        return self.r.choice([f"h.permute({order})", f"h.transpose({a}, {b - n})", f"h.movedim({a}, {b})"])

    def cut(self, shape: torch.Size) -> str:
        d = self.r.randrange(len(shape))
        n = shape[d]
        if n % 2:
            return f"h.flip({d})"
        half = self.size(shape, d, 2)
        k = self.r.randrange(n)
        return self.r.choice(
            [
                f"torch.cat(h.chunk(2, {d})[::-1], {d})",
                f"torch.cat(h.split({half}, {d})[::-1], {d})",
                f"h.chunk(2, {d})[1]",
                f"torch.cat([h.narrow({d}, {half}, {half}), h.narrow({d}, 0, {half})], {d})",
                f"h.select({d}, {k})",
                f"torch.cat(h.chunk(2, {d})[::-1], {d})",
                f"torch.cat(h.split({half}, {d})[::-1], {d})",
                f"h.chunk(2, {d})[0]",
                f"torch.stack(h.unbind({d})[::-1], {d})",
                f"h.unbind({d})[{k}]",
                f"h.narrow({d}, {k}, {n - k})",
                f"h.roll({k}, {d})",
                f"torch.cat(h.tensor_split([{k}], {d})[::-1], {d})",
                f"h.movedim({d}, 0)[{k}:].movedim(0, {d})",
                f"h.flip({d})",
                f"h.movedim({d}, 0)[::2].movedim(0, {d})",
                f"h.movedim({d}, 0)[[0, -1]].movedim(0, {d})",
                f"torch.cat([h.movedim({d}, 0)[-{half}:], h.movedim({d}, 0)[: -({half})]]).movedim(0, {d})",
            ]
        )

    def grow(self, shape: torch.Size) -> str:
        n = len(shape)
        d, times = self.r.randrange(n), self.r.choice([1, 2])
        repeats = [times if k == d else 1 for k in range(n)]
        sizes = ", ".join(self.r.choice(["-1", self.size(shape, k)]) for k in range(n))
        return self.r.choice(
            [
                f"h.repeat({repeats})",
                f"h.repeat_interleave(2, {d})",
                f"h.unsqueeze({d})",
                f"h.squeeze({d})",
                "h.squeeze()",
                f"h.unsqueeze({d}).expand(*h.shape[:{d}], 2, *h.shape[{d}:])",
                f"h.expand({sizes})",
                f"torch.cat([h, g], {d})",
                f"torch.stack([h, g], {d})",
                f"F.pad(h, (0, 0) * {n - 1 - d} + (1, 0))",
                f"torch.cat([h, torch.zeros_like(h)], {d})",
            ]
        )

    def mix(self, shape: torch.Size) -> str:
        d = self.r.randrange(len(shape))
        return self.r.choice(
            [
                "h + g",
                "h * g.sigmoid()",
                f"h.sum({d})",
                f"h.sum({d}, keepdim=True)",
                f"h * h.sum({d}, keepdim=True)",
                "h.relu()",
                f"h * h.sum({d}, keepdim=True).expand_as(h)",
                "(h @ g.transpose(-1, -2))",
                f"h.cumsum({d})",
                "h.reshape_as(g)",
                f"h.sort({d}).values",
                f"h + h.argmax({d}, keepdim=True)",
                "h.mT @ g",
                "h - g.relu()",
                "torch.einsum('...i,...i->...', h, g).unsqueeze(-1)",
                f"h * torch.full(h.shape[{d}:], 3.0)",
            ]
        )

    def step(self, shape: torch.Size) -> str:
        kinds = [self.split_dim, self.split_dim, self.join_dims, self.move, self.cut, self.grow, self.mix]
        return self.r.choice(kinds)(shape)


def step(text: str) -> Step:
    found: Step = eval(f"lambda m, h, g: {text}", {"torch": torch, "F": nn.functional})
    return found


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "flat": (lambda: nn.Linear(5, 16), (3, 5)),
    "tokens": (lambda: nn.Linear(5, 16), (2, 6, 5)),
    "seq": (lambda: nn.Conv1d(5, 16, 1), (2, 5, 6)),
    "image": (lambda: nn.Conv2d(5, 16, 1), (2, 5, 2, 4)),
}


class Chain(nn.Module):
    """Layers a and b of one shape, the same steps on both, and linear layers over all or over the last dim."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = Draw(seed)
        make, shape = KINDS[draw.r.choice(list(KINDS))]
        self.a, self.b, self.four = make(), make(), 4
        self.x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.steps: list[Step] = []
        self.text: list[str] = []
        with torch.no_grad():
            h, g = self.a(self.x), self.b(self.x)
            for _ in range(draw.r.randint(1, 5)):
                self.add(draw, h, g)
                h, g = self.run(self.steps[-1:], h, g)
        self.flat = draw.r.random() < 0.7
        self.o, self.p = (nn.Linear(h.numel() if self.flat else h.shape[-1], 3) for _ in range(2))

    def add(self, draw: Draw, h: torch.Tensor, g: torch.Tensor) -> None:
        """One more step that runs, and leaves something to work with."""
        while True:
            text = draw.step(h.shape)
            try:
                y, _ = self.run([step(text)], h, g)
            except (RuntimeError, IndexError, TypeError, ValueError):
                continue
            if 1 <= y.dim() <= 5 and 0 < y.numel() <= 4000:
                self.text.append(text)
                self.steps.append(step(text))
                return

    def run(self, steps: list[Step], h: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for f in steps:
            h, g = f(self, h, g), f(self, g, h)
        return h, g

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, g = self.run(self.steps, self.a(x), self.b(x))
        return self.o(h.flatten() if self.flat else h) + self.p(g.flatten() if self.flat else g)


def outcome(seed: int) -> str:
    """What becomes of one chain; fails if it is wrong."""
    model = randomise(Chain(seed))
    x, original = model.x, copy.deepcopy(model)
    text = f"{seed} {tuple(x.shape)}:\n" + "\n".join(model.text)
    r = random.Random(seed)
    stage = "capture"
    try:
        graph = sm.capture(model, x)
        problem = sm.Problem(graph)
        problem.maximize(sm.values.random(seed))
        size = r.choice([4, 8, 8, 12, 15, 15])
        problem.add(r.choice([graph["a"].out <= size, graph.params <= r.uniform(0.4, 0.99) * graph.params.now]))
        stage = "plan"
        plan = problem.solve(time_limit=20)
        stage = "apply"
        plan.apply(model)
    except sm.errors.SolvemutError as e:
        assert "report this model" not in str(e), f"{e}\n{text}"
        assert all(torch.equal(a, b) for a, b in zip(tensors(model).values(), tensors(original).values(), strict=True))
        return "infeasible" if isinstance(e, sm.errors.InfeasibleError) else f"refused at {stage}"
    except Exception as e:
        raise AssertionError(f"{type(e).__name__} at {stage}: {e}\n{text}") from e
    try:
        assert_same(outputs(model, (x,)), outputs(masked(original, plan), (x,)), 1e-8)
    except (AssertionError, RuntimeError) as e:
        raise AssertionError(f"another function: {e}\n{text}\n{plan}") from e
    return "pruned and equal" if any(a != b for a, b in plan.sizes.values()) else "nothing changed"


@pytest.fixture(autouse=True)
def exact() -> Any:
    """What a forward creates is as exact as the rest."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_chains_of_shape_operations(batch):
    found = Counter(outcome(1000 * batch + k) for k in range(EACH))
    assert found["pruned and equal"] > EACH // 10, found
