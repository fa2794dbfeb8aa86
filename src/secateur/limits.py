"""Several bounds on held-out data, which must all hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.heldout import Bound


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one bound says of a smaller model.

    Attributes:
        bound: which.
        dense, value: the metric of the original, and of the smaller model.
    """

    bound: Bound
    dense: float
    value: float

    @property
    def worse(self) -> float:
        """By how much the smaller model is worse; below 0 where it is better."""
        return self.bound.worse(self.dense, self.value)

    @property
    def met(self) -> bool:
        """Whether that is within the bound."""
        return self.bound.meets(self.dense, self.value)

    def describe(self) -> str:
        """In a few words."""
        unit = f" {self.bound.unit}" if self.bound.unit else ""
        return f"{self.bound.name} {abs(self.worse):.3g}{unit} {'worse' if self.worse > 0 else 'better'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {
            "setting": self.bound.setting,
            "bound": self.bound.amount,
            "metric": self.bound.name,
            "unit": self.bound.unit,
            "dense": self.dense,
            "pruned": self.value,
            "worse": self.worse,
        }


class Limits:
    """Bounds on held-out data, with what the original reaches.

    Args:
        bounds: at least one, those that are measured sooner first.
        model: the original in evaluation mode.

    Raises:
        DataError: the original's metric is not finite, or the data are none.
    """

    def __init__(self, bounds: Sequence[Bound], model: nn.Module) -> None:
        self.bounds = tuple(bounds)
        self.dense = [bound.measure_dense(model) for bound in self.bounds]

    def read(self, model: nn.Module) -> list[Reading]:
        """What the bounds say of a smaller model in evaluation mode, up to the first that is broken."""
        found: list[Reading] = []
        for bound, dense in zip(self.bounds, self.dense, strict=True):
            found.append(Reading(bound=bound, dense=dense, value=bound.measure(model)))
            if not found[-1].met:
                break
        return found
