"""Rank correlation: how far two orders of the same units agree, and how sure that is.

Shape letters: A axes, U units, B resamplings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 3  # units that an order can be compared on
RESAMPLINGS = 500


def ranks(values: Tensor) -> Tensor:
    """Ranks along the last dim, from 1; equal values share the mean of their ranks.

    >>> ranks(torch.tensor([0.3, 0.1, 0.3, 0.9]))
    tensor([2.5000, 1.0000, 2.5000, 4.0000], dtype=torch.float64)
    """
    values = values.double().contiguous()
    ordered = values.sort(-1).values
    below, upto = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + upto + 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dim: the correlation of the ranks. NaN where one side is constant.

    Spearman 1904, "The Proof and Measurement of Association between Two Things".

    >>> float(spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 30.0, 20.0, 40.0])))
    0.8
    """
    a, b = (ranks(values) - (values.shape[-1] + 1) / 2 for values in (a, b))
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(-1) / scale, torch.nan)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far one hint's order of the units is that of the truth. Correlations are in [-1, 1], None where undefined.

    Attributes:
        axes: within each axis.
        mean: of those, every axis alike.
        mean_error: standard error over units, by bootstrap within each axis; the next two likewise.
        overall: of all units together, scores as they are.
        overall_error: its standard error.
        shares: of all units together, each score as a share of its axis's sum, which is how ``scope="global"`` ranks.
        shares_error: its standard error.
    """

    axes: tuple[float | None, ...]
    mean: float | None
    mean_error: float | None
    overall: float | None
    overall_error: float | None
    shares: float | None
    shares_error: float | None


def agreement(truth: Sequence[Tensor], scores: Sequence[Tensor], totals: Sequence[float], seed: int = 0) -> Agreement:
    """Compare a hint with the truth.

    A hint that gives all sampled units of an axis one score ranks nothing: that counts as a correlation of 0. An axis
    whose units all cost the same, or of which fewer than `FEWEST` units were sampled, says nothing and is left out.

    Args:
        truth: what the sampled units of each axis are worth, A times (U,).
        scores: the hint's scores of the same units.
        totals: sum of the hint's scores over all units of each axis.
        seed: of the bootstrap.
    """
    told = [len(t) >= FEWEST and bool((t != t[0]).any()) for t in truth]
    found = [float(_defined(spearman(s, t))) if ok else None for s, t, ok in zip(scores, truth, told, strict=True)]
    known = [value for value in found if value is not None]
    draws = _draws([len(t) for t in truth], seed)
    again = [_defined(spearman(s[d], t[d])) for s, t, d, ok in zip(scores, truth, draws, told, strict=True) if ok]
    starts = [sum(len(t) for t in truth[:k]) for k in range(len(truth))]
    pooled = torch.cat([start + draw for start, draw in zip(starts, draws, strict=True)], 1)  # (B, all units)
    overall, overall_error = _overall(torch.cat(list(scores)), torch.cat(list(truth)), pooled)
    parts = [s.double() / total if total > 0 else s.double() for s, total in zip(scores, totals, strict=True)]
    shares, shares_error = _overall(torch.cat(parts), torch.cat(list(truth)), pooled)
    return Agreement(
        axes=tuple(found),
        mean=sum(known) / len(known) if known else None,
        mean_error=float(torch.stack(again).mean(0).std()) if again else None,
        overall=overall,
        overall_error=overall_error,
        shares=shares,
        shares_error=shares_error,
    )


def _draws(sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Units of each axis drawn with replacement, A times (B, U)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(size, (RESAMPLINGS, size), generator=generator) for size in sizes]


def _overall(scores: Tensor, truth: Tensor, draws: Tensor) -> tuple[float | None, float | None]:
    if len(truth) < FEWEST or bool((truth == truth[0]).all()):
        return None, None
    again = torch.stack([_defined(spearman(scores[d], truth[d])) for d in draws])  # one by one: U may be large
    return float(_defined(spearman(scores, truth))), float(again.std())


def _defined(correlation: Tensor) -> Tensor:
    return correlation.nan_to_num(0.0)


def reliability(first: Sequence[Tensor], second: Sequence[Tensor]) -> float | None:
    """Mean rank correlation of the truth with itself, from two halves of the data, made that of the whole data.

    Spearman 1910 and Brown 1910: of two halves that correlate by r, the whole correlates with another whole by
    2 r / (1 + r). No hint can be expected to correlate with the truth by more than the root of that.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if len(a) >= FEWEST]
    values = [float(r) for a, b in pairs if not math.isnan(r := float(spearman(a, b)))]
    if not values:
        return None
    r = max(0.0, sum(values) / len(values))
    return 2 * r / (1 + r)
