"""Widths, branches, or both: ``python benchmarks/depth.py``.

Three shapes (ResNet-50; a DeiT of 12 layers, 384 wide; a Llama of 16 layers, 1024 wide, on meta tensors) to the same
budgets: by widths alone, by whole branches alone, and by both in one program. What counts is `retention(p=2)`, and each
branch 0.5 by itself, so that the three answers are on one scale. A row tells the value (0 is the whole network), how
near to the optimum it is proven to be, the branches that went, and the seconds. ResNet-50 needs torchvision, Llama
transformers.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from budget import table, torchvision_models

import solvemut as sm
from solvemut.errors import InfeasibleError, TimeLimitError

WORTH = 0.5  # of a branch


class Layer(nn.Module):
    """A layer of a transformer, as DeiT has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))


def resnet50() -> tuple[nn.Module, torch.Tensor]:
    return torchvision_models().resnet50(weights=None).eval(), torch.zeros(1, 3, 224, 224)


def deit() -> tuple[nn.Module, torch.Tensor]:
    layers = [Layer(384, 6) for _ in range(12)]
    return nn.Sequential(nn.Linear(768, 384), *layers, nn.LayerNorm(384), nn.Linear(384, 1000)), torch.zeros(
        1, 196, 768
    )


def llama() -> tuple[nn.Module, torch.Tensor]:
    torchvision_models()  # transformers imports torchvision
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        use_cache=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).eval(), torch.zeros(1, 128, dtype=torch.long)


SHAPES: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], dict[str, float], int]] = {
    "resnet50": (resnet50, {"flops": 0.5}, 8),
    "deit": (deit, {"flops": 0.5}, 8),
    "llama": (llama, {"params": 0.6}, 32),
}


def rows(name: str, seconds: float) -> list[list[str]]:
    """One for each way."""
    build, budgets, multiple = SHAPES[name]
    torch.manual_seed(0)
    model, x = build()
    graph = sm.capture(model, x)
    start = time.perf_counter()
    found = graph.removable
    tried = time.perf_counter() - start
    out = []
    for way in ("widths", "branches", "both"):
        problem = sm.Problem(graph)
        problem.add(*(graph.cost(k) <= v * graph.cost(k).now for k, v in budgets.items()))
        problem.round_to(multiple)
        if way != "widths":
            problem.drop(found, dict.fromkeys((r.name for r in found), WORTH))
        if way == "branches":
            problem.keep(*(v.name for v in graph.vertices if v.makes_units))
        start = time.perf_counter()
        try:
            plan = problem.solve(time_limit=seconds, gap=1e-3)
        except (InfeasibleError, TimeLimitError) as e:
            out.append([name, way, "none", "", "", type(e).__name__, f"{time.perf_counter() - start:.1f}"])
            continue
        gone = {e.module for e in plan.edits if e.kind == "bypass"}
        went = sum(r.edits[-1].module in gone for r in found)
        spent = time.perf_counter() - start
        out.append(
            [
                name,
                way,
                f"{plan.objective:.4f}",
                f"{plan.gap:.1e}",
                f"{went} of {len(found)}",
                plan.status,
                f"{spent:.1f}",
            ]
        )
    print(f"{name}: {len(found)} branches, tried in {tried:.1f} s", file=sys.stderr)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each solve (default %(default)s)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found = [row for name in args.shapes for row in rows(name, args.seconds)]
    print(table(["shape", "by", "value", "gap", "branches gone", "status", "s"], found))


if __name__ == "__main__":
    main()
