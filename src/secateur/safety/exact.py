"""Small-sample statistics of paired outcomes: tests that hold for any number of samples, and intervals.

Shape letters: N samples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NORMAL = 1.959964  # 97.5 % of a normal distribution lies below


def mcnemar(lost: int, won: int) -> float:
    """How likely so uneven a split of changed samples would be, if losses and gains were equally likely; two-sided.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages", in its
    exact form: twice the tail of a binomial distribution with probability 1/2.

    Args:
        lost: samples that only the first network got right.
        won: samples that only the second did.

    Returns:
        The p value, in (0, 1].

    Example:
        >>> mcnemar(5, 0), mcnemar(2, 2)
        (0.0625, 1.0)
    """
    count, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**count)


def paired_interval(lost: int, won: int, samples: int) -> tuple[float, float]:
    """A 95 % interval of the difference of two paired shares, second minus first.

    Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24: half a sample is added to each of the four cells, then it is the usual interval.

    Example:
        >>> low, high = paired_interval(30, 10, 500)
        >>> f"{low:.4f} {high:.4f}"
        '-0.0646 -0.0151'
    """
    lost_, won_, count = lost + 0.5, won + 0.5, samples + 2
    middle = (won_ - lost_) / count
    reach = NORMAL * math.sqrt(lost_ + won_ - (won_ - lost_) ** 2 / count) / count
    return max(middle - reach, -1.0), min(middle + reach, 1.0)


def mean_interval(differences: Tensor) -> tuple[float, float]:
    """A 95 % interval of a mean over samples, (N,), from their spread; the whole range where there is one sample."""
    if len(differences) < 2:
        return -1.0, 1.0
    values = differences.double()
    reach = NORMAL * float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) - reach, float(values.mean()) + reach


def holm(chances: Sequence[float]) -> list[float]:
    """P values of several questions asked at once, corrected so that one false alarm among all is as unlikely as said.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the smallest is multiplied by the number of
    questions, the next one by one less, and none may become smaller than the one before.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(chances)), key=lambda k: chances[k])
    found, least = [1.0] * len(chances), 0.0
    for place, k in enumerate(order):
        least = max(least, min(1.0, (len(chances) - place) * chances[k]))
        found[k] = least
    return found


def pays_more(changes: Tensor, members: Tensor) -> float:
    """How likely a group would lose so many samples, net, if its samples were any samples: an exact one-sided
    permutation test.

    Of all ways to choose as many samples, the share in which the sum of changes is as low or lower. With L losses and W
    gains among N samples, the losses and gains in the group follow a multivariate hypergeometric distribution, so all
    ways are counted.

    Args:
        changes: (N,), whole numbers: -1 where a sample is got wrong that was right, 1 the other way round, else 0.
        members: (N,), bool: which belong to the group.

    Returns:
        The p value, in (0, 1].

    Example:
        >>> changes = torch.tensor([-1, -1, 0, 0, 0, 0])
        >>> f"{pays_more(changes, torch.tensor([1, 1, 0, 0, 0, 0]).bool()):.4f}"  # 1 of 15 pairs
        '0.0667'
    """
    count, size = len(changes), int(members.sum())
    losses, gains = int((changes < 0).sum()), int((changes > 0).sum())
    net = int(changes[members].sum())
    lost = torch.arange(losses + 1, dtype=torch.float64)[:, None]
    won = torch.arange(gains + 1, dtype=torch.float64)[None]
    rest = size - lost - won  # unchanged samples in the group
    possible = (rest >= 0) & (rest <= count - losses - gains) & (won - lost <= net)
    ways = _choose(losses, lost) + _choose(gains, won) + _choose(count - losses - gains, rest)
    chances = (ways - _choose(count, torch.tensor(float(size), dtype=torch.float64)))[possible].exp()
    return min(1.0, float(chances.sum()))


def _choose(count: int, chosen: Tensor) -> Tensor:
    """Logarithm of the number of ways; minus infinity, or nothing of use, where there are none."""
    inside = chosen.clamp(0, count)
    whole = torch.tensor(float(count) + 1, dtype=torch.float64)
    return torch.lgamma(whole) - torch.lgamma(inside + 1) - torch.lgamma(whole - inside)
