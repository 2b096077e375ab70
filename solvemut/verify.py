"""Verify: the changed model is held against the program that the plan foretells, before the change counts.

First it runs once on fake tensors, and the calls it makes are held against those foretold, argument by argument, number
by number. Where they differ, or cannot be told (the plan was read from a file), the model is captured again and compared
with `plan.program`, operation by operation; that decides. So whatever a forward does with a size that nobody saw (a
branch, a table, a number in a string), a plan that would change what the network computes beyond what it says is
refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from .errors import ProgramMismatchError, RequestError, SolvemutError
from .listing import listing
from .plan import PlanRecord
from .recording import Recorder, python_functions_open
from .trace import Call, Trace
from .tracing import quiet_run, trace_module

HOW = ("program", "shapes", None)


def check_how(how: str | None) -> None:
    """Raises RequestError unless `how` is a way to verify."""
    if how not in HOW:
        raise RequestError(f"verify={how!r}: choose from {', '.join(map(repr, HOW))}")


def verify_program(plan: PlanRecord, model: nn.Module, how: str | None = "program") -> None:
    """Raises SolvemutError, with the operation and its line, if the changed model is not what the plan says.

    "program" compares the whole program, "shapes" runs it once on fake tensors and compares the shapes it returns, None
    trusts the plan.
    """
    if not plan.example or how is None:
        return
    try:
        if how == "shapes" or not plan.program:
            _check_shapes(plan, _run(plan, model, None))
        elif not _calls_agree(plan, model):
            _compare(plan.program, trace_module(model, *_example(plan, model)))
    except ProgramMismatchError:
        raise
    except SolvemutError as e:
        raise SolvemutError(
            f"the changed model would not run: {e.__cause__ or e}. Nothing was changed. A size may be computed or "
            "cached outside the modules' attributes; keep the layers before it"
        ) from e


def _example(plan: PlanRecord, model: nn.Module) -> tuple[Any, Any]:
    """Inputs of the shapes that the model was captured with."""
    spec = json.loads(plan.example)
    tensors = (*model.parameters(), *model.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    leaves = [_leaf(x, like) for x in spec["leaves"]]
    args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(spec["tree"]))
    return args, kwargs


def _leaf(x: Any, like: torch.Tensor) -> Any:
    """An example input; floats come in the dtype of the model, which may have been cast since the capture."""
    if isinstance(x, dict):
        dtype = getattr(torch, x["dtype"])
        return torch.zeros(x["shape"], dtype=like.dtype if dtype.is_floating_point else dtype, device=like.device)
    return x


def _compare(foretold: tuple[str, ...], trace: Trace) -> None:
    found = listing(trace)
    if found == foretold:
        return
    k = next(k for k, (a, b) in enumerate(zip_longest(foretold, found)) if a != b)
    node = k - len(trace.inputs)
    at = f" at {trace.nodes[node].at()}" if 0 <= node < len(trace.nodes) else ""
    raise ProgramMismatchError(
        f"the changed model would compute something else than the plan foretells{at}:\n"
        f"  foretold: {foretold[k] if k < len(foretold) else 'nothing more'}\n"
        f"  found:    {found[k] if k < len(found) else 'nothing more'}\n"
        "Nothing was changed. The forward uses a size as a number or branches on it there: keep the layer whose size "
        "it is. If the model is another one since it was captured, capture it again; verify='shapes' compares shapes "
        "only"
    )


# -- a run on fake tensors ---------------------------------------------------------------------------------------------


def _calls_agree(plan: PlanRecord, model: nn.Module) -> bool:
    """Whether the calls of the changed model are known to be those foretold."""
    foretold = None if plan.graph is None else plan.graph.trace.foretold()
    if foretold is None:
        return False
    recorder = Recorder(tracked=False)
    try:
        shapes = _run(plan, model, recorder)
    except SolvemutError:
        return False
    same = not recorder.opaque and len(foretold) == len(recorder.calls)
    return same and _shapes_agree(plan, shapes) and all(map(_same_call, foretold, recorder.calls))


def _same_call(foretold: Call, found: Call) -> bool:
    if foretold.func != found.func or foretold.args != found.args or len(foretold.outs) != len(found.outs):
        return False
    return all(a is None or a == b for a, b in zip(foretold.outs, found.outs, strict=True))


def _run(plan: PlanRecord, model: nn.Module, recorder: Recorder | None) -> list[tuple[int, ...]]:
    """Run the changed model once on fake tensors, as an export would; returns the shapes of its outputs."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_run(model))
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # a tied tensor once
        fake: dict[str, torch.Tensor] = {k: mode.from_tensor(t.detach()) for k, t in tensors.items()}
        args, kwargs = _example(plan, model)
        if recorder is not None:
            stack.enter_context(python_functions_open())
            stack.enter_context(_as_if_exporting())
            stack.enter_context(recorder.around(model))
        try:
            out = torch.func.functional_call(model, fake, args, kwargs)
        except Exception as e:
            raise SolvemutError(f"{type(e).__name__}: {str(e).splitlines()[0][:300]}") from None
    return [tuple(t.shape) for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


@contextlib.contextmanager
def _as_if_exporting() -> Iterator[None]:
    """A forward that asks whether it is being exported gets the answer it got when it was captured."""
    module: Any = torch.compiler
    names = [n for n in ("_is_compiling_flag", "_is_exporting_flag") if hasattr(module, n)]
    saved = {n: getattr(module, n) for n in names}
    try:
        for n in names:
            setattr(module, n, True)
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for n, flag in saved.items():
            setattr(module, n, flag)


def _shapes_agree(plan: PlanRecord, shapes: list[tuple[int, ...]]) -> bool:
    return not plan.outputs or set(shapes) == {tuple(s) for s in plan.outputs}


def _check_shapes(plan: PlanRecord, shapes: list[tuple[int, ...]]) -> None:
    if not _shapes_agree(plan, shapes):
        raise ProgramMismatchError(
            f"the changed model would return shapes {shapes}, the plan says {list(plan.outputs)}"
        )
