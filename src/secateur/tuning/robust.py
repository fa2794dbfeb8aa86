"""What a step of adversarial training minimises, and validation under attack."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.modules import kept_modes
from secateur.objectives import Loss, forward, imitation, loss_of
from secateur.safety.adversarial import Adversarial, attack
from secateur.tuning.distilling import Lesson
from secateur.tuning.gradients import Objective
from secateur.tuning.processes import Processes


def robust_objective(these: Processes, loss: Loss | None, lesson: Lesson | None, settings: Adversarial) -> Objective:
    """From a batch to its loss under attack, with or without a teacher, the output under attack and the target.

    A teacher sees the inputs that labels are compared at: attacked ones with "pgd", those of the batch with "trades".
    Its features are then compared at the same inputs, too.
    Differs: the teacher of Goldblum et al. 2020, "Adversarially Robust Distillation", arXiv:1905.09747, sees the inputs
    as they are, and the student attacked ones.
    """
    attacker = Attacker.of(settings, these, loss)

    def at_attacked(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        hard = attacker(_bare(these, model), batch)
        _forget(lesson)
        with these.accelerator.autocast():
            output, target = forward(model, hard, these.device)
            own = loss_of(output, target, loss)
            return own if lesson is None else lesson(own, output, hard, target), output, target

    def at_both(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        hard = attacker.apart(_bare(these, model), batch)
        with these.accelerator.autocast():
            attacked, _ = forward(model, hard, these.device)
            _forget(lesson)
            output, target = forward(model, batch, these.device)
            own = loss_of(output, target, loss)
            own = own if lesson is None else lesson(own, output, batch, target)
            return own + settings.beta * imitation(attacked, output, 1.0, target), attacked, target

    return at_attacked if settings.method == "pgd" else at_both


@dataclass(frozen=True)
class Attacker:
    """Attacks batches of a run.

    Args:
        settings: how.
        device: where batches go.
        loss: as for `tune`.
        precision: what the model runs in.
    """

    settings: Adversarial
    device: str | torch.device
    loss: Loss | None
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext

    @staticmethod
    def of(settings: Adversarial, these: Processes, loss: Loss | None) -> "Attacker":
        """One for a run. Gradients with respect to inputs vanish in fp16, where nothing scales the loss of an attack:
        there it runs in full precision."""
        full = partial(torch.autocast, these.device.type, enabled=False)
        halved = these.accelerator.mixed_precision == "fp16"
        return Attacker(settings, these.device, loss, full if halved else these.accelerator.autocast)

    def __call__(self, model: nn.Module, batch: Any, steps: int | None = None) -> Any:
        """The batch where the loss is greater."""

        def climbed(model: nn.Module, batch: Any) -> Tensor:
            return loss_of(*forward(model, batch, self.device), self.loss)

        with self.precision():  # a context of its own: autocast keeps the weights that it cast, with no gradient here
            return attack(model, _moved(batch, self.device), climbed, self.settings, steps=steps)

    def apart(self, model: nn.Module, batch: Any) -> Any:
        """The batch where the answers are farthest from those at the batch as it is."""
        batch = _moved(batch, self.device)
        with self.precision():
            with kept_modes(model), torch.no_grad():
                wanted, target = forward(model.eval(), batch, self.device)

            def climbed(model: nn.Module, batch: Any) -> Tensor:
                return imitation(forward(model, batch, self.device)[0], wanted, 1.0, target)

            return attack(model, batch, climbed, self.settings, close=True)

    def validating(self, model: nn.Module, batch: Any) -> Any:
        """The batch where the loss is greater, by as many steps as validation has."""
        return self(model, batch, self.settings.validation_steps)


def _bare(these: Processes, model: nn.Module) -> nn.Module:
    """The model without DDP around it, whose forward prepares for an exchange of gradients."""
    return model if these.count == 1 else these.unwrap(model)


def _forget(lesson: Lesson | None) -> None:
    """Drop the features of passes that were not for the lesson."""
    if lesson is not None:
        lesson.learnt.clear()


def _moved(batch: Any, device: str | torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)
