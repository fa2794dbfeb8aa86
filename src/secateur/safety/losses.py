"""Losses that attacks make greater, sample by sample.

Shape letters: N samples, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-12  # of a denominator: scores may tie


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample, (N, C), (N,) -> (N,)."""
    return F.cross_entropy(scores, labels, reduction="none")


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the highest other score is above that of the label, (N, C), (N,) -> (N,): above 0 where it is wrong.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    own = scores.gather(1, labels[:, None])[:, 0]
    return scores.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def targeted_dlr(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio towards a class: ``-(z_label - z_target) / (z_1 - (z_3 + z_4) / 2)`` with z_k the k-th
    highest score.

    Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", arXiv:2003.01690, equation 7. Unlike cross-entropy it does not change when all scores are shifted or
    multiplied, so it can't vanish by their size.

    Args:
        scores: (N, C), with at least 4 classes.
        labels: (N,).
        targets: (N,), the classes to go to.

    Returns:
        (N,).

    Example:
        >>> targeted_dlr(torch.tensor([[4.0, 3.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor([-0.2857])
    """
    highest = scores.topk(4, dim=1).values
    own, other = (scores.gather(1, which[:, None])[:, 0] for which in (labels, targets))
    return (other - own) / (highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2 + _LEAST)
