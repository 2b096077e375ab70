"""Tracing: any exportable nn.Module with example inputs becomes a `Trace`.

torch.export (non-strict) runs the forward on fake tensors and keeps composite operations whole; `provenance` notes
where sizes come from. The user's module is only read: mode, attributes and random state are as they were afterwards.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from ..errors import CaptureError, SolvemutError
from ..trace import Call, Trace, join, listing
from .caches import Filled, candidates, emptied
from .examples import Example
from .modules import untouched
from .objects import closed, opened
from .open_sizes import shape_of
from .provenance import replaced, tracked_attributes, watched_math
from .reading import Reader
from .recording import Recorder, python_functions_open

ONE_AT_A_TIME = threading.RLock()  # what is watched while a model runs is shared by all threads


def trace_module(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Trace:
    """The trace of one forward pass in eval mode. Raises CaptureError, with the cause, if it or its export fails."""
    return trace_example(model, Example.of(args, kwargs))


def trace_examples(model: nn.Module, examples: Sequence[Example], modes: Sequence[str]) -> tuple[Trace, list[Example]]:
    """One trace of several calls, and the calls: where train mode makes others than eval mode, it is captured too."""
    notes: list[str] = []
    found = [(e, _faithful(model, e, trace_example(model, e), notes)) for e in examples]
    for e, trace in list(found) if "train" in modes else []:
        differs = train_mode_differs(model, e, trace)
        if differs is False:
            continue
        try:
            found.append((e.in_training(), trace_example(model, e.in_training())))
        except CaptureError as error:
            notes.append(f"train mode was not looked at, only eval mode was: {error.__cause__ or error}"[:300])
    tags = _distinct([e.tag for e, _ in found])
    joined = join([(tag, trace) for tag, (_, trace) in zip(tags, found, strict=True)])
    told = (note for _, trace in found for note in trace.notes)
    return replace(joined, notes=tuple(dict.fromkeys((*told, *notes)))), [e for e, _ in found]


def _faithful(model: nn.Module, example: Example, trace: Trace, notes: list[str]) -> Trace:
    """The trace, if the forward does without tracked ints what it did with them; else one whose ints are numbers."""
    wanted = trace.foretold()
    if wanted is not None and calls_agree(model, example, wanted[0]) is not None:
        return trace
    plain = trace_example(model, example, tracked=False)
    if listing(plain) == listing(trace):
        return trace
    notes.append("the forward asks for the type or identity of an int, so its sizes cannot be followed: they stay")
    return plain


def calls_agree(model: nn.Module, example: Example, wanted: Sequence[Call]) -> list[tuple[int, ...]] | None:
    """The shapes that a run on fake tensors returns, if the calls it makes are known to be those wanted; else None."""
    recorder = Recorder(tracked=False)
    try:
        shapes = fake_run(model, example, recorder)
    except SolvemutError:
        return None
    same = not recorder.opaque and len(wanted) == len(recorder.calls)
    return shapes if same and all(a.agrees(b) for a, b in zip(wanted, recorder.calls, strict=True)) else None


def _distinct(tags: Sequence[str]) -> list[str]:
    """The tags of calls, numbered where one comes twice; the first call has none."""
    out: list[str] = []
    for k, tag in enumerate(tags):
        name, n = (tag or "forward") if k else "", 2
        while name in out:
            name, n = f"{tag or 'forward'}#{n}", n + 1
        out.append(name)
    return out


def trace_example(model: nn.Module, example: Example, tracked: bool = True) -> Trace:
    """The trace of one call. Raises CaptureError, with the cause, if it or its export fails.

    Without `tracked` no int remembers where it came from: the forward sees just what it sees when it is used.
    """
    try:
        with emptied(memos(model, example)):
            exported, recorder = _export(model, example, tracked)
            return Reader(model, exported, recorder).trace()
    except SolvemutError:
        raise
    except Exception as e:
        name, mode = type(model).__name__, "train" if example.training else "eval"
        raise CaptureError(
            f"{name} could not be captured: torch.export failed with {type(e).__name__}: {_first_line(e)}. Check that "
            f"{'model' if example.method == 'forward' else 'model.' + example.method}(*args, **kwargs) runs in {mode} "
            "mode, takes these inputs, and does not branch on tensor values."
        ) from e


def _run_by_its_code(model: nn.Module, method: str) -> nn.Module:
    """The model; of a torch.fx graph a module with the same attributes that is no GraphModule.

    torch.export would interpret the nodes of a graph without calling its forward, and nothing would be recorded.
    """
    if not isinstance(model, torch.fx.GraphModule) or method != "forward":
        return model
    kind = type(type(model).__name__, (nn.Module,), {"forward": type(model).forward})
    other: nn.Module = object.__new__(kind)
    object.__setattr__(other, "__dict__", vars(model))
    return other


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0][:300]


@contextlib.contextmanager
def quiet_run(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Within it a model may run to be looked at: one at a time, in the mode asked for, and nothing of it stays behind.

    In train mode torch's own layers stay in eval mode: what they compute differs then, but not on which sizes.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would read fake memory
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(untouched(model))
        for module in model.modules():
            module.training = training and not type(module).__module__.startswith("torch.nn.")
        yield


def _export(model: nn.Module, example: Example, tracked: bool) -> tuple[Any, Recorder]:
    recorder, model = Recorder(tracked), _run_by_its_code(model, example.method)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_run(model, example.training))
        stack.enter_context(python_functions_open())
        if tracked:
            stack.enter_context(tracked_attributes(model))
            stack.enter_context(watched_math())
        stack.enter_context(recorder.around(model, example.method))
        args, kwargs = example.inputs(model)
        exported = torch.export.export(model, args, kwargs, strict=False)
    return exported, recorder


# -- a run on fake tensors ---------------------------------------------------------------------------------------------


def fake_run(
    model: nn.Module, example: Example, recorder: Recorder | None = None, gradients: bool = False
) -> list[tuple[int, ...]]:
    """Run a call once on fake tensors, as an export would; returns the shapes of its outputs.

    With `gradients` as a training step would run it. Raises SolvemutError if it does not run.
    """
    with emptied(memos(model, example)):
        return _fake_run(model, example, recorder, gradients)


def memos(model: nn.Module, example: Example) -> list[dict[Any, Any]]:
    """The dicts of tensors that a call fills again, with the same keys, when they are empty."""
    held = candidates(model)
    if not held:
        return []
    watch = Filled(held)
    with emptied(held):
        try:
            _fake_run(model, example, watch)
        except SolvemutError:
            return []
    return [d for d, keys in zip(held, watch.keys, strict=True) if d.keys() <= keys]


def _fake_run(
    model: nn.Module, example: Example, recorder: Recorder | None, gradients: bool = False
) -> list[tuple[int, ...]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_run(model, example.training))
        mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # a tied tensor once
        fake = {k: _fake(t, mode) for k, t in tensors.items()}
        if gradients:
            stack.enter_context(torch.enable_grad())
            model.train()  # what quiet_run puts back
            for k, t in fake.items():
                t.requires_grad_(tensors[k].requires_grad)
        stack.enter_context(mode)
        args, kwargs = example.inputs(model)
        stack.enter_context(python_functions_open())
        stack.enter_context(_as_if_exporting())
        recorder = recorder or Recorder(tracked=False)
        stack.enter_context(recorder.around(model, example.method))
        try:
            out = torch.func.functional_call(model, fake, args, kwargs)
        except Exception as e:
            raise SolvemutError(f"{type(e).__name__}: {_first_line(e)}") from None
    return [shape_of(t) for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


def _fake(t: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor like this one; a plain one is made of its sizes alone, in a tenth of the time."""
    plain = type(t) in (torch.Tensor, nn.Parameter, nn.Buffer) and t.layout == torch.strided and not t.is_quantized
    if not plain or t._is_view() or t.is_conj() or t.is_neg():
        return mode.from_tensor(t.detach())
    return FakeTensor(mode, torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), t.device)


def real_run(model: nn.Module, example: Example) -> list[tuple[int, ...]]:
    """Run a call once, on zeros where the model lives; returns the shapes of its outputs.

    Raises SolvemutError if it does not run, as on the meta device.
    """
    with emptied(memos(model, example)), quiet_run(model, example.training):
        args, kwargs = closed(example.inputs(model))
        try:
            out = opened(getattr(model, example.method)(*args, **kwargs))
        except Exception as e:
            raise SolvemutError(f"{type(e).__name__}: {_first_line(e)}") from None
    return [tuple(t.shape) for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]


@contextlib.contextmanager
def _as_if_exporting() -> Iterator[None]:
    """A forward that asks whether it is being exported gets the answer it got when it was captured."""
    flags = replaced(torch.compiler, ("_is_compiling_flag", "_is_exporting_flag"), lambda flag: True)
    with flags, torch.backends.cudnn.flags(enabled=False):
        yield


def train_mode_differs(model: nn.Module, example: Example, trace: Trace) -> bool | None:
    """Whether a call makes other calls of torch functions in train mode, flags and fractions aside; None: unknown."""
    recorder = Recorder(tracked=False)
    try:
        fake_run(model, example.in_training(), recorder)
    except SolvemutError:
        return None
    wanted = trace.foretold()
    if wanted is None or recorder.opaque:
        return None
    return [_blurred(c) for c in wanted[0]] != [_blurred(c) for c in recorder.calls]


def _blurred(call: Call) -> tuple[Any, ...]:
    """A call without what can change no size: flags and fractions."""

    def blurred(a: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(blurred(x) for x in a)
        return None if isinstance(a, (bool, float)) else a

    return call.func, blurred(call.args)
