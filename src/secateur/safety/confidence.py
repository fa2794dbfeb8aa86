"""Whether a network is as often right as it says.

Shape letters: N samples, B bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How confidence and accuracy go together.

    Attributes:
        error: expected calibration error, in [0, 1].
        confidence: mean highest probability.
        accuracy: share of right answers.
    """

    error: float
    confidence: float
    accuracy: float

    @property
    def overconfident(self) -> bool:
        """Whether the network says more than it keeps."""
        return self.confidence > self.accuracy


def calibration(confidence: Tensor, right: Tensor, bins: int = BINS) -> Calibration:
    """Expected calibration error: samples are sorted into bins of equal width by confidence, and the distances between
    mean confidence and accuracy of the bins are averaged, each bin as often as it has samples.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    Args:
        confidence: (N,), the highest probability of each sample.
        right: (N,), bool.
        bins: how many, over (0, 1]; a bin holds its upper end.

    Example:
        >>> round(calibration(torch.tensor([0.9, 0.9, 0.5]), torch.tensor([True, False, True])).error, 4)
        0.4333
    """
    sure, hits = confidence.double().clamp(0, 1), right.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=sure.device)
    place = torch.bucketize(sure, edges[1:-1])
    gap = torch.zeros(bins, dtype=torch.float64, device=sure.device).index_add_(0, place, sure - hits)
    return Calibration(
        error=float(gap.abs().sum() / len(sure)), confidence=float(sure.mean()), accuracy=float(hits.mean())
    )
