"""An exponential moving average of the weights, to be validated and kept in their stead."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError


class Average:
    """Averages of parameters and floating-point buffers: average = decay * average + (1 - decay) * weights.

    Early in a run the decay is (1 + steps) / (10 + steps) where that is less, so that the start is soon forgotten.
    Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging".

    Args:
        decay: in (0, 1), such as 0.999.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise TrainingError(f"ema={decay} must be in (0, 1), such as 0.999")
        self.decay, self.steps = decay, 0
        self.weights = {name: value.to(_wide(value.dtype), copy=True) for name, value in _averaged(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Count the present weights in."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = _averaged(model)
        values = [now[name].to(average.dtype) for name, average in self.weights.items()]
        torch._foreach_lerp_(list(self.weights.values()), values, weight)

    @contextmanager
    def swapped(self, model: nn.Module) -> Generator[None]:
        """The model has the averages inside."""
        own = _averaged(model)
        kept = {name: value.detach().clone() for name, value in own.items()}
        _copy(own, self.weights)
        try:
            yield
        finally:
            _copy(own, kept)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self.steps, "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps = state["steps"]
        _copy(self.weights, state["weights"])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: value for name, value in tensors.items() if value.is_floating_point()}


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In half precision a thousandth more would be lost in rounding."""
    return torch.promote_types(dtype, torch.float32)


@torch.no_grad()
def _copy(into: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in into.items():
        value.copy_(values[name])
