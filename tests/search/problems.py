"""Small problems to evolve on; functions of a module, so that they pickle."""

from __future__ import annotations

import random

import torch
from torch import nn

import solvemut as sm
from solvemut.search import Chain, Choose, Connect, Insert, Remove, Resize

MUTATE = Chain(
    Resize(-0.5, 0.5, p=0.5, most=20), Choose((Insert(p=0.7), Remove(p=0.7), Connect(merge="either")), (2, 1, 1))
)


def images(seed: int = 0) -> sm.Mutator:
    """A net with a residual sum, a concat and a head."""
    torch.manual_seed(seed)
    net = sm.Builder()
    x = net.input("x", 3)
    stem = net.apply(torch.relu, net.layer(nn.Conv2d(3, 6, 3, padding=1), x, name="stem"), name="act")
    norm = net.layer(nn.BatchNorm2d(6), net.layer(nn.Conv2d(6, 6, 3, padding=1), stem, name="conv"), name="norm")
    both = net.concat(stem + norm, net.layer(nn.Conv2d(6, 4, 1), stem, name="side"), name="cat")
    mixed = net.layer(nn.Conv2d(10, 8, 3, stride=2, padding=1), both, name="mix")
    pooled = net.layer(nn.Flatten(), net.layer(nn.AdaptiveAvgPool2d(1), mixed, name="pool"), name="flat")
    return sm.Mutator(net.build(net.layer(nn.Linear(8, 5), pooled, name="head")).eval(), torch.ones(2, 3, 6, 6))


def dense(hidden: int = 6, seed: int = 0) -> sm.Mutator:
    """A net of linear layers."""
    torch.manual_seed(seed)
    net = sm.Builder()
    a = net.layer(nn.Linear(3, hidden), net.input("x", 3), name="a")
    b = net.layer(nn.Linear(hidden, 7), net.apply(torch.relu, a, name="act"), name="b")
    return sm.Mutator(net.build(net.layer(nn.Linear(7, 2), b, name="c")), torch.ones(2, 3))


def drawn(rng: random.Random) -> sm.Mutator:
    """A random net: layers, sums and concats over what is there already."""
    torch.manual_seed(rng.getrandbits(30))
    net = sm.Builder()
    values = [net.layer(nn.Linear(4, rng.randint(2, 6)), net.input("x", 4))]
    for _ in range(rng.randint(3, 7)):
        a, b = rng.choice(values), rng.choice(values)
        kind = rng.choice(("linear", "relu", "cat", "sum"))
        if kind == "relu":
            values.append(net.layer(nn.ReLU(), a))
        elif kind == "cat":
            values.append(net.concat(a, b))
        elif kind == "sum" and a.size == b.size and a is not b:
            values.append(a + b)
        else:
            values.append(net.layer(nn.Linear(a.size, rng.randint(2, 6)), a))
    last = net.concat(*rng.sample(values, min(2, len(values))), values[-1])
    return sm.Mutator(net.build(net.layer(nn.Linear(last.size, 2), last, name="head")), torch.ones(2, 4))


def near_40(mutator: sm.Mutator) -> float:
    """The nearer to 40 hidden units, the better."""
    return -abs(sum(v.nout for v in mutator.graph.vertices if v.makes_units) - 40)


def trained(mutator: sm.Mutator) -> float:
    """A step of training on numbers that torch draws: it changes the model, and depends on torch's stream."""
    model = mutator.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(8, 3)
    loss = (model(x) - x[:, :2]).square().mean()
    loss.backward()
    optimizer.step()
    return -loss.item()


def fragile(mutator: sm.Mutator) -> float:
    """No number for some, an exception for others."""
    n = mutator.graph["a"].nout
    if n % 3 == 1:
        raise ValueError(f"{n} units")
    return float("nan") if n % 3 == 2 else float(n)
