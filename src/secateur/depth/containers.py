"""Sequences of modules, ``nn.Sequential`` and ``nn.ModuleList``: leaving out some of their children, adding others."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.errors import SurgeryError

NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True)
class Place:
    """A child of a sequence after a change.

    Attributes:
        name: its new name.
        source: the old name of the child; of a new one, that of the child which it comes after.
        new: how many new ones come before it after the same child, from 1; 0 for the child itself.
    """

    name: str
    source: str
    new: int = 0


def is_sequence(module: nn.Module) -> bool:
    """Whether a module is a sequence of others."""
    return isinstance(module, nn.Sequential | nn.ModuleList)


def parent_of(path: str) -> str:
    """The path of the module that holds another."""
    return path.rpartition(".")[0]


def layout(names: Sequence[str], dropped: frozenset[str], inserted: Mapping[str, int]) -> list[Place]:
    """The children of a sequence after a change, in order.

    Children whose names count them (``0``, ``1``; ``layer_0``, ``layer_1``) are numbered anew; others keep their names.

    Args:
        names: of the children.
        dropped: those that go.
        inserted: how many new ones come after which.

    Example:
        >>> [(p.name, p.source, p.new) for p in layout(["0", "1", "2"], frozenset({"0"}), {"2": 1})]
        [('0', '1', 0), ('1', '2', 0), ('2', '2', 1)]
        >>> [p.name for p in layout(["stem", "head"], frozenset(), {"stem": 2})]
        ['stem', 'stem_1', 'stem_2', 'head']
    """
    kept = [(n, k) for n in names if n not in dropped for k in range(inserted.get(n, 0) + 1)]
    counted = _counted(names)
    if counted is not None:
        prefix, first = counted
        return [Place(f"{prefix}{first + at}", source, new) for at, (source, new) in enumerate(kept)]
    taken = set(names)
    places: list[Place] = []
    for source, new in kept:
        name = source if not new else next(n for n in _candidates(source, new) if n not in taken)
        taken.add(name)
        places.append(Place(name, source, new))
    return places


def _candidates(source: str, new: int) -> Sequence[str]:
    return [f"{source}_{k}" for k in range(new, new + 10_000)]


def _counted(names: Sequence[str]) -> tuple[str, int] | None:
    """What comes before the numbers of names that count, and the first number."""
    found = [NUMBERED.fullmatch(name) for name in names]
    if not names or not all(found):
        return None
    prefixes = {m[1] for m in found if m is not None}
    numbers = [m[2] for m in found if m is not None]
    first = int(numbers[0])
    if len(prefixes) != 1 or numbers != [str(first + k) for k in range(len(numbers))]:
        return None
    return prefixes.pop(), first


def set_children(container: nn.Module, places: Sequence[Place], new: Mapping[tuple[str, int], nn.Module]) -> None:
    """Give a sequence other children.

    Args:
        places: what `layout` gave.
        new: the new children, by source and number.

    Raises:
        SurgeryError: nothing would be left.
    """
    old = dict(container._modules)
    if not places:
        raise SurgeryError(f"nothing would be left of a sequence of {len(old)} blocks; leave one of them in")
    container._modules.clear()
    for place in places:
        container._modules[place.name] = new[place.source, place.new] if place.new else old[place.source]
