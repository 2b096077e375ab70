"""Models with weights and an optimizer that has stepped; what they were, to hold against what they are."""

from __future__ import annotations

import copy
from typing import Any

import nets_attention  # noqa: F401  (enters its networks in the table)
import nets_recurrent  # noqa: F401
import nets_shapes  # noqa: F401
import nets_weights  # noqa: F401
import numpy as np
import torch
from nets import NETS
from oracles import randomise, tensors
from torch import nn

import solvemut as sm


def training_set(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    n = NETS[name]
    return randomise(n.model()), n.args()


def step(model: nn.Module, args: tuple[Any, ...], optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(*args).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def planned(model: nn.Module, args: tuple[Any, ...], params: float = 0.6, seed: int = 0) -> Any:
    return sm.Mutator(model, args).prune(params=params, values=sm.values.random(seed), dry_run=True)


def sliced(t: torch.Tensor, dims: dict[int, Any]) -> torch.Tensor:
    """What a plan leaves of a tensor, cut one position at a time in numpy; dims of size 1 (factored state) stay."""
    a = t.detach().cpu().double().numpy()
    plain = {d: i for d, i in dims.items() if not isinstance(i[0], list)}
    for d, index in sorted(plain.items()):
        if a.shape[d] != 1 or index == [0]:
            a = np.stack([a.take(i, axis=d) for i in index], axis=d)
    for d, index in dims.items():
        if isinstance(index[0], list) and a.shape[d] != 1:
            per = a.shape[0] // len(index)
            a = np.stack(
                [np.stack([a[r].take(i, axis=d - 1) for i in index[r // per]], axis=d - 1) for r in range(a.shape[0])]
            )
    return torch.from_numpy(a)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """All that a failed apply must leave as it was: tensors, identities, attributes, optimizer state."""
    found: dict[str, Any] = {}
    for n, t in tensors(model).items():
        found[n] = (id(t), t.detach().clone(), None if t.grad is None else t.grad.clone(), t.requires_grad, t.stride())
    for n, m in model.named_modules():
        found[f"module {n}"] = {k: copy.copy(v) for k, v in vars(m).items() if not k.startswith("_")}
    if optimizer is not None:
        names = {id(p): n for n, p in model.named_parameters()}
        for p, s in optimizer.state.items():
            found[f"state {names[id(p)]}"] = {k: (id(v), copy.deepcopy(v)) for k, v in s.items()}
    return found


def assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, old in before.items():
        assert equal(old, after[key]), key


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or a is b)


class Injected(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""
