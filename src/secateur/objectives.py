"""What a batch of data costs a model: forward, loss, accuracy, and the imitation of a teacher.

Shape letters: N samples in a batch, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from secateur.errors import TrainingError
from secateur.inputs import split_batch

Loss = Callable[[Any, Any], Tensor]


def forward(model: nn.Module, batch: Any, device: str | torch.device) -> tuple[Any, Any]:
    """The model's output on a batch, and the batch's target (its ``labels`` where it is a mapping), or None."""
    args, kwargs, target = tree_map_only(Tensor, lambda tensor: tensor.to(device), split_batch(batch))
    return model(*args, **kwargs), kwargs.get("labels") if target is None else target


def logits_of(output: Any) -> Tensor | None:
    """The class scores among a model's output: the output itself, its ``logits``, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return cast("Mapping[str, Any]", output).get("logits")
    if isinstance(output, tuple | list):
        return next((item for item in cast("tuple[Any, ...]", output) if isinstance(item, Tensor)), None)
    return getattr(output, "logits", None)


def loss_of(output: Any, target: Any, loss: Loss | None) -> Tensor:
    """The loss of one batch.

    Args:
        output: what the model returned.
        target: what it should have returned; None where the model computes its own loss.
        loss: ``(output, target) -> scalar``; None takes the model's own ``output.loss``, else cross-entropy.

    Raises:
        TrainingError: there is neither a loss nor a target to compute one from.
    """
    if loss is not None:
        return loss(output, target)
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    scores = logits_of(output)
    if target is None or scores is None:
        missing = "the batch has no target" if target is None else f"the model returned a {type(output).__name__}"
        raise TrainingError(f"no loss can be computed: {missing}. Give batches (inputs, target), or a loss of your own")
    return F.cross_entropy(scores, target)


def imitation(output: Any, taught: Any, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the model's class scores from the teacher's, times temperature squared.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    scores, wanted = logits_of(output), logits_of(taught)
    if scores is None or wanted is None or scores.shape != wanted.shape:
        raise TrainingError("the model can't imitate the teacher: both must return class scores of one shape")
    log_scores, log_wanted = (F.log_softmax(s / temperature, dim=1) for s in (scores, wanted))
    divergence = F.kl_div(log_scores, log_wanted, log_target=True, reduction="sum") / scores.shape[0]
    return divergence * temperature**2


@dataclass
class Totals:
    """Sums of loss and hits over samples, from which means are taken at the end."""

    loss_sum: float = 0.0
    samples: int = 0
    hits: int = 0
    labelled: int = 0

    def add(self, loss: float, output: Any, target: Any) -> None:
        """Count one batch in.

        Args:
            loss: its mean loss.
            output: class scores (N, C, ...).
            target: class labels (N, ...), those below 0 ignored; anything else counts towards the loss only.
        """
        scores = logits_of(output)
        size = scores.shape[0] if scores is not None and scores.dim() else 1
        self.loss_sum += loss * size
        self.samples += size
        if scores is None or not labels_fit(target, scores):
            return
        valid = target >= 0
        self.hits += int(((scores.argmax(1) == target) & valid).sum())
        self.labelled += int(valid.sum())

    @property
    def loss(self) -> float:
        """Mean loss of a sample."""
        return self.loss_sum / self.samples

    @property
    def accuracy(self) -> float | None:
        """Fraction of labels that were hit, None without labels."""
        return self.hits / self.labelled if self.labelled else None


def labels_fit(target: Any, scores: Tensor) -> bool:
    """Whether the target holds one class label for each place of the scores (N, C, ...)."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        return False
    return scores.dim() >= 2 and target.shape == scores.shape[:1] + scores.shape[2:]
