import builtins
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from secateur.data import Data, load_data
from secateur.data.batches import Batches, TensorSource, stratified
from secateur.data.digits import shifted
from secateur.data.imagefolder import flipped
from secateur.errors import DataError, MissingExtra


def numbered(count: int, **options) -> Batches:
    """Batches whose inputs are the positions 0, 1, 2, ..."""
    source = TensorSource(torch.arange(count).float()[:, None], torch.arange(count) % 2)
    return Batches(source, range(count), **{"batch_size": 4} | options)


def seen(batches: Batches) -> list[int]:
    return [int(value) for inputs, _ in batches for value in inputs]


# batches


def test_batches_in_order_when_not_shuffled():
    batches = numbered(10)
    assert seen(batches) == list(range(10))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert len(batches) == 3


def test_shuffled_passes_differ_but_hold_every_sample():
    batches = numbered(50, shuffle=True)
    first, second = seen(batches), seen(batches)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))


def test_the_epoch_and_the_seed_fix_the_order():
    batches = numbered(50, shuffle=True, seed=3)
    first, second = seen(batches), seen(batches)
    batches.set_epoch(1)
    assert seen(batches) == second
    assert seen(numbered(50, shuffle=True, seed=3)) == first
    assert seen(numbered(50, shuffle=True, seed=4)) != first


def test_batches_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    seen(numbered(50, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.sampled_from([(0.5,), (0.7, 0.1), (0.2, 0.3, 0.4)]),
    st.integers(0, 5),
)
def test_stratified_parts_partition_and_share_every_class(labels, fractions, seed):
    parts = stratified(labels, fractions, seed)
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    for label in set(labels):
        for part, fraction in zip(parts, fractions, strict=False):
            got = sum(labels[i] == label for i in part)
            assert abs(got - fraction * labels.count(label)) <= 1


# digits


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


def test_example_of_mapping_batches_is_a_mapping():
    batch = {"ids": torch.zeros(4, 7, dtype=torch.long), "labels": torch.arange(4), "scale": 2.0}
    example = Data(train=[batch], validation=None, test=[batch]).example(2)
    assert example["ids"].shape == (2, 7)
    assert example["labels"].shape == (2,)
    assert example["scale"] == 2.0


def test_example_larger_than_a_batch():
    with pytest.raises(DataError, match="asked for 9 example samples, but the first batch holds 4"):
        Data(train=[torch.zeros(4, 2)], validation=None, test=[]).example(9)


def test_shifts_move_by_at_most_one_pixel():
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2, 3] = 1
    moved = shifted(image.expand(200, 1, 6, 6), torch.Generator().manual_seed(0))
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


# image folders


def paint(path: Path, colour: tuple[int, int, int], count: int, size: tuple[int, int] = (12, 8)) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, colour).save(path / f"{i:03}.png")


def paint_classes(path: Path, count: int) -> None:
    paint(path / "blue", (0, 0, 255), count)
    paint(path / "red", (255, 0, 0), count)


def sizes(data: Data) -> list[int]:
    return [sum(len(labels) for _, labels in loader) for loader in (data.train, data.validation, data.test)]


def paths(data: Data) -> list[Path]:
    return [path for loader in (data.train, data.validation, data.test) for path in loader.source.images.paths]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"": 20}, [28, 6, 6]),
        ({"train": 20}, [28, 6, 6]),
        ({"train": 20, "val": 6}, [40, 6, 6]),
        ({"train": 20, "test": 6}, [34, 6, 12]),
        ({"train": 20, "valid": 6, "test": 5}, [40, 12, 10]),
    ],
)
def test_image_folder_splits(tmp_path, folders, expected):
    for folder, count in folders.items():
        paint_classes(tmp_path / folder, count)
    data = load_data(f"imagefolder:{tmp_path}", image_size=4)
    assert sizes(data) == expected
    assert len(set(paths(data))) == len(paths(data)) == sum(expected)
    assert data.classes == 2
    assert f"{expected[0]} train" in data.description


def test_images_are_scaled_cut_and_normalised(tmp_path):
    paint_classes(tmp_path, 10)
    images, labels = next(iter(load_data(f"imagefolder:{tmp_path}", image_size=4).test))
    assert images.shape[1:] == (3, 4, 4)
    red = images[labels == 1][0, :, 0, 0]
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert torch.allclose(red, expected, atol=1e-5)


def test_images_keep_their_places(tmp_path):
    left_dark = Image.new("RGB", (16, 8))
    left_dark.paste((255, 255, 255), (8, 0, 16, 8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            left_dark.save(tmp_path / name / f"{i}.png")
    image = next(iter(load_data(f"imagefolder:{tmp_path}", image_size=8).test))[0][0]
    assert (image[:, :, 0] < 0).all()
    assert (image[:, :, -1] > 0).all()


def test_training_images_are_mirrored_at_random():
    images = torch.arange(3.0).expand(40, 1, 1, 3)
    mirrored = flipped(images, torch.Generator().manual_seed(0))[:, 0, 0, 0]
    assert set(mirrored.tolist()) == {0.0, 2.0}


def test_image_folder_is_deterministic(tmp_path):
    paint_classes(tmp_path, 10)
    first, second = (load_data(f"imagefolder:{tmp_path}", image_size=4, batch_size=4, seed=1) for _ in range(2))
    for (x, y), (other_x, other_y) in zip(first.train, second.train, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_image_folder_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no folder '.*nowhere': give one with train and val"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}")


def test_image_folder_with_empty_classes(tmp_path):
    paint_classes(tmp_path, 3)
    (tmp_path / "green").mkdir()
    (tmp_path / "grey").mkdir()
    with pytest.raises(DataError, match=r"no image in .*green, .*grey: every class needs some"):
        load_data(f"imagefolder:{tmp_path}")


def test_image_folder_with_one_class(tmp_path):
    paint(tmp_path / "red", (255, 0, 0), 3)
    with pytest.raises(DataError, match="one folder for each class, at least two; there is only 'red'"):
        load_data(f"imagefolder:{tmp_path}")


def test_image_folder_with_a_class_that_training_lacks(tmp_path):
    paint_classes(tmp_path / "train", 3)
    paint(tmp_path / "val" / "green", (0, 255, 0), 3)
    with pytest.raises(DataError, match="classes that the training images lack: green"):
        load_data(f"imagefolder:{tmp_path}")


def test_image_folder_with_too_few_images(tmp_path):
    paint_classes(tmp_path, 1)
    with pytest.raises(DataError, match="too few images: none is left for validation and test"):
        load_data(f"imagefolder:{tmp_path}")


def test_broken_image_is_named(tmp_path):
    paint_classes(tmp_path, 10)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"00\d.png can't be read as an image"):
        list(load_data(f"imagefolder:{tmp_path}").train)


@pytest.mark.shared
def test_real_image_folder(shared):
    data = load_data(f"imagefolder:{shared / 'data' / 'hymenoptera'}", image_size=32)
    assert sizes(data) == [244, 77, 76]


# users' own


LOADER = DataLoader(TensorDataset(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long)), batch_size=3)


@pytest.fixture
def user(monkeypatch):
    """A module of the user's, to put functions on."""
    module = types.ModuleType("user_loaders")
    monkeypatch.setitem(sys.modules, "user_loaders", module)
    return module


@pytest.mark.parametrize(
    ("returned", "has_validation"),
    [
        ((LOADER, LOADER), False),
        ((LOADER, LOADER, LOADER), True),
        ({"train": LOADER, "test": LOADER}, False),
        ({"train": LOADER, "val": LOADER, "test": LOADER, "classes": 2}, True),
        (Data(train=LOADER, validation=LOADER, test=LOADER), True),
    ],
)
def test_loaders_of_the_user(user, returned, has_validation):
    user.make = lambda: returned
    data = load_data("user_loaders:make")
    assert data.train is LOADER
    assert data.test is LOADER
    assert (data.validation is LOADER) == has_validation
    assert data.example()[0].shape == (1, 2)


def test_settings_reach_a_function_that_has_parameters_for_them(user):
    got = {}

    def make(batch_size, root, seed=0):
        got.update(batch_size=batch_size, root=root, seed=seed)
        return LOADER, LOADER

    user.make = make
    load_data("user_loaders:make", batch_size=5, seed=9, root="here")
    assert got == {"batch_size": 5, "root": "here", "seed": 9}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"train": LOADER, "val": LOADER}, "returned a dict with 'train', 'val': there is no test loader in it"),
        ((LOADER,), "returned a tuple of 1: there is no train and no test loader"),
        (None, "returned a NoneType: there is no train and no test loader"),
        ((LOADER, 3), "the test loader of user_loaders:make is a int: it must be an iterable"),
        ((LOADER, iter(LOADER)), "can be iterated only once"),
        (([], LOADER), "the train loader of user_loaders:make holds no batch"),
    ],
)
def test_loaders_that_will_not_do(user, returned, message):
    user.make = lambda: returned
    with pytest.raises(DataError, match=message):
        load_data("user_loaders:make")


def test_function_that_takes_no_such_argument(user):
    user.make = lambda: (LOADER, LOADER)
    with pytest.raises(DataError, match=r"user_loaders:make\(\) can't be called with {'depth': 3}"):
        load_data("user_loaders:make", depth=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown data 'digit': it is one of 'digits', 'imagefolder:PATH'"),
        ("imagefolder:", "unknown data 'imagefolder:'"),
        ("", "unknown data ''"),
        ("nowhere.at_all:make", "no module 'nowhere' can be imported"),
        ("user_loaders:nothing", "has no attribute 'nothing'"),
        ("math:pi", "names a float, but must name a function"),
    ],
)
@pytest.mark.usefixtures("user")
def test_specs_that_name_nothing(spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec)


def test_options_that_do_not_apply():
    with pytest.raises(DataError, match="'digits' takes no option 'depth'"):
        load_data("digits", depth=3)
    with pytest.raises(DataError, match="batch_size=0"):
        load_data("digits", batch_size=0)
