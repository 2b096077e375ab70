"""Verify: the changed model is held against what the plan foretells, before the change counts."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from .errors import SolvemutError
from .modules import untouched
from .plan import PlanRecord


def verify_program(plan: PlanRecord, model: nn.Module, how: str | None = "program") -> None:
    """Run the changed model on fake tensors and compare the shapes of its outputs with those the plan foretells."""
    if not plan.example or how is None:
        return
    spec = json.loads(plan.example)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, untouched(model):
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # a tied tensor once
        fake: dict[str, torch.Tensor] = {k: mode.from_tensor(t.detach()) for k, t in tensors.items()}
        like = next((t for t in fake.values() if t.is_floating_point()), torch.empty(0))
        leaves = [_leaf(x, like) for x in spec["leaves"]]
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(spec["tree"]))
        try:
            out = torch.func.functional_call(model, fake, args, kwargs)
        except Exception as e:
            raise SolvemutError(
                f"the changed model would not run: {type(e).__name__}: {str(e).splitlines()[0][:300]}. Nothing was "
                "changed. A size may be computed or cached outside the modules' attributes; keep the layers before it"
            ) from e
    shapes = [tuple(t.shape) for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    if plan.outputs and set(shapes) != {tuple(s) for s in plan.outputs}:
        raise SolvemutError(f"the changed model would return shapes {shapes}, the plan says {list(plan.outputs)}")


def _leaf(x: Any, like: torch.Tensor) -> Any:
    """An example input; floats come in the dtype of the model, which may have been cast since the capture."""
    if isinstance(x, dict):
        dtype = getattr(torch, x["dtype"])
        return torch.empty(x["shape"], dtype=like.dtype if dtype.is_floating_point else dtype, device=like.device)
    return x
