"""Whether a network, its data and the device fit each other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.config import PruneSettings
from secateur.data import Data, load_data
from secateur.data.batches import Batches, TensorSource
from secateur.errors import DataError, SecateurError
from secateur.examples import SimpleNet
from secateur.fit import check_fit, moved
from secateur.runs.prune import prepare


def test_nests_keep_their_form() -> None:
    nest = (torch.zeros(1), {"a": [torch.ones(2), 3]}, "x")
    found = moved(nest, "meta")
    assert found[0].is_meta
    assert found[1]["a"][0].is_meta
    assert (found[1]["a"][1], found[2]) == (3, "x")


def test_data_that_does_not_fit() -> None:
    settings = PruneSettings(
        model="torch.nn:Conv2d", model_args={"in_channels": 3, "out_channels": 2, "kernel_size": 3}
    )
    with pytest.raises(
        DataError, match=r"does not run on the data digits, whose first sample is float32 \(1, 1, 10, 10\)"
    ):
        prepare(settings)


def test_too_few_outputs() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 4))
    with pytest.raises(DataError, match="tells 4 classes apart, but the data digits has 10"):
        check_fit(model, load_data("digits"), PruneSettings())


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SecateurError, match=r"device 'quantum' can't be used here: there is no such kind; .* --device"):
        prepare(PruneSettings(device="quantum"))


# ---------------------------------------------------------------------- labels and inputs, before the first step


class Scores(torch.nn.Module):
    """Three classes from four numbers."""

    def __init__(self, *places: int) -> None:
        super().__init__()
        self.layer, self.places = torch.nn.Linear(4, 3), places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.layer(x)
        return scores.reshape(*scores.shape, *(1 for _ in self.places)).expand(-1, -1, *self.places)


def loaders(labels: torch.Tensor, inputs: torch.Tensor | None = None, **others: Any) -> Data:
    """A user's own loaders, of one batch."""
    batch = (torch.zeros(len(labels), 4) if inputs is None else inputs, labels)
    return Data(**{"train": [batch], "validation": None, "test": [batch], **others})


def check(data: Data, model: torch.nn.Module | None = None) -> list[str]:
    return check_fit(model or Scores(), data, PruneSettings(model="m:Net", data="m:loaders"))


def test_labels_that_fit() -> None:
    assert check(loaders(torch.tensor([0, 1, 2, -100]))) == []
    assert check(loaders(torch.tensor([[0.1, 0.2, 0.7]]))) == []
    assert check(loaders(torch.zeros(2, 5, dtype=torch.long)), Scores(5)) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.tensor([0, 3]),
            "labels of the train split go from 0 to 3, but .* 0 to 2 apart: give the model 4 outputs",
        ),
        (torch.tensor([1, 2, 3]), "go from 1 to 3, but .*: subtract 1 from them"),
        (torch.tensor([0, -1]), "go from -1 to 0, but .*: number classes from 0; -100 is the label that does not"),
        (torch.tensor([0.0, 1.0]), r"float32 \(2,\), but classes are whole numbers from 0: give labels.long\(\)"),
        (torch.tensor([0, 1], dtype=torch.int32), r"int32 \(2,\), but classes are int64: give labels.long\(\)"),
        (torch.tensor([[0], [1]]), r"int64 \(2, 1\), but the model's scores \(1, 3\) want \(N,\): give labels.squeeze"),
        (torch.tensor([[0, 1, 0]]), r"want \(N,\): give one class for each sample, labels.argmax\(1\) of rows"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(loaders(labels))


def test_all_splits_are_looked_at() -> None:
    bad = [(torch.zeros(1, 4), torch.tensor([7]))]
    with pytest.raises(DataError, match=r"labels of the validation split go .*; the labels of the test split go"):
        check(loaders(torch.tensor([0]), validation=bad, test=bad))


def test_all_labels_of_our_own_batches_are_known() -> None:
    source = TensorSource(torch.zeros(10, 4), torch.tensor([0] * 9 + [5]))
    batches = Batches(source, range(10), batch_size=2)
    with pytest.raises(DataError, match="labels of the train split go from 0 to 5"):
        check(loaders(torch.tensor([0]), train=batches))


def test_classes_that_are_counted_from_one() -> None:
    batches = Batches(TensorSource(torch.zeros(3, 4), torch.tensor([1, 2, 3])), range(3), batch_size=3)
    with pytest.raises(
        DataError, match="tells 3 classes apart, but .* has 4. Its labels start at 1: subtract that. Or"
    ):
        check(Data(train=batches, validation=None, test=batches, classes=4))


def test_inputs_that_are_no_numbers() -> None:
    inputs = torch.full((2, 4), float("nan"))
    with pytest.raises(DataError, match=r"first batch of the train split holds 8 values that are NaN .*; .*test split"):
        check(loaders(torch.tensor([0, 1]), inputs))


def test_models_with_a_loss_of_their_own() -> None:
    class Own(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(9, classes)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            return {"logits": self.table(input_ids)}

    batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[-100, 6]])}
    data = Data(train=[batch], validation=None, test=[batch])
    assert check(data, Own(7)) == []
    with pytest.raises(DataError, match="the labels of the train split go from 6 to 6, but the model tells .* 0 to 5"):
        check(data, Own(6))
    score = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([0.5])}
    assert check(Data(train=[score], validation=None, test=[score]), Own(6)) == []


def test_splits_of_other_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    label = torch.tensor([0])
    small, large = [(torch.zeros(1, 1, 8, 8), label)], [(torch.zeros(1, 1, 9, 9), label)]
    (said,) = check(Data(train=small, validation=None, test=large), model)
    assert said.startswith(
        "The first training sample is float32 (1, 1, 8, 8), the first test sample float32 (1, 1, 9, 9)"
    )
    colour = [(torch.zeros(1, 3, 8, 8), label)]
    with pytest.raises(
        DataError, match=r"whose first test sample is .*0 takes 1 channels, and gets 3: take their mean"
    ):
        check(Data(train=small, validation=None, test=colour), model)


def test_what_the_model_takes_is_said() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 30 * 30, 10))
    data = Data(train=[torch.zeros(1, 3, 40, 40)], validation=None, test=[torch.zeros(1, 3, 40, 40)])
    with pytest.raises(DataError, match=r"RuntimeError: .*It runs on images of 32x32: bring them to that size"):
        check(data, model)


def test_the_calibration_batches_stay_those_of_the_first_epoch() -> None:
    data = load_data("digits")
    check_fit(SimpleNet().eval(), data, PruneSettings())
    assert data.train.epoch == 0


def test_warnings_reach_the_notes_and_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import secateur.runs.prune as run

    digits = load_data("digits")
    monkeypatch.setattr(run, "load_data", lambda *_, **__: replace(digits, test=digits.validation))
    _, data = prepare(PruneSettings(train_epochs=0))
    assert data.warnings == ()  # validation and test may be the same: only training samples matter
    monkeypatch.setattr(run, "load_data", lambda *_, **__: replace(digits, test=digits.train))
    outcome = run.prune_run(PruneSettings(train_epochs=0, epochs=0, compensate="none", out=tmp_path / "run"))
    assert "1258 of 1258 test samples are training samples, too" in outcome.advice
