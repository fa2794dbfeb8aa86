"""Logistic regression on features: its optimum by hand, and what chooses the decay."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.adapting.regression import DECAYS, fit_head, logistic


def test_the_optimum_by_hand() -> None:
    """Two samples at -1 and +1, of unit spread: by symmetry w = (-a, a), and the loss log(1 + exp(-2a)) + decay a^2 is
    least where 2 / (1 + exp(2a)) = 2 decay a; for a = 0.5 that is decay = 2 / (1 + e).
    """
    decay = 2 / (1 + math.e)
    weights = logistic(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, decay)
    assert weights.flatten().tolist() == pytest.approx([-0.5, 0.0, 0.5, 0.0], abs=1e-5)


def test_the_gradient_vanishes_on_features_of_any_scale() -> None:
    features = torch.randn(40, 5) * torch.tensor([1.0, 100.0, 0.01, 1.0, 0.0]) + 3
    labels = torch.randint(3, (40,))
    weights = logistic(features, labels, 3, 0.1).requires_grad_()
    wide = features.double()
    inputs = (wide - wide.mean(0)) / torch.where(wide.std(0, correction=0) > 1e-6, wide.std(0, correction=0), 1.0)
    scores = inputs @ weights[:, :-1].T + weights[:, -1]
    (F.cross_entropy(scores, labels) + 0.05 * weights[:, :-1].square().sum()).backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_gives_what_was_fitted(bias: bool) -> None:
    features = torch.randn(60, 4) + 1
    labels = (features[:, 0] > features[:, 1]).long()
    layer = nn.Linear(4, 2, bias=bias)
    decay = fit_head(layer, (features, labels), (features, labels), seed=0)
    assert decay in DECAYS
    assert (layer(features).argmax(1) == labels).float().mean() > 0.9


def test_labels_that_do_not_count_are_left_out() -> None:
    features, labels = torch.randn(30, 3), torch.randint(2, (30,))
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    fit_head(first, (features[:20], labels[:20]), None, seed=0)
    labels[20:] = -100
    fit_head(second, (features, labels), None, seed=0)
    assert torch.equal(first.weight, second.weight)


def test_what_validates_better_stays() -> None:
    """The validation samples are of the other classes than the training samples say: nothing fitted is any good."""
    features = torch.tensor([[-1.0], [1.0]] * 4)
    labels = torch.tensor([0, 1] * 4)
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        layer.bias.zero_()
    before = layer.weight.clone()
    assert fit_head(layer, (features, labels), (features, 1 - labels), seed=0) is None
    assert torch.equal(layer.weight, before)


def test_labels_without_meaning_get_a_strong_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 40, generator=generator), torch.randint(2, (60,), generator=generator)
    assert fit_head(nn.Linear(40, 2), (features, labels), None, seed=0) == DECAYS[0]
