"""The notation in which most rules are written; it reads like einops.

A name is one dim and the same units wherever it stands, `...` any leading dims, `*s` any trailing dims that must stay
whole, `_` a dim that must stay whole: linear is "... i, o i, o -> ... o".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..errors import SolvemutError
from ..flow import Factor, Flow, Labels, prod
from ..trace import Node, Ref
from .op import Rule

Term = tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A pattern, read: the arguments of a node with a term for each, the term of its result, and its work."""

    text: str
    args: tuple[str, ...]
    terms: tuple[Term, ...]
    out: Term
    work: Term

    def check(self, node: Node, name: str, term: Term, shape: tuple[int, ...]) -> None:
        """The dims of an argument fit its term, and sizes that go by one name are one size."""
        least = sum(1 for t in term if t != "..." and not t.startswith("*"))
        loose = any(t == "..." or t.startswith("*") for t in term)
        if len(shape) < least or (len(shape) > least and not loose):
            raise SolvemutError(
                f"{node.at()}: {name} has shape {shape}, which does not fit {' '.join(term)!r} of the pattern "
                f"{self.text!r}; please report this model"
            )


@cache
def parse(args: str, text: str, work: str = "") -> Recipe:
    """Read a pattern.

    `args` names the node's arguments, one per input term of `text`; `work` lists the dims whose product is the number
    of multiply-accumulates. Raises ValueError, with the pattern, where it cannot be meant.

    >>> parse("input weight bias", "... i, o i, o -> ... o", "... i o").terms
    (('...', 'i'), ('o', 'i'), ('o',))
    >>> parse("input", "b c -> b d")
    Traceback (most recent call last):
        ...
    ValueError: pattern 'b c -> b d': 'd' of the result stands in no argument
    """

    def wrong(what: str) -> ValueError:
        return ValueError(f"pattern {text!r}: {what}")

    if text.count("->") != 1:
        raise wrong("give arguments -> result")
    left, right = text.split("->")
    terms, out = tuple(tuple(t.split()) for t in left.split(",")), tuple(right.split())
    names = tuple(args.split())
    if len(terms) != len(names):
        raise wrong(f"{len(terms)} terms for the {len(names)} arguments {args}")
    for term in (*terms, out):
        _check_term(term, wrong)
    known = {t for term in terms for t in term}
    for token in out:
        if token not in known and not token.startswith("*"):
            raise wrong(f"{token!r} of the result stands in no argument")
    for token in work.split():
        if token not in {*known, *out}:
            raise wrong(f"{token!r} of the work stands nowhere in it")
    return Recipe(text, names, terms, out, tuple(work.split()))


def _check_term(term: Term, wrong: Any) -> None:
    if not term:
        raise wrong("a term is empty")
    for i, token in enumerate(term):
        if not (token in ("...", "_") or token.removeprefix("*").isidentifier()):
            raise wrong(f"{token!r} is neither a name, '...', '*name' nor '_'")
        if token == "..." and i > 0:
            raise wrong("'...' stands first or not at all")
        if token.startswith("*") and i < len(term) - 1:
            raise wrong(f"{token!r} stands last or not at all")
    named = [t for t in term if t != "_"]
    if len(set(named)) < len(named):
        raise wrong(f"a name stands twice in {' '.join(term)!r}")


def pattern(args: str, text: str, work: str = "") -> Rule:
    """A rule from the notation (see `parse`); `...` and `*s` of the work stand for all their dims."""
    recipe = parse(args, text, work)

    def apply(flow: Flow, node: Node) -> Labels:
        return _Pass(recipe, flow, node).result()

    return apply


class _Pass:
    """One node by its recipe."""

    def __init__(self, recipe: Recipe, flow: Flow, node: Node) -> None:
        self.recipe, self.flow, self.node = recipe, flow, node
        self.units: dict[str, np.ndarray | None] = {}
        self.sizes: dict[str, int] = {}
        self.lead = Labels(())
        self.held: dict[str, list[tuple[Ref, np.ndarray | None]]] = {}  # by name the arguments with such a dim

    def result(self) -> Labels:
        for name, term in zip(self.recipe.args, self.recipe.terms, strict=True):
            if isinstance(arg := self.node.args.get(name), Ref):
                self._read(name, arg, term)
        for token, sides in self.held.items():
            if token not in self.recipe.out:
                self.flow.contracted(sides)
        if self.recipe.work:
            self.flow.work(self._work())
        return self._placed()

    def _read(self, name: str, arg: Ref, term: Term) -> None:
        flow, node = self.flow, self.node
        named = [i for i, t in enumerate(term) if t.isidentifier()]
        x = flow.labels(arg, only=named if "..." not in term else None)
        self.recipe.check(node, name, term, x.shape)
        head = x.ndim - (len(term) - 1) if term[0] == "..." else 0
        if head:
            self.lead = x
        for i, token in enumerate(t for t in term if t != "..."):
            d = head + i
            if token.startswith("*"):
                flow.freeze_dims(x, range(i, x.ndim), f"{node.op} works along it")
                self.sizes[token] = prod(x.shape[i:])
                break
            if self.sizes.setdefault(token, x.shape[d]) != x.shape[d] and token != "_":
                raise SolvemutError(
                    f"{node.at()}: {token!r} of the pattern {self.recipe.text!r} is {self.sizes[token]}, and "
                    f"{x.shape[d]} in {name} of shape {x.shape}; please report this model"
                )
            if token == "_":
                flow.freeze_dims(x, [d], f"{node.op} works along it")
                continue
            x = flow.separate(x, d)
            if head:
                self.lead = x
            self.held.setdefault(token, []).append((arg, x.dim(d)))
            if token in self.units:
                flow.merge(self.units[token], x.dim(d), (x.shape[d],))
            if self.units.get(token) is None:
                self.units[token] = x.dim(d)

    def _work(self) -> list[Any]:
        found: list[Any] = []
        out, shape = self.recipe.out, self.node.shape
        for token in self.recipe.work:
            if token == "...":
                n = len(shape) - (len(out) - 1)
                found += [self.lead.shape[d] for d in range(n) if self.lead.factor(d) is None]
                found += [f.labels for f in self.lead.factors if f.dims[0] < n]
            elif token.startswith("*") and token in out:
                found.append(prod(shape[out.index(token) :]))
            else:
                units = self.units.get(token)
                found.append(self.sizes[token] if units is None else units)
        return found

    def _placed(self) -> Labels:
        """The labels of the result."""
        out, shape = self.recipe.out, self.node.shape
        head = len(shape) - (len(out) - 1) if out[0] == "..." else 0
        new = [
            Factor((head + i,), units)
            for i, token in enumerate(t for t in out if t != "...")
            if (units := self.units.get(token)) is not None
        ]
        kept = [f for f in self.lead.factors if max(f.dims) < head] if head else []
        return Labels(shape, tuple(sorted((*kept, *new), key=lambda f: f.dims)))
