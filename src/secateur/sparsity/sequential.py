"""Weights pruned one after another, in the order in which data come to them, each by what the pruned ones before it
give.

All batches run side by side and wait at every use of a weight. So one forward pass is enough for a whole model, or for
one block of a model of which no more is in memory: what is held are the activations of all batches at one place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.contraction import Contraction
from secateur.calibration.lockstep import Run
from secateur.calibration.watching import Key, running, written
from secateur.errors import DataError
from secateur.progress import Advance
from secateur.sparsity.criteria import WeightView
from secateur.sparsity.layers import Layer
from secateur.sparsity.passing import PLACES, Call, Uses, check_sound, is_whole, rows_of
from secateur.sparsity.pruning import How, Pruned, output_error, prune_weight
from secateur.sparsity.statistics import Statistics
from secateur.tracing.surroundings import quiet_backends, seed_draws

THREADS = 2048  # of the operating system: each run has one, and torch gives each of these its own team
MEASURED = 2**13  # rows by which an output's error is measured where there is no Gram matrix


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of one weight.

    Attributes:
        mask: bool, in the weight's shape, True = stays.
        error: root of the mean squared error of the layer's outputs, as a share of the dense ones' size, on the inputs
            that it has in the pruned model; None where no data came to it.
        rows: of data that it was pruned by.
        notes: what the reader should know, in words.
    """

    mask: Tensor
    error: float | None = None
    rows: int = 0
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Work:
    """Which weights are pruned, and how.

    Attributes:
        layers: those of the model that runs, by name, in the memory that the model uses.
        how: how.
        remove: how many numbers of each go; None where a threshold says it.
        before: what was collected beforehand: gradients, and inputs of weights that a run uses several times.
        share: is given the sums of each weight before it is pruned, and may add those of other processes to them.
        step: called after each weight.
        done: what became of each.
    """

    layers: Mapping[str, Layer]
    how: How
    remove: Mapping[str, int] | None
    before: Mapping[str, Statistics] = field(default_factory=dict[str, Statistics])
    share: Callable[[Statistics], None] = lambda found: None
    step: Advance = lambda done=None, total=None: None
    done: dict[str, Step] = field(default_factory=dict[str, Step])


def prune_along(model: nn.Module, calls: Sequence[Call], work: Work, uses: Uses) -> list[Any]:
    """Prune the weights of a module in place while data pass through it.

    Args:
        model: in whatever mode; it runs in evaluation mode. Its chosen weights are changed, nothing else.
        calls: what it is run on, each a run of its own.
        work: what is to be done.
        uses: what `find_uses` found on some of the calls.

    Returns:
        What the runs gave, in order: the outputs of the pruned module.

    Raises:
        DataError: more batches than there can be threads, NaN or infinite activations, or the model fails.
    """
    if len(calls) > (most := THREADS // torch.get_num_threads()):
        raise DataError(f"{len(calls)} batches are more than {most}, which can run side by side: make them larger")
    outputs: list[Any] = [None] * len(calls)
    with quiet_backends(model):
        own = _written(model, calls)
        runs = [_run(running(model, own), call, outputs, k) for k, call in enumerate(calls)]
        try:
            _go(runs, calls, work, {key: k for k, key in enumerate(uses.order)})
        finally:
            for run in runs:
                run.stop()
    return outputs


def _written(model: nn.Module, calls: Sequence[Call]) -> frozenset[str] | None:
    """What each run needs copies of; None, for all that a run may write to, where none has run yet."""
    if not calls:
        return None
    copy = running(model)
    seed_draws()
    calls[0].run(copy)
    return written(model, copy)


def _run(model: nn.Module, call: Call, outputs: list[Any], place: int) -> Run:
    def forward() -> None:
        seed_draws()
        outputs[place] = call.run(model)

    return Run(model, forward, {}, before=True)


def _go(runs: Sequence[Run], calls: Sequence[Call], work: Work, place: Mapping[Key, int]) -> None:
    """Lead all runs from use to use."""
    for run in runs:
        run.advance()
    while at := [run.pause.key for run in runs if run.pause is not None]:
        key = min(at, key=lambda key: place.get(key, -1))
        here = [(run, call) for run, call in zip(runs, calls, strict=True) if run.pause and run.pause.key == key]
        layer = work.layers.get(key[0])
        if layer is not None and layer.name not in work.done:
            _prune(layer, [(run.pause.use, call) for run, call in here if run.pause is not None], work)
            work.step()
        for run, _ in here:
            run.advance()


def _prune(layer: Layer, uses: Sequence[tuple[Contraction, Call]], work: Work) -> None:
    """Prune a weight at its first use."""
    if not all(is_whole(use, layer) for use, _ in uses):
        return
    known = work.before.get(layer.name, Statistics())
    found = Statistics(samples=known.samples, gradient=known.gradient, fisher=known.fisher)
    found.rows, found.square, found.gram = known.rows, known.square, known.gram
    if known.square is None and work.how.needs & {"inputs", "gram"}:
        for use, call in uses:
            for rows in rows_of(use, call, PLACES // len(uses)):
                found.add(rows, gram="gram" in work.how.needs)
    work.share(found)
    check_sound({layer.name: found}, "a batch")
    if work.how.needs & {"inputs", "gram"} and not found.rows:
        raise DataError(f"no row of data comes to {layer.name}: the batches are empty, or all padding")
    dense = layer.matrix.clone()
    pruned = carry_out(layer, found, work.how, None if work.remove is None else work.remove[layer.name])
    if found.gram is not None:
        squared, size = output_error(layer.matrix.to(found.gram), dense.to(found.gram), found.gram)
    else:
        squared, size = _measured(layer.matrix, dense, uses)
    work.done[layer.name] = Step(
        mask=layer.unfold(pruned.mask),
        error=(squared / size) ** 0.5 if size else 0.0,
        rows=found.rows,
        notes=pruned.notes,
    )


def carry_out(layer: Layer, found: Statistics, how: How, remove: int | None) -> Pruned:
    """Prune a weight, and write it into the model."""
    matrix = layer.matrix
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    view = WeightView(name=layer.name, weight=wide, groups=layer.groups, statistics=found)
    pruned = prune_weight(view, how, remove)
    with torch.no_grad():
        layer.parameter.copy_(layer.unfold(pruned.weight.to(layer.parameter)))
    return pruned


def _measured(weight: Tensor, dense: Tensor, uses: Sequence[tuple[Contraction, Call]]) -> tuple[float, float]:
    """Squared error of a weight's outputs, and the squared size of the dense ones', on rows of the data."""
    squared = size = 0.0
    most = max(MEASURED // len(uses), 1)
    for use, call in uses:
        for rows in rows_of(use, call, most):
            some = rows[:: max(len(rows) // most, 1)].float().transpose(0, 1)  # (G, R, K)
            was, now = (w.float().unflatten(0, (len(some), -1)).mT for w in (dense, weight))  # (G, K, N)
            size += float((some @ was).square().sum())
            squared += float((some @ (was - now)).square().sum())
    return squared, size
