"""How much each block of a model contributes: how far it moves what it is given, or what the loss rises by without it.

Shape letters: B samples, C features.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateur.calibration.batches import Batches, Forward
from secateur.depth.streams import skipping
from secateur.errors import DataError, PlanError, ScoreError
from secateur.objectives import Loss
from secateur.tracing.shadow import shadow
from secateur.tracing.surroundings import draws_as_found

NAMES = ("influence", "loss", "random")
Scorer = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
"""Given blocks, and those that are skipped already, the score of each; higher = kept longer."""


def scorer(
    model: nn.Module,
    importance: str,
    data: Iterable[Any] | None,
    loss: Loss | None,
    forward: Forward | None,
    seed: int,
) -> Scorer:
    """What scores blocks.

    Raises:
        PlanError: an unknown name, or no data.
    """
    if importance not in NAMES:
        raise PlanError(f"importance={importance!r}: blocks are chosen by {', '.join(NAMES)}, or named in a list")
    if importance == "random":
        return lambda names, gone: at_random(names, seed)
    if data is None:
        raise PlanError(
            f"importance={importance!r} looks at data: pass data=[batches], or importance='random' as a control"
        )
    given = data
    if importance == "influence":
        return lambda names, gone: influence(model, names, given, forward=forward, skipped=gone)
    return lambda names, gone: loss_increase(model, names, given, loss, forward=forward, skipped=gone)


def at_random(names: Sequence[str], seed: int) -> dict[str, float]:
    """Uniform numbers in [0, 1), as a control."""
    drawn = torch.rand(len(names), generator=torch.Generator().manual_seed(seed))
    return dict(zip(names, drawn.tolist(), strict=True))


def influence(
    model: nn.Module,
    names: Sequence[str],
    data: Iterable[Any],
    *,
    forward: Forward | None = None,
    skipped: Sequence[str] = (),
) -> dict[str, float]:
    """How far each block moves its input: 1 - cosine similarity of what comes in and what goes out, the mean over all
    positions of all samples.

    Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv:2403.03853
    (block influence). Differs: works for any residual block; a position is a token, or a pixel of a feature map; tokens
    that a mask of the batch (``attention_mask``) leaves out don't count; a position that is zero before and after
    counts as unmoved.

    Args:
        names: blocks.
        data: batches, without labels.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        skipped: blocks that hand on what they are given meanwhile.

    Returns:
        A number in [0, 2] for each block; higher = moves more.

    Raises:
        DataError: there are no data, or the model fails on them.
    """
    double, sums, counts = shadow(model), dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    mask: Tensor | None = None

    def watch(name: str, before: Tensor, after: Tensor, args: Any, kwargs: Any) -> None:
        dim = feature_dim(double.get_submodule(name), before)
        moved = 1 - cosine(before.movedim(dim, -1), after.movedim(dim, -1))
        if mask is not None and mask.shape == moved.shape:
            moved = moved[mask != 0]
        sums[name] += float(moved.double().sum())
        counts[name] += moved.numel()

    with torch.no_grad(), draws_as_found(), skipping(double, skipped), skipping(double, names, watch):
        for batch in Batches(double, data, forward):
            mask = _mask(batch.given)
            batch.run(double)
    empty = [name for name in names if not counts[name]]
    if empty:
        raise DataError(f"the data hold no position on which {empty[0]} could be looked at: give at least one batch")
    return {name: sums[name] / counts[name] for name in names}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity along the last dim, in float32 at least; 1 where both are zero.

    >>> cosine(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 0.0]]))
    tensor([0.9600, 1.0000])
    """
    a, b = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (a, b))
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    found = (a * b).sum(-1) / lengths.clamp_min(torch.finfo(a.dtype).tiny)
    still = (a.norm(dim=-1) == 0) & (b.norm(dim=-1) == 0)
    return torch.where(still, torch.ones_like(found), found.clamp(-1, 1))


def feature_dim(block: nn.Module, stream: Tensor) -> int:
    """The dim of a stream that features are along: 1 where the block has convolutions or batch norms of that width,
    else the last one.
    """
    if stream.dim() > 2:
        for part in block.modules():
            width = _width(part)
            if width == stream.shape[1]:
                return 1
    return -1


def _width(part: nn.Module) -> int | None:
    if isinstance(part, _ConvNd):
        return part.in_channels
    return part.num_features if isinstance(part, _BatchNorm) else None


def _mask(batch: Any) -> Tensor | None:
    named = batch[0] if isinstance(batch, tuple | list) and batch else batch
    found = cast("dict[str, Any]", named).get("attention_mask") if isinstance(named, dict) else None
    return found if isinstance(found, Tensor) and found.dim() == 2 else None


def loss_increase(
    model: nn.Module,
    names: Sequence[str],
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    forward: Forward | None = None,
    skipped: Sequence[str] = (),
) -> dict[str, float]:
    """What the mean loss of a sample rises by when a block hands on what it is given, for each block.

    Args:
        names: blocks.
        data: batches with labels, gone through once for each block and once more.
        loss: ``(output, target) -> scalar``; by default the model's own, else cross-entropy.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        skipped: blocks that hand on what they are given in any case.

    Raises:
        DataError: there are no data, or the model fails on them.
        ScoreError: there is no loss, or it is not finite.
    """
    double = shadow(model)

    def mean(gone: Sequence[str]) -> float:
        total, samples = 0.0, 0
        with torch.no_grad(), draws_as_found(), skipping(double, gone):
            for batch in Batches(double, data, forward):
                value = batch.losses(batch.run(double), loss, "the importance of blocks by the loss")
                total += float(torch.as_tensor(value).double().mean()) * batch.samples
                samples += batch.samples
        if not samples:
            raise DataError("the data hold no batch, so there is no loss: give at least one")
        return total / samples

    dense = mean(skipped)
    if dense != dense or abs(dense) == float("inf"):
        raise ScoreError(f"the loss of the model is {dense}, so it says nothing of its blocks")
    increases = {name: mean([*skipped, name]) - dense for name in names}
    return {name: value if value == value else float("inf") for name, value in increases.items()}
