"""A training loop in miniature for the tests of callbacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.tuning.callbacks import Callback


@dataclass
class Running:
    """What callbacks see, and the loop: ``loss(model)`` is minimised."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    epoch: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def go(
        self,
        callbacks: Sequence[Callback],
        loss: Callable[[nn.Module], Tensor],
        count: int | None = None,
        decay: float = 1.0,
    ) -> "Running":
        for callback in callbacks:
            callback.on_start(self)
        for _ in range(self.steps if count is None else count):
            self.optimizer.zero_grad()
            loss(self.model).backward()
            for callback in callbacks:
                callback.before_step(self)
            self.optimizer.step()
            self.step += 1
            for group in self.optimizer.param_groups:
                group["lr"] *= decay
            for callback in callbacks:
                callback.after_step(self)
        for callback in callbacks:
            callback.on_end(self)
        return self


def still(model: nn.Module) -> Tensor:
    """A loss whose gradients are zero."""
    return 0 * sum(p.sum() for p in model.parameters())  # type: ignore[return-value]
