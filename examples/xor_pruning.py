"""Do values tell what a unit is worth? A network that has learned xor loses half of its hidden units in three ways.

A 2-32-1 network is trained until it knows xor. Then 16 of the 32 hidden units go: those of least value, 16 at random,
or those of most value; a unit is worth as much as it contributes to the output over the four examples. Over 20 seeds,
the loss should be

    most valuable removed  >  random ones removed  >  least valuable removed  >=  as trained

and how often each of these holds is printed.

Run it: ``python examples/xor_pruning.py``.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import numpy as np
import torch
from torch import Tensor, nn

import solvemut as sm

X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
HIDDEN, GONE = 32, 16
WAYS = ("original", "least", "random", "most")
ORDER = (("most", "random"), ("random", "least"), ("least", "original"))  # the first is to lose more


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target)


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    return loss(model(X), Y).item()


def trained(seed: int, steps: int = 400, enough: float = 1e-3) -> nn.Module:
    """A network that knows xor; the decay of its weights leaves units that it does not need without any."""
    torch.manual_seed(seed)
    net = sm.Builder("Xor")
    hidden = net.apply(torch.relu, net.layer(nn.Linear(2, HIDDEN), net.input("x", 2), name="hidden"), name="act")
    model = net.build(net.layer(nn.Linear(HIDDEN, 1), hidden, name="out"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(X), Y).backward()
        optimizer.step()
    if (left := loss_of(model)) > enough:
        raise RuntimeError(f"seed {seed}: xor is not learned in {steps} steps, the loss is {left:.1e}")
    return model


def worth(model: nn.Module) -> np.ndarray:
    """One number per hidden unit: how much it contributes to the output, over the four examples.

    Near the minimum the gradient of the loss is near 0, and so would be any first-order value of it; the output itself
    is what a unit that is missed changes.
    """
    graph = sm.capture(model, X)
    metric = sm.values.taylor([(x[None],) for x in X], lambda model, batch: model(batch[0]).sum())
    return sm.values.unit_values(metric, model, graph)[graph["hidden"].units]


def pruned(model: nn.Module, values: np.ndarray) -> float:
    """The loss of a copy of the model that keeps the units of most value."""
    mut = sm.Mutator(copy.deepcopy(model), X)
    plan = mut.resize({"hidden": -GONE}, values={"hidden": values})
    kept = plan.indices["hidden.weight"][0]
    assert plan.sizes["hidden"] == (HIDDEN, HIDDEN - GONE) and plan.indices["out.weight"][1] == kept
    assert np.isclose(values[kept].sum(), np.sort(values)[GONE:].sum())  # none of those that went was worth more
    return loss_of(mut.model)


def one_seed(seed: int) -> dict[str, float]:
    """The losses of one network: as trained, and without 16 units chosen in each of the three ways."""
    model = trained(seed)
    values = worth(model)
    chance = np.random.default_rng(seed).random(HIDDEN)
    ways = {"least": values, "random": chance, "most": values.max() - values}
    return {"original": loss_of(model), **{way: pruned(model, v) for way, v in ways.items()}}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run it; returns the mean losses by way, and for each inequality the share of seeds for which it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="networks to train (default 20)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: more threads cost more than they save
    rows = [one_seed(seed) for seed in range(options.seeds)]
    means = {way: statistics.mean(row[way] for row in rows) for way in WAYS}
    shares = {f"{a} > {b}": statistics.mean(float(row[a] > row[b]) for row in rows) for a, b in ORDER[:2]}
    a, b = ORDER[2]
    shares[f"{a} >= {b}"] = statistics.mean(float(row[a] >= row[b]) for row in rows)
    print(f"loss of xor, {HIDDEN} hidden units, {GONE} removed; {options.seeds} seeds")
    for way in WAYS:
        losses = [row[way] for row in rows]
        print(f"  {way:<9} mean {means[way]:.2e}, median {statistics.median(losses):.2e}, largest {max(losses):.2e}")
    for told, share in shares.items():
        print(f"  {told:<18} for {share:.0%} of the seeds")
    return {"means": means, "shares": shares}


if __name__ == "__main__":
    main()
