"""How much worse a smaller model may get, in the unit of the user's own metric, on data that was held out."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.errors import DataError, PlanError, TrainingError
from secateur.inputs import split_batch
from secateur.objectives import Loss, Totals, answer, labels_fit, logits_of, loss_of
from secateur.tracing.running import describe_inputs

Metric = Callable[[nn.Module, Iterable[Any]], float]
ROUNDING = 1e-9  # by which a metric may miss a bound


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The most that a metric on held-out data may get worse.

    Args:
        setting: "max_drop" of a metric of which more is better, or "max_loss_increase".
        amount: by how much, in the metric's own unit, at least 0.
        batches: the held-out data, iterable again and again.
        metric: ``(model, batches) -> number``, called in evaluation mode without gradients. None is the accuracy in
            percentage points for "max_drop", the mean loss of a sample for "max_loss_increase".
        loss: ``(output, target) -> scalar``; None is the model's own ``output.loss``, else cross-entropy.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's; the last item of a batch,
            or its "labels", is then the target.
        seed: of what is random in the data, so that every model sees the same.
    """

    setting: str
    amount: float
    batches: Iterable[Any]
    metric: Metric | None = None
    loss: Loss | None = None
    forward: Forward | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What the metric is called."""
        if self.metric is not None:
            return str(getattr(self.metric, "__name__", type(self.metric).__name__))
        return "accuracy" if self.setting == "max_drop" else "loss"

    @property
    def unit(self) -> str:
        """The metric's unit; empty where it has none, or none that we know."""
        return "points" if self.name == "accuracy" and self.metric is None else ""

    def measure(self, model: nn.Module) -> float:
        """The metric of a model in evaluation mode; NaN where the model gives NaN.

        Raises:
            DataError: the data is empty, lacks what the metric needs, or the model does not run on it.
            PlanError: the user's metric gives no number.
        """
        devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(self.seed)
            if self.metric is not None:
                return _number(self.metric(model, self.batches), self.name)
            return self._accuracy(model) if self.setting == "max_drop" else self._loss(model)

    def measure_dense(self, model: nn.Module) -> float:
        """The metric of the original.

        Raises:
            DataError: it is not finite, or as for `measure`.
        """
        value = self.measure(model)
        if not math.isfinite(value):
            raise DataError(
                f"the {self.name} of {type(model).__name__} on the held-out data is {value}, so there is no bound to "
                "keep to. Look for NaN in the data of validate=, or load sound weights"
            )
        return value

    def worse(self, dense: float, value: float) -> float:
        """By how much a value is worse than that of the original; below 0 where it is better."""
        return dense - value if self.setting == "max_drop" else value - dense

    def meets(self, dense: float, value: float) -> bool:
        """Whether a value is within the bound; NaN never is."""
        return self.worse(dense, value) <= self.amount + ROUNDING

    def _accuracy(self, model: nn.Module) -> float:
        totals = Totals()
        for number, output, target in self._answers(model):
            _check_labels(number, output, target)
            wrecked = bool(cast("Tensor", logits_of(output)).isnan().any())  # argmax calls NaN the largest
            totals.add(math.nan if wrecked else 0.0, output, target)
        if not totals.labelled:
            raise DataError("max_drop counts right answers, and no sample of the held-out data has a label")
        return math.nan if math.isnan(totals.loss_sum) else 100 * totals.hits / totals.labelled

    def _loss(self, model: nn.Module) -> float:
        totals = Totals()
        for number, output, target in self._answers(model):
            try:
                totals.add(loss_of(output, target, self.loss).item(), output, None)
            except TrainingError as error:
                raise DataError(
                    f"max_loss_increase needs a loss, but on batch {number} of validate= {error}"
                ) from error
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise DataError(
                    f"the loss can't be computed on batch {number} of validate=, with outputs {_shape(output)} and "
                    f"targets {_shape(target)}: {_line(error)}"
                ) from error
        return totals.loss

    def _answers(self, model: nn.Module) -> Iterator[tuple[int, Any, Any]]:
        """Number, output and target of each batch that holds a sample."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        empty = True
        for number, batch in enumerate(self.batches):
            try:
                output, target = answer(model, batch, device, self.forward)
            except Exception as error:
                raise DataError(
                    f"{type(model).__name__} does not run on batch {number} of validate=, {_inputs(batch)}: "
                    f"{_line(error)}. A batch is a tensor, a mapping, or a pair (inputs, labels)"
                ) from error
            scores = logits_of(output)
            if scores is None or not scores.dim() or scores.shape[0]:
                empty = False
                yield number, output, target
        if empty:
            raise DataError("the held-out data is empty: validate= holds no batch with a sample in it")


def bound(
    choices: Mapping[str, object],
    *,
    validate: Iterable[Any] | None,
    metric: Metric | None,
    loss: Loss | None,
    forward: Forward | None = None,
    seed: int,
) -> Bound | None:
    """The bound that was asked for, or None.

    Args:
        choices: budget, threshold, keep, max_drop and max_loss_increase, of which at most one may be given.

    Raises:
        PlanError: arguments that contradict each other.
        DataError: held-out data that is none.
    """
    given = [name for name, value in choices.items() if value is not None]
    if len(given) > 1:
        raise PlanError(f"give exactly one of {', '.join(choices)}; got {' and '.join(given)}")
    setting = given[0] if given else "budget"
    if setting not in ("max_drop", "max_loss_increase"):
        spare = [name for name, value in (("validate", validate), ("metric", metric)) if value is not None]
        if spare:
            raise PlanError(f"{' and '.join(spare)} only mean something with max_drop= or max_loss_increase=")
        return None
    if metric is not None and setting == "max_loss_increase":
        raise PlanError("max_loss_increase is of the loss: give loss= instead of metric=, or max_drop= with the metric")
    if metric is not None and not callable(metric):
        raise PlanError(f"metric={metric!r}: give a callable (model, batches) -> number, of which more is better")
    amount = choices[setting]
    if type(amount) not in (int, float) or not 0 <= cast("float", amount) < math.inf:
        raise PlanError(f"{setting}={amount!r}: give a number from 0, such as {_EXAMPLES[setting]}")
    return Bound(
        setting=setting,
        amount=float(cast("float", amount)),
        batches=_again(validate, setting),
        metric=metric,
        loss=loss,
        forward=forward,
        seed=seed,
    )


_EXAMPLES = {"max_drop": "0.5 (percentage points of accuracy)", "max_loss_increase": "0.02"}


def _again(validate: Iterable[Any] | None, setting: str) -> Iterable[Any]:
    """The held-out data, if it can be iterated again and again."""
    if validate is None:
        raise PlanError(f"{setting} needs held-out data to measure on: validate=[(inputs, labels), ...]")
    if isinstance(validate, Tensor | Mapping | str) or not isinstance(validate, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(
            f"validate= is a {type(validate).__name__}: give batches, such as [(inputs, labels)] or a DataLoader"
        )
    if isinstance(validate, Iterator):
        raise DataError(
            f"validate= is a {type(validate).__name__}, which can be iterated only once, but every round measures on "
            "it: give a list or a DataLoader"
        )
    return validate


def _check_labels(number: int, output: Any, target: Any) -> None:
    """Refuse a batch whose right answers can't be counted."""
    other = "give metric=, or max_loss_increase= instead"
    if target is None:
        raise DataError(
            f"max_drop counts right answers, but batch {number} of validate= has no labels: give batches "
            f"(inputs, labels), as in [(inputs, labels)]; or {other}"
        )
    scores = logits_of(output)
    if scores is None or not labels_fit(target, scores):
        raise DataError(
            f"max_drop counts right answers, but on batch {number} of validate= the outputs are {_shape(output)} and "
            f"the labels {_shape(target)}: outputs (N, classes) need whole numbers (N,); for anything else {other}"
        )


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"the metric {name} gave {_shape(value)}, but must give a number: {_line(error)}") from error


def _shape(value: Any) -> str:
    """What a value is, in a few words."""
    tensor = value if isinstance(value, Tensor) else logits_of(value)
    if isinstance(tensor, Tensor):
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return "missing" if value is None else f"a {type(value).__name__}"


def _inputs(batch: Any) -> str:
    try:
        positional, keywords, _ = split_batch(batch)
    except TypeError:
        return f"a {type(batch).__name__}"
    return describe_inputs(positional, keywords)


def _line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
