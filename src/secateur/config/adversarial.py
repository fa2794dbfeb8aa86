"""Settings of training against attacks, and of pruning that keeps what withstands them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from secateur.config.base import Settings
from secateur.config.robust import RobustSettings, pair, radii, scale
from secateur.safety.adversarial import Adversarial


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(Settings):
    """How training is attacked; eps, bounds and normalise say what attacks may do.

    Args:
        adversarial: "pgd" trains on attacked inputs, "trades" on inputs as they are and so that attacks change the
            answers little; the epoch is then chosen by what holds under attack, and importance is computed at attacked
            inputs. "none" attacks nothing.
        attack_steps: steps of each attack while training.
        attack_step: how far each goes, in the unit of the pixels: 2/255; by default a quarter of eps.
        beta: weight of "trades" on answers that stay, against answers that are right.
    """

    adversarial: Literal["none", "pgd", "trades"] = "none"
    attack_steps: int = 7
    attack_step: str | None = None
    beta: float = 6.0


@dataclass(frozen=True, kw_only=True)
class FloorSettings(AdversarialSettings):
    """The same, and how much robustness pruning may cost.

    Args:
        max_robust_drop: remove only so much that the accuracy under attack on the validation split falls by at most so
            many percentage points, before fine-tuning: 1.0. A budget is then reached only as far as that allows.
    """

    max_robust_drop: float | None = None


def adversarial_problems(settings: RobustSettings, how: AdversarialSettings, *, attacked: bool) -> Iterable[str]:
    """What is wrong with the texts and numbers.

    Args:
        settings, how: the same settings, as what each knows.
        attacked: whether anything is attacked while training or pruning.
    """
    if not attacked:
        return
    try:
        _attack(settings, how, None)
    except ValueError as error:
        yield str(error)


def attack_of(settings: RobustSettings, how: AdversarialSettings, scaled: tuple[Any, Any] | None) -> Adversarial:
    """The attack as `secateur.tuning.tune` takes it; of PGD where none was named.

    Args:
        settings, how: as for `adversarial_problems`.
        scaled: mean and deviation that the data say of themselves.
    """
    return _attack(settings, how, scaled)


def _attack(settings: RobustSettings, how: AdversarialSettings, scaled: tuple[Any, Any] | None) -> Adversarial:
    found = radii(settings.eps)
    if len(found) > 1:
        raise ValueError(f"eps={settings.eps}: training and pruning are for one norm: give one radius, such as 8/255")
    (norm, eps), normalise = next(iter(found.items())), scale(settings.normalise)
    step = None if how.attack_step is None else next(iter(radii(how.attack_step).values()))
    return Adversarial(
        "pgd" if how.adversarial == "none" else how.adversarial,
        eps=eps,
        norm=norm,
        bounds=pair(settings.bounds),
        normalise=scaled if normalise == "auto" else normalise,
        steps=how.attack_steps,
        step_size=step,
        beta=how.beta,
    )
