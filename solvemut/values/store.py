"""Store: what a metric found, in a file, for the model that it was found for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np
from torch import nn

from ..arguments import shown
from ..compile import Curve, Worth
from ..errors import ValuesError
from ..graph import Graph
from .metric import FORMAT, VERSION, Metric, Path, Values, checksum, write
from .units import worth_of


def save(values: Values, graph: Graph, path: Path) -> None:
    """Find out what the units of a graph are worth, and write that to a file, as .npz: numbers and curves.

    >>> import os, tempfile, torch, solvemut as sm
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> graph = sm.capture(model, torch.ones(1, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(sm.values.magnitude(), graph, os.path.join(folder, "values.npz"))
    ...     values = load(os.path.join(folder, "values.npz"))
    >>> values.name, sm.prune(model, torch.ones(1, 4), params=0.5, values=values).sizes["0"]
    ('magnitude(p=2)', (8, 3))
    """
    if graph.model is None:
        raise ValuesError("values.save: this graph has no model, so nothing could tell what the values are for")
    name = values.name if isinstance(values, Metric) else "given by the caller"
    write(path, name, checksum(graph.model, graph), worth_of(values, graph.model, graph))


def load(path: Path) -> Metric:
    """The values in a file, as a metric for the very model that they were saved for: its weights and its units.

    Raises ValuesError for a file that `save` did not write, or that is damaged; and the metric, of another model.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as found:
                arrays = {k: found[k] for k in found.files}
            header = json.loads(str(arrays["header"][()]))
        except Exception as e:  # whatever a damaged file, or one of another kind, is to zip, numpy and JSON
            _no(path, f"{type(e).__name__}: {str(e)[:200]}")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        _no(path, f"it does not say format {FORMAT!r}")
    if header.get("version") != VERSION:
        raise ValuesError(f"{path} has version {shown(header.get('version'))}, this solvemut reads {VERSION}")
    if not all(isinstance(header.get(k), str) for k in ("name", "checksum")):
        _no(path, "it does not say whose values these are")
    return Metric(header["name"], partial(_stored, of=header["checksum"], worth=_worth(path, header, arrays)))


def _stored(model: nn.Module, graph: Graph, of: str, worth: Worth) -> Worth:
    if checksum(model, graph) != of:
        raise ValuesError(
            f"the weights of this {type(model).__name__}, or its units, are others than those that values were saved "
            "for; find them anew"
        )
    return worth


def _worth(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Worth:
    n = header.get("curves")
    if type(n) is not int or not 0 <= n <= len(arrays):
        _no(path, f"it speaks of {shown(n)} curves")

    def array(key: str, kind: str) -> np.ndarray:
        a = arrays.get(key)
        if a is None or a.ndim != 1 or a.dtype.kind != kind:
            _no(path, f"{key!r} is {'missing' if a is None else f'of shape {a.shape} and type {a.dtype}'}")
        return a

    value = array("value", "f")
    more = {k: array(k, "f") for k in ("new", "second") if k in arrays}
    if bad := [k for k, a in more.items() if a.shape != value.shape]:
        _no(path, f"{bad[0]!r} has {len(more[bad[0]])} numbers, and there are {len(value)} units")
    curves = tuple(Curve(array(f"units {k}", "i"), array(f"worth {k}", "f")) for k in range(n))
    return Worth(value, curves, **more)


def _no(path: Path, why: str) -> NoReturn:
    raise ValuesError(f"{path} holds no values that solvemut saved, or is damaged: {why}")
