"""The program over blocks against the program over single neurons: same objective on small graphs.

The neuron program is written directly in CP-SAT as NaiveNASlib states it: per vertex one boolean per existing neuron
and one count of new neurons behind each; an elementwise vertex equals its inputs, a concatenation strings them
together. The block program is what solvemut solves: neurons that occur in the same places the same number of times are
one block, one width per block, worth the sum of its best neurons.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from ortools.sat.python import cp_model
from strategies_program import examples

from solvemut.errors import InfeasibleError
from solvemut.program import Program

GROWTH = 2  # new neurons allowed behind each neuron


@dataclass(frozen=True)
class Vertex:
    """``layer``: its own neurons, reading its inputs; ``cat`` and ``add``: neurons of its inputs."""

    kind: str
    inputs: tuple[int, ...]
    nout: int
    utility: tuple[int, ...]
    cost: int = 0  # of one input neuron times one output neuron of a layer


@dataclass(frozen=True)
class Graph:
    vertices: tuple[Vertex, ...]
    share: int  # per cent of what the graph costs now
    sizes: tuple[tuple[int, str, int], ...]  # requests: vertex, sense, number of neurons
    growth: int

    @property
    def budget(self) -> int:
        v = self.vertices
        return sum(one.cost * one.nout * sum(v[i].nout for i in one.inputs) for one in v) * self.share // 100


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Layers, concatenations (an input may occur twice) and elementwise sums of equal sizes, in any order."""
    vertices = [Vertex("layer", (), draw(st.integers(1, 4)), ())]
    for _ in range(draw(st.integers(1, 6))):
        earlier = range(len(vertices))
        kind = draw(st.sampled_from(["layer", "layer", "cat", "add"]))
        if kind == "layer":
            inputs: tuple[int, ...] = (draw(st.sampled_from(earlier)),)
            vertices.append(Vertex(kind, inputs, draw(st.integers(1, 4)), (), draw(st.integers(1, 3))))
        elif kind == "cat":
            inputs = tuple(draw(st.lists(st.sampled_from(earlier), min_size=2, max_size=3)))
            size = sum(vertices[i].nout for i in inputs)
            if size <= 12:
                vertices.append(Vertex(kind, inputs, size, ()))
        else:
            first = draw(st.sampled_from(earlier))
            equal = [i for i in earlier if vertices[i].nout == vertices[first].nout]
            inputs = (first, draw(st.sampled_from(equal)))
            vertices.append(Vertex(kind, inputs, vertices[first].nout, ()))
    lowest = draw(st.sampled_from([0, 0, -3]))
    some = [
        Vertex(v.kind, v.inputs, v.nout, tuple(draw(st.integers(lowest, 20)) for _ in range(v.nout)), v.cost)
        for v in vertices
    ]
    request = st.tuples(st.integers(0, len(some) - 1), st.sampled_from(["==", "<=", ">="]), st.integers(1, 6))
    sizes = tuple(draw(st.lists(request, max_size=2)))
    return Graph(tuple(some), draw(st.integers(30, 130)), sizes, draw(st.sampled_from([0, GROWTH])))


# -- neurons ---------------------------------------------------------------------------------------------------------


def solve_neurons(graph: Graph) -> int | None:
    """The optimum of the boolean program, None if there is no solution."""
    model = cp_model.CpModel()
    select, insert, size, spent, worth = [], [], [], [], []
    for vertex in graph.vertices:
        keep = [model.new_bool_var("") for _ in range(vertex.nout)]
        new = [model.new_int_var(0, graph.growth, "") for _ in range(vertex.nout)]
        for own, inherited in ((keep, select), (new, insert)):
            for row in inherited_rows(vertex, inherited):
                for mine, theirs in zip(own, row, strict=True):
                    model.add(mine == theirs)
        total = model.new_int_var(1, vertex.nout * (1 + graph.growth), "")
        model.add(total == sum(keep) + sum(new))
        select, insert, size = [*select, keep], [*insert, new], [*size, total]
        worth += [u * x for u, x in zip(vertex.utility, keep, strict=True)]
        if vertex.cost:
            (source,) = vertex.inputs
            product = model.new_int_var(0, 10**6, "")
            model.add_multiplication_equality(product, [size[source], total])
            spent.append(vertex.cost * product)
    model.add(sum(spent) <= graph.budget)
    for index, sense, number in graph.sizes:
        left = size[index]
        model.add({"==": left == number, "<=": left <= number, ">=": left >= number}[sense])
    model.maximize(sum(worth))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    assert status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
    return round(solver.objective_value) if status == cp_model.OPTIMAL else None


def inherited_rows(vertex: Vertex, rows: Sequence[Sequence]) -> list[list]:
    """What a vertex's neurons must equal: nothing for a layer, the string of its inputs, or each of them."""
    if vertex.kind == "layer":
        return []
    if vertex.kind == "cat":
        return [list(itertools.chain.from_iterable(rows[i] for i in vertex.inputs))]
    return [list(rows[i]) for i in vertex.inputs]


# -- blocks ----------------------------------------------------------------------------------------------------------


def neuron_classes(graph: Graph) -> list[list[int]]:
    """For each vertex the class of each of its neurons: neurons that are kept or removed together."""
    parent: list[int] = []

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    labels: list[list[int]] = []
    for vertex in graph.vertices:
        rows = inherited_rows(vertex, labels)
        if not rows:
            rows = [list(range(len(parent), len(parent) + vertex.nout))]
            parent += rows[0]
        for row in rows[1:]:
            for a, b in zip(rows[0], row, strict=True):
                parent[root(a)] = root(b)
        labels.append(rows[0])
    return [[root(x) for x in row] for row in labels]


def blocks_of(graph: Graph) -> dict[tuple[tuple[int, int], ...], list[int]]:
    """Incidence (vertex, how often) -> the summed utilities of the classes that have it, best first."""
    incidence: dict[int, Counter[int]] = defaultdict(Counter)
    utility: Counter[int] = Counter()
    for index, (vertex, row) in enumerate(zip(graph.vertices, neuron_classes(graph), strict=True)):
        for one, worth in zip(row, vertex.utility, strict=True):
            incidence[one][index] += 1
            utility[one] += worth
    blocks: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for one, where in incidence.items():
        blocks[tuple(sorted(where.items()))].append(utility[one])
    return {where: sorted(values, reverse=True) for where, values in blocks.items()}


def block_program(graph: Graph) -> Program:
    p, blocks = Program(), blocks_of(graph)
    widths, counts, levels = [], [], []
    for number, (where, values) in enumerate(blocks.items()):
        levels.append(len(values) * (1 + graph.growth) + 1)
        widths.append(p.width(f"block{number}", levels=range(levels[-1])))
        counts.append(dict(where))
        p.value(worth_of(values, levels[-1], graph.growth), widths[-1])
    for index, vertex in enumerate(graph.vertices):
        p.add(size_of(index, widths, counts) >= 1, name=f"vertex {index} stays")
        if vertex.cost:
            ins, outs = ([c.get(i, 0) for c in counts] for i in (vertex.inputs[0], index))
            add_product(p, vertex.cost, ins, outs, widths, levels)
    p.budget("flops", graph.budget)
    for row, (index, sense, number) in enumerate(graph.sizes):
        left = size_of(index, widths, counts)
        p.add({"==": left == number, "<=": left <= number, ">=": left >= number}[sense], name=f"request {row}")
    return p


def size_of(index: int, widths: Sequence, counts: Sequence[Mapping[int, int]]):
    return sum(c[index] * w for w, c in zip(widths, counts, strict=True) if index in c)


def worth_of(values: Sequence[int], levels: int, growth: int) -> list[int]:
    """The value of n neurons of a block: the best ones, less those that new neurons can stand in for."""
    prefix = [0, *itertools.accumulate(values)]
    grown = growth * len(values)
    return [max(prefix[k] for k in range(max(0, n - grown), min(n, len(values)) + 1)) for n in range(levels)]


def add_product(
    p: Program, cost: int, ins: Sequence[int], outs: Sequence[int], widths: Sequence, levels: Sequence[int]
) -> None:
    """``cost * (ins . widths) * (outs . widths)``: pairs, and the diagonal as a vector of squares."""
    for i, j in itertools.combinations_with_replacement(range(len(widths)), 2):
        if i == j and ins[i] * outs[i]:
            p.cost("flops", [cost * ins[i] * outs[i] * n * n for n in range(levels[i])], widths[i])
        elif i != j and ins[i] * outs[j] + ins[j] * outs[i]:
            p.product("flops", cost * (ins[i] * outs[j] + ins[j] * outs[i]), widths[i], widths[j])


@examples(150)
@given(graphs())
def test_blocks_and_neurons_have_the_same_optimum(graph):
    truth = solve_neurons(graph)
    program = block_program(graph)
    if truth is None:
        try:
            program.solve(time_limit=60)
        except InfeasibleError:
            return
        raise AssertionError("the neuron program is infeasible, the block program is not")
    solution = program.solve(time_limit=60)
    assert solution.status == "optimal"
    assert solution.objective == truth


@examples(60)
@given(graphs())
def test_blocks_are_fewer_than_neurons(graph):
    """The reduction is one: at most one block per class, one class per neuron, and nothing is lost."""
    blocks = blocks_of(graph)
    own = sum(vertex.nout for vertex in graph.vertices if vertex.kind == "layer")
    assert len(blocks) <= sum(map(len, blocks.values())) <= own
    assert sum(map(sum, blocks.values())) == sum(sum(vertex.utility) for vertex in graph.vertices)
    for index, vertex in enumerate(graph.vertices):
        assert vertex.nout == sum(dict(where).get(index, 0) * len(values) for where, values in blocks.items())


def test_a_sum_over_a_concatenation_of_one_layer_with_itself():
    """S6 + cat(2P, 3P, 5P): every neuron of P stands thrice in the sum, so the sum shrinks by three or not at all."""
    layer = Vertex("layer", (), 6, (6, 5, 4, 3, 2, 1))
    inner = Vertex("layer", (0,), 2, (1, 1), cost=1)
    cat = Vertex("cat", (1, 1, 1), 6, (0,) * 6)
    total = Vertex("add", (0, 2), 6, (0,) * 6)
    graph = Graph((layer, inner, cat, total), 100, ((3, "<=", 5),), 0)
    assert [len(values) for values in blocks_of(graph).values()] == [2]
    assert solve_neurons(graph) == 6 + 4 + 2 + 1
    solution = block_program(graph).solve()
    assert (solution.objective, dict(solution.choices)) == (13, {"block0": 1})
