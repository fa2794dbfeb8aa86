"""Whether a network, its data and the device fit each other."""

import pytest
import torch

from secateur.config import PruneSettings
from secateur.data import load_data
from secateur.errors import DataError, SecateurError
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
    with pytest.raises(SecateurError, match=r"device 'quantum' can't be used here.*--device"):
        prepare(PruneSettings(device="quantum"))
