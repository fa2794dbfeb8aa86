"""The moves of the square attack in L2, where a change in one place must be paid for in another.

Andriushchenko et al. 2020, arXiv:1912.00049, algorithm 3; see `secateur.safety.square`.

Shape letters: R samples, C channels, H and W the sides of an image, S the side of a square.
"""

import math

import torch
from torch import Tensor

from secateur.safety.threat import Threat, lengths

_LEAST = 1e-12  # of a length that is divided by


def tiles(pixels: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
    """Images changed by a bump of random sign in each of about 5 x 5 tiles, eps long, (R, C, H, W)."""
    height, width = pixels.shape[2:]
    size = max(min(height, width) // 5, 1)
    change = torch.zeros_like(pixels)
    for top in range((height % size) // 2, height - size + 1, size):
        for left in range((width % size) // 2, width - size + 1, size):
            change[..., top : top + size, left : left + size] += bump(size, pixels, generator)
    return threat.project(pixels + threat.eps * change / lengths(change), pixels)


def move_energy(
    points: Tensor, around: Tensor, threat: Threat, area: float, generator: torch.Generator | None
) -> Tensor:
    """The change in one square is wiped out; its length, and what is left of eps, goes to a bump in another.

    Args:
        points: (R, C, H, W), the best changes so far.
        around: the images themselves.
        area: share of an image that a square covers.

    Returns:
        (R, C, H, W), as far from the images as the bounds allow, eps at most.
    """
    height, width = points.shape[2:]
    size = min(_odd(max(round(math.sqrt(area * height * width)), 3)), height, width)
    change = points - around
    to, source = (_window(size, height, width, points.device, generator) for _ in range(2))
    both = torch.zeros(height, width, device=points.device, dtype=points.dtype)
    both[to], both[source] = 1, 1
    held = (change * both).square().sum((2, 3), keepdim=True)  # of each channel
    spare = (threat.eps**2 - lengths(change).square()).clamp_min(0) / points.shape[1]
    old = change[..., to[0], to[1]]
    fresh = bump(size, points, generator) + old / (old.square().sum((2, 3), keepdim=True).sqrt() + _LEAST)
    fresh = fresh / (fresh.square().sum((2, 3), keepdim=True).sqrt() + _LEAST) * (held + spare).sqrt()
    change = change.clone()
    change[..., source[0], source[1]] = 0
    change[..., to[0], to[1]] = fresh
    return threat.project(around + threat.eps * change / lengths(change), around)


def bump(size: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """One hill and one hollow beside each other, of length 1, upright or lying, with a random sign for each sample and
    channel: (R, C, S, S).
    """
    drawn = torch.randint(0, 2, (*like.shape[:2], 1, 1), generator=generator, device=like.device)
    lying = bool(torch.rand(1, generator=generator, device=like.device) > 0.5)
    shape = pyramids(size).to(like)
    return (2 * drawn - 1).to(like.dtype) * (shape.T if lying else shape)


def pyramids(size: int) -> Tensor:
    """The upper half of a square rising in steps to its middle, the lower one falling, of length 1: (S, S)."""
    shape = torch.zeros(size, size)
    shape[: size // 2] = _pyramid(size // 2, size)
    shape[size // 2 :] = -_pyramid(size - size // 2, size)
    return shape / shape.norm()


def _pyramid(height: int, width: int) -> Tensor:
    """Rings about the middle, the k-th from within adding 1 / k^2, of length 1."""
    shape = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        shape[rows, columns] += 1 / (ring + 1) ** 2
    return shape / shape.norm() if height else shape


def _odd(size: int) -> int:
    return size if size % 2 else size + 1


def _window(
    size: int, height: int, width: int, device: torch.device, generator: torch.Generator | None
) -> tuple[slice, slice]:
    """Where a square lies."""
    drawn = torch.rand(2, generator=generator, device=device).tolist()
    top, left = (min(int(d * (room + 1)), room) for d, room in zip(drawn, (height - size, width - size), strict=True))
    return slice(top, top + size), slice(left, left + size)
