"""Attacks to train by: how inputs are changed while a network learns, and in which mode it is attacked.

Shape letters: N samples, C classes.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.inputs import lasting
from secateur.modules import kept_modes
from secateur.safety.inputs import AUGMENTED, check_bounds, opened
from secateur.safety.threat import Norm, Scale, Threat, finite

Method = Literal["pgd", "trades"]
BatchLoss = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to one number, a mean over the samples."""
NUDGE = 1e-3  # standard deviation, in widths of the bounds, of the start of TRADES' attack


@dataclass(frozen=True)
class Adversarial:
    """How inputs are attacked while a network trains, and while its state is chosen.

    "pgd" minimises the loss at attacked inputs (Madry et al. 2018, "Towards Deep Learning Models Resistant to
    Adversarial Attacks", arXiv:1706.06083): a start at random in the ball, then ``steps`` steps up the training loss.
    "trades" minimises the loss at the inputs as they are plus beta times the Kullback-Leibler divergence of the class
    probabilities at attacked inputs from those (Zhang et al. 2019, "Theoretically Principled Trade-off between
    Robustness and Accuracy", arXiv:1901.08573); its attack climbs that divergence, from a start close to the input.

    The attack sees the network in evaluation mode, as TRADES' authors' code has it and Pang et al. 2021 ("Bag of Tricks
    for Adversarial Training", arXiv:2010.00467) advise: batch norms use their running statistics and leave them alone,
    and there is no dropout. Madry et al.'s own code attacks in training mode.

    Args:
        method: "pgd" or "trades".
        eps: radius of the ball, in pixel units, above 0.
        norm: "linf" or "l2".
        bounds: least and greatest value that a pixel can have.
        normalise: ``(mean, std)`` that inputs were scaled with, as for `Threat`; None where inputs are pixels.
        steps: of the attack while training, at least 1.
        step_size: of each, in pixel units, above 0; None is a quarter of eps, 2/255 where eps is 8/255.
        beta: weight of TRADES' divergence, at least 0; "pgd" has none.
        validation_steps: of the PGD attack on validation batches, at least 1 (Rice et al. 2020, "Overfitting in
            adversarially robust deep learning", arXiv:2002.11569, choose the epoch by PGD-10).

    Raises:
        ValueError: settings out of their range, all listed.

    Example:
        >>> Adversarial("trades", eps=4 / 255, normalise=(0.5, 0.25)).size == 1 / 255
        True
    """

    method: Method = "pgd"
    _: KW_ONLY
    eps: float = 8 / 255
    norm: Norm = "linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    normalise: tuple[Scale, Scale] | None = None
    steps: int = 7
    step_size: float | None = None
    beta: float = 6.0
    validation_steps: int = 10

    def __post_init__(self) -> None:
        counts = ("steps", "validation_steps")
        wrong = [f"method={self.method!r} must be 'pgd' or 'trades'"] * (self.method not in ("pgd", "trades"))
        wrong += [f"{n}={getattr(self, n)} must be a whole number from 1" for n in counts if not _count(self, n)]
        step, beta = self.step_size, self.beta
        wrong += [f"step_size={step} must be a number above 0"] * (step is not None and not (finite(step) and step > 0))
        wrong += [f"beta={beta} must be a number from 0"] * (not (finite(beta) and beta >= 0))
        try:
            _ = self.threat
        except ValueError as error:
            wrong.append(str(error))
        if wrong:
            raise ValueError(f"Adversarial: {'; '.join(wrong)}")

    @cached_property
    def threat(self) -> Threat:
        """The ball."""
        return Threat(eps=self.eps, norm=self.norm, bounds=self.bounds, normalise=self.normalise)

    @property
    def size(self) -> float:
        """Of a step, in pixel units."""
        return self.eps / 4 if self.step_size is None else self.step_size

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data."""
        return asdict(self)


def _count(settings: Adversarial, name: str) -> bool:
    value = getattr(settings, name)
    return isinstance(value, int) and value >= 1


def attack(
    model: nn.Module,
    batch: Any,
    loss: BatchLoss,
    settings: Adversarial,
    *,
    steps: int | None = None,
    close: bool = False,
    generator: torch.Generator | None = None,
) -> Any:
    """The batch with its inputs moved to where the loss is greater. The model is left as it was, and has no gradients.

    Args:
        model: attacked in evaluation mode.
        batch: on the model's device.
        loss: what is climbed. Samples must not mix in it, as they don't in a mean.
        settings: the ball and the steps.
        steps: None is ``settings.steps``.
        close: whether to start close to the inputs, not anywhere in the ball.
        generator: of the start, on the inputs' device; None draws from the global state.

    Returns:
        The batch in the form that it had, sequences as tuples.

    Raises:
        DataError: the batch has no inputs that can be attacked, or their pixels lie outside the bounds.
    """
    threat = settings.threat
    with kept_modes(model), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        inputs, put = opened(lasting(batch))
        pixels = threat.pixels(inputs).detach()
        check_bounds(threat, pixels, AUGMENTED)
        points = _close(threat, pixels, generator) if close else threat.start(pixels, generator)
        for _ in range(settings.steps if steps is None else steps):
            points = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model, put(threat.inputs(points))), points)
            with torch.no_grad():
                points = threat.project(threat.ascend(points, gradient, settings.size), pixels)
        return put(threat.inputs(points).detach())


def _close(threat: Threat, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
    """A normal nudge: right at the input the divergence has no gradient."""
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype)
    return threat.project(pixels + NUDGE * (threat.bounds[1] - threat.bounds[0]) * noise, pixels)
