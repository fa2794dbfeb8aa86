"""What an attack has found so far: the worst point of each sample, and the samples that it still works on.

Shape letters: N samples, R of them still worked on, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.safety.threat import Threat, spread

Scores = Callable[[Tensor], Tensor]
SampleLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """What a network says of some points.

    Attributes:
        values: loss of each, (R,).
        wrong: whether the label is not the class with the highest score, (R,).
        gradient: of the losses with respect to the pixels, as the points; None where nobody asked.
    """

    values: Tensor
    wrong: Tensor
    gradient: Tensor | None

    @property
    def slope(self) -> Tensor:
        """The gradient, which was asked for."""
        assert self.gradient is not None
        return self.gradient


def look(
    scores: Scores, pixels: Tensor, labels: Tensor, threat: Threat, loss: SampleLoss, *, gradient: bool = True
) -> Seen:
    """Run the network on points. Parameters get no gradient; where none reaches the pixels, it is 0."""
    with torch.set_grad_enabled(gradient):
        points = pixels.detach().requires_grad_(gradient)
        said = scores(threat.inputs(points))
        values = loss(said, labels)
        slope = _slope(values, points) if gradient else None
    return Seen(values=values.detach(), wrong=said.detach().argmax(1) != labels, gradient=slope)


def _slope(values: Tensor, points: Tensor) -> Tensor:
    if not values.requires_grad:  # the network cuts it off, by argmax or detach
        return torch.zeros_like(points)
    return torch.autograd.grad(values.sum(), points, allow_unused=True, materialize_grads=True)[0]


class Hunt:
    """The samples that an attack is after.

    Args:
        pixels: (N, ...), where they lie.
        labels: (N,).
        stop: leave a sample alone at the first point that the network gets wrong.

    Attributes:
        worst: (N, ...), the point of each with the greatest loss; with ``stop``, one that is got wrong comes first.
        rows: (R,), which samples are still worked on.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, *, stop: bool) -> None:
        self.pixels, self.labels, self.stop = pixels, labels, stop
        self.worst = pixels.clone()
        self.highest = torch.full((len(pixels),), -torch.inf, device=pixels.device)
        self.wrong = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        self.rows = torch.arange(len(pixels), device=pixels.device)

    @property
    def around(self) -> Tensor:
        """Where the samples lie that are still worked on, (R, ...)."""
        return self.pixels[self.rows]

    @property
    def wanted(self) -> Tensor:
        """Their labels, (R,)."""
        return self.labels[self.rows]

    def see(self, points: Tensor, seen: Seen) -> Tensor:
        """Take note of points, one for each sample that is still worked on; a mask (R,) of those that stay so."""
        caught = seen.wrong if self.stop else torch.zeros_like(seen.wrong)
        better = caught | (seen.values > self.highest[self.rows])
        self.worst[self.rows] = torch.where(spread(better, points), points, self.worst[self.rows])
        self.highest[self.rows] = torch.where(better, seen.values.to(self.highest.dtype), self.highest[self.rows])
        self.wrong[self.rows] |= caught
        self.rows = self.rows[~caught]
        return ~caught
