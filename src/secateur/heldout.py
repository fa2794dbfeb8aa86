"""How much worse a smaller model may get, in the unit of the user's own metric, on data that was held out."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.calibration.batches import Forward
from secateur.errors import DataError, PlanError, SecateurError, TrainingError
from secateur.inputs import split_batch
from secateur.objectives import Loss, Totals, answer, labels_fit, logits_of, loss_of
from secateur.safety.adversarial import Adversarial, attack
from secateur.safety.batches import AttackedView
from secateur.tracing.running import describe_inputs

Metric = Callable[[nn.Module, Iterable[Any]], float]
ROUNDING = 1e-9  # by which a metric may miss a bound


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The most that a metric on held-out data may get worse.

    Args:
        setting: "max_drop" of a metric of which more is better, "max_robust_drop" of the same under attack, or
            "max_loss_increase".
        amount: by how much, in the metric's own unit, at least 0.
        batches: the held-out data, iterable again and again.
        metric: ``(model, batches) -> number``, called in evaluation mode without gradients. None is the accuracy in
            percentage points, the mean loss of a sample for "max_loss_increase".
        loss: ``(output, target) -> scalar``; None is the model's own ``output.loss``, else cross-entropy.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's; the last item of a batch,
            or its "labels", is then the target.
        seed: of what is random in the data and in attacks, so that every model sees the same.
        attack: on each batch and each model anew, for "max_robust_drop": PGD of ``validation_steps``.
    """

    setting: str
    amount: float
    batches: Iterable[Any]
    metric: Metric | None = None
    loss: Loss | None = None
    forward: Forward | None = None
    seed: int = 0
    attack: Adversarial | None = None

    @property
    def name(self) -> str:
        """What the metric is called."""
        named: Any = getattr(self.metric, "__name__", type(self.metric).__name__)
        plain = ("accuracy" if self.more_is_better else "loss") if self.metric is None else str(named)
        return plain if self.attack is None else f"robust {plain}"

    @property
    def unit(self) -> str:
        """The metric's unit; empty where it has none, or none that we know."""
        return "points" if self.more_is_better and self.metric is None else ""

    @property
    def more_is_better(self) -> bool:
        """Whether a fall of the metric is what is bounded."""
        return self.setting != "max_loss_increase"

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
                seen = self.batches if self.attack is None else AttackedView(self.batches, model, self._attacked)
                return _number(self.metric(model, seen), self.name)
            return self._accuracy(model) if self.more_is_better else self._loss(model)

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
        return dense - value if self.more_is_better else value - dense

    def meets(self, dense: float, value: float) -> bool:
        """Whether a value is within the bound; NaN never is."""
        return self.worse(dense, value) <= self.amount + ROUNDING

    def _accuracy(self, model: nn.Module) -> float:
        totals = Totals()
        for number, output, target in self._answers(model):
            _check_labels(self.setting, number, output, target)
            wrecked = bool(cast("Tensor", logits_of(output)).isnan().any())  # argmax calls NaN the largest
            totals.add(math.nan if wrecked else 0.0, output, target)
        if not totals.labelled:
            raise DataError(f"{self.setting} counts right answers, and no sample of the held-out data has a label")
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
                seen = batch if self.attack is None else self._attacked(model, batch)
                output, target = answer(model, seen, device, self.forward)
            except SecateurError as error:
                raise DataError(f"batch {number} of validate=: {error}") from error
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

    def _attacked(self, model: nn.Module, batch: Any) -> Any:
        """The batch where the model's loss is greater."""
        assert self.attack is not None
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        batch = tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)

        def climbed(model: nn.Module, batch: Any) -> Tensor:
            return loss_of(*answer(model, batch, device, self.forward), self.loss)

        return attack(model, batch, climbed, self.attack, steps=self.attack.validation_steps)


def bounds(
    choices: Mapping[str, object],
    floor: float | None,
    *,
    adversarial: Adversarial | None,
    validate: Iterable[Any] | None,
    metric: Metric | None,
    loss: Loss | None,
    forward: Forward | None = None,
    seed: int,
) -> tuple[Bound, ...]:
    """All bounds that were asked for, the one without attacks first, since it is measured sooner.

    Args:
        choices: as for `bound`.
        floor: max_robust_drop; None where there is none. It goes with a budget or with another bound, or alone.
        adversarial: the attack of the floor.

    Raises:
        PlanError: arguments that contradict each other.
        DataError: held-out data that is none.
    """
    common: dict[str, Any] = {"loss": loss, "forward": forward, "seed": seed}
    given = [name for name, value in choices.items() if value is not None]
    alone = floor is not None and not set(given) & {"max_drop", "max_loss_increase"}
    shown: dict[str, Any] = {} if alone else {"validate": validate, "metric": metric}
    first = bound(choices, **{"validate": None, "metric": None, **shown}, **common)
    if floor is None:
        return () if first is None else (first,)
    if set(given) & {"threshold", "keep"}:
        raise PlanError(
            f"max_robust_drop goes with budget=, max_drop= or max_loss_increase=, or alone; got {given[0]}, which says "
            "by itself what goes"
        )
    if adversarial is None:
        raise PlanError(
            "max_robust_drop needs to know the attack: adversarial=sc.Adversarial(eps=8/255, normalise=(mean, std))"
        )
    own = metric if "max_loss_increase" not in given else None
    second = bound({"max_robust_drop": floor}, validate=validate, metric=own, **common)
    assert second is not None
    return (*(() if first is None else (first,)), replace(second, attack=adversarial))


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
    if setting not in _EXAMPLES:
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


_EXAMPLES = {
    "max_drop": "0.5 (percentage points of accuracy)",
    "max_loss_increase": "0.02",
    "max_robust_drop": "1.0 (percentage points of accuracy under attack)",
}


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


def _check_labels(setting: str, number: int, output: Any, target: Any) -> None:
    """Refuse a batch whose right answers can't be counted."""
    other = "give metric=, or max_loss_increase= instead"
    if target is None:
        raise DataError(
            f"{setting} counts right answers, but batch {number} of validate= has no labels: give batches "
            f"(inputs, labels), as in [(inputs, labels)]; or {other}"
        )
    scores = logits_of(output)
    if scores is None or not labels_fit(target, scores):
        raise DataError(
            f"{setting} counts right answers, but on batch {number} of validate= the outputs are {_shape(output)} and "
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
