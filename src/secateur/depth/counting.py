"""What counts the blocks of a sequence: numbers of layers in code and configs, lists with an item for each layer, and
the indices that layers know of themselves. Found by trying, never by name.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from secateur import objects
from secateur.configs.blueprint import Blueprint, Unbuildable, quietly, shapes
from secateur.depth.carrying import current, edit
from secateur.depth.change import DepthChange, Insertion, LayerList
from secateur.depth.containers import parent_of
from secateur.modules import Walk
from secateur.origins import Attribute
from secateur.tracing.shadow import copy_with


@dataclass(frozen=True)
class Counter:
    """What counts the blocks of one sequence.

    Attributes:
        container: path of the sequence.
        size: how many blocks it has.
        sites: ints that are this number, and follow it.
        lists: lists with an item for each block.
        indices: of a single block, the ints in it (path of a module in the block, attribute) that are its index.
        maybe: ints that are this number, on what holds the sequence; nobody knows whether they count it.
    """

    container: str
    size: int
    sites: tuple[Attribute, ...] = ()
    lists: tuple[LayerList, ...] = ()
    indices: tuple[tuple[str, str], ...] = ()
    maybe: tuple[Attribute, ...] = ()


class Counters:
    """The counters of a model's sequences, each learnt when it is asked for first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known: dict[str, Counter] = {}

    def of(self, container: str) -> Counter:
        """The counter of a sequence."""
        if container not in self.known:
            with quietly():
                self.known[container] = _learn(self.model, container)
        return self.known[container]

    def counted(self, change: DepthChange, maybe: Sequence[Attribute] = ()) -> DepthChange:
        """A change with everything that counts blocks in it.

        Args:
            change: what is dropped and inserted.
            maybe: further ints that count blocks.
        """
        containers = dict.fromkeys(parent_of(p) for p in (*change.dropped, *_chained(change)))
        settings: dict[Attribute, int] = {}
        lists: list[LayerList] = []
        for path in containers:
            counter = self.of(path)
            gone = sum(parent_of(p) == path for p in change.dropped)
            more = sum(parent_of(p) == path for p in _chained(change)) - gone
            sites = [*counter.sites, *(s for s in counter.maybe if s in maybe)]
            settings |= {site: site.value + more for site in sites} if more else {}
            lists += counter.lists
        settings |= self._indices(change)
        return replace(change, settings=tuple(settings.items()), lists=tuple(lists))

    def _indices(self, change: DepthChange) -> dict[Attribute, int]:
        """The indices that layers know of themselves: ints in the blocks of a sequence that go up by one from each
        block to the next. They are numbered anew.
        """
        edited = copy_with(self.model, lambda t: t)
        found: dict[Attribute, int] = {}
        for path, done in edit(replace(change, settings=(), lists=()), edited).items():
            blocks = [cast(nn.Module, self.model.get_submodule(path)._modules[name]) for name in done.names]
            for inner, name, first in _rising(blocks, self.of(path).indices):
                for at, place in enumerate(done.places):
                    value = first + done.names.index(place.source)
                    site = Attribute(f"{path}.{place.name}.{inner}".strip("."), name, None, value)
                    if value != first + at and current(edited, site) == value:  # an identity layer has no index
                        found[site] = first + at
        return found

    def possible(self, change: DepthChange) -> list[Attribute]:
        """Ints that may count the blocks of the sequences that a change changes."""
        paths = dict.fromkeys(parent_of(p) for p in (*change.dropped, *_chained(change)))
        return list(dict.fromkeys(site for path in paths for site in self.of(path).maybe))


def _chained(change: DepthChange) -> list[str]:
    return [spec.after for spec in change.inserted if not spec.wrap]


# ---------------------------------------------------------------------- indices


def _rising(blocks: Sequence[nn.Module], known: Sequence[tuple[str, str]] = ()) -> Iterator[tuple[str, str, int]]:
    """Module in each block, attribute, and its value in the first block, of ints that go up by one; of a single block,
    those that are known to do so.
    """
    if len(set(map(id, blocks))) < len(blocks):
        return
    held = [dict(Walk(block).named) for block in blocks]
    for inner, module in held[0].items():
        for name, first in vars(module).items():
            if type(first) is not int:
                continue
            values = [vars(h[inner]).get(name) if inner in h else None for h in held]
            rises = values == list(range(first, first + len(blocks)))
            if rises if len(blocks) > 1 else (inner, name) in known:
                yield inner, name, first


# ---------------------------------------------------------------------- numbers and lists


def _learn(model: nn.Module, container: str) -> Counter:
    size = len(model.get_submodule(container)._modules)
    bare = Counter(container, size)
    for path in _above(container):
        module = model.get_submodule(path)
        inner = container.removeprefix(path).removeprefix(".")
        for name, value in list(vars(module).items()):
            if name.startswith("_") or not objects.is_plain(value):
                continue
            for stored in (True, False):
                found = _Trying(Blueprint(type(module), name, value, stored), inner, size).run(path, container)
                if found is not None:
                    return found
    return replace(bare, maybe=tuple(_same(model, container, size)))


def _above(container: str) -> list[str]:
    """The paths of a module and of all that hold it, the model first."""
    parts = container.split(".") if container else []
    return [".".join(parts[:k]) for k in range(len(parts) + 1)]


def _same(model: nn.Module, container: str, size: int) -> Iterator[Attribute]:
    """Ints of a value on the modules that hold a sequence, and on configs that hang on them."""
    seen: set[int] = set()
    for path in _above(container)[:-1]:
        module = model.get_submodule(path)
        for name, value in list(vars(module).items()):
            if type(value) is int and value == size:
                yield Attribute(path, name, None, value)
            elif not name.startswith("_") and objects.is_plain(value):
                for inner, held in objects.walk(value, name, seen):
                    same = [s for s, v in objects.items(held).items() if type(v) is int and v == size]
                    yield from (Attribute(path, f"{inner}.{step}", None, size) for step in same)


@dataclass
class _Trying:
    """A model built from a config, whose values are changed to see which ones count the blocks of a sequence."""

    blueprint: Blueprint
    inner: str
    size: int

    def run(self, path: str, container: str) -> Counter | None:
        """What counts the blocks; None where no value does, or the config builds no such model."""
        try:
            built = self.blueprint.build({})
            if len(built.get_submodule(self.inner)._modules) != self.size:
                return None
        except (Unbuildable, AttributeError):
            return None
        more = self._more()
        edited = copy_with(built, lambda t: t)
        edit(self._step(built, more), edited)
        before, wanted = shapes(built), shapes(edited)
        every = [name for name in self._lists() if self._matters(name, before)]
        for site in [s for s in self.blueprint.sites(least=1) if s.value == self.size]:
            for lists in dict.fromkeys([tuple(every), *((name,) for name in every), ()]):
                other = self._built({site: self.size + more}, lists, more)
                if other is not None and shapes(other) == wanted:
                    return self._counter(path, container, site, lists, edited, other)
        return None

    def _counter(
        self,
        path: str,
        container: str,
        site: Attribute,
        lists: Sequence[str],
        edited: nn.Module,
        other: nn.Module,
    ) -> Counter:
        sites = (Attribute(path, site.name, site.index, site.value), *self._attributes(path, edited, other))
        found = tuple(LayerList(module=path, name=n, container=container, before=self.size) for n in lists)
        indices = tuple(self._indices(other)) if self.size == 1 else ()
        return Counter(container, self.size, sites, found, indices)

    def _more(self) -> int:
        """What the number is changed by to try: one block less, or, of a single block, one more."""
        return -1 if self.size > 1 else 1

    def _step(self, built: nn.Module, more: int) -> DepthChange:
        last = f"{self.inner}.{list(built.get_submodule(self.inner)._modules)[-1]}".strip(".")
        if more < 0:
            return DepthChange(dropped=(last,))
        return DepthChange(inserted=(Insertion(after=last, kind="block", like=last),))

    def _indices(self, other: nn.Module) -> list[tuple[str, str]]:
        """Ints that are indices in a model with more blocks."""
        blocks = [cast(nn.Module, block) for block in other.get_submodule(self.inner)._modules.values()]
        return [(inner, name) for inner, name, _ in _rising(blocks)]

    def _lists(self) -> list[str]:
        """Lists on the config with as many items as there are blocks."""
        root, found = self.blueprint.attribute, list[str]()
        for path, held in objects.walk(self.blueprint.config, root):
            for step, value in objects.items(held).items():
                if type(value) in (list, tuple) and len(value) == self.size:
                    found.append(f"{path}.{step}")
        return found

    def _matters(self, name: str, before: Any) -> bool:
        """Whether a list has to be as long as it is: with an item less, nothing is built, or something else."""
        other = self._built({}, [name], -1)
        return other is None or shapes(other) != before

    def _built(self, values: dict[Attribute, int], lists: Sequence[str], more: int) -> nn.Module | None:
        holder = nn.Module()
        holder.__dict__[self.blueprint.attribute] = self.blueprint.changed(values)
        for name in lists:
            items = objects.get(holder, name)
            objects.put(holder, name, items[:more] if more < 0 else type(items)([*items, *items[-1:] * more]))
        config = copy.deepcopy(getattr(holder, self.blueprint.attribute))
        try:
            return replace(self.blueprint, config=config).build({})
        except Unbuildable:
            return None

    def _attributes(self, path: str, edited: nn.Module, other: nn.Module) -> Iterator[Attribute]:
        """Ints on the modules outside of the sequence that the number sets."""
        new = dict(Walk(other).places)
        for at, module in Walk(edited).places:
            if at not in new or (f"{at}." if at else "").startswith(f"{self.inner}."):
                continue
            for name, value in vars(module).items():
                if type(value) is int and vars(new[at]).get(name) == value + self._more():
                    yield Attribute(f"{path}.{at}".strip("."), name, None, value)
