"""Models, losses and loaders as users write them."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from secateur.errors import TrainingError
from secateur.objectives import loss_of, own_loss
from secateur.tuning import Callback, Search, evaluate, tune

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(10, 3, generator=GENERATOR)
Y = (X[:, 0] > 0).long()
BATCHES = [(X[:8], Y[:8]), (X[8:], Y[8:])]
OPTIONS: dict[str, Any] = {"epochs": 1, "lr": 0.1, "optimizer": "sgd", "weight_decay": 0.0, "device": "cpu"}


class Own(nn.Module):
    """Computes a loss that is not cross-entropy, and gives it in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(3, 2), form

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        scores = self.layer(x)
        loss = (scores - labels[:, None]).square().mean()
        return {"scalar": loss, "mapping": {"loss": loss, "logits": scores}, "tuple": (loss, scores)}[self.form]


class Weights(Callback):
    def before_step(self, run: Any) -> None:
        self.gradient = run.model.layer.weight.grad.clone()


@pytest.mark.parametrize("form", ["scalar", "mapping", "tuple"])
def test_a_model_that_computes_its_own_loss_is_trained_on_that_one(form: str) -> None:
    model, by_hand, seen = Own(form), Own("scalar"), Weights()
    mappings = [{"x": x, "labels": y} for x, y in BATCHES]
    by_hand(X, Y).backward()
    history = tune(model, mappings, mappings, accumulate=2, callbacks=[seen], **OPTIONS)
    assert torch.allclose(seen.gradient, by_hand.layer.weight.grad, atol=1e-6)
    after = Own("scalar")
    after.load_state_dict(model.state_dict())
    assert history.epochs[0].train_loss == pytest.approx(float(by_hand(X, Y).detach()))  # weighted 8 : 2, not 1 : 1
    assert history.epochs[0].validation_loss == pytest.approx(float(after(X, Y).detach()))


def test_own_losses_by_form() -> None:
    loss, scores = torch.tensor(2.0), torch.zeros(4, 3)
    for output in (loss, (loss, scores), {"loss": loss}, [loss]):
        assert own_loss(output) is loss
    for output in (scores, (scores, loss), {"logits": scores}, None, (None, loss)):
        assert own_loss(output) is None
    assert float(loss_of((torch.tensor([2.0]), scores), torch.zeros(4, dtype=torch.long), lambda o, t: o[0])) == 2


def test_scores_of_tokens_with_the_classes_last() -> None:
    """(N, T, C) as language models have them; by hand: scores of zeros cost log C at each place."""
    assert float(loss_of(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.long), None)) == pytest.approx(math.log(4))
    scores, target = torch.randn(2, 5, 4), torch.randint(4, (2, 5))
    wanted = F.cross_entropy(scores.reshape(10, 4), target.reshape(10))
    assert torch.allclose(loss_of(scores, target, None), wanted)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"the loss function gave a tensor \(8,\): it must be one number"),
        (lambda output, target: 1.0, "the loss function gave a float: it must be one number"),
        (lambda output, target: output.detach().sum(), "no gradient"),
    ],
)
def test_losses_that_are_none(loss: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        tune(nn.Linear(3, 2), BATCHES, loss=loss, **OPTIONS)


@pytest.mark.parametrize("target", [Y[:8] + 5, Y[:8].float(), Y[:8, None], Y[:4], "labels"])
def test_targets_that_do_not_fit_say_what_would(target: Any) -> None:
    with pytest.raises(TrainingError, match=r"cross-entropy does not fit scores \(8, 2\) and targets .*int64"):
        tune(nn.Linear(3, 2), [(X[:8], target)], **OPTIONS)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def test_a_loader_without_a_length_is_counted() -> None:
    loader = DataLoader(Stream(), batch_size=8)
    history = tune(nn.Linear(3, 2), loader, loader, **OPTIONS | {"epochs": 2})
    assert [row.steps for row in history.epochs] == [2, 2]
    assert not history.notes  # the count was right
    assert evaluate(nn.Linear(3, 2), loader)["loss"] > 0


@pytest.mark.parametrize("no", [None, 5, X, {"x": X}])
def test_what_is_no_loader(no: Any) -> None:
    with pytest.raises(TrainingError, match=f"the loader is a {type(no).__name__}: give batches"):
        tune(nn.Linear(3, 2), no, **OPTIONS)


def test_validation_that_can_be_read_only_once_is_refused_before_training() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(TrainingError, match="validate is a list_iterator, which can be read only once"):
        tune(model, BATCHES, iter(BATCHES), **OPTIONS)
    assert torch.equal(model.weight, before)


def test_settings_that_would_be_passed_over_in_silence() -> None:
    with pytest.raises(TrainingError, match="metric and patience need validate="):
        tune(nn.Linear(3, 2), BATCHES, metric="f1", patience=1, **OPTIONS)
    with pytest.raises(TrainingError, match=r"epochs=1\.5 must be a whole number; ema=1\.0 must be in \(0, 1\)"):
        tune(nn.Linear(3, 2), BATCHES, **OPTIONS | {"epochs": 1.5, "ema": 1.0})
    with pytest.raises(TrainingError, match="keep='beast' must be 'best' or 'last'"):
        tune(nn.Linear(3, 2), BATCHES, keep="beast", **OPTIONS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TrainingError, match="no training with precision='fp16' on cpu: give 'bf16'"):
        tune(nn.Linear(3, 2), BATCHES, precision="fp16", **OPTIONS)


def test_patience_ends_a_run_that_keeps_its_last_state() -> None:
    """A metric that never gets better: after the first epoch nothing does."""
    model = nn.Linear(3, 2)
    history = tune(model, BATCHES, BATCHES, patience=2, keep="last", metric=lambda m, b: 1.0, **OPTIONS | {"epochs": 9})
    assert len(history.epochs) == 2
    assert history.best_epoch == 2


def test_a_metric_that_is_never_a_number_does_not_throw_the_training_away() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    history = tune(model, BATCHES, BATCHES, metric=lambda m, b: math.nan, **OPTIONS)
    assert history.best_epoch == 1
    assert not torch.equal(model.weight, before)


def test_gradients_are_on_while_training() -> None:
    found: list[Tensor] = []
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        with context:
            tune(model, BATCHES, BATCHES, **OPTIONS)
        found.append(model.weight.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_search_knows_which_way_a_metric_by_name_goes() -> None:
    """The trial of highest f1 wins: a rate of 1e-9 learns nothing, one of 0.5 does."""
    history = tune(
        nn.Linear(3, 2),
        BATCHES,
        BATCHES,
        **OPTIONS | {"epochs": 5, "lr": Search(trials=6, seconds=None, rates=(1e-9, 0.5), epochs=5)},
        metric="f1",
    )
    assert history.choice is not None
    trials = {row["lr"]: max(row["scores"]) for row in history.choice["trials"]}
    assert len(set(trials.values())) > 1
    assert trials[history.choice["lr"]] == max(trials.values()) > 0
