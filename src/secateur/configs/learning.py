"""Finding out which values of a config set which axes: by changing them, and looking at what is built.

Letters: K values of the config, F groups of axes that go together (corresponding axes of repeated blocks, and ties).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from math import gcd
from typing import Any

import torch
from torch import nn

from secateur.axes import Expr, Leaf, Prod, Sum
from secateur.configs.blueprint import Blueprint, Shapes, Unbuildable, shapes
from secateur.configs.wording import Word, Wording
from secateur.errors import PlanError, ProofFailed, SurgeryError
from secateur.graph import Graph, named
from secateur.origins import Attribute
from secateur.planning.planning import make_plan
from secateur.proof import perturbed

TOGETHER = 4  # values of a config that are changed together at most
Values = dict[Attribute, int]


def learn(model: nn.Module, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Wording | None:
    """What a model's config can say about its widths.

    Sets of config values are scaled together, the smallest sets first, and the shapes of what the constructor then
    builds are explained as groups of axes scaled alike. Each explanation is tried: the model, its weights changed by
    noise, is pruned so, and a model built from the changed config must compute the same with the same weights. So an
    axis that feeds a table or a factor which the constructor computes from the config stays whole.

    Args:
        model: the dense model, with weights.
        graph: what `trace` found, with the axes of repeated blocks tied (`families.uniform`).
        args, kwargs: example inputs.

    Returns:
        None where no config builds the model.
    """
    blueprint = Blueprint.of(model)
    return None if blueprint is None else Learner(model, graph, blueprint, args, kwargs).run()


@dataclass
class Learner:
    """The search, and what it has found so far."""

    model: nn.Module
    graph: Graph
    blueprint: Blueprint
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    words: list[Word] = field(default_factory=list[Word])
    unsaid: dict[str, str] = field(default_factory=dict[str, str])

    def run(self) -> Wording:
        self.groups = groups(self.graph)
        self.dims = Dims(self.graph, self.groups)
        self.base = shapes(self.blueprint.build({}))
        self.explicit = self._explicit()
        noisy = perturbed(self.model)
        values = [v for v in self._all_values().items() if self._moves(dict([v]))]
        for count in range(1, 1 + min(TOGETHER, len(values))):
            if len(self._said()) == sum(map(len, self.groups)):
                break
            for found, share in self._candidates([dict(c) for c in combinations(values, count)]):
                if not self._said() & set(found.axes) and self._holds(found, share, noisy):
                    self.words.append(found)
        needed = {site for word in self.words for site in word.values}
        return Wording(
            self.blueprint,
            tuple(self.words),
            self.explicit if needed else {},
            {n: t for n, t in self.unsaid.items() if n not in self._said()},
        )

    def _said(self) -> set[str]:
        return {name for word in self.words for name in word.axes}

    def _all_values(self) -> Values:
        return {**{site: site.value for site in self.blueprint.sites()}, **self.explicit}

    def _build(self, values: Mapping[Attribute, int]) -> nn.Module:
        return self.blueprint.build({**self.explicit, **values})

    # ------------------------------------------------------------------ sizes that the config leaves open

    def _explicit(self) -> Values:
        """Sizes that code takes from elsewhere while the config has none: head_dim, say, is the width by the heads."""
        names: set[str] = set()
        try:
            self.blueprint.build({}, watched=names)
        except Unbuildable:  # a class of configs that is looked up by itself
            return {}
        found: Values = {}
        for name in sorted(n for n in names if n.isidentifier() and not n.startswith("_")):
            site = Attribute("", f"{self.blueprint.attribute}.{name}", None, 0)
            value = self._open_value(site, found)
            if value is not None:
                found[site] = value
        return found

    def _open_value(self, site: Attribute, found: Values) -> int | None:
        """The value that builds the model as it is; None where the name says no size."""
        for trial in (6, 16):
            try:
                built = shapes(self.blueprint.build({**found, site: trial}))
            except Unbuildable:
                continue
            guess = _solved(self.base, built, trial)
            if guess is not None and guess > 1:
                try:
                    same = shapes(self.blueprint.build({**found, site: guess})) == self.base
                except Unbuildable:
                    continue
                return guess if same else None
        return None

    # ------------------------------------------------------------------ values and what they move

    def _moves(self, values: Values) -> bool:
        """Whether a value may have to do with the widths of prunable axes."""
        for share in _shares(values.values()):
            try:
                built = self._build(_scaled(values, share))
            except Unbuildable:
                continue
            new = shapes(built)
            if new.keys() != self.base.keys():
                return not all(self.base.get(name) == shape for name, shape in new.items())  # else it counts blocks
            if new != self.base:
                return not self.dims.moves_fixed(new)
            return _settings(built) != _settings(self._build({}))
        return True

    def _candidates(self, choices: Iterable[Values]) -> list[tuple[Word, Fraction]]:
        """Explanations of what sets of values do, those of the fewest axes first."""
        found: list[tuple[Word, Fraction]] = []
        for values in choices:
            for share in _shares(values.values()):
                try:
                    new = shapes(self._build(_scaled(values, share)))
                except Unbuildable:
                    continue
                if new.keys() == self.base.keys():
                    for chosen in self.dims.explain(new, share):
                        axes = tuple(name for k in chosen for name in self.groups[k])
                        found.append((Word(values, axes), share))
                    break
        return sorted(found, key=lambda item: len(item[0].axes))

    def _holds(self, word: Word, share: Fraction, noisy: nn.Module) -> bool:
        """Whether a model pruned so, and one built from the changed config, compute the same."""
        torch.manual_seed(0)
        sizes = {name: int(self.graph.axes[name].size * share) for name in word.axes}
        kept = {n: torch.randperm(self.graph.axes[n].size)[:k].sort().values for n, k in sizes.items()}
        wording = Wording(self.blueprint, (word,), self.explicit, {})
        try:
            plan = wording.write(self.graph, make_plan(self.graph, kept))
            wording.check(plan.apply(noisy), self.args, self.kwargs)
        except (PlanError, SurgeryError, ProofFailed) as error:
            what = ", ".join(str(site).partition(".")[2] for site in word.values)
            for name in word.axes:
                self.unsaid.setdefault(name, f"uniform: the config says it as {what}, but {error}")
            return False
        return True


def groups(graph: Graph) -> list[tuple[str, ...]]:
    """The axes that may be pruned without rewriting ``forward``, those that are tied together."""
    tie = {name: group for group in graph.ties for name in group}
    every = dict.fromkeys(tie.get(name, (name,)) for name in graph.axes)
    return [group for group in every if not any(graph.axes[name].rewrite for name in group)]


class Dims:
    """Every dim of every tensor, as far as groups of axes can tell them apart."""

    def __init__(self, graph: Graph, grouped: Sequence[tuple[str, ...]]) -> None:
        self.count = len(grouped)
        number = {name: k for k, group in enumerate(grouped) for name in group}
        self.exprs = {n: tuple(_numbered(d, number) for d in t.dims) for n, t in graph.tensors.items()}

    def moves_fixed(self, new: Shapes) -> bool:
        """Whether a dim that runs along no prunable axis has another size."""
        return any(
            size != expr.size and not named([expr])
            for name, exprs in self.exprs.items()
            for expr, size in zip(exprs, new[name], strict=True)
        )

    def explain(self, new: Shapes, share: Fraction) -> list[tuple[int, ...]]:
        """The sets of groups that, scaled by the share, give the new shapes."""
        if any(len(new[name]) != len(exprs) for name, exprs in self.exprs.items()):
            return []
        wanted = {(e, s) for name, exprs in self.exprs.items() for e, s in zip(exprs, new[name], strict=True)}
        by_last: dict[int, list[tuple[Expr, int]]] = {}
        for expr, size in wanted:
            by_last.setdefault(max((int(n) for n in named([expr])), default=-1), []).append((expr, size))

        def fits(chosen: tuple[int, ...], last: int) -> bool:
            return all(_size(expr, chosen, share) == size for expr, size in by_last.get(last, ()))

        found = [()] if fits((), -1) else []
        for k in range(self.count):
            found = [c for chosen in found for c in (chosen, (*chosen, k)) if fits(c, k)]
        return [chosen for chosen in found if chosen]


def _numbered(expr: Expr, number: Mapping[str, int]) -> Expr:
    """The expression with the numbers of groups in place of their axes' names; other axes are nameless."""
    match expr:
        case Prod():
            return Prod(tuple(_numbered(f, number) for f in expr.factors), expr.size)
        case Sum():
            return Sum(tuple(_numbered(p, number) for p in expr.parts), expr.size)
        case _:
            return Leaf(str(number[expr.name]) if expr.name in number else None, expr.size)


def _size(expr: Expr, chosen: Sequence[int], share: Fraction) -> Fraction:
    match expr:
        case Prod():
            size = Fraction(1)
            for factor in expr.factors:
                size *= _size(factor, chosen, share)
            return size
        case Sum():
            return sum((_size(p, chosen, share) for p in expr.parts), Fraction(0))
        case _:
            scaled = expr.name is not None and int(expr.name) in chosen
            return expr.size * share if scaled else Fraction(expr.size)


def _shares(values: Iterable[int]) -> Iterator[Fraction]:
    """A few shares that leave all values whole, a half first."""
    common = gcd(*values)
    tried = [Fraction(1, 2), Fraction(1, 3), Fraction(2, 3), Fraction(3, 4), Fraction(common - 1, common)]
    yield from dict.fromkeys(s for s in tried if 0 < s < 1 and common % s.denominator == 0)


def _scaled(values: Values, share: Fraction) -> Values:
    return {site: int(value * share) for site, value in values.items()}


def _solved(base: Shapes, built: Shapes, trial: int) -> int | None:
    """The value that gives the base shapes back, where the changed sizes are multiples of the trial value."""
    if built.keys() != base.keys():
        return None
    sizes = [(a, b) for n in base for a, b in zip(base[n], built[n], strict=False) if a != b]
    guesses = {Fraction(a * trial, b) for a, b in sizes}
    guess = guesses.pop() if len(guesses) == 1 else Fraction(1, 2)
    return int(guess) if guess.denominator == 1 and all(b % trial == 0 for _, b in sizes) else None


def _settings(model: nn.Module) -> dict[tuple[str, str], Any]:
    """The plain numbers on all modules."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | tuple | list) and not name.startswith("_")
    }
