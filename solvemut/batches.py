"""Batches: a model run on a caller's data, evaluated or differentiated, and left as it was."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .arguments import shown
from .errors import SolvemutError, ValuesError
from .interrupts import deferred

Loss = Callable[..., torch.Tensor]
NO_BATCH = "the data iterator gave no batch: an iterator that was used up, or an empty loader?"


def check(name: str, batches: Any, loss: Any, error: type[SolvemutError] = ValuesError) -> None:
    """Raises unless batches can be run through, and loss is a function (None: no loss is needed)."""
    if loss is not None and not callable(loss):
        raise error(f"{name}: loss is a function of output and target, or of model and batch, not {shown(loss)}")
    if isinstance(batches, torch.Tensor) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise error(f"{name}: batches are a list or a loader of batches, not {shown(batches)}")


def again(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches so that they can be run through several times: an iterator that would be used up becomes a list."""
    return list(batches) if iter(batches) is batches else batches


def some(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches one by one. Raises ValuesError in the end if there was no example."""
    n = 0
    for batch in batches:
        n += examples_in(batch)
        yield batch
    if n == 0:
        raise ValuesError(NO_BATCH)


def examples_in(batch: Any) -> int:
    """How many examples a batch holds: the first dim of its first tensor that has one."""
    return next((int(x.shape[0]) for x in pytree.tree_leaves(batch) if isinstance(x, torch.Tensor) and x.ndim), 1)


def by_example(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A batch with every tensor changed that has as many rows as the batch has examples."""
    n = examples_in(batch)
    return pytree.tree_map(
        lambda x: change(x) if isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == n else x, batch
    )


def singles(batches: Iterable[Any]) -> Iterator[Any]:
    """The examples of batches, each as a batch of one.

    >>> [[x.tolist(), scale] for x, scale in singles([(torch.tensor([3, 4]), 0.5)])]
    [[[3], 0.5], [[4], 0.5]]
    """
    for batch in batches:
        for i in range(examples_in(batch)):
            yield by_example(batch, lambda x, i=i: x[i : i + 1])  # type: ignore[misc]


def takes_model(loss: Any) -> bool:
    """Whether a loss wants to be called with a model and a batch: its first parameter says so by its name."""
    names = _names(loss)
    return bool(names) and names[0] in ("model", "net", "network", "module", "m")


def forward(model: nn.Module, batch: Any) -> Any:
    """What the model makes of the inputs of a batch: all but the last of several, by name those of a dict."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch[:-1]) if len(batch) > 1 else model(*batch)
    return model(batch)


def floats(out: Any) -> list[torch.Tensor]:
    """The tensors of floats in what a model puts out."""
    return [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def run(model: nn.Module, batch: Any, loss: Loss | None) -> None:
    """Run the model on a batch, in the way in which the loss would, if that calls the model itself."""
    if loss is not None and takes_model(loss):
        loss(model, batch)
    else:
        forward(model, batch)


def value_of(loss: Loss, model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss on a batch, in whichever of the two ways it wants to be called."""
    if takes_model(loss):
        return loss(model, batch)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return loss(model(*batch[:-1]), batch[-1])
    if len(_names(loss)) == 1:
        return loss(model(batch))
    raise ValuesError(
        "the batches are no (input, target) pairs; give loss(model, batch), its first parameter called `model`"
    )


def _names(loss: Any) -> list[str]:
    try:
        return list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):
        return []


def mean_loss(model: nn.Module, batches: Iterable[Any], loss: Loss) -> float:
    """The mean of the loss over all examples, in eval mode and without gradients."""
    total, n = 0.0, 0
    with evaluated(model):
        for batch in some(batches):
            size = examples_in(batch)
            total += size * float(value_of(loss, model, batch))
            n += size
    return total / n


_runs = 0  # of models that are looked at, at this moment


def measuring() -> bool:
    """Whether a model is being run to look at it: that is no training, so whoever tracks that model looks away."""
    return _runs > 0


@contextlib.contextmanager
def evaluated(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Within it the model is in eval mode; afterwards its modes, buffers, gradients and the random state are as before.

    Ctrl-C is heard at once.
    """
    global _runs
    grad = torch.is_grad_enabled()
    with deferred() as interrupts:
        give_back = _kept_state(model)
        _runs += 1
        try:
            model.eval()
            if gradients:
                for p in model.parameters():
                    p.requires_grad_(p.is_floating_point())
            with torch.random.fork_rng(), torch.set_grad_enabled(gradients), interrupts.allowed():
                yield
        finally:
            _runs -= 1
            give_back()
            torch.set_grad_enabled(grad)


def each(model: nn.Module, batches: Iterable[Any], loss: Loss, use: Callable[[], None]) -> int:
    """Run the loss and its gradients batch by batch, `use` after each, and leave the model as it was; how many."""
    n = 0
    with evaluated(model, gradients=True):
        for n, batch in enumerate(some(batches), 1):
            _backward(model, plain(batch), loss, n)
            use()
    return n


def _kept_state(model: nn.Module) -> Callable[[], None]:
    """A function that gives back .grad, requires_grad, buffers and modes as they are now."""
    grads = [(p, p.grad) for p in model.parameters()]
    needs = [(p, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    training = [(m, m.training) for m in model.modules()]

    def give_back() -> None:
        for p, g in grads:
            p.grad = g
        for p, need in needs:
            p.requires_grad_(need)
        with torch.no_grad():
            for b, saved in buffers:
                b.copy_(saved)
        for m, mode in training:
            m.training = mode

    return give_back


def plain(batch: Any) -> Any:
    """Tensors made in inference mode cannot be part of a backward pass; their copies can."""
    if not any(map(_is_inference, pytree.tree_leaves(batch))):
        return batch
    return pytree.tree_map(lambda x: x.clone() if _is_inference(x) else x, batch)


def _is_inference(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_inference()


def _backward(model: nn.Module, batch: Any, loss: Loss, n: int) -> None:
    for p in model.parameters():
        p.grad = None
    backward(value_of(loss, model, batch), n)


def backward(found: Any, n: int | None = None) -> None:
    """The gradients of a loss. Raises ValuesError if it is no finite scalar; `n` numbers the batch."""
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise ValuesError("the loss must return a scalar tensor")
    if not torch.isfinite(found):
        raise ValuesError(f"the loss on {'a batch' if n is None else f'batch {n}'} is {float(found.detach())}")
    found.backward()
