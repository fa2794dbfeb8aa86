"""What a batch of data costs a model: forward, loss, accuracy, and the imitation of a teacher.

Shape letters: N samples in a batch, C classes.
"""

import re
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
CAUSAL = re.compile(r"CausalLM|LMHead")  # classes of transformers that move labels by one themselves


def is_causal(model: nn.Module) -> bool:
    """Whether a model's scores at a place speak of the next place's label."""
    return bool(CAUSAL.search(type(model).__name__))


def forward(model: nn.Module, batch: Any, device: str | torch.device) -> tuple[Any, Any]:
    """The model's output on a batch, and the batch's target (its ``labels`` where it is a mapping), or None."""
    args, kwargs, target = tree_map_only(Tensor, lambda tensor: tensor.to(device), split_batch(batch))
    return model(*args, **kwargs), kwargs.get("labels") if target is None else target


def answer(
    model: nn.Module, batch: Any, device: str | torch.device, how: Callable[[nn.Module, Any], Any] | None = None
) -> tuple[Any, Any]:
    """The model's output on a batch, and the batch's target, in whatever form the batch is.

    Args:
        how: ``(model, batch) -> output``, where the model's inputs are not the batch's; the last item of a batch, or
            its "labels", is then the target.
    """
    if how is None:
        return forward(model, batch, device)
    batch = tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)
    if isinstance(batch, Mapping):
        target = cast("Mapping[str, Any]", batch).get("labels")
    else:
        target = batch[-1] if isinstance(batch, tuple | list) and len(cast("list[Any]", batch)) > 1 else None
    return how(model, batch), target


def logits_of(output: Any) -> Tensor | None:
    """The class scores among a model's output: the output itself, its ``logits``, or its first tensor but a loss."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return cast("Mapping[str, Any]", output).get("logits")
    if isinstance(output, tuple | list):
        items = [item for item in cast("tuple[Any, ...]", output) if isinstance(item, Tensor)]
        return items[1] if len(items) > 1 and not items[0].dim() else items[0] if items else None
    return getattr(output, "logits", None)


def own_loss(output: Any) -> Tensor | None:
    """The loss that a model computed itself: its output's ``loss``, or a scalar that is the output or its first item.

    Example:
        >>> own_loss((torch.tensor(0.5), torch.zeros(2, 3))), own_loss(torch.zeros(2, 3))
        (tensor(0.5000), None)
    """
    if isinstance(output, Mapping):
        found: Any = cast("Mapping[str, Any]", output).get("loss")
    elif isinstance(output, tuple | list) and not hasattr(output, "loss"):
        found = next(iter(cast("tuple[Any, ...]", output)), None)
        found = found if isinstance(found, Tensor) and not found.dim() else None
    elif isinstance(output, Tensor):
        found = None if output.dim() else output
    else:
        found = getattr(output, "loss", None)
    return found if isinstance(found, Tensor) else None


def loss_of(output: Any, target: Any, loss: Loss | None) -> Tensor:
    """The loss of one batch.

    Args:
        output: what the model returned.
        target: what it should have returned; None where the model computes its own loss.
        loss: ``(output, target) -> scalar``; None takes the model's own loss, else cross-entropy.

    Raises:
        TrainingError: there is neither a loss nor a target to compute one from, or it is not one number.
    """
    if loss is not None:
        return _one_number(loss(output, target), "the loss function gave")
    own = own_loss(output)
    if own is not None:
        return _one_number(own, "the model's own loss is")
    scores = logits_of(output)
    if target is None or scores is None:
        missing = "the batch has no target" if target is None else f"the model returned a {type(output).__name__}"
        raise TrainingError(f"no loss can be computed: {missing}. Give batches (inputs, target), or a loss of your own")
    return _cross_entropy(scores, target)


def _one_number(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise TrainingError(f"{what} {shown}: it must be one number in a tensor, such as loss.mean()")


def _cross_entropy(scores: Tensor, target: Any) -> Tensor:
    try:
        return F.cross_entropy(scores.movedim(class_dim(scores, target), 1) if scores.dim() > 1 else scores, target)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if "memory" in str(error):
            raise
        shown = f"{tuple(target.shape)} of {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
        raise TrainingError(
            f"no loss can be computed: cross-entropy does not fit scores {tuple(scores.shape)} and targets {shown} "
            f"({' '.join(str(error).split())[:200]}). Classes are whole numbers from 0, int64, one for each place of "
            f"the scores (N, C, ...); for anything else give loss=lambda output, target: ..."
        ) from error


def class_dim(scores: Tensor, target: Any = None) -> int:
    """Which dim of class scores the classes are along: 1 of (N, C) and (N, C, H, W, ...).

    Of three dims it is the last, as language models have it, (N, T, C), unless the target's shape says (N, C, T).
    """
    if scores.dim() != 3:
        return 1
    shape = target.shape if isinstance(target, Tensor) else None
    return 1 if shape != scores.shape[:2] and shape == (scores.shape[0], scores.shape[2]) else 2


def imitation(output: Any, taught: Any, temperature: float, target: Any = None, *, shift: bool = False) -> Tensor:
    """Kullback-Leibler divergence of the model's class scores from the teacher's, times temperature squared, as a mean
    over samples, and over the places of each that have a label.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.

    Args:
        output, taught: what the model and the teacher returned, with class scores (N, C), (N, C, H, W, ...), or of
            language models (N, T, C).
        temperature: softens both sides, above 0.
        target: where it holds a label for each place, (N,), (N, H, W) or (N, T), places with labels below 0 (-100, as
            padding has) don't count.
        shift: scores (N, T, C) at a place speak of the label at the next one, as in causal language models.

    Raises:
        TrainingError: there are no class scores of one shape, or only one score a place, which is no class.
    """
    scores, wanted = logits_of(output), logits_of(taught)
    if scores is None or wanted is None or scores.shape != wanted.shape or scores.dim() < 2:
        raise TrainingError("the model can't imitate the teacher: both must return class scores of one shape")
    dim = class_dim(scores, target)
    if scores.shape[dim] < 2:
        raise TrainingError(
            f"the model can't imitate the teacher: scores of shape {tuple(scores.shape)} hold one class only. Imitate "
            "features instead: Distillation(teacher, weight=0, features='auto')"
        )
    log_scores, log_wanted = (F.log_softmax(s.movedim(dim, -1).float() / temperature, -1) for s in (scores, wanted))
    divergence = F.kl_div(log_scores, log_wanted.to(scores.device), log_target=True, reduction="none").sum(
        -1
    )  # (N, places ...)
    counted = labelled_places(target, divergence, shift=shift)
    mean = divergence.mean() if counted is None else (divergence * counted).sum() / counted.sum().clamp_min(1)
    return mean * temperature**2


def labelled_places(target: Any, places: Tensor, *, shift: bool) -> Tensor | None:
    """Which places have a label, as a mask of their shape; None where the target says nothing of it."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != places.shape:
        return None
    counted = target.to(places.device) >= 0
    if shift and target.dim() == 2:
        counted = F.pad(counted[:, 1:], (0, 1))
    return counted


@dataclass
class Totals:
    """Sums of loss and hits over samples, from which means are taken at the end."""

    loss_sum: float = 0.0
    samples: int = 0
    hits: int = 0
    labelled: int = 0

    def add(
        self, loss: float, output: Any, target: Any, weight: float | None = None, samples: int | None = None
    ) -> None:
        """Count one batch in, or a part of one.

        Args:
            loss: its mean loss.
            weight: how many samples the loss counts for, of a part whose mean is over fewer labels than that of others.
            samples: how many there are; None takes the length of the scores, 1 where there are none.
            output: class scores (N, C, ...).
            target: class labels (N, ...), those below 0 ignored; anything else counts towards the loss only.
        """
        scores = logits_of(output)
        counted = scores.shape[0] if scores is not None and scores.dim() > 0 else 1
        size = counted if samples is None else samples
        self.loss_sum += loss * (size if weight is None else weight)
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
