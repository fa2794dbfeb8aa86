"""Corruptions that cameras and files bring by themselves, at five severities.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261. The parameters are those of CIFAR-10-C, for images of about 32 pixels a side.

Shape letters: N samples, C channels, H and W the sides of an image.
"""

import io
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import MissingExtra

SEVERITIES = 5
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, of pixels in [0, 1]
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation, in pixels
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # what is left of it
JPEG = (80, 65, 58, 50, 40)  # quality

Corruption = Callable[[Tensor, int, torch.Generator | None], Tensor]


def gaussian_noise(pixels: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Normal noise on every value, clipped.

    Args:
        pixels: (N, ...), in [0, 1].
        severity: 1 to 5.
        generator: of the noise.
    """
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype)
    return (pixels + NOISE[severity - 1] * noise).clamp(0, 1)


def gaussian_blur(pixels: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Each pixel the mean of its surroundings, by a bell that is cut off at four standard deviations; the edge pixels
    go on outside of the image.

    Args:
        pixels: (N, C, H, W), in [0, 1].
        severity: 1 to 5.
        generator: not used.
    """
    weights = bell(BLUR[severity - 1]).to(pixels)
    radius, channels = len(weights) // 2, pixels.shape[1]
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels).clamp(0, 1)


def bell(deviation: float) -> Tensor:
    """Weights of a one-dimensional blur, which sum to 1.

    >>> bell(0.4).shape
    torch.Size([5])
    """
    radius = int(4 * deviation + 0.5)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = (-0.5 * (at / deviation).square()).exp()
    return weights / weights.sum()


def contrast(pixels: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Each channel of an image drawn towards its mean.

    Args:
        pixels: (N, C, H, W), in [0, 1].
        severity: 1 to 5.
        generator: not used.
    """
    means = pixels.mean((2, 3), keepdim=True)
    return ((pixels - means) * CONTRAST[severity - 1] + means).clamp(0, 1)


def jpeg(pixels: Tensor, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Written as a JPEG of low quality and read again.

    Args:
        pixels: (N, C, H, W), in [0, 1], with 1 or 3 channels.
        severity: 1 to 5.
        generator: not used.

    Raises:
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "vision", "robustness to JPEG compression") from error
    import numpy as np

    grey = pixels.shape[1] == 1
    bytes_ = (255 * pixels).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    read: list[Tensor] = []
    for picture in bytes_:
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if grey else picture).save(file, "JPEG", quality=JPEG[severity - 1])
        image = torch.from_numpy(np.asarray(Image.open(file)).copy())
        read.append(image[None] if grey else image.permute(2, 0, 1))
    return (torch.stack(read) / 255).to(pixels)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
    "jpeg": jpeg,
}


def unfit(name: str, shape: torch.Size | tuple[int, ...]) -> str:
    """Why a corruption can't be done to inputs of a shape (N, ...), in words; empty where it can.

    >>> unfit("contrast", (8, 4))
    'it needs images (N, C, H, W), and inputs are (N, 4)'
    """
    rest = f"(N, {', '.join(map(str, shape[1:]))})"
    if name == "gaussian_noise":
        return ""
    if len(shape) != 4:
        return f"it needs images (N, C, H, W), and inputs are {rest}"
    if name == "jpeg" and shape[1] not in (1, 3):
        return f"it needs 1 or 3 channels, and there are {shape[1]}"
    if name == "jpeg" and not _has_pillow():
        return "it needs Pillow, which is not installed: pip install 'secateur[vision]'"
    return ""


def _has_pillow() -> bool:
    from importlib.util import find_spec

    return find_spec("PIL") is not None


def in_unit(pixels: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Pixels within bounds as pixels in [0, 1]."""
    return ((pixels - bounds[0]) / (bounds[1] - bounds[0])).clamp(0, 1)


def out_of_unit(pixels: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Pixels in [0, 1] as pixels within bounds."""
    assert math.isfinite(bounds[1] - bounds[0])
    return pixels * (bounds[1] - bounds[0]) + bounds[0]
