"""Whether the splits of data fit together."""

import pytest
import torch

from secateur.data import Data, load_data
from secateur.data.batches import Batches, TensorSource
from secateur.data.checking import first_batches, label_problems, remarks, value_problems
from secateur.errors import DataError


def batches(labels: list[int], start: int = 0) -> Batches:
    """Samples that are numbered from ``start``."""
    inputs = torch.arange(start, start + len(labels)).float()[:, None]
    return Batches(TensorSource(inputs, torch.tensor(labels)), range(len(labels)), batch_size=4, shuffle=True)


def data(train: list[int], test: list[int], validation: list[int] | None = None, **options) -> Data:
    held = None if validation is None else batches(validation, 200)
    return Data(train=batches(train), validation=held, test=batches(test, 100), **options)


def test_first_batches_leave_everything_as_it_was():
    given = data([0, 1] * 8, [0, 1], [1, 0])
    given.train.set_epoch(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = first_batches(given)
    assert list(found) == ["train", "validation", "test"]
    assert given.train.epoch == 3
    assert torch.equal(next(iter(given.train))[0], found["train"][0])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 1)), shuffle=True)
    first_batches(Data(train=loader, validation=None, test=loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_split_without_a_batch():
    with pytest.raises(DataError, match="the validation and the test loader holds no batch"):
        first_batches(Data(train=[torch.zeros(1)], validation=[], test=[]))


def test_numbers_that_are_none():
    good, bad = torch.zeros(2, 3), torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])
    assert value_problems({"train": (good, torch.zeros(2)), "test": {"x": good, "n": torch.ones(2).long()}}) == []
    (said,) = value_problems({"train": (good, None), "test": ({"x": bad}, torch.zeros(2))})
    assert said.startswith("the first batch of the test split holds 2 values that are NaN or infinite: take these")


def test_labels_that_fit_together():
    assert label_problems(data([0, 1, 2], [1, 2], [0])) == []
    assert label_problems(Data(train=[torch.zeros(1)], validation=None, test=[torch.zeros(1)])) == []


def test_labels_below_zero():
    (said,) = label_problems(data([0, 1, -1, -7, -100], [1]))
    assert said.startswith("the train split has labels below 0 (-7, -1): classes are numbered from 0.")


def test_classes_that_are_not_trained_on():
    validation, test = label_problems(data([0, 1], [1, 2, 4], [0, 3]))
    assert validation.startswith(
        "the validation split has samples of class 3, of which there is no training sample: add"
    )
    assert test.startswith("the test split has samples of classes 2, 4, of which there is no training sample")


def test_nothing_odd():
    assert remarks(data([0, 1], [0, 1], [1, 0], classes=2)) == []


def test_the_embedded_digits_have_nothing_odd():
    given = load_data("digits")
    assert label_problems(given) == remarks(given) == []


def test_classes_without_any_sample():
    (said,) = remarks(data([0, 2], [2], classes=12))
    assert said.startswith("There is no sample of classes 1, 3, 4, 5, 6 and 5 more, of 12 in all: number the classes")


def test_samples_that_are_tested_and_trained_on():
    train, test = batches([0, 1] * 10), batches([0, 1] * 5, 15)
    (said,) = remarks(Data(train=train, validation=None, test=test))
    assert said.startswith("5 of 10 test samples are training samples, too (the first is number 0), so results on them")


def test_large_data_is_not_read_for_duplicates(monkeypatch):
    monkeypatch.setattr("secateur.data.batches.CHEAP", 4)
    assert remarks(Data(train=batches([0, 1]), validation=None, test=batches([0, 1]))) == []
