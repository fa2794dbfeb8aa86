"""How far outputs spread, against how far they should."""

from dataclasses import dataclass, field

from torch import Tensor

from secateur.calibration.found import wide


@dataclass
class Spread:
    """Sums over rows of outputs as they are and as they should be, each (R, C)."""

    rows: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, now: Tensor, target: Tensor) -> None:
        """Count rows in."""
        self.rows += len(now)
        for name, values in (("now", now), ("target", target)):
            for power, new in ((1, wide(values).sum(0)), (2, wide(values).square().sum(0))):
                key = f"{name}{power}"
                self.parts[key] = self.parts[key] + new if key in self.parts else new

    def ratio(self) -> Tensor:
        """Variance as it is by the variance as it should be, (C,), within bounds that a norm can live with."""
        now, target = (
            (self.parts[f"{name}2"] / self.rows - (self.parts[f"{name}1"] / self.rows).square()).clamp_min(0)
            for name in ("now", "target")
        )
        return ((now + 1e-8) / (target + 1e-8)).clamp(1e-3, 1e3)
