"""What an attacker may do to an input: how far, in which norm, within which bounds.

Shape letters: N samples, C channels. An input is (N, C, ...) or (N, ...).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from secateur.errors import ConfigError, DataError

Scale = float | Sequence[float]
Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class Threat:
    """All points within `eps` of an input, in pixel units.

    Args:
        eps: radius of the ball, in pixel units (those of `bounds`), above 0.
        norm: ``"linf"``, the largest change of a single value; ``"l2"``, the root of the summed squares over a sample.
        bounds: least and greatest value that a pixel can have.
        normalise: ``(mean, std)`` that inputs were scaled with, ``input = (pixel - mean) / std``: a number each, or one
            for each channel (dim 1). None where inputs are pixels.

    Raises:
        ConfigError: a setting out of its range.

    Example:
        >>> threat = Threat(eps=0.1, normalise=(0.5, 0.25))
        >>> threat.pixels(torch.tensor([[0.0, 2.0]])), threat.inputs(torch.tensor([[0.5, 1.0]]))
        (tensor([[0.5000, 1.0000]]), tensor([[0., 2.]]))
        >>> threat.project(torch.tensor([[0.9, 0.45]]), torch.tensor([[0.5, 0.5]]))
        tensor([[0.6000, 0.4500]])
    """

    eps: float = 8 / 255
    norm: Norm = "linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    normalise: tuple[Scale, Scale] | None = None

    def __post_init__(self) -> None:
        wrong = list[str]()
        if not (finite(self.eps) and self.eps > 0):
            wrong.append(f"eps={self.eps!r}: the radius must be a number above 0, in pixel units, such as 8/255")
        if self.norm not in ("linf", "l2"):
            wrong.append(f"norm={self.norm!r}: it must be 'linf' or 'l2'")
        if unfit := unfit_bounds(self.bounds):
            wrong.append(f"bounds={self.bounds}: {unfit}")
        if unfit := unfit_scale(self.normalise):
            wrong.append(f"normalise={self.normalise}: {unfit}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    def pixels(self, inputs: Tensor) -> Tensor:
        """Inputs of the network as pixels.

        Raises:
            DataError: they have other channels than `normalise`.
        """
        if self.normalise is None:
            return inputs
        mean, std = self._scale(inputs)
        return inputs * std + mean

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels as inputs of the network."""
        if self.normalise is None:
            return pixels
        mean, std = self._scale(pixels)
        return (pixels - mean) / std

    def start(self, around: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random point of the ball: uniform in L-inf; in L2 uniform in direction and in volume."""
        if self.norm == "linf":
            noise = torch.rand(around.shape, generator=generator, device=around.device, dtype=around.dtype)
            return self.project(around + (2 * noise - 1) * self.eps, around)
        noise = torch.randn(around.shape, generator=generator, device=around.device, dtype=around.dtype)
        share = torch.rand(len(around), generator=generator, device=around.device, dtype=around.dtype)
        radius = self.eps * share ** (1 / around[0].numel())
        return self.project(around + noise / lengths(noise) * spread(radius, around), around)

    def ascend(self, points: Tensor, gradient: Tensor, step: float | Tensor) -> Tensor:
        """Points moved along the gradient: by its sign in L-inf, by its direction in L2.

        Args:
            step: how far, in pixel units; one number, or one for each sample (N,).
        """
        size = spread(step, points) if isinstance(step, Tensor) else step
        return points + size * (gradient.sign() if self.norm == "linf" else gradient / lengths(gradient))

    def project(self, points: Tensor, around: Tensor) -> Tensor:
        """The nearest points of the ball, then of the bounds."""
        change = points - around
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / lengths(change)).clamp_max(1)
        return (around + change).clamp(*self.bounds)

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (1, C, 1, ...) where there is one for each channel."""
        assert self.normalise is not None
        mean, std = (torch.as_tensor(s, dtype=like.dtype, device=like.device) for s in self.normalise)
        channels = max(mean.numel(), std.numel())
        if channels not in (1, like.shape[1]):
            raise DataError(
                f"normalise={self.normalise} is for {channels} channels, but inputs {tuple(like.shape)} have "
                f"{like.shape[1]}: give a number each, or one for each channel"
            )
        shape = (1, -1) + (1,) * (like.dim() - 2)
        return (mean.reshape(shape) if mean.dim() else mean), (std.reshape(shape) if std.dim() else std)


def finite(value: Any) -> bool:
    """Whether it is a number, neither NaN nor infinite."""
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def unfit_bounds(bounds: Any) -> str:
    """What is wrong with bounds, and what to give; empty where nothing is.

    >>> unfit_bounds((1, 0)), unfit_bounds((0, 255))
    ('the first must be below the second, such as (0, 1) or (0, 255)', '')
    """
    try:
        low, high = bounds
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (finite(low) and finite(high)):
        return "give two numbers, such as (0, 1) or (0, 255)"
    return "" if low < high else "the first must be below the second, such as (0, 1) or (0, 255)"


def unfit_scale(normalise: Any) -> str:
    """What is wrong with a mean and a deviation, and what to give; empty where nothing is.

    >>> unfit_scale((0.5, 0.0)), unfit_scale((0.5, (0.2, 0.3))), unfit_scale(None)
    ('deviations must be above 0', '', '')
    """
    if normalise is None:
        return ""
    try:
        mean, std = (torch.as_tensor(side, dtype=torch.float64) for side in normalise)
    except (TypeError, ValueError, RuntimeError):
        return "give a pair (mean, std), each a number or one for each channel"
    counts = mean.numel(), std.numel()
    if not all(counts):
        return "give a pair (mean, std), each a number or one for each channel"
    if not bool(mean.isfinite().all() and std.isfinite().all()):
        return "means and deviations must be finite"
    if not bool((std > 0).all()):
        return "deviations must be above 0"
    return "" if 1 in counts or counts[0] == counts[1] else f"{counts[0]} means, but {counts[1]} deviations"


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One value for each sample, (N,) -> (N, 1, ...), to multiply tensors like `like` with."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def lengths(change: Tensor) -> Tensor:
    """The L2 norm of each sample's change, (N, ...) -> (N, 1, ...), never quite 0."""
    return spread(change.flatten(1).norm(dim=1).clamp_min(1e-12), change)
