"""How much sparsity each layer gets, so that all together have exactly what was asked for.

Shape letters: none; layers are known by name.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor, prod

import torch
from torch import Tensor

from secateur.sparsity.patterns import Pattern

NAMES = ("uniform", "global", "erk", "owl")
OUTLIER = 5.0  # times the mean score of a layer, from which on a weight is an outlier; as published
SPREAD = 0.08  # how far OWL moves a layer's sparsity, at most; as published


def erk(sizes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Sparsities whose densities are in proportion to the sum of a weight's dims by their product, at most 1.

    Mocanu et al. 2018, "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity",
    arXiv:1707.04780 (Erdos-Renyi, linear layers); Evci et al. 2020, "Rigging the Lottery", arXiv:1911.11134 (with the
    window of convolutions). Layers that would be denser than dense stay whole, and the others bear it.

    Args:
        sizes: outputs, inputs and window of each layer.
        sparsity: of all together, in [0, 1].

    Example:
        >>> erk({"thin": (2, 4), "square": (8, 8)}, 0.5)  # sums by products are 3/4 and 1/4, of 8 and 64 weights
        {'thin': 0.0, 'square': 0.5625}
    """
    count = {name: prod(dims) for name, dims in sizes.items()}
    raw = {name: sum(dims) / count[name] for name, dims in sizes.items()}
    whole: set[str] = set()
    while len(whole) < len(sizes):
        rest = [name for name in sizes if name not in whole]
        wanted = (1 - sparsity) * sum(count.values()) - sum(count[name] for name in whole)
        scale = wanted / sum(raw[name] * count[name] for name in rest)
        most = max(raw[name] for name in rest)
        if scale * most <= 1:
            return {name: 0.0 if name in whole else 1 - scale * raw[name] for name in sizes}
        whole |= {name for name in rest if raw[name] == most}
    return dict.fromkeys(sizes, 0.0)


def outliers(scores: Tensor, times: float = OUTLIER) -> float:
    """The share of a layer's weights whose score is more than so many times the mean.

    >>> outliers(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 91.0]))
    0.1
    """
    return float((scores > times * scores.mean()).double().mean()) if scores.numel() else 0.0


def owl(
    share: Mapping[str, float],
    count: Mapping[str, int],
    blocks: Mapping[str, str],
    sparsity: float,
    spread: float = SPREAD,
) -> dict[str, float]:
    """Sparsities that are lower where more weights are outliers by Wanda's score, within +-spread of the mean.

    Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL)", arXiv:2310.05175. The layers of one block have one
    sparsity. Differs: the mean is weighed by the number of weights, so that the total is met.

    Args:
        share: of outliers in each layer.
        count: weights of each layer.
        blocks: which block a layer belongs to.
        sparsity: of all together, in [0, 1].
        spread: half the difference between the lowest and the highest, cut to what leaves all within [0, 1].
    """
    members: dict[str, list[str]] = {}
    for name in share:
        members.setdefault(blocks[name], []).append(name)
    size = {block: sum(count[n] for n in names) for block, names in members.items()}
    mean = {b: sum(share[n] * count[n] for n in names) / max(size[b], 1) for b, names in members.items()}
    low, high = min(mean.values()), max(mean.values())
    if high == low:
        return dict.fromkeys(share, sparsity)
    lift = {b: (high - m) / (high - low) for b, m in mean.items()}  # 0 where there are most outliers, 1 where fewest
    centre = sum(lift[b] * size[b] for b in lift) / sum(size.values())
    room = min(spread, sparsity / (2 * centre), (1 - sparsity) / (2 * (1 - centre)))
    return {name: sparsity + 2 * room * (lift[blocks[name]] - centre) for name in share}


def counts(
    sparsities: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], pattern: Pattern, sparsity: float
) -> dict[str, int]:
    """How many weights of each layer go: whole blocks, the total rounded, the largest remainders first.

    Args:
        sparsities: of each layer; their mean, weighed by size, is about ``sparsity``.
        shapes: rows and columns of each layer's matrix.

    Example:
        >>> from secateur.sparsity import Unstructured
        >>> counts({"a": 0.5, "b": 0.5, "c": 0.5}, {"a": (1, 3), "b": (1, 3), "c": (1, 3)}, Unstructured(), 0.5)
        {'a': 2, 'b': 1, 'c': 1}
    """
    area = prod(pattern.size)
    units = {name: prod(shapes[name]) // area for name in sparsities}
    total = round(Fraction(sparsity) * sum(units.values()))
    wanted = {name: min(max(sparsities[name], 0.0), 1.0) * units[name] for name in sparsities}
    found = {name: min(floor(amount + 1e-9), units[name]) for name, amount in wanted.items()}
    by_remainder = sorted(found, key=lambda name: found[name] - wanted[name])
    while (missing := total - sum(found.values())) > 0:
        for name in [n for n in by_remainder if found[n] < units[n]][:missing]:
            found[name] += 1
    while (extra := sum(found.values()) - total) > 0:
        for name in [n for n in reversed(by_remainder) if found[n]][:extra]:
            found[name] -= 1
    return {name: number * area for name, number in found.items()}


def ranked(scores: Mapping[str, Tensor], pattern: Pattern, sparsity: float) -> dict[str, int]:
    """How many weights of each layer go when all are ranked together; of equals those of earlier layers go first.

    Args:
        scores: of each layer, (O, C).
    """
    area = prod(pattern.size)
    rows, cols = pattern.size
    cells = {n: s.unflatten(1, (-1, cols)).unflatten(0, (-1, rows)).mean((1, 3)).flatten() for n, s in scores.items()}
    everything = torch.cat([values.cpu() for values in cells.values()])[None]
    total = round(Fraction(sparsity) * everything.numel())
    if not total:
        return dict.fromkeys(scores, 0)
    last = everything.kthvalue(total).values
    below = {n: int((v.cpu() < last).sum()) for n, v in cells.items()}
    left = total - sum(below.values())
    for name, values in cells.items():
        equal = min(int((values.cpu() == last).sum()), left)
        below[name] += equal
        left -= equal
    return {name: number * area for name, number in below.items()}
