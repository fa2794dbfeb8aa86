"""Training, validation and test parts, held out of each other where the data comes without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from secateur.errors import DataError

SPLITS = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "eval": "validation", "dev": "validation"}
SPLIT_SEED = 0
HELD_OUT = 0.15  # fraction of the samples that a split gets where the data has none of its own


@dataclass(frozen=True)
class Part:
    """Some samples of a split that the data comes with: the split's name, and the positions in it."""

    split: str
    positions: Sequence[int]


def split_name(name: str) -> str | None:
    """The split that a name stands for, None if none.

    >>> split_name("Val"), split_name("extra")
    ('validation', None)
    """
    found = ALIASES.get(name.lower(), name.lower())
    return found if found in SPLITS else None


def hold_out(labels: Mapping[str, Sequence[int]]) -> dict[str, Part]:
    """A part for each of "train", "validation" and "test", whatever splits the data comes with.

    A missing split is a stratified part of another, chosen by a fixed seed: half of the validation split for testing,
    15 % of the training split for validation, or both out of the training split. So a test part was never trained on.

    Args:
        labels: the class of each sample, for every split that the data comes with; "train" is one.

    Raises:
        DataError: a part would be empty.

    Example:
        >>> parts = hold_out({"train": [0, 1] * 10, "test": [0, 1]})
        >>> {name: (part.split, len(part.positions)) for name, part in parts.items()}
        {'train': ('train', 16), 'validation': ('train', 4), 'test': ('test', 2)}
    """
    found = {name: Part(name, range(len(labels[name]))) for name in SPLITS if name in labels}
    if "validation" not in labels and "test" not in labels:
        given, fractions, names = "train", (1 - 2 * HELD_OUT, HELD_OUT), SPLITS
    elif "validation" not in labels:
        given, fractions, names = "train", (1 - HELD_OUT,), ("train", "validation")
    elif "test" not in labels:
        given, fractions, names = "validation", (0.5,), ("validation", "test")
    else:
        given, fractions, names = "", (), ()
    if given:
        parts = stratified(labels[given], fractions, SPLIT_SEED)
        found |= {name: Part(given, part) for name, part in zip(names, parts, strict=True)}
    empty = [name for name in SPLITS if not len(found[name].positions)]
    if empty:
        raise DataError(f"too few samples: none is left for {' and '.join(empty)}. Add samples, or a split for each")
    return {name: found[name] for name in SPLITS}


def stratified(labels: Sequence[int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Split positions at random into parts that hold the same share of every class.

    Args:
        labels: the class of each sample.
        fractions: size of each part but the last, as a fraction of all samples; the last part gets the rest.
        seed: of the choice.

    Returns:
        The positions of each part, in ascending order.

    Example:
        >>> [len(part) for part in stratified([0, 0, 0, 0, 1, 1, 1, 1], (0.5, 0.25), seed=0)]
        [4, 2, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    bounds = [sum(fractions[: i + 1]) for i in range(len(fractions))]
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    for _, alike in sorted(members.items()):
        shuffled = [alike[i] for i in torch.randperm(len(alike), generator=generator).tolist()]
        cuts = [0, *(round(bound * len(alike)) for bound in bounds), len(alike)]
        for part, start, end in zip(parts, cuts[:-1], cuts[1:], strict=True):
            part.extend(shuffled[start:end])
    return [sorted(part) for part in parts]
