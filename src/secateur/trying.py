"""Which hint to trust, by trial: each plans and refits a smaller model on a part of the data, and that one is taken
whose outputs on another part are nearest to the original's.

No hint is the best on every network: scores of reconstruction keep most of the ResNets and of the Llama that we
measured, magnitudes and the variance of activations most of a MobileNet (docs/accuracy.md).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batches, Forward
from secateur.calibration.watching import running
from secateur.compensation import compensate_
from secateur.compensation.compensate import distance
from secateur.errors import DataError, SurgeryError, TrainingError
from secateur.graph import Graph
from secateur.importance import Scores
from secateur.objectives import imitation
from secateur.planning import Plan
from secateur.progress import progress_bar
from secateur.protecting.settings import Protect
from secateur.tracing.surroundings import draws_as_found, seed_draws

HINTS = ("reconstruction", "l2", "flap")
"""What is tried: one hint by errors, one by weights, one by activations, none of which needs labels. The first is taken
where nothing can be tried."""
FITTED, JUDGED = 512, 2048  # samples at most
SHARE_FITTED, SHARE_JUDGED = 0.5, 0.5  # of all samples, at most


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of it.

    Attributes:
        chosen: the hint that is taken.
        distances: for each hint how far the outputs were from the original's, NaN where no model came of it.
        measure: "divergence", the Kullback-Leibler divergence of class probabilities in nats, a mean over samples and
            places; or "difference", the root mean square as a share of the original's.
        fitted, judged: samples that were fitted to, and others that were compared.
        protected: samples of data that are to be protected that were compared, too. Distances are then the mean of
            that on them and that on the others.
    """

    chosen: str
    distances: Mapping[str, float]
    measure: str
    fitted: int
    judged: int
    protected: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {
            "chosen": self.chosen,
            "distances": dict(self.distances),
            "measure": self.measure,
            "fitted": self.fitted,
            "judged": self.judged,
            **({"protected": self.protected} if self.protected else {}),
        }


def parts(model: nn.Module, data: Sequence[Any], forward: Forward | None) -> tuple[list[Any], list[Any]] | None:
    """Batches to fit to and others to judge by, the first ones of the data; None where there are too few."""
    sizes = [batch.samples for batch in Batches(model, data, forward)]
    fitted = _until(sizes, 0, min(FITTED, int(SHARE_FITTED * sum(sizes))))
    judged = _until(sizes, fitted, min(JUDGED, int(SHARE_JUDGED * sum(sizes))))
    return (list(data[:fitted]), list(data[fitted:judged])) if 0 < fitted < judged else None


def _until(sizes: Sequence[int], start: int, wanted: int) -> int:
    """The end of the fewest batches from a start that hold so many samples."""
    end = start
    while end < len(sizes) and sum(sizes[start:end]) < max(wanted, 1):
        end += 1
    return end


def try_hints(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Scores],
    pick: Callable[[Scores], Plan],
    fitted: Sequence[Any],
    judged: Sequence[Any],
    forward: Forward | None = None,
    protect: Protect | None = None,
) -> Trial:
    """Plan, cut and refit once for each hint, and compare. The model stays as it is.

    Class scores (see `secateur.objectives.logits_of`) are compared as probabilities; other outputs, and those whose
    targets are no classes, as numbers.

    Args:
        model: the original.
        graph: what tracing found.
        scores: what each hint gives.
        pick: makes a plan of scores.
        fitted, judged: batches; see `parts`.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        protect: data whose behaviour must not change: half of their batches are fitted to, too, and the others, or a
            single one again, count as much in the comparison as all of ``judged``.

    Raises:
        PlanError: no plan can be made.
        DataError: the original does not run on the data.
    """
    guard, special = _protected(model, protect, forward)
    sets = [judged, *([special] if special else [])]
    wanted = [_outputs(model, part, forward) for part in sets]
    smaller: dict[str, list[list[Any]]] = {}
    with progress_bar("Trying hints", len(scores)) as step:
        for name, values in scores.items():
            made = pick(values)
            try:
                small = made.apply(model)
                compensate_(model, small, graph, made, fitted, forward=forward, protect=guard)
                smaller[name] = [_outputs(small, part, forward) for part in sets]
            except (SurgeryError, DataError):  # code that holds a size in disguise: the proof finds the axis
                pass
            step()
    classes = not any(_is_real(batch.target) for batch in Batches(model, judged, forward))
    measure, found = _compared(wanted, smaller, classes=classes)
    distances = {name: found.get(name, float("nan")) for name in scores}
    known = {name: value for name, value in distances.items() if value == value}
    return Trial(
        chosen=min(known, key=known.__getitem__) if known else next(iter(scores)),
        distances=distances,
        measure=measure,
        fitted=_samples(model, fitted, forward),
        judged=_samples(model, judged, forward),
        protected=_samples(model, special, forward),
    )


def _protected(
    model: nn.Module, protect: Protect | None, forward: Forward | None
) -> tuple[Protect | None, Sequence[Any]]:
    """The protected data to fit to, and those to judge by."""
    if protect is None:
        return None, ()
    halves = parts(model, protect.batches, forward)
    if halves is None:
        return protect, protect.batches
    return replace(protect, data=tuple(halves[0])), halves[1]


def _samples(model: nn.Module, data: Sequence[Any], forward: Forward | None) -> int:
    return sum(batch.samples for batch in Batches(model, data, forward))


def _compared(
    wanted: Sequence[Sequence[Any]], smaller: Mapping[str, Sequence[Sequence[Any]]], *, classes: bool
) -> tuple[str, dict[str, float]]:
    """How far outputs are from the wanted ones, as a mean over data sets, and by which measure."""

    def by(measure: Callable[[Any, Any], float]) -> dict[str, float]:
        return {
            name: sum(_mean(measure, a, b) for a, b in zip(wanted, got, strict=True)) / len(wanted)
            for name, got in smaller.items()
        }

    if classes:
        with suppress(TrainingError):  # no class scores
            return "divergence", by(_divergence)
    return "difference", by(distance)


def _outputs(model: nn.Module, data: Sequence[Any], forward: Forward | None) -> list[Any]:
    found: list[Any] = []
    with torch.no_grad(), draws_as_found():
        for batch in Batches(model, data, forward):
            seed_draws()
            found.append(batch.run(running(model)))
    return found


def _is_real(target: Any) -> bool:
    return isinstance(target, Tensor) and target.is_floating_point()


def _divergence(wanted: Any, got: Any) -> float:
    return float(imitation(got, wanted, 1.0))


def _mean(measure: Callable[[Any, Any], float], wanted: Sequence[Any], got: Sequence[Any]) -> float:
    return float(torch.tensor([measure(a, b) for a, b in zip(wanted, got, strict=True)], dtype=torch.float64).mean())
