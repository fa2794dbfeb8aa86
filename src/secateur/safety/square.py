"""The square attack: a search at random that asks for scores only, and no gradient can mislead it.

Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
arXiv:1912.00049.

Shape letters: N samples, R of them still worked on, C channels, H and W the sides of an image.
"""

import math

import torch
from torch import Tensor

from secateur.safety.hunt import Hunt, Scores, look
from secateur.safety.losses import margin
from secateur.safety.square_l2 import move_energy, tiles
from secateur.safety.threat import Threat

FIRST = 0.8
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def share(query: int, queries: int, first: float = FIRST) -> float:
    """The share of an image's area that the square of a query covers: halved after 10, 50, 200, ... of 10,000 queries,
    for other numbers of queries in proportion.

    Args:
        query: which, from 1.
        queries: how many there will be.
        first: the share at the beginning, in (0, 1].

    Example:
        >>> share(1, 10_000), share(11, 10_000), share(10_000, 10_000)
        (0.8, 0.4, 0.0015625)
    """
    at = query * 10_000 // queries
    return first / 2 ** sum(at > bound for bound in _HALVED)


def square(
    scores: Scores,
    inputs: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    queries: int = 1000,
    first: float = FIRST,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change one square of the image at random, keep what brings the scores closer to a wrong answer, and begin again
    with a smaller square, until the network is wrong.

    It starts from stripes (L-inf) or tiles (L2). In L-inf a square gets one sign of eps in each channel; in L2 what
    another square was changed by is spent on it.
    Differs: the first square is as large as in the authors' later AutoAttack (``first`` is 0.8, not 0.05). All samples
    of a batch have their square in the same place.

    Args:
        inputs: (N, C, H, W).
        queries: how often the network may be asked about a sample, at least 1.
        first: share of the image that the first square covers, in (0, 1].
        scores, labels, threat, generator: as for `secateur.safety.pgd.pgd`.

    Returns:
        Changed inputs, scaled as the inputs are.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> images, labels = torch.full((3, 1, 4, 4), 0.5), torch.tensor([0, 1, 0])
        >>> changed = square(model, images, labels, Threat(eps=0.1), queries=5)
        >>> (changed - images).abs().max() <= 0.1 + 1e-6
        tensor(True)
    """
    hunt = Hunt(threat.pixels(inputs).detach(), labels, stop=True)
    flat = threat.norm == "linf"
    points = stripes(hunt.pixels, threat, generator) if flat else tiles(hunt.pixels, threat, generator)
    propose = repaint if flat else move_energy
    for query in range(1, queries + 1):
        hunt.see(points, look(scores, points, hunt.wanted, threat, margin, gradient=False))
        if not len(hunt.rows):
            break
        points = propose(hunt.worst[hunt.rows], hunt.around, threat, share(query, queries, first), generator)
    return threat.inputs(hunt.worst).detach()


def side(area: float, height: int, width: int, *, least: int = 1) -> int:
    """The side of a square that covers a share of an image, and fits into it.

    >>> side(0.8, 32, 32), side(0.0015625, 32, 32)
    (29, 1)
    """
    return min(max(round(math.sqrt(area * height * width)), least), height, width)


def stripes(pixels: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
    """Images changed by eps up or down in whole columns, (N, C, H, W)."""
    return threat.project(pixels + threat.eps * signs(pixels[:, :, :1], generator), pixels)


def repaint(points: Tensor, around: Tensor, threat: Threat, area: float, generator: torch.Generator | None) -> Tensor:
    """A square in which each channel is changed by eps up or down, (R, C, H, W)."""
    height, width = points.shape[2:]
    size = side(area, height, width)
    top, left = corner(height - size, width - size, points.device, generator)
    moved = points.clone()
    window = (..., slice(top, top + size), slice(left, left + size))
    moved[window] += 2 * threat.eps * signs(points[:, :, :1, :1], generator)  # from one face of the ball to the other
    return threat.project(moved, around)


def signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """1 or -1 at random, in the shape of a tensor."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return (2 * drawn - 1).to(like.dtype)


def corner(down: int, right: int, device: torch.device, generator: torch.Generator | None) -> tuple[int, int]:
    """A place for a square's upper left corner: whole numbers from 0 to the ones given."""
    drawn = torch.rand(2, generator=generator, device=device).tolist()
    return min(int(drawn[0] * (down + 1)), down), min(int(drawn[1] * (right + 1)), right)
