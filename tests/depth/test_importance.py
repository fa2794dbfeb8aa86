"""Importance of blocks, with numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from secateur.depth.importance import at_random, cosine, feature_dim, influence, loss_increase, scorer
from secateur.errors import DataError, PlanError
from support.blocks import BasicBlock


class Adding(nn.Module):
    """x + x W."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return x + x @ self.weight


TURN = [[0.0, 1.0], [-1.0, 0.0]]  # (1, 0) becomes (1, 1): 45 degrees
DOUBLE = [[1.0, 0.0], [0.0, 1.0]]


def test_influence_by_hand() -> None:
    net = nn.Sequential(Adding(TURN), Adding(DOUBLE))
    found = influence(net, ["0", "1"], [torch.tensor([[1.0, 0.0], [0.0, 3.0]])])
    assert found["0"] == pytest.approx(1 - math.sqrt(0.5))
    assert found["1"] == pytest.approx(0, abs=1e-6)  # twice as long, but the same direction


def test_influence_of_what_is_skipped_already() -> None:
    class Part(nn.Module):
        """Turns its input where it is on the first axis."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return x + x @ self.weight

    x = torch.tensor([[1.0, 0.0]])
    net = nn.Sequential(Part(), Part())  # (1, 0), (1, 1), (1, 2)
    assert influence(net, ["1"], [x])["1"] == pytest.approx(1 - 3 / math.sqrt(10))
    assert influence(net, ["1"], [x], skipped=["0"])["1"] == pytest.approx(1 - math.sqrt(0.5))


def test_masked_tokens_do_not_count() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Adding([[0.0, 1.0], [0.0, 0.0]])])

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.blocks[0](x)

    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # the second token is not moved
    batch = {"x": x, "attention_mask": torch.tensor([[1, 0]])}
    whole = {"x": x, "attention_mask": torch.ones(1, 2)}
    assert influence(Net(), ["blocks.0"], [batch])["blocks.0"] == pytest.approx(1 - math.sqrt(0.5))
    assert influence(Net(), ["blocks.0"], [whole])["blocks.0"] == pytest.approx((1 - math.sqrt(0.5)) / 2)


def test_cosine_of_zeros() -> None:
    zero, one = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    assert cosine(zero, zero).item() == 1
    assert cosine(zero, one).item() == 0


def test_features_of_images_and_of_tokens() -> None:
    assert feature_dim(BasicBlock(), torch.zeros(1, 8, 4, 4)) == 1
    assert feature_dim(nn.Linear(8, 8), torch.zeros(1, 8, 8)) == -1


def test_loss_increase_by_hand() -> None:
    net = nn.Sequential(Adding(DOUBLE), Adding(DOUBLE))
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    batches = [(x[:2], 4 * x[:2]), (x[2:], 4 * x[2:])]

    def squares(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(1).mean()

    found = loss_increase(net, ["0", "1"], batches, squares)
    assert found["0"] == pytest.approx(4 * (1 + 4 + 9) / 3)  # 2x instead of 4x, a mean over three samples
    assert loss_increase(net, ["1"], batches, squares, skipped=["0"])["1"] == pytest.approx((9 - 4) * 14 / 3)


def test_at_random() -> None:
    assert at_random(["a", "b"], 0) == at_random(["a", "b"], 0)
    assert at_random(["a", "b"], 0) != at_random(["a", "b"], 1)


def test_what_a_scorer_needs() -> None:
    with pytest.raises(PlanError, match="influence, loss, random"):
        scorer(nn.Identity(), "size", None, None, None, 0)
    with pytest.raises(PlanError, match="pass data="):
        scorer(nn.Identity(), "loss", None, None, None, 0)
    with pytest.raises(DataError, match="at least one batch"):
        influence(nn.Sequential(Adding(TURN)), ["0"], [])
    with pytest.raises(DataError, match="at least one"):
        loss_increase(nn.Sequential(Adding(TURN)), ["0"], [])
