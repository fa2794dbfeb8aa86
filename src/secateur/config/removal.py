"""Settings of a plan: what goes, at once or bit by bit."""

from dataclasses import dataclass
from typing import Literal

from secateur.config.base import Settings


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings):
    """What goes. Give at most one of threshold, budget, keep, max_drop and max_loss_increase; without any, the
    threshold is 0.8.

    Args:
        importance: criterion that scores each unit: l1, l2, lamp, fpgm, bn_scale, random; on 32 batches of the training
            data taylor, taylor_gate, fisher, activation, flap, apoz, softmax, wanda, reconstruction. "auto" is l2 for a
            threshold; for a budget or keep it tries reconstruction, l2 and flap on a part of these data, and takes
            what is nearest to the original on another; else it is reconstruction. Of
            secateur adapt it is fisher.
        compensate: how the weights that stay make up for those that went, on 32 batches of the training data, before
            fine-tuning: "lstsq" refits them by least squares, "merge" folds units that go into those that are most like
            them, "mean" makes up for their mean, "none" leaves them; "auto" is lstsq.
        threshold: a unit goes when its score is below this many times the mean score of its axis.
        budget: what the result may cost, the least valuable units going first: "macs=0.5" (a fraction of the
            original), "params=10000" or "macs=2.1G" (absolute), "latency=5ms" on this device, several with commas.
        keep: fraction of the units of every axis that stays, in (0, 1].
        max_drop: remove as much as can go while the accuracy on the validation split falls by at most so many
            percentage points, before fine-tuning: 0.5.
        max_loss_increase: the same for the loss on the validation split, which may rise by so much: 0.02.
        reduce: which cost max_drop and max_loss_increase bring down: macs, params or bytes.
        scope: with a budget, "global" ranks all units together, "local" makes every axis narrower alike; "isomorphic"
            ranks within each family of like axes, and makes every family narrower alike.
        min_units: units that every axis keeps at least; or a number for each pattern: "hidden=64,heads=2".
        multiple_of: sizes of pruned axes are multiples of this; or of a number for each pattern: "hidden=64,heads=1";
            or "auto": of the step between the widths at which this device is fast, by timing.
        max_share: largest share of the units of an axis that may go, in (0, 1]; or a share for each pattern:
            "hidden=0.75,heads=0.5".
        uniform: repeated blocks keep equal widths, and a model that is built from a config has them there.
        only: axes or modules to prune, by name or pattern; no others.
        ignore: axes or modules to leave alone, by name or pattern.
        keep_removed: keep what goes, and the old values of the rest, so that `secateur undo` gives the dense network.
    """

    importance: str = "auto"
    compensate: Literal["auto", "lstsq", "merge", "mean", "none"] = "auto"
    threshold: float | None = None
    budget: str | None = None
    keep: float | None = None
    max_drop: float | None = None
    max_loss_increase: float | None = None
    reduce: Literal["macs", "params", "bytes"] = "macs"
    scope: Literal["global", "local", "isomorphic"] = "global"
    min_units: int | str = 1
    multiple_of: int | str = 1
    max_share: float | str = 1.0
    uniform: bool = False
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    keep_removed: bool = False


@dataclass(frozen=True, kw_only=True)
class GradualSettings(Settings):
    """Pruning bit by bit, with training in between. It leads to a budget.

    Args:
        schedule: how the budgets of the steps lead to the last one: linear, cubic (much at first), geometric (the same
            share of what is left each time); "none" prunes at once.
        steps: how many.
        step_epochs: epochs of training between two steps; epochs are those after the last one.
        gradual: "cut" removes units in each step; "soft" fades them out during one training over all steps, and
            "regularised" draws them to zero by a growing penalty: both cut once, at its end.
        rewind: with "cut": "weights" begins again after each step with the weights that the dense network had early in
            its training in this run, "rates" repeats its learning rates from there on with the weights as they are;
            "none" does neither.
        rewind_at: how early: a share of the dense network's training, in [0, 1).
    """

    schedule: Literal["none", "linear", "cubic", "geometric"] = "none"
    steps: int = 8
    step_epochs: int = 1
    gradual: Literal["cut", "soft", "regularised"] = "cut"
    rewind: Literal["none", "weights", "rates"] = "none"
    rewind_at: float = 0.05
