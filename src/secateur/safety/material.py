"""What a pruning looks at: batches that scores come of, and batches that weights are refitted to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from secateur import trying
from secateur.calibration.batches import Forward
from secateur.errors import PlanError
from secateur.objectives import Loss
from secateur.safety.adversarial import Adversarial
from secateur.safety.batches import alternating, attacked


@dataclass(frozen=True, kw_only=True)
class Material:
    """Calibration data, by use.

    Attributes:
        scored: what importance is computed on, and hints are judged on; None where there are no data.
        refitted: what compensation fits to.
        each: how many batches of ``refitted`` there are for one of ``scored``.
    """

    scored: Iterable[Any] | None
    refitted: Iterable[Any] | None
    each: int = 1

    def listed(self) -> "Material":
        """The same in lists, to be cut into parts."""
        if self.scored is self.refitted:
            data = self.scored if isinstance(self.scored, Sequence) else list(self.scored or ())
            return Material(scored=data, refitted=data)
        return self

    def parts(self, model: nn.Module, forward: Forward | None) -> tuple[Sequence[Any], Sequence[Any]] | None:
        """Batches to refit to and others to judge hints by; None where there are too few. It must be `listed`."""
        found = trying.parts(model, cast("Sequence[Any]", self.scored), forward)
        if found is None:
            return None
        return cast("Sequence[Any]", self.refitted)[: self.each * len(found[0])], found[1]


def material(
    model: nn.Module,
    data: Iterable[Any] | None,
    adversarial: Adversarial | None,
    loss: Loss | None,
    forward: Forward | None,
    seed: int,
    *,
    bounded: bool = False,
) -> Material:
    """The data for both uses; with attacks, attacked batches for scores, and these and the data in turns to refit to.

    Args:
        bounded: the attacks are for held-out data, too, so that data for calibration may lack.

    Raises:
        PlanError: there are attacks, but no data.
    """
    if adversarial is None or (data is None and bounded):
        return Material(scored=data, refitted=data)
    if data is None:
        raise PlanError("adversarial= attacks the calibration data, and there are none: give data=[(inputs, target)]")
    plain = list(data)
    hard = attacked(model, plain, adversarial, loss=loss, forward=forward, seed=seed)
    return Material(scored=hard, refitted=alternating(plain, hard), each=2)
