"""Make a trained network deeper without losing what it learned.

A small convolutional network learns the handwritten digits of scikit-learn. Two convolutions, initialised to pass on
what they get, are then inserted, with the optimizer that trains the rest: the outputs are the same before and after.
It trains on, beside two others that see as many steps in all:

* grown:    the deeper network, which began as the trained one
* fresh:    a network of the same depth, trained from the start
* original: the trained network, trained on as it is

Run it: ``python examples/grow_depth.py``. It needs no download: the digits ship with scikit-learn.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import solvemut as sm

WIDTH, BATCH = 8, 50
DEEPER = ("deeper1", "deeper2")
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(seed: int, train: int = 1200) -> Data:
    """1797 images of 8x8 pixels, split at random into 1200 to train on and 597 to test on."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.long)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:train]], y[order[:train]], x[order[train:]], y[order[train:]]


def network(deep: bool) -> nn.Module:
    """A stem, with `deep` two more layers, and a head. ReLUs of what is positive change nothing."""
    net = sm.Builder("Digits")
    v = net.layer(nn.Conv2d(1, WIDTH, 3, padding=1), net.input("image", 1), name="stem")
    v = net.apply(torch.relu, v, name="act")
    for name in DEEPER if deep else ():
        v = net.layer(deeper(), v, name=name)
    pooled = net.layer(nn.Flatten(), net.layer(nn.AvgPool2d(4), v, name="pool"), name="flat")
    return net.build(net.layer(nn.Linear(4 * WIDTH, 10), pooled, name="head"))


def deeper() -> nn.Sequential:
    """One more layer: a convolution and a ReLU, which leaves alone what came out of one."""
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, steps: int, seed: int) -> None:
    """So many steps of SGD, on batches that depend on the seed alone."""
    x, y = data[:2]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()


@torch.no_grad()
def tested(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss on the test images, and the percentage that is read right."""
    out = model(data[2])
    return F.cross_entropy(out, data[3]).item(), 100 * (out.argmax(1) == data[3]).double().mean().item()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def grow(model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor) -> float:
    """Insert two layers that pass on what they get; returns by how much the outputs moved."""
    with torch.no_grad():
        before = model(image)
        mut = sm.Mutator(model, image[:2], optimizer=optimizer)
        for after, name in zip(("act", DEEPER[0]), DEEPER, strict=True):
            block = deeper()
            sm.identity_init(block[0])
            mut.insert(after, block, name=name)
        moved = (model(image) - before).abs().max().item()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}, "the optimizer does not train the new layers"
    assert moved <= 1e-5, f"the outputs moved by {moved}"
    return moved


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, grow, train on; returns loss and accuracy of each network, and how much the insertion moved outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="steps before the insertion, and after it (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: more threads cost more than they save
    start, steps, seed = time.perf_counter(), options.steps, options.seed
    data = digits(seed)
    torch.manual_seed(seed)
    original = network(deep=False)
    optimizer = optimizer_of(original)
    train(original, optimizer, data, steps, seed)
    found: dict[str, Any] = {"trained": tested(original, data)}
    grown, same_optimizer = copy.deepcopy((original, optimizer))  # together, so that the copies belong together
    found["moved"] = grow(grown, same_optimizer, data[2][:100])
    found["inserted"] = tested(grown, data)
    fresh = network(deep=True)
    assert set(fresh.state_dict()) == set(grown.state_dict())
    train(grown, same_optimizer, data, steps, seed + 1)
    train(original, optimizer, data, steps, seed + 1)
    train(fresh, optimizer_of(fresh), data, 2 * steps, seed + 2)
    found |= {"grown": tested(grown, data), "fresh": tested(fresh, data), "original": tested(original, data)}
    print(f"two layers inserted after {steps} steps: the outputs moved by {found['moved']:.1e}")
    for name, told in (
        ("trained", f"{steps} steps"),
        ("inserted", "the same, two layers deeper"),
        ("grown", f"and {steps} steps on"),
        ("fresh", f"as deep, {2 * steps} steps from the start"),
        ("original", f"as it was, {2 * steps} steps"),
    ):
        error, right = found[name]
        print(f"  {name:<9} test loss {error:.4f}, accuracy {right:5.2f} %   ({told})")
    print(f"{time.perf_counter() - start:.0f} s")
    return found


if __name__ == "__main__":
    main()
