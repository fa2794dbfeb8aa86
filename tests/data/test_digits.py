"""The embedded digits."""

import builtins

import pytest
import torch

from secateur.data import load_data
from secateur.data.digits import shifted
from secateur.errors import DataError, MissingExtra


def test_digits_are_split_by_a_fixed_seed_without_overlap():
    data, other = load_data("digits", seed=0), load_data("digits", seed=7)
    parts = [set(loader.positions) for loader in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [1258, 180, 359]
    assert set.union(*parts) == set(range(1797))
    assert data.test.positions == other.test.positions


def test_digits_are_padded_scaled_and_labelled():
    data = load_data("digits", batch_size=32)
    images, labels = next(iter(data.test))
    assert images.shape[1:] == (1, 10, 10)
    assert images.min() == 0
    assert images.max() == 1
    border = torch.ones(10, 10, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert images[:, 0, border].abs().sum() == 0
    assert set(labels.tolist()) <= set(range(10))
    assert data.classes == 10


def test_example_is_one_sample_of_the_validation_split():
    data = load_data("digits")
    (example,) = data.example()
    assert example.shape == (1, 1, 10, 10)
    assert torch.equal(example, next(iter(data.validation))[0][:1])
    assert data.example(3)[0].shape == (3, 1, 10, 10)


def test_shifts_move_by_at_most_one_pixel():
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2, 3] = 1
    moved = shifted(image.expand(200, 1, 6, 6), torch.arange(200) * 7)
    places = {tuple(place.tolist()) for place in moved[:, 0].nonzero()[:, 1:]}
    assert places == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)}
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))


def test_digits_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'secateur\[train\]'"):
        load_data("digits")


def test_shifts_can_be_left_out():
    data = load_data("digits", augment="none", batch_size=2000)
    images, _ = next(iter(data.train))
    assert images[:, :, 0].abs().sum() == 0  # the rim that a shift would reach
    assert next(iter(load_data("digits", batch_size=2000).train))[0][:, :, 0].abs().sum() > 0


def test_digits_have_no_mirror_image_and_one_size():
    with pytest.raises(DataError, match="augment='flip' would mirror digits"):
        load_data("digits", augment="flip")
    with pytest.raises(DataError, match="image_size=32 is for images in files"):
        load_data("digits", image_size=32)
