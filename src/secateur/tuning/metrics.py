"""What a model is judged by besides its loss: a metric by name, one of torchmetrics, or a function.

Shape letters: N samples, C classes, T places of a text, M places with a label in all.
"""

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MissingExtra, TrainingError
from secateur.objectives import class_dim, logits_of
from secateur.tuning.distilling import is_causal
from secateur.tuning.processes import Processes

Function = Callable[[nn.Module, Iterable[Any]], float]
"""From a model in evaluation mode and all batches to a number."""

Metric = Any
"""A name (see `names`), a ``torchmetrics.Metric``, or a `Function`."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A metric of torchmetrics by name.

    Attributes:
        of: what the model gives: "classes", "numbers" or "tokens".
        within: the module of torchmetrics.
        name: of its class there, with Binary, Multiclass or Multilabel before it where the model gives classes.
        options: of the class.
        average: over classes, for those metrics that take one.
    """

    of: str
    within: str
    name: str
    options: Mapping[str, Any]
    average: str | None = None


def _classes(name: str, average: str = "macro") -> Named:
    return Named(of="classes", within="classification", name=name, options={}, average=average)


def _numbers(name: str, **options: Any) -> Named:
    return Named(of="numbers", within="regression", name=name, options=options)


NAMED: dict[str, Named] = {
    "accuracy": _classes("Accuracy", "micro"),
    "balanced_accuracy": _classes("Accuracy"),
    "f1": _classes("F1Score"),
    "precision": _classes("Precision"),
    "recall": _classes("Recall"),
    "auroc": _classes("AUROC"),
    "average_precision": _classes("AveragePrecision"),
    "iou": _classes("JaccardIndex"),
    "mse": _numbers("MeanSquaredError"),
    "rmse": _numbers("MeanSquaredError", squared=False),
    "mae": _numbers("MeanAbsoluteError"),
    "r2": _numbers("R2Score"),
    "perplexity": Named(of="tokens", within="text", name="Perplexity", options={}),
}


def names() -> list[str]:
    """The metrics that are known by name."""
    return list(NAMED)


def title(metric: Metric) -> str:
    """How results call a metric: by its name, else "metric"."""
    return metric if isinstance(metric, str) else "metric"


def check(metric: Metric) -> None:
    """See whether something is a metric.

    Raises:
        TrainingError: it is none.
        MissingExtra: torchmetrics is not installed.
    """
    if isinstance(metric, str):
        if metric not in NAMED:
            near = difflib.get_close_matches(metric, NAMED, 1)
            raise TrainingError(
                f"no metric is called {metric!r}; known are {', '.join(NAMED)}, or give a torchmetrics.Metric, or a "
                f"function (model, batches) -> number." + (f" Did you mean {near[0]!r}?" if near else "")
            )
        _torchmetrics()
    elif not callable(metric):
        raise TrainingError(
            f"metric is a {type(metric).__name__}: give a name, a torchmetrics.Metric, or a function "
            f"(model, batches) -> number"
        )


def larger_is_better(metric: Metric, said: bool | None) -> bool:
    """Whether larger values are better: as said, else as the metric says of itself, else (a function) yes.

    Raises:
        TrainingError: a metric of torchmetrics does not say.
    """
    if said is not None or metric is None:
        return said is not False
    if isinstance(metric, str):
        named = NAMED[metric]
        kind = f"Multiclass{named.name}" if named.of == "classes" else named.name
        return bool(_class(named.within, kind).higher_is_better)
    if not is_torchmetric(metric):
        return True
    if metric.higher_is_better is None:
        raise TrainingError(f"{type(metric).__name__} does not say whether larger is better: give larger=True or False")
    return bool(metric.higher_is_better)


def is_torchmetric(metric: Metric) -> bool:
    """Whether it is a metric of torchmetrics, or of somebody who builds on it."""
    return isinstance(metric, nn.Module) and callable(getattr(metric, "compute", None)) and hasattr(metric, "update")


class Meter:
    """Takes a metric over the batches of one pass.

    Args:
        metric: a name or a metric of torchmetrics, of which a copy is used.
        model: the model that is judged: its class says whether labels are moved by one, as in causal language models.
    """

    def __init__(self, metric: Metric, model: nn.Module, processes: Processes | None) -> None:
        self.metric, self.processes = metric, processes
        self.shifted = is_causal(model)
        self._taken: Any = None
        self._pairs: list[tuple[Tensor, Tensor]] = []

    @property
    def shared(self) -> bool:
        """Whether processes have parts of the samples each."""
        return self.processes is not None and self.processes.count > 1

    def add(self, output: Any, target: Any, counts: bool = True) -> None:
        """Count a batch in.

        Args:
            counts: whether its samples are this process's; every process sees at least the shapes of each batch.

        Raises:
            TrainingError: the metric can't be taken of what the model gives.
        """
        scores = logits_of(output)
        if scores is None or not isinstance(target, Tensor):
            raise TrainingError(
                f"metric={self._name} is taken of scores and targets; the model returned a {type(output).__name__} "
                f"and the target is a {type(target).__name__}. Give a function (model, batches) -> number instead"
            )
        scores = scores.detach()
        scores = scores.float() if scores.is_floating_point() else scores
        if self.shifted and scores.dim() == 3 and target.dim() == 2:
            scores, target = scores[:, :-1], target[:, 1:]
        if not counts:
            scores, target = scores[:0], target[:0]
        try:
            self._add(scores, target)
        except (ValueError, RuntimeError, TypeError) as error:
            raise TrainingError(
                f"metric={self._name} can't be taken of scores {tuple(scores.shape)} and targets "
                f"{tuple(target.shape)} ({target.dtype}): {' '.join(str(error).split())[:300]}"
            ) from error

    def value(self) -> float:
        """What all batches give, over all processes.

        Raises:
            TrainingError: no number.
        """
        if self._pairs:
            self._settle()
        if self._taken is None:
            raise TrainingError("nothing to take a metric of: the loader holds no batch")
        with warnings.catch_warnings():  # a process without a sample of its own
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")
            found: Any = self._taken.compute()
        if not isinstance(found, Tensor | float | int) or (isinstance(found, Tensor) and found.numel() != 1):
            raise TrainingError(f"metric={self._name} gives several values: let it give one number (average='macro')")
        return float(found)

    # ------------------------------------------------------------------ by kind

    def _add(self, scores: Tensor, target: Tensor) -> None:
        if not isinstance(self.metric, str):
            self._add_raw(scores, target)
            return
        named = NAMED[self.metric]
        if named.of == "numbers":
            self._add_numbers(named, scores, target)
        elif named.of == "tokens":
            scores, target = labelled(scores, target)
            self._put(named, named.name, {}, scores.device)
            if len(target):
                self._taken.update(scores[None], target[None])
        elif target.shape == scores.shape or scores.shape == (*target.shape, 1):
            self._pairs.append((scores.reshape(target.shape), target.long()))  # 0 or 1, each by itself
        else:
            scores, target = labelled(scores, target)
            kinds = scores.shape[1]
            self._put(named, f"Multiclass{named.name}", {"num_classes": kinds, "average": named.average}, scores.device)
            if len(target):
                self._taken.update(scores.softmax(1), target)

    def _add_numbers(self, named: Named, scores: Tensor, target: Tensor) -> None:
        if scores.shape != target.shape and scores.numel() == target.numel():
            scores = scores.reshape(target.shape)  # (N, 1) and (N,)
        if scores.shape != target.shape:
            raise ValueError("both must have one shape")
        self._put(named, named.name, {}, scores.device)
        if len(target):
            rows = len(target)
            self._taken.update(
                scores.reshape(rows, -1).squeeze(1), target.to(scores.dtype).reshape(rows, -1).squeeze(1)
            )

    def _add_raw(self, scores: Tensor, target: Tensor) -> None:
        if self._taken is None:
            self._taken = self._ready(self.metric.clone(), scores.device)
        tokens = type(self.metric).__name__ == "Perplexity"
        if not tokens and not target.is_floating_point() and scores.dim() == target.dim() + 1:
            scores = scores.movedim(class_dim(scores, target), 1)  # (N, C, T), as torchmetrics has it
        if len(target):
            self._taken.update(scores, target)

    def _settle(self) -> None:
        """Two classes, or labels that may hold together: scores outside [0, 1] anywhere make all of them logits."""
        assert isinstance(self.metric, str)
        named, first = NAMED[self.metric], self._pairs[0][0]
        outside = sum(int(((scores < 0) | (scores > 1)).sum()) for scores, _ in self._pairs)
        outside = self.processes.total(outside)[0] if self.shared and self.processes is not None else outside
        several = first.dim() > 1 and first.shape[1] > 1
        options = {"num_labels": first.shape[1], "average": named.average} if several else {}
        self._put(named, f"{'Multilabel' if several else 'Binary'}{named.name}", options, first.device)
        for scores, target in self._pairs:
            if len(target):
                scores, target = (scores, target) if several else (scores.reshape(-1), target.reshape(-1))
                self._taken.update(scores.sigmoid() if outside else scores, target)
        self._pairs = []

    def _put(self, named: Named, name: str, options: Mapping[str, Any], device: torch.device) -> None:
        """Make the metric, now that the model's outputs say for how many classes."""
        if self._taken is None:
            self._taken = self._ready(_class(named.within, name)(**named.options, **options), device)

    def _ready(self, metric: Any, device: torch.device) -> Any:
        metric.reset()
        metric.sync_on_compute = self.shared
        return metric.to(device)

    @property
    def _name(self) -> str:
        return repr(self.metric) if isinstance(self.metric, str) else type(self.metric).__name__


def labelled(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Class scores (M, C) and labels (M,) of the places that have a label.

    Args:
        scores: (N, C), (N, C, H, W, ...) or (N, T, C).
        target: a class for each place; below 0 there is none.
    """
    scores = scores.movedim(class_dim(scores, target), -1)
    if target.is_floating_point() or scores.shape[:-1] != target.shape:
        raise ValueError("the target must hold a class for each place of the scores")
    held = target >= 0
    return scores[held], target[held]


def function_of(metric: Metric | None) -> Function | None:
    """The metric, if it is a function of the model and the batches."""
    return None if metric is None or isinstance(metric, str) or is_torchmetric(metric) else metric


def of_function(metric: Function, model: nn.Module, batches: Iterable[Any]) -> float:
    """What a user's function says of a model that evaluates.

    Raises:
        TrainingError: it gives no number.
    """
    found: Any = metric(model, batches)
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"the metric gave a {type(found).__name__}, not a number: {error}") from error


def _class(within: str, name: str) -> Any:
    import importlib

    _torchmetrics()
    return getattr(importlib.import_module(f"torchmetrics.{within}"), name)


def _torchmetrics() -> None:
    try:
        import torchmetrics  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingExtra("torchmetrics", "tune", "a metric by name") from error
