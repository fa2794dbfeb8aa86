"""Whether the splits of data fit together, as far as that can be told without reading all of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.data.batches import IGNORED, Batches
from secateur.data.loading import Data
from secateur.errors import DataError

SHOWN = 5


def splits(data: Data) -> dict[str, Iterable[Any]]:
    """The batches of each split that there is."""
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: batches for name, batches in named.items() if batches is not None}


def first_batches(data: Data) -> dict[str, Any]:
    """The first batch of each split. Epochs of our own batches, and the random state, stay what they were.

    Raises:
        DataError: a split holds no batch.
    """
    found: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for name, batches in splits(data).items():
            epoch = batches.epoch if isinstance(batches, Batches) else 0
            found[name] = next(iter(batches), None)
            if isinstance(batches, Batches):
                batches.set_epoch(epoch)
    empty = [name for name, batch in found.items() if batch is None]
    if empty:
        raise DataError(f"the {' and the '.join(empty)} loader holds no batch: give it samples")
    return found


def value_problems(batches: Mapping[str, Any]) -> list[str]:
    """NaN and infinity in a batch of each split."""
    wrong: list[str] = []
    for name, batch in batches.items():
        numbers = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        bad = sum(int((~leaf.isfinite()).sum()) for leaf in numbers)
        if bad:
            wrong.append(
                f"the first batch of the {name} split holds {bad} values that are NaN or infinite: take these samples "
                "out, or put numbers in their place (torch.nan_to_num)"
            )
    return wrong


def label_problems(data: Data) -> list[str]:
    """Classes below 0, and classes that are tested but not trained on; where labels are known without reading."""
    wrong: list[str] = []
    known = known_labels(data)
    for name, labels in known.items():
        strange = sorted({value for value in labels if value < 0 and value != IGNORED})
        if strange:
            wrong.append(
                f"the {name} split has labels below 0 ({_listed(strange)}): classes are numbered from 0. Take samples "
                "without a label out, or number the classes anew"
            )
    for name in known if "train" in known else ():
        missing = sorted(value for value in known[name] - known["train"] if value >= 0)
        if missing:
            wrong.append(
                f"the {name} split has samples of {_classes(missing)}, of which there is no training sample: add some, "
                "or take these out"
            )
    return wrong


def remarks(data: Data) -> list[str]:
    """What is odd about data that can be used: classes without a sample, test samples that are trained on."""
    found: list[str] = []
    seen = set[int]().union(*known_labels(data).values())
    if seen and data.classes is not None:
        unused = [value for value in range(data.classes) if value not in seen]
        if unused:
            found.append(
                f"There is no sample of {_classes(unused)}, of {data.classes} in all: number the classes without gaps, "
                "if they should all be there."
            )
    marks = {name: _fingerprints(batches) for name, batches in splits(data).items()}
    trained = set(marks["train"] or ())
    for name in ("validation", "test"):
        same = [place for place, mark in enumerate(marks.get(name) or ()) if mark in trained]
        if same:
            found.append(
                f"{len(same)} of {len(marks[name] or ())} {name} samples are training samples, too (the first is "
                f"number {same[0]}), so results on them are too good: take them out of one of the two."
            )
    return found


def known_labels(data: Data) -> dict[str, set[int]]:
    """The classes of each split that occur in it, where that is known without reading samples."""
    found: dict[str, set[int]] = {}
    for name, batches in splits(data).items():
        labels = batches.labels() if isinstance(batches, Batches) else None
        if labels is not None:
            found[name] = set(labels.unique().tolist())
    return found


def _fingerprints(batches: Iterable[Any]) -> list[bytes] | None:
    return batches.source.fingerprints(batches.positions) if isinstance(batches, Batches) else None


def _classes(values: list[int]) -> str:
    return f"class{'es' if len(values) > 1 else ''} {_listed(values)}"


def _listed(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:SHOWN]))
    return f"{shown} and {len(values) - SHOWN} more" if len(values) > SHOWN else shown
