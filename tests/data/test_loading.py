"""Data by name: which kind it is, and loaders of the user's own."""

import sys
import types

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from secateur.data import Data, load_data
from secateur.errors import DataError

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


def test_example_of_mapping_batches_is_a_mapping():
    batch = {"ids": torch.zeros(4, 7, dtype=torch.long), "labels": torch.arange(4), "scale": 2.0}
    example = Data(train=[batch], validation=None, test=[batch]).example(2)
    assert example["ids"].shape == (2, 7)
    assert example["labels"].shape == (2,)
    assert example["scale"] == 2.0


def test_example_larger_than_a_batch():
    with pytest.raises(DataError, match="asked for 9 example samples, but the first batch holds 4"):
        Data(train=[torch.zeros(4, 2)], validation=None, test=[]).example(9)


def test_batches_that_are_none():
    with pytest.raises(DataError, match=r"got a sequence of 3 items. Let the loader give pairs"):
        Data(train=[(torch.zeros(1),) * 3], validation=None, test=[]).example()
