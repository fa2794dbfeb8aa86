"""Loss, accuracy and whatever else a model is judged by, over all batches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from secateur.errors import TrainingError
from secateur.modules import kept_modes
from secateur.objectives import Loss, Totals, forward, loss_of
from secateur.tuning.loop import summed
from secateur.tuning.parts import share
from secateur.tuning.processes import Processes

Metric = Callable[[nn.Module, Iterable[Any]], float]


def evaluate(
    model: nn.Module, loader: Iterable[Any], device: str | torch.device = "cpu", *, loss: Loss | None = None
) -> dict[str, float]:
    """Mean loss, and accuracy in [0, 1] where targets are classes, over all samples of all batches.

    Args:
        model: moved to ``device``; the modes of its modules are left as they were.
        loader: batches with targets.
        device: where to compute.
        loss: as for `tune`.

    Returns:
        ``{"loss": ..., "accuracy": ...}``, without accuracy where targets are no classes.

    Raises:
        TrainingError: there is no batch.
    """
    totals = _totals(model.to(device), loader, device, loss)
    accuracy = totals.accuracy
    return {"loss": totals.loss} | ({} if accuracy is None else {"accuracy": accuracy})


def _totals(model: nn.Module, batches: Iterable[Any], device: str | torch.device, loss: Loss | None) -> Totals:
    totals = Totals()
    with kept_modes(model), torch.no_grad():
        model.eval()
        for batch in batches:
            output, target = forward(model, batch, device)
            totals.add(loss_of(output, target, loss).item(), output, target)
    if not totals.samples:
        raise TrainingError("nothing to evaluate on: the loader holds no batch")
    return totals


def totals_of(wrapped: nn.Module, batches: Iterable[Any], these: Processes, loss: Loss | None) -> Totals:
    """Losses and hits over all batches, shared among the processes.

    Raises:
        TrainingError: there is no batch.
    """
    model = wrapped if these.sharded else these.unwrap(wrapped)
    totals = Totals()
    with kept_modes(model), torch.no_grad(), these.accelerator.autocast():
        model.eval()
        for batch in batches:
            part = share(batch, these.rank, these.count)
            output, target = forward(model, part.batch, these.device)
            if part.counts:
                totals.add(loss_of(output, target, loss).item(), output, target)
    found = summed(totals, these)
    if not found.samples:
        raise TrainingError("nothing to evaluate on: the loader holds no batch")
    return found
