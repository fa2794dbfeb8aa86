"""Loss, accuracy and whatever else a model is judged by, over all batches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError, TrainingError
from secateur.modules import kept_modes
from secateur.objectives import Loss, Totals, forward, loss_of
from secateur.safety.batches import AttackedView
from secateur.tuning import metrics
from secateur.tuning.distilling import is_causal
from secateur.tuning.gradients import summed
from secateur.tuning.memory import Pieces
from secateur.tuning.metrics import Meter, Metric
from secateur.tuning.parts import Part, labels_of, pieces, share, size_of
from secateur.tuning.processes import Processes
from secateur.tuning.reading import DataFailed


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    device: str | torch.device = "cpu",
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    halve: bool = False,
) -> dict[str, float]:
    """Mean loss, accuracy in [0, 1] where targets are classes, and a metric, over all samples of all batches.

    Args:
        model: moved to ``device``; the modes of its modules are left as they were.
        loader: batches with targets.
        device: where to compute.
        loss: as for `tune`.
        metric: a name ("f1", "auroc", "perplexity", "mse", "r2", ...; see `secateur.tuning.metrics.names`), a
            ``torchmetrics.Metric``, which is left as it is, or a function ``(model, batches) -> number``.
        halve: whether a batch that does not fit in memory is done in halves.

    Returns:
        ``{"loss": ..., "accuracy": ...}``, without accuracy where targets are no classes, and the metric by its name,
        or as "metric" where it has none.

    Raises:
        TrainingError: there is no batch, the loader raises, memory does not suffice, or a metric can't be taken of what
            the model gives.
    """
    if metric is not None:
        metrics.check(metric)
    model.to(device)
    memory = Pieces(halve, several=False, device=torch.device(device))
    totals, value = Survey(model, device, loss, metric, memory=memory)(loader)
    found = {"loss": totals.loss} | ({} if totals.accuracy is None else {"accuracy": totals.accuracy})
    return found if value is None else found | {metrics.title(metric): value}


class Survey:
    """Runs a model over all batches in evaluation mode, shared among the processes.

    Args:
        model: as the processes run it.
        memory: what batches that don't fit are done by.
        processes: None is this one alone.
        what: the name of it all, for errors.
        attack: ``(model, batch) -> batch``, by which each batch is changed before the model sees it.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device,
        loss: Loss | None,
        metric: Metric | None,
        *,
        memory: Pieces,
        processes: Processes | None = None,
        what: str = "evaluation",
        attack: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.model, self.device, self.loss, self.metric = model, device, loss, metric
        self.processes, self.memory, self.split, self.what, self.attack = processes, memory, 1, what, attack
        self.weigh = size_of if loss is not None else partial(labels_of, shifted=is_causal(model))

    def __call__(self, batches: Iterable[Any]) -> tuple[Totals, float | None]:
        """Sums over all samples, and the metric if there is one.

        Raises:
            DataFailed: the loader raised.
            TrainingError: there is no batch.
        """
        these, totals = self.processes, Totals()
        function = metrics.function_of(self.metric)
        meter = None if function or self.metric is None else Meter(self.metric, self.model, these)
        with kept_modes(self.model), torch.no_grad(), nullcontext() if these is None else these.accelerator.autocast():
            self.model.eval()
            for number, batch in enumerate(_read(batches, self.what), 1):
                size = size_of(batch)
                part = Part(batch, size) if these is None else share(batch, these.rank, these.count)
                labels = self.weigh(batch)
                self._count(part, number, size / labels if labels else 0.0, totals, meter)
            found = totals if these is None else summed(totals, these)
            if not found.samples:
                raise TrainingError("nothing to evaluate on: the loader holds no batch")
            value = None if meter is None else meter.value()
            if function is not None:
                seen = batches if self.attack is None else AttackedView(batches, self.model, self.attack)
                value = metrics.of_function(function, self.model, seen)
        return found, value

    def _count(self, part: Part, number: int, each: float, totals: Totals, meter: Meter | None) -> None:
        """Count a process's part of a batch in.

        Args:
            number: of the batch.
            each: how many samples a label counts for; 0 where the batch has none, and does not count.
        """
        rest = pieces(part, self.split)
        while rest:
            piece = rest[0]
            try:
                batch = piece.batch if self.attack is None else self.attack(self.model, piece.batch)
                output, target = forward(self.model, batch, self.device)
                labels = self.weigh(piece.batch)
                counts = piece.counts and each > 0
                value = loss_of(output, target, self.loss).item() if counts and labels else 0.0  # a mean of none is NaN
            except (RuntimeError, MemoryError) as error:
                where, exact = f"in {self.what} at batch {number}", "which changes nothing"
                self.split = self.memory.more(error, self.split, part.samples, where, exact)
                rest = [half for whole in rest for half in pieces(whole, 2)]
                continue
            rest.pop(0)
            if counts:
                totals.add(value, output, target, labels * each, piece.samples)
            if meter is not None:
                meter.add(output, target, piece.counts)


def _read(batches: Iterable[Any], what: str) -> Iterator[Any]:
    """The batches; what raises there is told apart from what the model raises."""
    given, number = None, 0
    while True:
        number += 1
        try:
            given = iter(batches) if given is None else given
            batch = next(given)
        except StopIteration:
            return
        except SecateurError as error:
            raise DataFailed(str(error)) from error
        except Exception as error:
            raise DataFailed(
                f"the data loader raised at batch {number} of the {what}: {type(error).__name__}: {error}"
            ) from error
        yield batch
