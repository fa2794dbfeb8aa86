"""What a step minimises."""

from typing import Any

from torch import Tensor, nn

from secateur.objectives import Loss, forward, loss_of
from secateur.safety.adversarial import Adversarial
from secateur.tuning.distilling import Lesson
from secateur.tuning.gradients import Objective
from secateur.tuning.processes import Processes
from secateur.tuning.robust import robust_objective


def objective(
    these: Processes, loss: Loss | None, lesson: Lesson | None, adversarial: Adversarial | None = None
) -> Objective:
    """From a batch to its loss, with or without a teacher and attacks, the model's output and the target."""
    if adversarial is not None:
        return robust_objective(these, loss, lesson, adversarial)

    def compute(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        with these.accelerator.autocast():
            output, target = forward(model, batch, these.device)
            own = loss_of(output, target, loss)
            return own if lesson is None else lesson(own, output, batch, target), output, target

    return compute
