"""Protected data of a run of ``secateur prune``."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.adapting.passes import same_pass
from secateur.config import PruneSettings
from secateur.data import Data, load_data
from secateur.data.batches import Batches
from secateur.errors import ConfigError, DataError
from secateur.fit import Moved
from secateur.importance.scoring import looks_at_data
from secateur.inputs import split_batch
from secateur.objectives import is_causal
from secateur.protecting import Protect, settled
from secateur.protecting.judging import behaviours
from secateur.reporting import Report

BATCHES = 32  # of training data that scores and refits see
CLASSES = "class:"


def check(model: nn.Module, data: Data, settings: PruneSettings) -> None:
    """Raise, before time goes into training, what protecting data would raise after it.

    Raises:
        ConfigError: the criterion looks at weights alone.
        DataError: the protected data can't be read, are empty or don't fit the network.
    """
    if settings.protect is None:
        return
    if not looks_at_data(settings.importance):
        raise ConfigError(
            f"protect={settings.protect} needs a criterion that looks at data, and importance={settings.importance} "
            "looks at weights alone: take reconstruction or fisher, say, or leave it to auto with a budget"
        )
    settled(guard(data, settings, 1), model, None)


def guard(data: Data, settings: PruneSettings, batches: int = BATCHES) -> Protect:
    """What is protected, with the test splits to measure on.

    Args:
        data: of the run.
        batches: of the protected data's training split, at most.
    """
    assert settings.protect is not None
    train, test = _splits(settings.protect, data, settings)
    return Protect(
        list(same_pass(train, settings.seed, settings.device, batches)),
        share=settings.protect_share,
        test=Moved(test, settings.device),
        general_test=Moved(data.test, settings.device),
    )


def with_tuned(report: Report, dense: nn.Module, tuned: nn.Module, data: Data, settings: PruneSettings) -> Report:
    """A report with the tuned network among the figures of protection; as it is where nothing was protected."""
    found: dict[str, Any] | None = report.to_dict().get("protected")
    if not found:
        return report
    asked = guard(data, settings, 1)
    for name, batches in (("protected", asked.test), ("general", asked.general_test)):
        seen = behaviours(dense, [tuned], batches, None, causal=is_causal(dense))
        found["figures"][name]["tuned"] = seen[1].to_dict()
    return report.replace(protected=found)


def _splits(spec: str, data: Data, settings: PruneSettings) -> tuple[Iterable[Any], Iterable[Any]]:
    """Training samples without augmentation, and test samples, of the protected data."""
    if spec.startswith(CLASSES):
        classes = _classes(spec)
        return of_classes(data.calibration, classes, "training"), of_classes(data.test, classes, "test")
    given: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "image_size": settings.image_size,
        "augment": settings.augment,
        **settings.protect_args,
    }
    other = load_data(spec, **given)
    return other.calibration, other.test


def _classes(spec: str) -> frozenset[int]:
    if not re.fullmatch(rf"{CLASSES}\d+(,\d+)*", spec):
        raise ConfigError(f"protect={spec}: classes are whole numbers from 0, such as class:3 or class:3,5")
    return frozenset(int(number) for number in spec.removeprefix(CLASSES).split(","))


def of_classes(batches: Iterable[Any], classes: frozenset[int], split: str) -> Iterable[Any]:
    """The samples of some classes, iterable again and again.

    Raises:
        DataError: there is none of some class, or samples have no class.
    """
    labels = batches.labels() if isinstance(batches, Batches) else None
    if isinstance(batches, Batches) and labels is not None:
        places = [p for p, label in zip(batches.positions, labels.tolist(), strict=True) if label in classes]
        made: Iterable[Any] = Batches(
            batches.source.plain(), places, batch_size=batches.batch_size, shuffle=batches.shuffle, seed=batches.seed
        )
        lacking = classes.difference(labels.tolist())
    else:
        made = picked = _Picked(batches, classes)
        lacking = picked.lacking()
    if lacking:
        shown = ",".join(map(str, sorted(lacking)))
        raise DataError(f"protect=class:{shown} names no sample of the {split} split: look at the labels of the data")
    return made


class _Picked:
    """The samples of some classes in batches of any loader."""

    def __init__(self, batches: Iterable[Any], classes: frozenset[int]) -> None:
        self.batches, self.classes = batches, torch.tensor(sorted(classes))

    def set_epoch(self, epoch: int) -> None:
        """Pass it on."""
        if callable(inner := getattr(self.batches, "set_epoch", None)):
            inner(epoch)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            wanted = torch.isin(_labels(batch), self.classes)
            if bool(wanted.any()):
                yield _rows(batch, wanted)

    def lacking(self) -> set[int]:
        """The classes that have no sample; batches are read until each has one."""
        left: set[int] = set(self.classes.tolist())
        for batch in self:
            left.difference_update(_labels(batch).tolist())
            if not left:
                break
        return left


def _labels(batch: Any) -> Tensor:
    """The class of each sample of a batch."""
    _, named, target = split_batch(batch)
    labels = named.get("labels") if target is None else target
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        raise DataError(
            "protect=class:... picks samples by their class, and a batch of the data has not one class for each "
            "sample: give the protected data by themselves, as for --data"
        )
    return labels.cpu()


def _rows(batch: Any, wanted: Tensor) -> Any:
    """Some samples of a batch."""
    return tree_map_only(Tensor, lambda t: t[wanted.to(t.device)] if t.dim() and len(t) == len(wanted) else t, batch)
