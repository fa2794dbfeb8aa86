"""Images from files: decoded, cut to one size and normalised, as torchvision's references do, by Pillow alone."""

import copy
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from secateur.data.augmenting import Augmentation, crop_box
from secateur.data.batches import Source
from secateur.errors import DataError, MissingExtra

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue, in [0, 1]
IMAGE_SIZE = 224
MARGIN = (256, 224)  # shorter side that an image is scaled to before its middle is taken, and side of the middle
SPARE = 2  # a JPEG is decoded at no less than this many times the size that is needed

Locate = Callable[[Sequence[int]], Sequence[Path | bytes]]
"""From positions to files, or what is in them."""


def check_images(size: int, purpose: str) -> None:
    """Raise where images can't be read, or not at this size."""
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtra("pillow", "vision", purpose)
    if size < 1:
        raise DataError(f"image_size={size}: an image needs at least 1 pixel")


class ImageSource(Source):
    """Reads images as they are asked for, with a thread for each core.

    Pixels are normalised by ImageNet's mean and deviation.

    Args:
        locate: where the images at some positions are.
        labels: the class of each image.
        size: side in pixels of the square that each image becomes.
        augment: "none" and "flip" take the middle of the image, "standard" a random part of it; "flip" and "standard"
            mirror half of the images.
        name: of the image at a position, for errors.
    """

    def __init__(
        self,
        locate: Locate,
        labels: Sequence[int],
        *,
        size: int,
        augment: Augmentation = "none",
        name: Callable[[int], str],
    ) -> None:
        self.locate, self.size, self.augment, self.name = locate, size, augment, name
        self.labels, self.count = torch.tensor(labels, dtype=torch.long), len(labels)
        self.workers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="secateur-images")
        self.mean, self.deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))

    def __len__(self) -> int:
        return self.count

    def plain(self) -> Self:
        made = copy.copy(self)
        made.augment = "none"
        return made

    def fetch(self, positions: Sequence[int], draws: Tensor) -> tuple[Tensor, Tensor]:
        read = self.workers.map(self._read, positions, self.locate(positions), draws.tolist())
        pixels = torch.stack(list(read))
        return (pixels.float() / 255 - self.mean) / self.deviation, self.labels_at(positions)

    def _read(self, position: int, file: Path | bytes, draw: int) -> Tensor:
        try:
            return self._pixels(BytesIO(file) if isinstance(file, bytes) else file, draw)
        except Exception as error:  # Pillow raises almost anything on broken files
            raise DataError(
                f"{self.name(position)} can't be read as an image ({type(error).__name__}: {error}): repair it or take "
                "it out"
            ) from error

    def _pixels(self, file: BytesIO | Path, draw: int) -> Tensor:
        """One image as bytes (3, size, size)."""
        from PIL import Image

        with Image.open(file) as opened:
            image = (
                part_of(opened, self.size, Random(draw)) if self.augment == "standard" else middle(opened, self.size)
            )
        if self.augment != "none" and draw % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def middle(opened: Any, size: int) -> Any:
    """An open image scaled until its shorter side is 256/224 times ``size``, then its middle square."""
    from PIL import Image

    width, height = opened.size
    shorter = size * MARGIN[0] // MARGIN[1]
    wide, high = (side * shorter // min(width, height) for side in (width, height))
    left, top = round((wide - size) / 2), round((high - size) / 2)
    image = _decoded(opened, wide / width, high / height)
    # Scaling and cutting in one, so that a long and thin image is never held at full length.
    across, down = image.width / wide, image.height / high
    box = (left * across, top * down, min((left + size) * across, image.width), min((top + size) * down, image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def part_of(opened: Any, size: int, random: Random) -> Any:
    """A random part of an open image, scaled to a square."""
    from PIL import Image

    width, height = opened.size
    box = left, top, right, bottom = crop_box(width, height, random)
    image = _decoded(opened, size / (right - left), size / (bottom - top))
    if image.size == (width, height):  # as torchvision: no pixel beside the part shines in
        return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    across, down = image.width / width, image.height / height
    scaled = left * across, top * down, min(right * across, image.width), min(bottom * down, image.height)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=scaled)


def _decoded(opened: Any, across: float, down: float) -> Any:
    """An open image in red, green and blue; a JPEG that will be scaled down a lot is decoded at a smaller size.

    Args:
        opened: what ``Image.open`` gave.
        across: what its width will be scaled by.
        down: what its height will be scaled by.
    """
    width, height = opened.size
    opened.draft("RGB", (math.ceil(width * min(1, SPARE * across)), math.ceil(height * min(1, SPARE * down))))
    if opened.mode.startswith("I;16"):
        from PIL import Image

        return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
    if opened.mode in ("I", "F"):
        raise DataError(f"its pixels have 32 bits (Pillow's mode {opened.mode}), so black and white are not known")
    return (opened.convert("RGBA") if "transparency" in opened.info else opened).convert("RGB")
