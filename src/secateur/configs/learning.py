"""Finding out which values of a config set which axes: by changing them, and looking at what is built.

Letters: K values of the config, F groups of axes that go together (corresponding axes of repeated blocks, and ties).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations, zip_longest
from math import gcd
from typing import Any

import torch
from torch import nn

from secateur.configs.blueprint import Blueprint, Shapes, Unbuildable, quietly, shapes
from secateur.configs.dims import Dims
from secateur.configs.wording import Word, Wording
from secateur.errors import SecateurError
from secateur.graph import Graph
from secateur.modules import named_tensors
from secateur.origins import Attribute
from secateur.planning.planning import make_plan
from secateur.proof import perturbed

TOGETHER = 4  # values of a config that are changed together at most
SETS = 500  # sets of values of one size that are built at most
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
    with quietly():
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
    moved: dict[Attribute, set[tuple[str, int]]] = field(default_factory=dict[Attribute, set[tuple[str, int]]])
    touched: dict[Attribute, set[str] | None] = field(default_factory=dict[Attribute, set[str] | None])

    def run(self) -> Wording:
        self.groups = groups(self.graph)
        self.dims = Dims(self.graph, self.groups)
        self.plain = self.blueprint.build({})
        self.base, self.settings = shapes(self.plain), _settings(self.plain)
        self.stored = [name for name in self.model.state_dict() if name in self.base]
        self.explicit = self._explicit()
        noisy = perturbed(self.model)
        values = {site: value for site, value in self._all_values().items() if self._moves(site, value)}
        for count in range(1, 1 + TOGETHER):
            open_ = self.dims.along([k for k, group in enumerate(self.groups) if not self._said() & set(group)])
            useful = [v for v in values.items() if count == 1 or not self.moved[v[0]] or self.moved[v[0]] & open_]
            together = [dict(c) for c in combinations(useful, count) if self._meet([site for site, _ in c])]
            if len(together) > SETS:
                break
            for found, share in self._candidates(together if open_ else []):
                self._take(found, share, noisy)
        return Wording(self.blueprint, tuple(self.words), self.unsaid)

    def _take(self, found: Word, share: Fraction, noisy: nn.Module) -> None:
        """Add what holds and says something new; it takes the place of what says a part of it."""
        parts = [word for word in self.words if set(word.axes) & set(found.axes)]
        if set(found.axes) <= self._said() or any(set(word.axes) - set(found.axes) for word in parts):
            return
        found = replace(found, needs=self._needs(found, share))
        if self._holds(found, share, noisy):
            found = self._least(found, share, noisy)
            self.words = [word for word in self.words if word not in parts] + [found]

    def _least(self, word: Word, share: Fraction, noisy: nn.Module) -> Word:
        """The word without values that make no difference: a window, say, that no example is long enough to notice."""
        wanted = shapes(self._build(_scaled(word.values, share)))
        for site in list(word.values):
            rest = replace(word, values={s: v for s, v in word.values.items() if s != site})
            try:
                same = bool(rest.values) and shapes(self._build(_scaled(rest.values, share))) == wanted
            except Unbuildable:
                continue
            if same and self._holds(rest, share, noisy):
                word = rest
        return word

    def _needs(self, word: Word, share: Fraction) -> Values:
        """The open values without which others than the word's axes would change."""
        needs = {site: value for site, value in self.explicit.items() if site not in word.values}
        scaled = _scaled(word.values, share)
        wanted = shapes(self._build(scaled))
        for site in list(needs):
            rest = {s: v for s, v in needs.items() if s != site}
            try:
                if shapes(self.blueprint.build({**rest, **scaled})) == wanted:
                    needs = rest
            except Unbuildable:
                continue
        return needs

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
        """The value that builds the model as it is; None where the name says no width."""
        for trial in (6, 16):
            try:
                new = shapes(self.blueprint.build({**found, site: trial}))
                guess = _solved({n: self.base[n] for n in self.stored}, new, trial)
                if guess is None or guess < 2 or self.dims.fixed(new, self.stored) is not None:
                    continue
                return guess if _same(self.blueprint.build({**found, site: guess}), self.plain) else None
            except Unbuildable:
                continue
        return None

    # ------------------------------------------------------------------ values and what they move

    def _moves(self, site: Attribute, value: int) -> bool:
        """Whether a value may have to do with the widths of prunable axes; notes what it changes by itself."""
        self.moved[site] = set()
        self.touched[site] = None
        for share in _shares([value]):
            try:
                built = self._build(_scaled({site: value}, share))
            except Unbuildable:
                continue
            new = shapes(built)
            if new.keys() != self.base.keys():
                return not all(self.base.get(name) == shape for name, shape in new.items())  # else it counts blocks
            sizes = ((n, k, pair) for n, s in new.items() for k, pair in enumerate(zip_longest(s, self.base[n])))
            self.moved[site] = {(n, k) for n, k, (after, before) in sizes if after != before}
            modules = {path for (path, _), _ in _settings(built).items() ^ self.settings.items()}
            self.touched[site] = modules | {name.rpartition(".")[0] for name, _ in self.moved[site]}
            if self.dims.fixed(new, self.stored) is not None:
                self._note_fixed({site: value}, new, share)
                return False
            return bool(self.touched[site])
        return True

    def _meet(self, sites: Sequence[Attribute]) -> bool:
        """Whether values can have to do with each other: by way of others, they change things on the same modules."""
        parts = [self.touched[site] for site in sites]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            return True
        reached, rest = known[0], known[1:]
        while near := [part for part in rest if part & reached]:
            reached, rest = reached.union(*near), [part for part in rest if not part & reached]
        return not rest

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
                    self._note_fixed(values, new, share)
                    break
        return sorted(found, key=lambda item: len(item[0].axes))

    def _note_fixed(self, values: Values, new: Shapes, share: Fraction) -> None:
        """Remember what keeps axes from being said by values that would set them."""
        fixed = self.dims.fixed(new, self.base)
        for chosen in self.dims.explain(new, share, partly=True) if fixed else ():
            for name in (name for k in chosen for name in self.groups[k]):
                self.unsaid.setdefault(
                    name, f"uniform: the config says it as {_spelled(values)}, which also sets {fixed}"
                )

    def _holds(self, word: Word, share: Fraction, noisy: nn.Module) -> bool:
        """Whether a model pruned so, and one built from the changed config, compute the same."""
        torch.manual_seed(0)
        sizes = {name: int(self.graph.axes[name].size * share) for name in word.axes}
        kept = {n: torch.randperm(self.graph.axes[n].size)[:k].sort().values for n, k in sizes.items()}
        wording = Wording(self.blueprint, (word,), {})
        try:
            plan = wording.write(self.graph, make_plan(self.graph, kept))
            wording.check(plan.apply(noisy), self.args, self.kwargs)
        except SecateurError as error:
            for name in word.axes:
                self.unsaid.setdefault(name, f"uniform: the config says it as {_spelled(word.values)}, but {error}")
            return False
        return True


def groups(graph: Graph) -> list[tuple[str, ...]]:
    """The axes that may be pruned without rewriting ``forward``, those that are tied together."""
    tie = {name: group for group in graph.ties for name in group}
    every = dict.fromkeys(tie.get(name, (name,)) for name in graph.axes)
    return [group for group in every if not any(graph.axes[name].rewrite for name in group)]


def _shares(values: Iterable[int]) -> Iterator[Fraction]:
    """A few shares that leave all values whole, a half first."""
    common = gcd(*values)
    tried = [Fraction(1, 2), Fraction(1, 3), Fraction(2, 3), Fraction(3, 4), Fraction(common - 1, common)]
    yield from dict.fromkeys(s for s in tried if 0 < s < 1 and common % s.denominator == 0)


def _scaled(values: Values, share: Fraction) -> Values:
    return {site: int(value * share) for site, value in values.items()}


def _solved(base: Shapes, built: Shapes, trial: int) -> int | None:
    """The value that gives the base shapes back, where the changed sizes are multiples of the trial value."""
    if base.keys() - built.keys():
        return None
    sizes = [(a, b) for n in base for a, b in zip(base[n], built[n], strict=False) if a != b]
    guesses = {Fraction(a * trial, b) for a, b in sizes}
    guess = guesses.pop() if len(guesses) == 1 else Fraction(1, 2)
    return int(guess) if guess.denominator == 1 else None


def _same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models that were built are alike but for the weights that neither has."""
    one, other = named_tensors(first), named_tensors(second)
    if shapes(first) != shapes(second) or _settings(first) != _settings(second):
        return False
    return all(t.is_meta or torch.equal(t, other[name]) for name, t in one.items() if name not in first.state_dict())


def _spelled(values: Values) -> str:
    """The values as people would write them: hidden_size and num_attention_heads."""
    return " and ".join(str(site).partition(".")[2] for site in values)


def _settings(model: nn.Module) -> dict[tuple[str, str], str]:
    """The plain numbers on all modules, as text."""
    return {
        (path, name): repr(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | tuple | list) and not name.startswith("_")
    }
