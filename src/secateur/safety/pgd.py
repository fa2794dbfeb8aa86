"""Attacks that climb the loss by its gradient: one step (FGSM) or many (PGD).

Shape letters: N samples, C classes.
"""

import torch
from torch import Tensor

from secateur.safety.hunt import Hunt, SampleLoss, Scores, look
from secateur.safety.losses import cross_entropy
from secateur.safety.threat import Threat

__all__ = ["SampleLoss", "Scores", "climb", "cross_entropy", "fgsm", "pgd"]


def climb(scores: Scores, pixels: Tensor, labels: Tensor, threat: Threat, loss: SampleLoss) -> tuple[Tensor, Tensor]:
    """Loss of each sample (N,) and its gradient with respect to the pixels. Parameters get no gradient."""
    seen = look(scores, pixels, labels, threat, loss)
    return seen.values, seen.slope


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
    stop: bool = False,
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
        stop: leave a sample at the first point that the network gets wrong, which is all that a test of robustness
            asks; else the loss is made as great as can be, which training wants.

    Returns:
        Changed inputs, scaled as the inputs are.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> changed = pgd(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat(eps=0.15))
        >>> changed, model(changed).argmax(1)
        (tensor([[0.4500, 0.5500]]), tensor([1]))
    """
    hunt = Hunt(threat.pixels(inputs).detach(), labels, stop=stop)
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    for _ in range(restarts):
        points = threat.start(hunt.pixels, generator)[hunt.rows]
        for step in range(steps + 1):
            if not len(hunt.rows):
                break
            seen = look(scores, points, hunt.wanted, threat, loss, gradient=step < steps)
            stay = hunt.see(points, seen)
            if step < steps:
                points = threat.project(threat.ascend(points[stay], seen.slope[stay], size), hunt.around)
    return threat.inputs(hunt.worst).detach()
