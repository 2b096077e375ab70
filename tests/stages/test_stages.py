"""`prune(repair=, refine=, rounds=)`: what comes out, what a plan says of it, and that nothing changes by half."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from training import assert_untouched, equal, sliced, snapshot

import solvemut as sm
from solvemut import batches as runs
from solvemut.errors import RequestError, ValuesError
from solvemut.plan import kept_units
from solvemut.refine import Trial, by_group, corrected

LOSS = nn.functional.cross_entropy
X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
BATCHES = list(zip(X.split(16), torch.arange(48).remainder(3).split(16), strict=True))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)
    )


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    model.train()
    for x, y in BATCHES[:steps]:
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()


def ready(seed: int = 0) -> tuple[nn.Sequential, torch.optim.Optimizer, sm.Mutator]:
    """A model in training, with gradients, odd modes and an optimizer that has stepped."""
    model = net(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trained(model, optimizer)
    model[1].eval()
    model[3].bias.requires_grad_(False)
    return model, optimizer, sm.Mutator(model, X[:2], optimizer=optimizer)


def fitted(**more: Any) -> Any:
    return sm.repair.least_squares(BATCHES, LOSS, **more)


def state(model: nn.Module, optimizer: Any = None) -> dict[str, Any]:
    modes = {f"mode {k}": m.training for k, m in model.named_modules()}
    return {**snapshot(model, optimizer), **modes, "random": torch.get_rng_state(), "grad": torch.is_grad_enabled()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return equal(dict(a.state_dict()), dict(b.state_dict()))


class Spy(sm.values.Metric):
    """A metric that notes the graphs that it is asked about."""

    def __init__(self, of: sm.values.Metric) -> None:
        self.__dict__["graphs"] = []

        def score(model: nn.Module, graph: Any) -> Any:
            self.graphs.append((graph, {k: p.detach().clone() for k, p in model.named_parameters()}))
            return of.score(model, graph)

        super().__init__(of.name, score, of.normalize, data=of.data)


# -- repair ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repair", [fitted, lambda: [sm.repair.batch_norm(BATCHES), fitted()]])
def test_the_model_is_repaired_and_the_plan_is_as_without(repair):
    model, _, mut = ready()
    teacher = copy.deepcopy(model)
    before = state(teacher)
    plan = mut.prune(params=0.6, repair=repair())
    wanted = copy.deepcopy(teacher)
    plain = sm.Mutator(teacher, X[:2]).prune(params=0.6, dry_run=True)
    assert plain.indices == plan.indices and plain.objective == plan.objective
    plain.apply(wanted)
    sm.repair.chain(repair())(wanted, teacher, plain)
    assert same(model, wanted)
    assert_untouched(before, state(teacher))
    assert any("repair by" in note for note in plan.notes)


def test_the_teacher_is_what_the_model_was():
    seen = []

    def look(model: nn.Module, teacher: nn.Module, plan: Any) -> None:
        seen.append((teacher, copy.deepcopy(teacher.state_dict()), plan))
        assert {id(p) for p in model.parameters()}.isdisjoint(map(id, teacher.parameters()))

    model, _, mut = ready()
    was = copy.deepcopy(model.state_dict())
    plan = mut.prune(params=0.4, repair=look, rounds=2)
    assert len(seen) == 2
    for teacher, numbers, of in seen:
        assert teacher is model and equal(dict(numbers), dict(was))
        assert {k: s[0] for k, s in of.shapes.items()} == {k: tuple(was[k].shape) for k in of.shapes}
    assert seen[-1][2].shapes == plan.shapes and plan.notes == tuple(dict.fromkeys(plan.notes))


@pytest.mark.parametrize("more", [{}, {"rounds": 2}, {"refine": 3}])
def test_the_optimizer_follows_and_training_goes_on(more):
    model, optimizer, mut = ready()
    momenta = {k: optimizer.state[p]["exp_avg"].clone() for k, p in model.named_parameters()}
    plan = mut.prune(params=0.5, repair=fitted(), **more)
    for k, p in model.named_parameters():
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert torch.equal(optimizer.state[p]["exp_avg"].double(), sliced(momenta[k], plan.indices.get(k, {})))
    old = copy.deepcopy(model.state_dict())
    trained(model, optimizer)
    assert not torch.equal(model[0].weight, old["0.weight"])
    assert mut.prune(params=0.8).costs["params"].before == plan.costs["params"].after


@pytest.mark.parametrize("more", [{}, {"rounds": 3}, {"refine": 3}, {"refine": 2, "rounds": 2}])
def test_the_plan_from_a_file_fits_a_fresh_model(more, tmp_path):
    model, _, mut = ready()
    plan = mut.prune(params=0.5, repair=fitted(), **more)
    plan.save(tmp_path / "plan.json")
    loaded = sm.Plan.load(tmp_path / "plan.json")
    fresh = net(3)
    loaded.apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(X), model.eval()(X)) and loaded.trials == plan.trials
    assert {k: tuple(t.shape) for k, t in model.state_dict().items() if k in plan.shapes} == {
        k: s[1] for k, s in plan.shapes.items()
    }


def test_a_repair_that_reports_nothing_and_one_that_reports_something_else():
    for found in (None, 3.0, {"loss": 1}):
        model, _, mut = ready()
        plan = mut.prune(params=0.6, repair=lambda *_, found=found: found)
        assert not any("repair" in note for note in plan.notes) and model[0].out_features < 16


@pytest.mark.parametrize("bad", [3, "least_squares", nn.Linear, [fitted(), 3]])
def test_what_is_no_repair_is_told_before_anything_runs(bad):
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    with pytest.raises(ValuesError, match="repair"):
        mut.prune(params=0.6, repair=bad)
    assert_untouched(before, state(model, optimizer))


def test_a_repair_leaves_sizes_alone():
    def grown(model: nn.Module, *_: Any) -> None:
        model[0].weight = nn.Parameter(torch.zeros(1, 6))  # would broadcast

    model, optimizer, mut = ready()
    before = state(model, optimizer)
    with pytest.raises(ValuesError, match=r"grown.*sizes are the plan's"):
        mut.prune(params=0.6, repair=grown)
    assert_untouched(before, state(model, optimizer))


def test_a_model_in_a_wrapper():
    bare, wrapped = net(), nn.DataParallel(net())
    plan = sm.prune(bare, X[:2], params=0.5, repair=fitted(), rounds=2)
    mut = sm.Mutator(wrapped, X[:2])
    assert mut.prune(params=0.5, repair=fitted(), rounds=2).indices == plan.indices
    assert same(wrapped.module, bare)
    mut.prune(params=0.7, repair=fitted())


def test_under_inference_mode_gradients_are_found_and_the_model_can_be_trained():
    model, optimizer, mut = ready()
    with torch.inference_mode():
        mut.prune(params=0.6, values=sm.values.fisher(BATCHES, LOSS), repair=fitted(), rounds=2)
    before = [p.detach().clone() for p in model.parameters()]
    trained(model, optimizer)
    assert not any(p.is_inference() for p in model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_graph_that_is_still_held_disturbs_no_training():
    model = net()
    held = LOSS(model(X), torch.arange(48) % 3)  # knows the old shapes, also of what is frozen by now
    for p in model[3].parameters():
        p.requires_grad_(False)
    sm.prune(model, X[:2], params=0.5, values=sm.values.reconstruction(BATCHES, LOSS), repair=fitted())
    for p in model[3].parameters():
        p.requires_grad_(True)
    LOSS(model(X), torch.arange(48) % 3).backward()
    assert held.grad_fn is not None and all(p.grad.shape == p.shape for p in model.parameters())


def test_a_metric_leaves_no_graph_behind():
    model, places = net(), []

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        places.append(weakref.ref(out))
        return LOSS(out, y)

    gc.collect()
    gc.disable()
    try:
        for values in (sm.values.reconstruction(BATCHES, loss), sm.values.fisher(BATCHES, loss)):
            sm.values.worth_of(values, model, sm.capture(model, X[:2]))
            assert places and all(place() is None for place in places)
    finally:
        gc.enable()


def test_gradients_that_a_metric_asks_for():
    def slopes(model: nn.Module, graph: Any) -> np.ndarray:
        assert all(p.grad is not None for k, p in model.named_parameters() if k != "3.bias")
        return np.ones(graph.coupling.n_units)

    _, _, mut = ready()
    mut.prune(params=0.6, values=sm.values.Metric("slopes", slopes), repair=fitted(), rounds=2)


@pytest.mark.parametrize("verify", [None, "shapes", "program"])
def test_verify_is_heard_for_copies_too(verify, monkeypatch):
    heard = []
    apply = sm.Plan.apply

    def listened(plan: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append(kwargs.get("verify", args[2] if len(args) > 2 else "program"))
        return apply(plan, model, *args, **kwargs)

    monkeypatch.setattr(sm.Plan, "apply", listened)
    ready()[2].prune(params=0.6, repair=fitted(), refine=2, verify=verify)
    assert heard == [verify] * 4


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_rounds_meet_budgets_in_geometric_steps_with_values_found_anew():
    model, _, mut = ready()
    was, before = {k: p.detach().clone() for k, p in model.named_parameters()}, mut.graph.params.now
    fresh, spy = copy.deepcopy(model), Spy(sm.values.magnitude())
    plan = mut.prune(params=0.3, values=spy, rounds=3, repair=fitted())
    sizes = [graph.params.now for graph, _ in spy.graphs] + [plan.costs["params"].after]
    assert len(spy.graphs) == 3 and sizes[0] == before and sizes == sorted(sizes, reverse=True)
    for r, size in enumerate(sizes):
        limit = before * 0.3 ** (r / 3)
        assert 0.8 * limit < size <= limit * (1 + 1e-12)
    assert equal(spy.graphs[0][1], was)
    assert spy.graphs[1][1]["0.weight"].shape != was["0.weight"].shape
    assert plan.costs["params"].before == before and plan.costs["params"].budget == pytest.approx(0.3 * before)
    assert sum(p.numel() for p in model.parameters()) == plan.costs["params"].after == mut.graph.params.now
    plan.apply(fresh)
    assert {k: t.shape for k, t in fresh.state_dict().items()} == {k: t.shape for k, t in model.state_dict().items()}
    assert len(mut.history) == 1


def test_both_budgets_one_of_which_holds_already():
    _, _, mut = ready()
    params, flops = mut.graph.params.now, mut.graph.flops.now
    plan = mut.prune(params=0.5, flops=float(flops), rounds=2)
    assert plan.costs["params"].after <= 0.5 * params and plan.costs["flops"].after <= flops


def test_rounds_without_repair_keep_weights():
    model, _, mut = ready()
    was = copy.deepcopy(model.state_dict())
    plan = mut.prune(params=0.3, rounds=3)
    for k, t in model.state_dict().items():
        assert torch.equal(t.double(), sliced(was[k], plan.indices.get(k, {}))), k


def test_constraints_rounding_and_keep_are_heard_in_each_round():
    _, _, mut = ready()
    graphs, spy = [], Spy(sm.values.magnitude())

    def asked(graph: Any) -> Any:
        graphs.append(graph)
        return [graph["0"].out == graph["3"].out]

    plan = mut.prune(params=0.4, rounds=3, values=spy, constraints=asked, round_to=2)
    assert len(graphs) == 3 == len({id(g) for g in graphs})
    for graph, _ in spy.graphs[1:]:
        assert graph["0"].nout == graph["3"].nout and graph["0"].nout % 2 == 0
    assert plan.sizes["0"][1] == plan.sizes["3"][1] and plan.sizes["0"][1] % 2 == 0
    _, _, mut = ready()
    spy = Spy(sm.values.magnitude())
    mut.prune(params=0.6, rounds=2, values=spy, keep="3")
    assert [g["3"].nout for g, _ in spy.graphs] == [12, 12] and mut.graph["3"].nout == 12


@pytest.mark.parametrize("values", [{"0": 2.0}, {}])
def test_values_of_one_graph_do_not_do_for_rounds(values):
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    with pytest.raises(RequestError, match=r"rounds=2: values.*give a metric, or a function"):
        mut.prune(params=0.5, values=values, rounds=2)
    with pytest.raises(RequestError, match="rounds=2: values"):
        mut.prune(params=0.5, values=sm.values.worth_of(None, model, mut.graph), rounds=2)
    with pytest.raises(RequestError, match=r"rounds=2.*constraints as a function"):
        mut.prune(params=0.5, constraints=[mut.graph["0"].out >= 4], rounds=2)
    assert_untouched(before, state(model, optimizer))
    mut.prune(params=0.5, values=lambda vertex: np.arange(vertex.nout), rounds=2)


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"rounds": 1.5}, {"rounds": "2"}, {"refine": -1}, {"refine": True}])
def test_odd_numbers_are_refused(bad):
    with pytest.raises(RequestError, match=next(iter(bad))):
        ready()[2].prune(params=0.5, **bad)


def test_a_budget_that_no_round_can_meet_changes_nothing():
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    with pytest.raises(sm.errors.InfeasibleError):
        mut.prune(params=0.01, rounds=3, repair=fitted())
    assert_untouched(before, state(model, optimizer))
    mut.prune(params=0.5)


def test_rounds_that_let_layers_grow():
    model, _, mut = ready()
    plan = mut.prune(params=0.9, rounds=2, grow=2, values=lambda v: 5.0 if v.name == "3" else 1.0)
    assert plan.sizes["3"][1] > 12 and plan.costs["params"].after <= 0.9 * plan.costs["params"].before
    model.eval()(X)


# -- refine ------------------------------------------------------------------------------------------------------------


VALUES: dict[str, Callable[[], Any]] = {
    "fisher": lambda: sm.values.fisher(BATCHES, LOSS),
    "taylor": lambda: sm.values.taylor(BATCHES, LOSS),
    "reconstruction": lambda: sm.values.reconstruction(BATCHES, LOSS),
    "retention": lambda: sm.values.retention(),
    "none": lambda: None,
    "by vertex": lambda: {"0": np.arange(16.0), "3": 2.0},
}


@pytest.mark.parametrize("name", VALUES)
def test_the_plan_that_measures_best_is_taken(name):
    model, _, mut = ready()
    graph, teacher, values = mut.graph, copy.deepcopy(model), VALUES[name]()
    plan = mut.prune(params=0.4, values=values, refine=5, repair=fitted())
    titles, losses = zip(*plan.trials, strict=True)
    assert len(plan.trials) == 5 and {"optimum", "uniform"} < set(titles)
    assert losses[0] == min(losses) and losses[0] <= dict(plan.trials)["uniform"]
    again = copy.deepcopy(teacher)
    plan.apply(again)
    fitted()(again, teacher, plan)
    assert runs.mean_loss(again, BATCHES, LOSS) == losses[0]
    assert same(again, model)
    problem = sm.Problem(sm.capture(teacher, X[:2]))
    problem.maximize(values)
    assert plan.objective == pytest.approx(problem.objective_of(kept_units(graph, plan)), rel=1e-9, abs=1e-12)
    assert plan.objective <= plan.bound and plan.status in ("optimal", "feasible")
    assert plan.costs["params"].after <= plan.costs["params"].budget == pytest.approx(0.4 * graph.params.now)
    again = sm.Plan.from_json(plan.to_json())
    assert again.trials == plan.trials and f"{titles[0]}" in str(plan) and "measured plan" in str(again)


def test_the_optimum_is_measured_first_and_is_that_without_refining():
    for values in (sm.values.fisher(BATCHES, LOSS), sm.values.reconstruction(BATCHES, LOSS)):
        _, _, mut = ready()
        plain = mut.prune(params=0.4, values=values, dry_run=True)
        plan = mut.prune(params=0.4, values=values, refine=1, dry_run=True)
        assert [title for title, _ in plan.trials] == ["optimum"]
        assert (plan.indices, plan.objective, plan.bound) == (plain.indices, plain.objective, plain.bound)
        assert plan.values == plain.values and plan.status == plain.status


def test_without_a_loss_there_is_nothing_to_measure_by():
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    for more in ({}, {"repair": sm.repair.batch_norm(BATCHES)}, {"values": sm.values.reconstruction(BATCHES)}):
        with pytest.raises(RequestError, match=r"give values=.*or a repair with loss="):
            mut.prune(params=0.5, refine=3, **more)
    assert_untouched(before, state(model, optimizer))


def test_the_loss_of_a_repair_in_a_chain_is_found():
    def mine(*_: Any) -> None:
        pass

    for repair in ([sm.repair.batch_norm(BATCHES), mine, fitted()], sm.repair.chain(fitted(), mine), [[fitted()]]):
        assert len(ready()[2].prune(params=0.5, refine=2, repair=repair).trials) == 2


def test_batches_that_are_used_up_once_are_kept():
    values = sm.values.fisher(iter(BATCHES), LOSS)
    plan = ready()[2].prune(params=0.5, refine=3, values=values)
    assert len(plan.trials) == 3


def test_one_seed_gives_one_plan():
    a, b = (ready()[2].prune(params=0.4, refine=5, repair=fitted(), seed=4) for _ in range(2))
    assert a.trials == b.trials and a.indices == b.indices and a.notes == b.notes


def test_refine_in_rounds_measures_in_each():
    _, _, mut = ready()
    n = []

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        n.append(1)
        return LOSS(out, y)

    values = sm.values.retention()
    plan = mut.prune(params=0.4, refine=3, rounds=2, values=values, repair=Free(loss))
    assert len(n) == 2 * 3 * len(BATCHES) and len(plan.trials) == 3


class Free:
    """A repair that does nothing, with a loss."""

    def __init__(self, loss: Any, batches: Any = BATCHES) -> None:
        self.loss, self.batches = loss, batches

    def __call__(self, *_: Any) -> None:
        pass


def test_losses_that_are_not_finite_come_last():
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return torch.tensor(torch.nan if model[0].out_features == first else 1.0 + model[0].out_features)

    _, _, mut = ready()
    first = mut.prune(params=0.4, dry_run=True).sizes["0"][1]
    plan = mut.prune(params=0.4, refine=4, repair=Free(loss))
    assert "optimum" not in dict(plan.trials) and "optimum" in plan.notes[-1]
    assert np.isfinite([loss for _, loss in plan.trials]).all() and sm.Plan.from_json(plan.to_json()).trials
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    with pytest.raises(ValuesError, match="not finite"):
        mut.prune(params=0.4, refine=3, repair=Free(lambda model, batch: torch.tensor(torch.inf)))
    assert_untouched(before, state(model, optimizer))


def test_where_no_uniform_plan_fits_the_others_are_measured(monkeypatch):
    def none(*_: Any) -> Any:
        raise sm.errors.InfeasibleError("none", [])

    monkeypatch.setattr("solvemut.refine.uniform_of", none)
    plan = ready()[2].prune(params=0.4, refine=3, repair=fitted())
    assert len(plan.trials) == 3 and "uniform" not in dict(plan.trials)


def test_new_units_are_not_refined():
    with pytest.raises(RequestError, match="leave grow= out"):
        ready()[2].prune(params=0.9, refine=2, repair=fitted(), grow=2)


# -- all or nothing ----------------------------------------------------------------------------------------------------


class Failing:
    """Counts calls, and raises at the n-th."""

    def __init__(self, n: int, error: BaseException, of: Any = LOSS) -> None:
        self.left, self.error, self.of = n, error, of

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        torch.rand(1)
        if self.left == 0:
            raise self.error
        return self.of(*args)


class FailingBatches:
    def __init__(self, n: int) -> None:
        self.left = n

    def __iter__(self) -> Any:
        for batch in BATCHES:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            yield batch


def request(kind: str, n: int) -> tuple[dict[str, Any], Any]:
    """A request that fails at the n-th call of something, and what counts."""
    if kind == "loss":
        broken: Any = Failing(n, ArithmeticError("broken"))
        return {"values": sm.values.fisher(BATCHES, lambda out, y: broken(out, y)), "repair": fitted()}, broken
    if kind == "loss of the repair":
        broken = Failing(n, ArithmeticError("broken"))
        return {"repair": [sm.repair.least_squares(BATCHES, lambda out, y: broken(out, y))]}, broken
    if kind == "repair":
        broken = Failing(n, ArithmeticError("broken"), fitted())
        return {"repair": broken, "values": sm.values.fisher(BATCHES, LOSS)}, broken
    broken = FailingBatches(n)
    return {"values": sm.values.reconstruction(broken, LOSS), "repair": sm.repair.batch_norm(broken, LOSS)}, broken


@pytest.mark.parametrize("kind", ["loss", "loss of the repair", "repair", "batches"])
def test_a_failure_leaves_all_as_it_was(kind):
    more = {"params": 0.4, "refine": 2, "rounds": 2}
    asked, counter = request(kind, 10**9)
    ready()[2].prune(**more, **asked)
    calls = 10**9 - counter.left
    assert calls >= 6
    for n in sorted({1, 2, calls // 2, calls}):
        model, optimizer, mut = ready()
        before, graph = state(model, optimizer), mut.graph
        asked, counter = request(kind, n)
        with pytest.raises((ArithmeticError, KeyboardInterrupt)):
            mut.prune(**more, **asked)
        assert counter.left == 0
        assert_untouched(before, state(model, optimizer))
        assert mut.graph is graph and mut.history == ()
        plan = mut.prune(params=0.4, repair=fitted())
        assert plan.costs["params"].after == mut.graph.params.now
        trained(model, optimizer)


@pytest.mark.parametrize("more", [{}, {"rounds": 2}, {"refine": 3}])
def test_a_dry_run_changes_nothing(more):
    def drawing(model: nn.Module, teacher: nn.Module, plan: Any) -> Any:
        torch.rand(3)
        return fitted()(model, teacher, plan)

    drawing.loss, drawing.batches = LOSS, BATCHES  # type: ignore[attr-defined]
    model, optimizer, mut = ready()
    before, graph = state(model, optimizer), mut.graph
    plan = mut.prune(params=0.5, repair=drawing, dry_run=True, **more)
    assert_untouched(before, state(model, optimizer))
    assert mut.graph is graph and mut.history == () and plan.costs["params"].after <= plan.costs["params"].budget
    assert mut.prune(params=0.5, repair=drawing, **more).indices == plan.indices


@pytest.mark.parametrize("more", [{"repair": sm.repair.none}, {"rounds": 2}, {"refine": 2}])
def test_a_lazy_block_refuses(more):
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    with pytest.raises(RequestError, match="lazy block"), mut.lazy():
        mut.prune(params=0.5, **more)
    assert_untouched(before, state(model, optimizer))
    with mut.lazy():
        mut.prune(params=0.5, rounds=1, refine=0, repair=None)
    assert len(mut.history) == 1 and mut.graph.params.now <= 0.5 * mut.history[0].costs["params"].before


def test_followers_and_trackers_follow():
    model = net()
    average = AveragedModel(model)
    mut = sm.Mutator(model, X[:2], followers=[average])
    tracker = sm.values.track(mut)
    LOSS(model(X), torch.arange(48) % 3).backward()
    averages = {k: t.clone() for k, t in tracker.averages.items()}
    plan = mut.prune(params=0.4, repair=fitted(), rounds=2)
    assert {k: t.shape for k, t in average.module.state_dict().items()} == {
        k: t.shape for k, t in model.state_dict().items()
    }
    kept = plan.indices["0.weight"][0]
    assert torch.equal(tracker.averages["0"], averages["0"][kept])
    mut.prune(params=0.8, values=tracker, repair=fitted(), refine=2)
    with pytest.raises(ValuesError):
        mut.prune(params=0.8, values=tracker, repair=fitted(), rounds=2)
    tracker.remove()


def test_who_is_told_of_a_change_sees_the_repaired_model():
    seen = []
    model = net()
    mut = sm.Mutator(model, X[:2], after_change=lambda vertex, plan: seen.append(copy.deepcopy(model)))
    mut.prune(params=0.4, repair=fitted())
    assert seen and all(same(m, model) for m in seen)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("rounds", [1, 2])
def test_what_was_found_by_ctrl_c_is_handed_back(n, rounds):
    broken = Failing(n * len(BATCHES), KeyboardInterrupt())
    model, optimizer, mut = ready()
    before = state(model, optimizer)
    asked = {"params": 0.4, "refine": 3, "rounds": rounds, "repair": Free(lambda out, y: broken(out, y))}
    plan = mut.prune(**asked, on_interrupt="return")
    if n > 3 * rounds:
        assert plan.status != "interrupted" and mut.history
        return
    assert_untouched(before, state(model, optimizer))
    assert plan.status == "interrupted" and "interrupted" in "; ".join(plan.notes) and not mut.history
    assert len(plan.trials) == (n - 1) % 3
    sm.Plan.from_json(plan.to_json()).apply(model)
    model.eval()(X)


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_by_group_is_the_sum_of_the_best():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = sm.capture(model, torch.ones(1, 4))
    n = graph.coupling.n_units
    value = np.random.default_rng(0).normal(size=n)
    value[graph.coupling.frozen] = 0
    worth = sm.values.Worth(value)
    found = by_group(worth, graph)
    assert [len(c.units) for c in found.curves] == [6, 5] and not found.value[~graph.coupling.frozen].any()
    for c in found.curves:
        ranked = np.sort(value[c.units])[::-1]
        for k in range(len(c.units) + 1):
            assert c.worth[k] == pytest.approx(ranked[:k].sum())
            kept = graph.coupling.frozen.copy()
            kept[c.units[:k]] = True
            rest = sum(d.worth[0] for d in found.curves if d is not c)
            assert found.of(kept, graph.coupling.frozen) == pytest.approx(worth.of(kept, graph.coupling.frozen) + rest)
    for share in (0.4, 0.6, 0.8):
        plans = []
        for w in (worth, found):
            problem = sm.Problem(graph)
            problem.maximize(w)
            problem.add(graph.params <= share * graph.params.now)
            plans.append(problem.solve(gap=0))
        assert plans[0].objective == pytest.approx(plans[1].objective)
        assert plans[0].indices == plans[1].indices


def test_by_group_leaves_curves_as_they_are():
    model = net()
    graph = sm.capture(model, X[:2])
    worth = sm.values.worth_of(sm.values.retention(), model, graph)
    found = by_group(worth, graph)
    assert found.curves == worth.curves


def trial(costs: list[float], loss: float) -> Trial:
    return Trial("", None, loss, np.array(costs), np.ones(len(costs)))  # type: ignore[arg-type]


def test_corrected_finds_the_factors_of_a_sum():
    rng = np.random.default_rng(0)
    true = np.array([0.5, 1.0, 2.5])
    trials = [trial(row, 3 + float(np.dot(row, true))) for row in rng.random((8, 3)).tolist()]
    found = corrected(trials, ridge=1e-9)
    assert np.allclose(found, true / true.mean()) and found.mean() == pytest.approx(1)
    assert np.ptp(corrected(trials, ridge=1e9)) < 1e-3  # drawn towards one factor for all
    assert np.array_equal(corrected([*trials, trial([1.0, 1.0, 1.0], np.nan)]), corrected(trials))


@pytest.mark.parametrize("trials", [[trial([1.0, 2.0], 3.0)], [trial([1.0, 2.0], 3.0), trial([1.0, 2.0], 4.0)]])
def test_corrected_without_anything_to_tell_by(trials):
    assert corrected(trials).tolist() == [1.0, 1.0]
    assert corrected([trial([1.0, 2.0], np.inf)]).tolist() == [1.0, 1.0]


def test_corrected_factors_stay_near_each_other():
    found = corrected([trial([1.0, 0.0], 100.0), trial([0.0, 1.0], -100.0), trial([0.0, 0.0], 0.0)], ridge=1e-9)
    assert (found > 0).all() and found.max() / found.min() <= 64 + 1e-9
