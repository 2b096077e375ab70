"""Verify: the changed model is held against the program that the plan foretells, before the change counts.

Of a graph of torch's own layers those that change run at their new sizes, and the others must be what they were when
the graph was captured. Any other model runs once on fake tensors, and the calls it makes are held against those
foretold, argument by argument, number by number. Where they differ, or cannot be told (the plan was read from a file),
the model is captured again and compared with `plan.program`, operation by operation; that decides. So whatever a
forward does with a size that nobody saw (a branch, a table, a number in a string), a plan that would change what the
network computes beyond what it says is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest

from torch import nn

from ..arguments import one_of
from ..errors import ProgramMismatchError, SolvemutError
from ..plan import PlanRecord
from ..trace import Trace, join, lines
from ..tracing import Example, calls_agree, fake_run, from_text, memos, parts_agree, real_run, trace_example
from .tensors import Undo

HOW = ("program", "shapes", None)


def check_how(how: str | None) -> None:
    """Raises RequestError unless `how` is a way to verify."""
    one_of(how, "verify", HOW)


def verify_program(plan: PlanRecord, model: nn.Module, how: str | None = "program") -> None:
    """Raises SolvemutError, with the operation and its line, if the changed model is not what the plan says.

    "program" compares the whole program, "shapes" runs it once on fake tensors and compares the shapes it returns, None
    trusts the plan.
    """
    examples = _examples(plan)
    if not examples or how is None:
        return
    try:
        if how == "shapes" or not plan.program:
            _check_shapes(plan, [s for e in examples for s in _shapes_of(model, e)])
        elif not _parts_agree(plan, model) and not _calls_agree(plan, model, examples):
            traces = [trace_example(model, e, tracked=False) for e in examples]
            _compare(plan.program, join([(str(k), t) for k, t in enumerate(traces)]))
    except ProgramMismatchError:
        raise
    except SolvemutError as e:
        raise SolvemutError(
            f"the changed model would not run: {e.__cause__ or e}. Nothing was changed. A size may be computed or "
            "cached outside the modules' attributes; keep the layers before it"
        ) from e


def forget_memos(plan: PlanRecord, model: nn.Module, undo: Undo) -> None:
    """Dicts that the forward fills with what it computes of weights begin empty: those weights are others now."""
    for example in _examples(plan)[:1]:
        for memo in memos(model, example):
            undo.append(partial(memo.update, dict(memo)))
            memo.clear()


def _examples(plan: PlanRecord) -> list[Example]:
    return from_text(plan.example) if plan.graph is None else list(plan.graph.examples)


def _compare(foretold: tuple[str, ...], trace: Trace) -> None:
    found = lines(trace)
    pairs = zip_longest(foretold, found, fillvalue=None)
    wrong = next(((a, *(b or (None, None))) for a, b in pairs if a != (b and b[0])), None)
    if wrong is None:
        return
    wanted, line, node = wrong
    at = f" at {node.at()}" if node is not None else ""
    raise ProgramMismatchError(
        f"the changed model would compute something else than the plan foretells{at}:\n"
        f"  foretold: {wanted or 'nothing more'}\n"
        f"  found:    {line or 'nothing more'}\n"
        "Nothing was changed. The forward uses a size as a number or branches on it there: keep the layer whose size "
        "it is. If the model is another one since it was captured, capture it again; verify='shapes' compares shapes "
        "only"
    )


def _parts_agree(plan: PlanRecord, model: nn.Module) -> bool:
    """Whether a graph's layers that change are known to run at their new sizes, and the others to be as captured."""
    if plan.graph is None or plan.graph.seen is None:
        return False
    return parts_agree(model, plan.graph.seen, plan.graph.trace)


def _calls_agree(plan: PlanRecord, model: nn.Module, examples: Sequence[Example]) -> bool:
    """Whether the calls of the changed model are known to be those foretold."""
    foretold = None if plan.graph is None else plan.graph.trace.foretold()
    if foretold is None or len(foretold) != len(examples):
        return False
    shapes = []
    for example, wanted in zip(examples, foretold, strict=True):
        found = calls_agree(model, example, wanted)
        if found is None:
            return False
        shapes += found
    return _shapes_agree(plan, shapes)


def _shapes_agree(plan: PlanRecord, shapes: Sequence[tuple[int, ...]]) -> bool:
    return not plan.outputs or set(shapes) == {tuple(s) for s in plan.outputs}


def _shapes_of(model: nn.Module, example: Example) -> list[tuple[int, ...]]:
    """The shapes that a call returns: on fake tensors, or on real ones where it runs on those alone."""
    try:
        return fake_run(model, example)
    except SolvemutError:
        return real_run(model, example)


def _check_shapes(plan: PlanRecord, shapes: Sequence[tuple[int, ...]]) -> None:
    if not _shapes_agree(plan, shapes):
        raise ProgramMismatchError(
            f"the changed model would return shapes {list(shapes)}, the plan says {list(plan.outputs)}"
        )
