"""The façade: the whole pipeline in few lines."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from typing import Any

from torch import nn

from .apply import SPLIT, Init, Optimizers, Plan, check_how, check_init, drawing, optimizers_of
from .arguments import flag, items, names, one_of, shown, whole
from .coupling import couple
from .depth import depth_of, removable
from .edits import ZEROS
from .errors import CaptureError, InfeasibleError, PlanMismatchError, RequestError, TimeLimitError, UnsupportedOpError
from .graph import Graph, Vertex
from .interrupts import deferred
from .kernels import kernel_plan
from .lazy import Pending, lazily
from .problem import Problem, check_fresh
from .relax import in_order, relax_last
from .report import one_line, short
from .requests import Budget, asked
from .resizing import Resizing
from .select import Limits, problem_of
from .stages import Stages, step_of, take_over
from .surgery import Operation, Settling, connect, disconnect, insert, perform, remove
from .tracing import MODES, Observer, check_methods, check_modes, examples_of, seen, to_text, trace_examples, unwrapped
from .values import Tracker, Values, branch_worth


def capture(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
    modes: str | Sequence[str] = MODES,
    methods: Mapping[str, Any] | None = None,
) -> Graph:
    """The graph of a model: vertices, sizes, coupled groups, costs, and why something is frozen. Changes nothing.

    `args` is one input or a tuple of them. With strict=True an operation without a rule raises UnsupportedOpError; else
    what it touches is frozen, shown by print(graph), and warned about once. The forward is read in eval mode, and in
    train mode too where that takes other branches, unless modes="eval". `methods` names further methods that must go on
    working, with example inputs: {"project": x}, or a list of such; {"forward": y} is a second example of the forward.
    Sizes and costs are those of the first call.

    >>> import torch
    >>> graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.ones(1, 3, 6, 6))
    >>> graph["0"].nin, graph["0"].nout, graph.params.now
    ([3], 8, 240)
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"capture takes a torch.nn.Module, not {shown(model)}")
    model = unwrapped(model)
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(k, str) for k in kwargs)):
        raise RequestError(f"kwargs={shown(kwargs)}: give a dict of the forward's keyword arguments by name")
    strict = flag(strict, "strict")
    if any(p.is_inference() for p in model.parameters()):
        raise CaptureError(
            f"{type(model).__name__} was built under torch.inference_mode: torch can neither export nor train its "
            "parameters; build the model outside of it"
        )
    examples = examples_of(args, kwargs, methods)
    check_methods(model, examples)
    trace, examples = trace_examples(model, examples, check_modes(modes))
    graph = Graph(
        trace, couple(trace), to_text(examples), model, tuple(examples), seen(model, trace), Observer(removable)
    )
    missing = graph.coupling.facts.unsupported
    if missing:
        what = ", ".join(sorted({n.op for n in missing}))
        if strict:
            raise UnsupportedOpError(f"no rule for {what}: {'; '.join(n.at() for n in missing[:5])}")
        warnings.warn(f"no rule for {what}; what they touch is frozen, see print(graph)", stacklevel=2)
    if trace.unused:
        names_of = [p.name for p in trace.unused]
        more = f" and {len(names_of) - 3} more" if len(names_of) > 3 else ""
        warnings.warn(
            f"no captured call reads {', '.join(names_of[:3])}{more}: left as they are, so whatever else reads them "
            "may not fit afterwards; name it in methods=, if it is another method",
            stacklevel=2,
        )
    return graph


def _accepted(on_time_limit: str | Callable[[Plan], bool], plan: Plan) -> bool:
    return bool(on_time_limit(plan)) if callable(on_time_limit) else on_time_limit == "accept"


def _named(module: Any, name: Any, graph: Graph) -> list[tuple[str, nn.Module]]:
    """Modules with the names that they get; their class and a number, where none is given."""
    modules = [module] if isinstance(module, nn.Module) else items(module)
    if not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise RequestError(f"insert takes a torch.nn.Module or a list of them, not {shown(module)}")
    given = [name] if isinstance(name, str) else [None] * len(modules) if name is None else items(name)
    if given is None or len(given) != len(modules):
        raise RequestError(f"insert: {len(modules)} modules and the names {shown(name)}; give one name for each")
    taken = set() if graph.model is None else {k for k, _ in graph.model.named_modules()}
    found: list[tuple[str, nn.Module]] = []
    for m, own in zip(modules, given, strict=True):
        title = type(m).__name__.lower()
        own = next(n for k in count(1) if (n := f"{title}_{k}") not in taken) if own is None else own
        taken.add(own)
        found.append((own, m))
    return found


log = logging.getLogger("solvemut")
_OPTIONS: dict[str, Any] = {
    "values": None,
    "grow": None,
    "constraints": None,
    "dry_run": False,
    "time_limit": 60.0,
    "gap": 0.0,
    "seed": 0,
    "progress": None,
}


class Mutator:
    """A model whose graph stays valid from one mutation to the next.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> mut = Mutator(model, torch.ones(1, 4))
    >>> plan = mut.prune(params=0.5)
    >>> plan.sizes["0"], model[0].weight.shape, mut.graph["0"].nout
    ((16, 7), torch.Size([7, 4]), 7)

    `after_change` is called with every vertex whose sizes changed, and the plan; the log "solvemut" has a line for
    each. `history` holds the plans applied so far; `plan.back` of each says which positions had stayed, and what the
    attributes were.

    >>> mut, mut.history[0].back.selection.indices["0.bias"][0].count(-1)
    (<Mutator of Sequential: 51 params, 84 FLOPs, 1 plan applied>, 9)
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        optimizer: Optimizers = None,
        strict: bool = False,
        followers: Sequence[nn.Module] = (),
        modes: str | Sequence[str] = MODES,
        methods: Mapping[str, Any] | None = None,
        after_change: Callable[[Vertex, Plan], Any] | None = None,
    ) -> None:
        optimizers_of(optimizer)
        followers = () if followers is None else [followers] if isinstance(followers, nn.Module) else followers
        if not isinstance(followers, Sequence):
            raise RequestError(f"followers={shown(followers)}: give modules that follow the model, such as an EMA copy")
        self.model = model
        self.optimizer = optimizer
        self.followers = followers
        self.graph = capture(model, args, kwargs, strict, modes, methods)
        self.history: tuple[Plan, ...] = ()
        self.after_change = after_change  # called with each vertex whose sizes changed, and the plan
        self.trackers: tuple[Tracker, ...] = ()  # values.track enters them here, so that they follow each plan
        self.pending: Pending | None = None  # in a lazy block what is to be applied at its end

    def __repr__(self) -> str:
        graph, n = self.graph, len(self.history)
        told = f"{short(graph.params.now)} params, {short(graph.flops.now)} FLOPs"
        return one_line(f"<Mutator of {graph.trace.root}: {told}, {n} plan{'s' * (n != 1)} applied>")

    @in_order
    def prune(
        self,
        *,
        flops: float | None = None,
        params: float | None = None,
        memory: float | None = None,
        training_memory: float | None = None,
        weight_bytes: float | None = None,
        latency: Any = None,
        table: Any = None,
        depth: Any = None,
        choose: Mapping[str, Mapping[str, Any]] | None = None,
        values: Values = None,
        round_to: int | None = None,
        keep: str | Iterable[str] | None = None,
        constraints: Any = None,
        grow: Any = None,
        init: Init | str | None = None,
        dry_run: bool = False,
        on_infeasible: str = "raise",
        time_limit: float | None = 60.0,
        gap: float = 1e-3,
        seed: int = 0,
        progress: bool | None = None,
        verify: str | None = "program",
        on_interrupt: str = "raise",
        repair: Any = None,
        refine: int = 0,
        rounds: int = 1,
        order: Sequence[str] = (),
    ) -> Plan:
        """Keep what is worth most within budgets; the model and the optimizer's state are changed in place.

        Budgets hold together: a number in (0, 1] is a fraction of the present, a larger one absolute. `memory` is the
        peak of a forward, `training_memory` what a training step keeps, `weight_bytes` the size of the state dict, all
        in bytes (see `Graph.memory`). `latency`, in ms, goes by a table of `measure_latency`: `latency=(table, 0.5)`,
        or `latency=8.0` with `table`. `constraints` may be a list of requests, or a function from the graph to one.
        `grow` lets layers get new units where that is worth more than what it costs (see `Problem.grow`); outputs stay
        as they were where nothing goes. `init` says what new units hold: "split" makes them copies of old ones (see
        `resize`), and so does grow="split", which lets as many come as there are; a function draws them (see
        `Plan.apply`). Ctrl-C during the solve changes nothing: it raises KeyboardInterrupt, or with
        on_interrupt="return" hands back the best plan found by then, not applied, its status "interrupted".

        `depth` lets whole branches go (`Graph.removable`): True, names or globs, at most how many, or a dict that says
        by name what is lost with each. Else values that see data say it, measured by giving zeros in place of a branch.
        `choose` gives layers options to be one of, by name (see `Problem.choose`).

        `repair` is one of `solvemut.repair`: what stays is fitted to what the model did before. With `rounds` the
        budgets are met in geometric steps, the values found anew on the repaired model in between; with `refine` that
        many plans are made, repaired and measured by the loss of the values (or of the repair), the measurements
        correct the values, and the plan that measures best is taken; the uniform plan is always among them. The plan is
        still one, for the model as it was.

        Where no plan meets the budgets, on_infeasible="raise" raises InfeasibleError with the conflict; "relax" warns
        and moves them to the nearest that can be met: the first stays or is exceeded by as little as can be, given that
        the second, and so on, in the `order` of the keywords in the call. Sizes and `constraints` are not relaxed.
        """
        one_of(on_infeasible, "on_infeasible", ("raise", "relax"))
        ranked = [order] if isinstance(order, str) else items(order)
        if ranked is None or not all(isinstance(name, str) for name in ranked):
            raise RequestError(f"order={shown(order)}: give names of budgets, the one that matters most first")
        check_how(verify)
        dry_run = flag(dry_run, "dry_run")
        drawn = drawing(init, dry_run)
        check_fresh(self.graph)
        limits = Limits.of(flops, params, memory, training_memory, weight_bytes, latency, table)
        stages = Stages(repair, refine, rounds, verify)
        if (stages.needed or self.pending is not None) and (choose or depth not in (None, False)):
            asked_for = "choose" if choose else "depth"
            raise RequestError(f"prune: {asked_for} goes by itself, without repair, refine, rounds or a lazy block")
        going = None if depth is None or depth is False else self._branches(depth, values)
        moved: dict[str, Budget] = {}  # those that had to be relaxed, and those that were kept beside them

        def ask(graph: Graph, part: float) -> Problem:
            problem = problem_of(graph, values, round_to=round_to, keep=keep, constraints=constraints)
            if init == SPLIT:
                problem.split()
            if grow is not None and grow is not False:
                problem.grow(grow)
            for name, budget in {**limits.budgets(self.graph), **moved}.items():
                problem.add(step_of(budget, limits.cost(graph, name), part))
            if going is not None:
                problem.drop(*going)
            for name, options in (choose or {}).items():
                problem.choose(name, options)
            return problem

        how = (time_limit, gap, seed, progress, on_interrupt)
        if stages.needed and self.pending is not None:
            raise RequestError("prune: repair, refine and rounds run the model, so they do not wait in a lazy block")
        if stages.needed:
            stages.check(values, constraints)
        problem: Problem | None = None
        if on_infeasible == "relax":
            problem = ask(self.graph, 1.0)
            moved, how = relax_last(problem, list(limits.given), ranked, how)
        if not stages.needed:
            plan = (problem or ask(self.graph, 1.0)).solve(*how)
            return plan if dry_run or plan.status == "interrupted" else self.apply(plan, verify, drawn)
        plan, student = stages.run(self.graph, ask, values, how, drawn)
        if dry_run or plan.status == "interrupted":
            return plan
        return self._apply(plan, verify, drawn, student)

    def _branches(self, depth: Any, values: Values) -> tuple[Any, Mapping[str, float], int | None]:
        """The branches that may go, what is lost with each, and how many of them may, as `Problem.drop` takes them."""
        found = depth_of(self.graph, depth)
        ends = {r.name: (r.edits[-1].module, r.edits[-1].gives == ZEROS) for r in found.found}
        return found.found, branch_worth(values, self.graph, ends) if found.worth is None else found.worth, found.most

    def resize(
        self,
        changes: Mapping[Any, Any] | None = None,
        *,
        values: Values = None,
        grow: Any = None,
        init: Init | str | None = None,
        keep: str | Iterable[str] | None = None,
        constraints: Any = None,
        dry_run: bool = False,
        on_infeasible: str = "raise",
        time_limit: float | None = 60.0,
        on_time_limit: str | Callable[[Plan], bool] = "accept",
        gap: float = 0.0,
        seed: int = 0,
        progress: bool | None = None,
        verify: str | None = "program",
        on_interrupt: str = "raise",
    ) -> Plan:
        """Change sizes, and whatever must change with them; the model and the optimizer's state are changed in place.

        `changes` maps vertex names, vertices or size expressions to a change by so much (an int), `exactly(n)`,
        `between(a, b)`, `ratio(r)` or `relaxed(...)`. Units count 1 each unless `values` says otherwise; those of
        largest magnitude stay. Without changes just what is worth less than nothing goes. `grow` limits how many new
        units layers may get (0: none; a dict by vertex). on_infeasible="relax" warns and comes as near as it can.
        At the time limit the best plan found is taken; on_time_limit="raise" or a function that says no to it does
        not.

        `init` is a function that draws the values of new units (see `Plan.apply`), or "split": they are copies of old
        ones, the most valuable first, and what reads both divides its weights among them, by shares that differ so
        that copies part in training (Net2WiderNet, arXiv 1511.05641). Outputs stay where `plan.alters` is empty.

        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> x = torch.ones(1, 4)
        >>> y, mut = model(x), Mutator(model, x)
        >>> plan = mut.resize({"0": -3, "2": +2})
        >>> plan.sizes["0"], plan.sizes["2"], plan.indices["2.weight"][0], plan.alters
        ((8, 5), (6, 8), [0, 1, 2, 3, 4, 5, -1, -1], ('units go',))
        >>> y, plan = model(x), mut.resize({"2": +2}, init="split")
        >>> torch.allclose(model(x), y, atol=1e-6), len(plan.copies["2.bias"][0].of)
        (True, 10)
        """
        one_of(on_infeasible, "on_infeasible", ("raise", "relax"))
        if not callable(on_time_limit):
            one_of(on_time_limit, "on_time_limit", ("accept", "raise"))
        check_how(verify)
        dry_run = flag(dry_run, "dry_run")
        drawn = drawing(init, dry_run)
        check_fresh(self.graph)
        problem = Resizing(self.graph)
        problem.maximize(values)
        if SPLIT in [x for x in (grow, init) if isinstance(x, str)]:
            problem.split()
        problem.most = None if isinstance(grow, str) and grow == SPLIT else grow
        problem.keep(*names(keep, "keep"))
        problem.add(asked(constraints, self.graph))
        problem.ask({} if changes is None else changes)
        plan = self._resized(problem, on_infeasible, (time_limit, gap, seed, progress, on_interrupt))
        if plan.status == "feasible" and not _accepted(on_time_limit, plan):
            raise TimeLimitError(
                f"the time limit of {time_limit} s was reached with a gap of {plan.gap:.1e}; nothing was changed"
            )
        return plan if dry_run or plan.status == "interrupted" else self.apply(plan, verify, drawn)

    def insert(
        self,
        after: Any = None,
        module: nn.Module | Sequence[nn.Module] | None = None,
        name: str | Sequence[str] | None = None,
        consumers: Any = None,
        before: Any = None,
        **options: Any,
    ) -> Plan:
        """Put a module, or a chain of them, after a vertex (for all that read it, or for `consumers`), or before one.

        Where a module expects another size than it gets, or puts out another than is read, the program settles which
        of them change. Modules that pass on what they get (`identity_init`) leave the outputs as they were. Options are
        those of `remove`.

        >>> import torch, solvemut as sm
        >>> net = sm.Builder()
        >>> x = net.input("x", 3)
        >>> model = net.build(net.layer(nn.Linear(4, 2), net.layer(nn.Linear(3, 4), x, name="a"), name="b"))
        >>> mut = Mutator(model, torch.ones(1, 3))
        >>> y = model(torch.ones(1, 3))
        >>> plan = mut.insert(after="a", module=sm.identity_init(nn.Linear(4, 4)), name="new")
        >>> [v.name for v in mut.graph], torch.allclose(model(torch.ones(1, 3)), y, atol=1e-6)
        (['x', 'a', 'new', 'b'], True)
        """
        if (after is None) == (before is None):
            raise RequestError("insert: give either after= or before=, the vertex beside which the module comes")
        return self._operate(insert(after, before, _named(module, name, self.graph), consumers), options)

    def remove(self, vertex: Any, reconnect: Any = "all", **options: Any) -> Plan:
        """Take a vertex out; what it read goes on to all that read it, to those named in `reconnect`, or to none.

        Sizes that must then agree are settled by the program: one of the two sides keeps its size, if it can, and
        which one is decided by the least loss of value. Options: `values`, `grow`, `dry_run`, `time_limit`, `gap`,
        `seed`, `progress`, as `resize` takes them, and `constraints`, a function from the graph as it is after the
        change to conditions on sizes. All or nothing, as ever.

        >>> import torch, solvemut as sm
        >>> net = sm.Builder()
        >>> v = net.layer(nn.Linear(5, 4), net.layer(nn.Linear(3, 5), net.input("x", 3), name="a"), name="b")
        >>> mut = Mutator(net.build(net.layer(nn.Linear(4, 2), v, name="c")), torch.ones(1, 3))
        >>> _ = mut.remove("b")
        >>> [v.name for v in mut.graph], mut.graph["a"].nout
        (['x', 'a', 'c'], 5)
        """
        return self._operate(remove(vertex, reconnect), options)

    def connect(
        self, source: Any, target: Any, position: int | None = None, merge: str = "concat", **options: Any
    ) -> Plan:
        """A new input for an add or a concat; before any other layer an add or a concat (`merge`) is put for it.

        In a concat it comes at `position`, and what reads the concat reads the new columns with zeros: outputs stay.
        Terms of an add get one size; the new one comes last, or at `position`. Options are those of `remove`.
        """
        one_of(merge, "merge", ("concat", "add"))
        return self._operate(connect(source, target, position, merge), options)

    def disconnect(self, source: Any, target: Any, nr: int = 0, **options: Any) -> Plan:
        """Take an input from an add or a concat: the nr-th, if it reads the same vertex several times.

        What reads a concat keeps the columns of the inputs that stay. Options are those of `remove`.
        """
        return self._operate(disconnect(source, target, whole(nr, f"nr={shown(nr)}", least=0)), options)

    def _operate(self, operation: Operation, options: dict[str, Any]) -> Plan:
        given = {**_OPTIONS, **options}
        if other := sorted(options.keys() - _OPTIONS):
            raise TypeError(f"{other[0]!r} is no option of this operation; there are {', '.join(_OPTIONS)}")
        if isinstance(given["grow"], str):
            raise RequestError(f"{operation.title}: new units come without copies here; resize with init='split' then")
        if self.pending is not None:
            raise RequestError(f"{operation.title}: layers and edges do not wait in a lazy block; change them outside")
        if self.followers:
            raise RequestError(f"{operation.title}: the models that follow this one would not change with it")
        check_fresh(self.graph)
        dry_run = flag(given["dry_run"], "dry_run")
        how = (given["time_limit"], given["gap"], given["seed"], given["progress"])
        optimizers = optimizers_of(self.optimizer)
        with deferred():
            plan, graph = perform(
                operation,
                self.model,
                self.graph,
                optimizers,
                dry_run,
                Settling(given["values"], given["grow"], given["constraints"], how),
            )
            if not dry_run:
                self._done(plan, graph)
        return plan

    @staticmethod
    def _resized(problem: Resizing, on_infeasible: str, how: tuple[Any, ...]) -> Plan:
        try:
            return problem.solve(*how)
        except InfeasibleError as e:
            if on_infeasible == "raise" or all(wish.relaxed for _, wish in problem.wishes):
                raise
            warnings.warn(f"{e}\nThe sizes asked for are relaxed: the nearest that can be are taken.", stacklevel=4)
        problem.relax = True
        return problem.solve(*how)

    def resize_kernel(
        self,
        target: Any,
        delta: Any = None,
        size: Any = None,
        padding: Any = None,
        *,
        dry_run: bool = False,
        verify: str | None = "program",
        init: Init | None = None,
    ) -> Plan:
        """Change the kernel of a convolution by `delta`, or to `size`: an int, or one for each spatial dim.

        New taps come on both sides and hold zeros, or what `init` draws (from a parameter's name and its new shape);
        those that go weigh least near the border. Padding follows, so that outputs keep their sizes, unless it is
        given: an int, one for each dim, or "same". Stride, dilation and output padding stay.

        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> plan = Mutator(model, torch.ones(1, 3, 6, 6)).resize_kernel("0", +2)
        >>> model[0], plan.alters
        (Conv2d(3, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2)), ())
        """
        check_how(verify)
        dry_run = flag(dry_run, "dry_run")
        check_fresh(self.graph)
        check_init(init)
        plan = kernel_plan(self.graph, target, delta, size, padding, init is not None)
        return plan if dry_run else self.apply(plan, verify, init)

    def apply(self, plan: Plan, verify: str | None = "program", init: Init | None = None) -> Plan:
        """Apply a plan that was made for the present graph."""
        if not isinstance(plan, Plan):
            raise RequestError(f"apply takes a Plan, as prune and Plan.load give it, not {shown(plan)}")
        if self.pending is not None:
            self.pending.take(plan, verify, init)
            self.graph = self.pending.graph
            return plan
        return self._apply(plan, verify, init)

    def _apply(self, plan: Plan, verify: str | None, init: Init | None, student: nn.Module | None = None) -> Plan:
        """Apply a plan; where a copy was changed by it already, and repaired, its numbers are taken over."""
        with deferred():  # an interrupt finds the graph of the model as it is
            try:
                for tracker in self.trackers:
                    tracker.check(plan)
                plan.apply(self.model, self.optimizer, self.followers, verify, init)
                if student is not None:
                    take_over(self.model, student)
            except PlanMismatchError:
                check_fresh(self.graph)  # says so, where the model was changed by somebody else
                raise
            graph = self.graph if plan.graph is None else plan.graph
            model = unwrapped(self.model)
            graph = replace(graph, model=model, seen=seen(model, graph.trace))
            self._done(replace(plan, graph=None), graph)  # without the graphs, which are large
        return plan

    def _done(self, plan: Plan, graph: Graph) -> None:
        """A mutation was made: keep it, log what changed, and tell who asked to be told."""
        before = {v.name: v for v in self.graph.vertices}
        self.graph, self.history = graph, (*self.history, replace(plan, solved=None))  # a program is large
        for tracker in self.trackers:
            tracker.follow(replace(plan, graph=graph))
        for v in graph.vertices:
            old = before.get(v.name)
            if old is not None and (old.nin, old.nout) == (v.nin, v.nout):
                continue
            told = "new" if old is None else f"{old.nin} -> {old.nout}"
            log.info("%s: %s, now %s -> %s", v.name, told, v.nin, v.nout)
            if self.after_change is not None:
                self.after_change(v, plan)

    def lazy(self, verify: str | None = "program") -> AbstractContextManager[Pending]:
        """A block in which mutations wait: at its end they are applied at once, as one plan, or none of them.

        In it `graph` has the new sizes already, while the model and the optimizer are as they were. An exception leaves
        all as it was before the block.

        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3))
        >>> mut = Mutator(model, torch.ones(1, 3, 6, 6))
        >>> with mut.lazy() as pending:
        ...     _ = mut.resize({"0": +4}), mut.resize_kernel("0", +2)
        ...     print(mut.graph["0"].nout, model[0])
        12 Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        >>> model[0], pending.plan.sizes["0"], len(mut.history)
        (Conv2d(3, 12, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2)), (8, 12), 1)
        """
        check_how(verify)
        check_fresh(self.graph)
        return lazily(self, verify)

    def copy(self) -> Mutator:
        """A mutator of a deep copy of the model, without an optimizer."""
        if self.pending is not None:
            raise RequestError("copy: this mutator is in a lazy block, its model is not yet what its graph says")
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.optimizer, other.followers, other.trackers = None, (), ()
        other.graph = replace(self.graph, model=unwrapped(other.model))
        return other


def prune(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: Optimizers = None,
    followers: Sequence[nn.Module] = (),
    modes: str | Sequence[str] = MODES,
    methods: Mapping[str, Any] | None = None,
    **request: Any,
) -> Plan:
    """Prune a model in place: `Mutator(model, args, kwargs, optimizer, ...).prune(**request)`."""
    mutator = Mutator(model, args, kwargs, optimizer, followers=followers, modes=modes, methods=methods)
    return mutator.prune(**request)
