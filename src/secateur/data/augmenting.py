"""Training images changed at random, as torchvision's references do.

Every sample comes with one random whole number, its draw, and all of its chance is taken from that.
Shape letters: N samples, C channels, H rows, W columns.
"""

import math
from random import Random
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import DataError

Augmentation = Literal["standard", "flip", "none"]
AREA = (0.08, 1.0)  # of a crop, as a share of the image's; torchvision's RandomResizedCrop
ASPECT = (3 / 4, 4 / 3)  # of a crop, width by height
ATTEMPTS = 10  # crops that are tried before the middle of the image is taken


def checked_augmentation(name: str | None, default: Augmentation) -> Augmentation:
    """The augmentation of this name, the default for None.

    Raises:
        DataError: there is none of this name.
    """
    known: tuple[Augmentation, ...] = get_args(Augmentation)
    if name is None:
        return default
    for one in known:
        if one == name:
            return one
    raise DataError(f"unknown augment={name!r}: it is one of {', '.join(map(repr, known))}")


def crop_box(width: int, height: int, random: Random) -> tuple[int, int, int, int]:
    """A random part of an image: left, top, right and bottom in pixels.

    The area is uniform in 8 to 100 % of the image's, the logarithm of the aspect uniform between those of 3/4 and 4/3
    (Szegedy et al. 2015, "Going Deeper with Convolutions", arXiv:1409.4842). Where ten such crops don't fit, it is the
    largest part in the middle whose aspect is allowed.

    Example:
        >>> crop_box(100, 10, Random(0))
        (43, 0, 56, 10)
    """
    for _ in range(ATTEMPTS):
        area = width * height * _between(*AREA, random)
        aspect = math.exp(_between(math.log(ASPECT[0]), math.log(ASPECT[1]), random))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.random() * (width - wide + 1)), int(random.random() * (height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def mirrored(images: Tensor, draws: Tensor) -> Tensor:
    """Each image (N, C, H, W) mirrored, left to right, with probability one half."""
    return torch.where((draws % 2 == 1)[:, None, None, None], images.flip(-1), images)


def cropped(images: Tensor, draws: Tensor) -> Tensor:
    """A random part of each image (N, C, H, W), brought to the size of the whole, and mirrored half of the time."""
    height, width = images.shape[-2:]
    boxes = torch.tensor([crop_box(width, height, Random(draw)) for draw in draws.tolist()], dtype=images.dtype)
    left, top, right, bottom = (boxes / torch.tensor([width, height] * 2, dtype=images.dtype)).unbind(1)
    zero = torch.zeros_like(left)
    where = torch.stack([right - left, zero, left + right - 1, zero, bottom - top, top + bottom - 1], 1)
    grid = F.affine_grid(where.view(-1, 2, 3), list(images.shape), align_corners=False)
    return mirrored(F.grid_sample(images, grid, padding_mode="border", align_corners=False), draws)


def _between(low: float, high: float, random: Random) -> float:
    return low + (high - low) * random.random()
