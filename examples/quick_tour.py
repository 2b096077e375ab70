"""A tour of the mutations in a few seconds: a small network of images is resized, cut, widened, rewired and pruned.

The network has a concat whose sum with a residual convolution is a stream of 12 channels, so nearly every change of one
layer asks for a change of others. Each step prints what became of it, and asserts that. One `Mutator` sees all of it;
a copy of the model, made before, stays what it was.

Run it: ``python examples/quick_tour.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import solvemut as sm

TOLERANCE = 1e-5  # float32: what counts as the same output


def network() -> nn.Module:
    """Two branches that are joined, a convolution around which they are added, and a head that reads the sum."""
    net = sm.Builder("Tour")
    image = net.input("image", 3)
    conv = net.layer(nn.Conv2d(3, 5, 3, padding=1), image, name="conv")
    norm = net.layer(nn.BatchNorm2d(5), conv, name="norm")
    named = net.layer(nn.Conv2d(3, 7, 5, padding=2), image, name="named")
    both = net.concat(norm, named, name="cat")
    total = both + net.layer(nn.Conv2d(12, 12, 3, padding=1), both, name="residual")
    return net.build(net.layer(nn.Conv2d(12, 4, 1), total, name="head")).eval()


def widths(mut: sm.Mutator) -> dict[str, int]:
    """Channels that each vertex puts out."""
    return {v.name: v.nout for v in mut.graph}


class Tour:
    """The model, its mutator, and what the steps found."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = network()
        self.x = torch.randn(2, 3, 7, 7)
        self.mut = sm.Mutator(self.model, self.x)
        self.found: dict[str, Any] = {}

    @torch.no_grad()
    def output(self, model: nn.Module | None = None) -> Tensor:
        return (model or self.model)(self.x)

    def tell(self, step: str, text: str, before: Tensor | None = None) -> None:
        """Note the widths after a step, and print it; with the outputs of before, they must be the same still."""
        self.found[step] = widths(self.mut)
        if before is not None:
            moved = (self.output() - before).abs().max().item()
            assert moved <= TOLERANCE, f"{step}: the outputs moved by {moved}"
            self.found["drift"] = max(moved, self.found.get("drift", 0.0))
            text += f"; outputs moved by {moved:.1e}"
        print(f"{step:<11} {text}")

    def resize(self) -> None:
        """The sum loses 3 channels, so that what is added loses 3 on either side; the program picks which."""
        self.mut.resize({"add": -3})
        w = widths(self.mut)
        assert w["add"] == w["residual"] == w["cat"] == w["conv"] + w["named"] == 9
        assert w["norm"] == w["conv"] and self.output().shape == (2, 4, 7, 7)
        self.tell("resize", f"add 12 -> 9: residual {w['residual']}, conv {w['conv']} + named {w['named']} = 9")

    def remove(self) -> None:
        """The batch norm goes; the concat then reads the convolution. No size has to change."""
        before = widths(self.mut)
        self.mut.remove("norm")
        assert widths(self.mut) == {k: n for k, n in before.items() if k != "norm"}
        assert [v.name for v in self.mut.graph.inputs("cat")] == ["conv", "named"]
        self.tell("remove", f"norm is gone, {len(self.mut.graph)} vertices; cat reads conv and named")

    def insert(self) -> None:
        """A batch norm that passes on what it gets comes after the residual convolution."""
        before = self.output()
        norm = sm.identity_init(nn.BatchNorm2d(self.mut.graph["residual"].nout)).eval()
        self.mut.insert("residual", norm, name="residual_norm")
        assert [v.name for v in self.mut.graph.inputs("add")] == ["cat", "residual_norm"]
        self.tell("insert", "residual_norm after residual; add reads cat and residual_norm", before)

    def rewire(self) -> None:
        """The image becomes one more input of the concat, which widens the stream; then it is taken out again."""
        before, old = self.output(), widths(self.mut)
        plan = self.mut.connect("image", "cat", position=1)
        w = widths(self.mut)
        assert [v.name for v in self.mut.graph.inputs("cat")] == ["conv", "image", "named"]
        assert w["cat"] == w["add"] == w["residual"] == 12 and plan.alters == ()
        self.tell("connect", "image to cat, at position 1: cat, residual and add 9 -> 12", before)
        self.mut.disconnect("image", "cat")
        assert widths(self.mut) == old
        self.tell("disconnect", "image from cat: every width is back", before)

    def grow(self) -> None:
        """New channels are read with zeros: the layer is wider, and computes what it did."""
        before, old = self.output(), widths(self.mut)
        plan = self.mut.resize({"named": +3})
        w = widths(self.mut)
        assert w["named"] == old["named"] + 3 and w["conv"] + w["named"] == w["add"] and plan.alters == ()
        self.tell("grow", f"named {old['named']} -> {w['named']}, conv {old['conv']} -> {w['conv']}", before)

    def prune(self) -> None:
        """The units that are worth most within a budget, counted on the model itself."""
        plan = self.mut.prune(params=0.5)
        cost, own = plan.costs["params"], sum(p.numel() for p in self.model.parameters())
        assert own == cost.after <= 0.5 * cost.before
        self.found["params"] = (cost.before, own)
        self.tell("prune", f"params {cost.before} -> {own}, gap {plan.gap:.0e}: {widths(self.mut)}")


def main() -> dict[str, Any]:
    """Take the tour; returns the widths after each step, and what else was found."""
    tour = Tour()
    print(f"{tour.mut.graph}\n")
    start, twin, y = widths(tour.mut), copy.deepcopy(tour.model), tour.output()
    assert start == {"image": 3, "conv": 5, "norm": 5, "named": 7, "cat": 12, "residual": 12, "add": 12, "head": 4}
    for step in (tour.resize, tour.remove, tour.insert, tour.rewire, tour.grow, tour.prune):
        step()
    fresh = {v.name: v.nout for v in sm.capture(tour.model, tour.x)}
    assert fresh == widths(tour.mut) and len(tour.mut.history) == 7
    assert torch.equal(tour.output(twin), y) and {v.name: v.nout for v in sm.capture(twin, tour.x)} == start
    print("\nthe graph    is what a fresh look at the model gives, after 7 mutations")
    print("the copy     still has its 12 channels, and its outputs to the bit")
    return {**tour.found, "copy": start, "end": fresh}


if __name__ == "__main__":
    main()
