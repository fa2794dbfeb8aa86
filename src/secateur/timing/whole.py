"""How long whole models take, side by side."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from secateur.inputs import as_call, fresh
from secateur.measuring import device_of, left_as_found
from secateur.timing.stopwatch import clock, waiter

ROUNDS = 21  # of all models in turn; the median counts
SHORTEST = 1e-2  # seconds that a model runs in one round at least
PATIENCE = 6.0  # seconds after which no further round begins, beyond the fewest
FEWEST = 7


def whole_seconds(
    models: Mapping[str, nn.Module], args: Any, kwargs: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Seconds of one forward pass of each model in evaluation mode: of the first the median, of the others the median
    of their shares of the first, which they take turns with, so that what else the machine does hits all alike.
    """
    positional, keywords = fresh(as_call(args, kwargs))
    with left_as_found(models.values()), torch.no_grad():
        found: dict[str, list[float]] = {name: [] for name in models}
        device = next((device_of(m).type for m in models.values()), "cpu")
        wait, now = waiter(device), clock(device)

        def stretch(model: nn.Module, times: int) -> float:
            wait()
            start = now()
            for _ in range(times):
                model(*positional, **keywords)
            wait()
            return (now() - start) / times

        for model in models.values():
            model.eval()
            stretch(model, 1)
        times = {name: max(1, int(SHORTEST / max(stretch(m, 1), 1e-9))) for name, m in models.items()}
        started = time.perf_counter()
        for done in range(ROUNDS):
            if done >= FEWEST and time.perf_counter() - started > PATIENCE:
                break
            for name, model in models.items():
                found[name].append(stretch(model, times[name]))
    first, *_ = found.values()
    whole = statistics.median(first)
    shares = {name: [a / b for a, b in zip(values, first, strict=True)] for name, values in found.items()}
    return {name: whole * statistics.median(values) for name, values in shares.items()}
