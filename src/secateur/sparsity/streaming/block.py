"""One block pruned: its weights in the order in which data come to them, each by what the pruned ones before it give.

For each weight, or for several that are given the same inputs, the batches pass one by one through the block as it then
is, up to that weight. So no more than one batch's activations within the block are ever in memory.

Shape letters: G groups, R rows, K features of a group with the window.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.contraction import Contraction
from secateur.calibration.watching import Key, Watch
from secateur.errors import DataError
from secateur.memory import release
from secateur.sparsity.layers import Layer
from secateur.sparsity.passing import PLACES, Call, check_sound, is_whole, rows_of
from secateur.sparsity.pruning import How
from secateur.sparsity.sequential import Step, carry_out
from secateur.sparsity.statistics import Statistics
from secateur.sparsity.streaming.order import Order, agreed, find_order
from secateur.sparsity.streaming.sharing import Group
from secateur.sparsity.telling import row_of
from secateur.tracing.surroundings import seed_draws

MEASURED = 2**10  # rows by which an output's error is measured


@dataclass(kw_only=True)
class Pruning:
    """What becomes of a block.

    Attributes:
        how: how its weights are pruned.
        remove: how many numbers of each go, by full name; None where a threshold says it.
        group: the processes of the run.
        batches: how many there are, over all processes.
        done: rows of the report on each weight, by full name.
        left: why others stay dense.
    """

    how: How
    remove: Mapping[str, int] | None
    group: Group
    batches: int
    done: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    left: dict[str, str] = field(default_factory=dict[str, str])


class _Enough(BaseException):
    """Ends a run of which nothing more is wanted."""


def prune_block(block: nn.Module, layers: Mapping[str, Layer], calls: Sequence[Call], work: Pruning) -> None:
    """Prune the weights of a block in place.

    Args:
        block: with its weights in memory; it runs on its own parameters.
        layers: its weights, by their names within the block.
        calls: what it is run on, one for each batch of this process.
        work: what is to be done.

    Raises:
        DataError: NaN or infinite activations.
    """
    order = agreed(find_order(block, layers, calls), work.group) if work.how.needs else Order()
    work.left |= {layers[n].name: "it is used in parts, or the other way round" for n in order.odd}
    for stage in order.stages:
        _prune(block, {name: layers[name] for name in stage.names}, calls, work, stage.several)
    for layer in layers.values():
        if layer.name in work.done or layer.name in work.left:
            continue
        if work.how.needs:
            work.left[layer.name] = "no data come to it"
        else:
            work.done[layer.name] = _finished(layer, Statistics(), work)


def _prune(block: nn.Module, layers: Mapping[str, Layer], calls: Sequence[Call], work: Pruning, several: bool) -> None:
    """Prune the weights of a stage."""
    first, layer = next(iter(layers.items()))
    found, some = Statistics(), list[Tensor]()
    for call in calls:
        watch = _Collecting(block, first, layer, call, found, some, work, several)
        seed_draws()
        try:
            with watch:
                call.run(block)
        except _Enough:
            pass
    release()
    _filled(found, layer, "gram" in work.how.needs)
    work.group.add_up(found)
    check_sound({layer.name: found}, "a batch")
    for layer in layers.values():
        if not found.rows:
            work.left[layer.name] = "no data come to it"
            continue
        work.done[layer.name] = _finished(layer, found, work, some)


class _Collecting(Watch):
    """Adds up what a weight is given, and ends the run there."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        layer: Layer,
        call: Call,
        found: Statistics,
        some: list[Tensor],
        work: Pruning,
        several: bool,
    ) -> None:
        super().__init__(model)
        self.name, self.layer, self.call, self.sums, self.some = name, layer, call, found, some
        self.gram, self.calls, self.several = "gram" in work.how.needs, work.batches, several

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        if key[0] == self.name and is_whole(found, self.layer):
            with torch.no_grad():
                for rows in rows_of(found, self.call, PLACES // self.calls):
                    self.sums.add(rows, gram=self.gram)
                    self._keep(rows)
            if not self.several:
                raise _Enough
        return compute()

    def _keep(self, rows: Tensor) -> None:
        most = max(MEASURED // self.calls, 1)
        step = max(len(rows) // most, 1)
        self.some.append(rows[::step][:most].clone())


def _filled(found: Statistics, layer: Layer, gram: bool) -> None:
    """Zeros where this process saw nothing, so that others can be added."""
    if found.square is not None:
        return
    groups, columns = layer.groups, layer.shape[1]
    found.square = torch.zeros(groups, columns, dtype=torch.float64)
    found.gram = torch.zeros(groups, columns, columns, dtype=torch.float64) if gram else None


def _finished(layer: Layer, found: Statistics, work: Pruning, some: Sequence[Tensor] = ()) -> dict[str, Any]:
    """Prune one weight, and say what became of it; the mask is in the weight, and not kept."""
    dense = layer.matrix.clone()
    pruned = carry_out(layer, found, work.how, None if work.remove is None else work.remove[layer.name])
    mask, notes = layer.unfold(pruned.mask), pruned.notes
    del pruned
    error = _error(layer, dense, some) if some else None
    row = row_of(layer.name, Step(mask=mask, error=error, rows=found.rows, notes=notes))
    del mask, dense
    release()
    return row


def _error(layer: Layer, dense: Tensor, some: Sequence[Tensor]) -> float:
    """Root of the squared error of the outputs, as a share of the dense ones' size, on some rows of the data."""
    squared = size = 0.0
    rows = torch.cat([part.float() for part in some]).transpose(0, 1)  # (G, R, K)
    groups = len(rows)
    each = 2**9  # outputs at a time
    was, now = (w.unflatten(0, (groups, -1)) for w in (dense, layer.matrix))
    for start in range(0, was.shape[1], each):
        old = rows @ was[:, start : start + each].float().mT
        size += float(old.square().sum())
        squared += float((old - rows @ now[:, start : start + each].float().mT).square().sum())
    return (squared / size) ** 0.5 if size else 0.0


def advanced(block: nn.Module, call: Call) -> Tensor:
    """What the block gives on one batch.

    Raises:
        DataError: it is NaN or infinite.
    """
    seed_draws()
    out: Any = call.run(block)
    if not bool(out.isfinite().all()):
        raise DataError(
            f"batch {call.number} of the calibration data gives NaN or infinite activations: drop it, or find out why "
            "the model fails on it (half precision overflows beyond 65504)"
        )
    return out
