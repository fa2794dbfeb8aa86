"""Metrics by name, of torchmetrics and by function, against numbers by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import MissingExtra, TrainingError
from secateur.tuning import Callback, evaluate, metrics, tune

Given = tuple[Tensor, Tensor]


def classes() -> list[Given]:
    """Six samples of three classes, in uneven batches; scores are inputs. Answers 0 0 1 2 2 1 to labels 0 1 1 2 2 0."""
    answers, labels = torch.tensor([0, 0, 1, 2, 2, 1]), torch.tensor([0, 1, 1, 2, 2, 0])
    scores = 3 * F.one_hot(answers, 3).float()
    return [(scores[:4], labels[:4]), (scores[4:], labels[4:])]


def value(metric: Any, batches: list[Any], model: nn.Module | None = None, **options: Any) -> float:
    found = evaluate(model or nn.Identity(), batches, metric=metric, **options)
    return found[metrics.title(metric)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 4 / 6),
        ("balanced_accuracy", (1 / 2 + 1 / 2 + 1) / 3),
        ("precision", (1 / 2 + 1 / 2 + 1) / 3),
        ("recall", (1 / 2 + 1 / 2 + 1) / 3),
        ("f1", (1 / 2 + 1 / 2 + 1) / 3),
        ("iou", (1 / 3 + 1 / 3 + 1) / 3),
        ("auroc", (5 / 8 + 5 / 8 + 1) / 3),  # of 2 x 4 pairs 3 are right and 4 are even, twice
    ],
)
def test_metrics_of_classes_by_hand(name: str, expected: float) -> None:
    assert value(name, classes()) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "expected"), [("mse", 2.5), ("rmse", math.sqrt(2.5)), ("mae", 1.5), ("r2", -1.0)])
@pytest.mark.parametrize("wide", [False, True])
def test_metrics_of_numbers_by_hand(name: str, expected: float, wide: bool) -> None:
    """Errors 1, 2, 1, 2 of targets 0, 1, 2, 3, whose variance is 1.25; (N, 1) and (N,) are the same."""
    target = torch.tensor([0.0, 1.0, 2.0, 3.0])
    given = target + torch.tensor([1.0, -2.0, -1.0, 2.0])
    given = given[:, None] if wide else given
    found = value(name, [(given[:3], target[:3]), (given[3:], target[3:])], loss=lambda o, t: o.mean())
    assert found == pytest.approx(expected)


def test_two_classes_by_one_score() -> None:
    """Logits where any score is outside [0, 1], else probabilities: the first batch alone would not tell."""
    target = torch.tensor([0.0, 1.0, 1.0, 0.0])
    loss = F.binary_cross_entropy_with_logits
    logits = torch.tensor([0.2, 0.9, 4.0, -3.0])
    given = [(logits[:2], target[:2]), (logits[2:], target[2:])]
    assert value("accuracy", given, loss=loss) == 0.75
    assert value("auroc", given, loss=loss) == 1
    chances = torch.tensor([[0.2], [0.9], [0.6], [0.4]])
    assert value("accuracy", [(chances, target)], loss=lambda o, t: o.mean()) == 1


def test_labels_that_hold_together() -> None:
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    scores = torch.tensor([[2.0, -1.0], [2.0, -1.0], [-1.0, 2.0]])
    given = [(scores, target)]
    assert value("accuracy", given, loss=F.binary_cross_entropy_with_logits) == pytest.approx(5 / 6)
    assert value("f1", given, loss=F.binary_cross_entropy_with_logits) == pytest.approx((1 + 2 / 3) / 2)


def test_a_label_for_each_pixel_and_those_that_are_ignored() -> None:
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1, 0] = 1
    assert value("accuracy", [(scores, torch.tensor([[[1, 1], [1, -100]]]))]) == pytest.approx(2 / 3)


class TinyForCausalLM(nn.Module):
    """Says the same of every next token; its loss is moved by one, as in transformers."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        scores = torch.tensor([0.5, 0.25, 0.25]).log().expand(*x.shape, 3)
        assert labels is not None
        loss = F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=scores)


def test_perplexity_by_hand() -> None:
    """The first label is no prediction's, and -100 is none: 0 0 1 are left, with chances 1/2 1/2 1/4."""
    labels = torch.tensor([[2, 0, 0, 1, -100]])
    batch = {"x": torch.zeros(1, 5, dtype=torch.long), "labels": labels}
    expected = (2 * 2 * 4) ** (1 / 3)
    assert value("perplexity", [batch], TinyForCausalLM()) == pytest.approx(expected)
    assert value("accuracy", [batch], TinyForCausalLM()) == pytest.approx(2 / 3)


def test_perplexity_without_a_shift_is_that_of_the_loss() -> None:
    scores, labels = torch.randn(2, 4, 3), torch.randint(0, 3, (2, 4))
    found = evaluate(
        nn.Identity(),
        [(scores, labels)],
        loss=lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()),
        metric="perplexity",
    )
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-5)


def test_a_metric_of_torchmetrics_is_copied() -> None:
    from torchmetrics.classification import MulticlassCohenKappa

    kappa = MulticlassCohenKappa(3)
    answers, labels = [0, 0, 1, 2, 2, 1], [0, 1, 1, 2, 2, 0]
    agreed = sum(a == b for a, b in zip(answers, labels, strict=True)) / 6
    chance = sum(answers.count(k) * labels.count(k) for k in range(3)) / 36
    assert value(kappa, classes()) == pytest.approx((agreed - chance) / (1 - chance))
    assert kappa.update_count == 0


def test_texts_reach_torchmetrics_with_classes_first() -> None:
    from torchmetrics.classification import MulticlassAccuracy
    from torchmetrics.text import Perplexity

    batch = {"x": torch.zeros(1, 4, dtype=torch.long), "labels": torch.tensor([[2, 0, 0, 1]])}
    assert value(MulticlassAccuracy(3, average="micro"), [batch], TinyForCausalLM()) == pytest.approx(2 / 3)
    assert value(Perplexity(), [batch], TinyForCausalLM()) == pytest.approx((2 * 2 * 4) ** (1 / 3))


def test_a_function_gets_a_model_that_evaluates() -> None:
    model = nn.Dropout(0.5).train()

    def count(given: nn.Module, batches: Any) -> Tensor:
        assert not given.training
        assert not torch.is_grad_enabled()
        return torch.tensor(len(list(batches)))

    assert value(count, classes(), model) == 2
    assert model.training


@pytest.mark.parametrize(
    ("metric", "said", "larger"),
    [
        ("accuracy", None, True),
        ("auroc", None, True),
        ("r2", None, True),
        ("mse", None, False),
        ("perplexity", None, False),
        ("mse", True, True),
        (None, None, True),
        (max, None, True),
        (max, False, False),
    ],
)
def test_whether_larger_is_better(metric: Any, said: bool | None, larger: bool) -> None:
    assert metrics.larger_is_better(metric, said) is larger


def test_whether_larger_is_better_comes_from_torchmetrics() -> None:
    from torchmetrics import MeanMetric, MeanSquaredError
    from torchmetrics.classification import MulticlassF1Score

    assert metrics.larger_is_better(MulticlassF1Score(3), None) is True
    assert metrics.larger_is_better(MeanSquaredError(), None) is False
    with pytest.raises(TrainingError, match="MeanMetric does not say whether larger is better: give larger="):
        metrics.larger_is_better(MeanMetric(), None)


def points() -> list[Given]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, generator=generator)
    return [(x, x @ torch.tensor([1.0, -2.0]))] * 4


def test_the_state_of_the_best_metric_is_kept() -> None:
    """A rate so high that the error only grows: the smaller one, that of the state before, is better."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    history = tune(model, points(), points(), epochs=3, lr=3.0, optimizer="sgd", device="cpu", loss=mse, metric="mae")
    values = [row.metric for row in history.epochs]
    assert history.best_epoch == 0
    assert all(value is not None and value > 3 for value in values)
    assert evaluate(model, points(), loss=mse, metric="mae")["mae"] < min(v for v in values if v is not None)


def mse(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def test_early_stopping_goes_by_the_metric() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    history = tune(
        model, points(), points(), epochs=9, lr=1e-9, device="cpu", loss=mse, metric="r2", patience=2, larger=False
    )
    assert history.stopped
    assert len(history.epochs) < 9


def test_the_metric_is_of_the_averaged_model() -> None:
    seen: list[float] = []

    class Look(Callback):
        def on_epoch(self, run: Any, row: Any) -> None:
            seen.append(evaluate(run.model, points(), loss=mse, metric="mse")["mse"])

    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    history = tune(
        model, points(), points(), epochs=2, lr=0.1, ema=0.9, device="cpu", loss=mse, metric="mse", callbacks=[Look()]
    )
    assert all(row.metric == pytest.approx(row.validation_loss) for row in history.epochs)
    assert all(row.metric != pytest.approx(own) for row, own in zip(history.epochs, seen, strict=True))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("acuracy", "no metric is called 'acuracy'.*Did you mean 'accuracy'"),
        (3, "metric is a int: give a name, a torchmetrics.Metric, or a function"),
        ("mse", r"metric='mse' can't be taken of scores \(4, 3\) and targets \(4,\) \(torch.int64\): .*one shape"),
        (lambda model, batches: "good", "the metric gave a str, not a number"),
    ],
)
def test_what_is_no_metric_is_named(metric: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        evaluate(nn.Identity(), classes(), metric=metric)


def test_a_metric_that_gives_several_values_is_refused() -> None:
    from torchmetrics.classification import MulticlassF1Score

    with pytest.raises(TrainingError, match="MulticlassF1Score gives several values"):
        evaluate(nn.Identity(), classes(), metric=MulticlassF1Score(3, average=None))


def test_scores_and_targets_are_wanted() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"error": x.mean()}

    with pytest.raises(TrainingError, match="metric='f1' is taken of scores and targets; the model returned a dict"):
        evaluate(Own(), classes(), loss=lambda output, target: output["error"], metric="f1")


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MissingExtra, match=r"a metric by name needs torchmetrics.*secateur\[tune\]"):
        tune(nn.Linear(3, 3), classes(), classes(), epochs=1, lr=0.1, device="cpu", metric="f1")
    assert evaluate(nn.Identity(), classes(), metric=lambda model, batches: 1.5)["metric"] == 1.5
