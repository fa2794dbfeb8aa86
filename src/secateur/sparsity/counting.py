"""What has to be known of the dense model before anything is pruned, and how many numbers of each weight go."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from secateur.calibration.batches import Batch
from secateur.objectives import Loss
from secateur.progress import progress_bar
from secateur.sparsity import allocation
from secateur.sparsity.blocks import block_of
from secateur.sparsity.criteria import Wanda, WeightView, scored
from secateur.sparsity.gradients import derive
from secateur.sparsity.layers import Layer
from secateur.sparsity.passing import Uses, collect
from secateur.sparsity.pruning import How
from secateur.sparsity.statistics import Statistics

LABELLED = frozenset({"gradients", "fisher"})


def beforehand(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Batch],
    how: How,
    found: Uses,
    allocated: str,
    loss: Loss | None,
) -> dict[str, Statistics]:
    """What has to be known of the dense model: gradients, inputs for allocation, inputs of weights of several uses."""
    told: dict[str, Statistics] = {name: Statistics() for name in layers}
    several = {name: layer for name, layer in layers.items() if name in found.several}
    with progress_bar("Calibrating", len(batches)) as step:
        if how.needs & LABELLED:
            some = how.needs & LABELLED
            _merge(told, derive(model, layers, batches, some, loss=loss, asking=repr(how.rate), step=step))
        whole = allocated == "owl" or (allocated == "global" and (how.rate is None or "inputs" in how.needs))
        if whole:
            _merge(told, collect(model, layers, batches, frozenset({"inputs"}), step))
        if several and how.needs & {"inputs", "gram"}:
            for name in several:
                told[name] = replace(told[name], rows=0, square=None, gram=None)
            _merge(told, collect(model, several, batches, how.needs, step))
    return told


def passed_on(before: Mapping[str, Statistics], found: Uses) -> dict[str, Statistics]:
    """What is still of use when weights are pruned one after another: gradients, and inputs of weights of several uses;
    the inputs of others come anew, from the pruned part.
    """
    return {n: s if n in found.several else replace(s, rows=0, square=None, gram=None) for n, s in before.items()}


def _merge(told: Mapping[str, Statistics], more: Mapping[str, Statistics]) -> None:
    for name, found in more.items():
        told[name].merge(found)


def counts(
    model: nn.Module,
    layers: Mapping[str, Layer],
    how: How,
    sparsity: float,
    allocated: str,
    before: Mapping[str, Statistics],
) -> dict[str, int]:
    """How many numbers of each weight go."""
    if how.pattern.fixed is not None:
        return {name: how.pattern.removed(layer.shape) for name, layer in layers.items()}
    shapes = {name: layer.shape for name, layer in layers.items()}
    count = {name: rows * cols for name, (rows, cols) in shapes.items()}
    if allocated == "global":
        rate = how.rate or Wanda()
        return allocation.ranked(
            {n: scored(rate, _view(x, before[n])) for n, x in layers.items()}, how.pattern, sparsity
        )
    if allocated == "erk":
        shares = allocation.erk({name: layer.sizes for name, layer in layers.items()}, sparsity)
    elif allocated == "owl":
        outliers = {n: allocation.outliers(scored(Wanda(), _view(x, before[n]))) for n, x in layers.items()}
        shares = allocation.owl(outliers, count, {n: block_of(model, n) for n in layers}, sparsity)
    else:
        shares = dict.fromkeys(layers, sparsity)
    return allocation.counts(shares, shapes, how.pattern, sparsity)


def _view(layer: Layer, found: Statistics) -> WeightView:
    return WeightView(name=layer.name, weight=layer.matrix.float(), groups=layer.groups, statistics=found)
