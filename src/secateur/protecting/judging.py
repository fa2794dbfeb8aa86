"""How far a smaller model behaves as the original does on some data.

Shape letters: N samples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batch, Batches, Forward
from secateur.calibration.watching import running
from secateur.compensation.compensate import distance
from secateur.errors import TrainingError
from secateur.objectives import class_dim, imitation, labelled_places, labels_fit, logits_of
from secateur.tracing.surroundings import draws_as_found, quiet_backends, seed_draws

SAMPLES = 4096  # that are looked at, at most


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A model on a data set, beside the original.

    Attributes:
        samples: how many.
        accuracy: share of labels that were hit, in [0, 1]; None without class labels.
        agreement: share of answers, the class of the highest score, that are the original's, in [0, 1]; None without
            class scores.
        divergence: Kullback-Leibler divergence of its class probabilities from the original's, in nats, a mean over
            samples; None without class scores.
        difference: root mean square of the difference of the outputs as a share of the original's, where there are no
            class scores; else None.
    """

    samples: int
    accuracy: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data without what was not measured."""
        return {name: value for name, value in vars(self).items() if value is not None}


def behaviours(
    model: nn.Module, others: Sequence[nn.Module], data: Sequence[Any], forward: Forward | None, *, causal: bool = False
) -> list[Behaviour]:
    """The behaviour of the original itself, and of other models beside it, on up to 4,096 samples.

    Args:
        model: the original; it and the others stay as they are.
        others: models that take the same inputs.
        data: batches.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        causal: scores at a place speak of the label at the next one.
    """
    models = [model, *others]
    found = [_Sums() for _ in models]
    copies = [running(one) for one in models]
    with torch.no_grad(), draws_as_found(), quiet_backends(model):
        for batch in Batches(model, data, forward, name="data to measure on"):
            if found[0].samples >= SAMPLES:
                break
            outputs = [_output(copy, batch) for copy in copies if batch.samples]
            for sums, output in zip(found, outputs, strict=False):
                sums.add(outputs[0], output, batch, causal=causal)
    return [sums.behaviour() for sums in found]


def _output(model: nn.Module, batch: Batch) -> Any:
    seed_draws()
    return batch.run(model)


@dataclass
class _Sums:
    """Sums over samples; ``places`` are those with an answer, ``labels`` those with a label."""

    samples: int = 0
    hits: int = 0
    labels: int = 0
    same: int = 0
    places: int = 0
    divergence: float = 0.0
    difference: float = 0.0

    def add(self, wanted: Any, got: Any, batch: Batch, *, causal: bool) -> None:
        """Count one batch in."""
        target = batch.target
        self.samples += batch.samples
        scores, own = logits_of(wanted), logits_of(got)
        numbers = isinstance(target, Tensor) and target.is_floating_point()
        try:
            apart = None if numbers else float(imitation(got, wanted, 1.0, target, shift=causal))
        except TrainingError:  # no class scores
            apart = None
        if apart is None:
            self.difference += distance(wanted, got) * batch.samples
            return
        assert scores is not None
        assert own is not None
        self.divergence += apart * batch.samples
        dim = class_dim(scores, target)
        answers, theirs = own.argmax(dim), scores.argmax(dim)
        counted = labelled_places(target, answers, shift=causal)
        counted = torch.ones_like(answers, dtype=torch.bool) if counted is None else counted.bool()
        self.same += int(((answers == theirs) & counted).sum())
        self.places += int(counted.sum())
        if isinstance(target, Tensor) and labels_fit(target, own) and own.dim() != 3:
            valid = target >= 0
            self.hits += int(((answers == target) & valid).sum())
            self.labels += int(valid.sum())

    def behaviour(self) -> Behaviour:
        """The means."""
        if not self.places:
            return Behaviour(samples=self.samples, difference=self.difference / max(self.samples, 1))
        return Behaviour(
            samples=self.samples,
            accuracy=self.hits / self.labels if self.labels else None,
            agreement=self.same / self.places,
            divergence=self.divergence / self.samples,
        )
