"""What a repair leaves alone: everything if it fails, the teacher always, and no thread stays behind."""

from __future__ import annotations

import copy
import signal
import threading
from typing import Any

import pytest
import torch
from torch import nn
from training import Injected, assert_untouched, snapshot

import solvemut as sm
from solvemut.repair.fit import _Run

F = nn.functional


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


@pytest.fixture
def cut() -> tuple[nn.Module, nn.Module, Any, list[Any]]:
    teacher = net()
    model = copy.deepcopy(teacher)
    x = torch.randn(60, 2, 8, 8)
    plan = sm.prune(model, x[:2], params=0.6)
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model(x).sum().backward()
    return teacher, model, plan, list(zip(x.split(20), torch.arange(60).remainder(3).split(20), strict=True))


def repairs(batches: Any, loss: Any = F.cross_entropy) -> list[Any]:
    return [sm.repair.least_squares(batches, loss), sm.repair.batch_norm(batches, loss)]


class Raising(nn.Module):
    """Raises in its n-th forward."""

    def __init__(self, n: int, error: BaseException) -> None:
        super().__init__()
        self.n, self.error = [n], error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n[0] -= 1
        if self.n[0] == 0:
            raise self.error
        return x


def failing(repair: Any, model: nn.Module, teacher: nn.Module, plan: Any, error: type[BaseException]) -> None:
    before, random = [snapshot(m) for m in (model, teacher)], torch.get_rng_state()
    with pytest.raises(error):
        repair(model, teacher, plan)
    for m, was in zip((model, teacher), before, strict=True):
        assert_untouched(was, snapshot(m))
    assert torch.equal(torch.get_rng_state(), random)
    assert threading.active_count() == 1
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [Injected, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("n", [1, 4, 6, 7, 9])
@pytest.mark.parametrize("lockstep", [True, False])
def test_a_forward_that_raises_leaves_all_as_it_was(cut, error, n, lockstep, monkeypatch):
    teacher, model, plan, batches = cut
    if not lockstep:
        monkeypatch.setattr(_Run, "_lockstep", lambda *_: False)
    handle = model[6].register_forward_hook(lambda m, args, out: raising(out))
    raising = Raising(n, error("here"))
    failing(sm.repair.least_squares(batches), model, teacher, plan, error)
    handle.remove()
    assert raising.n[0] == 0


@pytest.mark.parametrize("k", [0, 1])
def test_ctrl_c_while_forwards_are_under_way(cut, k):
    """The signal comes to the main thread, while the forward that sends it goes on in its own."""
    teacher, model, plan, batches = cut
    count = [0]

    def interrupt(*_: Any) -> None:
        count[0] += 1
        if count[0] == 5:
            signal.raise_signal(signal.SIGINT)

    handle = model[0].register_forward_hook(interrupt)
    failing(repairs(batches, None)[k], model, teacher, plan, KeyboardInterrupt)
    handle.remove()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [Injected, KeyboardInterrupt])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_loss_that_raises_leaves_all_as_it_was(cut, error, n):
    teacher, model, plan, batches = cut
    for k in range(2):
        raising = Raising(n, error("here"))
        repair = repairs(batches, lambda out, y, raising=raising: F.cross_entropy(raising(out), y))[k]
        failing(repair, model, teacher, plan, error)


def test_batches_that_raise_leave_all_as_it_was(cut):
    teacher, model, plan, batches = cut

    def interrupted() -> Any:
        yield batches[0]
        torch.rand(3)
        raise KeyboardInterrupt

    for k in range(2):
        failing(repairs(interrupted())[k], model, teacher, plan, KeyboardInterrupt)


@pytest.mark.parametrize("k", [0, 1])
def test_a_repair_changes_values_alone(cut, k):
    teacher, model, plan, batches = cut
    before, of_teacher, random = snapshot(model), snapshot(teacher), torch.get_rng_state()
    loss = None if k == 0 else lambda out, y: out.new_zeros(())  # one that any statistics please
    report = repairs(batches, loss)[k](model, teacher, plan)
    after = snapshot(model)
    assert_untouched(of_teacher, snapshot(teacher))
    assert torch.equal(torch.get_rng_state(), random)
    assert threading.active_count() == 1
    changed = {
        name for name, old in before.items() if not isinstance(old, dict) and not torch.equal(old[1], after[name][1])
    }
    assert changed
    assert all(
        any(name.rpartition(".")[0] == r.rpartition(".")[0] or name.startswith(r) for r in report.kept)
        for name in changed
    )
    for name, old in before.items():
        if isinstance(old, dict):
            assert old == after[name]
        else:
            assert old[0] == after[name][0] and old[3:] == after[name][3:]
            assert old[2] is None or torch.equal(old[2], after[name][2])


def test_one_shot_iterators_and_loaders(cut):
    teacher, model, plan, batches = cut
    found = []
    data = torch.utils.data.TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
    shuffled = torch.utils.data.DataLoader(data, 20, shuffle=True)
    for given in (batches, iter(batches), shuffled):
        student = copy.deepcopy(model)
        report = sm.repair.least_squares(given)(student, teacher, plan)
        assert report.after < 0.5 * report.before
        found.append(student)
    assert all(torch.equal(p, q) for p, q in zip(found[0].parameters(), found[1].parameters(), strict=True))


def test_a_loader_of_more_than_is_held(cut):
    """Each run draws another order, but model and teacher see the same batches."""
    teacher, model, plan, _ = cut
    loader = torch.utils.data.DataLoader(torch.randn(600, 2, 8, 8), 50, shuffle=True)
    report = sm.repair.least_squares(loader, memory=2**19)(model, teacher, plan)
    assert report.after < 0.5 * report.before
    assert report.kept and report.left == {}


def test_a_caller_in_autocast_or_inference_mode(cut):
    teacher, model, plan, batches = cut
    student = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        teacher(batches[0][0])
        report = sm.repair.least_squares(batches)(model, teacher, plan)
        assert report.after < 0.5 * report.before
        x = batches[0][0]
        now = model.eval()(x)
    assert now.dtype == torch.bfloat16
    with torch.inference_mode():
        report = sm.repair.least_squares(batches)(student, teacher, plan)
        assert report.after < 0.5 * report.before
    assert not any(p.is_inference() for p in student.parameters())
    student(x).sum().backward()


def test_casts_of_old_weights_are_forgotten(cut):
    """Autocast remembers casts of weights, which are others afterwards."""
    teacher, model, plan, batches = cut
    x = batches[0][0]
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        sm.repair.least_squares(batches)(model, teacher, plan)
        inside = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), inside)


def test_models_in_half_precision(cut):
    teacher, model, plan, batches = cut
    halves = [(x.bfloat16(), y) for x, y in batches]
    report = sm.repair.least_squares(halves)(model.bfloat16(), teacher.bfloat16(), plan)
    assert report.after < report.before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_arguments_are_checked(cut):
    teacher, model, plan, batches = cut
    for more in ({"ridge": -1}, {"positions": 0}, {"seed": "a"}, {"memory": -1}, {"loss": 3}):
        with pytest.raises(sm.errors.ValuesError, match=next(iter(more))):
            sm.repair.least_squares(batches, **more)
    with pytest.raises(sm.errors.ValuesError, match="batches"):
        sm.repair.batch_norm(3)
    for repair in repairs(batches):
        with pytest.raises(sm.errors.PlanMismatchError):
            repair(model, teacher, None)
        with pytest.raises(sm.errors.ValuesError, match="before the cut"):
            repair(model, model, plan)
    for repair in repairs([]):
        with pytest.raises(sm.errors.ValuesError, match="no batch"):
            repair(model, teacher, plan)


def test_a_plan_that_was_not_applied(cut):
    teacher, _, plan, batches = cut
    model = copy.deepcopy(teacher)
    failing(sm.repair.least_squares(batches), model, teacher, plan, sm.errors.PlanMismatchError)


# -- several repairs --------------------------------------------------------------------------------------------------


def test_chains(cut):
    teacher, model, plan, batches = cut
    both = sm.repair.chain(*repairs(batches, None)[::-1])
    report = both(model, teacher, plan)
    assert both.name == report.name == "batch norm, least squares"
    assert report.after < report.before
    assert sm.repair.repair_of([None, [both]]).name == both.name
    assert sm.repair.repair_of(None) is sm.repair.none
    assert sm.repair.none(model, teacher, plan).layers == ()
    with pytest.raises(sm.errors.ValuesError, match="repair"):
        sm.repair.repair_of(3)
    with pytest.raises(sm.errors.ValuesError, match="repair"):
        sm.repair.repair_of(type)


def test_a_chain_that_fails_undoes_its_first_parts(cut):
    teacher, model, plan, batches = cut

    def raising(*_: Any) -> None:
        raise Injected

    failing(sm.repair.chain(*repairs(batches, None), raising), model, teacher, plan, Injected)


def test_reports_print(cut):
    teacher, model, plan, batches = cut
    text = str(sm.repair.chain(*repairs(batches, None))(model, teacher, plan))
    assert "least squares" in text and "7.weight" in text and "%" in text
