"""Calibration data under attack: what is computed of them is then about what an attacker does.

A criterion of the loss becomes one of the robust loss: at its attacked inputs, the gradient of the loss is the gradient
of the greatest loss within the ball (Danskin's theorem; Madry et al. 2018, arXiv:1706.06083, section 2.1).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.calibration.batches import Forward, checked
from secateur.calibration.watching import running
from secateur.errors import DataError
from secateur.inputs import known_length, lasting
from secateur.modules import named_tensors
from secateur.objectives import Loss, answer, class_dim, imitation, logits_of, loss_of, own_loss
from secateur.progress import progress_bar
from secateur.safety.adversarial import Adversarial, BatchLoss, attack
from secateur.safety.inputs import opened


def attacked(
    model: nn.Module,
    data: Iterable[Any],
    settings: Adversarial,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> list[Any]:
    """Batches with their inputs moved to where the model's loss is greater, in a list to be used again and again.

    Hand them to `score` for importance by the robust loss, as HYDRA has it for weights (Sehwag et al. 2020, "HYDRA:
    Pruning Adversarially Robust Neural Networks", arXiv:2002.10509), by any criterion that looks at data.
    Differs: HYDRA learns a score for each weight by training; here any criterion's formula is taken at attacked inputs.

    Args:
        model: attacked in evaluation mode; left as it was.
        data: batches as for `score`. Without labels the attack is on the class that the model names itself.
        settings: the attack. "trades" moves inputs to where answers are farthest from those at the inputs as they are.
        loss: ``(output, target) -> scalar``; None is the model's own, else cross-entropy.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        seed: of the random starts: a batch's hang on the seed and its number.

    Raises:
        DataError: a batch can't be attacked, naming it.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> batch = torch.tensor([[0.9, 0.1]]), torch.tensor([0])
        >>> attacked(model, [batch], Adversarial(eps=0.25))[0][0]
        tensor([[0.6500, 0.3500]])
    """
    device = next((t.device for t in named_tensors(model).values()), torch.device("cpu"))
    found = list[Any]()
    with torch.inference_mode(False), progress_bar("Attacking calibration data", known_length(data) or 0) as step:
        model = running(model)
        for number, batch in enumerate(checked(data)):
            inside = lasting(tree_map_only(Tensor, lambda tensor: tensor.to(device), batch))
            try:
                generator = torch.Generator(device).manual_seed(_mixed_seed(seed, number))
                close = settings.method == "trades"
                climbed = _climbed(model, inside, loss, forward, device, apart=close)
                hard = attack(model, inside, climbed, settings, close=close, generator=generator)
            except DataError as error:
                raise DataError(f"batch {number} of the data: {error}") from error
            home = opened(batch)[0].device
            found.append(tree_map_only(Tensor, lambda tensor, to=home: tensor.to(to), hard))
            step()
    return found


@dataclass(frozen=True)
class AttackedView:
    """Batches that are attacked as they are read, for a metric that runs the model itself."""

    batches: Iterable[Any]
    model: nn.Module
    attack: Callable[[nn.Module, Any], Any]

    def __iter__(self) -> Iterator[Any]:
        return (self.attack(self.model, batch) for batch in self.batches)


def alternating(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Batches of two lists in turns, so that what is fitted to them serves both.

    >>> alternating([1, 2], [3, 4])
    [1, 3, 2, 4]
    """
    return list(chain.from_iterable(zip(first, second, strict=True)))


def _climbed(
    model: nn.Module, batch: Any, loss: Loss | None, forward: Forward | None, device: torch.device, *, apart: bool
) -> BatchLoss:
    """What an attack on a batch climbs."""
    with torch.no_grad():
        output, target = answer(model, batch, device, forward)
    if apart:
        return lambda model, batch: imitation(answer(model, batch, device, forward)[0], output, 1.0, target)
    if target is None and own_loss(output) is None and loss is None:
        target = _named(output)
    return lambda model, batch: loss_of(answer(model, batch, device, forward)[0], target, loss)


def _named(output: Any) -> Tensor:
    """The classes that the model names itself."""
    scores = logits_of(output)
    if scores is None or scores.dim() < 2:
        raise DataError(
            f"without labels the attack is on the class that the model names, but it returns a "
            f"{type(output).__name__}: give batches (inputs, target)"
        )
    return scores.argmax(class_dim(scores))


def _mixed_seed(seed: int, number: int) -> int:
    """A seed for each batch of each seed."""
    return (seed * 1_000_003 + number) % 2**63
