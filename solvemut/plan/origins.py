"""Origins: what each new slice copies, where new units are copies of old ones.

The k-th slice of a copy is that of the k-th slice of its source, in every dim. Whether that is the same thing
everywhere the flow tells: where two slices of a copy meet, those of its source must have met, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import SolvemutError


def origins_of(replay: Any, sources: Mapping[int, Sequence[int]]) -> dict[tuple[str, Any], np.ndarray]:
    """For every source of labels the old label that each new one copies, -1 for the rest.

    `replay` is the flow of the labels that are left and come; `sources` names by class what new units after it copy.
    """
    source_of = np.full(int(replay.unit_of.max(initial=0)) + 1, -1)
    for unit, copied in sources.items():
        source_of[replay.new_class[unit] + np.arange(len(copied))] = copied
    found = {}
    label_of = np.full(len(replay.unit_of), -1)
    for key in replay.coupling.sources:
        labels = replay.source(key, ())
        found[key] = _origins(labels, replay.unit_of[labels], source_of)
        label_of[labels] = found[key]
    if sources:
        _check_meetings(replay, label_of)
    return found


def _origins(labels: np.ndarray, units: np.ndarray, source_of: np.ndarray) -> np.ndarray:
    """The labels that those of one array copy: of the same row, if their source stands in it, or else of its row."""
    out = np.full(labels.shape, -1)
    if not (source_of[units] >= 0).any():
        return out
    rows, width = units.reshape(-1, units.shape[-1]), units.shape[-1]
    codes = np.stack([row * width + _ranks(row) for row in rows])  # unit and rank, [rows, positions]
    everywhere, at = np.unique(codes.reshape(-1), return_index=True)
    flat = labels.reshape(-1)
    for k, row in enumerate(rows):
        new = np.flatnonzero(source_of[row] >= 0)
        wanted = source_of[row[new]] * width + codes[k][new] % width
        own, here = np.unique(codes[k], return_index=True)
        places = np.where(np.isin(wanted, own), k * width + _find(here, own, wanted), _find(at, everywhere, wanted))
        if not np.isin(wanted, everywhere).all():
            raise SolvemutError("a new unit stands where its source does not; please report this model")
        out.reshape(-1, width)[k, new] = flat[places]
    return out


def _find(places: np.ndarray, codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.asarray(places[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)])


def _ranks(units: np.ndarray) -> np.ndarray:
    """How many of the same unit stand before each.

    >>> _ranks(np.array([4, 7, 4, 4, 7])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ranks = np.empty(len(units), dtype=np.int64)
    ranks[order] = np.arange(len(units)) - np.repeat(starts, np.diff(starts, append=len(units)))
    return ranks


def _check_meetings(replay: Any, label_of: np.ndarray) -> None:
    """Whatever slices of a copy meet in, those of its source have met there."""
    n = len(label_of)
    for a, b, node in replay.met:
        a, b = a.reshape(-1), b.reshape(-1)
        copied = (label_of[a] >= 0) & (label_of[b] >= 0)
        if not np.isin(label_of[a[copied]] * n + label_of[b[copied]], a * n + b).all():
            raise SolvemutError(
                f"copies of units would meet otherwise than these do at {node.at()}; grow it without init='split'"
            )
