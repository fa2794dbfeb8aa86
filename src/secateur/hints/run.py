"""The run behind ``secateur hints``: get a network and its data, train it where that is asked for, check its hints."""

from collections.abc import Iterable, Iterator
from typing import Any

from secateur.calibration.batches import batch_size
from secateur.config import HintSettings, parse_budget
from secateur.files import RunDirectory, write_text
from secateur.fit import Moved, example
from secateur.hints.checking import check_hints
from secateur.hints.picture import page, picture
from secateur.hints.result import HintCheck
from secateur.inputs import split_batch
from secateur.runs.prune import prepare, train_dense
from secateur.runs.steps import Watch, silent
from secateur.tracing import trace


class First:
    """The first batches of some, as many as hold so many samples; the same ones each time.

    >>> import torch
    >>> [len(batch) for batch in First([torch.zeros(4, 2)] * 3, 6)]
    [4, 4]
    """

    def __init__(self, batches: Iterable[Any], samples: int) -> None:
        self.batches, self.samples = batches, samples

    def __iter__(self) -> Iterator[Any]:
        if callable(set_epoch := getattr(self.batches, "set_epoch", None)):
            set_epoch(0)  # shuffled batches come in the same order again
        seen = 0
        for batch in self.batches:
            yield batch
            seen += batch_size(split_batch(batch)[:2])
            if seen >= self.samples:
                return


def check_run(settings: HintSettings, *, overwrite: bool = False, watch: Watch = silent) -> HintCheck:
    """Do everything that ``secateur hints`` does.

    The truth is measured on the validation split, hints look at the training split; the test split is never touched.
    """
    if settings.out is None:
        return _check(settings, watch)
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        found = _check(settings, watch)
        found.save(directory.work / "hints.json")
        write_text(directory.work / "hints.svg", picture(found))
        write_text(directory.work / "hints.html", page(found))
        directory.publish()
    return found


def _check(settings: HintSettings, watch: Watch) -> HintCheck:
    training = settings.training()
    model, data = prepare(training, watch)
    train_dense(model, data, training, watch)
    given = data.validation if data.validation is not None else data.train
    with watch("Checking hints") as step:
        inputs = example(data, settings.device)
        found = check_hints(
            model.eval(),
            trace(model, inputs),
            settings.hints or None,
            Moved(First(given, settings.samples), settings.device),
            calibration=Moved(First(data.calibration, settings.calibration), settings.device),
            truth=settings.truth,
            units_per_axis=settings.units_per_axis,
            budget=None if settings.budget is None else parse_budget(settings.budget),
            only=settings.only,
            ignore=settings.ignore,
            seed=settings.seed,
            progress=step.advance,
            note="" if data.validation is not None else "measured on training data, for want of a validation split",
        )
        step.note(f"{len(found.hints)} hints, {sum(len(axis.units) for axis in found.axes)} units")
    return found
