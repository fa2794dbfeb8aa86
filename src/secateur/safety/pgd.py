"""Attacks that climb the loss by its gradient: one step (FGSM) or many (PGD).

Shape letters: N samples, C classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.safety.threat import Threat, spread

Scores = Callable[[Tensor], Tensor]
SampleLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample, (N, C), (N,) -> (N,)."""
    return F.cross_entropy(scores, labels, reduction="none")


def climb(scores: Scores, pixels: Tensor, labels: Tensor, threat: Threat, loss: SampleLoss) -> tuple[Tensor, Tensor]:
    """Loss of each sample (N,) and its gradient with respect to the pixels. Parameters get no gradient."""
    with torch.enable_grad():
        points = pixels.detach().requires_grad_()
        values = loss(scores(threat.inputs(points)), labels)
        (gradient,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), gradient


def fgsm(scores: Scores, inputs: Tensor, labels: Tensor, threat: Threat, *, loss: SampleLoss = cross_entropy) -> Tensor:
    """One step of the whole radius along the gradient.

    Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", arXiv:1412.6572. In L2 the step goes along
    the gradient's direction.

    Args: as `pgd`.

    Returns:
        Changed inputs, scaled as the inputs are.
    """
    pixels = threat.pixels(inputs)
    _, gradient = climb(scores, pixels, labels, threat, loss)
    return threat.inputs(threat.project(threat.ascend(pixels, gradient, threat.eps), pixels)).detach()


def pgd(
    scores: Scores,
    inputs: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: SampleLoss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Steps along the gradient from random points of the ball, each projected back; the worst point of all is kept.

    Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv:1706.06083.
    Differs: of all points that were visited the one with the greatest loss is taken, not the last one.

    Args:
        scores: from inputs to class scores (N, C); the model in the mode that it is attacked in.
        inputs: (N, ...), scaled as the network wants them.
        labels: (N,).
        threat: the ball.
        steps: gradient steps of each restart, at least 1.
        step_size: of one, in pixel units; None takes 2.5 * eps / steps, which can cross the ball.
        restarts: random starts, at least 1.
        loss: of each sample, (N, C), (N,) -> (N,); the attack makes it greater.
        generator: of the random starts, on the inputs' device.

    Returns:
        Changed inputs, scaled as the inputs are.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> changed = pgd(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat(eps=0.15))
        >>> changed, model(changed).argmax(1)
        (tensor([[0.4500, 0.5500]]), tensor([1]))
    """
    pixels = threat.pixels(inputs).detach()
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    best, highest = pixels, torch.full((len(pixels),), -torch.inf, device=pixels.device)
    for _ in range(restarts):
        points = threat.start(pixels, generator)
        for _ in range(steps):
            values, gradient = climb(scores, points, labels, threat, loss)
            best, highest = _worse(points, values, best, highest)
            points = threat.project(threat.ascend(points, gradient, size), pixels)
        with torch.no_grad():
            values = loss(scores(threat.inputs(points)), labels)
        best, highest = _worse(points, values, best, highest)
    return threat.inputs(best).detach()


def _worse(points: Tensor, values: Tensor, best: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """The points with the greater loss, sample by sample."""
    better = values > highest
    return torch.where(spread(better, points), points, best), torch.where(better, values, highest)
