"""What a network takes, where it does not run on what it was given."""

import re

import pytest
import torch
from torch import Tensor, nn

from secateur.examples import SimpleNet
from secateur.misfits import advice


class Small(nn.Module):
    """Takes 3x32x32 and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).flatten(1))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 32, 32), r"layer stem takes 3 channels, and gets 1: repeat the one, x.expand\(-1, 3, ...\)"),
        ((1, 32, 32, 3), r"gets 32: the channels come last. Put them first, x.movedim\(-1, 1\)"),
        ((1, 5, 32, 32), "gets 5: give those that it takes, or build the model for 5, with --model-args"),
        ((1, 32, 32), "layer stem takes batches of 3 channels, and gets .1, 32, 32.: put in the dim that is missing"),
        ((1, 3, 50, 50), "It runs on images of 32x32: bring them to that size, with --image-size 32 where"),
    ],
)
def test_shapes(shape: tuple[int, ...], said: str) -> None:
    found = advice(Small(), (torch.zeros(shape),))
    assert re.search(said, found), found


def test_the_mean_of_the_channels() -> None:
    assert "layer conv1 takes 1 channels, and gets 3: take their mean" in advice(
        SimpleNet(), (torch.zeros(1, 3, 10, 10),)
    )


def test_a_size_that_is_none_of_the_usual_ones() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(7 * 7, 2))
    said = advice(model, (torch.zeros(1, 1, 8, 8),))
    assert said == "layer 1 takes 49 features, and gets 64: give samples of the size that it was made for"


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.uint8, "layer 0 takes float32, and gets uint8: give x.to(torch.float32) / 255"),
        (torch.float64, "layer 0 takes float32, and gets float64: give x.to(torch.float32)"),
    ],
)
def test_numbers_of_another_kind(dtype: torch.dtype, said: str) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    assert advice(model, (torch.zeros(1, 4, dtype=dtype),)) == said


def test_tokens() -> None:
    said = advice(nn.Sequential(nn.Embedding(9, 2)), (torch.zeros(1, 4),))
    assert said == "layer 0 looks up whole numbers, and gets float32: give tokens as int64"


def test_nothing_to_say() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    assert advice(Refuses(), (torch.zeros(1, 4),)) == ""
    assert advice(Small(), {"other": torch.zeros(1)}) == ""


def test_no_hook_stays() -> None:
    model = Small()
    advice(model, (torch.zeros(1, 3, 50, 50),))
    assert not any(module._forward_pre_hooks for module in model.modules())
