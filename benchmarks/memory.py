"""Bytes counted against bytes held: ``python benchmarks/memory.py``.

For each torchvision model, at batch 2 and 224 x 224 pixels: the peak of a forward as the graph counts it and as a real
forward on the processor holds it, before and after pruning to half of it. Needs torchvision (see benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from allocations import peak_bytes
from budget import table, torchvision_models

import solvemut as sm
from solvemut.errors import InfeasibleError

MODELS = ("resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "vit_b_16", "convnext_tiny", "googlenet", "swin_t")


def row(name: str, share: float) -> list[str]:
    """Counted and found, before and after."""
    more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(torchvision_models(), name)(weights=None, **more).eval()
    x = torch.zeros(2, 3, 224, 224)
    graph = sm.capture(model, x)
    start = time.perf_counter()
    counted = graph.memory.now
    seconds = time.perf_counter() - start
    cells = [name, str(counted), str(peak_bytes(model, (x,))), f"{seconds:.1f}"]
    start = time.perf_counter()
    try:
        plan = sm.prune(model, x, memory=share)
    except InfeasibleError as e:
        return [*cells, str(e).rpartition("would do is ")[2], "cannot be", "", ""]
    seconds = time.perf_counter() - start
    return [*cells, str(plan.costs["memory"].after), str(peak_bytes(model, (x,))), f"{plan.gap:.0e}", f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--share", type=float, default=0.5, help="of the peak that stays")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    header = ["model", "counted", "found", "s", "plan: counted", "found", "gap", "s"]
    print(table(header, [row(name, args.share) for name in args.models]))


if __name__ == "__main__":
    main()
