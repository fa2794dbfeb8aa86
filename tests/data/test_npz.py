"""Samples in .npz files."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.data import Data, load_data
from secateur.data import arrays as arrays_module
from secateur.errors import DataError

RANDOM = np.random.default_rng(0)
LABELS = np.arange(40) % 4


def images(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def written(path: Path, **arrays: object) -> str:
    np.savez(path / "data.npz", **arrays)
    return f"npz:{path / 'data.npz'}"


def full(x: np.ndarray, y: np.ndarray = LABELS) -> dict[str, np.ndarray]:
    """The three splits, each the same kind of samples."""
    return {"x_train": x, "y_train": y, "x_val": x[:8], "y_val": y[:8], "x_test": x[8:20], "y_test": y[8:20]}


def sizes(data: Data) -> list[int]:
    return [sum(len(labels) for _, labels in loader) for loader in (data.train, data.validation, data.test)]


@pytest.mark.parametrize(
    "shape", [(40, 8, 6), (40, 8, 6, 1), (40, 1, 8, 6), (40, 8, 6, 3), (40, 3, 8, 6), (40, 8, 8, 2), (40, 5, 8, 8)]
)
def test_bytes_become_normalised_images(tmp_path, shape):
    x = images(*shape)
    data = load_data(written(tmp_path, **full(x)))
    plain = x[:, None] if x.ndim == 3 else x if shape[1] in (1, 3, 5) else x.transpose(0, 3, 1, 2)
    plain = plain / 255
    expected = (plain - plain.mean((0, 2, 3), keepdims=True)) / plain.std((0, 2, 3), keepdims=True)
    got, labels = next(iter(data.test))
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert np.allclose(got.numpy(), expected[8:20], atol=1e-5)
    assert labels.tolist() == LABELS[8:20].tolist()
    assert sizes(data) == [40, 8, 12]
    assert data.classes == 4
    assert f"normalised by the training part's mean ({plain.mean((0, 2, 3))[0]:.3f}" in data.description


def test_only_the_training_part_is_normalised_by(tmp_path):
    """What is held out of the training split takes no part in its mean."""
    x = np.zeros((40, 4, 4), dtype=np.uint8)
    data = load_data(written(tmp_path, x_train=x, y_train=LABELS))
    held = [*data.validation.positions, *data.test.positions]
    x[held] = 200
    inputs, _ = next(iter(load_data(written(tmp_path, x_train=x, y_train=LABELS)).train))
    assert inputs.eq(0).all()


def test_a_channel_of_one_value_gives_zeros(tmp_path):
    x = np.full((40, 4, 4), 7, dtype=np.uint8)
    assert next(iter(load_data(written(tmp_path, **full(x))).train))[0].abs().max() < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_numbers_stay_as_they_are(tmp_path, dtype):
    x = RANDOM.normal(size=(40, 7)).astype(dtype)
    got, _ = next(iter(load_data(written(tmp_path, **full(x))).validation))
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy(), x[:8].astype("float32"))


@pytest.mark.parametrize(
    ("shape", "expected"), [((8, 6, 3), (3, 8, 6)), ((3, 8, 6), (3, 8, 6)), ((5, 6, 7), (5, 6, 7)), ((3, 4), (3, 4))]
)
def test_channels_of_numbers_move_where_they_plainly_come_last(tmp_path, shape, expected):
    x = RANDOM.normal(size=(40, *shape)).astype("float32")
    got, _ = next(iter(load_data(written(tmp_path, **full(x))).validation))
    assert got.shape[1:] == expected
    wanted = x[:8] if shape == expected else x[:8].transpose(0, 3, 1, 2)
    assert np.array_equal(got.numpy(), wanted)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", ">i2"])
def test_tokens_are_whole_numbers(tmp_path, dtype):
    x = RANDOM.integers(0, 100, (40, 9)).astype(dtype)
    got, labels = next(iter(load_data(written(tmp_path, **full(x))).validation))
    assert got.dtype == labels.dtype == torch.int64
    assert np.array_equal(got.numpy(), x[:8])


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_validation", "Y_validation", "X_test", "Y_test"),
        ("inputs_train", "targets_train", "inputs_valid", "targets_valid", "inputs_test", "targets_test"),
        ("train_data", "train_labels", "dev_data", "dev_labels", "test_data", "test_labels"),
    ],
)
def test_names_that_people_use(tmp_path, names):
    given = dict(zip(names, full(images(40, 4, 4), LABELS[:, None]).values(), strict=True))
    data = load_data(written(tmp_path, **given, note=np.zeros(3)))
    assert sizes(data) == [40, 8, 12]
    assert "not used: note" in data.description
    assert next(iter(data.test))[1].shape == (12,)


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        (["x_val", "y_val"], [34, 6, 12]),
        (["x_test", "y_test"], [40, 4, 4]),
        (["x_val", "y_val", "x_test", "y_test"], [28, 6, 6]),
    ],
)
def test_missing_splits_are_held_out(tmp_path, dropped, expected):
    given = full(images(40, 4, 4), LABELS % 2)
    data = load_data(written(tmp_path, **{name: array for name, array in given.items() if name not in dropped}))
    assert sizes(data) == expected


def test_arrays_without_a_split_are_the_training_split(tmp_path):
    assert sizes(load_data(written(tmp_path, x=images(40, 4, 4), y=LABELS % 2))) == [28, 6, 6]


def test_compressed_files_and_mapped_ones_are_the_same(tmp_path):
    arrays = full(images(40, 6, 6, 3))
    mapped = load_data(written(tmp_path, **arrays), seed=3)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    unpacked = load_data(f"npz:{tmp_path / 'small.npz'}", seed=3)
    assert isinstance(mapped.train.source.array, np.memmap)
    assert not isinstance(unpacked.train.source.array, np.memmap)
    for (x, y), (other_x, other_y) in zip(mapped.train, unpacked.train, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_arrays_in_fortran_order(tmp_path):
    x = images(40, 4, 6)
    plain = load_data(written(tmp_path, **full(x)))
    expected = next(iter(plain.test))[0]
    turned = load_data(written(tmp_path, **{name: np.asfortranarray(array) for name, array in full(x).items()}))
    assert torch.equal(next(iter(turned.test))[0], expected)


def test_compressed_arrays_that_memory_can_not_hold(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", **full(np.zeros((40, 50, 50), dtype=np.uint8)))
    monkeypatch.setattr(arrays_module, "free_memory", lambda: 100_000)
    with pytest.raises(DataError, match=r"x_train.* take 150,480 bytes unpacked, and 100,000 .*np.savez instead"):
        load_data(f"npz:{tmp_path / 'bomb.npz'}")
    assert load_data(written(tmp_path, **full(images(40, 50, 50)))).classes == 4


def test_free_memory_is_some():
    assert 2**20 < arrays_module.free_memory() < 2**50


@pytest.mark.parametrize("augment", ["none", "flip", "standard"])
def test_augmentation_of_images(tmp_path, augment):
    spec = written(tmp_path, **full(np.repeat(images(40, 1, 6), 6, 1)))
    plain, changed = (load_data(spec, augment=how, batch_size=40) for how in ("none", augment))
    (x, _), (other, _) = next(iter(plain.train)), next(iter(changed.train))
    assert torch.equal(next(iter(plain.test))[0], next(iter(changed.test))[0])
    same = (x == other).flatten(1).all(1)
    back = (x == other.flip(-1)).flatten(1).all(1)
    if augment == "none":
        assert same.all()
    elif augment == "flip":
        assert (same | back).all()
        assert 8 < same.sum() < 32
    else:
        assert not same.all()
        assert other.min() >= x.min() - 1e-5
        assert other.max() <= x.max() + 1e-5


def test_resuming_within_an_epoch(tmp_path):
    spec = written(tmp_path, **full(images(40, 6, 6)))
    whole, resumed = (load_data(spec, augment="standard", batch_size=7, seed=4) for _ in range(2))
    list(whole.train)
    resumed.train.set_epoch(1)
    for (x, _), (other, _) in zip(list(whole.train)[3:], resumed.train.skip(3), strict=True):
        assert torch.equal(x, other)


GOOD = images(40, 4, 4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": GOOD, "y_test": LABELS}, "there is no training data. It needs x_train and y_train"),
        ({"x_train": GOOD}, "there is x_train without its labels"),
        ({"y_train": LABELS}, "there is y_train without its inputs"),
        (full(GOOD) | {"train_images": GOOD}, "'x_train' and 'train_images' both look like one array"),
        (full(GOOD) | {"y_train": LABELS[:30]}, "x_train holds 40 samples, and y_train 30 labels"),
        (full(GOOD) | {"y_train": np.eye(4)[LABELS]}, r"y_train has the shape \(40, 4\).*argmax"),
        (full(GOOD) | {"y_train": LABELS / 2}, r"y_train is float64: classes are whole numbers.*astype"),
        (full(GOOD) | {"y_train": np.array(list("abcd"))[LABELS]}, "y_train is <U1: classes are whole.*np.unique"),
        (full(GOOD) | {"x_test": images(12, 5, 4)}, "splits differ: x_train images of 1x4x4, .*x_test images of 1x5x4"),
        (full(GOOD) | {"x_test": np.zeros((12, 4, 4))}, "the splits differ: .*x_test numbers of 4x4"),
        (full(images(40, 3, 3, 3)), "which of these are the channels can't be told"),
        (full(images(40, 4, 4).astype(np.int16)), r"x_train is int16 of shape \(40, 4, 4\): give images as uint8"),
        (full(np.zeros((40, 4), dtype=bool)), "x_train is bool of shape"),
        (full(np.zeros((40, 4), dtype=complex)), "x_train is complex128"),
        (full(np.zeros(40)), r"x_train is float64 of shape \(40,\)"),
        (full(np.where(np.arange(40) == 17, np.nan, 0.0)[:, None]), "x_train holds NaN .* 1 of 40 .* position 17"),
        (full(GOOD) | {"x_val": np.array([{}] * 8)}, r"can't read .*x_val.* \(Python objects\)"),
        ({"x_train": GOOD[:1], "y_train": LABELS[:1]}, "too few samples: none is left for"),
        ({"x_train": GOOD[:0], "y_train": LABELS[:0]}, "too few samples"),
    ],
)
def test_files_that_will_not_do(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load_data(written(tmp_path, **arrays))


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"no file '.*nowhere.npz': give an .npz file"):
        load_data(f"npz:{tmp_path / 'nowhere.npz'}")


def test_no_zip(tmp_path):
    np.save(tmp_path / "data.npz.npy", GOOD)
    with pytest.raises(DataError, match=r"is no whole .npz file .*write it with np.savez"):
        load_data(f"npz:{tmp_path / 'data.npz.npy'}")


def test_a_truncated_file(tmp_path):
    spec = written(tmp_path, **full(GOOD))
    path = tmp_path / "data.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"is no whole .npz file"):
        load_data(spec)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_that_announce_more_than_there_is(tmp_path, compression):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in full(GOOD).items():
            np.save(tmp_path / "one.npy", array)
            raw = (tmp_path / "one.npy").read_bytes()
            archive.writestr(f"{name}.npy", raw.replace(b"(40, 4, 4)", b"(99, 4, 4)"))
    with pytest.raises(DataError, match=r"can't read x_train.*1584 bytes were announced, and there are 640"):
        load_data(f"npz:{path}")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    with pytest.raises(DataError, match="Python objects"):
        load_data(written(tmp_path, x_train=np.array([Trap()]), y_train=np.zeros(1, dtype=int)))
    assert not (tmp_path / "sprung").exists()


def test_options_for_other_kinds(tmp_path):
    spec = written(tmp_path, **full(RANDOM.integers(0, 9, (40, 5))))
    with pytest.raises(DataError, match="augment='flip' is for images, and .* holds tokens of 5"):
        load_data(spec, augment="flip")
    with pytest.raises(DataError, match="image_size=32 is for images in files"):
        load_data(spec, image_size=32)
    with pytest.raises(DataError, match="'npz' takes no option 'depth'"):
        load_data(spec, depth=3)
