"""A model and its optimizers as they were, to go back to when something fails on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Snapshot:
    """References to all that surgery changes: modules and their attributes, tensors, groups and state of optimizers."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.model = model
        self.modules = [(m, dict(vars(m)), _contents(vars(m))) for m in model.modules()]
        tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.tensors = [(t, t.data, t.grad) for t in tensors.values()]
        hooks: list[Any] = [
            h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        ]
        self.chains = [(h, list(h.modules)) for h in hooks if isinstance(getattr(h, "modules", None), list)]
        self.groups = [(o, [(g, list(g["params"])) for g in o.param_groups]) for o in optimizers]
        self.state = [(o, {p: dict(s) for p, s in o.state.items()}) for o in optimizers]

    def restore(self) -> None:
        """Put everything back."""
        for module, attributes, contents in self.modules:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                held = attributes[name]
                held.clear()
                held.extend(content) if isinstance(held, list) else held.update(content)
        for hook, chain in self.chains:
            hook.modules = chain
        for tensor, data, grad in self.tensors:
            tensor.grad = None
            tensor.data = data
            tensor.grad = grad
        for optimizer, groups in self.groups:
            optimizer.param_groups[:] = [group for group, _ in groups]
            for group, params in groups:
                group["params"] = params
        for optimizer, state in self.state:
            optimizer.state.clear()
            optimizer.state.update(state)
        for module, _, _ in self.modules:
            if isinstance(module, torch.fx.GraphModule):
                module.recompile()


def _contents(attributes: dict[str, Any]) -> dict[str, Any]:
    return {k: v.copy() for k, v in attributes.items() if isinstance(v, (dict, list)) and hasattr(v, "copy")}
