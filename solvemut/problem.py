"""Problem: a graph, what its units are worth, and what is asked of it; `solve` makes a Plan."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .alternatives import COUNTED, Alternatives, Choice, budgets_of, choice_of, switched
from .apply import SPLIT, Plan
from .arguments import flag, names, number, one_of, search_limits, shown, whole
from .compile import Compiled, Part, Question, Worth, compile_program, explained
from .depth import Removable, gone_of, parts_of
from .edits import Placed, Substitute
from .errors import InfeasibleError, RequestError, SolvemutError, TimeLimitError
from .explain import Solved
from .frontier import Frontier, best_of, frontier_of
from .graph import Graph
from .interrupts import Heard
from .plan import PlanCost, copyable, redrawn
from .program import Progress, Solution
from .progress import Reporter
from .remodel import carried, remodelled
from .report import one_line
from .requests import Budget, Cost, Request, flat, owners
from .tracing import fake_run
from .values import Metric, Values, retention, worth_of

INTERRUPTS = ("raise", "return")


class Problem:
    """State what a model must become, then `solve`.

    >>> import torch, solvemut as sm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> graph = sm.capture(model, torch.ones(1, 4))
    >>> problem = sm.Problem(graph)
    >>> problem.add(graph["0"].out == 5)
    >>> problem.solve().sizes["0"]
    (8, 5)
    """

    def __init__(self, graph: Graph) -> None:
        if not isinstance(graph, Graph):
            raise RequestError(f"Problem takes the graph of a model, as capture gives it, not {shown(graph)}")
        self.graph = graph
        self.values: Values = None
        self._named = ""  # what plans say of values that were found beforehand
        self.requests: list[Request] = []
        self.frozen = np.zeros(graph.coupling.n_units, dtype=bool)
        self.multiple: int | None = None
        self.kept: list[str] = []
        self.before: set[int] = set()  # classes before which new units come, not after them
        self.slots: np.ndarray | None = None  # how many new units may come after each class
        self.removable: tuple[Removable, ...] = ()  # branches that may go
        self.parts: list[Part] = []  # the same, as the program sees them
        self.most_removed: int | None = None
        self.choices: tuple[Choice, ...] = ()  # layers that have alternatives
        self._offered: Alternatives | None = None  # what these are worth and cost, once it was found
        self._switched: dict[int, tuple[Cost, Cost]] = {}  # by id costs, and how the program counts them
        self._shapes: list[tuple[int, ...]] = []  # of what the model returns, once it was asked for
        self.splits = False  # new units are copies of old ones, which what reads both divides its weights among

    def __repr__(self) -> str:
        asked = [str(r) for r in self.requests] + [f"keep {name!r}" for name in self.kept]
        asked += [f"round_to({self.multiple})"] * (self.multiple is not None)
        asked += [f"{len(self.removable)} branches may go"] * bool(self.removable)
        asked += [f"{len(c.options)} options for {c.path!r}" for c in self.choices]
        return one_line(f"<Problem of {self.graph.trace.root}: {'; '.join(asked) or 'nothing asked yet'}>")

    def maximize(self, values: Values) -> None:
        """What keeping each unit is worth: a metric of solvemut.values, a dict by vertex, or a callable of a vertex."""
        self.values, self._named = values, ""
        self._offered, self._switched = None, {}  # low rank goes by the values, too

    def add(self, *requests: Any) -> None:
        """Requests on sizes and costs: `graph["a"].out == 32`, `graph.flops <= 1e9`, lists of such."""
        found = flat(requests)
        for r in found:
            if not all(self.graph.coupling.is_like(owner) for owner in owners(r)):
                raise RequestError(f"'{r}' speaks of another graph; after a mutation ask the mutator's new graph")
            if isinstance(r, Budget):
                r.cost.check(self.graph.coupling.unit_of)
        self.requests += found

    def keep(self, *patterns: str) -> None:
        """Leave the outputs of these vertices (names, containers or globs) as they are."""
        found = [(pattern, self.graph.match(pattern)) for pattern in names(patterns, "keep")]
        for pattern, vertices in found:
            self.kept.append(pattern)
            for v in vertices:
                self.frozen[v.units] = True

    def round_to(self, k: int | None) -> None:
        """Ask a multiple of k of every size that a layer makes; sizes below k stay."""
        self.multiple = None if k is None else whole(k, f"round_to={shown(k)}", least=1)

    def grow(self, most: Any) -> None:
        """Let layers get new units: at most so many (an int), or a share of what they have (a float; True: as many).

        A dict says it by vertex name or glob. A new unit counts as much as the least valuable of those beside it.
        "split" allows as many as there are, and makes them copies (see `split`).
        """
        if most == SPLIT and isinstance(most, str):
            self.split()
            most = True
        slots = self.most_new(most, 0)
        self.slots = slots if self.slots is None else np.maximum(self.slots, slots)

    def drop(self, found: Sequence[Removable], worth: Mapping[str, float], most: int | None = None) -> None:
        """Let branches go, at most so many; `worth` says what is lost with each, on the scale of the values."""
        if missing := [r.name for r in found if r.name not in worth]:
            raise RequestError(f"drop: worth says nothing of {', '.join(map(repr, missing[:3]))}")
        self.removable, self.parts, self.most_removed = tuple(found), parts_of(self.graph, found, worth), most
        self._switched = {}

    def choose(self, vertex: Any, options: Mapping[str, Any]) -> None:
        """Let a layer be one of several: as it is (None), a module in its place, a `LowRank`, or an `Alternative`.

        `vertex` is the name of a module that the forward calls; `options` have names of their own. Each is worth and
        costs what it does: values that see data measure it by putting it in the layer's place, else
        `Alternative(module, value=...)` says it. Budgets are then on flops, params, weight_bytes and latency.

        >>> import torch, solvemut as sm
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> graph = sm.capture(model, torch.ones(1, 64))
        >>> problem = sm.Problem(graph)
        >>> problem.add(graph.params <= 0.7 * graph.params.now, graph["0"].out == 64, graph["2"].out == 64)
        >>> problem.choose("2", {"dense": None, **{f"rank {r}": sm.LowRank(r) for r in (4, 8, 16, 32)}})
        >>> problem.solve().chosen
        {'2': 'rank 8'}
        """
        graph = self.graph
        if graph.model is None or not graph.examples:
            raise RequestError("choose: this graph has no model, or no example inputs to try one on; capture the model")
        self._shapes = self._shapes or fake_run(graph.model, graph.examples[0])
        found = choice_of(graph, vertex, options, self._shapes)
        others = [c for c in self.choices if c.path != found.path]
        if clash := [c.path for c in others if _lies_in(c, found) or _lies_in(found, c)]:
            raise RequestError(f"choose({found.path!r}): {clash[0]!r} has options already, and one lies in the other")
        self.choices, self._offered, self._switched = (*others, found), None, {}

    @property
    def alternatives(self) -> Alternatives | None:
        """What the options of layers are worth and cost, found once."""
        if self.choices and self._offered is None:
            self._offered = Alternatives(self.graph, self.choices, self.values)
        return self._offered

    def split(self) -> None:
        """Make new units copies of old ones: the most valuable of their block in turn, the best of them first.

        What reads a unit and its copies divides its weights among them, so that outputs stay; by shares that differ, so
        that copies part in training (Net2WiderNet, arXiv 1511.05641). A unit that cannot be copied is drawn; a note
        says why.
        """
        self.splits = True

    def most_new(self, most: Any, others: int) -> np.ndarray:
        """How many new units may come after each class, given limits as `grow` takes them; `others` where none is."""
        graph = self.graph
        told = most if isinstance(most, Mapping) else {v.name: most for v in graph.vertices if v.makes_units}
        found = np.full(graph.coupling.n_units, -1, dtype=np.int64)
        for pattern, amount in told.items():
            for v in graph.match(pattern):
                limit = _most_new(amount, v.nout)
                first = found[v.units] < 0
                either = np.minimum if others else np.maximum  # limits hold for all that is coupled, and so does leave
                found[v.units] = np.where(first, limit, either(found[v.units], limit))
        return np.where(found < 0, others, found)

    def solve(
        self,
        time_limit: float | None = 60.0,
        gap: float = 1e-3,
        seed: int = 0,
        progress: bool | None = None,
        on_interrupt: str = "raise",
    ) -> Plan:
        """The best plan found within `time_limit` seconds, proven to the relative `gap` asked for unless time is up.

        With time_limit=None it goes on until then. Raises InfeasibleError with the smallest conflict, TimeLimitError if
        no plan was found in time. Ctrl-C raises KeyboardInterrupt; with on_interrupt="return" it ends the search with
        the best plan found by then, if there is one, of status "interrupted".
        """
        limit, relative, start = search_limits(time_limit, gap, seed)
        progress = None if progress is None else flag(progress, "progress")
        one_of(on_interrupt, "on_interrupt", INTERRUPTS)
        check_fresh(self.graph)
        with Heard() as ctrl_c:
            plan, interrupted = self._solve(limit, relative, start, progress, ctrl_c)
        if not interrupted and not ctrl_c.heard:
            return plan
        if on_interrupt == "raise":
            raise KeyboardInterrupt("the solve was interrupted; nothing was changed")
        note = f"interrupted after {plan.seconds:.1f} s: the best plan found by then"
        return replace(plan, status="interrupted", notes=(note, *plan.notes))

    def _solve(self, time_limit: float, gap: Any, seed: int, progress: bool | None, ctrl_c: Heard) -> tuple[Plan, bool]:
        """The plan, and whether Ctrl-C ended the search."""
        start = time.perf_counter()
        worth = self.worth
        compiled = self._compiled(worth)
        spent = time.perf_counter() - start
        left = max(0.05 * time_limit, time_limit - 1.3 * spent)  # drawing up the plan takes less than compiling did
        with Reporter(progress) as reporter:

            def callback(progress: Progress) -> bool:
                reporter(progress)
                return ctrl_c.heard

            try:
                solution = compiled.program.solve(time_limit=left, gap=gap, seed=seed, callback=callback)
            except InfeasibleError as e:
                raise self._explained(e, worth, time_limit) from None
        times = compiled.decoder.times(solution)
        return self._plan(solution, times, compiled, time.perf_counter() - start), solution.interrupted

    def best(self, k: int, time_limit: float | None = 60.0, gap: float = 0.0, seed: int = 0) -> list[Plan]:
        """The `k` best distinct plans, best first; fewer, if there are no more, or `time_limit` seconds are over.

        Plans are distinct that differ in a size; which units of a size stay is decided by what they are worth. With a
        gap of 0 they are the best ones, proven; else each is that near to the best one beside those before it. Raises
        what `solve` raises.

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> problem = sm.Problem(sm.capture(model, torch.ones(1, 4)))
        >>> problem.add(problem.graph.params <= 40)
        >>> [plan.sizes["0"] for plan in problem.best(3)]
        [(8, 5), (8, 4), (8, 3)]
        """
        check_fresh(self.graph)
        return best_of(self, whole(k, f"k={shown(k)}", least=1), search_limits(time_limit, gap, seed))

    def frontier(
        self,
        resource: str | Cost,
        points: int = 12,
        time_limit: float | None = 60.0,
        gap: float = 1e-3,
        seed: int = 0,
    ) -> Frontier:
        """The best plans over a range of budgets on one resource, and what is proven for every budget in between.

        `resource` is the name of one of graph.costs, or a cost. Budgets are spread evenly between the least that the
        other requests allow and what the best plan costs without this budget; upper limits that the problem has on the
        resource are left out. Plans that come twice are one point. `time_limit` is for all of it, in seconds. Raises
        InfeasibleError where no budget would do.

        >>> import torch, solvemut as sm
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> frontier = sm.Problem(sm.capture(model, torch.ones(1, 4))).frontier("params", points=3)
        >>> [point.cost for point in frontier], frontier[1].plan.sizes["0"]
        ([9, 30, 58], (8, 4))
        """
        check_fresh(self.graph)
        count = whole(points, f"points={shown(points)}", least=1)
        return frontier_of(self, resource, count, search_limits(time_limit, gap, seed))

    @property
    def worth(self) -> Worth:
        """What keeping each unit is worth, as `maximize` was told."""
        return worth_of(retention() if self.values is None else self.values, self.graph.model, self.graph)

    def settle(self) -> None:
        """Find the values now, once for all that is solved after; plans tell their name all the same."""
        name, _ = self.values_name, self.alternatives
        self.values, self._named = self.worth, name

    def times(self, time_limit: float = 60.0, gap: float = 1e-3, seed: int = 0) -> np.ndarray:
        """How often the solution has each unit class, without drawing up a plan."""
        compiled = self._compiled(self.worth)
        return compiled.decoder.times(compiled.program.solve(time_limit=time_limit, gap=gap, seed=seed))

    @property
    def values_name(self) -> str:
        """What a plan says of the values that it was solved for."""
        if self._named and isinstance(self.values, Worth):
            return self._named
        if self.values is None:
            return retention().name
        return self.values.name if isinstance(self.values, Metric) else "given by the caller"

    def objective_of(self, times: np.ndarray) -> float:
        """The objective of a change that leaves each unit class as often as `times` says (bools or ints)."""
        return self._compiled(self.worth).objective(times)

    def _question(self, worth: Worth, join_requests: bool) -> Question:
        alternatives = self.alternatives
        return Question(
            budgets_of(self.requests, self._stated) if self.removable or self.choices else self.requests,
            self.multiple,
            self.frozen,
            join_requests,
            slots=self.slots,
            parts=self.parts,
            most_removed=self.most_removed,
            picks=() if alternatives is None else alternatives.picks(self.removable),
        )

    def _compiled(self, worth: Worth, join_requests: bool = True) -> Compiled:
        return compile_program(self.graph.coupling, worth, self._question(worth, join_requests))

    def _explained(self, error: InfeasibleError, worth: Worth, time_limit: float) -> InfeasibleError:
        """The conflict in the words of the request: what cannot hold, and what could."""
        compiled = self._compiled(worth, join_requests=False)  # equations that were asked for can be named too
        with contextlib.suppress(TimeLimitError):
            try:
                if compiled.program.solve(time_limit=time_limit, gap=1.0).interrupted:
                    raise KeyboardInterrupt
            except InfeasibleError as e:
                error = e
        return explained(error, compiled.choices, self.kept)

    def _plan(self, solution: Solution, times: np.ndarray, compiled: Compiled, seconds: float) -> Plan:
        graph, stage = self.graph, compiled.choices.question.stage
        sources, drawn = copyable(graph.coupling, compiled.decoder.sources(solution) if self.splits else {})
        on = compiled.decoder.on(solution)
        gone = gone_of(self.removable, on)
        taken = [] if self.alternatives is None else self.alternatives.edits(on)
        edits: list[Placed] = [*(e for r in gone for e in r.edits), *taken]
        base, kept = graph, times
        if places := [e for e in edits if e.replaces]:
            known = None if self.alternatives is None else self.alternatives.captured(places)
            base = remodelled(graph, places) if known is None else known
            kept = carried(graph, base, times, [e.module for e in taken if e.replaces])
        after, drawing = redrawn(base, kept, self.before, sources)
        drawing["edits"] = (*edits, *drawing["edits"])
        why = ["branches go"] * bool(gone) + ["layers become others"] * any(e.replaces for e in taken)
        drawing["alters"] = (*why, *drawing["alters"])
        self._check(solution, compiled, times, after, on, taken)
        return Plan(
            status=solution.status,
            objective=float(solution.objectives[stage]),
            bound=float(solution.bounds[stage]),
            gap=float(max(solution.gaps[: stage + 1])),
            seconds=seconds,
            solver=solution.solver,
            costs=self._costs(times, after, on, taken),
            notes=(*graph.notes, *compiled.notes, *drawn),
            values=self.values_name,
            graph=after,
            solved=Solved(
                graph, compiled, solution, {k: self._stated(c) for k, c in graph.costs.items()}, tuple(self.kept)
            ),
            **drawing,
        )

    def _costs(
        self, times: np.ndarray, after: Graph, on: Mapping[str, bool], taken: Sequence[Substitute]
    ) -> dict[str, PlanCost]:
        """The model's costs, then those that the caller built."""
        told = any(not e.replaces for e in taken)  # what the changed model does not show
        found = {name: PlanCost(c.now, after.costs[name].now) for name, c in self.graph.costs.items()}
        if told:
            found = {name: PlanCost(c.now, self._counted(c, times, on)) for name, c in self.graph.costs.items()}
        for b in (r for r in self.requests if isinstance(r, Budget)):
            name, own = b.cost.name, self._is_own(b.cost)
            if not own and name not in self.graph.costs:
                found.setdefault(name, PlanCost(b.cost.now, self._counted(b.cost, times, on)))
            if b.sense == "<=" and (own or name not in self.graph.costs):
                limits = [limit for limit in (found[name].budget, b.told) if limit is not None]
                found[name] = replace(found[name], budget=min(limits))
        return found

    def _counted(self, cost: Cost, times: np.ndarray, on: Mapping[str, bool]) -> int | float:
        """A cost of what is left, as users see it."""
        stated = self._stated(cost) if cost.name in COUNTED else cost
        return stated.told(stated.count(self.graph.coupling, times, on))

    def _stated(self, cost: Cost) -> Cost:
        """A cost as the program counts it, by what is there; found once for each."""
        if not self.removable and not self.choices:
            return cost
        if id(cost) not in self._switched:
            found = switched(self.graph, cost, self.removable, self.alternatives)
            self._switched[id(cost)] = cost, found  # with the cost itself, so that its id stays its own
        return self._switched[id(cost)][1]

    def _is_own(self, cost: Cost) -> bool:
        """Whether a cost is one of the model's, not one that the caller built under its name."""
        own = self.graph.costs.get(cost.name)
        return cost is own or (own is not None and cost.owner is not self.graph.coupling and cost.now == own.now)

    def _check(
        self,
        solution: Solution,
        compiled: Compiled,
        times: np.ndarray,
        after: Graph,
        on: Mapping[str, bool],
        taken: Sequence[Substitute],
    ) -> None:
        """What the program promised is what the units kept, and the changed model, come to."""
        found, told = compiled.objective(times, on), float(solution.objectives[compiled.choices.question.stage])
        more = found - told  # a deviation counted as larger than it is may be found where nothing is proven
        if abs(min(0.0, more) if solution.status != "optimal" else more) > 1e-6 * max(1.0, abs(found), abs(told)):
            raise SolvemutError(
                f"the program promised a value of {told:g}, what is left comes to {found:g}; please report this model"
            )
        for b, name in compiled.counted:
            recounts = [b.cost.count(self.graph.coupling, times, on)]
            if self._is_own(b.asked.cost) and all(e.replaces for e in taken):
                recounts.append(after.costs[b.cost.name].counted * (b.cost.scale // b.asked.cost.scale))
            for found in recounts:
                if found != solution.costs[name]:
                    raise SolvemutError(
                        f"{b}: the program counted {solution.costs[name]}, a recount gives {found}; "
                        "please report this model"
                    )


def _lies_in(inner: Choice, outer: Choice) -> bool:
    return f"{inner.path}.".startswith(f"{outer.path}.")


def _most_new(amount: Any, size: int) -> int:
    give = "give a number of new units, a share of the present size, or a dict of such by vertex"
    found = number(1.0 if amount is True else amount, f"grow={shown(amount)}", give)
    if found < 0:
        raise RequestError(f"grow={shown(amount)}: {give}")
    return int(found) if isinstance(found, int) else math.ceil(found * size)


def check_fresh(graph: Graph) -> None:
    """Raises RequestError if the model has not the tensors, or not the shapes, that were captured."""
    if graph.model is None:
        return
    now = {k: tuple(t.shape) for k, t in graph.model.named_parameters(remove_duplicate=False)}
    now.update((k, tuple(t.shape)) for k, t in graph.model.named_buffers(remove_duplicate=False))
    params = [p for p in (*graph.trace.params.values(), *graph.trace.unused) if p.kind != "constant"]
    told = [
        f"{n} {f'has shape {now[n]}' if n in now else 'is gone'}, captured was {p.shape}"
        for p in params
        for n in (p.name, *p.aliases)
        if now.get(n) != p.shape
    ]
    if told:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise RequestError(
            f"the graph of this {graph.trace.root} is stale, the model was changed since: {'; '.join(told[:3])}{more}; "
            "capture it again, or use one Mutator throughout"
        )
