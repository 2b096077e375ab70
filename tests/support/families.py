"""The zoo: a tiny network of every family that people prune, written in plain torch. `FAMILIES` names them all.

Those that the table of `nets` has already are taken from there. A family is pruned to half of its FLOPs; one that
cannot get there says why in `floor`, with the share that it can reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_more  # noqa: F401
import nets_recurrent  # noqa: F401
import nets_shapes  # noqa: F401
from nets import NETS, Net


@dataclass(frozen=True)
class Family:
    """A network with inputs; the share of FLOPs it is pruned to, and why that is more than half where it is."""

    name: str
    net: Net
    flops: float = 0.5
    floor: str = ""


FAMILIES: dict[str, Family] = {}


def family(name: str, *inputs: tuple[int, ...] | str, flops: float = 0.5, floor: str = "") -> Callable[[Any], Any]:
    """Enter a class or function that builds a network."""

    def enter(build: Any) -> Any:
        assert name not in FAMILIES, name
        FAMILIES[name] = Family(name, Net(build.__name__, build, inputs, ()), flops, floor)
        return build

    return enter


KNOWN = {
    "U-Net": "UNet",
    "Siamese, a layer called twice": "Siamese",
    "ResNeXt": "ResNeXt",
    "LSTM tagger": "Tagger",
    "encoder-decoder of LSTMs": "EncoderDecoder",
    "convolutions, then a recurrent layer": "ConvThenRnn",
    "super-resolution with pixel shuffle": "PixelShuffle",
}
for _name, _net in KNOWN.items():
    FAMILIES[_name] = Family(_name, NETS[_net])
