"""Settings of what a pruning must not change."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from secateur.config.base import Settings


@dataclass(frozen=True, kw_only=True)
class ProtectSettings(Settings):
    """Data whose behaviour must not change. It goes with a budget, keep, max_drop or max_loss_increase, or with a
    criterion that looks at data.

    Args:
        protect: which data: as for --data; or "class:3" or "class:3,5", the samples of these classes among --data.
            Scores and refits see 32 batches of its training split, the report has figures on its test split.
        protect_args: keyword arguments for it, as --data-args are for --data.
        protect_share: weight of these data among all that scores and refits see, in [0, 1).
    """

    protect: str | None = None
    protect_args: dict[str, Any] = field(default_factory=dict[str, Any])
    protect_share: float = 0.5


def protect_problems(settings: Any) -> Iterable[str]:
    """What is wrong with the settings of protection among those of a run of ``secateur prune``."""
    if not 0 <= settings.protect_share < 1:
        yield f"protect_share={settings.protect_share} must be in [0, 1)"
    if settings.protect is None:
        if settings.protect_args:
            yield "protect_args are for protect, which is not given"
        if settings.protect_share != ProtectSettings.protect_share:
            yield f"protect_share={settings.protect_share} is for protect, which is not given"
        return
    if settings.schedule != "none":
        yield f"protect goes with pruning at once: leave out schedule={settings.schedule}"
    reached = (settings.budget, settings.keep, settings.max_drop, settings.max_loss_increase)
    if settings.importance == "auto" and all(value is None for value in reached):
        yield (
            "protect needs a criterion that looks at data, and with a threshold importance=auto is l2, which looks at "
            "weights alone: give a budget, or importance=reconstruction with the threshold"
        )
