"""Passes: the model and its teacher run side by side, and each layer is solved where it stands.

In lockstep all batches go from layer to layer together, one forward of each in all. Streamed, each layer has forwards
of its own that end where it is called, with one batch in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from .. import batches as runs
from ..calls import MAPS, LayerCall, watched
from ..tracing import python_functions_open
from .lockstep import Body, Ended, Enter, Pause, walking
from .solving import Solving
from .survey import Task


class OutOfStep(Exception):
    """Two forwards came to different layers."""


class _Last(TorchFunctionMode):
    """Remembers the last function called, so that it can be called again. Entered below what watches the calls."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.again = lambda: func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _taught(solving: Solving, teacher: nn.Module, batch: Any, loss: runs.Loss | None) -> Body:
    """The teacher's forward, which stops behind each layer that is open."""

    def body(pause: Pause) -> None:
        def after(call: LayerCall) -> None:
            if call.kind in MAPS and call.weight in solving.open:
                pause(call)

        with watched(teacher, after=after):
            runs.run(teacher, batch, loss)

    return body


def _repaired(solving: Solving, model: nn.Module, batch: Any, loss: runs.Loss | None) -> Body:
    """The model's forward, which stops likewise, and goes on with what a layer makes of its new weight, if it has."""

    def body(pause: Pause) -> None:
        last = _Last()

        def after(call: LayerCall) -> Any:
            if call.kind not in MAPS or call.weight not in solving.open:
                return None
            again, written = last.again, len(solving.ledger.layers)
            pause(call)
            return again() if len(solving.ledger.layers) > written else None

        with last, watched(model, after=after):
            runs.run(model, batch, loss)

    return body


def in_lockstep(
    solving: Solving,
    model: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Any],
    loss: runs.Loss | None,
    enter: Enter,
) -> None:
    """Solve all layers, in one pass, and one more for each layer that is called several times.

    Raises OutOfStep where forwards of different batches, or of model and teacher, part.
    """
    n = len(batches)
    again = True
    while again:
        again = False
        solving.begin()
        bodies = [_taught(solving, teacher, batch, loss) for batch in batches]
        bodies += [_repaired(solving, model, batch, loss) for batch in batches]
        with python_functions_open(), walking(bodies, enter) as walks:  # open till the last of them is over
            while solving.open and not again:
                pairs = [(walks[k].step(), walks[n + k].step()) for k in range(n)]
                if len({None if call is None else call.key for pair in pairs for call in pair}) != 1:
                    raise OutOfStep
                if pairs[0][0] is None:
                    raise OutOfStep
                again = solving.take(pairs)


def streamed(
    solving: Solving, model: nn.Module, teacher: nn.Module, batches: Iterable[Any], loss: runs.Loss | None
) -> None:
    """Solve layer by layer, each with forwards of its own."""
    for task in list(solving.open.values()):
        solving.begin()
        for k, batch in enumerate(batches):
            calls = _calls_of(task, teacher, batch, loss)
            found = _calls_of(task, model, batch, loss)
            pairs = [(k, (calls[key], call)) for key, call in found.items() if key in calls]
            if task.weight in solving.open and pairs:
                solving.add(task.weight, solving.lacking(task.weight, pairs))
            if task.weight not in solving.open:
                break
        if task.weight in solving.normal and task.weight in solving.open:
            solving.solve(task.weight)


def _calls_of(task: Task, model: nn.Module, batch: Any, loss: runs.Loss | None) -> dict[tuple[str, int], LayerCall]:
    """The calls of a layer in one forward, which ends when it has been called as often as in the first batch.

    What it puts out is copied, as an operation that writes over it may follow.
    """
    found: dict[tuple[str, int], LayerCall] = {}

    def after(call: LayerCall) -> None:
        if call.kind in MAPS and call.weight == task.weight:
            found[call.key] = call
            if task.calls == call.nr + 1 and not task.varies:
                raise Ended
            call.y = call.y if call.y is None else call.y.clone()
            call.x = call.x.clone()

    try:
        with watched(model, after=after):
            runs.run(model, batch, loss)
    except Ended:
        pass
    return found
